"""Reads many audit rows of the database: as they are kept, or counted. No record is made of a row.

Each query reads a few rows and ends before they are used, so that upkeep does not wait long.
"""

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from mcpguard.session.audit import Row, axis_of, is_whole
from mcpguard.session.verdict import REFUSED
from mcpguard.stores.api import Group, StoredRow, Wanted
from mcpguard.stores.sqlite import database
from mcpguard.stores.tally import DIGITS, HOUR_US, rounded_us

_PAGE_ROWS: Final = 2000
_PAGE_CHARS: Final = 4 * 1024 * 1024
"""A page of rows ends before it has more rows, or more characters of detail."""

_COUNTED_ROWS: Final = 20_000
"""How many row ids a query counts: about 40 ms."""

_TEXTS: Final = 20_000
"""The most shared texts, and the most groups, that are kept in memory."""

_ROWS: Final = """
    SELECT a.id, a.context, a.reported, a.time_us, a.seq, a.decision, a.request_id, a.args_hash, a.trace_id, a.counted,
        a.remaining, a.retry_after_ms, a.repeats, a.detail, a.outcome, a.duration_us
    FROM audit a WHERE a.id > ? AND a.id < ? %s ORDER BY a.id %s
"""


def _rounded(column: str) -> str:
    """`rounded_us` in SQL, for durations of up to eleven days."""
    cases = [f"WHEN {column} < {10**digits} THEN {column} / {unit} * {unit}" for digits, unit in _UNITS]
    return f"CASE {' '.join(cases)} END"


_UNITS: Final = [(digits, 10 ** (digits - DIGITS)) for digits in range(DIGITS, 13)]
_REFUSED: Final = ",".join(map(repr, sorted(REFUSED)))
_COUNTED: Final = f"""
    SELECT {_rounded("a.duration_us")}, a.context, a.reported, a.decision, a.outcome,
        CASE typeof(a.time_us) WHEN 'integer' THEN a.time_us / {HOUR_US} END, a.repeats,
        CASE WHEN a.reported IS NULL AND a.decision IN ({_REFUSED}) THEN a.detail END,
        CASE WHEN a.outcome IS NULL AND a.id IN (%s) THEN a.id END
    FROM audit a WHERE a.id > ? AND a.id < ? %s
"""  # noqa: S608 - words of this program


class Condition(NamedTuple):
    """A filter for rows of the database.

    Attributes:
        sql: Its condition in SQL, after AND; empty for all rows.
        unsure: The filter, if rows that meet the condition must be checked. None if the condition is exact.
    """

    sql: str
    unsure: Wanted | None


