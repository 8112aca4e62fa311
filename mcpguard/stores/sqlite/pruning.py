"""Deletes audit rows that are too old, or too many, in the caller's transaction: some at a time."""

import _sqlite3 as sqlite3
from collections import Counter

from mcpguard.light_typing import Final
from mcpguard.stores.api import DISORDER_US
from mcpguard.stores.pauses import Pauses
from mcpguard.stores.sqlite import call_log, database
from mcpguard.stores.sqlite.draining import fragment_bytes, row_bytes

AT_ONCE: Final = 2000
_STEP: Final = 100
_UNUSE: Final = "UPDATE fragment SET uses = uses - ? WHERE id = ?"
_OLDEST: Final = """
    SELECT id, CASE typeof(time_us) WHEN 'integer' THEN time_us END, context, reported,
        coalesce(length(detail), 0) + coalesce(length(request_id), 0)
    FROM audit WHERE namespace = ? AND id < (SELECT max(id) FROM audit) ORDER BY id LIMIT ?
"""
_ALL: Final = -1
_PRAGMAS: Final = ("page_count", "freelist_count", "page_size")

JOURNAL_SHARE: Final = 16
"""This share of a namespace's bound is for the rollback journal. Outcomes have half of it: each may put a page into it."""


def prune_old(db: sqlite3.Connection, wall_us: int, pauses: Pauses) -> bool:
    """Delete some rows that are too old. Returns whether there may be more."""
    more = False
    for namespace, keep_us in db.execute("SELECT id, keep_us FROM namespace WHERE keep_us IS NOT NULL").fetchall():
        oldest = pauses.between(db.execute(_OLDEST, (namespace, AT_ONCE)))
        found = [one for one in oldest if one[1] is not None and one[1] < wall_us - keep_us]
        _drop_rows(db, namespace, found, pauses)
        more |= len(found) == AT_ONCE
    return more


def drop_before(db: sqlite3.Connection, name: str, before_us: int, pauses: Pauses) -> tuple[int, bool]:
    """Delete some of a namespace's rows from before a time. See `Upkeep.prune`."""
    (namespace,) = db.execute("SELECT id FROM namespace WHERE name = ?", (name,)).fetchone() or (0,)
    found = []
    for one in db.execute(_OLDEST, (namespace, _ALL)):
        time_us = one[1] or 0  # a damaged row has none
        if time_us < before_us:
            found.append(one)
        if len(found) == AT_ONCE or time_us >= before_us + DISORDER_US:
            break
    _drop_rows(db, namespace, found, pauses)
    return len(found), len(found) == AT_ONCE


def prune_surplus(db: sqlite3.Connection, most: int, pauses: Pauses) -> bool:
    """Delete the oldest rows of each namespace that is above its bound, at most `most`. Returns whether there may be more.

    The size of a namespace is an estimate, never too low. If all estimates together exceed the file, they are scaled down.
    """
    pages, free, page_bytes = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in _PRAGMAS)
    (known,) = db.execute("SELECT total(bytes) FROM namespace").fetchone()
    scale = min(1.0, (pages - free) * page_bytes / max(known, 1.0))
    for namespace, max_bytes in db.execute("SELECT id, max_bytes FROM namespace WHERE max_bytes IS NOT NULL").fetchall():
        bound = _share(max_bytes) / scale
        while _size(db, namespace) > bound:
            if most <= 0:
                return True
            found = list(pauses.between(db.execute(_OLDEST, (namespace, _STEP))))
            if not found:
                break
            _drop_rows(db, namespace, found, pauses)
            most -= len(found)
    return False


def _share(max_bytes: int) -> int:
    """The part of a namespace's bound for its rows: the call log and a rollback journal take the rest."""
    return max(max_bytes - max_bytes // JOURNAL_SHARE - call_log.RING_BYTES, max_bytes // 2)


def _size(db: sqlite3.Connection, namespace: int) -> int:
    return int(db.execute("SELECT bytes FROM namespace WHERE id = ?", (namespace,)).fetchone()[0])


def _drop_rows(
    db: sqlite3.Connection, namespace: int, found: list[tuple[int, int | None, int, int | None, int]], pauses: Pauses
) -> None:
    """Delete rows, as `_OLDEST` returns them, and shared texts that no row uses."""
    unused = Counter(key for _, _, context, reported, _ in found for key in (context, reported) if key is not None)
    db.executemany("DELETE FROM audit WHERE id = ?", pauses.between(one[:1] for one in found))
    db.executemany(_UNUSE, pauses.between((count, key) for key, count in unused.items()))
    freed = sum(row_bytes(length) for *_, length in found) + _drop_unused(db, list(unused))
    db.execute("UPDATE namespace SET bytes = max(0, bytes - ?) WHERE id = ?", (freed, namespace))


def _drop_unused(db: sqlite3.Connection, ids: list[int]) -> int:
    """Delete those of these shared texts that no row uses. Returns the bytes that the contexts among them took."""
    freed = 0
    for some in database.batches(ids):
        which = f"WHERE uses <= 0 AND id IN ({database.marks(some)})"
        lengths = db.execute(f"SELECT length(json) FROM fragment {which} AND namespace IS NOT NULL", some)  # noqa: S608 - marks only
        freed += sum(fragment_bytes(length) for (length,) in lengths)
        db.execute(f"DELETE FROM fragment {which}", some)  # noqa: S608 - marks only
    return freed
