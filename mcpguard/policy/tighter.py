"""Finds the rules that still cap the calls of another rule more tightly, because it does not override them."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, combinations
from typing import Final

from mcpguard.limiter.plan import ARGUMENTS
from mcpguard.limiter.sliding import grain
from mcpguard.policy.model import AXES, SELECTORS, Policy, Rate, Rule
from mcpguard.policy.parse import untouched

_ANY: Final = {("*",), ("*::*::*",)}
"""Patterns that match each value of an axis."""


class Tightness:
    """Which rules of a policy cap the calls of others more tightly.

    A rule caps the calls of another one more tightly if, in any window, it denies some callers earlier. It counts all calls of
    these callers that the other counts: so a limit on one tool caps no rule for all tools. Rules with `deny` are left out.

    Args:
        policy: The policy.

    Attributes:
        starter: The indexes of the starter rules that nobody has edited.
    """

    def __init__(self, policy: Policy) -> None:
        self.starter = untouched(policy)
        self._rules = [rule.parts[0] for rule in policy.rules]  # the part with the limits, if there is one
        self._narrower = [[self._rules[one] for one in others] for others in policy.overriding()]

    def capping(self, at: int, among: Iterable[int] | None = None) -> list[int]:
        """The indexes of the rules that cap the calls of a rule more tightly, in order; only those `among`, if given."""
        others = range(len(self._rules)) if among is None else sorted(among)
        return [other for other in others if other != at and self._caps(other, at)]

    def defeated(self) -> Iterator[tuple[int, int]]:
        """The rules that no caller can exhaust, each with a rule that caps all of its calls more tightly.

        If that is a starter rule that nobody has edited, it is enough that it keeps some callers below the limit for good.

        Yields:
            The index of the rule, and that of the other.
        """
        named: dict[frozenset[tuple[str, str]], list[int]] = {}  # rules by all names that they select by
        for at, rule in enumerate(self._rules):
            named.setdefault(frozenset(rule.exact.items()), []).append(at)
        for at, rule in enumerate(self._rules):
            if at in self.starter or not rule.rates:
                continue
            names = list(rule.exact.items())
            fewer = chain.from_iterable(combinations(names, count) for count in range(len(names) + 1))
            near = chain.from_iterable(named.get(frozenset(some), ()) for some in fewer)
            yield from ((at, other) for other in self.capping(at, near) if self._defeats(other, at))

    def _caps(self, other: int, at: int) -> bool:
        wide, rule = self._rules[other], self._rules[at]
        return (
            _can_deny_first(wide, rule)
            and wide.may_meet(rule)
            and _spans(wide, rule, ("tool", "server"))
            and not wide.is_overridden_by(rule)
            and not rule.is_overridden_by(wide)  # an exception from it
            and not any(wide.is_overridden_by(one) and _spans(one, rule, SELECTORS) for one in self._narrower[other])
        )

    def _defeats(self, other: int, at: int) -> bool:
        """Whether a rule that caps the calls of another one keeps callers below its limit."""
        wide, rule = self._rules[other], self._rules[at]
        if other in self.starter:
            return _admits_fewer(wide, rule) or _is_slower(wide, rule)
        return (
            _admits_fewer(wide, rule)
            and _spans(wide, rule, SELECTORS)
            and wide.per <= rule.per.union(rule.exact)  # all calls in one counter of the rule are in one of the other
            and not any(wide.is_overridden_by(one) and one.may_meet(rule) for one in self._narrower[other])
        )


def admitted_at_most(rate: Rate, window_us: int) -> int:
    """The most calls that a limit admits in any window of this length.

    >>> admitted_at_most(Rate(5, 60_000_000, "1m"), 3_600_000_000), admitted_at_most(Rate(5, 60_000_000, "1m"), 1_000_000)
    (300, 5)
    """
    return rate.n * -(-window_us // rate.window_us)


def can_deny_beside(rate: Rate, other: Rate) -> bool:
    """Whether a limit can ever deny a call that another limit of the same calls admits."""
    # A call may count longer than the window, by a grain
    return admitted_at_most(other, rate.window_us + grain(rate.n, rate.window_us)) > rate.n


def _can_deny_first(wide: Rule, rule: Rule) -> bool:
    counts_alike = rule.counts == wide.counts or (rule.counts == "calls" and wide.counts == "cost")  # a call costs at least 1
    if rule.deny or wide.observe or not counts_alike or (ARGUMENTS in wide.per and ARGUMENTS not in rule.per):
        return False
    return any(all(can_deny_beside(one, other) for other in rule.rates) for one in wide.rates)


def _admits_fewer(wide: Rule, rule: Rule) -> bool:
    """Whether a rule admits fewer calls in a window of another one than the other's limit."""
    return any(admitted_at_most(one, other.window_us) < other.n for one in wide.rates for other in rule.rates)


def _is_slower(wide: Rule, rule: Rule) -> bool:
    """Whether a rule admits fewer calls than another one in the long run."""
    return any(all(one.n * other.window_us < other.n * one.window_us for other in rule.rates) for one in wide.rates)


def _spans(wide: Rule, rule: Rule, selectors: Sequence[str]) -> bool:
    """Whether a rule selects all that another one selects. Unlike `covers`, `*` selects as much as no selector."""
    return all(wide.covers(rule, key) or (key in AXES and wide.selectors[key] in _ANY) for key in selectors)