class Archive:
    """The audit rows in a database.

    Args:
        db: A connection.
        skipped: Is told the id of a row that is left out because it is damaged; None of rows that are only counted.
    """

    def __init__(self, db: sqlite3.Connection, skipped: Callable[[int | None], None]) -> None:
        self._db = db
        self._skipped = skipped
        self._texts: dict[int | None, str] = {}
        self._groups: dict[tuple[Any, ...], Group] = {}

    def page(
        self,
        after: int,
        before: int,
        condition: Condition,
        outcomes: Mapping[int, tuple[str, int]],
        *,
        most: int | None = None,
        newest_first: bool = False,
    ) -> tuple[list[StoredRow], int, int]:
        """The next rows.

        Args:
            after: The largest id that is too small.
            before: The smallest id that is too large.
            condition: Which rows are returned.
            outcomes: The outcomes that are not in the database yet, by row id.
            most: How many rows to look at, at most; None for the usual number.
            newest_first: Whether to begin with the largest id.

        Returns:
            The rows; and the bounds `after` and `before` of those that were not looked at.
        """
        found: list[tuple[Any, ...]] = []
        chars = 0
        last = after if newest_first else before
        with database.reading(self._db):
            cursor = self._db.execute(_ROWS % (condition.sql, "DESC" if newest_first else ""), (after, before))
            for one in cursor:
                found.append(one)
                chars += len(str(one[13] or ""))
                if len(found) == (most or _PAGE_ROWS) or chars > _PAGE_CHARS:
                    last = one[0]
                    break
            cursor.close()
            self._load(key for one in found for key in one[1:3])
        texts = self._texts
        rows = []
        for one in found:
            outcome, duration_us = one[14:]
            if outcome is None and one[0] in outcomes:
                outcome, duration_us = outcomes[one[0]]
            row = Row(one[3], one[4], one[5], texts.get(one[1], ""), texts.get(one[2], one[2]), *one[6:14])
            if not is_whole(row, outcome, duration_us):
                self._skipped(one[0])
            elif not condition.unsure or condition.unsure.admits_row(row, outcome):
                rows.append(StoredRow(one[0], row, outcome, duration_us))
        return (rows, after, last) if newest_first else (rows, last, before)

    def counts(
        self, after: int, before: int, condition: Condition, outcomes: Mapping[int, tuple[str, int]]
    ) -> tuple[dict[Group, dict[int | None, int]], int, int]:
        """The next rows, counted as in a `Tally`; see `page`."""
        until = min(before, after + _COUNTED_ROWS + 1)
        ended = ",".join(str(key) for key in outcomes if after < key < until)
        with database.reading(self._db):
            found = Counter(self._db.execute(_COUNTED % (ended, condition.sql), (after, until)))
            self._load(key for one in found for key in one[1:3])
        calls: dict[Group, dict[int | None, int]] = {}
        places: dict[tuple[Any, ...], tuple[dict[int | None, int], int]] = {}
        for (duration_us, *alike), rows in found.items():
            kind = tuple(alike)
            place = places.get(kind)
            if place is None:
                *of_group, repeats, detail, row_id = kind
                if row_id is not None:
                    of_group[3], exact_us = outcomes[row_id]
                    duration_us = rounded_us(exact_us)
                group = self._group(tuple(of_group), repeats, detail, condition)
                place = places[kind] = ({}, 0) if group is None else (calls.setdefault(group, {}), repeats or 1)
            durations, times = place
            durations[duration_us] = durations.get(duration_us, 0) + rows * times
        return calls, until - 1, before

    def _group(self, kind: tuple[Any, ...], repeats: int | None, detail: str | None, condition: Condition) -> Group | None:
        """The group of rows.

        Args:
            kind: What they have in common: ids of `context` and `reported`, decision, outcome and hour.
            repeats: See `Row`.
            detail: The detail of a refusal that no limit made.
            condition: Which rows are wanted. None is returned for others, and for damaged ones.
        """
        context, reported, decision, outcome, hour = kind
        texts = self._texts
        row = Row(hour and hour * HOUR_US, 0, decision, texts.get(context, ""), texts.get(reported, reported))
        row = row._replace(repeats=repeats, detail=detail)
        group = self._groups.get(kind)
        if group is None or repeats is not None:
            if not is_whole(row, outcome, None):
                self._skipped(None)
                return None
            group = Group(row.context, axis_of(decision, row.reported, detail), decision, outcome, hour)
            if detail is None:
                self._groups[kind] = group
        if condition.unsure and not condition.unsure._replace(since_us=None, until_us=None).admits_row(row, group.outcome):
            return None
        return group

    def _load(self, keys: Iterable[int | None]) -> None:
        """Load the shared texts that are not in memory yet."""
        if len(self._texts) > _TEXTS:
            self._texts.clear()
        if len(self._groups) > _TEXTS:
            self._groups.clear()
        wanted: Sequence[int] = list({key for key in keys if key is not None} - self._texts.keys())
        for some in database.batches(wanted):
            question = f"SELECT id, json FROM fragment WHERE id IN ({database.marks(some)})"  # noqa: S608 - marks only
            self._texts.update(self._db.execute(question, some))
