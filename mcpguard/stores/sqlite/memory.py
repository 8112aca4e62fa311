"""A process's copy of a store's counters and agent notes, kept up to date by the records of the call log.

A process that opens a store reads all counters from the database, and then follows the log. So it needs the database for no
decision: a counter that it does not have is empty.
"""

import itertools
import struct
from collections.abc import Iterable
from functools import lru_cache

from mcpguard.identity.client_agents import NOTE_KEPT_US
from mcpguard.light_typing import Final
from mcpguard.limiter import sliding
from mcpguard.limiter.plan import Counter
from mcpguard.limiter.sliding import EMPTY, State
from mcpguard.stores.api import Clock
from mcpguard.stores.sqlite import log_lines, notes
from mcpguard.stores.sqlite.call_log import CallLog
from mcpguard.stores.sqlite.in_flight import KINDS, InFlight, Place
from mcpguard.stores.sqlite.log_records import Change, Charges, Position

MOST_COUNTERS: Final = 65_536
"""The most counters that a store has. A usual one takes about 300 bytes, and 1.5 µs when a store is opened. Beyond it calls
that need another one are refused: counters that are in use are never forgotten."""

_CROWDED_SHARE: Final = 7 / 8
"""From this share of the most counters on, expired counters are looked for."""

_LOOKED_AT: Final = 256
"""Among how many counters, each time: a call may wait for that. So all are looked at before the store is full."""

LineChange = Charges | list[str]
"""A change of counters or notes: charges, or the fields of another line."""


class Memory:
    """A store's counters and notes at one position of its log.

    Args:
        logs: Id, window in µs and log of each counter that is not empty.
        places: The places that calls in flight hold.

    Attributes:
        most: The most counters.
        states: The logs, by counter id. A counter without a log is empty.
        windows: Their windows in µs.
        in_flight: The calls in flight.
        notes: Agent and wall-clock time of each note, by namespace and key.
        write_back_ids: The ids of write-backs that were counted, see `Recoverable.adopt`.
    """

    def __init__(self, logs: Iterable[tuple[int, int, State]] = (), places: Iterable[Place] = ()) -> None:
        self.most = MOST_COUNTERS
        self.states: dict[int, State] = {}
        self.windows: dict[int, int] = {}
        self.in_flight = InFlight(places)
        self.notes: dict[tuple[str, str], tuple[str, int]] = {}
        self.write_back_ids: set[str] = set()
        for key, window_us, log in logs:
            self.states[key] = log
            self.windows[key] = window_us

    def read_on(self, log: CallLog, at: Position) -> Position:
        """Apply the records of the log after a position. Returns the position after them.

        Raises:
            Lost: The log does not continue there.
        """
        may_have_more = True
        while may_have_more:
            at, may_have_more = self.read_some(log, at)
        return at

    def read_some(self, log: CallLog, at: Position) -> tuple[Position, bool]:
        """As `read_on`, but for a chunk of them; returns also whether there may be more."""
        changes, after, may_have_more = log.next_changes(at)
        self.apply(changes)
        return after, may_have_more

    def apply(self, changes: Iterable[Change]) -> None:
        """Make the changes of records."""
        for change in changes:
            for one in line_changes(change) if isinstance(change, str) else (change,):
                self.take(one)

    def take(self, change: LineChange) -> None:
        """Make a change."""
        if isinstance(change, tuple):
            self._charge(*change)
            return
        kind, *fields = change
        if kind == notes.NOTED:
            self._take_note(change)
        elif kind == log_lines.WRITTEN_BACK:
            self.write_back_ids.add(fields[0])
        elif kind == log_lines.MERGED:
            self._merge(*fields)
        else:
            if kind == log_lines.EMPTIED and int(fields[0]) in self.states:
                self.states[int(fields[0])] = EMPTY
            self.in_flight.follow(change)

    def _charge(self, charged: str, times_us: list[int]) -> None:
        for key, window_us, n, cost in log_lines.read_charges(charged):
            log = self.states.get(key, EMPTY)
            for now_us in times_us:
                log = sliding.charge(sliding.live(log, window_us, now_us), n, window_us, now_us, cost)
            self.states[key], self.windows[key] = log, window_us

    def _merge(self, counter_id: str, window: str, numbers: str, now: str = "") -> None:
        key, window_us, log = int(counter_id), int(window), tuple(map(int, numbers.split(",")))
        before = sliding.live(self.states.get(key, EMPTY), window_us, int(now or log[-2]))  # an earlier version wrote no time
        self.states[key], self.windows[key] = sliding.merge(before, log, window_us), window_us

    def _take_note(self, fields: list[str]) -> None:
        """Take a note, or its removal. Of the others, the oldest are dropped once they have expired."""
        namespace, note, noted_us = notes.read_note(fields)
        self.notes.pop((namespace, note.key), None)
        if note.text:
            self.notes[namespace, note.key] = (note.text, noted_us)
            for one in list(itertools.islice(self.notes, 2)):
                if abs(noted_us - self.notes[one][1]) > NOTE_KEPT_US:
                    del self.notes[one]

    def states_of(self, counters: Iterable[Counter]) -> list[State]:
        """The states of counters: their logs, or the calls in flight."""
        return [self.states.get(one.id, EMPTY) if one.window_us else self.in_flight.state(one.id) for one in counters]

    def latest_us(self) -> int:
        """The store time of the newest charge; 0 if there is none."""
        return max((log[-2] for log in self.states.values() if log), default=0)

    @property
    def is_full(self) -> bool:
        """Whether there must be no other counter."""
        return len(self.states) >= self.most

    def make_room(self, clock: Clock) -> None:
        """If there are many counters, drop those that have expired among some: next time among others.

        If there are few it takes next to no time.

        Args:
            clock: The store's time.
        """
        if len(self.states) < self.most * _CROWDED_SHARE:
            return
        now_us, excess = clock(), max(0, len(self.states) - self.most)
        for key in list(itertools.islice(self.states, _LOOKED_AT + 2 * excess)):  # those that were looked at longest ago
            log = self.states.pop(key)
            if log and log[-2] > now_us - self.windows[key]:
                self.states[key] = log
            else:
                del self.windows[key]


