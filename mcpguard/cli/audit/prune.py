"""`mcpguard audit prune`: deletes old rows."""

import click

from mcpguard.cli.commands import Command, give_way
from mcpguard.cli.options import require_terminal, time_us, with_settings, yes_option
from mcpguard.cli.present import echo
from mcpguard.config import Settings
from mcpguard.errors import ExitStatus
from mcpguard.text.printing import amount, printable
from mcpguard.text.times import rfc3339


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
    if not yes and not click.confirm(f"Delete the audit rows before {when} in {where}?", err=True):
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
