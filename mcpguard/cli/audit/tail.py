"""`mcpguard audit tail`: shows the newest rows of the audit log, as a table, as pairs or as JSON, and follows the log."""

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import click

from mcpguard.cli.commands import Command
from mcpguard.cli.options import lines_option, nearest, none_match, row_filters, wanted_rows, with_settings
from mcpguard.cli.present import (
    Columns,
    cell_width,
    echo,
    fit,
    headings,
    room_beside,
    say,
    short_limit,
    table_row,
    wait_for_reader,
    width_of_terminal,
)
from mcpguard.config import Settings
from mcpguard.reading.following import follow as follow_rows
from mcpguard.session.audit import POLICY_AT_START, line, with_outcome
from mcpguard.session.verdict import FORWARDED, REFUSED
from mcpguard.stores.api import AuditEntry, Readable, StoredRow
from mcpguard.text.printing import printable
from mcpguard.text.times import rfc3339, span_up

MAX_AWAITED: Final = 1000
"""How many rows without an outcome are remembered. The oldest are forgotten first."""

ROWS: Final = 10
"""How many rows are shown without `-n` and `--since`."""

WITH_ID: Final = 120
"""The width from which on each row has its id, which `audit show` takes."""

WIDE: Final = 155
"""The width from which on each row has server, user and agent. In a narrower table they have lines of their own when they
change."""

_LEAST_TOOL: Final = 8
"""The least width of a tool's name. If there is less room, each row has two lines."""

_NOTED: Final = ("would_deny", "allowed_unavailable", "warned")
"""Words for calls that were forwarded, though not as a matter of course."""


_Record = Mapping[str, object]
RowFormat = Callable[..., list[str]]
"""Gives the lines of a record; with `ended`, those of the outcome of a call whose row was printed without it."""


def as_object(record: _Record, *, ended: bool = False) -> list[str]:
    """A record as a JSON object. A row is printed again when its outcome is known."""
    del ended
    return [json.dumps(record)]


def as_pairs(record: _Record, *, ended: bool = False) -> list[str]:
    """A record as a line of `key=value`."""
    at, shown = record["time"], record
    if ended:
        known = {key: record[key] for key in ("server", "user", "agent", "tool", "outcome") if key in record}
        at, shown = rfc3339(ended_us(record)), {"decision": "ended"} | known
    return [f"time={at} {line(shown, with_server=True)} id={record['id']}"]


