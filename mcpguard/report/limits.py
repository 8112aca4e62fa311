"""Compares the limits of a policy with their use."""

import shlex
from collections.abc import Mapping
from typing import NamedTuple

from mcpguard.limiter.plan import Reported
from mcpguard.policy.model import Policy, Rate, Rule
from mcpguard.policy.rule_text import options_of
from mcpguard.policy.suggest import with_headroom
from mcpguard.report.gather import Use


class Unreached(NamedTuple):
    """A limit of the policy that had room for every call of the period, as far as rows tell.

    Attributes:
        rule: Its rule.
        rate: The limit. Of a cap on calls in flight, the window is 0.
        limit: How reports name it.
        peak: The most that one counter held, as far as rows tell; 0 if no row names the limit.
        suggested: A lower limit that leaves room above `peak`; None if there is none.
        command: The command line that sets the suggested limit; empty without a suggestion.
    """

    rule: Rule
    rate: Rate
    limit: Reported
    peak: int
    suggested: int | None
    command: str


def unreached(policy: Policy, uses: Mapping[Reported, Use]) -> list[Unreached]:
    """The limits that were never reached, in the order of the policy.

    Args:
        policy: The policy in force.
        uses: The use of limits in the period.
    """
    found = []
    for rule, _ in policy.parts:
        for rate, limit in zip(rule.bounds, rule.reported, strict=False):  # `deny` has no rate
            use = uses.get(limit, Use())
            if use.denied or use.would_deny or use.was_full:
                continue
            lower = with_headroom(use.peak) if use.peak and rule.counts == "calls" else rate.n
            if lower < rate.n:
                found.append(Unreached(rule, rate, limit, use.peak, lower, _command(rule, rate, lower)))
            else:
                found.append(Unreached(rule, rate, limit, use.peak, None, ""))
    return found


def _command(rule: Rule, changed: Rate, n: int) -> str:
    """The command line that gives a rule another limit in place of one."""
    limits = [f"{n if rate == changed else rate.n}/{rate.text}" for rate in rule.rates]
    return shlex.join(["mcpguard", "policy", "set", *options_of(rule), *limits])
