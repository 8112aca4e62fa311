"""Base classes of the commands and groups, and how commands behave beside calls and in pipes."""

import contextlib
import importlib
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import click

from mcpguard.errors import ExitStatus, McpguardError, UsageError, closest_word

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
        if ctx.resilient_parsing:  # a shell completes the line, which may have any error
            return super().parse_args(ctx, args)
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


_MEANT: Final = {
    "add": ("set", "policy set"),
    "allow": ("set", "policy set"),
    "clear": ("reset",),
    "create": ("init", "policy init"),
    "delete": ("unset", "policy unset"),
    "deny": ("set", "policy set"),
    "enable": ("mode", "policy mode"),
    "enforce": ("mode", "policy mode"),
    "follow": ("tail", "audit tail"),
    "limit": ("set", "policy set"),
    "limits": ("policy show",),
    "lint": ("check", "policy check"),
    "list": ("tail", "show", "policy show"),
    "log": ("audit tail",),
    "logs": ("audit tail",),
    "ls": ("tail", "show", "policy show"),
    "new": ("init", "policy init"),
    "observe": ("mode", "policy mode"),
    "print": ("tail", "show"),
    "remove": ("unset", "policy unset"),
    "rm": ("unset", "policy unset"),
    "rules": ("policy show",),
    "show": ("tail", "policy show"),
    "start": ("run",),
    "status": ("usage", "whoami"),
    "test": ("check", "policy check"),
    "validate": ("check", "policy check"),
    "verify": ("check", "policy check"),
    "view": ("tail", "show"),
    "why": ("explain", "policy explain"),
    "wrap": ("run",),
}
"""Commands that people try because other programs have them, and what they probably mean. The first that exists is the hint."""


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
        if self.get_command(ctx, word) is None and not word.startswith("-"):
            raise UsageError(f"no such command: {word}", self._probably(ctx, word, args[1:]))
        return super().resolve_command(ctx, args)

    def _probably(self, ctx: click.Context, word: str, rest: list[str]) -> str:
        """The hint for a command that does not exist."""
        path, names = ctx.command_path, self.list_commands(ctx)
        if word == "help":
            return f"run {' '.join([path, *(name for name in rest[:1] if name in names)])} --help"
        if word == "version":
            return f"run {ctx.find_root().command_path} --version"
        near = closest_word(word, names)
        for meant in [*(f"{name} {word}" for name in names), *_MEANT.get(word, ()), *([near] if near else [])]:
            if self._has(ctx, meant.split()):
                return f"did you mean {path} {meant}?"
        return f"use one of: {' '.join(names)}"

    def _has(self, ctx: click.Context, names: list[str]) -> bool:
        """Whether there is a command of this name, or of this group and name."""
        command = self.get_command(ctx, names[0])
        if len(names) == 1 or command is None:
            return command is not None
        return isinstance(command, click.Group) and command.get_command(ctx, names[1]) is not None


@contextlib.contextmanager
def until_reader_leaves() -> Iterator[None]:
    """End the command, without an error, when nobody still reads stdout.

    Raises:
        click.exceptions.Exit: The reader of stdout has gone away.
        McpguardError: The reader of another pipe has. click would exit without a message.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError as error:
        from mcpguard.cli.present import reader_leaves  # imported late: the hook is one of the commands

        if not reader_leaves(within_s=0):
            raise McpguardError(f"cannot continue: {error.strerror or 'broken pipe'}") from error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes stdout at exit
        raise click.exceptions.Exit(ExitStatus.OK) from error


def give_way() -> None:
    """Let calls have the processor before this process, which reads much. Windows has no such priority."""
    if hasattr(os, "nice"):
        with contextlib.suppress(OSError):  # a sandbox may forbid it
            os.nice(_NICENESS)
