"""How full each counter is, by the limit that the policy in force has for it; and the same while people watch.

A look at the store reads all counters, and counts the rows since the last look. It makes a record only of a denial.
"""

import json
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from itertools import islice

from mcpguard.errors import PolicyError
from mcpguard.identity.caller import agent_matches
from mcpguard.light_typing import Final, NamedTuple
from mcpguard.limiter.plan import label_parts
from mcpguard.limiter.sliding import Counts, State
from mcpguard.policy.explain import used_of
from mcpguard.policy.file import PolicyFile
from mcpguard.policy.model import PER, Policy, Rate, Rule
from mcpguard.session.audit import members, record
from mcpguard.session.verdict import REFUSED
from mcpguard.stores.api import CounterUse, Readable, Wanted
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


class LimitFinder:
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

    def usages(self, counters: Iterable[CounterUse], now_us: int) -> list[Usage]:
        """The usage of the namespace's counters, the least left first. Counters without a rule come last.

        Args:
            counters: The counters of a store.
            now_us: The store's time.
        """
        found = [_used(one, used, log, now_us) for label, used, log in counters if (one := self._empty(label))]
        return sorted(found, key=_order)

    def _empty_of(self, label: str) -> Usage | None:
        """The usage of the counter with this label if it holds nothing; None for a mark, and in another namespace."""
        namespace, values, shared, counts, window_us, is_mark = label_parts(label)
        if namespace != self._namespace or is_mark:
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
    """The rule and the limit of a counter; if several apply, the smallest limit, an enforced one before observed ones.

    Args:
        alike: The parts of rules that count the same, with the counter's `per` and with its other selectors.
        values: The counter's values.
        window_us: The counter's window.
    """
    matching = [rule for rule in alike if all(_matches(rule, axis, value) for axis, value in values.items())]
    applying = [rule for rule in matching if not any(rule.is_overridden_by(other) for other in matching)]
    limits = [(rule, rate) for rule in applying for rate in rule.bounds if rate.window_us == window_us]
    return min(limits, key=lambda one: (one[0].observe, one[1].n), default=None)


def _matches(rule: Rule, axis: str, value: str) -> bool:
    match = agent_matches if axis == "agent" else glob
    return axis in PER and all(match(pattern, value) for pattern in rule.selectors.get(axis, ()))


RATE_S: Final = 5.0
"""The time over which calls per second are averaged."""

DENIALS: Final = 8
"""How many of the latest denials are kept."""

NO_AXIS: Final = "none"
"""Stands for the axis of calls that no limit decided."""

_SEARCHED: Final = 500
"""How many of the newest rows are searched for denials at the start."""


class View(NamedTuple):
    """What a look at the store found.

    Attributes:
        usages: The counters, the least left first.
        calls_per_s: Calls per second by axis.
        denials_per_s: Denials per second by axis.
        denials: The latest denials, the newest first.
        trouble: Why the policy file could not be applied; empty if it could.
    """

    usages: list[Usage]
    calls_per_s: Mapping[str, float]
    denials_per_s: Mapping[str, float]
    denials: list[dict[str, object]]
    trouble: str


class Watcher:
    """Looks at a store again and again.

    Args:
        store: The store.
        file: The policy file, whose edits are followed.
        policy: The policy in force at the start.
        namespace: The namespace.
        is_selected: Whether a row or a counter with these members is shown.
        clock: Seconds that never run backwards.

    Attributes:
        policy: The policy in force.
    """

    def __init__(
        self,
        store: Readable,
        file: PolicyFile,
        policy: Policy,
        namespace: str,
        is_selected: Callable[[Mapping[str, object]], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._file = file
        self._namespace = namespace
        self.policy = policy
        self._limits = LimitFinder(policy, namespace)
        self._is_selected = is_selected
        self._clock = clock
        self._trouble = ""
        self._denials: deque[dict[str, object]] = deque(maxlen=DENIALS)
        self._counted: deque[tuple[float, Counter[tuple[str, bool]]]] = deque()
        self._last_id = 0
        for entry in islice(store.newest(), _SEARCHED):
            self._last_id = max(self._last_id, entry.row_id)
            if entry.record["decision"] in REFUSED and self._is_ours(entry.record) and len(self._denials) < DENIALS:
                self._denials.append(entry.record)
        self._since_s = clock()

    def look(self) -> View:
        """Look at the store.

        Raises:
            StoreUnavailable: It cannot be read.
        """
        self._take_up_policy()
        before = self._last_id
        self._count()
        counters = self._store.counters()
        _, now_us = self._store.peek(())
        usages = [one for one in self._limits.usages(counters, now_us) if self._is_selected(one.counter)]
        if self._counted and any(denied for _, denied in self._counted[-1][1]):
            self._note_denials(before)
        return View(usages, self._rates(denied=False), self._rates(denied=True), list(self._denials), self._trouble)

    def _take_up_policy(self) -> None:
        found = self._file.poll()
        if isinstance(found, PolicyError):
            self._trouble = found.message
        elif found is not None:
            self.policy, self._trouble = found, ""
            self._limits = LimitFinder(found, self._namespace)

    def _is_ours(self, found: Mapping[str, object]) -> bool:
        return found.get("namespace") == self._namespace and self._is_selected(found)

    def _count(self) -> None:
        """Count the rows since the last look."""
        calls: Counter[tuple[str, bool]] = Counter()
        for tally in self._store.tally(after=self._last_id):
            self._last_id = max(self._last_id, tally.last_id)
            for group, durations in tally.calls.items():
                if group.decision != "policy" and self._is_ours(members(group.context)):
                    calls[group.axis or NO_AXIS, group.decision in REFUSED] += sum(durations.values())
        now_s = self._clock()
        self._counted.append((now_s, calls))
        while len(self._counted) > 1 and self._counted[0][0] < now_s - RATE_S:
            self._since_s = self._counted.popleft()[0]

    def _note_denials(self, after: int) -> None:
        wanted = Wanted(None, REFUSED)
        for page in self._store.rows(after=after, wanted=wanted):
            for one in page:
                found = record(one.row)
                if one.row_id <= self._last_id and self._is_ours(found):
                    self._denials.appendleft(found)

    def _rates(self, *, denied: bool) -> dict[str, float]:
        """Calls per second by axis: the denied ones, or all."""
        sums: Counter[str] = Counter()
        for _, calls in self._counted:
            for (axis, is_denied), number in calls.items():
                if is_denied or not denied:
                    sums[axis] += number
        span_s = max(self._counted[-1][0] - self._since_s, 0.001) if self._counted else 1.0
        return {axis: number / span_s for axis, number in sums.items()}
