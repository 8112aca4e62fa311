"""Counters and audit in one SQLite file, shared by every wrapper of an account.

One decision is one transaction: `BEGIN IMMEDIATE` behind a fair queue, the clock read inside it, all counters and the audit
row written together. What this process wrote last it remembers, and reads again only if `PRAGMA data_version` says that
another has written since.
"""

import contextlib
import os
import sqlite3
import struct
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Final

from mcpguard.core import limiter
from mcpguard.core.audit import Journal, Outcome, Row, record
from mcpguard.core.digest import blake2b
from mcpguard.core.limiter import State
from mcpguard.core.policy import Counter, counter_id
from mcpguard.core.verdict import Charge, Verdict
from mcpguard.errors import StoreUnavailable
from mcpguard.stores import clock
from mcpguard.stores.base import Clock, Entry, Held, decide_all, wall_us
from mcpguard.stores.files import open_private, private_folder, refuse_network
from mcpguard.stores.integrity import check_file, check_pages, damaged, size_bytes
from mcpguard.stores.migrations import migrate
from mcpguard.stores.queue import QueueLock, SharedHold
from mcpguard.stores.upkeep import PAGE_BYTES, Upkeep

OPEN_TIMEOUT_S: Final = 2.0
"""How long opening waits for other wrappers that create or migrate the file; no call waits for it."""

_BATCH: Final = 500
_REMEMBERED: Final = 4096
_AUDIT: Final = (
    "time_us, seq, decision, context, reported, request_id, args_hash, trace_id, counted, remaining,"
    " retry_after_ms, repeats, detail"
)
_INSERT: Final = f"INSERT INTO audit ({_AUDIT}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608
_SELECT: Final = """
    SELECT a.id, a.time_us, a.seq, a.decision, c.json, r.json, a.request_id, a.args_hash, a.trace_id, a.counted,
        a.remaining, a.retry_after_ms, a.repeats, a.detail, o.outcome, o.duration_us
    FROM audit a JOIN fragment c ON c.id = a.context LEFT JOIN fragment r ON r.id = a.reported
    LEFT JOIN outcome o ON o.id = a.id
"""


