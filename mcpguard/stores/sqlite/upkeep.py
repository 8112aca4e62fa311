"""Upkeep: one process at a time drains the call log into the database, prunes the audit log and returns disk space.

None of it delays a call: calls use the call log alone, and never the store's lock. Readers of the database may have to wait for
a transaction of upkeep, and upkeep for them.
"""

import _sqlite3 as sqlite3
import contextlib
import os
import time
from _thread import allocate_lock
from collections.abc import Callable, Iterator

from mcpguard.errors import StoreUnavailable
from mcpguard.identity.client_agents import NOTE_KEPT_US
from mcpguard.light_typing import Final
from mcpguard.stores.api import Options
from mcpguard.stores.clock import QUIET_S, Pauses, wall_us
from mcpguard.stores.sqlite import database, draining, log_lines, places
from mcpguard.stores.sqlite.call_log import Position, damaged
from mcpguard.stores.sqlite.database import PAGE_BYTES
from mcpguard.stores.sqlite.draining import Drain, row_bytes
from mcpguard.stores.sqlite.opening import Files, locked, open_files
from mcpguard.stores.sqlite.reader import SqliteReader

DRAIN_BYTES: Final = 1024 * 1024
DRAIN_EVERY_US: Final = 2_000_000
"""The log is drained when it holds this many new bytes, or when a process last drained it this long ago."""

REST_SHARE: Final = 9
LONGEST_REST_US: Final = 10_000_000
"""After a drain the disk rests for `REST_SHARE` times the drain's duration, but at most for this long, unless the log fills up.
On a slow disk a drain takes a second, in which nobody can read the database."""

URGENT_BYTES: Final = 2 * 1024 * 1024
"""If more than this waits in the log, a drain makes no pauses, because calls may soon have to wait for room."""

HOLD_S: Final = 0.25
"""A drain that takes longer stops after a transaction and releases the store's lock: for the next process to go on, and for a
process that opens the store. On a slow disk a transaction takes a second."""

PRUNE_EVERY_US: Final = 60_000_000

PACE_BYTES: Final = 32 * 1024
"""A process checks how full the log is each time that it has appended this much: about 60 single calls."""

CROWDED_SHARE: Final = 1 / 2
"""When more than this share of the log waits for the database, the log is crowded. The fuller it is, the longer a process waits
before it takes more calls, and the sooner it checks again. So a process with many calls waits most, and upkeep can work."""

LONGEST_WAIT_S: Final = 0.25
"""The longest wait before a process takes more calls, however long the timeout is."""

LOOK_EVERY_S: Final = 0.005
"""How often a process that waits for the database checks how far it is."""

LOCK_GAP_S: Final = 0.005
"""For how long upkeep releases the store's lock. A process that waits for it tries more often."""

LOCK_S: Final = 5.0
"""How long a portion that a person waits for waits for another process that does upkeep."""

_PAUSE_S: Final = 0.01
"""The pause between two such portions, in which others can do upkeep."""

_DRAINED_AT_ONCE_BYTES: Final = 256 * 1024
"""Records and rows. A larger transaction would make a large rollback journal, which counts as disk space of the store."""

_LEAST_OUTCOMES: Final = 256
"""This many outcomes may be in one transaction, however small the bound is."""

_SPARE_PAGES: Final = 256
_PAGES_AT_ONCE: Final = 512


_GRACE_US: Final = 60_000_000
"""How long an expired counter is kept. The charge of an empty counter writes its label to the log again."""

_WRITE_BACK_IDS_KEPT_US: Final = 30 * 86_400_000_000

_SET_BOUNDS: Final = """
    INSERT INTO namespace (name, keep_us, max_bytes) VALUES (?, ?, ?)
    ON CONFLICT (name) DO UPDATE SET keep_us = excluded.keep_us, max_bytes = excluded.max_bytes
"""
_CACHED_PAGES: Final = 32
_CHANGED_PAGES: Final = 512
"""How many pages upkeep keeps in memory, and how many while a transaction changes them. Beyond that SQLite writes some early.
With its usual 2 MiB of pages a wrapper has 0.6 MiB more from then on, and upkeep is not faster."""


