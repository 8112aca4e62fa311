"""A process's copy of a store's counters and agent notes, kept up to date by the records of the call log.

A process that opens a store reads all counters from the database, unless they are too many, and then follows the log. So it
needs the database for no decision: a counter that it does not have is empty. If there are too many counters it keeps some,
and reads others from the database when a call needs them.
"""

import itertools
import struct
from collections.abc import Collection, Iterable, MutableMapping, Sequence
from functools import lru_cache
from typing import Final

from mcpguard.limiter import sliding
from mcpguard.limiter.plan import Counter
from mcpguard.limiter.sliding import EMPTY, Decision, State
from mcpguard.stores.api import Clock
from mcpguard.stores.sqlite import log_lines, notes
from mcpguard.stores.sqlite.call_log import CallLog
from mcpguard.stores.sqlite.in_flight import KINDS, InFlight, Place
from mcpguard.stores.sqlite.log_records import Change, Charges, Position

REMEMBERED: Final = 65_536
"""The most counters that a process keeps in memory. A usual one takes about 300 bytes, and 1.5 µs when a store is opened."""

REMEMBERED_NOTES: Final = 8192
"""The same for agent notes."""

_DROPPED_AT_ONCE: Final = 1024
"""How many counters beyond `REMEMBERED` are dropped together, in about a millisecond."""

_CHARGED_AT_ONCE: Final = 64
"""`add_charges` adds nothing to so many charges: upkeep can pause only before and after them."""

LineChange = Charges | list[str]
"""A change of counters: charges, or the fields of another line."""


class Memory:
    """A store's counters and notes at one position of its log.

    Args:
        logs: Id, window in µs and log of each counter that is not empty.
        complete: Whether these are all of them.

    Attributes:
        states: The logs, by counter id.
        complete: Whether every counter without a log here is empty.
        in_flight: The calls in flight, always all of them.
        notes: Agent and wall-clock time of each note, by namespace and key. A note that was removed may be there without its
            agent.
        has_all_notes: Whether these are all notes.
        write_back_ids: The ids of write-backs that were counted, see `Recoverable.adopt`.
    """

    def __init__(self, logs: Iterable[tuple[int, int, State]] = (), *, complete: bool = True) -> None:
        self.states: dict[int, State] = {}
        self.complete = complete
        self.in_flight = InFlight()
        self.notes: dict[tuple[str, str], tuple[str, int]] = {}
        self.has_all_notes = True
        self.write_back_ids: set[str] = set()
        self._windows: dict[int, int] = {}
        for key, window_us, log in logs:
            self.remember(key, window_us, log)

    def remember(self, key: int, window_us: int, log: State) -> None:
        """Remember a counter's log."""
        self.states[key] = log
        self._windows[key] = window_us

    def take(self, counters: Sequence[Counter], decision: Decision, call_id: int, owner: str) -> list[tuple[int, State]]:
        """Remember what a decision has charged.

        Args:
            counters: The counters of the call.
            decision: The decision.
            call_id: The id of the call's row.
            owner: This process.

        Returns:
            The logs before that, by counter id.
        """
        states, before = self.states, []
        for limit in decision.charged:
            counter = counters[limit.counter]
            if limit.window_us:
                before.append((counter.id, states.get(counter.id, EMPTY)))
                states[counter.id], self._windows[counter.id] = decision.states[limit.counter], limit.window_us
            else:
                self.in_flight.take(Place(counter.id, call_id, owner, counter.label))
        return before

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
        windows = self._windows if self.complete else None
        for change in changes:
            if not isinstance(change, str):
                charge(self.states, change, windows)
                continue
            for one in line_changes(change):
                if isinstance(one, tuple):
                    charge(self.states, one, windows)
                else:
                    self._follow(one)

    def _follow(self, fields: list[str]) -> None:
        kind = fields[0]
        if kind == notes.KIND:
            namespace, note, noted_us = notes.read(fields)
            if note.agent or not self.has_all_notes:  # the database may have what was removed until the log is drained
                self.notes[namespace, note.key] = (note.agent, noted_us)
            else:
                self.notes.pop((namespace, note.key), None)
        elif kind == log_lines.WRITTEN_BACK:
            self.write_back_ids.add(fields[1])
        else:
            if kind in KINDS:
                self.in_flight.follow(fields)
            if self.complete and kind == log_lines.MERGED and int(fields[1]) not in self.states:
                self.remember(int(fields[1]), int(fields[2]), EMPTY)
            change(self.states, fields)

    def latest_us(self) -> int:
        """The store time of the newest charge; 0 if there is none."""
        return max(map(_charged_us, self.states.values()), default=0)

    def is_crowded(self) -> bool:
        """Whether `make_room` has anything to drop."""
        return len(self.states) >= REMEMBERED + _DROPPED_AT_ONCE or len(self.notes) > 2 * REMEMBERED_NOTES

    def make_room(self, clock: Clock) -> None:
        """Drop notes and counters if there are too many. Do not call it during a decision, which needs its counters.

        Args:
            clock: The store's time.
        """
        if len(self.notes) > 2 * REMEMBERED_NOTES:
            self.has_all_notes = False
            self.notes = dict(list(self.notes.items())[-REMEMBERED_NOTES:])
        while len(self.states) >= REMEMBERED + _DROPPED_AT_ONCE:  # a turn can add more than are dropped at once
            self._drop_counters(clock())

    def _drop_counters(self, now_us: int) -> None:
        """Of the counters that were added first, drop the half that was charged longest ago. Move the rest to the end."""
        oldest = sorted(itertools.islice(self.states, 2 * _DROPPED_AT_ONCE), key=lambda key: _charged_us(self.states[key]))
        for key in oldest[:_DROPPED_AT_ONCE]:
            log, window_us = self.states.pop(key), self._windows.pop(key)
            if sliding.live(log, window_us, now_us):
                self.complete = False
        for key in oldest[_DROPPED_AT_ONCE:]:
            self.states[key] = self.states.pop(key)


def _charged_us(log: State) -> int:
    """When a log was charged last, in store time; 0 if it is empty."""
    return log[-2] if log else 0


_CHANGES: Final = frozenset({log_lines.MERGED, log_lines.EMPTIED})
_FOLLOWED: Final = _CHANGES | KINDS | {notes.KIND, log_lines.WRITTEN_BACK}
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


def replay(states: MutableMapping[int, State], text: str) -> None:
    """Apply a record to the counters in `states`."""
    change_all(states, line_changes(text))


def touched(text: str) -> Collection[int]:
    """The counters that a record changes."""
    found: set[int] = set()
    for one in line_changes(text):
        if isinstance(one, tuple):
            found.update(key for key, *_ in _charges(one[0]))
        elif one[0] in _CHANGES:
            found.add(int(one[1]))
    return found


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