class SqliteStore:
    """A store in one file.

    Args:
        path: The file; it and its folder are made if they are missing, with modes 0600 and 0700.
        timeout_ms: How long a decision waits for its turn.
        durability: `full` forces each decision to the disk before the call is forwarded; `normal` leaves that to the system,
            so that a power cut can lose the last ones.
        keep_us: How long audit rows are kept.
        max_bytes: How large the file may grow before the oldest audit rows go.
        clock: The store's time, instead of the machine's own.
        wall: Wall-clock time, for the audit.

    Raises:
        StoreUnavailable: The file cannot be made, is no database, lies on a network file system, was written by a later
            program, or another machine has it.
    """

    restless = False
    warnings: tuple[str, ...] = ()

    def __init__(
        self,
        path: Path,
        *,
        timeout_ms: int = 250,
        durability: str = "normal",
        keep_us: int = 30 * 86400 * 1_000_000,
        max_bytes: int = 256 * 1024 * 1024,
        clock: Clock | None = None,
        wall: Clock = wall_us,
    ) -> None:
        self.path = path
        self._timeout_s = timeout_ms / 1000
        self._upkeep = Upkeep(path, keep_us=keep_us, max_bytes=max_bytes)
        self._wall = wall
        self._states: dict[int, State] = {}
        self._seen: dict[int, State] = {}
        self._fragments: set[int] = set()
        self._version = -1
        with contextlib.ExitStack() as undo, _reported(path):
            private_folder(path.parent)
            refuse_network(path.parent)
            self._queue = QueueLock(path.with_name(path.name + "-queue"))
            undo.callback(self._queue.close)
            self._hold = SharedHold(path.with_name(path.name + "-clock"))
            undo.callback(self._hold.close)
            if not self._queue.acquire_by_trying(OPEN_TIMEOUT_S):
                raise StoreUnavailable(f"{path} is locked by another process", "end the process that holds it")
            try:
                self._db = self._connect(durability)
                self._execute = self._db.execute
                undo.callback(self._db.close)
                check_pages(self._db, path)
                migrate(self._db, path=str(path))
                self._hold.mark()
                self.args_key = self._own_key()
                self._clock = clock or self._time_base()
                self._hold.share()
                self._identity = _identity(path)
                self._size = size_bytes(path)
            finally:
                self._queue.release()
            undo.pop_all()

    def _connect(self, durability: str) -> sqlite3.Connection:
        if self.path.exists():
            check_file(self.path, made=self._hold.is_marked)
        else:
            os.close(open_private(self.path))  # the log and the shared memory take their modes from it
        db = sqlite3.connect(
            self.path, timeout=self._timeout_s / 5, isolation_level=None, check_same_thread=False, cached_statements=64
        )
        try:
            db.execute(f"PRAGMA page_size = {PAGE_BYTES}")
            db.execute("PRAGMA journal_mode = WAL")
            db.execute(f"PRAGMA synchronous = {'FULL' if durability == 'full' else 'NORMAL'}")
            db.execute("PRAGMA wal_autocheckpoint = 0")
        except BaseException:
            db.close()
            raise
        return db

    def _own_key(self) -> bytes:
        self._db.execute("INSERT OR IGNORE INTO meta VALUES ('args_key', ?)", (os.urandom(32),))
        return bytes(self._db.execute("SELECT value FROM meta WHERE key = 'args_key'").fetchone()[0])

    def _time_base(self) -> Clock:
        """The machine's clock plus an offset that all who share the file agree on, and that never lets it run backwards."""
        mine = clock.base_id()
        found = dict(self._db.execute("SELECT key, value FROM meta WHERE key IN ('time_base', 'time_offset_us')").fetchall())
        if found.get("time_base") != mine:
            if not self._hold.alone():
                raise StoreUnavailable(
                    f"{self.path} is in use by another machine, or by a container with a clock of its own",
                    "counters that machines share belong into Redis; here, name a file of its own with --store",
                )
            latest = self._db.execute("SELECT max(last_us) FROM state").fetchone()[0] or 0
            offset_us = max(self._wall(), latest) - clock.boot_us()
            found = {"time_base": mine, "time_offset_us": offset_us}
            self._db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", list(found.items()))
        offset = int(found["time_offset_us"])
        return lambda: clock.boot_us() + offset

    def decide(self, charges: Sequence[Charge], journal: Journal) -> list[Verdict]:
        """See `Store`."""
        rows: list[Row] | None = None
        try:
            with _Transaction(self):
                self._read(charges)
                states = {counter.id: self._states[counter.id] for charge in charges for counter in charge.plan.counters}
                verdicts, changed = decide_all(charges, states, self._clock())
                rows = journal.rows(charges, verdicts, self._wall())
                if changed:
                    self._write(changed, states)
                places = iter([self._insert(row) for row in rows])
                for one in verdicts:
                    if one.news:
                        one.row = next(places)
        except BaseException:  # a commit can fail, too
            if rows is not None:
                journal.take_back()
            raise
        self._states |= states
        return verdicts

    def append(self, rows: Sequence[Row]) -> list[int]:
        """See `Store`."""
        with _Transaction(self):
            return [self._insert(row) for row in rows]

    def record(self, outcomes: Sequence[Outcome]) -> None:
        """See `Store`."""
        for at in range(0, len(outcomes), _BATCH):
            with _Transaction(self):
                self._db.executemany("INSERT OR IGNORE INTO outcome VALUES (?, ?, ?)", outcomes[at : at + _BATCH])

    def begin(self) -> None:
        """Take a turn and begin a transaction; what others have written since is then no longer remembered."""
        if not self._queue.acquire(self._timeout_s * 0.8):
            raise StoreUnavailable(f"{self.path} did not come free in time", "another process holds its lock")
        try:
            self._execute("BEGIN IMMEDIATE")
            version = self._execute("PRAGMA data_version").fetchone()[0]
        except BaseException:
            self._queue.release()
            raise
        if version != self._version:
            self._forget()
            self._version = version

    def end(self, *, commit: bool) -> None:
        """Commit, or undo, and let the next one go."""
        try:
            if commit:
                self._execute("COMMIT")
                return
        except BaseException:
            self._undo()
            raise
        finally:
            self._queue.release()
        self._undo()

    def _undo(self) -> None:
        self._forget()
        with contextlib.suppress(sqlite3.Error):
            self._execute("ROLLBACK")

    def _forget(self) -> None:
        if len(self._seen) > _REMEMBERED:
            self._seen.clear()
        self._seen |= self._states
        self._states.clear()
        self._fragments.clear()

    def _read(self, charges: Sequence[Charge]) -> None:
        unknown = {counter.id for charge in charges for counter in charge.plan.counters if counter.id not in self._states}
        if not unknown:
            return
        if len(self._states) > _REMEMBERED:
            self._forget()
            self._read(charges)
            return
        self._states.update(dict.fromkeys(unknown, limiter.EMPTY))
        ids = list(unknown)
        for at in range(0, len(ids), _BATCH):
            some = ids[at : at + _BATCH]
            marks = ",".join("?" * len(some))
            for key, log in self._db.execute(f"SELECT id, log FROM state WHERE id IN ({marks})", some):  # noqa: S608
                self._states[key] = unpack(log)

    def _write(self, changed: dict[int, Counter], states: dict[int, State]) -> None:
        for counter in changed.values():
            if counter.id not in self._fragments:
                self._fragments.add(counter.id)
                self._db.execute("INSERT OR IGNORE INTO counter VALUES (?, ?, ?)", counter)
        values: list[object] = []
        for key in changed:
            state = states[key]
            values += (key, state[-2], pack(state))
        if len(values) <= 3 * _BATCH // 10:
            self._execute(_upsert(len(changed)), values)
        else:
            self._db.executemany(_upsert(1), list(zip(*[iter(values)] * 3, strict=True)))

    def _insert(self, row: Row) -> int:
        context = self._fragment(row.context)
        reported = None if row.reported is None else self._fragment(row.reported)
        place = self._execute(_INSERT, (*row[:3], context, reported, *row[5:])).lastrowid
        return place or 0

    def _fragment(self, text: str) -> int:
        key = _fragment_id(text)
        if key not in self._fragments:
            if len(self._fragments) > _REMEMBERED:
                self._fragments.clear()
            self._db.execute("INSERT OR IGNORE INTO fragment VALUES (?, ?)", (key, text))
            self._fragments.add(key)
        return key

    def last_seen(self) -> tuple[dict[int, State], int]:
        """See `Store`."""
        return self._seen | self._states, self._clock()

    def adopt(self, logs: Sequence[tuple[Counter, State]]) -> None:
        """See `Store`."""
        states: dict[int, State] = {}
        with _Transaction(self):
            now_us = self._clock()
            for counter, log in logs:
                found = self._execute("SELECT log FROM state WHERE id = ?", (counter.id,)).fetchone()
                before = unpack(found[0]) if found else limiter.EMPTY
                states[counter.id] = limiter.merge(before, limiter.shift(log, now_us), counter.window_us)
                self._write({counter.id: counter}, states)
        self._states |= states

    def entries(self, *, after: int = 0) -> Iterator[Entry]:
        """See `Store`."""
        while True:
            with _reported(self.path):
                found = self._db.execute(f"{_SELECT} WHERE a.id > ? ORDER BY a.id LIMIT {_BATCH}", (after,)).fetchall()
            yield from map(_entry, found)
            if not found:
                return
            after = found[-1][0]

    def newest(self) -> Iterator[Entry]:
        """See `Store`."""
        before = 1 << 62
        while True:
            with _reported(self.path):
                found = self._db.execute(f"{_SELECT} WHERE a.id < ? ORDER BY a.id DESC LIMIT {_BATCH}", (before,)).fetchall()
            yield from map(_entry, found)
            if not found:
                return
            before = found[-1][0]

    def held(self) -> list[Held]:
        """See `Store`."""
        now_us = self._clock()
        with _reported(self.path):
            found = self._db.execute("SELECT label, window_us, log FROM state JOIN counter USING (id)").fetchall()
        logs = [(label, limiter.live(unpack(log), window_us, now_us)) for label, window_us, log in found]
        return [Held(label, limiter.used(log)) for label, log in logs if log]

    def reset(self, labels: Sequence[str]) -> int:
        """See `Store`."""
        gone = 0
        with _Transaction(self):
            for label in labels:
                gone += self._execute("DELETE FROM state WHERE id = ?", (counter_id(label),)).rowcount
            self._forget()
        return gone

    def tend(self) -> None:
        """See `Store`. Copies the log back, and once a minute lets go of what is too old or too much."""
        with _reported(self.path):
            if self._identity != _identity(self.path):
                raise StoreUnavailable(f"{self.path} was removed or replaced", "its counters went with it")
            size, self._size = self._size, size_bytes(self.path)
            if self._size < size:
                raise damaged(self.path, "it has become shorter")
            self._upkeep.tend(now_us=self._clock(), wall_us=self._wall())

    def close(self) -> None:
        """See `Store`."""
        with contextlib.suppress(sqlite3.Error):
            self._db.close()
        self._queue.close()
        self._hold.close()


