"""What keeps the store small: one process at a time moves the log into the database, and drops what is too old or too much.

None of this is on a call's path: calls look at the call log alone, and the store's lock is no call's. Readers of the database
may have to wait for a transaction of upkeep, and upkeep for them.
"""

import contextlib
import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from mcpguard.core.claude_code import NOTE_KEPT_US
from mcpguard.errors import StoreUnavailable
from mcpguard.stores.sqlite import database, integrity
from mcpguard.stores.sqlite.call_log import RING_BYTES, CallLog, Position
from mcpguard.stores.sqlite.draining import Drain, fragment_bytes, row_bytes

DRAIN_BYTES: Final = 1024 * 1024
DRAIN_EVERY_US: Final = 2_000_000
"""The log is moved when it holds so much that is new, or when so long nobody has: best while no calls come."""

PRUNE_EVERY_US: Final = 60_000_000

_DRAINED_AT_ONCE_BYTES: Final = 256 * 1024
"""More in one transaction makes its rollback journal large, which lies beside the database for that time."""

_PRUNED_AT_ONCE: Final = 2000
_PRUNED_STEP: Final = 100
_SPARE_PAGES: Final = 256
_PAGES_AT_ONCE: Final = 512


_GRACE_US: Final = 60_000_000
"""How long after its window a counter's label is kept. A charge that finds a counter empty brings the label again."""

_ONCE_KEPT_US: Final = 30 * 86_400_000_000

_UNUSE: Final = "UPDATE fragment SET uses = uses - ? WHERE id = ?"
_SET_BOUNDS: Final = """
    INSERT INTO namespace (name, keep_us, max_bytes) VALUES (?, ?, ?)
    ON CONFLICT (name) DO UPDATE SET keep_us = excluded.keep_us, max_bytes = excluded.max_bytes
"""
_OLDEST: Final = """
    SELECT id, time_us, context, reported, coalesce(length(detail), 0) + coalesce(length(request_id), 0)
    FROM audit WHERE namespace = ? AND id < (SELECT max(id) FROM audit) ORDER BY id LIMIT ?
"""
_PRAGMAS: Final = ("page_count", "freelist_count", "page_size")


class Bounds(NamedTuple):
    """What a namespace's audit is kept within.

    Attributes:
        namespace: Its name.
        keep_us: How long rows are kept.
        max_bytes: How much of the disk they may take, with the call log, before the oldest go.
    """

    namespace: str
    keep_us: int
    max_bytes: int


