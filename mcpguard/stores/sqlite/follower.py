"""What one process knows of a store: the counters in its memory, as of a position of the call log.

It follows the log: it reads the records that others have appended, and appends its own in its turn.
"""

import contextlib
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Final

from mcpguard.errors import StoreUnavailable
from mcpguard.limiter.plan import Counter
from mcpguard.limiter.sliding import EMPTY, State
from mcpguard.session.verdict import DecisionRequest, Ending
from mcpguard.stores.sqlite import database, log_lines
from mcpguard.stores.sqlite.call_log import Lost, damaged
from mcpguard.stores.sqlite.opening import Files

TURN_SHARE: Final = 0.8
"""The share of its timeout that a call may wait for its turn."""

CHUNKS_IN_TURN: Final = 8
"""How much of the log is read in a turn, in chunks of about 15 records. While a process reads more, others may take turns."""

READ_AHEAD_CALLS: Final = 100
"""How many calls read the log before their turns, too, after there were records of others."""

_TRIES: Final = 5
"""How often to start over if the log moves on while the database is read."""


class Follower:
    """A process that follows the call log.

    Args:
        path: The database.
        files: The store's files.
        timeout_s: How long a decision may take. It waits for its turn for a part of that.

    Attributes:
        memory: The counters that the process has read.
        at: The position up to which it has read the log.
        turn_lock: The lock on the log.
    """

    def __init__(self, path: str, files: Files, *, timeout_s: float) -> None:
        self.memory = files.memory
        self.at = files.at
        self.turn_lock = files.turn
        self._path = path
        self._log = files.log
        self._reader = files.reader
        self._timeout_s = timeout_s
        self._read_ahead_calls = 0  # how many of the next calls read ahead

    @contextlib.contextmanager
    def turn(self, calls: Collection[DecisionRequest | Ending] = ()) -> Iterator[None]:
        """Hold the lock on the call log, with every record read that others have appended.

        Args:
            calls: See `look_ahead`.

        Raises:
            StoreUnavailable: The lock did not come free in time, or the log is damaged.
        """
        self.make_room()
        self.look_ahead(calls)
        self.take_turn()
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise database.unavailable(self._path, error) from error
        finally:
            self.turn_lock.release()

    def make_room(self) -> None:
        """Drop counters if there are too many in memory: before a turn, so that others do not wait for that."""
        if self.memory.is_crowded():
            self.memory.make_room(self._reader.clock)

    def look_ahead(self, calls: Collection[DecisionRequest | Ending]) -> None:
        """Read what calls need of the database, and of the log, before their turn, so that others do not wait for that.

        Raises:
            StoreUnavailable: The log or the database cannot be read.
        """
        if self._unknown(calls):
            self._learn_ahead(calls)
        elif self._read_ahead_calls:
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
        self._read_ahead_calls -= 1
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
        self.make_room()
        return may_have_more

    def _reload(self) -> None:
        """Read the counters from the database again, because records that this process had not read yet were overwritten."""
        if self._log.drained().end <= self.at.end:
            raise damaged(self._log.path, "records that were not yet in the database were overwritten") from None
        self.memory, self.at = self._reader.memory()

    def append(self, groups: Sequence[str], *, uses_reserve: bool = False) -> None:
        """Append all groups of lines or none. A group is never split over two records. The caller has the turn."""
        if groups:
            self.at = self._log.append_all(self.at, log_lines.records(groups), uses_reserve=uses_reserve)

    def _learn_ahead(self, calls: Collection[DecisionRequest | Ending]) -> None:
        """Read the log and the database before the turn, so that others do not wait for that."""
        for _ in range(_TRIES):
            with contextlib.suppress(Lost), database.reported(self._path):
                self.follow()
                self.make_room()
                self._learn(calls)
                return

    def learn_in_turn(self, calls: Iterable[DecisionRequest | Ending]) -> None:
        """See `_learn`. The caller has the turn, so this process has read the log to its end."""
        try:
            self._learn(calls)
        except Lost:
            raise damaged(self._log.path, "its database is beyond it") from None

    def _learn(self, calls: Iterable[DecisionRequest | Ending]) -> None:
        """Read the counters of calls that are not in memory from the database.

        Raises:
            Lost: The database is beyond what this process has read of the log.
        """
        if unknown := self._unknown(calls):
            for key, log in zip(unknown, self._reader.logs(list(unknown), self.at), strict=True):
                self.memory.remember(key, unknown[key], log)

    def _unknown(self, calls: Iterable[DecisionRequest | Ending]) -> dict[int, int]:
        """Id and window in µs of those counters of calls that the database may have, and the memory does not."""
        memory = self.memory
        if memory.complete:
            return {}
        counters = (one for call in calls for one in call.plan.counters)
        return {one.id: one.window_us for one in counters if one.window_us and one.id not in memory.states}

    def states_of(self, counters: Sequence[Counter]) -> list[State]:
        """The states of counters: their logs, or the calls in flight."""
        states, in_flight = self.memory.states, self.memory.in_flight
        return [states.get(one.id, EMPTY) if one.window_us else in_flight.state(one.id) for one in counters]
