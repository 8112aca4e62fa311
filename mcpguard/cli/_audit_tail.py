"""Shows the newest rows of the audit log, and follows the log."""

import json
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Final, Protocol

import click

from mcpguard.cli import _audit_table
from mcpguard.cli._text import reader_leaves, say
from mcpguard.config import Settings
from mcpguard.reading.following import is_over, until_replaced
from mcpguard.session.audit import POLICY_AT_START, line, with_outcome
from mcpguard.session.verdict import FORWARDED
from mcpguard.stores.api import Entry, Readable, Wanted
from mcpguard.text.times import rfc3339

POLL_S: Final = 0.25
"""How often new rows and outcomes are looked for."""

MAX_AWAITED: Final = 1000
"""How many rows without an outcome are remembered. The oldest are forgotten first."""

_Record = Mapping[str, object]


class Printer(Protocol):
    """Prints records."""

    def row(self, record: _Record) -> None:
        """Print a row."""

    def ended(self, record: _Record) -> None:
        """Print the outcome of a call whose row was printed without it."""


class Objects:
    """Prints each record as a JSON object. A row is printed again when its outcome is known."""

    def row(self, record: _Record) -> None:
        """See `Printer`."""
        click.echo(json.dumps(record))

    ended = row


class Lines:
    """Prints each record as a line of `key=value`."""

    def row(self, record: _Record) -> None:
        """See `Printer`."""
        click.echo(f"time={record['time']} {line(record, with_server=True)} id={record['id']}")

    def ended(self, record: _Record) -> None:
        """See `Printer`."""
        shown = {key: record[key] for key in ("server", "user", "agent", "tool", "outcome") if key in record}
        at = rfc3339(_audit_table.ended_us(record))
        click.echo(f"time={at} {line({'decision': 'ended', **shown}, with_server=True)} id={record['id']}")


class Rows:
    """Prints records as rows of a table, with a heading above the first one."""

    def __init__(self, table: _audit_table.Table) -> None:
        self._table = table
        self._heading = table.heading()

    def row(self, record: _Record) -> None:
        """See `Printer`."""
        click.echo("\n".join([*self._heading, *self._table.lines(record)]))
        self._heading = []

    def ended(self, record: _Record) -> None:
        """See `Printer`."""
        click.echo("\n".join(self._table.ended(record)))


class Tail:
    """Shows the newest rows of the audit log, oldest first, and the rows and outcomes that come after them.

    Args:
        settings: The settings of this machine.
        wanted: The rows that are shown.
        printer: Prints them.
        with_starts: Whether rows are shown that only name the policy with which a session started.
        found_none: Called with the store if none of its rows is shown, though some were asked for.
    """

    def __init__(
        self,
        settings: Settings,
        wanted: Wanted,
        printer: Printer,
        *,
        with_starts: bool,
        found_none: Callable[[Readable], None],
    ) -> None:
        self._settings = settings
        self._wanted = wanted
        self._of_any_outcome = wanted._replace(outcomes=None)
        self._printer = printer
        self._with_starts = with_starts
        self._found_none = found_none
        self._awaited: dict[int, dict[str, object]] = {}  # rows of calls without an outcome, by row id

    def show(self, rows: int | None, *, follow: bool) -> None:
        """Show the newest rows, and follow the log until the wanted time ends or the reader of stdout goes away.

        Args:
            rows: How many of the newest rows; None for all.
            follow: Whether to follow the log.
        """
        is_new = False
        if not self._settings.address.exists():
            say(f"no audit log yet: there is no store at {self._settings.address.shown}")
            is_new = follow and self._store_appears()
            if not is_new:
                return
        if not follow:
            with self._settings.read_store() as store:
                self._show_newest(store, rows, follow=False)
            return
        while True:
            with until_replaced(self._settings) as is_replaced, self._settings.read_store() as store:
                last_id = 0 if is_new else self._show_newest(store, rows, follow=True)
                if not self._follow_until_replaced(store, is_replaced, last_id):
                    return
            say(f"{self._settings.address.shown} was removed or replaced; following the new store from its first row")
            self._awaited.clear()
            is_new = self._store_appears()
            if not is_new:
                return

    def _show_newest(self, store: Readable, rows: int | None, *, follow: bool) -> int:
        """Show the newest rows. Returns the id of the newest row of all."""
        last_id, newest = self._newest(store, rows, follow=follow)
        if not self._show(newest) and rows != 0:
            self._found_none(store)
        return last_id

    def _newest(self, store: Readable, rows: int | None, *, follow: bool) -> tuple[int, list[Entry]]:
        """The id of the newest row, and the newest rows to show; with `follow` also those whose outcome may still come."""
        last_id = next((entry.row_id for entry in store.newest()), 0)
        found: list[Entry] = []
        shown = 0
        if rows == 0:
            return last_id, found
        for entry in store.newest(wanted=self._of_any_outcome if follow else self._wanted):
            if entry.row_id > last_id or not self._is_to_show(entry.record):
                continue  # `_follow_until_replaced` shows rows that were written since
            shown += self._wanted.admits(entry.record)
            found.append(entry)
            if shown == rows:
                break
        return last_id, found

    def _follow_until_replaced(self, store: Readable, is_replaced: Callable[[], bool], last_id: int) -> bool:
        """Show new rows until the store is in another file. False if following ends first."""
        while True:
            is_last = is_replaced()  # asked first: rows written before the replacement are in the open file
            self._show_outcomes(store)
            entries = store.entries(after=last_id)
            while some := list(islice(entries, MAX_AWAITED)):
                last_id = some[-1].row_id
                self._show([one for one in some if self._of_any_outcome.admits(one.record) and self._is_to_show(one.record)])
            if is_last:
                return True
            if self._ends():
                return False

    def _is_to_show(self, record: _Record) -> bool:
        return self._with_starts or record.get("reason") != POLICY_AT_START

    def _show(self, entries: list[Entry]) -> int:
        """Show rows in the order of their times, and remember those without an outcome. Returns how many were shown."""
        shown = 0
        for row_id, record in sorted(entries, key=lambda entry: (entry.record["time_us"], entry.row_id)):
            if self._wanted.admits(record):
                self._printer.row(record)
                shown += 1
            if record["decision"] in FORWARDED and "outcome" not in record:
                self._awaited[row_id] = record
                if len(self._awaited) > MAX_AWAITED:
                    del self._awaited[next(iter(self._awaited))]
        return shown

    def _show_outcomes(self, store: Readable) -> None:
        """Show the outcomes that came since their rows were read."""
        if not self._awaited:
            return
        came = [(self._awaited.pop(one.row_id), one) for one in store.outcomes_of(list(self._awaited))]
        ended = [(self._wanted.admits(before), with_outcome(before, outcome)) for before, outcome in came]
        for was_shown, record in sorted(ended, key=lambda one: _audit_table.ended_us(one[1])):
            if was_shown:
                self._printer.ended(record)
            elif self._wanted.admits(record):
                self._printer.row(record)

    def _store_appears(self) -> bool:
        """Wait until there is a store. False if following ends first."""
        while not self._settings.address.exists():
            if self._ends():
                return False
        return True

    def _ends(self) -> bool:
        """Whether the wanted time has ended, or the reader of stdout goes away within `POLL_S`."""
        return is_over(self._wanted) or reader_leaves(within_s=POLL_S)
