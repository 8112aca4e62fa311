"""One process at the call log: the counters in its memory, as of a position of the log, and how fast it fills the log.

It follows the log: it reads the records that others have appended, and appends its own in its turn.
"""

import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from mcpguard.errors import StoreUnavailable
from mcpguard.stores.sqlite import call_log, database
from mcpguard.stores.sqlite.call_log import CallLog, Lost, damaged
from mcpguard.stores.sqlite.log_lines import record
from mcpguard.stores.sqlite.log_records import pack
from mcpguard.stores.sqlite.opening import Files
from mcpguard.stores.sqlite.upkeep import Upkeep

TURN_SHARE: Final = 0.8
"""The share of its timeout that a call may wait for its turn."""

CHUNKS_IN_TURN: Final = 8
"""How much of the log is read in a turn, in chunks of about 15 records. While a process reads more, others may take turns."""

READ_AHEAD_CALLS: Final = 100
"""How many calls read the log before their turns, too, after there were records of others."""

PACE_BYTES: Final = 32 * 1024
"""A process checks how full the log is each time that it has appended this much: about 60 single calls."""

SLOW_S: Final = 2.0
"""A process that takes longer than this from one check to the next never waits: it does not fill the log."""

CROWDED_SHARE: Final = 1 / 2
"""When more than this share of the log waits for the database, the log is crowded. The fuller it is, the longer a process waits
before it takes more calls, and the sooner it checks again. So a process with many calls waits most, and upkeep can work."""

LONGEST_WAIT_S: Final = 0.25
"""The longest wait before a process takes more calls, however long the timeout is."""

LOOK_EVERY_S: Final = 0.005
"""How often a process that waits for the database checks how far it is."""

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
        self._read_ahead_calls = 0  # how many of the next calls read ahead

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
            reads_log: Whether to read the log although others have not appended anything for long.

        Raises:
            StoreUnavailable: The log or the database cannot be read.
        """
        self.memory.make_room(self.clock)
        if reads_log or self._read_ahead_calls:
            self._read_ahead()

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
                if self._log.folder.may_have_changed():
                    self._log.check()
                if self._log.ends_at(self.at):
                    return
                self._read_ahead_calls = READ_AHEAD_CALLS
                if self._follow_in_turn(all_of_it=not tries_left):
                    return
            except BaseException as error:
                self.turn_lock.release()
                if isinstance(error, (sqlite3.Error, OSError)):
                    raise database.unavailable(self._path, error) from error
                raise
            self.turn_lock.release()
            with database.reported(self._path):
                self.follow()  # it may be long, or need the database

    def _read_ahead(self) -> None:
        """Read the records that others have appended. Their calls go on meanwhile, and the turn is shorter."""
        self._read_ahead_calls = max(0, self._read_ahead_calls - 1)
        try:  # not `database.reported`: it is on the path of calls
            if not self._log.ends_at(self.at):
                self._read_ahead_calls = READ_AHEAD_CALLS
                self._read_chunks()
        except (sqlite3.Error, OSError) as error:
            raise database.unavailable(self._path, error) from error

    def _follow_in_turn(self, *, all_of_it: bool) -> bool:
        """Read the records that others have appended. Returns False if that takes so long that others must not wait for it."""
        if all_of_it:
            self.follow()
            return True
        return self._read_chunks()

    def _read_chunks(self) -> bool:
        """Read at most `CHUNKS_IN_TURN`. Returns whether the end of the log was reached."""
        try:
            for _ in range(CHUNKS_IN_TURN):
                self.at, may_have_more = self.memory.read_some(self._log, self.at)
                if not may_have_more:
                    return True
        except Lost:
            pass
        return False

    def follow(self) -> None:
        """Read the records that others have appended."""
        for _ in range(_TRIES):
            try:
                may_have_more = True
                while may_have_more:
                    self.at, may_have_more = self.memory.read_some(self._log, self.at)
            except Lost:
                self._log.check()
                self._reload()
            else:
                return
        raise damaged(self._log.path, "it does not continue where the database is")

    def follow_some(self) -> bool:
        """Read some of the records that others have appended, for less than a millisecond; returns whether there are more."""
        try:
            self.at, may_have_more = self.memory.read_some(self._log, self.at)
        except Lost:
            self.follow()
            return False
        self.prepare()
        return may_have_more

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


class Pace:
    """How fast one process fills the log.

    Args:
        log: The call log.
        follower: This process.
        upkeep: The store's upkeep, which drains the log.
        timeout_s: How long to wait for the database at most.

    Attributes:
        next_check_bytes: `keep` does something only if the process has appended more than this.
    """

    def __init__(self, log: CallLog, follower: Follower, upkeep: Upkeep, *, timeout_s: float) -> None:
        self._log = log
        self._follower = follower
        self._upkeep = upkeep
        self._timeout_s = timeout_s
        self.next_check_bytes = log.appended_bytes + PACE_BYTES
        self._checked_s = time.monotonic()

    def keep(self, hurry: Callable[[], None]) -> None:
        """Wait for a moment if the log is crowded, unless this process is slow, or could not write the database itself.

        Args:
            hurry: Called before the wait, to start upkeep.

        Raises:
            StoreUnavailable, OSError: The log cannot be read.
        """
        is_slow = time.monotonic() - self._checked_s > SLOW_S
        crowding = 0.0 if is_slow or self._upkeep.is_failing else self._crowding()
        if crowding:
            hurry()
            with self._upkeep.awaited():
                longest_s = min(self._timeout_s, LONGEST_WAIT_S)
                time.sleep(longest_s * crowding**0.5)  # a root, to slow processes down as soon as it is crowded
        self.next_check_bytes = self._log.appended_bytes + round(PACE_BYTES * (1 - crowding))
        self._checked_s = time.monotonic()

    def _crowding(self) -> float:
        """From 0, the log is not crowded, to 1, it is full."""
        waiting_share = (self._follower.at.end - self._log.drained().end) / call_log.RING_BYTES
        return max(0.0, (waiting_share - CROWDED_SHARE) / (1 - CROWDED_SHARE))

    def await_drained(self, end: int) -> None:
        """Wait until the database has the log up to a position, for at most the timeout."""
        until_s = time.monotonic() + self._timeout_s
        with self._upkeep.awaited():
            while self._log.drained().end < end and time.monotonic() < until_s:
                time.sleep(LOOK_EVERY_S)
