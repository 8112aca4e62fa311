"""Opens a store's files, makes what is missing, and sees that they belong together."""

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from mcpguard.errors import StoreUnavailable
from mcpguard.files import open_private, private_folder
from mcpguard.stores import clock
from mcpguard.stores.api import Clock
from mcpguard.stores.filesystem import refuse_network
from mcpguard.stores.locks import QueueLock, SharedHold, lock_file
from mcpguard.stores.sqlite import call_log, database, integrity
from mcpguard.stores.sqlite.call_log import CallLog, Lost, Position, beside, log_path
from mcpguard.stores.sqlite.memory import Memory
from mcpguard.stores.sqlite.reader import Reader
from mcpguard.stores.sqlite.schema import migrate

OPEN_TIMEOUT_S: Final = 2.0
"""How long opening waits, at least, for others that open the store or do its upkeep; no call waits for it."""

_ROWS_SKIPPED: Final = call_log.RING_BYTES
"""How many row numbers are left out after a log that is gone: more than it can have held, so that none is used twice."""


class Files(NamedTuple):
    """A store's open files.

    Attributes:
        path: The database.
        identity: What tells it from another file in its place.
        log: The call log.
        turn: The lock on the call log, which is not held.
        lock: The store's lock, which is not held.
        hold: Tells others that somebody has the store open.
        reader: Reads log and database, and tells the store's time.
        memory: The store's counters and notes, and
        at: the log's position that they are at.
        warnings: What the store's owner should know, a line each.
    """

    path: Path
    identity: tuple[int, int]
    log: CallLog
    turn: QueueLock
    lock: QueueLock
    hold: SharedHold
    reader: Reader
    memory: Memory
    at: Position
    warnings: tuple[str, ...]

    def check_database(self) -> None:
        """Look whether the path still names the database.

        Raises:
            StoreUnavailable: It does not.
        """
        if self.identity != integrity.identity(self.path):
            raise StoreUnavailable(f"{self.path} was removed or replaced", "its counters went with it")

    def close(self) -> None:
        """Close all of them."""
        self.reader.close()
        self.turn.close()
        self.log.close()
        self.hold.close()
        self.lock.close()


def open_files(path: Path, *, timeout_s: float, own_clock: Clock | None, wall: Clock) -> Files:
    """Open a store's files.

    Args:
        path: The database; it and its folder are made if they are missing, with modes 0600 and 0700.
        timeout_s: How long to wait for others, at least.
        own_clock: The store's time, instead of the machine's.
        wall: Wall-clock time.

    Raises:
        StoreUnavailable: As `SqliteStore` says.
    """
    with contextlib.ExitStack() as undo, database.reported(path):
        private_folder(path.parent)
        refuse_network(path.parent)
        if path.is_dir():
            raise StoreUnavailable(f"{path} is a folder", f"name a file in it, such as {path / 'mcpguard.db'}")
        lock = lock_file(beside(path, "-lock"))
        undo.callback(lock.close)
        hold = SharedHold(beside(path, "-open"))
        undo.callback(hold.close)
        if not lock.acquire_by_trying(max(OPEN_TIMEOUT_S, timeout_s)):
            raise StoreUnavailable(f"{path} is locked by another process", "end the process that holds it")
        try:
            warnings: list[str] = []
            with contextlib.closing(_database(path)) as db:
                log = _call_log(path, db, warnings)
                undo.callback(log.close)
                _agree(path, db, log, hold, warnings)
            reader = Reader(path, log, timeout_s=timeout_s)
            undo.callback(reader.close)
            memory, at = reader.memory()
            turn = log.turn()
            undo.callback(turn.close)
            with _held(turn, log, max(OPEN_TIMEOUT_S, timeout_s)):
                for text, after in log.records(at):
                    memory.apply(text)
                    at = after
            reader.clock = own_clock or _time_base(path, log, hold, max(memory.latest_us(), reader.latest_us()), wall)
            hold.share()
        finally:
            lock.release()
        undo.pop_all()
        return Files(path, integrity.identity(path), log, turn, lock, hold, reader, memory, at, tuple(warnings))


