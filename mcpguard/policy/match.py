"""Explains a decision: which rules apply, are overridden or do not match, and the quota left."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from mcpguard.limiter import sliding
from mcpguard.limiter.plan import Counter, Plan, Reported
from mcpguard.limiter.sliding import State
from mcpguard.policy.explain import series
from mcpguard.policy.model import AXES, SELECTORS, Call, Policy, Rule

Status = Literal["applies", "overridden", "no match"]


class RuleMatch(NamedTuple):
    """How a rule matches a call, or a part of it.

    Attributes:
        at: The rule's index in the policy.
        rule: The rule. If only one of its two parts is overridden, or each by another rule: one part.
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
        at: Its rule's index in the policy.
        counter: The limit's counter; None for `deny`.
        used: The calls, units or errors in the counter, or the calls in flight; 0 for `deny`.
        remaining: How many more the limit admits.
        retry_after_us: The wait until it admits such a call: 0 if it does now, None if waiting does not help, or if nobody
            knows how long it takes.
        cost: What the call takes of it: 1 unless it counts cost.
    """

    reported: Reported
    at: int
    counter: Counter | None
    used: int
    remaining: int
    retry_after_us: int | None
    cost: int = 1

    @property
    def is_too_costly(self) -> bool:
        """Whether the call costs more than the whole limit."""
        return self.reported.limit is not None and self.cost > self.reported.limit

    @property
    def is_known(self) -> bool:
        """Whether the counter is known. It is not if it depends on arguments that are not given."""
        return self.counter is None or not self.counter.is_split


def rule_matches(policy: Policy, call: Call) -> list[RuleMatch]:
    """How each rule matches a call, in the order of the file. A rule whose parts differ in that has one for each part."""
    parts: list[list[tuple[Rule, int | None]]] = [[] for _ in policy.rules]
    for place, winner in policy.matching(call):
        part, at = policy.parts[place]
        parts[at].append((part, winner))
    found: list[RuleMatch] = []
    for at, rule in enumerate(policy.rules):
        matches = [_part_match(policy, at, part, winner) for part, winner in parts[at]]
        if not matches:
            found.append(RuleMatch(at, rule, "no match", _mismatch(rule, call)))
        elif all(one[2:] == matches[0][2:] for one in matches):
            found.append(matches[0]._replace(rule=rule))
        else:
            found += matches
    return found


def _part_match(policy: Policy, at: int, part: Rule, winner: int | None) -> RuleMatch:
    """How a part of a rule that matches is treated.

    Args:
        policy: The policy.
        at: The rule's index.
        part: The part.
        winner: The index of the part that overrides it; None if none does.
    """
    if winner is None:
        return RuleMatch(at, part, "applies")
    other, number = policy.parts[winner]
    narrower = tuple(key for key in SELECTORS if not other.covers(part, key)) if part.is_overridden_by(other) else ()
    if narrower:
        return RuleMatch(at, part, "overridden", f"rule {number + 1} is narrower in {series(narrower)}", number, narrower)
    differing = [key for key in ("role", "scope") if part.selectors.get(key) != other.selectors.get(key)]
    reason = f"rule {number + 1} comes first in the file, and differs in {series(differing)} only"
    return RuleMatch(at, part, "overridden", reason, number)


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
        states: The states of the plan's counters, in order.
        now_us: The store's time.
    """
    found = []
    for limit, reported in zip(plan.limits, plan.reported, strict=True):
        if not limit.n:
            found.append(Headroom(reported, limit.rule, None, 0, 0, None))
            continue
        counter, state = plan.counters[limit.counter], states[limit.counter]
        used, wait_us = used_of(state, limit.n, limit.window_us, now_us, limit.cost)
        found.append(Headroom(reported, limit.rule, counter, used, max(0, limit.n - used), wait_us, limit.cost))
    return found


def used_of(state: State, n: int, window_us: int, now_us: int, cost: int = 1) -> tuple[int, int | None]:
    """What a counter holds, and the wait until a limit of `n` admits a call: see `Headroom`."""
    if not window_us:
        return len(state), 0 if len(state) < n else None
    log = sliding.live(state, window_us, now_us)
    return sliding.used(log), sliding.retry_after(log, n, window_us, now_us, cost)