_FOLLOWED: Final = KINDS | {log_lines.MERGED, notes.NOTED, log_lines.WRITTEN_BACK}
_CHARGING: Final = frozenset({log_lines.ROW, log_lines.CHARGED})


def line_changes(text: str) -> list[LineChange]:
    """What the lines of a record change. Lines that matter only to the audit are left out."""
    found: list[LineChange] = []
    for line in text.split("\n"):
        kind = line[0]
        if kind in _CHARGING:
            _, charged_us, charged = line.rsplit("\t", 2)
            if charged:
                found.append((charged, [int(charged_us)]))
        elif kind in _FOLLOWED:
            found.append(line.split("\t"))
    return found


def changed(changes: Iterable[LineChange]) -> set[int]:
    """The ids of the counters whose logs are changed."""
    texts: set[str] = set()
    ids: set[int] = set()
    for one in changes:
        if isinstance(one, tuple):
            texts.add(one[0])
        elif one[0] in {log_lines.MERGED, log_lines.EMPTIED}:
            ids.add(int(one[1]))
    return ids.union(key for text in texts for key, *_ in log_lines.read_charges(text))


_MAX_SUM: Final = (1 << 32) - 1


def pack(state: State) -> bytes:
    """A log in its stored form, little-endian: 8 bytes for the time of the newest entry's start, then 12 for each entry.

    A sum of costs that takes more than 4 bytes is above every limit, so it is cut.
    """
    layout = _layout(len(state) // 2)
    try:
        return layout.pack(*state)
    except struct.error:
        return layout.pack(*[min(value, _MAX_SUM) if at and not at % 2 else value for at, value in enumerate(state)])


def unpack(log: bytes) -> State:
    """A log from its stored form.

    >>> unpack(pack((5, 1, 2, 5, 9)))
    (5, 1, 2, 5, 9)
    """
    return _layout((len(log) - 8) // 12).unpack(log)


@lru_cache(maxsize=256)
def _layout(entries: int) -> struct.Struct:
    return struct.Struct("<q" + "qI" * entries)
