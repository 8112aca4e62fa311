"""The request for a decision that the core sends to a store, and the verdict that comes back."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Literal, NamedTuple, Self

from mcpguard.limiter import sliding
from mcpguard.limiter.plan import Counter, Plan, Reported
from mcpguard.limiter.sliding import EXACT, Decision, Limit, State, charge, live, used
from mcpguard.limiter.waiting import is_held
from mcpguard.policy.model import Call
from mcpguard.wire.frames import Frame

Decided = Literal[
    "allowed",
    "held",
    "rate_limited",
    "denied",
    "would_deny",
    "continued",
    "unauthenticated",
    "invalid",
    "unavailable",
    "allowed_unavailable",
    "policy",
]
"""The values of `decision` in an audit record. `held` is in no record: such a call is decided anew, see `limiter.waiting`."""

FORWARDED: frozenset[Decided] = frozenset({"allowed", "would_deny", "continued", "allowed_unavailable"})
"""The decisions after which a call is forwarded to the server."""

REFUSED: frozenset[Decided] = frozenset({"rate_limited", "denied", "unauthenticated", "invalid", "unavailable"})
"""The decisions that charge nothing. No limit bounds their number, so the journal's budget bounds their rows."""


class DecisionRequest:
    """What a store decides about one message, and the audit row that it writes.

    Attributes:
        call: The caller and the tool.
        plan: The limits that the call must pass.
        context: The caller and the tool in the audit row: a JSON object, as text.
        frame: The frame to forward if the call is allowed; None if the request only writes a row.
        request_id: The request's id as JSON text.
        args_hash: A keyed hash of the call's arguments.
        trace_id: 32 hex digits from the call's `traceparent`.
        detail: Further members of the audit record.
        decided: The decision, if it does not depend on a limit. Then the store only writes the row.
        why: A sentence for the client that states the cause of a denial that no rule made.
        rounds: The call's number among the free retries of one charge; 0 if it is not a free retry.
        client_name: The client's name, which selects the form of a denial; None if the client gave none.
        waited_us: How long the call has been held; None if it is denied at once without room.
        is_behind: Whether an earlier call waits for one of its counters. Then it is held if there is room.
        whole_plan: Of a free retry, the plan with the limits that it need not pass; else None.
    """

    # few calls have others, and each attribute that is set takes time; so does each default of a keyword-only argument
    why = ""
    client_name: str | None = None
    is_behind = False
    whole_plan: Plan | None = None

    def __init__(
        self,
        call: Call,
        plan: Plan,
        context: str,
        frame: Frame | None = None,
        request_id: str | None = None,
        args_hash: bytes | None = None,
        trace_id: str | None = None,
        detail: dict[str, object] | None = None,
        decided: Decided | None = None,
    ) -> None:
        self.call = call
        self.plan = plan
        self.context = context
        self.frame = frame
        self.request_id = request_id
        self.args_hash = args_hash
        self.detail = {} if detail is None else detail
        self.trace_id = trace_id
        self.decided = decided
        self.rounds = 0
        self.waited_us: int | None = None

    def with_plan(self, plan: Plan) -> Self:
        """A copy with another plan."""
        made = self.__new__(type(self))
        made.__dict__ |= self.__dict__
        made.plan = plan
        return made


class Ending(NamedTuple):
    """A forwarded call that has ended. The store is told if the call's plan `settles`.

    Attributes:
        row_id: The store's id of the call's row.
        plan: The call's plan.
        failed: Whether its outcome is one of `audit.ERRORS`.
    """

    row_id: int
    plan: Plan
    failed: bool


class Lease:
    """A place of a call in flight that the store takes back if this process stops or cannot reach the store for long.

    Attributes:
        until_us: Until when the call may be forwarded, by `stores.clock.boot_us`. It grows while the store renews the lease.
    """

    __slots__ = ("until_us",)

    def __init__(self, until_us: int) -> None:
        self.until_us = until_us


