"""Reads audit rows of the database, page by page.

Each query reads a few rows and ends before they are used, so that upkeep does not wait long.
"""

import _sqlite3 as sqlite3
from collections.abc import Callable, Iterable, Mapping

from mcpguard.light_typing import Any, Final
from mcpguard.session.audit import Row, is_whole, whole_members
from mcpguard.stores.api import StoredRow, Wanted
from mcpguard.stores.sqlite import database

_PAGE_ROWS: Final = 500
_PAGE_CHARS: Final = 4 * 1024 * 1024
"""A page ends before it has more rows, or more characters of detail. A call of this process may wait for it."""

_NAMED: Final = 10_000
"""The most contexts that a query names. SQLite limits the length of a query."""

_ROWS: Final = """
    SELECT a.id, a.time_us, a.seq, a.decision, a.context, a.reported, a.request_id, a.args_hash, a.trace_id, a.counted,
        a.remaining, a.retry_after_ms, a.repeats, a.detail, a.outcome, a.duration_us
    FROM audit a WHERE a.id > ? AND a.id < ? %s ORDER BY a.id %s
"""
_IDS: Final = "SELECT coalesce((SELECT min(id) FROM audit), 1), coalesce((SELECT max(id) FROM audit), 0) + 1"
_NEWEST_AMONG: Final = """
    SELECT max(time_us) FROM (SELECT time_us FROM audit WHERE id >= ? ORDER BY id LIMIT 256) WHERE typeof(time_us) = 'integer'
"""


class Archive:
    """The audit rows in a database.

    Args:
        db: A connection.
        skipped: Is told the id of a row that is left out because it is damaged.
    """

    def __init__(self, db: sqlite3.Connection, skipped: Callable[[int], None]) -> None:
        self._db = db
        self._skipped = skipped

    def condition(self, wanted: Wanted | None) -> tuple[str, int]:
        """A condition in SQL that the wanted rows meet, and others may, too; and an id that no wanted row is below.

        Rows share their texts, so few texts have to be examined.
        """
        if wanted is None:
            return "", 0
        conditions = []
        if wanted.context is not None:
            every = self._db.execute("SELECT id, json FROM fragment WHERE namespace IS NOT NULL")
            known = ((key, whole_members(text, "namespace")) for key, text in every)
            contexts = [key for key, one in known if one is None or wanted.context(one)]  # or a damaged row is not named
            if len(contexts) <= _NAMED:
                conditions.append(f"a.context IN ({','.join(map(str, contexts))})")
        if wanted.decisions is not None:
            conditions.append(f"a.decision IN ({','.join(map(repr, sorted(wanted.decisions)))})")
        if wanted.axis is not None:
            conditions.append("(a.reported IS NOT NULL OR a.detail IS NOT NULL)")
        if wanted.outcomes is not None:  # the outcome may be in the call log
            conditions.append(f"(a.outcome IS NULL OR a.outcome IN ({','.join(map(repr, sorted(wanted.outcomes)))}))")
        if wanted.since_us is not None:
            conditions.append(f"a.time_us >= {wanted.since_us}")
        if wanted.until_us is not None:
            conditions.append(f"a.time_us < {wanted.until_us}")
        return "".join(f"AND {one} " for one in conditions), self._first_since(wanted.written_since_us)

    def _first_since(self, written_us: int) -> int:
        """An id that no row of this time or later is below; for 0 the first id.

        Found by bisection, because ids grow with the time of writing.

        Rows that waited for the store during an outage are older than those before them. So each step looks at several rows.
        """
        low, end = self._db.execute(_IDS).fetchone()
        while low < end and written_us:
            middle = (low + end) // 2
            (newest_us,) = self._db.execute(_NEWEST_AMONG, (middle,)).fetchone()
            if newest_us is None or newest_us >= written_us:
                end = middle
            else:
                low = middle + 1
        return int(low)

    def page(
        self,
        after: int,
        before: int,
        condition: str,
        wanted: Wanted | None,
        outcomes: Mapping[int, tuple[str, int]],
        *,
        newest_first: bool,
    ) -> tuple[list[StoredRow], int, int]:
        """The next rows.

        Args:
            after: The largest id that is too small.
            before: The smallest id that is too large.
            condition: What `condition` returns for `wanted`.
            wanted: Which rows are returned; None for all.
            outcomes: The outcomes that are not in the database yet, by row id.
            newest_first: Whether to begin with the largest id.

        Returns:
            The rows; and the bounds `after` and `before` of those that were not looked at.
        """
        found: list[tuple[Any, ...]] = []
        chars = 0
        last = after if newest_first else before - 1
        with database.reading(self._db):
            cursor = self._db.execute(_ROWS % (condition, "DESC" if newest_first else ""), (after, before))
            for one in cursor:
                found.append(one)
                chars += len(str(one[13] or ""))
                if len(found) == _PAGE_ROWS or chars > _PAGE_CHARS:
                    last = one[0]
                    break
            cursor.close()
            texts = self._texts(key for one in found for key in one[4:6])
        rows = []
        for row_id, *values, outcome, duration_us in found:
            if outcome is None and row_id in outcomes:
                outcome, duration_us = outcomes[row_id]
            values[3:5] = texts.get(values[3], ""), texts.get(values[4], values[4])
            row = Row(*values)
            if not is_whole(row, outcome, duration_us):
                self._skipped(row_id)
            elif wanted is None or wanted.admits_row(row, outcome):
                rows.append(StoredRow(row_id, row, outcome, duration_us))
        return (rows, after, last) if newest_first else (rows, last, before)

    def _texts(self, keys: Iterable[int | None]) -> dict[int | None, str]:
        """The shared texts of rows, by id."""
        found: dict[int | None, str] = {}
        for some in database.batches(list({key for key in keys if key is not None})):
            found.update(self._db.execute(f"SELECT id, json FROM fragment WHERE id IN ({database.marks(some)})", some))  # noqa: S608 - marks only
        return found
