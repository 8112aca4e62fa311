"""Requests in flight: sent to the server and not answered yet; and the outcomes of those that have ended."""

from collections import deque
from typing import Final, NamedTuple

from mcpguard.core.audit import ERRORS, Outcome
from mcpguard.core.policy.plan import Plan
from mcpguard.core.verdict import DecisionRequest, Ending, Verdict

MAX_IN_FLIGHT: Final = 65_536
MAX_IN_FLIGHT_CHARS: Final = 8 * 1024 * 1024
"""How many requests are remembered, and the length of their ids and tool names. Beyond either bound the oldest request is
forgotten, because some are never answered. A forgotten request keeps its places until the server has ended or `MAX_IN_FLIGHT`
others were forgotten, because the server may still be busy with it."""


class InFlight(NamedTuple):
    """A request that was sent to the server and is not answered yet.

    Attributes:
        row_id: The store's id of its audit row; None if it has no row.
        since_us: When it was sent, by a monotone clock.
        tool: The tool that it calls; None if it is not a call.
        user: The caller.
        rounds: Its number among the free retries of one charge; 0 if it is not one.
        plan: Its plan, if the store has to be told of its end; else None. A request with a plan has a row.
        has_outcome: Whether its outcome is kept already.
    """

    row_id: int | None
    since_us: int
    tool: str | None = None
    user: str = ""
    rounds: int = 0
    plan: Plan | None = None
    has_outcome: bool = False


class RequestsInFlight:
    """The requests in flight, by id, and the outcomes that are not recorded yet.

    Attributes:
        endings: The calls that have ended and that the store has to be told of at once. Whoever tells it empties the list.
        to_settle: How many of the requests in flight are such calls.
        by_id: The requests; do not change them.
    """

    def __init__(self) -> None:
        self.endings: list[Ending] = []
        self.to_settle = 0
        self.by_id: dict[str, InFlight] = {}
        self._chars = 0
        self._outcomes: list[Outcome] = []
        # Calls that still have places: by id those before a later request with the same id, and those that were forgotten
        self._earlier: dict[str, list[Ending]] = {}
        self._earlier_count = 0
        self._forgotten: deque[Ending] = deque()

    @property
    def outcomes(self) -> int:
        """How many outcomes there are to be recorded."""
        return len(self._outcomes)

    def add(self, request_id: str, request: InFlight) -> None:
        """Remember a request that is being sent.

        An earlier request with the same id ends as `no_answer`, because the answers to the two cannot be distinguished. Its
        places are freed when both are answered.
        """
        requests = self.by_id
        if request_id in requests:
            self._keep_places(request_id, self._remove(request_id, "no_answer", request.since_us))
        requests[request_id] = request
        if request.plan is not None:
            self.to_settle += 1
        self._chars += len(request_id) + len(request.tool or "")
        while len(requests) > MAX_IN_FLIGHT or self._chars > MAX_IN_FLIGHT_CHARS:
            self._forget(next(iter(requests)), request.since_us)

    def end(self, request_id: str, outcome: str, now_us: int) -> InFlight | None:
        """Forget a request and return it; None if it is not in flight. Its outcome is kept if it has a row."""
        request = self._remove(request_id, outcome, now_us)
        if request is None:
            return None
        if request.plan is not None and request.row_id is not None:
            self.endings.append(Ending(request.row_id, request.plan, failed=outcome in ERRORS))
        if request_id in self._earlier:
            self._expect_another_answer(request_id, now_us)
        return request

    def _remove(self, request_id: str, outcome: str, now_us: int) -> InFlight | None:
        """Remove a request and return it. Its outcome is kept if it has a row."""
        request = self.by_id.pop(request_id, None)
        if request is None:
            return None
        self._chars -= len(request_id) + len(request.tool or "")
        if request.row_id is not None and not request.has_outcome:
            self._outcomes.append(Outcome(request.row_id, outcome, now_us - request.since_us))
        if request.plan is not None:
            self.to_settle -= 1
        return request

    def _forget(self, request_id: str, now_us: int) -> None:
        """Forget a request; its places stay taken."""
        earlier = self._earlier.pop(request_id, [])
        self._earlier_count -= len(earlier)
        self._forgotten += [*earlier, *_places(self._remove(request_id, "no_answer", now_us))]
        while len(self._forgotten) > MAX_IN_FLIGHT:
            self.endings.append(self._forgotten.popleft())

    def _keep_places(self, request_id: str, request: InFlight | None) -> None:
        """Keep the places of a call whose id a later request has."""
        for ending in _places(request):
            if self._earlier_count < MAX_IN_FLIGHT:
                self._earlier.setdefault(request_id, []).append(ending)
                self._earlier_count += 1
            else:
                self.endings.append(ending)

    def _expect_another_answer(self, request_id: str, now_us: int) -> None:
        """Let an earlier call with an id be in flight, after a later one has ended."""
        earlier = self._earlier[request_id]
        ending = earlier.pop()
        self._earlier_count -= 1
        if not earlier:
            del self._earlier[request_id]
        self.add(request_id, InFlight(ending.row_id, now_us, plan=ending.plan, has_outcome=True))

    def end_all(self, outcome: str, now_us: int) -> list[str]:
        """Forget all requests; returns their ids, oldest first."""
        ids = list(self.by_id)
        for request_id in ids:
            while self.end(request_id, outcome, now_us):
                pass
        self.endings += self._forgotten
        self._forgotten.clear()
        return ids

    def take_outcomes(self, most: int) -> list[Outcome]:
        """Remove and return the oldest outcomes, at most `most`."""
        taken, self._outcomes = self._outcomes[:most], self._outcomes[most:]
        return taken

    def drop_outcomes(self) -> None:
        """Forget all outcomes that are not recorded."""
        self._outcomes.clear()


def settled_plan(request: DecisionRequest, verdict: Verdict) -> Plan | None:
    """The plan of a forwarded call, if the store has to be told of the call's end; else None.

    A free retry counts as an error if it fails, although it need not pass the limits on errors. An observed rule whose limit on
    errors had no room does not count the call, as if it had denied it.
    """
    plan = request.whole_plan or request.plan
    if verdict.decision == "would_deny":
        full = {limit.rule for limit, _ in verdict.without_room(plan)}
        plan = plan.only(lambda limit: limit.counts != "errors" or limit.rule not in full)
    return plan if plan.settles else None


def _places(request: InFlight | None) -> list[Ending]:
    """The end of a call, if it has places."""
    if request is None or request.row_id is None or request.plan is None or not request.plan.caps:
        return []
    return [Ending(request.row_id, request.plan, failed=False)]
