"""What all our commands and groups have in common."""

import signal
from typing import Any

import click

from mcpguard.errors import ExitStatus


class Command(click.Command):
    """A command that lets no option silently take the place of the same one before it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """See `click.Command`.

        Raises:
            click.UsageError: Always with its context, so that whoever tells of it can name this command's help.
        """
        try:
            given = self.make_parser(ctx).parse_args(list(args))[2]
            rest = super().parse_args(ctx, args)
            for option in given:
                if isinstance(option, click.Option) and _holds_one(option) and given.count(option) > 1:
                    raise click.UsageError(f"{option.opts[-1]} is given {given.count(option)} times, and has one value.")
        except click.UsageError as error:
            error.ctx = error.ctx or ctx
            raise
        return rest

    def invoke(self, ctx: click.Context) -> Any:
        """See `click.Command`. From here on an interrupt is an exception, since there may be something to tidy up."""
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # as `__main__` has set it
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return super().invoke(ctx)


def _holds_one(option: click.Option) -> bool:
    """Whether a second value would replace the first."""
    return not (option.multiple or option.is_flag or option.count)


class Group(click.Group):
    """A group of such commands, which shows its help on stderr where it is not told what to do."""

    command_class = Command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """See `click.Command`."""
        if not args and not ctx.resilient_parsing:
            click.echo(ctx.get_help(), err=True)
            ctx.exit(ExitStatus.USAGE)
        return super().parse_args(ctx, args)
