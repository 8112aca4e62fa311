"""The decision on one call: from its plan and the states of its counters to a verdict and the counters' new states."""

from collections.abc import Mapping, Sequence

from mcpguard.light_typing import Final
from mcpguard.limiter import sliding
from mcpguard.limiter.plan import Plan
from mcpguard.limiter.sliding import Decision, Limit, State, charge, is_held, live
from mcpguard.session.verdict import Decided, DecisionRequest, Verdict

_NOTHING: Final = Decision(False, (), (), ())
_MANY: Final = 1 << 62


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
    if decision.warned:
        found.warned = decision.warned
    if request.is_continued and found.decision == "allowed":
        found.decision = "continued"
    return found, decision


def admit(plan: Plan, states: Mapping[int, State], now_us: int) -> tuple[Verdict, dict[int, State]] | None:
    """Decide a usual call in half of the time: each of its limits has room, and its counter is in use.

    Args:
        plan: A plan that `is_plain`.
        states: The states of counters, by their ids.
        now_us: The store's time.

    Returns:
        The verdict, and the new states. None if the call is not a usual one.
    """
    after: dict[int, State] = {}
    tightest, least = -1, _MANY
    for at, (key, n, window_us, grain_us) in enumerate(plan.plain_limits):
        log = states.get(key)
        if not log or log[-2] > now_us:
            return None
        if log[1] <= now_us - window_us:
            log = live(log, window_us, now_us)
            if not log:
                return None
        left = n - 1 - sum(log[2::2])
        if left < least:
            if left < 0:
                return None
            tightest, least = at, left
        if now_us - log[0] < grain_us:  # as `charge` does it
            after[key] = (*log[:-2], now_us, log[-1] + 1)
        else:
            after[key] = charge(log, n, window_us, now_us)
    return Verdict("allowed", plan, tightest, plan.limits[tightest].n - least, least), after


def verdict(plan: Plan, decision: Decision) -> Verdict:
    """The verdict that follows from a decision on a plan's limits."""
    found = _exceeding(plan, decision) if decision.exceeded else _allowed(plan, decision.used)
    if plan.caps:
        found.in_flight = _in_flight(plan, decision)
    return found


def _exceeding(plan: Plan, decision: Decision) -> Verdict:
    at, wait = max(decision.exceeded, key=lambda one: _severity(plan.limits[one.limit], one.retry_after_us))
    limit = plan.limits[at]
    used = decision.used[limit.counter] if limit.n else None
    word: Decided = "would_deny" if decision.admitted else "rate_limited" if limit.n else "denied"
    return Verdict(word, plan, at, used, None if used is None else max(0, limit.n - used), wait, decision.exceeded)


def _severity(limit: Limit, retry_after_us: int | None) -> tuple[int, int]:
    """Of several exceeded limits, the one with the highest severity is reported; of equal ones, the first."""
    if retry_after_us is not None:
        return 0, retry_after_us
    return (3 if not limit.n else 1 if limit.counts == "concurrent" else 2), 0


def _allowed(plan: Plan, used: Sequence[int]) -> Verdict:
    tightest, count, least = -1, 0, (False, False, 0)
    for at, limit in enumerate(plan.limits):
        total = used[limit.counter] + (0 if limit.counts == "errors" else limit.cost)
        left = (limit.observe, limit.counts in {"errors", "concurrent"}, limit.n - total)
        if tightest < 0 or left < least:
            tightest, count, least = at, total, left
    return Verdict("allowed", plan, tightest, count, least[2]) if tightest >= 0 else Verdict("allowed", plan)


def _in_flight(plan: Plan, decision: Decision) -> int:
    taken = {limit.counter for limit in decision.charged if limit.counts == "concurrent"}
    totals = [(one.n, decision.used[one.counter] + (one.counter in taken)) for one in plan.limits if one.counts == "concurrent"]
    return min(totals, key=lambda one: one[0] - one[1])[1]