class Verdict:
    """The decision on a call.

    Attributes:
        decision: One of `Decided`.
        reported: The limit that decided. Of exceeded limits: one that denies, else one that the call costs more than, else a
            cap on calls in flight, else the limit with the longest wait. If none is exceeded: the limit on calls or cost with
            the least quota left, else another limit; an enforced limit goes before all observed ones.
        count: What the counter of `reported` holds. In a denial, plus this session's denials on the counter since the last
            admission.
        remaining: How many calls `reported` still admits.
        retry_after_us: The wait after which all limits have room; None if they have room, or if waiting does not help.
        exceeded: Every limit without room, with its wait; the wait is None if waiting does not help.
        audit_id: The id of the audit row.
        row_id: The store's id of that row, which joins the outcome to it.
        has_own_row: Whether the call has an audit row of its own; equal denials share one.
        in_flight: How many calls are in flight, with this one if it is admitted, on the cap that has the least room; None if
            there is no cap.
        cost: What the call takes of `reported`, if that counts cost; else None.
        states: Of a held call, the states of the plan's counters; else empty.
        now_us: Of a held call, the store's time; else 0.
        lease: Of a call that has a place, its lease, if the place has one; else None.
    """

    # few verdicts have others, and each attribute that is set takes time; so does each default of a keyword-only argument
    in_flight: int | None = None
    cost: int | None = None
    states: Sequence[State] = ()
    now_us = 0
    lease: Lease | None = None

    def __init__(
        self,
        decision: Decided,
        reported: Reported | None = None,
        count: int | None = None,
        remaining: int | None = None,
        retry_after_us: int | None = None,
        exceeded: tuple[tuple[Reported, int | None], ...] = (),
        audit_id: str = "",
        row_id: int | None = None,
    ) -> None:
        self.decision = decision
        self.reported = reported
        self.count = count
        self.remaining = remaining
        self.retry_after_us = retry_after_us
        self.exceeded = exceeded
        self.audit_id = audit_id
        self.row_id = row_id
        self.has_own_row = False

    def copy(self) -> Self:
        """A copy, which is cheaper than another verdict."""
        made = self.__new__(type(self))
        made.__dict__ |= self.__dict__
        return made

    def later(self, passed_us: int) -> Self:
        """The verdict some time later, if nothing else has happened: all waits are shorter."""
        found = self.copy()
        found.retry_after_us = _shorter(self.retry_after_us, passed_us)
        found.exceeded = tuple([(reported, _shorter(wait_us, passed_us)) for reported, wait_us in self.exceeded])
        return found

    @property
    def forwards(self) -> bool:
        """Whether the call is forwarded to the server."""
        return self.decision in FORWARDED

    def without_room(self, plan: Plan) -> list[tuple[Limit, Reported]]:
        """The limits of the call's plan that had no room, each with how it is reported."""
        exceeded = [reported for reported, _ in self.exceeded]
        return [(limit, one) for limit, one in zip(plan.limits, plan.reported, strict=True) if one in exceeded]

    def taken_caps(self, plan: Plan) -> list[Counter]:
        """The counters of calls in flight on which an admitted call has a place. An observed rule without room gives none."""
        without_room = {limit.rule for limit, _ in self.without_room(plan)}
        caps = [limit for limit in plan.limits if limit.counts == "concurrent" and limit.rule not in without_room]
        return [plan.counters[counter] for counter in dict.fromkeys(limit.counter for limit in caps)]

    @property
    def reason(self) -> str | None:
        """Why the call is not within its limits: `rate_limited`, `concurrent`, `failing`, `too_costly` or `denied`."""
        if not self.exceeded or self.reported is None:
            return None
        return "denied" if self.reported.limit is None else reason(self.reported.counts, self.retry_after_us)


def _shorter(wait_us: int | None, passed_us: int) -> int | None:
    return None if wait_us is None else max(0, wait_us - passed_us)


