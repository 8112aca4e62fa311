"""Upkeep: one process at a time drains the call log into the database, prunes the audit log and returns disk space.

None of it delays a call: calls use the call log alone, and never the store's lock. Readers of the database may have to wait for
a transaction of upkeep, and upkeep for them.
"""

import contextlib
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Final

from mcpguard.errors import StoreUnavailable
from mcpguard.identity.client_agents import NOTE_KEPT_US
from mcpguard.stores.api import DISORDER_US, Options
from mcpguard.stores.pauses import Pauses
from mcpguard.stores.sqlite import database, log_lines
from mcpguard.stores.sqlite.call_log import RING_BYTES, CallLog, damaged
from mcpguard.stores.sqlite.draining import Drain, fragment_bytes, row_bytes
from mcpguard.stores.sqlite.log_records import Position
from mcpguard.stores.sqlite.owners import Owners
from mcpguard.stores.sqlite.schema import PAGE_BYTES

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

_DRAINED_AT_ONCE_BYTES: Final = 256 * 1024
"""Records and rows. A larger transaction would make a large rollback journal, which counts as disk space of the store."""

_JOURNAL_SHARE: Final = 16
"""This share of a namespace's bound is for the rollback journal. Outcomes have half of it: each may put a page into it."""

_LEAST_OUTCOMES: Final = 256
"""This many outcomes may be in one transaction, however small the bound is."""

_PRUNED_AT_ONCE: Final = 2000
_PRUNED_STEP: Final = 100
_SPARE_PAGES: Final = 256
_PAGES_AT_ONCE: Final = 512


_GRACE_US: Final = 60_000_000
"""How long an expired counter is kept. The charge of an empty counter writes its label to the log again."""

_WRITE_BACK_IDS_KEPT_US: Final = 30 * 86_400_000_000

_UNUSE: Final = "UPDATE fragment SET uses = uses - ? WHERE id = ?"
_SET_BOUNDS: Final = """
    INSERT INTO namespace (name, keep_us, max_bytes) VALUES (?, ?, ?)
    ON CONFLICT (name) DO UPDATE SET keep_us = excluded.keep_us, max_bytes = excluded.max_bytes
"""
_OLDEST: Final = """
    SELECT id, CASE typeof(time_us) WHEN 'integer' THEN time_us END, context, reported,
        coalesce(length(detail), 0) + coalesce(length(request_id), 0)
    FROM audit WHERE namespace = ? AND id < (SELECT max(id) FROM audit) ORDER BY id LIMIT ?
"""
_ALL: Final = -1
_CACHED_PAGES: Final = 32
_CHANGED_PAGES: Final = 512
"""How many pages upkeep keeps in memory, and how many while a transaction changes them. Beyond that SQLite writes some early.
With its usual 2 MiB of pages a wrapper has 0.6 MiB more from then on, and upkeep is not faster."""

_PRAGMAS: Final = ("page_count", "freelist_count", "page_size")