class SqliteUpkeep:
    """Draining, pruning and shrinking of one store.

    Its methods raise `StoreUnavailable`, `sqlite3.Error` or `OSError` if database or log are damaged, or cannot be used.

    Args:
        files: The store's files.
        options: They name this process's namespace and its bounds. It tells them to the database, so that any process can prune
            by them.
        decided_s: When this process last decided a call.

    Attributes:
        is_failing: Whether this process could not write the database when it last tried.
        has_more_to_do: Whether `tend` has more to do at once.
        next_check_bytes: `keep_pace` does something only if this process has appended more than this.
    """

    def __init__(self, files: Files, options: Options, *, decided_s: Callable[[], float]) -> None:
        self._path = files.path
        self._log = files.log
        self._lock = files.lock
        self._clock = files.reader.clock
        self._tending = allocate_lock()  # the store's lock does not exclude other threads of this process
        self._bounds = options.namespace, options.keep_us, options.max_bytes
        self._drained_us = self._clock()
        self._drained_end = 0  # not known yet
        self._rest_us = DRAIN_EVERY_US
        self._told_bounds = False
        self.has_more_to_do = True
        self._decided_s = decided_s
        self._awaited = 0
        self._most_outcomes = max(_LEAST_OUTCOMES, options.max_bytes // (2 * draining.JOURNAL_SHARE) // PAGE_BYTES)
        self.is_failing = False
        self.next_check_bytes = self._log.appended_bytes + PACE_BYTES

    def is_due(self, end: int) -> bool:
        """Whether `tend` would do something now.

        Args:
            end: The newest position of the log that the caller knows of.
        """
        now_us, drained_end = self._clock(), self._log.drained().end
        if drained_end != self._drained_end:  # another process has drained it
            self._drained_end, self._drained_us = drained_end, now_us
        waiting_bytes = end - drained_end
        return (
            waiting_bytes >= DRAIN_BYTES
            or (waiting_bytes > 0 and now_us - self._drained_us >= self._rest_us)
            or self.has_more_to_do
        )

    def tend(self, end: int, *, wall_us: int) -> None:
        """Drain the log, and from time to time prune and shrink, unless another process does so.

        What takes longer than `HOLD_S` is left to the next process.

        Args:
            end: The newest position of the log that the caller knows of.
            wall_us: Wall-clock time.
        """
        with self._locked() as is_mine:
            if not is_mine:
                return
            self._drained_us = now_us = self._clock()
            with self._connected() as db:
                self._tell_bounds(db)
                began_s = time.monotonic()
                if not self._drain(db, end):
                    return
                took_us = round((time.monotonic() - began_s) * 1_000_000)
                self._rest_us = min(max(DRAIN_EVERY_US, REST_SHARE * took_us), LONGEST_REST_US)
                (pruned_us,) = db.execute("SELECT coalesce(max(value), 0) FROM meta WHERE key = 'pruned_us'").fetchone()
                if abs(wall_us - pruned_us) > PRUNE_EVERY_US:
                    self._prune_shared(db, now_us, wall_us)
                    self.has_more_to_do = True
                if self.has_more_to_do:
                    pauses = self._pauses()
                    with database.writing(db):
                        more = draining.prune_old(db, wall_us, pauses)
                        more |= draining.prune_surplus(db, draining.AT_ONCE, self._log.ring_bytes, pauses)
                    self.has_more_to_do = self._shrink(db) or more

    def drain(self, timeout_s: float) -> bool:
        """Move all records of the log into the database, while somebody waits for it.

        Returns:
            Whether it has all. False if that takes longer than the timeout, or if another process does upkeep.
        """
        until_s = time.monotonic() + timeout_s
        while True:
            with self._locked() as is_mine:
                if not is_mine:
                    return False
                with self._connected() as db, self.awaited():
                    if self._drain(db):
                        return True
            if time.monotonic() >= until_s:
                return False
            time.sleep(LOCK_GAP_S)

    def prune(self, before_us: int) -> Iterator[int]:
        """Delete the namespace's rows from before a time, in portions, and return disk space. Yields each portion's rows."""
        more = True
        while more:
            with self._locked(LOCK_S) as is_mine:
                if not is_mine:
                    raise locked(self._path)
                with self._connected() as db, self.awaited():
                    dropped, more = self._prune(db, before_us) if self._drain(db) else (0, True)
            if dropped:
                yield dropped
            time.sleep(_PAUSE_S if more else 0)

    def _prune(self, db: sqlite3.Connection, before_us: int) -> tuple[int, bool]:
        with database.writing(db):
            (namespace,) = db.execute("SELECT id FROM namespace WHERE name = ?", self._bounds[:1]).fetchone() or (0,)
            dropped = draining.prune_before(db, namespace, before_us, self._pauses())
        return dropped, self._shrink(db) or dropped == draining.AT_ONCE

    @contextlib.contextmanager
    def _locked(self, timeout_s: float = 0) -> Iterator[bool]:
        """Hold the store's lock, if it comes free in time. Yields whether it is held."""
        if not self._tending.acquire(blocking=False):
            yield False
            return
        try:
            is_held = self._lock.acquire(timeout_s)
            try:
                yield is_held
            finally:
                if is_held:
                    self._lock.release()
        finally:
            self._tending.release()

    def keep_pace(self, end: int, timeout_s: float, hurry: Callable[[], None]) -> None:
        """Wait for a moment if the log is crowded, unless this process could not write the database itself.

        Args:
            end: The newest position of the log that the caller knows of.
            timeout_s: How long to wait at most.
            hurry: Called before the wait, to start upkeep.

        Raises:
            StoreUnavailable, OSError: The log cannot be read.
        """
        waiting_share = (end - self._log.drained().end) / self._log.ring_bytes
        crowding = 0.0 if self.is_failing else max(0.0, (waiting_share - CROWDED_SHARE) / (1 - CROWDED_SHARE))  # 1: full
        if crowding:
            hurry()
            with self.awaited():  # a root, to slow processes down as soon as it is crowded
                time.sleep(min(timeout_s, LONGEST_WAIT_S) * crowding**0.5)
        self.next_check_bytes = self._log.appended_bytes + round(PACE_BYTES * (1 - crowding))

    def await_drained(self, end: int, timeout_s: float) -> None:
        """Wait until the database has the log up to a position, for at most the timeout."""
        until_s = time.monotonic() + timeout_s
        with self.awaited():
            while self._log.drained().end < end and time.monotonic() < until_s:
                time.sleep(LOOK_EVERY_S)

    @contextlib.contextmanager
    def awaited(self) -> Iterator[None]:
        """Do upkeep of this process without pauses, because the caller waits for it. From any thread."""
        self._awaited += 1
        try:
            yield
        finally:
            self._awaited -= 1

    def _pauses(self, *, is_urgent: bool = False) -> Pauses:
        return Pauses(self._is_busy, lambda: is_urgent or self._awaited > 0)

    def _is_busy(self) -> bool:
        return time.monotonic() - self._decided_s() < QUIET_S

    @contextlib.contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        """A new connection to the database: cached pages of an old one would hide damage."""
        try:
            with contextlib.closing(database.connect(self._path, timeout_s=database.BUSY_S)) as db:
                db.execute("PRAGMA synchronous = FULL")  # no call waits for it
                db.execute(f"PRAGMA cache_size = {_CACHED_PAGES}")
                db.execute(f"PRAGMA cache_spill = {_CHANGED_PAGES}")
                database.check_pages(db, self._path)
                yield db
        except (sqlite3.Error, OSError):
            self.is_failing = True
            raise
        self.is_failing = False

    def _tell_bounds(self, db: sqlite3.Connection) -> None:
        """Store the namespace's bounds, once, for all processes that do upkeep."""
        known = db.execute("SELECT name, keep_us, max_bytes FROM namespace WHERE name = ?", self._bounds[:1]).fetchone()
        if known != self._bounds and not self._told_bounds:
            with database.writing(db):
                db.execute(_SET_BOUNDS, self._bounds)
        self._told_bounds = True

    def _drain(self, db: sqlite3.Connection, end: int = 0) -> bool:
        """Move records into the database. Returns whether it has all; False if that takes longer than `HOLD_S`."""
        until_s = time.monotonic() + HOLD_S
        at = last = database.position(db)
        batch: list[str] = []
        size = outcomes = 0
        pauses = self._pauses(is_urgent=end - at.end > URGENT_BYTES)
        for text, after in pauses.between(self._log.records(at)):
            batch.append(text)
            size += len(text) + row_bytes(0) * (after.row - last.row)
            outcomes += log_lines.outcomes_in(text)
            last = after
            if size > _DRAINED_AT_ONCE_BYTES or outcomes > self._most_outcomes:
                self._write(db, at, batch, last, pauses)
                at, batch, size, outcomes = last, [], 0, 0
                if time.monotonic() > until_s:
                    return False
        if batch:
            self._write(db, at, batch, last, pauses)
        if last.end < end:
            raise damaged(self._log.path, "a record that is not yet in the database cannot be read")
        return True

    def _write(self, db: sqlite3.Connection, since: Position, batch: list[str], upto: Position, pauses: Pauses) -> None:
        """Write a batch into the database, and delete as many old rows as that takes to stay within the bounds."""
        with database.writing(db):
            if database.position(db) != since:
                hint = f"was {os.path.basename(self._path)}-lock removed? its lock lets only one process do that"
                raise StoreUnavailable(f"{self._path} takes the call log from two processes at once", hint)
            Drain(db, self._log.key, pauses).write(since.row, batch)
            database.set_position(db, upto)
            most = max(draining.AT_ONCE, 2 * (upto.row - since.row))
            more = draining.prune_surplus(db, most, self._log.ring_bytes, pauses)
        self.has_more_to_do |= more
        self._log.set_drained(upto)
        self._drained_end = upto.end

    def _prune_shared(self, db: sqlite3.Connection, now_us: int, wall_us: int) -> None:
        """Delete expired counters, old agent notes, old ids of write-backs, and places and files of processes that have ended.

        A note from the future is deleted, too: it is older than it looks, because the wall clock was set back since.
        """
        places.sweep(self._path)
        dead = places.dead(self._path, [owner for (owner,) in db.execute("SELECT DISTINCT owner FROM in_flight")])
        with database.writing(db):
            db.execute("DELETE FROM counter WHERE last_us + window_us + ? <= ?", (_GRACE_US, now_us))
            db.executemany("DELETE FROM in_flight WHERE owner = ?", [(owner,) for owner in dead])
            kept = (wall_us - NOTE_KEPT_US, wall_us + NOTE_KEPT_US)
            db.execute("DELETE FROM agent_note WHERE noted_us NOT BETWEEN ? AND ?", kept)
            db.execute("DELETE FROM adopted WHERE time_us < ?", (wall_us - _WRITE_BACK_IDS_KEPT_US,))
            db.execute("INSERT OR REPLACE INTO meta VALUES ('pruned_us', ?)", (wall_us,))

    def _shrink(self, db: sqlite3.Connection) -> bool:
        """Return some free pages to the file system. A sixteenth of the file stays free for new rows.

        Returns:
            Whether there are more pages to return.
        """
        pages, free = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count"))
        surplus = free - max(_SPARE_PAGES, pages // 16)
        if surplus <= 0:
            return False
        db.executescript(f"PRAGMA incremental_vacuum({min(surplus, _PAGES_AT_ONCE)})")  # `execute` would free a single page
        return bool(surplus > _PAGES_AT_ONCE)


def prune(path: str, options: Options, before_us: int) -> Iterator[int]:
    """Delete a namespace's rows from before a time, as a person asks for it. Never takes the lock on the call log.

    Args:
        path: The database, which exists.
        options: They name the namespace and its bounds.
        before_us: The time, in wall-clock time.

    Yields:
        The number of rows of each portion, after it is deleted.

    Raises:
        StoreUnavailable: The database is not one of this mcpguard, it cannot be written, or another process does not release
            the store's lock.
    """
    with database.reported(path):
        os.stat(path)  # the system says more plainly than SQLite why it cannot be opened
        SqliteReader(path).close()  # what is no store is refused before it gets files beside it
        with contextlib.closing(open_files(path, timeout_s=LOCK_S, own_clock=None, wall=wall_us)) as files:
            yield from SqliteUpkeep(files, options, decided_s=lambda: 0.0).prune(min(before_us, wall_us()))
