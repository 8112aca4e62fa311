"""How full each counter is, by the rule and the limit that the policy in force has for it."""

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final, NamedTuple

from mcpguard.identity.agent import agent_matches
from mcpguard.limiter.plan import label_parts
from mcpguard.limiter.sliding import Counts, State
from mcpguard.policy.match import used_of
from mcpguard.policy.model import PER, Policy, Rate, Rule
from mcpguard.stores.api import CounterUse
from mcpguard.text.patterns import glob
from mcpguard.text.times import ms_up

_KNOWN: Final = 100_000


class Usage(NamedTuple):
    """A counter and its limit.

    Attributes:
        counter: What it counts: the value of each axis in `per`, and the text of the rule's other selectors. The value of
            `arguments` is their hash.
        window_us: The length of its window; 0 for calls in flight.
        rule: The rule. None if the policy no longer has a rule for the counter.
        rate: The limit; None without a rule. Of a cap on calls in flight, the window is 0.
        used: How many calls, units or errors it counts, or how many calls are in flight.
        left: How many more the limit allows; None without a rule.
        next_free_ms: The wait after which the limit allows one more, if no other call comes; 0 if it does now. None without a
            rule, or if nobody knows because calls in flight take all places.
        counts: What it counts.
    """

    counter: Mapping[str, str]
    window_us: int
    rule: Rule | None
    rate: Rate | None
    used: int
    left: int | None
    next_free_ms: int | None
    counts: Counts = "calls"

    @property
    def share(self) -> float:
        """The part of the limit that is used, at most 1; 0 without a rule."""
        return min(1.0, self.used / self.rate.n) if self.rate else 0.0


class Limits:
    """Finds the rule and the limit of each counter, and remembers them.

    Args:
        policy: The policy in force.
        namespace: The namespace of the counters.
    """

    def __init__(self, policy: Policy, namespace: str) -> None:
        self._namespace = namespace
        self._parts: dict[tuple[object, ...], list[Rule]] = {}
        for rule, _ in policy.parts:
            self._parts.setdefault((rule.counts, rule.per, json.dumps(rule.shared)), []).append(rule)
        self._empty = lru_cache(_KNOWN)(self._empty_of)

    def usages(self, held: Iterable[CounterUse], now_us: int) -> list[Usage]:
        """The usage of the namespace's counters, the least left first. Counters without a rule come last.

        Args:
            held: The counters of a store.
            now_us: The store's time.
        """
        found = [_used(one, used, log, now_us) for label, used, log in held if (one := self._empty(label))]
        return sorted(found, key=_order)

    def _empty_of(self, label: str) -> Usage | None:
        """The usage of the counter with this label if it holds nothing; None if it is in another namespace."""
        namespace, values, shared, counts, window_us = label_parts(label)
        if namespace != self._namespace:
            return None
        alike = self._parts.get((counts, frozenset(values), json.dumps(shared)), [])
        counter = {**values, **{key: ",".join(texts) for key, texts in shared.items()}}
        rule, rate = _limit(alike, values, window_us) or (None, None)
        return Usage(counter, window_us, rule, rate, 0, None, None, counts)


def _order(one: Usage) -> tuple[object, ...]:
    return one.left is None, one.left, -one.share, -(one.next_free_ms or 0), tuple(one.counter.items())


def _used(one: Usage, used: int, log: State, now_us: int) -> Usage:
    """The usage of a counter that holds this."""
    n = one.rate.n if one.rate else 0
    wait_us = 0 if used < n else None
    if one.window_us:
        used, wait_us = used_of(log, n, one.window_us, now_us)
    if one.rate is None:
        return one._replace(used=used)
    return one._replace(used=used, left=max(0, n - used), next_free_ms=None if wait_us is None else ms_up(wait_us))


def _limit(alike: list[Rule], values: Mapping[str, str], window_us: int) -> tuple[Rule, Rate] | None:
    """The rule and the limit of a counter; if several apply, the smallest limit.

    Args:
        alike: The parts of rules that count the same, with the counter's `per` and with its other selectors.
        values: The counter's values.
        window_us: The counter's window.
    """
    matching = [rule for rule in alike if all(_matches(rule, axis, value) for axis, value in values.items())]
    applying = [rule for rule in matching if not any(rule.is_overridden_by(other) for other in matching)]
    limits = [(rule, rate) for rule in applying for rate in rule.bounds if rate.window_us == window_us]
    return min(limits, key=lambda one: one[1].n, default=None)


def _matches(rule: Rule, axis: str, value: str) -> bool:
    match = agent_matches if axis == "agent" else glob
    return axis in PER and all(match(pattern, value) for pattern in rule.selectors.get(axis, ()))
