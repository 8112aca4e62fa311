"""A process's copy of a store's counters and agent notes, kept up to date by the records of the call log.

A process that opens a store reads all counters from the database, and then follows the log. So it needs the database for no
decision: a counter that it does not have is empty.
"""

import itertools
import struct
from collections.abc import Iterable, MutableMapping
from functools import lru_cache
from typing import Final

from mcpguard.identity.client_agents import NOTE_KEPT_US
from mcpguard.limiter import sliding
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

MANY_NOTES: Final = 8192
"""From so many agent notes on, expired ones are looked for. A usual one takes about 300 bytes."""

_CHARGED_AT_ONCE: Final = 64
"""`add_charges` adds nothing to so many charges: upkeep can pause only before and after them."""

LineChange = Charges | list[str]
"""A change of counters: charges, or the fields of another line."""


class Memory:
    """A store's counters and notes at one position of its log.

    Args:
        logs: Id, window in µs and log of each counter that is not empty.
        places: The places that calls in flight hold.
        many_notes: From so many agent notes on, expired ones are looked for.

    Attributes:
        most: The most counters.
        states: The logs, by counter id. A counter without a log is empty.
        windows: Their windows in µs.
        in_flight: The calls in flight.
        notes: Agent and wall-clock time of each note, by namespace and key.
        write_back_ids: The ids of write-backs that were counted, see `Recoverable.adopt`.
    """

    def __init__(
        self, logs: Iterable[tuple[int, int, State]] = (), places: Iterable[Place] = (), *, many_notes: int = MANY_NOTES
    ) -> None:
        self.most = MOST_COUNTERS
        self.states: dict[int, State] = {}
        self.windows: dict[int, int] = {}
        self.in_flight = InFlight(places)
        self.notes: dict[tuple[str, str], tuple[str, int]] = {}
        self.write_back_ids: set[str] = set()
        self._least_notes = self._many_notes = many_notes
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
            if not isinstance(change, str):
                charge(self.states, change, self.windows)
                continue
            for one in line_changes(change):
                if isinstance(one, tuple):
                    charge(self.states, one, self.windows)
                else:
                    self._follow(one)

    def _follow(self, fields: list[str]) -> None:
        kind = fields[0]
        if kind == notes.NOTED:
            namespace, note, noted_us = notes.read_note(fields)
            if note.agent:
                self.notes[namespace, note.key] = (note.agent, noted_us)
            else:
                self.notes.pop((namespace, note.key), None)
        elif kind == log_lines.WRITTEN_BACK:
            self.write_back_ids.add(fields[1])
        else:
            if kind in KINDS:
                self.in_flight.follow(fields)
            if kind == log_lines.MERGED and int(fields[1]) not in self.states:
                self.states[int(fields[1])], self.windows[int(fields[1])] = EMPTY, int(fields[2])
            change(self.states, fields)

    def latest_us(self) -> int:
        """The store time of the newest charge; 0 if there is none."""
        return max((log[-2] for log in self.states.values() if log), default=0)

    @property
    def is_full(self) -> bool:
        """Whether there must be no other counter."""
        return len(self.states) >= self.most

    def make_room(self, clock: Clock, wall: Clock) -> None:
        """If there are many counters or notes, drop those that have expired: of the counters among some, next time of others.

        If there are few it takes next to no time.

        Args:
            clock: The store's time.
            wall: Wall-clock time.
        """
        if len(self.notes) > self._many_notes:
            wall_us = wall()
            self.notes = {key: one for key, one in self.notes.items() if abs(wall_us - one[1]) <= NOTE_KEPT_US}
            self._many_notes = max(self._least_notes, 2 * len(self.notes))
        if len(self.states) >= self.most * _CROWDED_SHARE:
            excess = max(0, len(self.states) - self.most)
            self._drop_expired(clock(), _LOOKED_AT + 2 * excess)

    def _drop_expired(self, now_us: int, most: int) -> None:
        """Look at the counters that were looked at longest ago; move those that have not expired to the end."""
        for key in list(itertools.islice(self.states, most)):
            log = self.states.pop(key)
            if log and log[-2] > now_us - self.windows[key]:
                self.states[key] = log
            else:
                del self.windows[key]