def verdict(plan: Plan, decision: Decision) -> Verdict:
    """The verdict that follows from a decision on a plan's limits."""
    found = _exceeding(plan, decision) if decision.exceeded else _allowed(plan, decision.used)
    if plan.caps:
        found.in_flight = _in_flight(plan, decision)
    return found


def _exceeding(plan: Plan, decision: Decision) -> Verdict:
    at, wait = decision.exceeded[0]
    if len(decision.exceeded) > 1:
        at, wait = max(decision.exceeded, key=lambda one: severity(plan.limits[one.limit], one.retry_after_us))
    limit = plan.limits[at]
    used = decision.used[limit.counter] if limit.n else None
    word: Decided = "would_deny" if decision.admitted else "rate_limited" if limit.n else "denied"
    found = Verdict(
        word,
        plan.reported[at],
        count=used,
        remaining=None if used is None else max(0, limit.n - used),
        retry_after_us=wait,
        exceeded=tuple([(plan.reported[at], each) for at, each in decision.exceeded]),
    )
    if limit.counts == "cost":
        found.cost = limit.cost
    return found


def severity(limit: Limit, retry_after_us: int | None) -> tuple[int, int]:
    """Of several exceeded limits, the one with the highest severity is reported; of equal ones, the first."""
    if retry_after_us is not None:
        return 0, retry_after_us
    return (3 if not limit.n else 1 if limit.counts == "concurrent" else 2), 0


def _allowed(plan: Plan, used: Sequence[int]) -> Verdict:
    tightest, count, least = -1, 0, (False, False, 0)
    for at, limit in enumerate(plan.limits):
        taken = 0 if limit.counts == "errors" else limit.cost
        total = used[limit.counter] + taken
        left = (limit.observe, limit.counts in {"errors", "concurrent"}, limit.n - total)
        if tightest < 0 or left < least:
            tightest, count, least = at, total, left
    if tightest < 0:
        return Verdict("allowed")
    found = Verdict("allowed", plan.reported[tightest], count=count, remaining=least[2])
    if plan.limits[tightest].counts == "cost":
        found.cost = plan.limits[tightest].cost
    return found


def _in_flight(plan: Plan, decision: Decision) -> int:
    taken = {limit.counter for limit in decision.charged if limit.counts == "concurrent"}
    totals = [(one.n, decision.used[one.counter] + (one.counter in taken)) for one in plan.limits if one.counts == "concurrent"]
    return min(totals, key=lambda one: one[0] - one[1])[1]


def decide_one(request: DecisionRequest, states: Sequence[State], now_us: int, call_id: int = 0) -> tuple[Verdict, Decision]:
    """Decide one request against the states of its counters, which are in the plan's order.

    Args:
        request: The request.
        states: The states.
        now_us: The store's time.
        call_id: The id by which counters of calls in flight know the call: that of its row.

    Returns:
        The verdict, and the decision with the new states. A call that is held is not charged.
    """
    if request.decided is not None:
        return Verdict(request.decided), _NOTHING
    plan = request.plan
    decision = sliding.decide(plan.limits, states, now_us, call_id)
    found = verdict(plan, decision)
    if (
        request.is_behind
        if decision.admitted
        else request.waited_us is not None and is_held(plan.limits, decision.exceeded, request.waited_us)
    ):
        found.decision, found.states, found.now_us = "held", states, now_us
        return found, _NOTHING
    if request.rounds and found.decision == "allowed":
        found.decision = "continued"
    return found, decision