class Upkeep:
    """Draining, pruning and shrinking of one store. The caller has the store's lock.

    Args:
        path: The database.
        log: The call log.
        options: They name this process's namespace and its bounds. It tells them to the database, so that any process can prune
            by them.
        now_us: The store's time.
        busy: Whether this process has decided a call within the last `QUIET_S`.

    Attributes:
        is_failing: Whether this process could not write the database when it last tried.
    """

    def __init__(self, path: str, log: CallLog, options: Options, *, now_us: int, busy: Callable[[], bool]) -> None:
        self._path = path
        self._log = log
        self._bounds = options.namespace, options.keep_us, options.max_bytes
        self._drained_us = now_us
        self._drained_end = 0  # not known yet
        self._rest_us = DRAIN_EVERY_US
        self._told_bounds = False
        self._has_more_to_do = False
        self._busy = busy
        self._awaited = 0
        self._most_outcomes = max(_LEAST_OUTCOMES, options.max_bytes // (2 * _JOURNAL_SHARE) // PAGE_BYTES)
        self.is_failing = False

    def is_due(self, end: int, now_us: int) -> bool:
        """Whether `tend` would do something now.

        Args:
            end: The newest position of the log that the caller knows of.
            now_us: The store's time.
        """
        drained_end = self._log.drained().end
        if drained_end != self._drained_end:  # another process has drained it
            self._drained_end, self._drained_us = drained_end, now_us
        waiting_bytes = end - drained_end
        return (
            waiting_bytes >= DRAIN_BYTES
            or (waiting_bytes > 0 and now_us - self._drained_us >= self._rest_us)
            or self._has_more_to_do
            or not self._told_bounds
        )

    @property
    def is_behind(self) -> bool:
        """Whether `tend` has more to do at once."""
        return self._has_more_to_do or not self._told_bounds

    def tend(self, end: int, *, now_us: int, wall_us: int) -> None:
        """Drain the log, and from time to time prune and shrink. What takes longer than `HOLD_S` is left to the next process.

        Args:
            end: The newest position of the log that the caller knows of.
            now_us: The store's time.
            wall_us: Wall-clock time.

        Raises:
            StoreUnavailable: The database is damaged, or the log before `end`.
            sqlite3.Error, OSError: The database or the log cannot be used.
            Lost: The log does not continue at the database's position.
        """
        self._drained_us = now_us
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
                self._has_more_to_do = True
            if self._has_more_to_do:
                pauses = self._pauses()
                with database.writing(db):
                    more = _prune_old(db, wall_us, pauses)
                    more |= _prune_surplus(db, _PRUNED_AT_ONCE, pauses)
                self._has_more_to_do = self._shrink(db) or more

    def drain(self) -> bool:
        """Move records of the log into the database, while somebody waits for it. Raises as `tend` does.

        Returns:
            Whether it stopped after `HOLD_S`. Then release the store's lock for a moment, and call it again.
        """
        with self._connected() as db, self.awaited():
            return not self._drain(db)

    def prune(self, before_us: int) -> tuple[int, bool]:
        """Delete some of the namespace's rows from before a time, and return disk space.

        Returns:
            How many rows were deleted, and whether there may be more to do.
        """
        with self._connected() as db, self.awaited():
            if not self._drain(db):
                return 0, True
            with database.writing(db):
                namespace, *_ = self._bounds
                dropped, more = _drop_before(db, namespace, before_us, self._pauses())
            return dropped, self._shrink(db) or more

    @contextlib.contextmanager
    def awaited(self) -> Iterator[None]:
        """Do upkeep of this process without pauses, because the caller waits for it. From any thread."""
        self._awaited += 1
        try:
            yield
        finally:
            self._awaited -= 1

    def _pauses(self, *, is_urgent: bool = False) -> Pauses:
        return Pauses(self._busy, lambda: is_urgent or self._awaited > 0)

    @contextlib.contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        """A new connection to the database: cached pages of an old one would hide damage."""
        try:
            with contextlib.closing(database.connect(self._path, mode="rw", timeout_s=database.BUSY_S)) as db:
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
        """Store the namespace's bounds, for all processes that do upkeep."""
        if not self._told_bounds:
            known = db.execute("SELECT name, keep_us, max_bytes FROM namespace WHERE name = ?", self._bounds[:1]).fetchone()
            if known != self._bounds:
                with database.writing(db):
                    db.execute(_SET_BOUNDS, self._bounds)
                self._has_more_to_do = True
            self._told_bounds = True

    def _drain(self, db: sqlite3.Connection, end: int | None = None) -> bool:
        """Move records into the database: those before a position, and some more; or all. False if `HOLD_S` is too short."""
        until_s = time.monotonic() + HOLD_S
        at = last = database.position(db)
        enough = None if end is None else max(end, at.end + DRAIN_BYTES)
        batch: list[str] = []
        size = outcomes = 0
        pauses = self._pauses(is_urgent=end is not None and end - at.end > URGENT_BYTES)
        for text, after in pauses.between(self._log.records(at)):
            batch.append(text)
            size += len(text) + row_bytes(0) * (after.row - last.row)
            outcomes += log_lines.outcomes_in(text)
            last = after
            if size > _DRAINED_AT_ONCE_BYTES or outcomes > self._most_outcomes:
                self._write(db, at, batch, last, pauses)
                at, batch, size, outcomes = last, [], 0, 0
                if enough is not None and at.end >= enough:
                    break
                if time.monotonic() > until_s:
                    return False
        if batch:
            self._write(db, at, batch, last, pauses)
        if end is not None and last.end < end:
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
            more = _prune_surplus(db, max(_PRUNED_AT_ONCE, 2 * (upto.row - since.row)), pauses)
        self._has_more_to_do |= more
        self._log.set_drained(upto)
        self._drained_end = upto.end

    def _prune_shared(self, db: sqlite3.Connection, now_us: int, wall_us: int) -> None:
        """Delete expired counters, old agent notes, old ids of write-backs, and places and files of processes that have ended.

        A note from the future is deleted, too: it is older than it looks, because the wall clock was set back since.
        """
        owners = Owners(self._path)
        owners.sweep()
        dead = owners.dead([owner for (owner,) in db.execute("SELECT DISTINCT owner FROM in_flight")])
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


def _prune_old(db: sqlite3.Connection, wall_us: int, pauses: Pauses) -> bool:
    """Delete some rows that are too old. Returns whether there may be more."""
    more = False
    for namespace, keep_us in db.execute("SELECT id, keep_us FROM namespace WHERE keep_us IS NOT NULL").fetchall():
        oldest = pauses.between(db.execute(_OLDEST, (namespace, _PRUNED_AT_ONCE)))
        found = [one for one in oldest if one[1] is not None and one[1] < wall_us - keep_us]
        _drop_rows(db, namespace, found, pauses)
        more |= len(found) == _PRUNED_AT_ONCE
    return more


def _drop_before(db: sqlite3.Connection, name: str, before_us: int, pauses: Pauses) -> tuple[int, bool]:
    """Delete some of a namespace's rows from before a time. See `Upkeep.prune`."""
    (namespace,) = db.execute("SELECT id FROM namespace WHERE name = ?", (name,)).fetchone() or (0,)
    found = []
    for one in db.execute(_OLDEST, (namespace, _ALL)):
        time_us = one[1] or 0  # a damaged row has none
        if time_us < before_us:
            found.append(one)
        if len(found) == _PRUNED_AT_ONCE or time_us >= before_us + DISORDER_US:
            break
    _drop_rows(db, namespace, found, pauses)
    return len(found), len(found) == _PRUNED_AT_ONCE


def _prune_surplus(db: sqlite3.Connection, most: int, pauses: Pauses) -> bool:
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
            found = list(pauses.between(db.execute(_OLDEST, (namespace, _PRUNED_STEP))))
            if not found:
                break
            _drop_rows(db, namespace, found, pauses)
            most -= len(found)
    return False


def _share(max_bytes: int) -> int:
    """The part of a namespace's bound for its rows: the call log and a rollback journal take the rest."""
    return max(max_bytes - max_bytes // _JOURNAL_SHARE - RING_BYTES, max_bytes // 2)


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
