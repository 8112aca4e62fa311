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
from mcpguard.stores.sqlite.log_records import pack
from mcpguard.stores.sqlite.memory import Follower
from mcpguard.stores.sqlite.places import Owner, Place, Places, calls_of

TOO_MANY: Final = "too_many_counters"
"""The reason in the row of a call that is refused because the store has no room for its counter."""

_WHY: Final = (
    "{:,} counters are in use, the most that a store keeps, and this call needs another one. "
    "There is room when the window of one of them has passed."
)
_NOTHING: Final = Decision(False, (), (), ())


class Decider:
    """Decides requests in order, by what this process has read of the log. It is made for each decision.

    Nothing counts before `data` is appended to the log, and `charge` is called. If that fails, put back the journal's state.

    Args:
        follower: This process, which follows the log.
        owner: This process as an owner of places.
        requests: The requests.
        journal: Says which of them have rows.
        wall: Wall-clock time.

    Attributes:
        at: The position of the log by which the requests were decided. The verdicts hold as long as the log ends there.
        verdicts: The verdicts.
        data: The records to append; may be empty.
    """

    def __init__(
        self, follower: Follower, owner: Owner, requests: Sequence[DecisionRequest], journal: Journal, wall: Clock
    ) -> None:
        self._follower, self._owner, self._journal = follower, owner, journal
        self.at, states = follower.at, follower.memory.states
        self._now_us = now_us = follower.clock()
        self._wall_us = wall_us = wall()
        self.verdicts: list[Verdict] = []
        self._records: list[str] = []
        self._logs: dict[int, State] = {}  # of the counters that were charged
        self._windows: dict[int, int] = {}  # of counters that may be new
        self._alive: set[str] = set()  # the processes that were found alive
        self._places = follower.memory.places  # a copy, once a call takes or frees one
        row_id = self.at.row
        for request in requests:
            plan = request.plan
            admitted = admit(plan, self._logs_of(plan.counters) if self._logs else states, now_us) if plan.is_plain else None
            if admitted is None:
                verdict, record = self._decide(request, row_id)
            else:
                verdict, after = admitted
                self._logs |= after
                row = journal.row(request, verdict, wall_us)
                record = row and log_lines.row_line(row, now_us, log_lines.all_charges(plan))
            self.verdicts.append(verdict)
            if record is not None:
                self._records.append(record)
                verdict.row_id = row_id
                row_id += 1
        self.data, self._after = pack(self.at, self._records)

    def charge(self) -> None:
        """Charge the counters in memory."""
        memory = self._follower.memory
        memory.states.update(self._logs)
        memory.windows.update(self._windows)
        memory.places = self._places
        self._follower.at = self._after

    def _logs_of(self, counters: Sequence[Counter]) -> Mapping[int, State]:
        states, charged = self._follower.memory.states, self._logs
        return {one.id: charged.get(one.id) or states.get(one.id, EMPTY) for one in counters}

    def _decide(self, request: DecisionRequest, row_id: int) -> tuple[Verdict, str | None]:
        """Decide a request that is not a usual call. Returns the verdict and the text of its record, unless there is none."""
        counters = request.plan.counters
        verdict, decision = self._decide_by_limits(request, row_id)
        if verdict.forwards and self._follower.is_full and self._needs_counter(request.plan):
            request.explain(TOO_MANY, _WHY.format(self._follower.most_counters))
            verdict, decision = Verdict("unavailable", request.plan), _NOTHING
        owner = ""
        for limit in decision.charged:
            counter = counters[limit.counter]
            if limit.window_us:
                self._logs[counter.id], self._windows[counter.id] = decision.states[limit.counter], limit.window_us
            else:
                owner = self._owner.prepare()
                self._own_places()[counter.id, row_id] = Place(counter.id, row_id, owner, counter.label)
        row = self._journal.row(request, verdict, self._wall_us)
        return verdict, row and log_lines.decision_lines(row, counters, decision, row_id, owner)

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
        logs = self._logs_of(counters)
        return [logs.get(one.id, EMPTY) if one.window_us else calls_of(self._places, one.id) for one in counters]

    def _own_places(self) -> Places:
        """The places, to be changed."""
        if self._places is self._follower.memory.places:
            self._places = dict(self._places)
        return self._places

    def _free_dead(self, counters: Sequence[Counter]) -> bool:
        """Free all places of the processes that have places of these counters and have ended; returns whether there are any."""
        ids, places = {one.id for one in counters}, self._places.values()
        holders = {place.owner for place in places if place.counter_id in ids} - {self._owner.name, *self._alive}
        ended = self._owner.dead(holders)
        self._alive |= holders - ended
        freed = [place for place in places if place.owner in ended]
        for place in freed:
            del self._own_places()[place[:2]]
        if freed:
            self._records.append("\n".join([log_lines.freed_line(place.counter_id, place.call_id) for place in freed]))
        return bool(freed)
