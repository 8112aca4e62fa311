"""Requests in flight: sent to the server and not answered yet; and the outcomes of those that have ended."""

from typing import Final, NamedTuple

from mcpguard.core.audit import Outcome
from mcpguard.core.policy.plan import Plan
from mcpguard.core.verdict import Ending

MAX_IN_FLIGHT: Final = 65_536
MAX_IN_FLIGHT_CHARS: Final = 8 * 1024 * 1024
"""How many requests are remembered, and the length of their ids and tool names. Beyond either bound the oldest request is
forgotten, because some are never answered."""


FAILED: Final = frozenset({"tool_error", "rpc_error"})
"""The outcomes that limits on errors count."""


class InFlight(NamedTuple):
    """A request that was sent to the server and is not answered yet.

    Attributes:
        row_id: The store's id of its audit row; None if it has no row.
        since_us: When it was sent, by a monotone clock.
        tool: The tool that it calls; None if it is not a call.
        user: The caller.
        rounds: Its number among the free retries of one charge; 0 if it is not one.
        plan: Its plan, if the store has to be told of its end; else None. A request with a plan has a row.
    """

    row_id: int | None
    since_us: int
    tool: str | None = None
    user: str = ""
    rounds: int = 0
    plan: Plan | None = None


class RequestsInFlight:
    """The requests in flight, by id, and the outcomes that are not recorded yet.

    Attributes:
        endings: The calls that have ended and that the store has to be told of at once. Whoever tells it empties the list.
        to_settle: How many of the requests in flight are such calls.
    """

    def __init__(self) -> None:
        self.endings: list[Ending] = []
        self.to_settle = 0
        self._requests: dict[str, InFlight] = {}
        self._chars = 0
        self._outcomes: list[Outcome] = []

    def __len__(self) -> int:
        return len(self._requests)

    def __contains__(self, request_id: str | None) -> bool:
        return request_id in self._requests

    @property
    def outcomes(self) -> int:
        """How many outcomes there are to be recorded."""
        return len(self._outcomes)

    def add(self, request_id: str, request: InFlight) -> None:
        """Remember a request that is being sent.

        An earlier request with the same id ends as `no_answer`, because the answers to the two cannot be distinguished.
        """
        requests = self._requests
        if request_id in requests:
            self.end(request_id, "no_answer", request.since_us)
        requests[request_id] = request
        if request.plan is not None:
            self.to_settle += 1
        self._chars += len(request_id) + len(request.tool or "")
        while len(requests) > MAX_IN_FLIGHT or self._chars > MAX_IN_FLIGHT_CHARS:
            self.end(next(iter(requests)), "no_answer", request.since_us)

    def end(self, request_id: str, outcome: str, now_us: int) -> InFlight | None:
        """Forget a request and return it; None if it is not in flight. Its outcome is kept if it has a row."""
        request = self._requests.pop(request_id, None)
        if request is None:
            return None
        self._chars -= len(request_id) + len(request.tool or "")
        if request.row_id is not None:
            self._outcomes.append(Outcome(request.row_id, outcome, now_us - request.since_us))
            if request.plan is not None:
                self.to_settle -= 1
                self.endings.append(Ending(request.row_id, request.plan, failed=outcome in FAILED))
        return request

    def end_all(self, outcome: str, now_us: int) -> list[str]:
        """Forget all requests; returns their ids, oldest first."""
        ids = list(self._requests)
        for request_id in ids:
            self.end(request_id, outcome, now_us)
        return ids

    def take_outcomes(self, most: int) -> list[Outcome]:
        """Remove and return the oldest outcomes, at most `most`."""
        taken, self._outcomes = self._outcomes[:most], self._outcomes[most:]
        return taken

    def drop_outcomes(self) -> None:
        """Forget all outcomes that are not recorded."""
        self._outcomes.clear()