@contextlib.contextmanager
def _held(turn: QueueLock, log: CallLog, timeout_s: float) -> Iterator[None]:
    """A turn on the call log: a store whose log another process holds, and does not let go, cannot be used."""
    if not turn.acquire_by_trying(timeout_s):
        raise StoreUnavailable(f"{log.path} is locked by another process", "end the process that holds it")
    try:
        yield
    finally:
        turn.release()


def _database(path: Path) -> sqlite3.Connection:
    """The database; it is made if it is missing. One that is empty was cut, if there is a log of it."""
    if not path.exists():
        os.close(open_private(path))
        is_new = True
    else:
        is_new = not path.stat().st_size and not log_path(path).exists()
    db = database.connect(path, mode="rw", timeout_s=OPEN_TIMEOUT_S)
    try:
        if not is_new:
            integrity.check_pages(db, path)
        migrate(db, path=str(path))
    except BaseException:
        db.close()
        raise
    return db


def _call_log(path: Path, db: sqlite3.Connection, warnings: list[str]) -> CallLog:
    """The call log; it is made if it is missing."""
    beside = log_path(path)
    if not beside.exists():
        key, at = database.key(db), call_log.START
        if key is not None:
            warnings.append(f"{beside} was removed: calls that only it held are counted and audited no more")
            at = at._replace(row=database.position(db).row + _ROWS_SKIPPED)
        with database.writing(db):  # first: who ends between the two leaves no log that the database is not at
            database.set_position(db, at)
        call_log.create(beside, {"format": call_log.FORMAT, "key": (key or os.urandom(32)).hex()}, at)
    return CallLog(beside)


def _agree(path: Path, db: sqlite3.Connection, log: CallLog, hold: SharedHold, warnings: list[str]) -> None:
    """See that log and database belong together, and that the log continues where the database is."""
    key = database.key(db)
    if key is None:  # the database is new: it takes over what the log has
        with database.writing(db):
            database.set_key(db, log.key)
            database.set_position(db, log.drained())
        return
    if key != log.key:
        hint = f"put the database that it belongs to back, or move {log.path.name} away"
        raise StoreUnavailable(f"{log.path} belongs to another database than {path}", hint)
    at, drained = database.position(db), log.drained()
    if _continues(log, at):
        log.set_drained(at)
    elif drained.end > at.end and _continues(log, drained):
        warnings.append(f"{path} is older than its call log: what was counted and audited between them is lost")
        with database.writing(db):
            database.set_position(db, drained)
    elif hold.alone():
        warnings.append(f"{log.path} ends before its database does, as after a power cut: calls that only it held are lost")
        log.begin_at(at)
    else:
        raise call_log.damaged(log.path, "it does not continue where the database is")


def _continues(log: CallLog, at: Position) -> bool:
    """Whether the log has a position, as it has one that it was read up to."""
    try:
        log.has_more(at)
    except Lost:
        return False
    return True


def _time_base(path: Path, log: CallLog, hold: SharedHold, latest_us: int, wall: Clock) -> Clock:
    """The machine's clock plus an offset that all who share the store agree on, and that never lets it run backwards.

    After a restart of the machine the wall clock tells how long it was off. If it is wrong, windows end early, so that each
    limit admits at most once more what it allows, or late, by a window at most: time goes on from the newest charge.
    """
    header, mine = log.header, clock.base_id()
    if header.get("time_base") != mine:
        if "time_base" in header and not hold.alone():  # nobody counts by a log that has none: it was made just now
            raise StoreUnavailable(
                f"{path} is in use by another machine, or by a container with a clock of its own",
                "counters that machines share belong into Redis; here, name a file of its own with --store",
            )
        offset_us = max(wall(), latest_us) - clock.boot_us()
        header = {**header, "time_base": mine, "time_offset_us": offset_us}
        log.write_header(header)
    offset = int(str(header["time_offset_us"]))
    return lambda: clock.boot_us() + offset
