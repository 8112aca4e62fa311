"""`mcpguard audit`: what happened."""

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
from mcpguard.cli._store import reading, selects, tolerant_output
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
"""How long a new row may wait until `tail -f` shows it."""

DISORDER_US: Final = 3600 * 1_000_000
"""How much older than its neighbours a row's time may be: wall clocks step. Beyond that `--since` looks no further back."""

ROWS: Final = 10
"""What `tail` shows unless it is told how many, or since when."""

_IN_CONTEXT: Final = ("user", "agent", "server", "tool")

_Print = Callable[[Mapping[str, object]], None]


class _Filter(NamedTuple):
    """Which rows are shown.

    Attributes:
        namespace: Only its rows.
        patterns: By member.
        decisions: Patterns, one of which has to match; none for any decision.
        since_us: Only rows from then on.
    """

    namespace: str
    patterns: dict[str, str]
    decisions: tuple[str, ...]
    since_us: int

    @property
    def is_narrow(self) -> bool:
        """Whether there could be rows of its namespace that are not shown."""
        return bool(self.patterns or self.decisions or self.since_us)

    @property
    def wanted(self) -> Wanted:
        """What a store has to look for."""
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
        """Whether a row is shown."""
        return (
            record["namespace"] == self.namespace
            and isinstance(at_us := record["time_us"], int)
            and at_us >= self.since_us
            and all(key in record and selects(key, pattern, str(record[key])) for key, pattern in self.patterns.items())
            and (not self.decisions or any(glob(pattern, str(record["decision"])) for pattern in self.decisions))
        )


@click.group("audit", Group, short_help="What happened.")
def command() -> None:
    """What the guard decided.

    \b
    Example:
      mcpguard audit tail -f
    """
    tolerant_output()


@command.command(short_help="Show the newest rows.")
@click.option("-f", "--follow", is_flag=True, help="Go on with rows as they come.")
@click.option(
    "-n", "--lines", "rows", type=click.IntRange(min=0), metavar="N", help=f"How many. Default: {ROWS}; with --since all."
)
@click.option("--user", metavar="G", help="Rows of this user; a pattern with * for more.")
@click.option("--agent", metavar="G", help="Rows of this agent.")
@click.option("--server", metavar="G", help="Rows of this server.")
@click.option("--tool", metavar="G", help="Rows of this tool.")
@click.option("--axis", metavar="G", help="Rows of this axis: user, tool or agent.")
@click.option("--decision", metavar="G", multiple=True, help="Rows of this decision, such as rate_limited; again for more.")
@click.option("--since", metavar="WHEN", help="Rows of the last 10m, 2h, 7d …, or since an RFC 3339 time.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.option("--store", metavar="URL", help="Where the audit is. Default: MCPGUARD_STORE, config.toml, the account's.")
def tail(follow: bool, rows: int | None, as_json: bool, store: str | None, **filters: Any) -> int:
    """Show the newest rows of the audit, oldest first: a table on a terminal, key=value lines in a pipe.

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
    except BrokenPipeError:  # nobody reads: what is buffered has to go nowhere when the interpreter ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return ExitStatus.OK


def _tail(settings: Settings, wanted: _Filter, rows: int | None, show: _Print, *, follow: bool) -> None:
    is_new = False
    if not settings.address.exists():
        _say(f"no audit yet: there is no store at {settings.address.shown}")
        is_new = follow and _comes(settings)
        if not is_new:
            return
    while True:
        file = _file(settings)  # before it is opened: if it is another then, it is opened once more
        with reading(settings) as store:
            place = 0
            if not is_new:
                place, newest = _newest(store, wanted, rows)
                for record in newest:
                    show(record)
                if not newest and rows != 0 and sys.stdout.isatty():
                    _say(("no row matches" if wanted.is_narrow else "no rows") + (" yet" if follow else ""))
            if not (follow and _shows_until_replaced(settings, store, file, place, wanted, show)):
                return
        _say(f"{settings.address.shown} was removed or replaced; following the new one from its beginning")
        is_new = _comes(settings)
        if not is_new:
            return


def _say(text: str) -> None:
    click.echo(printable(f"mcpguard: {text}"), err=True)


def _comes(settings: Settings) -> bool:
    """Wait until there is a store; False if before that nobody reads stdout any more."""
    while not settings.address.exists():
        if _reader_is_gone():
            return False
    return True


def _shows_until_replaced(
    settings: Settings, store: Readable, file: tuple[int, int] | None, place: int, wanted: _Filter, show: _Print
) -> bool:
    """Show the rows after a place as they come, until the store is in another file; False if nobody reads stdout any more."""
    while True:
        is_replaced = _file(settings) != file  # what was written before that is still in the one that we hold
        for entry in store.entries(after=place):
            place = entry.row_id
            if wanted.admits(entry.record):
                show(entry.record)
        if is_replaced:
            return True
        if _reader_is_gone():
            return False


def _file(settings: Settings) -> tuple[int, int] | None:
    """What tells the store's file from another in its place; None of a server, which says itself that it is gone."""
    if not isinstance(settings.address, SqliteAddress):
        return None
    try:
        return identity(settings.address.path)
    except OSError:
        return (0, 0)  # opening it will say what is the matter


def _newest(store: Readable, wanted: _Filter, rows: int | None) -> tuple[int, list[dict[str, object]]]:
    """The place of the newest row, and the newest rows that are wanted, oldest first."""
    place = next((entry.row_id for entry in store.newest()), 0)
    found: list[dict[str, object]] = []
    for entry in store.newest(wanted=wanted.wanted):
        if entry.row_id > place:
            continue  # it came meanwhile, and is shown by whoever follows
        at_us = entry.record["time_us"]
        if len(found) == rows or (isinstance(at_us, int) and at_us < wanted.since_us - DISORDER_US):
            break
        if wanted.admits(entry.record):
            found.append(entry.record)
    return place, found[::-1]


def _reader_is_gone() -> bool:
    """Wait for a moment; whether meanwhile nobody reads stdout any more."""
    if not hasattr(select, "poll"):
        time.sleep(POLL_S)
        return False
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # tells of errors and of a hang-up only
    return bool(poll.poll(POLL_S * 1000))


def _printer(*, as_json: bool) -> _Print:
    """What puts a record on stdout, at once."""
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
            heading.clear()  # it stands above the first row

    return show


def _filter(settings: Settings, *, decision: tuple[str, ...], since: str | None, **patterns: str | None) -> _Filter:
    _among("--axis", patterns["axis"], ("user", "tool", "agent"))
    for one in decision:
        _among("--decision", one, get_args(Decided))
    given = {key: pattern for key, pattern in patterns.items() if pattern is not None}
    return _Filter(settings.namespace, given, decision, _since_us(since) if since else 0)


def _among(option: str, pattern: str | None, known: tuple[str, ...]) -> None:
    if pattern is not None and not any(glob(pattern, word) for word in known):
        raise UsageError(f"{option}: {pattern!r} matches none there is", f"known: {' '.join(known)}")


def _since_us(text: str) -> int:
    """When `--since` begins: a span before now, or a time; one without an offset is local.

    Raises:
        UsageError: It is neither.
    """
    if re.fullmatch(r"[0-9]+[a-z]", text):
        with contextlib.suppress(ConfigError):
            return time.time_ns() // 1000 - span_us(text, where="--since")
    else:
        with contextlib.suppress(ValueError, OverflowError, OSError):
            return round(datetime.fromisoformat(text).timestamp() * 1_000_000)
    raise UsageError(f"--since: {text!r} is neither a span nor a time", "10m, 2h, 7d, or 2026-01-31T09:00:00Z")