_CHANGES: Final = frozenset({log_lines.MERGED, log_lines.EMPTIED})
_FOLLOWED: Final = _CHANGES | KINDS | {notes.NOTED, log_lines.WRITTEN_BACK}
_CHARGING: Final = frozenset({log_lines.ROW, log_lines.CHARGED})


def line_changes(text: str) -> list[LineChange]:
    """What the lines of a record change. Lines that matter only to the audit are left out."""
    found: list[LineChange] = []
    for line in text.split("\n"):
        kind = line[0]
        if kind in _CHARGING:
            _, charged_us, charged = line.rsplit("\t", 2)
            if charged:
                add_charges(found, charged, [int(charged_us)])
        elif kind in _FOLLOWED:
            found.append(line.split("\t"))
    return found


def add_charges(changes: list[LineChange], charged: str, times_us: list[int]) -> None:
    """Add charges to the end of some changes. Many charges of the same counters take little longer than one.

    Args:
        changes: The changes.
        charged: The counters; none if it is empty.
        times_us: The store time of each charge.
    """
    last = changes[-1] if changes else None
    if isinstance(last, tuple) and last[0] == charged and len(last[1]) < _CHARGED_AT_ONCE:
        last[1].extend(times_us)
    elif charged:
        changes.append((charged, times_us))


def charge(states: MutableMapping[int, State], charges: Charges, windows: MutableMapping[int, int] | None = None) -> None:
    """Charge counters, in order.

    Args:
        states: The logs.
        charges: The charges.
        windows: The windows of the counters in `states`. Counters that are not there yet are added to both. With None they are
            not charged.
    """
    charged, times_us = charges
    last_us, calls = times_us[-1], len(times_us)
    for key, window_us, n, grain_us, cost in _charges(charged):
        log = states.get(key)
        if log is None:
            if windows is None:
                continue
            log, windows[key] = EMPTY, window_us
        left = calls
        while left and (not log or last_us - log[0] >= grain_us):
            now_us = times_us[-left]
            log = sliding.charge(sliding.live(log, window_us, now_us), n, window_us, now_us, cost)
            left -= 1
        if left:  # they share the newest entry
            log = sliding.live((*log[:-2], last_us, log[-1] + cost * left), window_us, last_us)
        states[key] = log


@lru_cache(maxsize=128)
def _charges(charged: str) -> list[tuple[int, int, int, int, int]]:
    """Id, window in µs, n, grain in µs and cost of the counters that a text names."""
    found = []
    for text in log_lines.charge_texts(charged):
        key, _, limit = text.partition(",")
        window_us, n, grain_us, cost = _limit(limit)
        found.append((int(key), window_us, n, grain_us, cost))
    return found


@lru_cache(maxsize=256)
def _limit(text: str) -> tuple[int, int, int, int]:
    """Window in µs, n, grain in µs and cost of a counter in such a text. The counters of many users share a few."""
    window_us, n, cost = log_lines.read_limit(text)
    return window_us, n, sliding.grain(n, window_us), cost


def windows(changes: Iterable[Charges]) -> dict[int, int]:
    """The windows in µs of the counters that are charged, by counter id."""
    texts = dict.fromkeys(charged for charged, _ in changes)  # an ordered set
    return {key: window_us for charged in texts for key, window_us, *_ in _charges(charged)}


def change(states: MutableMapping[int, State], fields: list[str]) -> None:
    """Merge into or reset the counter that a line names, if it is in `states`. Another line changes none."""
    if fields[0] not in _CHANGES or (key := int(fields[1])) not in states:
        return
    if fields[0] == log_lines.EMPTIED:
        states[key] = EMPTY
    else:
        window_us, log = int(fields[2]), tuple(map(int, fields[3].split(",")))
        now_us = int(fields[4]) if len(fields) > 4 else log[-2]  # an earlier version did not write it
        states[key] = sliding.merge(sliding.live(states[key], window_us, now_us), log, window_us)


def change_all(states: MutableMapping[int, State], changes: Iterable[LineChange]) -> None:
    """Make changes, in order, to the counters in `states`."""
    for one in changes:
        if isinstance(one, tuple):
            charge(states, one)
        else:
            change(states, one)


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
