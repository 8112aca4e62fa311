"""The decisions of one turn: with the call log's lock held, on counters that are up to date."""

from collections.abc import Sequence

from mcpguard.limiter.plan import Counter
from mcpguard.limiter.sliding import EMPTY, Decision, State
from mcpguard.session.decision import decide_one
from mcpguard.session.journal import Journal
from mcpguard.session.verdict import DecisionRequest, Verdict
from mcpguard.stores.sqlite import log_lines
from mcpguard.stores.sqlite.follower import Follower
from mcpguard.stores.sqlite.in_flight import InFlight
from mcpguard.stores.sqlite.owners import Owners


class Turn:
    """Decides requests in order. Nothing counts before `groups` are appended to the log.

    Args:
        follower: This process.
        owners: The processes with calls in flight.
        owner: The name of this process.
        journal: The session's journal.
        now_us: The store's time.
        time_us: Wall-clock time.

    Attributes:
        groups: The groups of lines to append.
        verdicts: The verdicts so far.
    """

    def __init__(self, follower: Follower, owners: Owners, owner: str, journal: Journal, *, now_us: int, time_us: int) -> None:
        self.groups: list[str] = []
        self.verdicts: list[Verdict] = []
        self._follower = follower
        self._memory = follower.memory
        self._states = follower.memory.states
        self._owners = owners
        self._owner = owner
        self._alive = {owner}  # the processes that were found alive in this turn
        self._journal = journal
        self._now_us = now_us
        self._time_us = time_us
        self._row_id = follower.at.row
        self._before: list[tuple[int, State]] = []
        self._in_flight_before: InFlight | None = None
        journal.begin()

    def decide(self, requests: Sequence[DecisionRequest]) -> None:
        """Decide requests, and charge the counters in memory."""
        for request in requests:
            self._decide_one(request)

    def take_back(self) -> None:
        """Undo the decisions, because their lines were not appended."""
        self._journal.take_back()
        self._states.update(reversed(self._before))
        if self._in_flight_before is not None:
            self._memory.in_flight = self._in_flight_before

    def _decide_one(self, request: DecisionRequest) -> None:
        counters = request.plan.counters
        if request.plan.caps:
            verdict, decision = self._decide_capped(request)
        else:
            verdict, decision = decide_one(request, [self._states.get(one.id, EMPTY) for one in counters], self._now_us)
        if decision.charged:
            self._before += self._memory.take(counters, decision, self._row_id, self._owner)
        self.verdicts.append(verdict)
        row = self._journal.row(request, verdict, self._time_us)
        if row is not None:
            verdict.row_id = self._row_id
            self.groups.append(log_lines.decision_lines(row, counters, decision, self._row_id, self._owner))
            self._row_id += 1

    def _decide_capped(self, request: DecisionRequest) -> tuple[Verdict, Decision]:
        """Decide a call with a cap on calls in flight. If the cap has no room, free the places of processes that have ended."""
        self._in_flight_before = self._in_flight_before or self._memory.in_flight.copy()
        counters = request.plan.counters
        verdict, decision = decide_one(request, self._follower.states_of(counters), self._now_us, self._row_id)
        limits = request.plan.limits
        if any(limits[at].counts == "concurrent" for at, _ in verdict.exceeded) and self._free_dead(counters):
            verdict, decision = decide_one(request, self._follower.states_of(counters), self._now_us, self._row_id)
        return verdict, decision

    def _free_dead(self, counters: Sequence[Counter]) -> bool:
        """Free all places of the processes that have places of these counters and have ended; returns whether there are any."""
        in_flight = self._memory.in_flight
        holders = {place.owner for place in in_flight.of([one.id for one in counters])}
        dead = self._owners.dead(holders - self._alive)
        self._alive |= holders - dead
        freed = [place for place in in_flight if place.owner in dead]
        for place in freed:
            in_flight.free(place.counter_id, place.call_id)
        if freed:
            self.groups.append("\n".join(log_lines.freed_line(place.counter_id, place.call_id) for place in freed))
        return bool(freed)