def admit(plan: Plan, logs: Mapping[int, State], now_us: int) -> tuple[Verdict, list[tuple[int, State]]] | None:
    """Decide a usual call in half of the time of `decide_one`.

    A usual call has limits on calls, and each has room and a counter of its own that is in use.

    Args:
        plan: The call's plan.
        logs: The logs of counters, by id.
        now_us: The store's time.

    Returns:
        The verdict, and each counter's id and new log. None if the call is not a usual one.
    """
    if not plan.is_plain:
        return None
    after: list[tuple[int, State]] = []
    tightest, count, least, is_observed = -1, 0, 0, False
    for at, (key, n, window_us, grain_us, observe) in enumerate(plan.plain_limits):
        log = logs.get(key)
        if not log or log[-2] > now_us:
            return None
        if log[1] <= now_us - window_us:
            log = live(log, window_us, now_us)
            if not log:
                return None
        used = sum(log[2::2])
        left = n - used - 1
        if left < 0:
            return None
        if tightest < 0 or (left < least if observe is is_observed else is_observed):
            tightest, count, least, is_observed = at, used + 1, left, observe
        if now_us - log[0] < grain_us:  # as `charge` does it
            after.append((key, (*log[:-2], now_us, log[-1] + 1)))
        else:
            after.append((key, charge(log, n, window_us, now_us)))
    return Verdict("allowed", plan.reported[tightest], count, least), after


MAX_RUN_ID_CHARS: Final = 64
"""The longest id of a request in a run."""


def runs(requests: Sequence[DecisionRequest]) -> Iterator[Sequence[DecisionRequest]]:
    """Split requests into runs, in order. A run consists of one request, or of calls that differ only in id and arguments.

    At one time, the calls of a run are either admitted until a limit has no room, or all denied for the same reason.
    """
    start = 0
    for at, request in enumerate(requests):
        if at > start and not _is_alike(requests[start], request):
            yield requests[start:at]
            start = at
    yield requests[start:] if start else requests


def _is_alike(first: DecisionRequest, other: DecisionRequest) -> bool:
    """Whether a request may be in a run with the one that the run begins with."""
    return (
        other.plan is first.plan
        and other.context is first.context
        and _can_repeat(other)
        and (first.args_hash is None) is (other.args_hash is None)
        and _can_repeat(first)
    )


def _can_repeat(request: DecisionRequest) -> bool:
    """Whether a request is a call without anything that only some calls have."""
    return (
        request.decided is None
        and request.frame is not None
        and request.waited_us is None
        and request.trace_id is None
        and not (request.rounds or request.detail or request.plan.caps)
        and request.request_id is not None
        and len(request.request_id) <= MAX_RUN_ID_CHARS
    )


def admit_some(
    plan: Plan, logs: Mapping[int, State], now_us: int, calls: int
) -> tuple[int, Verdict, list[tuple[int, State]]] | None:
    """Decide as many as possible of some equal calls, as `admit` decides one.

    Returns:
        How many calls have room, the verdict of the first, and each counter's id and new log. The `count` of each further call
        is one more, its `remaining` one less. None if the first call is not a usual one, nor one without limits.
    """
    if not plan.limits:
        return calls, Verdict("allowed"), []
    first = admit(plan, logs, now_us)
    if first is None:
        return None
    verdict, after = first
    further = min([calls - 1, *(limit.n - used(log) for limit, (_, log) in zip(plan.limits, after, strict=True))])
    for at, (n, window_us, *_) in enumerate(plan.limits):
        key, log = after[at]
        for cost in [further] if n > EXACT and further else [1] * further:
            log = charge(log, n, window_us, now_us, cost)
        after[at] = key, log
    return 1 + further, verdict, after


_NOTHING: Final = Decision(False, (), (), ())


def reason(counts: str | None, retry_after: int | None) -> str:
    """Why a call is not within a limit without room; see `Verdict.reason`.

    Args:
        counts: What the limit counts; see `Reported`.
        retry_after: The wait until it has room; None if waiting does not help, or for calls in flight.
    """
    if counts == "concurrent":
        return "concurrent"
    if counts == "errors":
        return "failing"
    return "rate_limited" if retry_after is not None else "too_costly"
