"""Decides calls at one position of the call log."""

from collections.abc import Mapping, Sequence

from mcpguard.light_typing import Final
from mcpguard.limiter.plan import Counter, Plan
from mcpguard.limiter.sliding import EMPTY, Decision, State
from mcpguard.session.decision import admit, decide_one
from mcpguard.session.journal import Journal
from mcpguard.session.verdict import DecisionRequest, Verdict
from mcpguard.stores.api import Clock
from mcpguard.stores.sqlite import log_lines
from mcpguard.stores.sqlite.follower import Follower
from mcpguard.stores.sqlite.in_flight import InFlight, Owners, Place
from mcpguard.stores.sqlite.log_records import IN_TEXT, Charge, Position, pack

TOO_MANY: Final = "too_many_counters"
"""The reason in the row of a call that is refused because the store has no room for its counter."""

_WHY: Final = (
    "{:,} counters are in use, the most that a store keeps, and this call needs another one. "
    "There is room when the window of one of them has passed."
)
_Record = tuple[str, int, Charge]
_NOTHING: Final = Decision(False, (), (), ())


class Decider:
    """Decides requests in order. Nothing counts before `data` is appended to the log, and `charge` is called.

    Args:
        follower: This process, which follows the log.
        owners: The processes with calls in flight, of which this process may be one.
        wall: Wall-clock time.

    Attributes:
        at: The position of the log by which the last requests were decided. Their verdicts hold as long as the log ends there.
        verdicts: Their verdicts.
        data: The records to append; may be empty.
        after: The position after them.
    """

    at: Position
    verdicts: list[Verdict]
    data: bytes
    after: Position
    _journal: Journal
    _now_us: int
    _time_us: int
    _records: list[_Record]
    _logs: dict[int, State]  # of the counters that were charged
    _alive: set[str]  # the processes that were found alive
    _in_flight: InFlight | None  # a copy of the memory's, once a call takes or frees a place

    def __init__(self, follower: Follower, owners: Owners, wall: Clock) -> None:
        self._follower = follower
        self._owners = owners
        self._clock = follower.clock
        self._wall = wall
        self._windows: dict[int, int] = {}  # of counters that are new

    def decide(self, requests: Sequence[DecisionRequest], journal: Journal) -> None:
        """Decide requests by what this process has read of the log. `take_back` undoes it."""
        follower, self._journal = self._follower, journal
        at, states = follower.at, follower.memory.states
        now_us, time_us = self._now_us, self._time_us = self._clock(), self._wall()
        self.verdicts, self._records, self._logs = [], [], {}
        verdicts, records, logs = self.verdicts, self._records, self._logs
        self.at, self._in_flight, self._alive = at, None, set()
        journal.begin()
        row_id = at[1]
        for request in requests:
            plan = request.plan
            admitted = admit(plan, self._logs_of(plan.counters) if logs else states, now_us) if plan.is_plain else None
            if admitted is None:
                verdict, record = self._decide(request, row_id)
            else:
                verdict, after = admitted
                logs |= after
                charged = log_lines.all_charges(plan)
                row = journal.row(request, verdict, time_us)
                record = row and (log_lines.row_line(row, now_us, charged), 1, (now_us, len(charged)))
            verdicts.append(verdict)
            if record is not None:
                records.append(record)
                verdict.row_id = row_id
                row_id += 1
        self.data, self.after = pack(at, records)

    def charge(self) -> None:
        """Charge the counters in memory."""
        memory = self._follower.memory
        memory.states.update(self._logs)
        if self._windows:
            memory.windows.update(self._windows)
            self._windows.clear()
        if self._in_flight is not None:
            memory.in_flight = self._in_flight
        self._follower.at = self.after

    def take_back(self) -> None:
        """Undo the decisions, because their records are not appended."""
        self._windows.clear()
        self._journal.take_back()

    def _logs_of(self, counters: Sequence[Counter]) -> Mapping[int, State]:
        states, charged = self._follower.memory.states, self._logs
        return {one.id: charged.get(one.id) or states.get(one.id, EMPTY) for one in counters}

    def _decide(self, request: DecisionRequest, row_id: int) -> tuple[Verdict, _Record | None]:
        """Decide a request that is not a usual call. Returns the verdict and the record, unless there is none."""
        counters = request.plan.counters
        verdict, decision = self._decide_by_limits(request, row_id)
        if verdict.forwards and self._follower.memory.is_full and self._needs_counter(request.plan):
            request.explain(TOO_MANY, _WHY.format(self._follower.memory.most))
            verdict, decision = Verdict("unavailable", request.plan), _NOTHING
        owner = ""
        for limit in decision.charged:
            counter = counters[limit.counter]
            if limit.window_us:
                self._logs[counter.id], self._windows[counter.id] = decision.states[limit.counter], limit.window_us
            else:
                owner = self._owners.prepare()
                self._places().take(Place(counter.id, row_id, owner, counter.label))
        row = self._journal.row(request, verdict, self._time_us)
        return verdict, row and log_lines.decision_record(row, counters, decision, row_id, owner)

    def _needs_counter(self, plan: Plan) -> bool:
        """Whether a limit's counter is not there yet. A mark, of which each counter has at most one, is no reason to refuse."""
        states = self._follower.memory.states
        counters = [plan.counters[limit.counter] for limit in plan.limits if limit.n]
        return any(one.window_us and one.id not in states and one.id not in self._logs for one in counters)

    def _decide_by_limits(self, request: DecisionRequest, row_id: int) -> tuple[Verdict, Decision]:
        """Decide a call. If a cap has no room, free the places of processes that have ended."""
        limits = request.plan.limits
        verdict, decision = decide_one(request, self._states(request), self._now_us, row_id)
        if any(limits[one.limit].counts == "concurrent" for one in verdict.exceeded) and self._free_dead(request.plan.counters):
            verdict, decision = decide_one(request, self._states(request), self._now_us, row_id)
        return verdict, decision

    def _states(self, request: DecisionRequest) -> list[State]:
        counters = request.plan.counters
        logs, in_flight = self._logs_of(counters), self._in_flight or self._follower.memory.in_flight
        return [logs.get(one.id, EMPTY) if one.window_us else in_flight.state(one.id) for one in counters]

    def _places(self) -> InFlight:
        """The places, to be changed."""
        if self._in_flight is None:
            self._in_flight = self._follower.memory.in_flight.copy()
        return self._in_flight

    def _free_dead(self, counters: Sequence[Counter]) -> bool:
        """Free all places of the processes that have places of these counters and have ended; returns whether there are any."""
        in_flight = self._in_flight or self._follower.memory.in_flight
        holders = {place.owner for place in in_flight.of([one.id for one in counters])} - {self._owners.name, *self._alive}
        dead = self._owners.dead(holders)
        self._alive |= holders - dead
        freed = [place for place in in_flight if place.owner in dead]
        for place in freed:
            self._places().free(place.counter_id, place.call_id)
        if freed:
            text = "\n".join([log_lines.freed_line(place.counter_id, place.call_id) for place in freed])
            self._records.append((text, 0, IN_TEXT))
        return bool(freed)
