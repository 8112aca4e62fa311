"""A store in memory. Tests compare the other stores with it."""

import os
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence

from mcpguard.identity.client_agents import NOTE_KEPT_US, AgentNote
from mcpguard.limiter import sliding
from mcpguard.limiter.plan import Counter
from mcpguard.limiter.sliding import EMPTY, State
from mcpguard.session.audit import Outcome, Row, record
from mcpguard.session.journal import Journal
from mcpguard.session.verdict import DecisionRequest, Ending, Verdict, decide_one
from mcpguard.stores.api import Clock, Entry, Held, StoredRow, Tally, Wanted
from mcpguard.stores.clock import monotonic_us, wall_us
from mcpguard.stores.groups import tally


class Memory:
    """The state that several memory stores share."""

    def __init__(self) -> None:
        self.args_key = os.urandom(32)
        self.states: dict[int, State] = {}
        self.counters: dict[int, Counter] = {}
        self.rows: list[Row] = []
        self.outcomes: dict[int, Outcome] = {}
        self.notes: dict[tuple[str, str], tuple[str, int]] = {}
        self.adopted: set[str] = set()

    def leave_note(self, namespace: str, note: AgentNote, *, wall_us: int) -> None:
        """See `Address`."""
        self.notes[namespace, note.key] = (note.agent, wall_us)


