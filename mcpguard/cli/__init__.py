"""The command line: one module a command group, loaded when it is asked for."""

import importlib
import os
import sys
from typing import Final

import click

from mcpguard import __version__
from mcpguard.errors import ExitStatus, McpguardError

_COMMANDS: Final = {
    "run": "start a server behind the guard",
    "policy": "show, check and edit limits",
    "audit": "what happened",
    "reset": "empty counters",
    "whoami": "who the guard takes you for, and why",
    "demo": "see it at work in half a minute",
}
"""Commands and what help says of each, so that help loads none of them."""


class _Commands(click.Group):
    """Commands of modules that are imported when one is called: `run` is started often, and stays in memory all day."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"mcpguard.cli.{cmd_name}")
        command = module.command
        assert isinstance(command, click.Command)  # noqa: S101 - ours
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], _COMMANDS, 1, 0.5)
            hint = f"did you mean {near[0]}?" if near else f"commands: {' '.join(_COMMANDS)}"
            raise click.UsageError(f"no such command: {args[0]}\nhint: {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mcpguard", message="%(prog)s %(version)s")
def cli() -> None:
    """Limit how often MCP tools are called, by user, tool and agent.

    In a client's config, put `mcpguard run --` before the server's command.

    \b
    Examples:
      mcpguard run --server crm -- npx -y @acme/crm-server
      mcpguard policy set --user '*' --tool search_customers 100/1h
      mcpguard audit tail -f
    """


def main() -> None:
    """The `mcpguard` command: one line and a hint for what a user can mend, never a traceback for it."""
    try:
        status = cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        status = ExitStatus.INTERRUPTED
    except click.ClickException as error:
        status = _complain(error.format_message(), "", ExitStatus.USAGE)
    except McpguardError as error:
        status = _complain(error.message, error.hint, error.exit_status)
    except KeyboardInterrupt:
        status = ExitStatus.INTERRUPTED
    except OSError as error:
        status = _complain(f"cannot write: {error.strerror or error}", "", ExitStatus.FAILURE)
    _leave(status if isinstance(status, int) else 0)


def _leave(status: int) -> None:
    """End with a status. What is still to be written may have nowhere to go: that is no reason for a traceback."""
    try:
        sys.stdout.flush()
    except (OSError, AttributeError):
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - for the interpreter's own flush
        status = status or ExitStatus.FAILURE
    sys.exit(status)


def _complain(message: str, hint: str, status: ExitStatus) -> ExitStatus:
    from mcpguard.core.audit import printable

    first, *more = message.splitlines() or [""]
    click.echo(f"mcpguard: {printable(first)}", err=True)
    for line in [*more, *([f"hint: {hint}"] if hint else [])]:
        click.echo(printable(line), err=True)
    return status
