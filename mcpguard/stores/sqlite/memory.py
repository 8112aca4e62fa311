"""A process's copy of a store's counters and agent notes, kept up to date by the records of the call log.

A process that opens a store reads all counters from the database, and then follows the log. So it needs the database for no
decision: a counter that it does not have is empty.
"""

import contextlib
import itertools
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache

from mcpguard.errors import StoreUnavailable
from mcpguard.identity.client_agents import NOTE_KEPT_US
from mcpguard.light_typing import Final
from mcpguard.limiter import sliding
from mcpguard.limiter.plan import Counter
from mcpguard.limiter.sliding import EMPTY, State
from mcpguard.locks import FileLock
from mcpguard.stores.api import Clock
from mcpguard.stores.sqlite import call_log, log_lines
from mcpguard.stores.sqlite.call_log import CallLog, Lost, damaged
from mcpguard.stores.sqlite.log_records import Position, pack
from mcpguard.stores.sqlite.places import Place, calls_of

MOST_COUNTERS: Final = 65_536
"""The most counters that a store has. A usual one takes about 300 bytes, and 1.5 µs when a store is opened. Beyond it calls
that need another one are refused: counters that are in use are never forgotten."""

_CROWDED_SHARE: Final = 7 / 8
"""From this share of the most counters on, expired counters are looked for."""

_LOOKED_AT: Final = 256
"""Among how many counters, each time: a call may wait for that. So all are looked at before the store is full."""

TURN_SHARE: Final = 0.8
"""The share of its timeout that a call may wait for its turn."""

CHUNKS_IN_TURN: Final = 8
"""How much of the log is read in a turn, in chunks of about 15 records. Who has more to read lets others take turns."""

_TRIES: Final = 5
"""How often to start over if the log moves on while the database is read."""

_FOLLOWED: Final = frozenset(
    {log_lines.TAKEN, log_lines.FREED, log_lines.EMPTIED, log_lines.MERGED, log_lines.WRITTEN_BACK, call_log.NOTED}
)
"""The kinds of other lines that change counters or notes. What is left matters only to the audit."""


