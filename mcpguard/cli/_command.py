"""Base classes of the commands and groups."""

import os
import signal
from typing import Any, Final

import click

from mcpguard.errors import ExitStatus

_NICENESS: Final = 10
"""With this nice value a process gets about a tenth of the time of a usual one, if both want all of a core."""


class _ShortHelp(click.Command):
    """A command with `-h`, whatever its context: click keeps the help option of the first context."""

    def get_help_option_names(self, ctx: click.Context) -> list[str]:
        """See `click.Command`."""
        del ctx
        return ["-h", "--help"]


class Command(_ShortHelp):
    """A command that refuses an option with one value that is given twice."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """See `click.Command`.

        Raises:
            click.UsageError: With this command's context, so that the hint can name its help.
        """
        try:
            given = self.make_parser(ctx).parse_args(list(args))[2]
            rest = super().parse_args(ctx, args)
            for option in given:
                if isinstance(option, click.Option) and _holds_one(option) and given.count(option) > 1:
                    raise click.UsageError(f"{option.opts[-1]} is given {given.count(option)} times, but takes one value.")
        except click.UsageError as error:
            error.ctx = error.ctx or ctx
            raise
        return rest

    def invoke(self, ctx: click.Context) -> Any:
        """See `click.Command`. From here on Ctrl-C raises KeyboardInterrupt, so that the command can clean up."""
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # set by `__main__`
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return super().invoke(ctx)


def _holds_one(option: click.Option) -> bool:
    """Whether an option keeps only its last value."""
    return not (option.multiple or option.is_flag or option.count)


class Group(_ShortHelp, click.Group):
    """A group of commands. Without a command it prints its help to stderr and exits with the status for wrong usage."""

    command_class = Command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """See `click.Command`."""
        if not args and not ctx.resilient_parsing:
            click.echo(ctx.get_help(), err=True)
            ctx.exit(ExitStatus.USAGE)
        return super().parse_args(ctx, args)


def give_way() -> None:
    """Let calls have the processor before this process, which reads much. Windows has no such priority."""
    if hasattr(os, "nice"):
        os.nice(_NICENESS)
