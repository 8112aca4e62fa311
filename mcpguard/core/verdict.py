"""What the core asks a store, and what it gets back."""

from collections.abc import Sequence
from typing import Final, Literal

from mcpguard.core import limiter
from mcpguard.core.frames import Frame
from mcpguard.core.limiter import Decision, State
from mcpguard.core.policy import Call, Plan, Reported

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
"""How something that has a row in the audit was decided: the `decision` of its record."""

FORWARDED: frozenset[Decided] = frozenset({"allowed", "would_deny", "continued", "allowed_unavailable"})
"""The decisions after which a call goes on to the server."""

REFUSED: frozenset[Decided] = frozenset({"rate_limited", "denied", "unauthenticated", "invalid", "unavailable"})
"""The decisions that charge nothing, so that only a budget bounds how many there are."""


class DecisionRequest:
    """What a store has to decide, and the audit row that it writes for it.

    Attributes:
        call: Who calls what.
        plan: What it has to pass.
        context: What the audit says of who called what, as a JSON object.
        frame: What is forwarded if it is admitted.
        request_id: The request's id as JSON text.
        args_hash: A keyed hash of the call's arguments.
        trace_id: 32 hex digits from the call's `traceparent`.
        detail: What else the audit says, as members of a JSON object.
        decided: Set if it is decided already and has only to be written.
        why: Then, if it is a denial, the sentence that the client gets.
        rounds: Its number among the free retries of one charge; 0 if it is none.
        client_name: What the client calls itself, for the form of a denial; None if it has given no name.
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
    """What became of a charge.

    Attributes:
        decision: The decision, as the audit has it.
        reported: The limit that decided: of those that said no the one with the longest wait, else the tightest, which is an
            observed one only if none is enforced.
        count: What its counter holds, and with a denial the denials since.
        remaining: Calls that it still admits.
        retry_after_us: The wait that is enough for all limits; None if waiting does not help, or need not.
        exceeded: Every limit that said no, with its wait; None if waiting does not help.
        audit_id: The id of the audit row that tells of it.
        row_id: The store's own handle on that row, for its outcome.
        news: Whether it has an audit row of its own; equal denials share one.
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
        """Whether the call goes on to the server."""
        return self.decision in FORWARDED


def verdict(plan: Plan, decision: Decision) -> Verdict:
    """What a decision on a plan's limits means."""
    if not decision.exceeded:
        return _allowed(plan, decision)
    exceeded = tuple((plan.reported[at], wait) for at, wait in decision.exceeded)
    longest, wait = max(decision.exceeded, key=lambda one: float("inf") if one[1] is None else one[1])
    limit = plan.limits[longest]
    held = decision.used[limit.counter] if limit.n else None
    word: Decided = "would_deny" if decision.admitted else "denied" if wait is None else "rate_limited"
    return Verdict(
        word,
        plan.reported[longest],
        count=held,
        remaining=None if held is None else max(0, limit.n - held),
        retry_after_us=wait,
        exceeded=exceeded,
    )


def _allowed(plan: Plan, decision: Decision) -> Verdict:
    tightest, least = -1, (False, 0)
    for at, limit in enumerate(plan.limits):
        left = (limit.observe, limit.n - decision.used[limit.counter] - 1)
        if tightest < 0 or left < least:
            tightest, least = at, left
    if tightest < 0:
        return Verdict("allowed")
    return Verdict(
        "allowed",
        plan.reported[tightest],
        count=decision.used[plan.limits[tightest].counter] + 1,
        remaining=least[1],
    )


def decide_one(request: DecisionRequest, states: Sequence[State], now_us: int) -> tuple[Verdict, Decision]:
    """Decide one charge against its counters' logs, in the plan's order.

    Returns:
        What becomes of the call, and what that does to the logs.
    """
    if request.decided is not None:
        return Verdict(request.decided), _NOTHING
    decision = limiter.decide(request.plan.limits, states, now_us)
    return verdict(request.plan, decision), decision


_NOTHING: Final = Decision(False, (), (), ())
