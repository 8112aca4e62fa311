"""An open SQLite file: its connection, its key, its time, and turns on it."""

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from mcpguard.errors import StoreUnavailable
from mcpguard.stores import clock, counters
from mcpguard.stores.base import Clock
from mcpguard.stores.files import open_private, private_folder, refuse_network
from mcpguard.stores.integrity import check_file, check_pages, damaged, identity, let_go, size_bytes
from mcpguard.stores.migrations import migrate
from mcpguard.stores.queue import SharedHold, queue_of
from mcpguard.stores.upkeep import PAGE_BYTES

OPEN_TIMEOUT_S: Final = 2.0
"""How long opening waits, at least, for others that make, migrate or close the file; no call waits for it."""


class SqliteFile:
    """A file that is open.

    Args:
        path: The file; it and its folder are made if they are missing, with modes 0600 and 0700.
        timeout_s: How long a turn is waited for.
        durability: `full` or `normal`.
        own_clock: The store's time, instead of the machine's.
        wall: Wall-clock time.

    Raises:
        StoreUnavailable: As `SqliteStore` says.
    """

    def __init__(self, path: Path, *, timeout_s: float, durability: str, own_clock: Clock | None, wall: Clock) -> None:
        self.path = path
        self._timeout_s = timeout_s
        patience_s = max(OPEN_TIMEOUT_S, timeout_s)
        with contextlib.ExitStack() as undo, self.reported():
            private_folder(path.parent)
            refuse_network(path.parent)
            if path.is_dir():
                raise StoreUnavailable(f"{path} is a folder", f"name a file in it, such as {path / 'mcpguard.db'}")
            self.queue = queue_of(path)
            undo.callback(self.queue.close)
            self._hold = SharedHold(path.with_name(path.name + "-clock"))
            undo.callback(self._hold.close)
            if not self.queue.acquire_by_trying(patience_s):
                raise StoreUnavailable(f"{path} is locked by another process", "end the process that holds it")
            try:
                self.db = self._connect(patience_s)  # whoever closes it last keeps it locked for some time
                undo.callback(let_go, self.db, path)
                self.db.execute(f"PRAGMA page_size = {PAGE_BYTES}")
                self.db.execute("PRAGMA journal_mode = WAL")
                self.db.execute(f"PRAGMA synchronous = {'FULL' if durability == 'full' else 'NORMAL'}")
                self.db.execute("PRAGMA wal_autocheckpoint = 0")
                check_pages(self.db, path)
                migrate(self.db, path=str(path))
                self._hold.mark()
                self.args_key = self._own_key()
                self.clock = own_clock or self._time_base(wall)
                self._hold.share()
                self._identity = identity(path)
                self._size = size_bytes(path)
                self.db.execute(f"PRAGMA busy_timeout = {round(timeout_s * 200)}")  # beside the turn, a fifth of the budget
            finally:
                self.queue.release()
            undo.pop_all()

    def _connect(self, patience_s: float) -> sqlite3.Connection:
        if self.path.exists():
            check_file(self.path, made=self._hold.is_marked)
        else:
            os.close(open_private(self.path))  # the log and the shared memory take their modes from it
        return sqlite3.connect(
            self.path, timeout=patience_s, isolation_level=None, check_same_thread=False, cached_statements=64
        )

    def _own_key(self) -> bytes:
        self.db.execute("INSERT OR IGNORE INTO meta VALUES ('args_key', ?)", (os.urandom(32),))
        return bytes(self.db.execute("SELECT value FROM meta WHERE key = 'args_key'").fetchone()[0])

    def _time_base(self, wall: Clock) -> Clock:
        """The machine's clock plus an offset that all who share the file agree on, and that never lets it run backwards."""
        mine = clock.base_id()
        found = dict(self.db.execute("SELECT key, value FROM meta WHERE key IN ('time_base', 'time_offset_us')").fetchall())
        if found.get("time_base") != mine:
            if not self._hold.alone():
                raise StoreUnavailable(
                    f"{self.path} is in use by another machine, or by a container with a clock of its own",
                    "counters that machines share belong into Redis; here, name a file of its own with --store",
                )
            with self.writing():
                counters.fold(self.db)
                latest = self.db.execute("SELECT max(last_us) FROM snapshot").fetchone()[0] or 0
                offset_us = max(wall(), latest) - clock.boot_us()
                found = {"time_base": mine, "time_offset_us": offset_us}
                self.db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", list(found.items()))
        offset = int(found["time_offset_us"])
        return lambda: clock.boot_us() + offset

    def take_turn(self) -> None:
        """Wait for the queue lock, which keeps everybody else from writing until it is released.

        Raises:
            StoreUnavailable: It did not come in time.
        """
        try:
            if self.queue.acquire(self._timeout_s * 0.8):
                return
        except OSError as error:
            raise self.unavailable(error) from error
        raise StoreUnavailable(f"{self.path} did not come free in time", "another process holds its lock")

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """A transaction that writes. The caller has the turn."""
        self.db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.db.execute("COMMIT")
        except BaseException:  # a commit can fail, too
            with contextlib.suppress(sqlite3.Error):
                self.db.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """A transaction that reads, so that all that is read belongs together. Takes no turn."""
        with self.reported():
            self.db.execute("BEGIN")
            try:
                yield
            finally:
                self.db.execute("ROLLBACK")

    @contextlib.contextmanager
    def reported(self) -> Iterator[None]:
        """Turn failures of the database and the system into what the user can be told."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise self.unavailable(error) from error

    def unavailable(self, error: sqlite3.Error | OSError) -> StoreUnavailable:
        """What the user can be told of a failure."""
        if isinstance(error, OSError):
            what = f"{error.filename or self.path} cannot be used: {error.strerror or error}"
            return StoreUnavailable(what, "name another place with MCPGUARD_HOME or --store")
        words = str(error)
        if "malformed" in words or "not a database" in words:
            return damaged(self.path, words)
        if "locked" in words:
            return StoreUnavailable(f"{self.path} cannot be used: {words}", "another program holds its lock")
        return StoreUnavailable(f"{self.path} cannot be used: {words}", "is its disk full, or the file read-only?")

    def check_identity(self) -> None:
        """Look whether the path still names this file, and all of it.

        Raises:
            StoreUnavailable: It does not, or the file was cut.
        """
        with self.reported():
            if self._identity != identity(self.path):
                raise StoreUnavailable(f"{self.path} was removed or replaced", "its counters went with it")
            size, self._size = self._size, size_bytes(self.path)
            if self._size < size:
                raise damaged(self.path, "it has become shorter")

    def close(self) -> None:
        """Let go of everything."""
        let_go(self.db, self.path)
        self.queue.close()
        self._hold.close()