class Memory:
    """A store's counters and notes at one position of its log.

    Args:
        logs: Id, window in µs and log of each counter that is not empty.
        places: The places that calls in flight hold.

    Attributes:
        states: The logs, by counter id. A counter without a log is empty.
        windows: Their windows in µs.
        places: The places that calls in flight hold, see `places`.
        notes: Agent and wall-clock time of each note, by namespace and key.
        write_back_ids: The ids of write-backs that were counted, see `Recoverable.adopt`.
    """

    def __init__(self, logs: Iterable[tuple[int, int, State]] = (), places: Iterable[Place] = ()) -> None:
        self.states: dict[int, State] = {}
        self.windows: dict[int, int] = {}
        self.places = {place[:2]: place for place in places}
        self.notes: dict[tuple[str, str], tuple[str, int]] = {}
        self.write_back_ids: set[str] = set()
        for key, window_us, log in logs:
            self.states[key] = log
            self.windows[key] = window_us

    def apply(self, texts: Iterable[str]) -> None:
        """Make the changes of records."""
        for text in texts:
            for line in text.split("\n"):
                kind = line[0]
                if kind in log_lines.CHARGING:
                    self.take(kind, line.rsplit("\t", 2))
                elif kind in _FOLLOWED:
                    self.take(kind, line.split("\t"))

    def take(self, kind: str, fields: Sequence[str]) -> None:
        """Make the change of a line of this kind. Of one that may charge counters, only the last two fields are needed."""
        if kind in log_lines.CHARGING:
            if fields[-1]:
                self._charge(fields[-1], int(fields[-2]))
        elif kind == call_log.NOTED:
            self._take_note(fields)
        elif kind == log_lines.WRITTEN_BACK:
            self.write_back_ids.add(fields[1])
        elif kind == log_lines.MERGED:
            self._merge(*fields[1:])
        elif kind == log_lines.TAKEN:
            place = Place(int(fields[1]), int(fields[2]), *fields[3:])
            self.places[place[:2]] = place
        elif kind == log_lines.FREED:
            self.places.pop((int(fields[1]), int(fields[2])), None)
        else:
            emptied = int(fields[1])
            if emptied in self.states:
                self.states[emptied] = EMPTY
            self.places = {key: place for key, place in self.places.items() if place.counter_id != emptied}

    def _charge(self, charged: str, now_us: int) -> None:
        for key, window_us, n, cost in log_lines.read_charges(charged):
            log = sliding.live(self.states.get(key, EMPTY), window_us, now_us)
            self.states[key], self.windows[key] = sliding.charge(log, n, window_us, now_us, cost), window_us

    def _merge(self, counter_id: str, window: str, numbers: str, now: str) -> None:
        key, window_us, log = int(counter_id), int(window), tuple(map(int, numbers.split(",")))
        before = sliding.live(self.states.get(key, EMPTY), window_us, int(now))
        self.states[key], self.windows[key] = sliding.merge(before, log, window_us), window_us

    def _take_note(self, fields: Sequence[str]) -> None:
        """Take a note, or its removal. Of the others, the oldest are dropped once they have expired."""
        namespace, note, noted_us = call_log.read_note(fields)
        self.notes.pop((namespace, note.key), None)
        if note.text:
            self.notes[namespace, note.key] = (note.text, noted_us)
            for one in list(itertools.islice(self.notes, 2)):
                if abs(noted_us - self.notes[one][1]) > NOTE_KEPT_US:
                    del self.notes[one]

    def states_of(self, counters: Iterable[Counter]) -> list[State]:
        """The states of counters: their logs, or the calls in flight."""
        return [self.states.get(one.id, EMPTY) if one.window_us else calls_of(self.places, one.id) for one in counters]

    def latest_us(self) -> int:
        """The store time of the newest charge; 0 if there is none."""
        return max((log[-2] for log in self.states.values() if log), default=0)