class Upkeep:
    """Draining, pruning and shrinking of one store. Whoever calls has the store's lock.

    Args:
        path: The database.
        log: The call log.
        bounds: Of the namespace's audit. Whoever does upkeep does it for all namespaces, within the bounds of each.
        now_us: The store's time.
    """

    def __init__(self, path: Path, log: CallLog, bounds: Bounds, *, now_us: int) -> None:
        self._path = path
        self._log = log
        self._bounds = bounds
        self._drained_us = now_us
        self._told_bounds = False
        self._has_more_to_do = False

    def is_due(self, end: int, now_us: int) -> bool:
        """Whether `tend` would do something now.

        Args:
            end: The newest position of the log that the caller knows of.
            now_us: The store's time.
        """
        waits = end - self._log.drained().end
        return (
            waits >= DRAIN_BYTES
            or (waits > 0 and now_us - self._drained_us >= DRAIN_EVERY_US)
            or self._has_more_to_do
            or not self._told_bounds
        )

    @property
    def is_behind(self) -> bool:
        """Whether `tend` has more to do at once."""
        return self._has_more_to_do or not self._told_bounds

    def tend(self, *, now_us: int, wall_us: int) -> None:
        """Drain the log; and let go of some of what is too old or too much, where it is time to look.

        Args:
            now_us: The store's time.
            wall_us: Wall-clock time.

        Raises:
            StoreUnavailable: The database is damaged.
            sqlite3.Error, OSError: The database or the log cannot be used.
            Lost: The log does not continue where the database is.
        """
        self._drained_us = now_us
        with self._connected() as db:
            self._tell_bounds(db)
            self._drain(db)
            (pruned_us,) = db.execute("SELECT coalesce(max(value), 0) FROM meta WHERE key = 'pruned_us'").fetchone()
            if abs(wall_us - pruned_us) > PRUNE_EVERY_US:
                self._prune_shared(db, now_us, wall_us)
                self._has_more_to_do = True
            if self._has_more_to_do:
                with database.writing(db):
                    more = _prune_old(db, wall_us)
                    more |= _prune_surplus(db, _PRUNED_AT_ONCE)
                self._has_more_to_do = self._shrink(db) or more

    def drain(self) -> None:
        """Move into the database all that the log holds. Raises as `tend` does."""
        with self._connected() as db:
            self._drain(db)

    @contextlib.contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        """The database, which looks whole. It is opened each time: remembered pages would hide that the file is damaged."""
        with contextlib.closing(database.connect(self._path, mode="rw", timeout_s=database.BUSY_S)) as db:
            db.execute("PRAGMA synchronous = FULL")  # nobody's call waits for it
            integrity.check_pages(db, self._path)
            yield db

    def _tell_bounds(self, db: sqlite3.Connection) -> None:
        """Note the namespace's bounds for whoever does its upkeep."""
        if not self._told_bounds:
            known = db.execute("SELECT name, keep_us, max_bytes FROM namespace WHERE name = ?", self._bounds[:1]).fetchone()
            if known != self._bounds:
                with database.writing(db):
                    db.execute(_SET_BOUNDS, self._bounds)
                self._has_more_to_do = True
            self._told_bounds = True

    def _drain(self, db: sqlite3.Connection) -> None:
        at = last = database.position(db)
        batch: list[str] = []
        size = 0
        for text, after in self._log.records(at):
            batch.append(text)
            last = after
            size += len(text)
            if size > _DRAINED_AT_ONCE_BYTES:
                self._write(db, at, batch, last)
                at, batch, size = last, [], 0
        if batch:
            self._write(db, at, batch, last)

    def _write(self, db: sqlite3.Connection, since: Position, batch: list[str], upto: Position) -> None:
        """Move some records into the database, and let so many old rows go that it does not grow beyond its bounds."""
        with database.writing(db):
            if database.position(db) != since:
                hint = f"was {self._path.name}-lock removed, which is to keep them apart?"
                raise StoreUnavailable(f"{self._path} takes the call log from two processes at once", hint)
            Drain(db, self._log.key).write(since.row, batch)
            database.set_position(db, upto)
            more = _prune_surplus(db, max(_PRUNED_AT_ONCE, 2 * (upto.row - since.row)))
        self._has_more_to_do |= more
        self._log.set_drained(upto)

    def _prune_shared(self, db: sqlite3.Connection, now_us: int, wall_us: int) -> None:
        """Drop counters whose windows have passed, and old notes and names; a wall clock may have been set back meanwhile."""
        with database.writing(db):
            db.execute("DELETE FROM counter WHERE last_us + window_us + ? <= ?", (_GRACE_US, now_us))
            kept = (wall_us - NOTE_KEPT_US, wall_us + NOTE_KEPT_US)
            db.execute("DELETE FROM agent_note WHERE noted_us NOT BETWEEN ? AND ?", kept)
            db.execute("DELETE FROM adopted WHERE time_us < ?", (wall_us - _ONCE_KEPT_US,))
            db.execute("INSERT OR REPLACE INTO meta VALUES ('pruned_us', ?)", (wall_us,))

    def _shrink(self, db: sqlite3.Connection) -> bool:
        """Give some of the file's free pages back; whether there are more. Some stay: they are soon used again."""
        pages, free = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count"))
        surplus = free - max(_SPARE_PAGES, pages // 16)
        if surplus <= 0:
            return False
        db.executescript(f"PRAGMA incremental_vacuum({min(surplus, _PAGES_AT_ONCE)})")  # `execute` would free a single page
        return bool(surplus > _PAGES_AT_ONCE)


def _prune_old(db: sqlite3.Connection, wall_us: int) -> bool:
    """Drop some of the rows that are older than their namespaces keep them; whether there may be more."""
    more = False
    for namespace, keep_us in db.execute("SELECT id, keep_us FROM namespace WHERE keep_us IS NOT NULL").fetchall():
        found = [one for one in db.execute(_OLDEST, (namespace, _PRUNED_AT_ONCE)) if one[1] < wall_us - keep_us]
        _drop_rows(db, namespace, found)
        more |= len(found) == _PRUNED_AT_ONCE
    return more


def _prune_surplus(db: sqlite3.Connection, most: int) -> bool:
    """Drop the oldest rows of each namespace that takes more than it may, so many at most; whether there may be more.

    What rows take is known roughly, and never too low. Where all together take less of the file, each is taken to do so.
    """
    pages, free, page_bytes = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in _PRAGMAS)
    (known,) = db.execute("SELECT total(bytes) FROM namespace").fetchone()
    scale = min(1.0, (pages - free) * page_bytes / max(known, 1.0))
    for namespace, max_bytes in db.execute("SELECT id, max_bytes FROM namespace WHERE max_bytes IS NOT NULL").fetchall():
        bound = _share(max_bytes) / scale
        while _size(db, namespace) > bound:
            if most <= 0:
                return True
            found = db.execute(_OLDEST, (namespace, _PRUNED_STEP)).fetchall()
            if not found:
                break
            _drop_rows(db, namespace, found)
            most -= len(found)
    return False


def _share(max_bytes: int) -> int:
    """What of a namespace's bound its rows may take: the call log takes its part, and so does a rollback journal."""
    return max(max_bytes - max_bytes // 16 - RING_BYTES, max_bytes // 2)


def _size(db: sqlite3.Connection, namespace: int) -> int:
    return int(db.execute("SELECT bytes FROM namespace WHERE id = ?", (namespace,)).fetchone()[0])


def _drop_rows(db: sqlite3.Connection, namespace: int, found: list[tuple[int, int, int, int | None, int]]) -> None:
    """Drop rows as `_OLDEST` gives them, and the texts that no row uses then."""
    unused = Counter(key for _, _, context, reported, _ in found for key in (context, reported) if key is not None)
    db.executemany("DELETE FROM audit WHERE id = ?", [one[:1] for one in found])
    db.executemany(_UNUSE, [(count, key) for key, count in unused.items()])
    freed = sum(row_bytes(length) for *_, length in found) + _drop_unused(db, list(unused))
    db.execute("UPDATE namespace SET bytes = max(0, bytes - ?) WHERE id = ?", (freed, namespace))


def _drop_unused(db: sqlite3.Connection, ids: list[int]) -> int:
    """Drop those texts that no row uses any more; the bytes that contexts among them took."""
    freed = 0
    for some in database.batches(ids):
        which = f"WHERE uses <= 0 AND id IN ({database.marks(some)})"
        lengths = db.execute(f"SELECT length(json) FROM fragment {which} AND namespace IS NOT NULL", some)  # noqa: S608 - marks only
        freed += sum(fragment_bytes(length) for (length,) in lengths)
        db.execute(f"DELETE FROM fragment {which}", some)  # noqa: S608 - marks only
    return freed