class MemoryStore:
    """Counters and audit rows in memory.

    Args:
        memory: The state, which may be shared with other stores; None for a new one.
        clock: The store's time.
        wall: Wall-clock time, for audit rows.
    """

    needs_tending = False
    warnings: tuple[str, ...] = ()

    def __init__(self, memory: Memory | None = None, *, clock: Clock = monotonic_us, wall: Clock = wall_us) -> None:
        self._memory = memory or Memory()
        self._clock = clock
        self._wall = wall
        self.args_key = self._memory.args_key

    def decide(self, requests: Sequence[DecisionRequest], journal: Journal) -> list[Verdict]:
        """See `Store`."""
        journal.begin()
        verdicts = []
        for request in requests:
            row_id = len(self._memory.rows) + 1
            (one,), changed = decide_all([request], self._memory.states, self._clock(), row_id)
            self._memory.counters.update(changed)
            row = journal.row(request, one, self._wall())
            if row is not None:
                self._memory.rows.append(row)
                one.row_id = row_id
            verdicts.append(one)
        return verdicts

    def settle(self, endings: Sequence[Ending]) -> None:
        """See `Store`."""
        states, now_us = self._memory.states, self._clock()
        for ending in endings:
            counters = ending.plan.counters
            for limit in ending.plan.limits:
                if limit.counts == "concurrent" and (key := counters[limit.counter].id) in states:
                    states[key] = release(states[key], ending.row_id)
            if ending.failed:
                logs = [states.get(counter.id, EMPTY) for counter in counters]
                after, charged = sliding.fail(ending.plan.limits, logs, now_us)
                for limit in charged:
                    counter = counters[limit.counter]
                    states[counter.id], self._memory.counters[counter.id] = after[limit.counter], counter

    def hold(self, calls: Mapping[int, Sequence[Counter]]) -> None:
        """See `Store`."""
        for call_id, counters in calls.items():
            for counter in counters:
                self._memory.counters[counter.id] = counter
                others = release(self._memory.states.get(counter.id, EMPTY), call_id)
                self._memory.states[counter.id] = (*others, call_id)

    def append(self, rows: Sequence[Row]) -> list[int]:
        """See `Store`."""
        first = len(self._memory.rows) + 1
        self._memory.rows.extend(rows)
        return list(range(first, first + len(rows)))

    def record(self, outcomes: Sequence[Outcome]) -> None:
        """See `Store`."""
        for outcome in outcomes:
            self._memory.outcomes.setdefault(outcome.row_id, outcome)

    def keep_pace(self, hurry: Callable[[], None]) -> None:
        pass

    def catch_up(self) -> bool:
        """See `Store`. There is nothing to do."""
        return False

    def tend(self) -> None:
        """See `Store`. Drops counters whose windows have passed, and old notes."""
        self._drop_old_notes()
        now_us = self._clock()
        for key, state in list(self._memory.states.items()):
            window_us = self._memory.counters[key].window_us
            if not (sliding.live(state, window_us, now_us) if window_us else state):
                del self._memory.states[key]

    def last_seen(self) -> tuple[dict[int, State], int]:
        """See `Store`."""
        states, counters = self._memory.states, self._memory.counters
        return {key: log for key, log in states.items() if counters[key].window_us}, self._clock()

    @property
    def absent_are_empty(self) -> bool:
        """See `Store`. As on Redis, nobody knows."""
        return False

    def adopt(self, logs: Sequence[tuple[Counter, State]], write_back_id: str) -> None:
        """See `Store`."""
        if write_back_id in self._memory.adopted:
            return
        self._memory.adopted.add(write_back_id)
        now_us = self._clock()
        for counter, log in logs:
            self._memory.counters[counter.id] = counter
            before = sliding.live(self._memory.states.get(counter.id, EMPTY), counter.window_us, now_us)
            self._memory.states[counter.id] = sliding.merge(before, sliding.shift(log, now_us), counter.window_us)

    def entries(self, *, after: int = 0, wanted: Wanted | None = None) -> Iterator[Entry]:
        """See `Store`."""
        found = (self._entry(row_id) for row_id in range(after + 1, len(self._memory.rows) + 1))
        return (entry for entry in found if wanted is None or wanted.admits(entry.record))

    def rows(self, *, after: int = 0, wanted: Wanted | None = None) -> Iterator[list[StoredRow]]:
        """See `Readable`."""
        found = [
            StoredRow(row_id, row, *(self._memory.outcomes[row_id][1:] if row_id in self._memory.outcomes else (None, None)))
            for row_id, row in enumerate(self._memory.rows[after:], after + 1)
        ]
        yield [one for one in found if wanted is None or wanted.admits_row(one.row, one.outcome)]

    def tally(self, *, after: int = 0, wanted: Wanted | None = None) -> Iterator[Tally]:
        """See `Readable`."""
        for page in self.rows(after=after, wanted=wanted):
            yield tally(page, len(self._memory.rows))

    def newest(self, *, wanted: Wanted | None = None) -> Iterator[Entry]:
        """See `Store`."""
        return reversed(list(self.entries(wanted=wanted)))

    def outcomes_of(self, row_ids: Sequence[int]) -> list[Outcome]:
        """See `Store`."""
        return [self._memory.outcomes[row_id] for row_id in row_ids if row_id in self._memory.outcomes]

    def _entry(self, row_id: int) -> Entry:
        _, outcome, duration_us = self._memory.outcomes.get(row_id, (row_id, None, None))
        return Entry(row_id, record(self._memory.rows[row_id - 1], outcome=outcome, duration_us=duration_us))

    def held(self) -> list[Held]:
        """See `Store`."""
        now_us = self._clock()
        found = []
        for key, counter in self._memory.counters.items():
            state = self._memory.states.get(key, EMPTY)
            if counter.window_us:
                log = sliding.live(state, counter.window_us, now_us)
                found.append(Held(counter.label, sliding.used(log), log))
            else:
                found.append(Held(counter.label, len(state), EMPTY))
        return [one for one in found if one.used]

    def reset(self, labels: Sequence[str]) -> int:
        """See `Store`."""
        keys = [key for key, counter in self._memory.counters.items() if counter.label in set(labels)]
        return sum(self._memory.states.pop(key, None) is not None for key in keys)

    def peek(self, counters: Sequence[Counter]) -> tuple[list[State], int]:
        """See `Store`."""
        return [self._memory.states.get(counter.id, EMPTY) for counter in counters], self._clock()

    def take_notes(self, namespace: str, keys: Sequence[str]) -> dict[str, str]:
        """See `Store`."""
        self._drop_old_notes()
        taken = {one: self._memory.notes.pop((namespace, one), ("", 0))[0] for one in dict.fromkeys(keys)}
        return {one: agent for one, agent in taken.items() if agent}

    def _drop_old_notes(self) -> None:
        wall_us = self._wall()
        for key, (_, noted_us) in list(self._memory.notes.items()):
            if abs(wall_us - noted_us) > NOTE_KEPT_US:
                del self._memory.notes[key]

    def close(self) -> None:
        """See `Store`."""


def decide_all(
    requests: Sequence[DecisionRequest], states: MutableMapping[int, State], now_us: int, first_row: int = 1
) -> tuple[list[Verdict], dict[int, Counter]]:
    """Decide requests in order, and update the counters' logs in `states`.

    Args:
        requests: The requests.
        states: The logs by counter id. A missing log is empty.
        now_us: The store's time.
        first_row: The id of the first call among the calls in flight; each later one has the next.

    Returns:
        The verdicts, and the counters whose logs have changed.
    """
    verdicts: list[Verdict] = []
    changed: dict[int, Counter] = {}
    for call_id, request in enumerate(requests, first_row):
        counters = request.plan.counters
        one, decision = decide_one(request, [states.get(counter.id, EMPTY) for counter in counters], now_us, call_id)
        verdicts.append(one)
        for limit in decision.charged:
            counter = counters[limit.counter]
            states[counter.id] = decision.states[limit.counter]
            changed[counter.id] = counter
    return verdicts, changed


def release(state: State, call_id: int) -> State:
    """The state of a counter of calls in flight without a call. If it does not have the call, the same state."""
    return tuple([one for one in state if one != call_id]) if call_id in state else state
