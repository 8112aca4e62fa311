"""The program's commands, the classes of commands and groups, and how commands behave beside calls."""

import contextlib
import importlib
import os
import signal
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import click

from mcpguard import __version__
from mcpguard.errors import ExitStatus, UsageError, closest_word

if TYPE_CHECKING:  # a hook delays a call, and completes nothing
    from click.shell_completion import CompletionItem

_NICENESS: Final = 10
"""With this nice value a process gets about a tenth of the time of a usual one, if both want all of a core."""


class _ShortHelp(click.Command):
    """A command with `-h`, whatever its context: click keeps the help option of the first context."""

    def get_help_option_names(self, ctx: click.Context) -> list[str]:
        """See `click.Command`."""
        del ctx
        return ["-h", "--help"]


class Command(_ShortHelp):
    """A command. An option with one value that is given several times has the last one."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """See `click.Command`.

        Raises:
            click.UsageError: With this command's context, so that the hint can name its help.
        """
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            error.ctx = error.ctx or ctx
            raise

    def invoke(self, ctx: click.Context) -> Any:
        """See `click.Command`. From here on Ctrl-C raises KeyboardInterrupt, so that the command can clean up."""
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # set by `__main__`
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return super().invoke(ctx)


class Group(_ShortHelp, click.Group):
    """A group of commands. Without a command it prints its help to stderr and exits with the status for wrong usage.

    Args:
        args: As for `click.Group`.
        parts: Its commands by name: `module:function` below `mcpguard.cli`, loaded when it is used; and its line of help.
        kwargs: As for `click.Group`.
    """

    def __init__(self, *args: Any, parts: Mapping[str, tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._parts = parts

    def list_commands(self, ctx: click.Context) -> list[str]:
        """See `click.Group`."""
        del ctx
        return list(self._parts)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """See `click.Group`."""
        del ctx
        if cmd_name not in self._parts:
            return None
        module, _, function = self._parts[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(f"mcpguard.cli.{module}"), function)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """See `click.Group`. The help loads no command."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in self._parts.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list["CompletionItem[str]"]:
        """See `click.Group`. It loads no command."""
        from click.shell_completion import CompletionItem

        found = [CompletionItem(name, help=line) for name, (_, line) in self._parts.items() if name.startswith(incomplete)]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """See `click.Command`."""
        if not args and not ctx.resilient_parsing:
            click.echo(ctx.get_help(), err=True)
            ctx.exit(ExitStatus.USAGE)
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """See `click.Group`.

        Raises:
            UsageError: There is no such command. The hint is the command that is probably meant.
        """
        word = args[0]
        if word not in self._parts and not word.startswith("-"):
            raise UsageError(f"no such command: {word}", self._probably(ctx, word))
        return super().resolve_command(ctx, args)

    def _probably(self, ctx: click.Context, word: str) -> str:
        """The hint for a command that does not exist."""
        names = self.list_commands(ctx)
        groups = {name: group for name in names if isinstance(group := self.get_command(ctx, name), Group)}
        inner = (f"{name} {word}" for name, group in groups.items() if word in group.list_commands(ctx))
        meant = next(inner, None) or closest_word(word, names)
        return f"did you mean {ctx.command_path} {meant}?" if meant else f"use one of: {' '.join(names)}"


def give_way() -> None:
    """Let calls have the processor before this process, which reads much. Windows has no such priority."""
    if hasattr(os, "nice"):
        with contextlib.suppress(OSError):  # a sandbox may forbid it
            os.nice(_NICENESS)


@click.group(
    cls=Group,
    parts={
        "run": ("run:run", "start a server behind mcpguard"),
        "install": ("clients.install:install", "make your clients start their servers through mcpguard"),
        "uninstall": ("clients.install:uninstall", "undo install"),
        "clients": ("clients.listing:clients", "list the clients, their servers, and which are guarded"),
        "policy": ("policy:policy", "show, check, explain and edit limits"),
        "audit": ("audit:audit", "read the audit log"),
        "usage": ("usage:usage", "show how full each counter is"),
        "reset": ("reset:reset", "empty counters"),
        "doctor": ("doctor:doctor", "check this installation, and a server behind it"),
        "whoami": ("whoami:whoami", "show which user and agent a server would have, and why"),
        "hook": ("hook:hook", "tell a client's subagents apart"),
        "completion": ("completion:completion", "let your shell complete commands, options and names"),
        "demo": ("demo:demo", "see mcpguard at work in ten seconds"),
    },
)
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
