"""The list of commands. The module of a command is loaded when the command is used."""

import importlib
from typing import Any, Final

import click

from mcpguard import __version__
from mcpguard.cli._command import Group, until_reader_leaves

_COMMANDS: Final = {
    "run": "start a server behind mcpguard",
    "install": "make your clients start their servers through mcpguard",
    "uninstall": "undo install",
    "clients": "list the clients, their servers, and which are guarded",
    "policy": "show, check, explain and edit limits",
    "audit": "read the audit log",
    "usage": "show how full each counter is",
    "reset": "empty counters",
    "doctor": "check this installation, and a server behind it",
    "whoami": "show which user and agent a server would have, and why",
    "hook": "tell a client's subagents apart",
    "completion": "let your shell complete commands, options and names",
    "demo": "see mcpguard at work in ten seconds",
}
"""Each command and its line in the help, so that the help loads no command."""


class _Commands(Group):
    """Imports a command's module when the command is used. A command ends quietly when the reader of stdout goes away."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with until_reader_leaves():  # `--help` prints
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        with until_reader_leaves():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"mcpguard.cli.{cmd_name}")
        command = module.command
        assert isinstance(command, click.Command)  # noqa: S101 - each module has one
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(cls=_Commands)
@click.version_option(__version__, prog_name="mcpguard", message="%(prog)s %(version)s")
def cli() -> None:
    """Limit how often AI agents call MCP tools, by user, tool and agent.

    `mcpguard install` puts mcpguard in front of the servers in your clients' files.

    \b
    Examples:
      mcpguard install --dry-run
      mcpguard run --server crm -- npx -y @acme/crm-server
      mcpguard policy set --user '*' --tool search_customers 100/1h
      mcpguard audit tail -f
    """
