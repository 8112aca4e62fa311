"""`mcpguard audit`: reads the audit log."""

import json
import os
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import click

from mcpguard import config
from mcpguard.cli import _audit_export, _audit_prune, _audit_report, _audit_show, _audit_stats, _audit_table, _filters
from mcpguard.cli._audit_tail import Lines, Objects, Rows, Tail
from mcpguard.cli._command import Group
from mcpguard.cli._filters import row_filters
from mcpguard.cli._options import json_option, policy_option, store_option
from mcpguard.cli._text import say
from mcpguard.config import Settings
from mcpguard.errors import ExitStatus, McpguardError
from mcpguard.policy.file import load
from mcpguard.stores.api import Readable
from mcpguard.text.printing import printable

ROWS: Final = 10
"""How many rows `tail` shows without `-n` and `--since`."""


@click.group("audit", Group)
def command() -> None:
    """Read the audit log, which has a row for each decision.

    \b
    Example:
      mcpguard audit tail -f
    """


@command.command(short_help="Show the newest rows.")
@click.option("-f", "--follow", is_flag=True, help="Wait for new rows and show them.")
@click.option(
    "-n",
    "--lines",
    "rows",
    type=click.IntRange(min=0),
    metavar="N",
    help=f"The number of rows. Default: {ROWS}, or all with --since.",
)
@row_filters
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
@click.option("--table", "as_table", is_flag=True, help="Print the table in a pipe, too, COLUMNS wide.")
@store_option
def tail(follow: bool, rows: int | None, as_json: bool, as_table: bool, store: str | None, **filters: Any) -> int:
    """Show the newest rows of the audit log, oldest first: a table on a terminal, key=value lines in a pipe.

    COUNT is how many calls the limit's counter holds. In a denial it also has the denials of this session since its last
    allowed call, so it is the size of a loop. A tool with ×7 stands for 7 equal denials. With -f, a call that was shown
    before it ended has a second row, "ended", with its outcome. A row that only names the policy with which a session
    started is left out, unless --decision policy or --json is given.

    \b
    Examples:
      mcpguard audit tail -f
      mcpguard audit tail --decision rate_limited --axis user --since 2h
      mcpguard audit tail -n 1000 --json | jq .tool
    """
    settings = config.load(os.environ, store=store)
    wanted = _filters.wanted(settings.namespace, **filters)
    if rows is None and not filters["since"]:
        rows = ROWS
    table = None if as_json else _audit_table.on_stdout(even_in_a_pipe=as_table)
    printer = Objects() if as_json else Lines() if table is None else Rows(table)
    shown = Tail(
        settings,
        wanted,
        printer,
        with_starts=as_json or "policy" in (wanted.decisions or ()),
        found_none=partial(_say_none, settings, filters, follow=follow),
    )
    try:
        shown.show(rows, follow=follow)
    except KeyboardInterrupt:
        return ExitStatus.INTERRUPTED
    return ExitStatus.OK


def _say_none(settings: Settings, filters: Mapping[str, Any], store: Readable, *, follow: bool) -> None:
    """Say that no row is shown, and offer filters that find rows."""
    is_narrow = any(map(_filters.is_given, filters.values()))
    hint = _filters.nearest(store, settings.namespace, filters) if is_narrow else ""
    say(f"{'no rows match' if is_narrow else 'no rows'}{' yet' if follow else ''}")
    if hint:
        click.echo(printable(f"hint: {hint}"), err=True)


@command.command(short_help="Explain one row.")
@click.argument("row_id", metavar="ID")
@policy_option
@store_option
@json_option
def show(row_id: str, policy: str | None, store: str | None, as_json: bool) -> None:
    """Show a row, the rule that decided, and what its counters held then and hold now.

    ID is the audit_id of a denial, the id of a row of `audit tail` (on a terminal of at least 120 columns, or in a pipe), or
    the word last, which stands for the newest row that `audit tail` shows. The last lines are a command that changes the
    rule. For a denial, the rule would have admitted the call with the limits in this command.

    \b
    Examples:
      mcpguard audit show last
      mcpguard audit show 45732ae6c06cfb07-4
    """
    settings = config.load(os.environ, policy=policy, store=store)
    if not settings.address.exists():
        raise McpguardError(
            f"no audit log yet: there is no store at {settings.address.shown}",
            "start a server with mcpguard run, which creates it",
        )
    found, is_starter = load(settings.policy, named=settings.policy_named)
    with settings.read_store() as opened:
        record = _audit_show.find(opened, settings.namespace, row_id)
        shown = _audit_show.explain(opened, found, record, policy_option=["--policy", policy] if policy else [])
    if as_json:
        click.echo(json.dumps(_audit_show.as_json(shown, found, is_starter=is_starter), indent=2))
    else:
        _audit_show.print_all(shown, found, "the starter policy" if is_starter else str(settings.policy))


for _one in (_audit_stats, _audit_report, _audit_export, _audit_prune):
    command.add_command(_one.command)
