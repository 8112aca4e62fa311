"""What keeps an SQLite store small and quick, away from every call's path and on a connection of its own."""

import contextlib
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from mcpguard.core.audit import compact
from mcpguard.errors import StoreUnavailable
from mcpguard.stores import counters, notes
from mcpguard.stores.integrity import log_bytes
from mcpguard.stores.queue import queue_of

PAGE_BYTES: Final = 1024
"""Small pages: a decision touches few bytes of many pages, and each page touched goes to the log whole."""

CHECKPOINT_BYTES: Final = 2 * 1024 * 1024
TRUNCATE_BYTES: Final = 64 * 1024 * 1024
"""Sizes of the write-ahead log: above the first it is copied back beside the writers, above the second also cut, in a turn."""

PRUNE_EVERY_US: Final = 60_000_000

TURN_TIMEOUT_S: Final = 2.0

_BATCH: Final = 500
_BATCH_BYTES: Final = 1024 * 1024
"""Rows that go in one turn, and their bytes: some milliseconds, so that no decision waits long behind them."""

_LEAST_SHARE: Final = 64
"""Of a namespace that takes too much, at least a 64th of its rows goes, so that it is not measured at every turn."""

_COUNTERS: Final = "SELECT id, last_us, window_us FROM snapshot JOIN counter USING (id) WHERE id > ? ORDER BY id LIMIT ?"
_DROP_UNUSED: Final = "DELETE FROM counter WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM snapshot WHERE snapshot.id = ?1)"

_IDLE: Final = """
    SELECT id FROM fragment EXCEPT SELECT context FROM audit EXCEPT SELECT reported FROM audit EXCEPT SELECT charged FROM audit
"""

# A namespace's name in its rows' context; barriers have no context, and are everybody's
_IS_OWN: Final = "coalesce(instr(c.json, ?1), 1) > 0"
_ROW_BYTES: Final = "(150 + coalesce(length(a.detail), 0))"
_CONTEXT_BYTES: Final = "(200 + 3 * length(c.json) / 2)"
"""How much of the file a row takes, roughly, and a text that rows share: they lie in no order, so that pages are half empty."""

_OLDEST: Final = f"""
    SELECT a.id, a.time_us, {_ROW_BYTES} FROM audit a LEFT JOIN fragment c ON c.id = a.context
    WHERE a.id > ?2 AND a.id < (SELECT max(id) FROM audit) AND {_IS_OWN} ORDER BY a.id LIMIT {_BATCH}
"""  # noqa: S608 - constants only
_SIZES: Final = f"""
    SELECT (SELECT total({_ROW_BYTES}) FROM audit a LEFT JOIN fragment c ON c.id = a.context WHERE {_IS_OWN}),
        (SELECT total({_CONTEXT_BYTES}) FROM fragment c WHERE {_IS_OWN})
"""  # noqa: S608 - constants only


