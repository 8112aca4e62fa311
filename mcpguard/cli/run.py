"""`mcpguard run` for click, which prints its help and reports errors of its command line."""

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

import click

from mcpguard import run_options
from mcpguard.cli import start
from mcpguard.cli.commands import Command
from mcpguard.cli.names import files, seen
from mcpguard.errors import UsageError
from mcpguard.run_options import OPTIONS, Option


def click_option(option: Option) -> click.Option:
    """The option for click."""
    names = [option.name, option.key]
    if option.is_flag:
        return click.Option(names, is_flag=True, default=option.default, help=option.help)
    kind = click.Choice(option.choices) if option.choices else click.STRING
    is_name = option.key in {"server", "user", "agent"}
    complete = files if option.key in {"policy", "config"} else seen(option.key) if is_name else None
    return click.Option(names, metavar=option.metavar or None, type=kind, help=option.help, shell_complete=complete)


@click.command(
    "run",
    cls=Command,
    context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False},
    params=[click_option(option) for option in OPTIONS],
)
@click.argument("argv", nargs=-1, type=click.UNPROCESSED, metavar="[--] COMMAND [ARG]...", shell_complete=files)
def run(argv: tuple[str, ...], **options: Any) -> None:
    """Start COMMAND, a stdio MCP server, and limit its tool calls.

    Calls over a limit and lines that are not strict JSON-RPC do not reach the server. Everything else passes unchanged in both
    directions, and so do the server's stderr and exit status.

    \b
    Example, in a client's configuration:
      "command": "mcpguard",
      "args": ["run", "--server", "crm", "--", "npx", "-y", "@acme/crm-server"]
    """
    if not argv:
        raise UsageError("no command to run", "write mcpguard run -- npx -y @acme/crm-server")
    start(list(argv), **options)


def without_guard(argv: Sequence[str], options: dict[str, Any]) -> tuple[Sequence[str], dict[str, Any]]:
    """The server's own command and the options of `run`, if `argv` is `[mcpguard] run ...` as in a client's entry; else both.

    Args:
        argv: The words after the options of a command that takes the options of `run`.
        options: These options. They win over those in `argv`.
    """
    words = argv[1:] if argv and PurePath(argv[0]).stem == "mcpguard" else argv
    guarded = run_options.parse(words)
    if guarded is None:
        return argv, options
    return guarded.pop("argv"), guarded | {key: value for key, value in options.items() if value}


def words(options: dict[str, Any]) -> list[str]:
    """Options of `run` as words. `--quiet` is left out: it hides why a server ends."""
    found: list[str] = []
    for option in OPTIONS:
        value = options.get(option.key)
        if value and option.key != "quiet":
            found += [f"--{option.key}"] if option.is_flag else [option.name, value]
    return found
