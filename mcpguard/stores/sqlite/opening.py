"""Opens a store's files, creates missing ones, and checks that they belong together."""

import _sqlite3 as sqlite3
import contextlib
import functools
import os
import time

from mcpguard.errors import StoreUnavailable
from mcpguard.files import is_there, open_private, private_folder, size_bytes
from mcpguard.light_typing import Final, NamedTuple
from mcpguard.locks import FileLock, lock_file
from mcpguard.stores import clock
from mcpguard.stores.api import Clock
from mcpguard.stores.filesystem import refuse_network
from mcpguard.stores.sqlite import call_log, database
from mcpguard.stores.sqlite.call_log import START, CallLog, Lost, beside, log_path
from mcpguard.stores.sqlite.follower import Follower
from mcpguard.stores.sqlite.reader import SqliteReader

OPEN_TIMEOUT_S: Final = 2.0
"""How long opening waits, at least, for processes that open the store or do upkeep. No call waits for it."""

JOIN_EVERY_S: Final = 0.02
"""How long a process waits for the store's lock until it tries again whether it can do without it."""

_ROWS_SKIPPED: Final = call_log.RING_BYTES
"""How many row ids are skipped after a call log was removed: more than it can have held, so that no id is used twice."""


class Files(NamedTuple):
    """A store's open files.

    Attributes:
        path: The database.
        log: The call log.
        lock: The store's lock; not held.
        hold: Held, shared, by every process that has the store open.
        reader: Reads log and database, and the store's time.
        follower: Follows the log.
        warnings: Messages for the store's owner.
    """

    path: str
    log: CallLog
    lock: FileLock
    hold: FileLock
    reader: SqliteReader
    follower: Follower
    warnings: tuple[str, ...]

    def close(self) -> None:
        """Close all of them."""
        self.reader.close()
        self.follower.turn_lock.close()
        self.log.close()
        self.hold.close()
        self.lock.close()


def open_files(path: str, *, timeout_s: float, own_clock: Clock | None, wall: Clock) -> Files:
    """Open a store's files. The store's lock is needed only to create or to repair something: upkeep often has it.

    Args:
        path: The database. It and its folder are created if they are missing, with modes 0600 and 0700.
        timeout_s: How long to wait for other processes, at least.
        own_clock: The store's time, instead of the machine's.
        wall: Wall-clock time.

    Raises:
        StoreUnavailable: As `SqliteStore` says.
    """
    with contextlib.ExitStack() as undo, database.reported(path):
        private_folder(os.path.dirname(path))
        refuse_network(os.path.dirname(path))
        if os.path.isdir(path):
            raise StoreUnavailable(f"{path} is a folder", f"name a file in it, such as {os.path.join(path, 'mcpguard.db')}")
        lock = lock_file(beside(path, "-lock"))
        undo.callback(lock.close)
        hold = lock_file(beside(path, "-open"))
        undo.callback(hold.close)
        join = functools.partial(_join, path, lock, hold, timeout_s=timeout_s, own_clock=own_clock)
        patience_s = max(OPEN_TIMEOUT_S, timeout_s)
        until_s = time.monotonic() + patience_s
        files, warnings = None, []
        while files is None:
            with contextlib.suppress(StoreUnavailable):
                files = join()
                break
            if lock.acquire(JOIN_EVERY_S):
                try:
                    warnings = _repair(path, hold, None if own_clock else wall, patience_s)
                    files = join()
                finally:
                    lock.release()
            elif time.monotonic() > until_s:
                raise locked(path)
        undo.pop_all()
        return files._replace(warnings=tuple(warnings))


def locked(path: str) -> StoreUnavailable:
    """The error for a store whose lock does not come free."""
    return StoreUnavailable(f"{path} is locked by another process", "end the process that holds it")


def _join(path: str, lock: FileLock, hold: FileLock, *, timeout_s: float, own_clock: Clock | None) -> Files:
    """Open a store of which nothing is left to create or to repair.

    A process with the store's lock may repair the store while no other process has it open. So `hold` is shared last.

    Raises:
        StoreUnavailable: It has to be repaired.
    """
    with contextlib.ExitStack() as undo, database.reported(path):
        log = CallLog(log_path(path))
        undo.callback(log.close)
        turn = log.turn()
        undo.callback(turn.close)
        drained_end = log.drained().end
        with database.readable(path) as db:
            database.check_pages(db, path)
            belongs = database.require_schema(db, path) == database.VERSION and database.key(db) == log.key
            memory, at = database.load(db), database.position(db)
        belongs = belongs and drained_end == at.end  # else upkeep is just moving it, or ended before both had the same
        reader = SqliteReader(path, log, timeout_s=timeout_s)
        undo.callback(reader.close)
        while found := log.some(at):
            memory.apply(text for text, _ in found)
            at = found[-1][1]
        is_of_this_boot = own_clock is not None or log.header.get("time_base") == clock.base_id()
        if not (belongs and is_of_this_boot and hold.share()):
            raise StoreUnavailable(f"{path} is being opened by another process")
        reader.clock = own_clock or functools.partial(clock.boot_us, int(str(log.header["time_offset_us"])))
        follower = Follower(log, turn, memory, at, clock=reader.clock, load=reader.memory, timeout_s=timeout_s)
        undo.pop_all()
        return Files(path, log, lock, hold, reader, follower, ())


