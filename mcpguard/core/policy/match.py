"""Explains a decision: which rules apply, are overridden or do not match, and the quota left."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from mcpguard.core import limiter
from mcpguard.core.limiter import State
from mcpguard.core.policy.explain import series
from mcpguard.core.policy.model import AXES, SELECTORS, Call, Counter, Plan, Policy, Reported, Rule

Status = Literal["applies", "overridden", "no match"]


class RuleMatch(NamedTuple):
    """How a rule matches a call.

    Attributes:
        at: The rule's index in the policy.
        rule: The rule.
        status: Whether it applies, is overridden, or does not match.
        reason: Why it does not apply, as a clause; empty if it does.
        winner: The index of the rule that overrides it; None if none does.
        narrower_in: The selectors in which the winner is narrower; empty if it wins because it comes first in the file.
    """

    at: int
    rule: Rule
    status: Status
    reason: str = ""
    winner: int | None = None
    narrower_in: tuple[str, ...] = ()


class Headroom(NamedTuple):
    """The quota left of a limit.

    Attributes:
        reported: The limit, as a denial names it.
        place: The index of its rule among the rules that apply.
        counter: The limit's counter; None for `deny`.
        used: The calls in the counter; 0 for `deny`.
        remaining: How many calls the limit still admits.
        retry_after_us: The wait until it admits the next call: 0 if it does now, None if waiting does not help.
    """

    reported: Reported
    place: int
    counter: Counter | None
    used: int
    remaining: int
    retry_after_us: int | None


def rule_matches(policy: Policy, call: Call) -> list[RuleMatch]:
    """How each rule matches a call, in the order of the file."""
    matching = dict(policy.matching(call))
    return [_rule_match(policy, at, matching, call) for at in range(len(policy.rules))]


def _rule_match(policy: Policy, at: int, matching: dict[int, int | None], call: Call) -> RuleMatch:
    rule = policy.rules[at]
    if at not in matching:
        return RuleMatch(at, rule, "no match", _mismatch(rule, call))
    winner = matching[at]
    if winner is None:
        return RuleMatch(at, rule, "applies")
    other = policy.rules[winner]
    narrower = tuple(key for key in SELECTORS if not other.covers(rule, key)) if rule.is_overridden_by(other) else ()
    if narrower:
        return RuleMatch(at, rule, "overridden", f"rule {winner + 1} is narrower in {series(narrower)}", winner, narrower)
    differing = [key for key in ("role", "scope") if rule.selectors.get(key) != other.selectors.get(key)]
    reason = f"rule {winner + 1} comes first in the file, and differs in {series(differing)} only"
    return RuleMatch(at, rule, "overridden", reason, winner)


def _mismatch(rule: Rule, call: Call) -> str:
    """Why a rule does not match, as a clause that names each selector that does not match the call."""
    words = []
    for key in SELECTORS:
        for pattern in rule.selectors.get(key, ()):
            if Rule({key: (pattern,)}, frozenset()).matches(call):
                continue
            if key not in AXES:
                words.append(f"no {key} matches {pattern}" if "*" in pattern else f"the {key} {pattern} is missing")
            elif not getattr(call, key):
                words.append(f"the {key} is not known")
            else:
                words.append(f"the {key} does not match {pattern}" if "*" in pattern else f"the {key} is not {pattern}")
    return series(words)


def headrooms(plan: Plan, states: Sequence[State], now_us: int) -> list[Headroom]:
    """The quota left of each limit of a plan.

    Args:
        plan: The plan of a call.
        states: The logs of the plan's counters, in order.
        now_us: The store's time.
    """
    found = []
    for limit, reported in zip(plan.limits, plan.reported, strict=True):
        if not limit.n:
            found.append(Headroom(reported, limit.rule, None, 0, 0, None))
            continue
        log = limiter.live(states[limit.counter], limit.window_us, now_us)
        used = limiter.used(log)
        wait_us = limiter.retry_after(log, limit.n, limit.window_us, now_us)
        found.append(Headroom(reported, limit.rule, plan.counters[limit.counter], used, max(0, limit.n - used), wait_us))
    return found
