"""`mcpguard run` as click has it: for its help, and for what is wrong with a command line."""

from typing import Any

import click

from mcpguard.cli._command import Command
from mcpguard.cli.run_options import OPTIONS, Option
from mcpguard.errors import UsageError


def _click(option: Option) -> click.Option:
    names = [option.name, option.key]
    if option.is_flag:
        return click.Option(names, is_flag=True, help=option.help)
    kind = click.Choice(option.choices) if option.choices else click.STRING
    return click.Option(names, metavar=option.metavar or None, type=kind, help=option.help)


@click.command(
    "run",
    cls=Command,
    context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False},
    params=[_click(option) for option in OPTIONS],
    short_help="Start a server behind the guard.",
)
@click.argument("argv", nargs=-1, type=click.UNPROCESSED, metavar="[--] COMMAND [ARG]...")
def command(argv: tuple[str, ...], **options: Any) -> None:
    """Start COMMAND, a stdio MCP server, and limit its tool calls.

    Its stderr, stdout and exit status pass through, and so does what the client writes, except calls over a limit and what is
    not strict JSON-RPC.

    \b
    Example, in a client's config:
      "command": "mcpguard",
      "args": ["run", "--server", "crm", "--", "npx", "-y", "@acme/crm-server"]
    """
    if not argv:
        raise UsageError("no command to run", "mcpguard run -- npx -y @acme/crm-server")
    from mcpguard.cli.start import start

    start(list(argv), **options)