class Table:
    """Formats audit records as lines of a table.

    Args:
        width: The width of the terminal in columns.
    """

    def __init__(self, width: int) -> None:
        self._width = width - 1  # a line of full width would wrap on some terminals
        self._is_wide = width >= WIDE
        self._day = ""
        self._who: list[str] = []
        self._lines = self._layout(width)
        self._size = {name: abs(size) for columns in self._lines for name, size in columns}
        self._heading = [headings(columns) for columns in self._lines]

    def _layout(self, width: int) -> list[Columns]:
        """The columns of a row, by line."""
        begin, end = [("TIME", 8), ("DECISION", 12), ("AXIS", 5)], [("COUNT", -6), ("LIMIT", 9), ("OUTCOME", 11)]
        end += [("ID", 24)] if width >= WITH_ID else []
        spare = room_beside(begin + end, width)
        if spare < _LEAST_TOOL:
            first = [("TIME", 8), ("DECISION", max(4, self._width - 27)), ("AXIS", 5), ("OUTCOME", 11)]
            return [first, [("", 1), ("TOOL", max(4, self._width - 19)), ("COUNT", -6), ("LIMIT", 9)]]
        if not self._is_wide:
            return [[*begin, ("TOOL", spare), *end]]
        server, user, agent = spare // 8, spare // 5, spare * 2 // 5
        names = [("SERVER", server), ("USER", user), ("AGENT", agent), ("TOOL", spare - server - user - agent - 3)]
        return [begin + names + end]

    def lines(self, record: Mapping[str, object], *, ended: bool = False) -> list[str]:
        """The lines of a record. Above the first one are the names of the columns.

        Lines with the date, and in a narrow table with user, agent and server, come before it if these have changed. With
        `ended`, the record was shown without its outcome: its line has the time of the outcome.
        """
        heading, self._heading = self._heading, []
        tool = printable(str(record.get("tool", record.get("reason", ""))))
        if ended:
            cells = {"DECISION": "ended", "TOOL": tool, "OUTCOME": _end(record)}
            return heading + self._with_context(record, ended_us(record), cells)
        decision = str(record["decision"])
        if isinstance(warned := record.get("warned"), list):
            record, decision = {**record, **warned[0]}, "warned" if decision == "allowed" else decision
        if "repeats" in record:
            times = f" ×{record['repeats']}"
            tool = fit(tool, max(1, self._size["TOOL"] - len(times))).rstrip() + times
        cells = {"DECISION": decision, "AXIS": str(record.get("axis", "")), "TOOL": tool, "COUNT": str(record.get("count", ""))}
        cells |= {"LIMIT": _limit(record), "OUTCOME": _end(record)}
        style = "red" if decision in REFUSED else "yellow" if decision in _NOTED else ""
        return heading + self._with_context(record, int(str(record["time_us"])), cells, style)

    def _with_context(self, record: Mapping[str, object], time_us: int, cells: dict[str, str], style: str = "") -> list[str]:
        at = time.localtime(time_us // 1_000_000)  # unlike `datetime`, it takes any zone that TZ names
        name = {key: printable(str(record[key])) for key in ("id", "user", "agent", "server") if key in record}
        cells = {"TIME": time.strftime("%H:%M:%S", at)} | {key.upper(): text for key, text in name.items()} | cells
        coloured = cells | {"DECISION": (cells.get("DECISION", ""), style)}
        lines = [table_row([coloured.get(name, "") for name, _ in columns], columns) for columns in self._lines]
        who = [
            name.get("user", ""),
            *(f"{word} {name[key]}" for word, key in (("as", "agent"), ("on", "server")) if key in name),
        ]
        if not self._is_wide and who != self._who:
            self._who = who
            whole = f"- {' '.join(who).strip()}"
            parts = [whole] if cell_width(whole) <= self._width else [f"- {who[0]}", *(f"  {part}" for part in who[1:])]
            lines = [*(fit(part, self._width).rstrip() for part in parts), *lines]
        day = time.strftime("%Y-%m-%d", at)
        if day != self._day:
            self._day = day
            lines = [day, *lines]
        return lines


def ended_us(record: Mapping[str, object]) -> int:
    """The time at which a call ended, if its outcome is known."""
    return int(str(record["time_us"])) + round(float(str(record.get("duration_ms", 0))) * 1000)


def _limit(record: Mapping[str, object]) -> str:
    if "limit" in record:
        return short_limit(record)
    return "deny" if record["decision"] == "denied" or ("rule" in record and "count" not in record) else ""


def _end(record: Mapping[str, object]) -> str:
    """The outcome of a call that was forwarded; when a denied call may be retried, or why nobody knows."""
    wait = record.get("retry_after_ms")
    if isinstance(wait, int) and record["decision"] not in FORWARDED:
        return f"retry {span_up(wait, 10_000)}"
    if record["decision"] == "rate_limited":  # there is no wait
        return str(record.get("reason", ""))
    return str(record.get("outcome", ""))


class Tail:
    """Shows the newest rows of the audit log, oldest first, and the rows and outcomes that come after them.

    Args:
        settings: The settings of this machine.
        filters: The values of `row_filters`.
        form: The form in which rows are printed.
    """

    def __init__(self, settings: Settings, filters: Mapping[str, Any], form: RowFormat) -> None:
        self._settings = settings
        self._filters = filters
        self._form = form
        self._wanted = wanted_rows(settings.namespace, filters)
        self._of_any_outcome = self._wanted._replace(outcomes=None)
        self._store: Readable | None = None
        self._with_starts = form is as_object or "policy" in (self._wanted.decisions or ())
        self._awaited: dict[int, dict[str, object]] = {}  # rows of calls without an outcome, by row id

    def show(self, rows: int | None, *, follow: bool) -> None:
        """Show the newest rows, and follow the log until the wanted time ends.

        Args:
            rows: How many of the newest rows; None for all.
            follow: Whether to follow the log.

        Raises:
            BrokenPipeError: The reader of stdout goes away.
        """
        newest = partial(self._show_newest, rows=rows, follow=follow)
        if follow:
            for store, some in follow_rows(
                self._settings, self._of_any_outcome, say, wait_for_reader, begin=newest, at_once=True
            ):
                self._show_next(store, some)
        elif self._settings.address.exists():
            with self._settings.read_store() as store:
                newest(store)
        else:
            say(f"no audit log yet: there is no store at {self._settings.address.shown}")

    def _show_newest(self, store: Readable, rows: int | None, *, follow: bool) -> int:
        """Show the newest rows; with `follow`, also remember those whose outcome may come. Returns the id of the newest."""
        self._store = store
        last_id = next((entry.row_id for entry in store.newest()), 0)
        found: list[AuditEntry] = []
        shown = 0
        for entry in store.newest(wanted=self._of_any_outcome if follow else self._wanted) if rows != 0 else ():
            if entry.row_id > last_id or not self._is_to_show(entry.record):
                continue  # `_show_next` shows rows that were written since
            shown += self._wanted.admits(entry.record)
            found.append(entry)
            if shown == rows:
                break
        self._show(found)
        if not shown and rows != 0:
            self._say_none(store, follow=follow)
        return last_id

    def _show_next(self, store: Readable, rows: Sequence[StoredRow]) -> None:
        """Show the outcomes of rows before these, and then these."""
        if store is not self._store:
            self._store = store
            self._awaited.clear()
        self._show_outcomes(store)
        self._show([entry for one in rows if self._is_to_show((entry := one.entry).record)])

    def _is_to_show(self, record: _Record) -> bool:
        return self._with_starts or record.get("reason") != POLICY_AT_START

    def _show(self, entries: list[AuditEntry]) -> None:
        """Show rows in the order of their times, and remember those without an outcome."""
        for row_id, record in sorted(entries, key=lambda entry: (entry.record["time_us"], entry.row_id)):
            if self._wanted.admits(record):
                click.echo("\n".join(self._form(record)))
            if record["decision"] in FORWARDED and "outcome" not in record:
                self._awaited[row_id] = record
                if len(self._awaited) > MAX_AWAITED:
                    del self._awaited[next(iter(self._awaited))]

    def _show_outcomes(self, store: Readable) -> None:
        """Show the outcomes that came since their rows were read."""
        if not self._awaited:
            return
        came = [(self._awaited.pop(one.row_id), one) for one in store.outcomes_of(list(self._awaited))]
        ended = [(self._wanted.admits(before), with_outcome(before, outcome)) for before, outcome in came]
        for was_shown, record in sorted(ended, key=lambda one: ended_us(one[1])):
            if was_shown or self._wanted.admits(record):
                click.echo("\n".join(self._form(record, ended=was_shown)))

    def _say_none(self, store: Readable, *, follow: bool) -> None:
        """Say that no row is shown, and offer filters that find rows."""
        say(f"{none_match('rows', self._filters)}{' yet' if follow else ''}")
        if hint := nearest(store, self._settings.namespace, self._filters):
            echo(f"hint: {hint}", err=True)


@click.command("tail", Command)
@click.option("-f", "--follow", is_flag=True, help="Wait for new rows and show them.")
@lines_option(f"The number of rows. Default: {ROWS}, or all with --since.")
@row_filters
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
@click.option("--table", "as_table", is_flag=True, help="Print the table in a pipe, too, COLUMNS wide.")
@with_settings("store")
def tail(settings: Settings, follow: bool, rows: int | None, as_json: bool, as_table: bool, **filters: Any) -> None:
    """Show the newest rows of the audit log, oldest first: a table on a terminal, key=value lines in a pipe.

    COUNT is how many calls the limit's counter holds. In a denial it also has the denials of this session since its last
    allowed call, so it is the size of a loop. A call that took a counter to the share at which the rule warns is "warned". A
    tool with ×7 stands for 7 equal denials. With -f, a call that was shown before it ended has a second row, "ended", with its
    outcome. A row that only names the policy with which a session started is left out, unless --decision policy or --json is
    given.

    \b
    Examples:
      mcpguard audit tail -f
      mcpguard audit tail --decision rate_limited --axis user --since 2h
      mcpguard audit tail -n 1000 --json | jq .tool
    """
    is_terminal = sys.stdout.isatty()
    form: RowFormat = as_object if as_json else as_pairs
    if not as_json and (is_terminal or as_table):
        form = Table(width_of_terminal()).lines
    Tail(settings, filters, form).show(ROWS if rows is None and not filters["since"] else rows, follow=follow)
