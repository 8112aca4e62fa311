"""`mcpguard audit prune`: deletes old rows."""

import os
import sys
from datetime import UTC, datetime

import click

from mcpguard import config
from mcpguard.cli._command import Command, give_way
from mcpguard.cli._filters import time_us
from mcpguard.cli._options import store_option
from mcpguard.errors import ExitStatus, UsageError
from mcpguard.text.printing import amount, printable


@click.command("prune", Command, short_help="Delete old rows.")
@click.option("--before", metavar="WHEN", required=True, help="Delete rows before 12h, 30d … ago, or an RFC 3339 time.")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@store_option
def command(before: str, yes: bool, store: str | None) -> int:
    """Delete the rows of the audit log that are older than a time. Counters and limits stay as they are.

    mcpguard deletes rows after `keep` by itself; see config.toml. Rows are deleted in small portions, so that no call waits.
    The rows cannot be brought back: export them first if you need them.

    \b
    Examples:
      mcpguard audit prune --before 90d
      mcpguard audit prune --before 2026-01-31T00:00:00Z --yes
    """
    before_us = time_us("--before", before)
    if not yes and not (sys.stdin and sys.stdin.isatty()):
        raise UsageError("prune asks for confirmation, and there is no terminal", "add --yes to delete without asking")
    settings = config.load(os.environ, store=store)
    if not settings.address.exists():
        click.echo(printable(f"no rows: there is no store at {settings.address.shown}"))
        return ExitStatus.OK
    when = datetime.fromtimestamp(before_us // 1_000_000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    where = printable(settings.address.shown)
    if not yes and not click.confirm(f"Delete the audit rows before {when} in {where}?", err=True):
        click.echo("nothing was deleted", err=True)
        return ExitStatus.FAILURE
    give_way()
    deleted = 0
    try:
        for some in settings.prune_store(before_us):
            deleted += some
    finally:
        click.echo(f"{amount(deleted, 'row')} deleted")
    return ExitStatus.OK
