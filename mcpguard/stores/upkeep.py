"""What keeps an SQLite store small and quick, away from every call's path and on a connection of its own."""

import contextlib
import json
import sqlite3
import threading
from collections.abc import Iterator
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from typing import Final

from mcpguard.errors import StoreUnavailable
from mcpguard.stores import counters, notes
from mcpguard.stores.queue import QueueLock

PAGE_BYTES: Final = 1024
"""Small pages: a decision touches few bytes of many pages, and each page touched goes to the log whole."""

CHECKPOINT_BYTES: Final = 2 * 1024 * 1024
TRUNCATE_BYTES: Final = 64 * 1024 * 1024
"""Sizes of the write-ahead log: above the first it is copied back beside the writers, above the second in their queue."""

PRUNE_EVERY_US: Final = 60_000_000

TURN_TIMEOUT_S: Final = 2.0

_BATCH: Final = 500
"""Rows that go in one turn: some milliseconds, so that no decision waits long behind them."""

_OLDEST: Final = """
    SELECT a.id, a.time_us, c.json FROM audit a LEFT JOIN fragment c ON c.id = a.context
    WHERE a.id > ? AND a.id < ? ORDER BY a.id LIMIT ?
"""
_COUNTERS: Final = "SELECT id, last_us, window_us FROM snapshot JOIN counter USING (id) WHERE id > ? ORDER BY id LIMIT ?"
_DROP_UNUSED: Final = "DELETE FROM counter WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM snapshot WHERE snapshot.id = ?1)"

_IDLE: Final = """
    SELECT id FROM fragment EXCEPT SELECT context FROM audit EXCEPT SELECT reported FROM audit EXCEPT SELECT charged FROM audit
"""


class Upkeep:
    """Checkpoints, folding and pruning of one file.

    Args:
        path: The file.
        namespace: Whose audit rows are let go of when they are too old.
        keep_us: How long they are kept.
        max_bytes: How large the file may grow before the oldest audit rows go, whosoever they are.

    Attributes:
        folded: The row that the snapshot was at when this process looked last; others may have moved it on since.
    """

    def __init__(self, path: Path, *, namespace: str, keep_us: int, max_bytes: int) -> None:
        self._path = path
        self._namespace = namespace
        self._keep_us = keep_us
        self._max_bytes = max_bytes
        self._tending = threading.Lock()
        self._pruned_us: int | None = None
        self._looked_upto = 0
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
            if fold or prune or self._log_bytes() > CHECKPOINT_BYTES:
                with contextlib.closing(
                    sqlite3.connect(
                        f"{self._path.absolute().as_uri()}?mode=rw", uri=True, timeout=TURN_TIMEOUT_S, isolation_level=None
                    )
                ) as db:
                    db.execute("PRAGMA wal_autocheckpoint = 0")
                    if fold:
                        self._fold(db)
                    self._checkpoint(db)
                    if prune:
                        self._pruned_us = now_us
                        self._prune(db, now_us, wall_us)
        finally:
            self._tending.release()

    def _log_bytes(self) -> int:
        try:
            return self._path.with_name(self._path.name + "-wal").stat().st_size
        except OSError:
            return 0

    def _checkpoint(self, db: sqlite3.Connection) -> None:
        if self._log_bytes() > TRUNCATE_BYTES:
            with self._turn():
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        elif self._log_bytes() > CHECKPOINT_BYTES:
            db.execute("PRAGMA wal_checkpoint(PASSIVE)")

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
        queue = QueueLock(self._path.with_name(self._path.name + "-queue"))
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
        horizon_us = wall_us - self._keep_us
        pruned = False
        while ids := self._next_to_go(db, horizon_us):
            with self._turn(), db:
                db.execute("BEGIN IMMEDIATE")
                self.folded = counters.prune(db, ids)
            pruned = True
        if pruned:
            self._prune_fragments(db, wall_us)
        self._prune_counters(db, now_us, wall_us)
        with self._turn(), db:
            db.execute("BEGIN IMMEDIATE")
            notes.prune(db, wall_us=wall_us)

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

    def _next_to_go(self, db: sqlite3.Connection, horizon_us: int) -> list[int]:
        """The next rows to delete: the oldest of a file that is too large, or those of the namespace that are too old.

        Never the newest of all: row numbers must not be used twice.
        """
        newest = counters.newest(db)
        pages, free = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count"))
        if (pages - free) * PAGE_BYTES > self._max_bytes:
            return [one for (one,) in db.execute("SELECT id FROM audit WHERE id < ? ORDER BY id LIMIT ?", (newest, _BATCH))]
        if self._looked_upto >= newest:  # somebody has emptied the audit, and numbers begin anew
            self._looked_upto = 0
        while True:
            rows = db.execute(_OLDEST, (self._looked_upto, newest, _BATCH)).fetchall()
            old = list(takewhile(lambda row: row[1] < horizon_us, rows))
            ours = [place for place, _, context in old if context is None or _namespace(context) == self._namespace]
            if ours:
                self._looked_upto = ours[0] - 1
                return ours
            if not old:
                return []
            self._looked_upto = old[-1][0]

    def _prune_fragments(self, db: sqlite3.Connection, wall_us: int) -> None:
        """Drop the fragments that no row uses. The slow search is outside the turn, which looks at new rows only."""
        newest = counters.newest(db)
        idle = db.execute(_IDLE).fetchall()
        with self._turn(), db:
            db.execute("BEGIN IMMEDIATE")
            recent = db.execute("SELECT context, reported, charged FROM audit WHERE id > ?", (newest,)).fetchall()
            used = {key for row in recent for key in row}
            if db.executemany("DELETE FROM fragment WHERE id = ?", [key for key in idle if key[0] not in used]).rowcount > 0:
                counters.set_barrier(db, wall_us)


@lru_cache(maxsize=1024)
def _namespace(context: str) -> str:
    return str(json.loads(context)["namespace"])
