"""A store in memory: all that a store does, in the fewest words. Local counting is built on it, see `outage.local`."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence

from mcpguard.identity.client_agents import NOTE_KEPT_US, AgentNote
from mcpguard.limiter import sliding
from mcpguard.limiter.plan import Counter, Plan
from mcpguard.limiter.sliding import EMPTY, Decision, Limit, State
from mcpguard.session.audit import Outcome, Row
from mcpguard.session.decision import decide_one
from mcpguard.session.journal import Journal
from mcpguard.session.verdict import DecisionRequest, Ending, Verdict
from mcpguard.stores.api import Clock, CounterUse, StoredRow, Wanted
from mcpguard.stores.clock import monotonic_us, wall_us
from mcpguard.stores.rows import Pages


class SharedMemory:
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
        self.notes[namespace, note.key] = (note.text, wall_us)


class MemoryStore(Pages):
    """Counters and audit rows in memory.

    Args:
        memory: The state, which may be shared with other stores; None for a new one.
        clock: The store's time.
        wall: Wall-clock time, for audit rows.
    """

    needs_tending = False
    warnings: tuple[str, ...] = ()

    def __init__(self, memory: SharedMemory | None = None, *, clock: Clock = monotonic_us, wall: Clock = wall_us) -> None:
        self._memory = memory or SharedMemory()
        self._clock = clock
        self._wall = wall
        self.args_key = self._memory.args_key

    def decide(self, requests: Sequence[DecisionRequest], journal: Journal) -> list[Verdict]:
        """See `Store`."""
        verdicts = []
        for request in requests:
            call_id = self._next_row_id()
            one, counters, decision = self._decide_one(request, call_id)
            row = journal.row(request, one, self._wall())
            if row is not None:
                self._write(row, counters, decision)
                one.row_id = call_id
            verdicts.append(one)
        return verdicts

    def _decide_one(self, request: DecisionRequest, call_id: int) -> tuple[Verdict, Sequence[Counter], Decision]:
        """Decide a request and charge its counters.

        Args:
            request: The request.
            call_id: The id of its row, if it gets one.

        Returns:
            The verdict, and the decision with the counters that it names.
        """
        counters = request.plan.counters
        one, decision = decide_one(request, self._states_of(counters), self._clock(), call_id)
        for limit in decision.charged:
            self._set(counters[limit.counter], decision.states[limit.counter])
        return one, counters, decision

    def _next_row_id(self) -> int:
        """The id of the next row."""
        return len(self._memory.rows) + 1

    def _write(self, row: Row, counters: Sequence[Counter], decision: Decision) -> None:
        """Write the row of a decision that has charged some of these counters."""
        self._memory.rows.append(row)

    def _states_of(self, counters: Sequence[Counter]) -> list[State]:
        return [self._memory.states.get(counter.id, EMPTY) for counter in counters]

    def _set(self, counter: Counter, state: State) -> None:
        if state:
            self._memory.states[counter.id], self._memory.counters[counter.id] = state, counter
        else:
            self._memory.states.pop(counter.id, None)
            self._memory.counters.pop(counter.id, None)

    def settle(self, endings: Sequence[Ending]) -> None:
        """See `Store`."""
        for row_id, plan, failed in endings:
            for counter in plan.counters:
                if not counter.window_us and counter.id in self._memory.states:
                    self._set(counter, release(self._memory.states[counter.id], row_id))
            if failed:
                self._count_failure(plan)

    def _count_failure(self, plan: Plan) -> Sequence[Limit]:
        """Count a call that failed on its counters of errors. Returns the limits that were charged."""
        after, charged = sliding.fail(plan.limits, self._states_of(plan.counters), self._clock())
        for limit in charged:
            self._set(plan.counters[limit.counter], after[limit.counter])
        return charged

    def give_places(self, calls: Mapping[int, Sequence[Counter]]) -> None:
        """See `Store`."""
        for call_id, counters in calls.items():
            for counter in counters:
                self._set(counter, (*release(self._memory.states.get(counter.id, EMPTY), call_id), call_id))

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
        """See `Store`. There is nothing to wait for."""

    def catch_up(self) -> bool:
        """See `Store`. There is nothing to do."""
        return False

    def tend(self) -> None:
        """See `Store`. Drops counters whose windows have passed, and old notes."""
        self._drop_old_notes()
        now_us = self._clock()
        for counter in list(self._memory.counters.values()):
            state = self._memory.states.get(counter.id, EMPTY)
            self._set(counter, sliding.live(state, counter.window_us, now_us) if counter.window_us else state)

    def last_seen(self) -> tuple[dict[int, State], int]:
        """See `Store`."""
        states, counters = self._memory.states, self._memory.counters
        return {key: log for key, log in states.items() if counters[key].window_us}, self._clock()

    @property
    def forgotten_until_us(self) -> int:
        """See `Store`. It forgets none."""
        return 0

    def adopt(self, logs: Sequence[tuple[Counter, State]], write_back_id: str) -> None:
        """See `Store`."""
        if write_back_id in self._memory.adopted:
            return
        self._memory.adopted.add(write_back_id)
        now_us = self._clock()
        for counter, log in logs:
            before = sliding.live(self._memory.states.get(counter.id, EMPTY), counter.window_us, now_us)
            self._set(counter, sliding.merge(before, sliding.shift(log, now_us), counter.window_us))

    def _pages(self, after: int, wanted: Wanted | None, *, newest_first: bool = False) -> Iterator[tuple[list[StoredRow], int]]:
        """See `Pages`: a single one."""
        outcomes = self._memory.outcomes
        found = [
            StoredRow(row_id, row, *(outcomes[row_id][1:] if row_id in outcomes else (None, None)))
            for row_id, row in enumerate(self._memory.rows[after:], after + 1)
        ]
        page = [one for one in found if wanted is None or wanted.admits_row(one.row, one.outcome)]
        yield page[::-1] if newest_first else page, len(self._memory.rows)

    def outcomes_of(self, row_ids: Sequence[int]) -> list[Outcome]:
        """See `Store`."""
        return [self._memory.outcomes[row_id] for row_id in row_ids if row_id in self._memory.outcomes]

    def counters(self) -> list[CounterUse]:
        """See `Store`."""
        now_us = self._clock()
        found = []
        for key, counter in self._memory.counters.items():
            state = self._memory.states.get(key, EMPTY)
            log = sliding.live(state, counter.window_us, now_us) if counter.window_us else EMPTY
            found.append(CounterUse(counter.label, sliding.used(log) if counter.window_us else len(state), log))
        return [one for one in found if one.used]

    def reset(self, labels: Sequence[str]) -> int:
        """See `Store`."""
        keys = [key for key, counter in self._memory.counters.items() if counter.label in set(labels)]
        return sum(self._memory.states.pop(key, None) is not None for key in keys)

    def peek(self, counters: Sequence[Counter]) -> tuple[list[State], int]:
        """See `Store`."""
        return self._states_of(counters), self._clock()

    def take_note(self, namespace: str, key: str) -> str:
        """See `Store`."""
        self._drop_old_notes()
        return self._memory.notes.pop((namespace, key), ("", 0))[0]

    def _drop_old_notes(self) -> None:
        wall_us = self._wall()
        for key, (_, noted_us) in list(self._memory.notes.items()):
            if abs(wall_us - noted_us) > NOTE_KEPT_US:
                del self._memory.notes[key]

    def close(self) -> None:
        """See `Store`."""


def release(state: State, call_id: int) -> State:
    """The state of a counter of calls in flight without a call. If it does not have the call, the same state."""
    return tuple([one for one in state if one != call_id]) if call_id in state else state
