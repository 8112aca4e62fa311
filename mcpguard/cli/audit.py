"""`mcpguard audit`: reads the audit log."""

import contextlib
import json
import os
import select
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import click

from mcpguard import config
from mcpguard.cli import _filters
from mcpguard.cli._audit_report import report
from mcpguard.cli._command import Group
from mcpguard.cli._filters import row_filters
from mcpguard.cli._options import store_option
from mcpguard.cli._text import tolerant_output
from mcpguard.config import Settings
from mcpguard.core.audit import line
from mcpguard.core.text import printable
from mcpguard.errors import ExitStatus
from mcpguard.stores.api import Readable, Wanted
from mcpguard.stores.sqlite.address import SqliteAddress
from mcpguard.stores.sqlite.integrity import identity

POLL_S: Final = 0.25
"""How often `tail -f` looks for new rows."""

ROWS: Final = 10
"""How many rows `tail` shows without `-n` and `--since`."""

_Print = Callable[[Mapping[str, object]], None]


@click.group("audit", Group)
def command() -> None:
    """Read the audit log, which has a row for each decision.

    \b
    Example:
      mcpguard audit tail -f
    """
    tolerant_output()


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
@store_option
def tail(follow: bool, rows: int | None, as_json: bool, store: str | None, **filters: Any) -> int:
    """Show the newest rows of the audit log, oldest first: a table on a terminal, key=value lines in a pipe.

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
    try:
        _tail(settings, wanted, rows, _printer(as_json=as_json), follow=follow, is_narrow=any(filters.values()))
    except KeyboardInterrupt:
        return ExitStatus.INTERRUPTED
    except BrokenPipeError:  # nobody reads stdout, which the interpreter flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return ExitStatus.OK


def _tail(settings: Settings, wanted: Wanted, rows: int | None, show: _Print, *, follow: bool, is_narrow: bool) -> None:
    is_new = False
    if not settings.address.exists():
        _say(f"no audit log yet: there is no store at {settings.address.shown}")
        is_new = follow and _store_appears(settings)
        if not is_new:
            return
    while True:
        file = _file(settings)  # asked before the store is opened, so that a replacement in between is noticed
        with contextlib.closing(settings.read_store()) as store:
            last_id = 0
            if not is_new:
                last_id, newest = _newest(store, wanted, rows)
                for record in newest:
                    show(record)
                if not newest and rows != 0 and sys.stdout.isatty():
                    _say(("no row matches" if is_narrow else "no rows") + (" yet" if follow else ""))
            if not (follow and _show_until_replaced(settings, store, file, last_id, wanted, show)):
                return
        _say(f"{settings.address.shown} was removed or replaced; following the new store from its first row")
        is_new = _store_appears(settings)
        if not is_new:
            return


def _say(text: str) -> None:
    click.echo(printable(f"mcpguard: {text}"), err=True)


def _store_appears(settings: Settings) -> bool:
    """Wait until there is a store. False if the reader of stdout goes away first."""
    while not settings.address.exists():
        if _reader_is_gone():
            return False
    return True


def _show_until_replaced(
    settings: Settings, store: Readable, file: tuple[int, int] | None, last_id: int, wanted: Wanted, show: _Print
) -> bool:
    """Show new rows until the store is in another file. False if the reader of stdout goes away first."""
    while True:
        is_replaced = _file(settings) != file  # asked first: rows written before the replacement are in the open file
        for entry in store.entries(after=last_id):
            last_id = entry.row_id
            if wanted.admits(entry.record):
                show(entry.record)
        if is_replaced:
            return True
        if _reader_is_gone():
            return False


def _file(settings: Settings) -> tuple[int, int] | None:
    """The identity of an SQLite store's file. None for a Redis store, which reports an error when it goes away."""
    if not isinstance(settings.address, SqliteAddress):
        return None
    try:
        return identity(settings.address.path)
    except OSError:
        return (0, 0)  # opening the store reports the error


def _newest(store: Readable, wanted: Wanted, rows: int | None) -> tuple[int, list[dict[str, object]]]:
    """The id of the newest row, and the newest rows that pass the filter, oldest first."""
    last_id = next((entry.row_id for entry in store.newest()), 0)
    found: list[dict[str, object]] = []
    for entry in store.newest(wanted=wanted):
        if len(found) == rows:
            break
        if entry.row_id <= last_id:  # `_show_until_replaced` shows rows that were written since
            found.append(entry.record)
    return last_id, found[::-1]


def _reader_is_gone() -> bool:
    """Wait for `POLL_S`. True as soon as the reader of stdout has gone away."""
    if not hasattr(select, "poll"):
        time.sleep(POLL_S)
        return False
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # reports only errors and hang-ups
    return bool(poll.poll(POLL_S * 1000))


def _printer(*, as_json: bool) -> _Print:
    """A function that prints a record."""
    from mcpguard.cli import _audit_table

    table = None if as_json else _audit_table.wanted()
    heading = [] if table is None else [table.heading()]

    def show(record: Mapping[str, object]) -> None:
        if as_json:
            click.echo(json.dumps(record))
        elif table is None:
            click.echo(f"time={record['time']} {line(record)}")
        else:
            click.echo("\n".join([*heading, *table.lines(record)]))
            heading.clear()  # printed above the first row only

    return show


command.add_command(report)
