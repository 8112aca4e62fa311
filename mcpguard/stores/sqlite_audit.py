"""Audit rows in an SQLite store: how they are written, and how they are read."""

import sqlite3
from typing import Final

from mcpguard.core.audit import Row, record
from mcpguard.core.digest import number
from mcpguard.stores.base import Entry

_USUAL: Final = "time_us, seq, decision, context, reported, request_id, args_hash, counted, remaining, charged_us, charged"
_RARE: Final = "trace_id, retry_after_ms, repeats, detail"

INSERT: Final = f"INSERT INTO audit (id, {_USUAL}, {_RARE}) VALUES ({', '.join('?' * 16)})"  # noqa: S608 - marks only
"""Takes a place, and what `values` gives."""


def _if_next(columns: str, marks: int) -> str:
    """A statement that writes a row if the newest row is still the one that its first value names.

    If it is not, `time_us` becomes NULL, which no row may have, and so the row is ignored. That is a third quicker than
    `INSERT … SELECT … WHERE`, which runs a subprogram.
    """
    newest = "CASE (SELECT max(id) FROM audit) WHEN ? THEN ? END"
    return f"INSERT OR IGNORE INTO audit ({columns}) VALUES ({newest}, {', '.join('?' * marks)})"  # noqa: S608 - marks only


_USUAL_IF_NEXT: Final = _if_next(_USUAL, 10)
_IF_NEXT: Final = _if_next(f"{_USUAL}, {_RARE}", 14)

INSERT_OUTCOME: Final = """
    INSERT OR IGNORE INTO outcome SELECT ?1, ?2, ?3 WHERE EXISTS (SELECT 1 FROM audit WHERE id = ?1)
"""
"""The first outcome of a row stands; that of a row that was pruned is not written: nothing would ever prune it."""

_BATCH: Final = 500
_SELECT: Final = """
    SELECT a.id, a.time_us, a.seq, a.decision, c.json, r.json, a.request_id, a.args_hash, a.trace_id, a.counted,
        a.remaining, a.retry_after_ms, a.repeats, a.detail, o.outcome, o.duration_us
    FROM audit a JOIN fragment c ON c.id = a.context LEFT JOIN fragment r ON r.id = a.reported
    LEFT JOIN outcome o ON o.id = a.id WHERE a.decision <> 'barrier'
"""
AFTER: Final = f"{_SELECT} AND a.id > ? ORDER BY a.id LIMIT {_BATCH}"
BEFORE: Final = f"{_SELECT} AND a.id < ? ORDER BY a.id DESC LIMIT {_BATCH}"
"""The next rows after a place, oldest first, or before it, newest first, as `entry` takes them."""


def values(
    row: Row, context: int | None, reported: int | None, charged_us: int | None, charged: int | None
) -> tuple[object, ...]:
    """A row as `INSERT` takes it: with numbers in place of the texts that many rows share."""
    usual = _usual(row, context, reported, charged_us, charged)
    return (*usual, row.trace_id, row.retry_after_ms, row.repeats, row.detail)


def insert_if_next(
    newest: int, row: Row, context: int | None, reported: int | None, charged_us: int | None, charged: int | None
) -> tuple[str, tuple[object, ...]]:
    """The statement that writes a row if `newest` is still the newest, and its values.

    Most rows need few of the columns, and NULL takes longer to hand over than a number.
    """
    if row.trace_id is None and row.retry_after_ms is None and row.repeats is None and row.detail is None:
        return _USUAL_IF_NEXT, (newest, *_usual(row, context, reported, charged_us, charged))
    return _IF_NEXT, (newest, *values(row, context, reported, charged_us, charged))


def _usual(
    row: Row, context: int | None, reported: int | None, charged_us: int | None, charged: int | None
) -> tuple[object, ...]:
    time_us, seq, decision, _, _, request_id, args_hash, _, counted, remaining, _, _, _ = row
    hashed = args_hash and bytearray(args_hash)  # for bytes sqlite3 looks in vain for how they are to be adapted
    return time_us, seq, decision, context, reported, request_id, hashed, counted, remaining, charged_us, charged


def intern(db: sqlite3.Connection, text: str, key: bytes) -> int:
    """The number that rows have in place of a text; the text is written if it is new.

    Clients choose parts of these texts, and what a call was charged on is one of them: so the key must be the store's secret.
    """
    place = number(text, key)
    db.execute("INSERT OR IGNORE INTO fragment VALUES (?, ?)", (place, text))
    return place


def entry(found: tuple[object, ...]) -> Entry:
    """A row as it is read."""
    place, *row, outcome, duration_us = found
    return Entry(place, record(Row(*row), outcome=outcome, duration_us=duration_us))  # type: ignore[arg-type]
