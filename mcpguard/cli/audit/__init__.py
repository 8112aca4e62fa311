"""`mcpguard audit prune`: deletes old rows; and what other commands of `mcpguard audit` have in common."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from mcpguard.cli.commands import Command, give_way
from mcpguard.cli.options import files, require_terminal, time_us, with_settings, yes_option
from mcpguard.cli.present import confirm, echo
from mcpguard.config import Settings
from mcpguard.errors import ExitStatus, McpguardError, UsageError
from mcpguard.text.printing import amount, printable
from mcpguard.text.times import rfc3339


def require_store(settings: Settings) -> None:
    """Refuse to go on without a store.

    Raises:
        McpguardError: There is none.
    """
    if not settings.address.exists():
        raise McpguardError(
            f"no audit log yet: there is no store at {settings.address.shown}",
            "start a server with mcpguard run, which creates it",
        )


def output_option(default: str, text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The option that `output_file` takes."""
    return click.option("-o", "--output", default=default, metavar="FILE", shell_complete=files, help=text)


@contextlib.contextmanager
def output_file(output: str) -> Iterator[Path | None]:
    """The file that `-o` names, to be written in the block; None for `-`, which stands for stdout.

    Raises:
        UsageError: It is a folder, or its folder is missing.
        McpguardError: The file cannot be written.
    """
    path = Path(output)
    try:
        if output != "-" and path.is_dir():
            raise UsageError(f"-o: {output} is a folder", "name a file")
        if output != "-" and not path.parent.is_dir():
            raise UsageError(f"-o: there is no folder {path.parent}", "create it, or name another file")
        yield None if output == "-" else path
    except OSError as error:
        if output == "-":
            raise
        what = f"-o: {output} cannot be written: {error.strerror or error}"
        raise McpguardError(what, "check that its folder is writable and the disk is not full") from error


@click.command("prune", Command)
@click.option("--before", metavar="WHEN", required=True, help="Delete rows before 12h, 30d … ago, or an RFC 3339 time.")
@yes_option
@with_settings("store")
def prune(settings: Settings, before: str, yes: bool) -> int | None:
    """Delete the rows of the audit log that are older than a time. Counters and limits stay as they are.

    mcpguard deletes rows after `keep` by itself; see config.toml. Rows are deleted in small portions, so that no call waits.
    The rows cannot be brought back: export them first if you need them.

    \b
    Examples:
      mcpguard audit prune --before 90d
      mcpguard audit prune --before 2026-01-31T00:00:00Z --yes
    """
    before_us = time_us("--before", before)
    if not yes:
        require_terminal("prune", "add --yes to delete without asking")
    if not settings.address.exists():
        echo(f"no rows: there is no store at {settings.address.shown}")
        return None
    when = f"{rfc3339(before_us)[:19].replace('T', ' ')} UTC"
    where = printable(settings.address.shown)
    if not yes and not confirm(f"Delete the audit rows before {when} in {where}?"):
        click.echo("nothing was deleted", err=True)
        return ExitStatus.FAILURE
    give_way()
    deleted, is_done = 0, False
    try:
        for some in settings.prune_store(before_us):
            deleted += some
        is_done = True
    finally:
        if deleted or is_done:
            click.echo(f"{amount(deleted, 'row')} deleted")
    return None
