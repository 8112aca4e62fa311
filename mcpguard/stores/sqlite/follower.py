"""One process at the call log: the counters in its memory, as of a position of the log.

It follows the log: it reads the records that others have appended, and appends its own in its turn.
"""

import _sqlite3 as sqlite3
import contextlib
from collections.abc import Iterator, Sequence

from mcpguard.errors import StoreUnavailable
from mcpguard.light_typing import Final
from mcpguard.stores.sqlite import database
from mcpguard.stores.sqlite.call_log import Lost, damaged
from mcpguard.stores.sqlite.log_lines import record
from mcpguard.stores.sqlite.log_records import pack
from mcpguard.stores.sqlite.opening import Files

TURN_SHARE: Final = 0.8
"""The share of its timeout that a call may wait for its turn."""

CHUNKS_IN_TURN: Final = 8
"""How much of the log is read in a turn, in chunks of about 15 records. While a process reads more, others may take turns."""

_TRIES: Final = 5
"""How often to start over if the log moves on while the database is read."""


class Follower:
    """A process that follows the call log.

    Args:
        path: The database.
        files: The store's files.
        timeout_s: How long a decision may take. It waits for its turn for a part of that.
        most_counters: See `MOST_COUNTERS`.

    Attributes:
        memory: The counters that the process has read.
        at: The position up to which it has read the log.
        turn_lock: The lock on the log.
        clock: The store's time.
    """

    def __init__(self, path: str, files: Files, *, timeout_s: float, most_counters: int) -> None:
        self.memory = files.memory
        self.memory.most = most_counters
        self.at = files.at
        self.turn_lock = files.turn
        self._path = path
        self._log = files.log
        self._reader = files.reader
        self.clock = files.reader.clock
        self._timeout_s = timeout_s
        self._prepared_at = self.at
        self._has_company = False  # whether others have appended something before the last turn

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Hold the lock on the call log, with every record read that others have appended.

        Raises:
            StoreUnavailable: The lock did not come free in time, or the log is damaged.
        """
        self.prepare()
        self.take_turn()
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise database.unavailable(self._path, error) from error
        finally:
            self.turn_lock.release()

    def prepare(self, *, reads_log: bool = False) -> None:
        """Do what can be done before a turn, so that others do not wait for it: drop expired counters, and read the log.

        Args:
            reads_log: Whether to read the log although others appended nothing before the last turn.

        Raises:
            StoreUnavailable: The log or the database cannot be read.
        """
        self.memory.make_room(self.clock)
        self._prepared_at = self.at
        if reads_log or self._has_company:
            with database.reported(self._path):
                self._read_in_time()

    def take_turn(self) -> None:
        """Hold the lock on the call log as `turn` does. The caller releases `turn_lock`: so a call pays for no generator."""
        for tries_left in range(_TRIES, -1, -1):
            try:  # not `database.reported`: it is on the path of calls
                is_held = self.turn_lock.acquire(self._timeout_s * TURN_SHARE)
            except OSError as error:
                raise database.unavailable(self._path, error) from error
            if not is_held:
                raise StoreUnavailable(
                    f"{self._log.path} did not come free in time", "look for a stopped process that holds its lock"
                )
            try:
                self._log.check()
                if not tries_left:
                    self.follow()
                if self._log.ends_at(self.at) or self._read_in_time():
                    self._has_company = self.at is not self._prepared_at
                    return
            except BaseException as error:
                self.turn_lock.release()
                if isinstance(error, (sqlite3.Error, OSError)):
                    raise database.unavailable(self._path, error) from error
                raise
            self.turn_lock.release()
            with database.reported(self._path):
                self.follow()  # it may be long, or need the database

    def _read_in_time(self) -> bool:
        """Read records that others have appended. Returns False if that takes so long that others must not wait for it."""
        try:
            return self._read(CHUNKS_IN_TURN)
        except Lost:
            return False

    def _read(self, chunks: int) -> bool:
        """Read at most so many chunks of the log. Returns whether its end was reached."""
        for _ in range(chunks):
            self.at, may_have_more = self.memory.read_some(self._log, self.at)
            if not may_have_more:
                return True
        return False

    def follow(self) -> None:
        """Read the records that others have appended."""
        for _ in range(_TRIES):
            try:
                while not self._read(CHUNKS_IN_TURN):
                    pass
            except Lost:
                self._log.check()
                self._reload()
            else:
                return
        raise damaged(self._log.path, "it does not continue where the database is")

    def follow_some(self) -> bool:
        """Read some of the records that others have appended, for less than a millisecond; returns whether there are more."""
        try:
            is_end = self._read(1)
        except Lost:
            self.follow()
            return False
        self.memory.make_room(self.clock)
        return not is_end

    def _reload(self) -> None:
        """Read the counters from the database again, because records that this process had not read yet were overwritten."""
        if self._log.drained().end <= self.at.end:
            raise damaged(self._log.path, "records that were not yet in the database were overwritten") from None
        most = self.memory.most
        self.memory, self.at = self._reader.memory()
        self.memory.most = most

    def append(self, texts: Sequence[str]) -> None:
        """Append a record for each text, or none, also into the room that calls leave. The caller has the turn."""
        data, after = pack(self.at, map(record, texts))
        self._log.append(self.at, data, uses_reserve=True)
        self.at = after
