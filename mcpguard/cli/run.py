"""`mcpguard run` for click, which prints its help and reports errors of its command line."""

from typing import Any, Final

import click

from mcpguard.cli._command import Command
from mcpguard.cli._seen import files, seen
from mcpguard.errors import UsageError
from mcpguard.run_options import OPTIONS, Option

_COMPLETE: Final = {
    **{key: seen(key) for key in ("server", "user", "agent")},
    **dict.fromkeys(("policy", "config"), files),
}
"""What a shell offers for an option."""


def _click(option: Option) -> click.Option:
    names = [option.name, option.key]
    if option.is_flag:
        return click.Option(names, is_flag=True, help=option.help)
    kind = click.Choice(option.choices) if option.choices else click.STRING
    complete = _COMPLETE.get(option.key)
    return click.Option(names, metavar=option.metavar or None, type=kind, help=option.help, shell_complete=complete)


@click.command(
    "run",
    cls=Command,
    context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False},
    params=[_click(option) for option in OPTIONS],
)
@click.argument("argv", nargs=-1, type=click.UNPROCESSED, metavar="[--] COMMAND [ARG]...", shell_complete=files)
def command(argv: tuple[str, ...], **options: Any) -> None:
    """Start COMMAND, a stdio MCP server, and limit its tool calls.

    Calls over a limit and lines that are not strict JSON-RPC do not reach the server. Everything else passes unchanged in both
    directions, and so do the server's stderr and exit status.

    \b
    Example, in a client's configuration:
      "command": "mcpguard",
      "args": ["run", "--server", "crm", "--", "npx", "-y", "@acme/crm-server"]
    """
    if not argv:
        raise UsageError("no command to run", "mcpguard run -- npx -y @acme/crm-server")
    from mcpguard.cli.start import start

    start(list(argv), **options)
