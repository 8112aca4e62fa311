"""Requests in flight: sent to the server and not answered yet; the outcomes of those that have ended; and free retries.

A retry continues a charged call, because the server needs input before it can answer. The server's result then has the type
`input_required`, and the client calls again with the input. Such a retry is free only if the server has asked for it in this
session, in an answer to the same user and tool. Each such answer makes one retry free. All other calls are charged.
"""

from collections import deque
from collections.abc import Sequence

from mcpguard.light_typing import TYPE_CHECKING, Final, NamedTuple
from mcpguard.limiter.plan import Plan
from mcpguard.session.audit import ERRORS, Outcome
from mcpguard.session.verdict import DecisionRequest, Ending
from mcpguard.text.digest import blake2b
from mcpguard.text.printing import compact
from mcpguard.wire.frames import id_key

if TYPE_CHECKING:  # loaded with the first answer: a hook that decides a call sees none
    from mcpguard.wire.answers import Line, RetryInput


MAX_ROUNDS: Final = 10
"""Retries that one charge pays for. SDK clients make up to ten by themselves."""

_MAX_FREE: Final = 1024
"""How many retries are remembered. Beyond that the oldest is forgotten, because some are never made."""


class FreeRetries:
    """The retries that the server has asked for and that the client has not made yet."""

    def __init__(self) -> None:
        self._waiting: dict[bytes, list[int]] = {}

    def grant(self, user: str, tool: str, wanted: "RetryInput", rounds: int) -> None:
        """Make a retry free, because the server has asked for it.

        Args:
            user: The user who called.
            tool: The tool that was called.
            wanted: What the retry has to carry.
            rounds: The retry's number, from 1, among the retries of one charge. Beyond `MAX_ROUNDS` it is not free.
        """
        if rounds > MAX_ROUNDS:
            return
        ticket = _ticket(user, tool, wanted)
        if ticket not in self._waiting and len(self._waiting) >= _MAX_FREE:
            self._waiting.pop(next(iter(self._waiting)))
        waiting = self._waiting.setdefault(ticket, [])
        waiting.append(rounds)
        del waiting[:-_MAX_FREE]

    def redeem(self, user: str, tool: str, params: dict[str, object]) -> int:
        """Use up the free retry that a call makes.

        Args:
            user: The user who calls.
            tool: The tool that is called.
            params: The call's `params`.

        Returns:
            The retry's number among those of one charge; 0 if the call is not a free retry.
        """
        state = params.get("requestState")
        if not (state is None or type(state) is str):  # a long integer is not the text of its digits
            return 0
        ticket = _ticket(user, tool, _given(state, params))
        waiting = self._waiting.get(ticket)
        if not waiting:
            return 0
        rounds = waiting.pop()
        if not waiting:
            del self._waiting[ticket]
        return rounds

    def give_back(self, request: DecisionRequest) -> None:
        """Undo `redeem` for a call that was not forwarded. Nothing if it is not a free retry."""
        if not request.rounds:
            return
        params = request.frame.params
        state = params.get("requestState")
        assert state is None or isinstance(state, str)  # noqa: S101 - `redeem` refuses other states
        ticket = _ticket(request.call.user, request.call.tool, _given(state, params))
        self._waiting.setdefault(ticket, []).append(request.rounds)


def _given(state: str | None, params: dict[str, object]) -> "RetryInput":
    """What a call carries."""
    from mcpguard.wire.answers import RetryInput

    inputs = params.get("inputResponses")
    return RetryInput(state, frozenset(inputs) if isinstance(inputs, dict) else frozenset())


def _ticket(user: str, tool: str, carried: "RetryInput") -> bytes:
    """A digest by which a retry is recognised: of user, tool and state, or the keys of the input if there is no state."""
    text = compact((user, tool, sorted(carried.keys) if carried.state is None else carried.state))
    return blake2b(text.encode()).digest()


MAX_IN_FLIGHT: Final = 65_536
MAX_IN_FLIGHT_CHARS: Final = 8 * 1024 * 1024
"""How many requests are remembered, and the length of their ids and tool names. Beyond either bound the oldest request is
forgotten, because some are never answered. A forgotten request keeps its places until the server has ended or `MAX_IN_FLIGHT`
others were forgotten, because the server may still be busy with it. For limits on errors it has failed."""


class InFlight(NamedTuple):
    """A request that was sent to the server and is not answered yet.

    Attributes:
        id: Its id as JSON text.
        row_id: The store's id of its audit row; None if it has no row.
        since_us: When it was sent, by a monotone clock.
        tool: The tool that it calls; None if it is not a call.
        user: The caller.
        rounds: Its number among the free retries of one charge; 0 if it is not one.
        plan: Its plan, if the store has to be told of its end; else None. A request with a plan has a row.
    """

    id: str
    row_id: int | None
    since_us: int
    tool: str | None = None
    user: str = ""
    rounds: int = 0
    plan: Plan | None = None


