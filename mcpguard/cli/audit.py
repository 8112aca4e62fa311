"""`mcpguard audit`: reads the audit log."""

import contextlib
import json
import os
import re
import select
import sys
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from typing import Any, Final, NamedTuple, get_args

import click

from mcpguard import config
from mcpguard.cli._command import Group
from mcpguard.cli._options import filter_options, selects, store_option
from mcpguard.cli._seen import words
from mcpguard.cli._text import tolerant_output
from mcpguard.config import Settings, span_us
from mcpguard.core.audit import line
from mcpguard.core.patterns import glob
from mcpguard.core.text import printable
from mcpguard.core.verdict import Decided
from mcpguard.errors import ConfigError, ExitStatus, UsageError
from mcpguard.stores.api import Readable, Wanted
from mcpguard.stores.sqlite.address import SqliteAddress
from mcpguard.stores.sqlite.integrity import identity

POLL_S: Final = 0.25
"""How often `tail -f` looks for new rows."""

DISORDER_US: Final = 3600 * 1_000_000
"""How far rows may be out of order, because wall clocks step. `--since` stops at the first row that is older by more."""

ROWS: Final = 10
"""How many rows `tail` shows without `-n` and `--since`."""

_IN_CONTEXT: Final = ("user", "agent", "server", "tool")

_Print = Callable[[Mapping[str, object]], None]


class _Filter(NamedTuple):
    """Which rows are shown.

    Attributes:
        namespace: The namespace of the rows.
        patterns: Patterns that a row's members must match, by member.
        decisions: Patterns, one of which the decision must match; empty for any decision.
        since_us: The earliest wall-clock time of a row.
    """

    namespace: str
    patterns: dict[str, str]
    decisions: tuple[str, ...]
    since_us: int

    @property
    def is_narrow(self) -> bool:
        """Whether it leaves out rows of its namespace."""
        return bool(self.patterns or self.decisions or self.since_us)

    @property
    def wanted(self) -> Wanted:
        """The part of the filter that the store applies."""
        axis = self.patterns.get("axis")
        decisions = frozenset(word for word in get_args(Decided) if any(glob(one, word) for one in self.decisions))
        return Wanted(self._is_of, decisions if self.decisions else None, partial(glob, axis) if axis else None)

    def _is_of(self, context: Mapping[str, object]) -> bool:
        return context["namespace"] == self.namespace and all(
            key in context and selects(key, pattern, str(context[key]))
            for key, pattern in self.patterns.items()
            if key in _IN_CONTEXT
        )

    def admits(self, record: Mapping[str, object]) -> bool:
        """Whether a row passes the filter."""
        return (
            record["namespace"] == self.namespace
            and isinstance(at_us := record["time_us"], int)
            and at_us >= self.since_us
            and all(key in record and selects(key, pattern, str(record[key])) for key, pattern in self.patterns.items())
            and (not self.decisions or any(glob(pattern, str(record["decision"])) for pattern in self.decisions))
        )


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
@filter_options("rows")
@click.option(
    "--axis", metavar="G", shell_complete=words("user", "tool", "agent"), help="Only rows of this axis: user, tool or agent."
)
@click.option(
    "--decision",
    metavar="G",
    multiple=True,
    shell_complete=words(*get_args(Decided)),
    help="Only rows of this decision, such as denied. May be repeated.",
)
@click.option("--since", metavar="WHEN", help="Only rows of the last 10m, 2h, 7d …, or since an RFC 3339 time.")
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
    wanted = _filter(settings, **filters)
    if rows is None and not filters["since"]:
        rows = ROWS
    try:
        _tail(settings, wanted, rows, _printer(as_json=as_json), follow=follow)
    except KeyboardInterrupt:
        return ExitStatus.INTERRUPTED
    except BrokenPipeError:  # nobody reads stdout, which the interpreter flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return ExitStatus.OK


def _tail(settings: Settings, wanted: _Filter, rows: int | None, show: _Print, *, follow: bool) -> None:
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
                    _say(("no row matches" if wanted.is_narrow else "no rows") + (" yet" if follow else ""))
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
    settings: Settings, store: Readable, file: tuple[int, int] | None, last_id: int, wanted: _Filter, show: _Print
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


def _newest(store: Readable, wanted: _Filter, rows: int | None) -> tuple[int, list[dict[str, object]]]:
    """The id of the newest row, and the newest rows that pass the filter, oldest first."""
    last_id = next((entry.row_id for entry in store.newest()), 0)
    found: list[dict[str, object]] = []
    for entry in store.newest(wanted=wanted.wanted):
        if entry.row_id > last_id:
            continue  # written since; `_show_until_replaced` shows it
        at_us = entry.record["time_us"]
        if len(found) == rows or (isinstance(at_us, int) and at_us < wanted.since_us - DISORDER_US):
            break
        if wanted.admits(entry.record):
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


def _filter(settings: Settings, *, decision: tuple[str, ...], since: str | None, **patterns: str | None) -> _Filter:
    _among("--axis", patterns["axis"], ("user", "tool", "agent"))
    for one in decision:
        _among("--decision", one, get_args(Decided))
    given = {key: pattern for key, pattern in patterns.items() if pattern is not None}
    return _Filter(settings.namespace, given, decision, _since_us(since) if since else 0)


def _among(option: str, pattern: str | None, known: tuple[str, ...]) -> None:
    if pattern is not None and not any(glob(pattern, word) for word in known):
        raise UsageError(f"{option}: {pattern!r} matches no known value", f"known values: {' '.join(known)}")


def _since_us(text: str) -> int:
    """The time that `--since` names: a span before now, or a time. A time without an offset is local.

    Raises:
        UsageError: The text is neither.
    """
    if re.fullmatch(r"[0-9]+[a-z]", text):
        with contextlib.suppress(ConfigError):
            return time.time_ns() // 1000 - span_us(text, where="--since")
    else:
        with contextlib.suppress(ValueError, OverflowError, OSError):
            return round(datetime.fromisoformat(text).timestamp() * 1_000_000)
    raise UsageError(f"--since: {text!r} is neither a span nor a time", "write 10m, 2h, 7d, or 2026-01-31T09:00:00Z")