def _repair(path: str, hold: FileLock, wall: Clock | None, timeout_s: float) -> list[str]:
    """Create what is missing, and mend what does not belong together. The caller has the store's lock.

    Args:
        path: The database.
        hold: Tells whether another process has the store open.
        wall: Wall-clock time; None if the store needs no time base.
        timeout_s: How long to wait for processes that read the database.

    Returns:
        Messages for the store's owner.
    """
    warnings: list[str] = []
    with contextlib.ExitStack() as opened:
        log = CallLog(log_path(path)) if is_there(log_path(path)) else None  # refused before anything is changed
        if log is not None:
            opened.callback(log.close)
        is_new = log is None and not size_bytes(path)  # an empty file beside a call log is damaged: it was truncated
        if not is_there(path):
            os.close(open_private(path))
            is_new = True
        db = opened.enter_context(contextlib.closing(database.connect(path, timeout_s=timeout_s)))
        if not is_new:
            database.check_pages(db, path)
            _refuse_another_log(path, db, log)
        database.migrate(db, path)
        if log is None:
            log = opened.enter_context(contextlib.closing(_new_log(path, db, warnings)))
        _agree(path, db, log, hold, warnings)
        if wall is not None:
            _begin_time(path, db, log, hold, wall)
    return warnings


def _refuse_another_log(path: str, db: sqlite3.Connection, log: CallLog | None) -> None:
    """Refuse a call log that belongs to another database."""
    if database.require_schema(db, path) and log is not None and database.key(db) not in {None, log.key}:
        hint = f"put the database that it belongs to back, or move {os.path.basename(log.path)} away"
        raise StoreUnavailable(f"{log.path} belongs to another database than {path}", hint)


def _new_log(path: str, db: sqlite3.Connection, warnings: list[str]) -> CallLog:
    """The call log, created because it is missing."""
    log_file, key, at = log_path(path), database.key(db), START
    if key is not None:
        warnings.append(call_log.removed(log_file))
        at = at._replace(row=database.position(db).row + _ROWS_SKIPPED)
    with database.writing(db):  # first, so that a crash between the two leaves no log with another position
        database.set_position(db, at)
    call_log.create(log_file, key or os.urandom(32), at)
    return CallLog(log_file)


def _agree(path: str, db: sqlite3.Connection, log: CallLog, hold: FileLock, warnings: list[str]) -> None:
    """Let the log continue at the database's position, or the database go on where the log does."""
    if database.key(db) is None:  # the database is new: it takes key and position from the log
        database.begin(db, log.key, log.drained())
        return
    at = database.position(db)
    resumed, warning = log.resumed(at, path)
    if resumed == at:
        log.set_drained(at)
    elif resumed is not None:
        with database.writing(db):
            database.set_position(db, resumed)
    elif hold.acquire(0):
        log.begin_at(at)
    else:
        raise Lost(log.path)
    warnings += filter(None, [warning])


def _begin_time(path: str, db: sqlite3.Connection, log: CallLog, hold: FileLock, wall: Clock) -> None:
    """Begin the store's time: the machine's boot clock plus an offset in the log's header. It never runs backwards.

    After a restart of the machine the wall clock says how long it was off. If the wall clock is ahead, windows end early, and
    each limit admits at most its N once more. If it is behind, time goes on from the newest charge, and windows end late by at
    most their length.
    """
    header, mine = log.header, clock.base_id()
    if header.get("time_base") == mine:
        return
    if "time_base" in header and not hold.acquire(0):  # a log without a time base was just created
        raise StoreUnavailable(
            f"{path} is in use by another machine, or by a container with a clock of its own",
            "name a file of its own with --store, or use Redis to share counters between machines",
        )
    memory = database.load(db)
    memory.apply(text for text, _ in log.records(database.position(db)))
    offset_us = max(wall(), memory.latest_us()) - clock.boot_us()
    log.write_header({**header, "time_base": mine, "time_offset_us": offset_us})