class Follower:
    """One process at the call log. It reads the records that others have appended, and appends its own in its turn.

    Args:
        log: The log.
        turn_lock: The lock on it; not held.
        memory: The counters.
        at: The position up to which `memory` has all records.
        clock: The store's time.
        load: Reads counters and position from the database.
        timeout_s: How long a decision may take. It waits for its turn for a part of that.

    Attributes:
        memory: The counters that the process has read.
        at: The position up to which it has read the log.
        most_counters: See `MOST_COUNTERS`.
    """

    def __init__(
        self,
        log: CallLog,
        turn_lock: FileLock,
        memory: Memory,
        at: Position,
        *,
        clock: Clock,
        load: Callable[[], tuple[Memory, Position]],
        timeout_s: float,
    ) -> None:
        self.memory = memory
        self.at = at
        self.turn_lock = turn_lock
        self.clock = clock
        self.most_counters = MOST_COUNTERS
        self._log = log
        self._load = load
        self._timeout_s = timeout_s
        self._prepared_at = at
        self._has_company = False  # whether others have appended something before the last turn

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Hold the lock on the call log, with every record read that others have appended.

        Raises:
            OSError, sqlite3.Error: The log or the database cannot be read.
            StoreUnavailable: The lock did not come free in time, or the log is damaged.
        """
        self.prepare()
        self.take_turn()
        try:
            yield
        finally:
            self.turn_lock.release()

    def prepare(self) -> None:
        """Do what can be done before a turn, so that others do not wait for it: drop expired counters, and read the log.

        The log is read if others have appended something before the last turn; and if there are places, so that no dead process
        is examined whose places others have freed.
        """
        if len(self.memory.states) > self.most_counters * _CROWDED_SHARE:
            self.make_room()
        self._prepared_at = self.at
        if self._has_company or self.memory.places:
            self.follow()

    def take_turn(self) -> None:
        """Hold the lock on the call log as `turn` does. The caller releases `turn_lock`: so a call pays for no generator."""
        for tries_left in range(_TRIES, -1, -1):
            if not self.turn_lock.acquire(self._timeout_s * TURN_SHARE):
                raise StoreUnavailable(
                    f"{self._log.path} did not come free in time", "look for a stopped process that holds its lock"
                )
            try:
                if self._log.folder.may_have_changed():
                    self._log.check()
                if not tries_left:
                    self.follow()  # others always have appended much
                if not tries_left or self._log.ends_at(self.at) or self._reads_all():
                    self._has_company = self.at is not self._prepared_at
                    return
            except BaseException as error:
                self.turn_lock.release()
                if not isinstance(error, Lost) or not tries_left:
                    raise
            else:
                self.turn_lock.release()
            self.follow()  # it is long, or needs the database: others must not wait for that

    def _reads_all(self) -> bool:
        """Read what others have appended, unless it is so much that others must not wait. Returns whether all of it is read."""
        return any(not self._read_some() or self._log.ends_at(self.at) for _ in range(CHUNKS_IN_TURN))

    def follow(self) -> None:
        """Read the records that others have appended."""
        for _ in range(_TRIES):
            try:
                while self._read_some():
                    pass
            except Lost:
                self._log.check()
                self._reload()
            else:
                return
        raise Lost(self._log.path)

    def follow_some(self) -> bool:
        """Read some of the records that others have appended, for less than a millisecond; returns whether there are more."""
        self.make_room()
        try:
            return self._read_some() and not self._log.ends_at(self.at)
        except Lost:
            self.follow()
            return False

    def _read_some(self) -> bool:
        found = self._log.some(self.at)
        self.memory.apply([text for text, _ in found])
        if found:
            self.at = found[-1][1]
        return bool(found)

    def _reload(self) -> None:
        """Read the counters from the database again, because records that this process had not read yet were overwritten."""
        if self._log.drained().end <= self.at.end:
            raise damaged(self._log.path, "records that were not yet in the database were overwritten") from None
        self.memory, self.at = self._load()

    def append(self, texts: Sequence[str]) -> None:
        """Append a record for each text, or none, also into the room that calls leave. The caller has the turn."""
        data, after = pack(self.at, texts)
        self._log.append(self.at, data, uses_reserve=True)
        self.memory.apply(texts)
        self.at = after

    @property
    def is_full(self) -> bool:
        """Whether there must be no other counter."""
        return len(self.memory.states) >= self.most_counters

    def make_room(self) -> None:
        """Drop the counters that have expired among some: next time among others."""
        states, windows = self.memory.states, self.memory.windows
        now_us, excess = self.clock(), max(0, len(states) - self.most_counters)
        for key in list(itertools.islice(states, _LOOKED_AT + 2 * excess)):  # those that were looked at longest ago
            log = states.pop(key)
            if log and log[-2] > now_us - windows[key]:
                states[key] = log
            else:
                del windows[key]


_MAX_SUM: Final = (1 << 32) - 1


def pack_log(state: State) -> bytes:
    """A log in its stored form, little-endian: 8 bytes for the time of the newest entry's start, then 12 for each entry.

    A sum of costs that takes more than 4 bytes is above every limit, so it is cut.
    """
    layout = _layout(len(state) // 2)
    try:
        return layout.pack(*state)
    except struct.error:
        return layout.pack(*[min(value, _MAX_SUM) if at and not at % 2 else value for at, value in enumerate(state)])


def unpack_log(log: bytes) -> State:
    """A log from its stored form.

    >>> unpack_log(pack_log((5, 1, 2, 5, 9)))
    (5, 1, 2, 5, 9)
    """
    return _layout((len(log) - 8) // 12).unpack(log)


@lru_cache(maxsize=256)
def _layout(entries: int) -> struct.Struct:
    return struct.Struct("<q" + "qI" * entries)
