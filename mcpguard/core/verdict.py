"""The request for a decision that the core sends to a store, and the verdict that comes back."""

from collections.abc import Sequence
from typing import Final, Literal

from mcpguard.core import limiter
from mcpguard.core.jsonrpc.frames import Frame
from mcpguard.core.limiter import Decision, State, charge, live
from mcpguard.core.policy.model import Call, Plan, Reported

Decided = Literal[
    "allowed",
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
"""The values of `decision` in an audit record."""

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
    """

    def __init__(
        self,
        call: Call,
        plan: Plan,
        context: str,
        frame: Frame | None = None,
        request_id: str | None = None,
        *,
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
        self.trace_id = trace_id
        self.detail = {} if detail is None else detail
        self.decided = decided
        self.why = ""
        self.rounds = 0
        self.client_name: str | None = None


class Verdict:
    """The decision on a call.

    Attributes:
        decision: One of `Decided`.
        reported: The limit that decided: the exceeded limit with the longest wait. If none is exceeded, the enforced limit with
            the least quota left, or an observed one if none is enforced.
        count: The calls in the counter of `reported`. In a denial, plus this session's denials on the counter since the last
            admission.
        remaining: How many calls `reported` still admits.
        retry_after_us: The wait after which all limits have room; None if they have room, or if waiting does not help.
        exceeded: Every limit without room, with its wait; the wait is None if waiting does not help.
        audit_id: The id of the audit row.
        row_id: The store's id of that row, which joins the outcome to it.
        has_own_row: Whether the call has an audit row of its own; equal denials share one.
    """

    def __init__(
        self,
        decision: Decided,
        reported: Reported | None = None,
        *,
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

    @property
    def forwards(self) -> bool:
        """Whether the call is forwarded to the server."""
        return self.decision in FORWARDED


def verdict(plan: Plan, decision: Decision) -> Verdict:
    """The verdict that follows from a decision on a plan's limits."""
    if not decision.exceeded:
        return _allowed(plan, decision.used)
    longest, wait = decision.exceeded[0]
    for at, other in decision.exceeded:
        if wait is not None and (other is None or other > wait):
            longest, wait = at, other
    limit = plan.limits[longest]
    used = decision.used[limit.counter] if limit.n else None
    word: Decided = "would_deny" if decision.admitted else "denied" if wait is None else "rate_limited"
    return Verdict(
        word,
        plan.reported[longest],
        count=used,
        remaining=None if used is None else max(0, limit.n - used),
        retry_after_us=wait,
        exceeded=tuple([(plan.reported[at], each) for at, each in decision.exceeded]),
    )


def _allowed(plan: Plan, used: Sequence[int]) -> Verdict:
    tightest, count, least = -1, 0, (False, 0)  # an enforced limit is tighter than any observed one
    for at, (n, _, counter, _, observe) in enumerate(plan.limits):
        left = (observe, n - used[counter] - 1)
        if tightest < 0 or left < least:
            tightest, count, least = at, used[counter] + 1, left
    if tightest < 0:
        return Verdict("allowed")
    return Verdict("allowed", plan.reported[tightest], count=count, remaining=least[1])


def decide_one(request: DecisionRequest, states: Sequence[State], now_us: int) -> tuple[Verdict, Decision]:
    """Decide one request against the logs of its counters, which are in the plan's order.

    Returns:
        The verdict, and the decision with the new logs.
    """
    if request.decided is not None:
        return Verdict(request.decided), _NOTHING
    return _decide(request.plan, states, now_us)


def _decide(plan: Plan, states: Sequence[State], now_us: int) -> tuple[Verdict, Decision]:
    decision = limiter.decide(plan.limits, states, now_us)
    return verdict(plan, decision), decision


def admit(plan: Plan, states: Sequence[State], now_us: int) -> tuple[Verdict, list[State]] | None:
    """Decide a usual call in half of the time of `decide_one`.

    A usual call has limits, and each has room and a counter of its own that is in use.

    Returns:
        The verdict, and the new logs of the counters. None if the call is not a usual one.
    """
    limits = plan.limits
    if len(limits) != len(states):
        return None
    after: list[State] = []
    tightest, count, least, is_observed = -1, 0, 0, False
    for at, (n, window_us, counter, _, observe) in enumerate(limits):
        log = states[at]
        if counter != at or not log or log[-2] > now_us:
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
        after.append(charge(log, n, window_us, now_us))
    return (Verdict("allowed", plan.reported[tightest], count=count, remaining=least), after) if after else None


def next_call(plan: Plan, states: Sequence[State], now_us: int) -> Verdict:
    """The verdict that a call with this plan would get now. Nothing is charged."""
    return _decide(plan, states, now_us)[0]


_NOTHING: Final = Decision(False, (), (), ())