class RequestsInFlight:
    """The requests in flight, by the key of their id, and the outcomes that are not recorded yet.

    The server may have one request with an id at a time: the answers to two could not be distinguished. Whoever adds a request
    asks `has_id` first. It is also true of a request that was cancelled or forgotten, until the server answers it after all.

    Args:
        retries: Gets the retries that the server asks for.
        most: How many requests are remembered.

    Attributes:
        outcomes: The outcomes to be recorded, oldest first.
        endings: The calls that have ended and that the store has to be told of at once. Whoever tells it empties the list.
        to_settle: How many of the requests in flight are such calls.
        by_id: The requests, by `id_key`; do not change them.
        late: The keys of requests that have ended here, and that the server may still answer; do not change them.
    """

    def __init__(self, retries: FreeRetries, most: int = MAX_IN_FLIGHT) -> None:
        self._retries = retries
        self._most = most
        self.endings: list[Ending] = []
        self.to_settle = 0
        self.by_id: dict[str, InFlight] = {}
        self._chars = 0
        self.outcomes: list[Outcome] = []
        self.late: dict[str, None] = {}
        self._forgotten: deque[Ending] = deque()  # calls that were forgotten and still have places

    @property
    def awaits_answers(self) -> bool:
        """Whether the server may answer a request."""
        return bool(self.by_id or self.late)

    def has_id(self, key: str) -> bool:
        """Whether the server may still answer a request with an id; see `id_key`."""
        return key in self.by_id or key in self.late

    def add(self, key: str, request_id: str, now_us: int, call: DecisionRequest | None = None) -> None:
        """Remember a request that is being sent.

        Args:
            key: The `id_key` of its id.
            request_id: Its id as JSON text.
            now_us: A monotone clock's reading.
            call: If it is a call, the request that was decided.
        """
        requests = self.by_id
        if call is None:
            requests[key] = InFlight(request_id, None, now_us)
        else:
            settled = _settled_plan(call) if call.plan.settles or call.whole_plan else None
            values = (request_id, call.verdict.row_id, now_us, call.call.tool, call.call.user, call.rounds, settled)
            requests[key] = tuple.__new__(InFlight, values)  # half the time of `InFlight(…)`
            self._chars += len(call.call.tool)
            if settled is not None:
                self.to_settle += 1
        self._chars += len(request_id)
        while len(requests) > self._most or self._chars > MAX_IN_FLIGHT_CHARS:
            self._forget(next(iter(requests)), now_us)

    def read_answers(self, lines: "Sequence[Line]", now_us: int) -> None:
        """End the requests that the server has answered. If it wants a call to be made again, that is free.

        The answer to a request that was cancelled or forgotten changes nothing.

        Args:
            lines: The lines that may be answers.
            now_us: When they were read.
        """
        from mcpguard.wire import answers

        for line in lines:
            if not self.awaits_answers:
                return
            for answer in answers.read(line):
                key = id_key(answer.id)
                if key in self.late:
                    del self.late[key]
                elif (request := self.end(key, answer.outcome, now_us)) and answer.wanted and request.tool is not None:
                    self._retries.grant(request.user, request.tool, answer.wanted, request.rounds + 1)

    def cancel(self, key: str, now_us: int) -> None:
        """End a request that the client has cancelled, if it is in flight. The server may still answer it."""
        if self.end(key, "cancelled", now_us):
            self._expect_late_answer(key)

    def end(self, key: str, outcome: str, now_us: int) -> InFlight | None:
        """Forget a request and return it; None if it is not in flight. Its outcome is kept if it has a row."""
        request = self._remove(key, outcome, now_us)
        if request is not None and request.plan is not None and request.row_id is not None:
            self.endings.append(Ending(request.row_id, request.plan, failed=outcome in ERRORS))
        return request

    def _remove(self, key: str, outcome: str, now_us: int) -> InFlight | None:
        """Remove a request and return it. Its outcome is kept if it has a row."""
        request = self.by_id.pop(key, None)
        if request is None:
            return None
        self._chars -= len(request.id) + len(request.tool or "")
        if request.row_id is not None:
            self.outcomes.append(Outcome(request.row_id, outcome, now_us - request.since_us))
        if request.plan is not None:
            self.to_settle -= 1
        return request

    def _forget(self, key: str, now_us: int) -> None:
        """Forget a request. Its places stay taken."""
        request = self._remove(key, "no_answer", now_us)
        self._expect_late_answer(key)
        if request is None or request.row_id is None or request.plan is None:
            return
        errors = request.plan.only(lambda limit: limit.counts == "errors")
        if errors.settles:
            self.endings.append(Ending(0, errors, failed=True))  # no call has this id, so no place is freed
        if request.plan.caps:
            self._forgotten.append(Ending(request.row_id, request.plan, failed=False))
            if len(self._forgotten) > self._most:
                self.endings.append(self._forgotten.popleft())

    def _expect_late_answer(self, key: str) -> None:
        self.late[key] = None
        if len(self.late) > self._most:
            del self.late[next(iter(self.late))]

    def end_all(self, outcome: str, now_us: int) -> list[str]:
        """Forget all requests; returns their ids as JSON text, oldest first."""
        ids = [request.id for request in self.by_id.values()]
        for key in list(self.by_id):
            self.end(key, outcome, now_us)
        self.endings += self._forgotten
        self._forgotten.clear()
        return ids

    def take_outcomes(self, most: int) -> list[Outcome]:
        """Remove and return the oldest outcomes, at most `most`."""
        taken, self.outcomes = self.outcomes[:most], self.outcomes[most:]
        return taken


def _settled_plan(request: DecisionRequest) -> Plan | None:
    """The plan of a forwarded call, if the store has to be told of the call's end; else None.

    A free retry counts as an error if it fails, although it need not pass the limits on errors. An observed rule whose limit on
    errors had no room does not count the call, as if it had denied it.
    """
    plan = request.whole_plan or request.plan
    if request.verdict.decision == "would_deny":
        full = request.verdict.rules_without_room
        plan = plan.only(lambda limit: limit.counts != "errors" or limit.rule not in full)
    return plan if plan.settles else None