class Upkeep:
    """Checkpoints, folding and pruning of one file.

    Args:
        path: The file.
        namespace: Whose audit rows are pruned.
        keep_us: How long they are kept.
        max_bytes: How much of the file the namespace's audit may take before its oldest rows go.

    Attributes:
        folded: The row that the snapshot was at when this process looked last; others may have moved it on since.
    """

    def __init__(self, path: Path, *, namespace: str, keep_us: int, max_bytes: int) -> None:
        self._path = path
        self._mark = compact({"namespace": namespace})[1:-1]
        self._keep_us = keep_us
        self._max_bytes = max_bytes
        self._tending = threading.Lock()
        self._pruned_us: int | None = None
        self._past = 0  # no row up to here can be pruned any more
        self.folded = 0

    def tend(self, *, newest: int, now_us: int, wall_us: int) -> None:
        """Fold rows and copy the log back if there are many, and once a minute let go of what is too old or too much.

        Args:
            newest: The newest audit row that the caller knows of.
            now_us: The store's time.
            wall_us: Wall-clock time.

        Raises:
            StoreUnavailable: It did not get a turn.
            sqlite3.Error: The file cannot be written.
        """
        if not self._tending.acquire(blocking=False):
            return
        try:
            prune = self._pruned_us is None or now_us - self._pruned_us > PRUNE_EVERY_US
            fold = newest - self.folded >= (1 if prune else counters.FOLD_EVERY)
            if fold or prune or log_bytes(self._path) > CHECKPOINT_BYTES:
                with self._connected() as db:
                    if fold:
                        self._fold(db)
                    self._checkpoint(db)
                    if prune:
                        self._pruned_us = now_us
                        self._prune(db, now_us, wall_us)
        finally:
            self._tending.release()

    @contextlib.contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        uri = f"{self._path.absolute().as_uri()}?mode=rw"
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=TURN_TIMEOUT_S, isolation_level=None)) as db:
            db.execute("PRAGMA wal_autocheckpoint = 0")
            db.execute("PRAGMA synchronous = NORMAL")  # a turn does not wait for the disk: what upkeep writes can be done again
            yield db

    def _checkpoint(self, db: sqlite3.Connection) -> None:
        if log_bytes(self._path) <= CHECKPOINT_BYTES:
            return
        db.execute("PRAGMA wal_checkpoint(PASSIVE)")
        if log_bytes(self._path) > TRUNCATE_BYTES:
            with self._turn():
                db.execute("PRAGMA busy_timeout = 0")  # whoever reads an old state may do so for hours
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                db.execute(f"PRAGMA busy_timeout = {round(TURN_TIMEOUT_S * 1000)}")

    def _fold(self, db: sqlite3.Connection) -> None:
        """Move the snapshot on. What it becomes is worked out before the turn, in which it is only written."""
        with db:
            db.execute("BEGIN")
            fold = counters.unfolded(db)
        with self._turn(), db:
            db.execute("BEGIN IMMEDIATE")
            self.folded = counters.folded(db)
            if self.folded == fold.since:
                counters.write_fold(db, fold)
                self.folded = fold.upto

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """A turn in the queue; by a lock of our own, since another thread may be deciding."""
        queue = queue_of(self._path)
        try:
            if not queue.acquire(TURN_TIMEOUT_S):
                raise StoreUnavailable(f"{self._path} did not come free in time", "another process holds its lock")
            try:
                yield
            finally:
                queue.release()
        finally:
            queue.close()

    def _prune(self, db: sqlite3.Connection, now_us: int, wall_us: int) -> None:
        if self._prune_rows(db, wall_us, before_us=wall_us - self._keep_us):
            self._prune_fragments(db, wall_us)
        while (too_many := self._too_many(db)) and self._prune_rows(db, wall_us, size=too_many):
            self._prune_fragments(db, wall_us)
        self._prune_counters(db, now_us, wall_us)
        with self._turn(), db:
            db.execute("BEGIN IMMEDIATE")
            notes.prune(db, wall_us=wall_us)

    def _too_many(self, db: sqlite3.Connection) -> float:
        """The size of the rows that have to go since this namespace's audit takes too much; else 0. Counters cannot go."""
        pages, free = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count"))
        if (pages - free) * PAGE_BYTES <= self._max_bytes:  # all namespaces together do not
            return 0
        rows, contexts = db.execute(_SIZES, (self._mark,)).fetchone()
        if rows + contexts <= self._max_bytes:
            return 0
        share: float = max(1 - self._max_bytes / (rows + contexts), 1 / _LEAST_SHARE)
        return share * float(rows)

    def _prune_rows(self, db: sqlite3.Connection, wall_us: int, *, before_us: int = 0, size: float = 0) -> bool:
        """Drop the namespace's oldest rows: all from before a time, and more until they have a size. Whether there were any.

        Never the newest of all: row numbers must not be used twice.
        """
        pruned = False
        newest = counters.newest(db)
        if newest <= self._past:  # somebody has emptied the audit, and numbers begin anew
            self._past = 0
        while rows := db.execute(_OLDEST, (self._mark, self._past)).fetchall():
            self._past = rows[0][0] - 1
            some, some_bytes = _to_go(rows, before_us, size)
            if not some:
                break
            self._drop_rows(db, some, wall_us)
            pruned = True
            size -= some_bytes
        else:  # the namespace has no row before the newest
            self._past = newest - 1
        return pruned

    def _drop_rows(self, db: sqlite3.Connection, some: list[tuple[int]], wall_us: int) -> None:
        with self._turn(), db:
            db.execute("BEGIN IMMEDIATE")
            self.folded = counters.fold(db)
            db.executemany("DELETE FROM audit WHERE id = ?", some)
            db.executemany("DELETE FROM outcome WHERE id = ?", some)
            if db.execute("SELECT 1 FROM audit WHERE id < ?", some[-1]).fetchone():
                counters.set_barrier(db, wall_us)  # others' rows are left in between: nobody can see what is missing

    def _prune_counters(self, db: sqlite3.Connection, now_us: int, wall_us: int) -> None:
        """Drop the counters whose windows have passed. They are looked for outside the turns."""
        last = -1
        while found := db.execute(_COUNTERS, (last, _BATCH)).fetchall():
            last = found[-1][0]
            expired = [(key, last_us) for key, last_us, window_us in found if last_us + window_us <= now_us]
            if expired:
                with self._turn(), db:
                    db.execute("BEGIN IMMEDIATE")
                    self.folded = counters.fold(db)
                    db.executemany("DELETE FROM snapshot WHERE id = ? AND last_us = ?", expired)
                    if db.executemany(_DROP_UNUSED, [(key,) for key, _ in expired]).rowcount > 0:
                        counters.set_barrier(db, wall_us)

    def _prune_fragments(self, db: sqlite3.Connection, wall_us: int) -> None:
        """Drop the fragments that no row uses. The slow search is outside the turns, which look at new rows only."""
        newest = counters.newest(db)
        idle = db.execute(_IDLE).fetchall()
        used: set[int | None] = set()
        for at in range(0, len(idle), _BATCH):
            with self._turn(), db:
                db.execute("BEGIN IMMEDIATE")
                recent = db.execute("SELECT context, reported, charged FROM audit WHERE id > ?", (newest,)).fetchall()
                newest = counters.newest(db)
                used.update(key for row in recent for key in row)
                some = [key for key in idle[at : at + _BATCH] if key[0] not in used]
                if db.executemany("DELETE FROM fragment WHERE id = ?", some).rowcount > 0:
                    counters.set_barrier(db, wall_us)


def _to_go(rows: Sequence[tuple[int, int, int]], before_us: int, size: float) -> tuple[list[tuple[int]], int]:
    """Those of the oldest rows that go in one turn, and their size together.

    Args:
        rows: Place, time and size of each, oldest first.
        before_us: All rows from before this time go.
        size: Of later ones as many go as it takes for this size.
    """
    some: list[tuple[int]] = []
    some_bytes = 0
    for place, time_us, row_bytes in rows:
        if (time_us >= before_us and some_bytes >= size) or some_bytes > _BATCH_BYTES:
            break
        some.append((place,))
        some_bytes += row_bytes
    return some, some_bytes