class _Transaction:
    """A turn in the queue and a transaction in it. A class, since a generator costs a call two microseconds more."""

    __slots__ = ("_store",)

    def __init__(self, store: SqliteStore) -> None:
        self._store = store

    def __enter__(self) -> None:
        try:
            self._store.begin()
        except (sqlite3.Error, OSError) as error:
            raise _unavailable(self._store.path, error) from error

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        try:
            self._store.end(commit=kind is None)
        except (sqlite3.Error, OSError) as failure:
            raise _unavailable(self._store.path, failure) from failure
        if isinstance(error, sqlite3.Error | OSError):
            raise _unavailable(self._store.path, error) from error


@contextlib.contextmanager
def _reported(path: Path) -> Iterator[None]:
    """Failures of the database and the system, as what the user can be told."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise _unavailable(path, error) from error


def _unavailable(path: Path, error: sqlite3.Error | OSError) -> StoreUnavailable:
    if isinstance(error, OSError):
        what = f"{error.filename or path} cannot be used: {error.strerror or error}"
        return StoreUnavailable(what, "name another place with MCPGUARD_HOME or --store")
    words = str(error)
    if "malformed" in words or "not a database" in words:
        return damaged(path, words)
    if "locked" in words:
        return StoreUnavailable(f"{path} cannot be used: {words}", "another program holds its lock")
    return StoreUnavailable(f"{path} cannot be used: {words}", "is its disk full, or the file read-only?")


def _identity(path: Path) -> tuple[int, int]:
    """What tells a file from another that has taken its place."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return (0, 0)
    return (stat.st_dev, stat.st_ino)


def pack(state: State) -> bytes:
    """A log as it is stored: little-endian, 8 bytes for when its newest entry was opened, 12 for each entry."""
    return _layout(len(state) // 2).pack(*state)


def unpack(log: bytes) -> State:
    """A log from its stored form.

    >>> unpack(pack((5, 1, 2, 5, 9)))
    (5, 1, 2, 5, 9)
    """
    return _layout((len(log) - 8) // 12).unpack(log)


@lru_cache(maxsize=256)
def _layout(entries: int) -> struct.Struct:
    return struct.Struct("<q" + "qI" * entries)


@lru_cache(maxsize=64)
def _upsert(rows: int) -> str:
    return f"INSERT OR REPLACE INTO state VALUES {','.join(['(?, ?, ?)'] * rows)}"  # noqa: S608 - marks only


@lru_cache(maxsize=4096)
def _fragment_id(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest()) >> 1


def _entry(found: tuple[object, ...]) -> Entry:
    place, *values, outcome, duration_us = found
    return Entry(place, record(Row(*values), outcome=outcome, duration_us=duration_us))  # type: ignore[arg-type]
