"""A process's copy of a store's counters and agent notes, kept up to date by the records of the call log.

A process that opens a store reads all counters from the database, and then follows the log. So it needs the database for no
decision: a counter that it does not have is empty.
"""

import itertools
import struct
from collections.abc import Iterable, Sequence
from functools import lru_cache

from mcpguard.identity.client_agents import NOTE_KEPT_US
from mcpguard.light_typing import Final
from mcpguard.limiter import sliding
from mcpguard.limiter.plan import Counter
from mcpguard.limiter.sliding import EMPTY, State
from mcpguard.stores.sqlite import call_log, log_lines
from mcpguard.stores.sqlite.places import Place, calls_of

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
