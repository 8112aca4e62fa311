"""Suggests limits from the calls in the audit log.

A survey counts the calls of each rule as its counters would, in sliding windows, and remembers the busiest window. A suggested
limit is the busiest window times `HEADROOM`, rounded up, and at least `LEAST_LIMIT`. So it is never below what was seen.

Caps on calls in flight, limits on cost or errors, and limits that count equal arguments separately stay as they are: the audit
log does not tell enough about what they count.
"""

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from typing import Final, Literal, NamedTuple

from mcpguard.identity.agent import Agent
from mcpguard.limiter.plan import ARGUMENTS
from mcpguard.policy.busiest import LEAST_CALLS, MAX_ENTRIES, Peak, Tracked
from mcpguard.policy.lint import superfluous
from mcpguard.policy.model import AXES, Call, Policy, Rate, Rule
from mcpguard.text.digest import MAX_NAME_BYTES
from mcpguard.text.patterns import glob
from mcpguard.text.printing import plural
from mcpguard.text.times import window

HEADROOM: Final = 2
"""A suggested limit is this many times the calls in the busiest window."""

FITS: Final = (1.5, 4)
"""A limit stays if it is between these multiples of the calls in its busiest window."""

LEAST_LIMIT: Final = 5
"""A suggested limit is at least this: less would deny an ordinary burst."""

LEAST_HISTORY_US: Final = 86_400_000_000
LEAST_HISTORY_CALLS: Final = 100
"""Less than a day, or fewer calls, is too little history."""

MAX_NEW_TOOLS: Final = 20
"""For how many tools, the most called ones, there are new rules."""

HELD_ROWS: Final = 4096
"""How many rows may be out of order. Several processes write them, and rows of an outage are written after it."""

COUNTED: Final = frozenset({"allowed", "would_deny", "allowed_unavailable"})
"""The decisions of calls that reached the server and cost quota."""

_NEW_WINDOWS: Final = (Rate(1, 60_000_000, "1m"), Rate(1, 3_600_000_000, "1h"))
"""The windows of new rules."""

_MAX_TOOLS: Final = 1000
"""How many tools are counted for new rules. A client can make up any number of names."""

_MAX_CALLS: Final = 4096
"""How many different callers and tools are remembered with the rules that apply to them."""

_STEPS: Final = (10, 12, 15, 20, 25, 30, 40, 50, 60, 80, 100)
"""The first two digits of a rounded limit."""


class SuggestedLimit(NamedTuple):
    """A suggested limit of a rule.

    Attributes:
        n: The calls per window.
        window: The window as the policy writes it.
        was: The limit in force for this window; None for a new rule.
        peak: The busiest window.
        busiest: The same in words; empty for a rule with too few calls.
        why: How the limit follows from it, or why it stays.
        burst: If that window is a single burst, which may be a loop, in words; else empty.
    """

    n: int
    window: str
    was: int | None
    peak: Peak
    busiest: str
    why: str
    burst: str = ""

    @property
    def reason(self) -> str:
        """Why the limit is suggested, or why it stays."""
        return "; ".join(filter(None, (self.busiest, self.why, self.burst)))


class Suggestion(NamedTuple):
    """The suggestion for a rule.

    Attributes:
        kind: `change` for a rule in force, `keep` for one that fits, `add` for a new rule, `few` for a rule with too few calls.
        table: The rule's selectors and `per` as a table of the policy file, without its limit.
        at: The index of the rule in force; -1 for a new rule.
        limits: The limits. If none changes, they are those in force.
        calls: The calls that the rule counted.
        denied: The calls that the rule denied.
    """

    kind: Literal["change", "add", "keep", "few"]
    table: dict[str, object]
    at: int
    limits: tuple[SuggestedLimit, ...]
    calls: int
    denied: int


class Findings(NamedTuple):
    """The result of a survey.

    Attributes:
        calls: The calls that reached a server.
        first_us: The wall-clock time of the first one; 0 if there is none.
        last_us: The wall-clock time of the last one.
        suggestions: For each rule in force that counts calls, in order, and then for each new rule.
        tools_left_out: For how many tools a new rule would be suggested if there were not so many.
    """

    calls: int
    first_us: int
    last_us: int
    suggestions: tuple[Suggestion, ...]
    tools_left_out: int

    @property
    def is_enough(self) -> bool:
        """Whether there is enough history to rely on."""
        return self.calls >= LEAST_HISTORY_CALLS and self.last_us - self.first_us >= LEAST_HISTORY_US


class Survey:
    """Counts the calls of audit rows as the rules of a policy would, and as new rules would.

    Its memory grows with the number of counters in use within one window, and not with the number of rows.

    Args:
        policy: The policy in force.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._rules = {
            at: Tracked(rule, rule.rates) for at, rule in enumerate(policy.rules) if rule.rates and _can_be_surveyed(rule)
        }
        self._tiers: dict[str, Tracked] = {}
        self._tools: dict[str, Tracked] = {}
        self._applying: dict[Call, list[Tracked]] = {}
        self._denied: Counter[str] = Counter()
        self._calls = 0
        self._first_us = self._last_us = 0

    def add(self, rows: Iterable[Mapping[str, object]]) -> None:
        """Count rows, newest first. They may be out of order by `HELD_ROWS`."""
        for row in _newest_first(rows):
            if row["decision"] not in COUNTED:
                repeats = row.get("repeats")
                if "counts" not in row:
                    self._denied[str(row.get("rule"))] += repeats if isinstance(repeats, int) else 1
                continue
            time_us = _time_us(row)
            self._calls += 1
            self._first_us = min(self._first_us or time_us, time_us)
            self._last_us = max(self._last_us, time_us)
            roles = row.get("roles")
            user, agent, tool, server = (str(row[axis]) for axis in AXES)
            call = Call(user, agent, server, tool, tuple(map(str, roles)) if isinstance(roles, list) else ())
            if call not in self._applying:
                if len(self._applying) == _MAX_CALLS:
                    self._applying.clear()
                self._applying[call] = self._counting(call)
            for tracked in self._applying[call]:
                tracked.add(call, time_us)

    def _counting(self, call: Call) -> list[Tracked]:
        """The rules in force and the possible new rules that count a call."""
        found = [self._rules[at] for part, at in self._policy.applying(call) if part.rates and at in self._rules]
        agent = Agent.split(call.agent)
        if agent and _can_be_exact(agent.tier) and not any(_limits_tier(rule, agent.tier) for rule in self._policy.rules):
            rule = Rule({"user": ("*",), "agent": (f"*::{agent.tier}::*",)}, frozenset({"user"}), "user")
            found.append(self._tiers.setdefault(agent.tier, Tracked(rule, _NEW_WINDOWS)))
        if _can_be_exact(call.tool) and not any(_rules_tool(rule, call.tool) for rule in self._policy.rules):
            rule = Rule({"user": ("*",), "tool": (call.tool,)}, frozenset({"user", "tool", "server"}))
            if call.tool in self._tools or len(self._tools) < _MAX_TOOLS:
                found.append(self._tools.setdefault(call.tool, Tracked(rule, _NEW_WINDOWS)))
        return found

    def findings(self) -> Findings:
        """The suggestions."""
        history_us = self._last_us - self._first_us
        suggestions = [
            _of_rule(tracked, at, self._denied[tracked.rule.text], history_us) for at, tracked in self._rules.items()
        ]
        tiers = sorted(self._tiers.values(), key=lambda one: one.rule.text)
        tools = sorted(self._tools.values(), key=lambda one: (-one.calls, one.rule.text))
        tools = [one for one in tools if one.calls >= LEAST_CALLS]
        suggestions += [_new(one, history_us) for one in [*tiers, *tools[:MAX_NEW_TOOLS]]]
        return Findings(self._calls, self._first_us, self._last_us, tuple(suggestions), max(0, len(tools) - MAX_NEW_TOOLS))


def _time_us(row: Mapping[str, object]) -> int:
    return int(str(row["time_us"]))


def _newest_first(rows: Iterable[Mapping[str, object]]) -> Iterator[Mapping[str, object]]:
    """The rows by time. Each is moved by `HELD_ROWS` places at most."""
    heap: list[tuple[int, int, Mapping[str, object]]] = []
    numbers = count()  # so that no two rows are compared
    for row in rows:
        item = (-_time_us(row), next(numbers), row)
        if len(heap) < HELD_ROWS:
            heapq.heappush(heap, item)
        else:
            yield heapq.heappushpop(heap, item)[2]
    while heap:
        yield heapq.heappop(heap)[2]


def _can_be_exact(name: str) -> bool:
    """Whether a rule can select exactly this name. A long name is cut in the audit log."""
    return bool(name) and "*" not in name and len(name.encode(errors="replace")) < MAX_NAME_BYTES and name.isprintable()


def _can_be_surveyed(rule: Rule) -> bool:
    """Whether the audit log shows which calls a rule counts. It has no scopes."""
    return rule.counts == "calls" and ARGUMENTS not in rule.per and "scope" not in rule.selectors


def _is_for_all(rule: Rule, tier: str | None = None) -> bool:
    """Whether a rule selects all users and all agents, or all agents of a tier."""
    agent = rule.agent
    is_any_user = rule.selectors.get("user", ("*",)) == ("*",) and not rule.selectors.keys() & {"role", "scope"}
    is_any_agent = agent is None or (
        agent.client == agent.name == "*" and (glob(agent.tier, tier) if tier else agent.tier == "*")
    )
    return is_any_user and is_any_agent


def _limits_tier(rule: Rule, tier: str) -> bool:
    """Whether a rule decides how much all agents of a tier may call."""
    return _limits_calls(rule) and not rule.selectors.keys() & {"tool", "server"} and _is_for_all(rule, tier)


def _rules_tool(rule: Rule, tool: str) -> bool:
    """Whether a rule decides how often a tool may be called, or that it may not."""
    patterns = rule.selectors.get("tool")
    is_for_tool = patterns is not None and glob(patterns[0], tool)
    return is_for_tool and (rule.deny or (_limits_calls(rule) and _is_for_all(rule)))


def _limits_calls(rule: Rule) -> bool:
    """Whether a rule limits calls or their cost, or says that they are not limited."""
    return rule.has_limit and rule.counts != "errors" and ARGUMENTS not in rule.per


def _of_rule(tracked: Tracked, at: int, denied: int, history_us: int) -> Suggestion:
    """The suggestion for a rule in force."""
    rule = tracked.rule
    table = _table(rule)
    limits = tuple([_for_rate(tracked, number, history_us) for number in range(len(rule.rates))])
    if tracked.calls < LEAST_CALLS:
        why = f"only {plural(tracked.calls, 'call')} seen"
        limits = tuple([one._replace(n=rate.n, busiest="", why=why) for one, rate in zip(limits, rule.rates, strict=True)])
        return Suggestion("few", table, at, limits, tracked.calls, denied)
    is_changed = any(one.n != one.was for one in limits)
    return Suggestion("change" if is_changed else "keep", table, at, limits, tracked.calls, denied)


def _table(rule: Rule) -> dict[str, object]:
    """The table of a rule in a policy file, without its limit."""
    table: dict[str, object] = {key: texts[0] if len(texts) == 1 else list(texts) for key, texts in rule.selectors.items()}
    return table | ({"per": [axis for axis in rule.per_text.split(",") if axis != "none"]} if rule.per_text else {})


def _for_rate(tracked: Tracked, at: int, history_us: int) -> SuggestedLimit:
    rate, peak = tracked.rates[at], tracked.peaks[at]
    busiest = _busiest(rate, peak)
    low, high = FITS
    n, why = _raised(peak)
    if history_us < 2 * rate.window_us and rate.n >= HEADROOM * peak.calls:
        n, why = rate.n, "stays, the history is shorter than two windows"
    elif low * peak.calls <= rate.n <= max(LEAST_LIMIT, high * peak.calls):
        n, why = rate.n, "stays, it fits"
    burst = tracked.burst(at, history_us) if n != rate.n else ""
    return SuggestedLimit(n, rate.text, rate.n, peak, busiest, why, burst)


def _raised(peak: Peak) -> tuple[int, str]:
    """The limit for a busiest window, and how it is derived."""
    why = f"and at least {LEAST_LIMIT}" if HEADROOM * peak.calls < LEAST_LIMIT else "rounded up"
    return with_headroom(peak.calls), f"x{HEADROOM}, {why}"


def _new(tracked: Tracked, history_us: int) -> Suggestion:
    """The suggestion of a new rule. A limit that can never deny a call is left out."""
    table = _table(tracked.rule)
    if tracked.calls < LEAST_CALLS:
        return Suggestion("few", table, -1, (), tracked.calls, 0)
    rates = [rate._replace(n=_raised(peak)[0]) for rate, peak in zip(tracked.rates, tracked.peaks, strict=True)]
    idle = [rate for rate, _ in superfluous(rates)]
    limits = [
        SuggestedLimit(rate.n, rate.text, None, peak, _busiest(rate, peak), _raised(peak)[1], tracked.burst(at, history_us))
        for at, (rate, peak) in enumerate(zip(rates, tracked.peaks, strict=True))
        if rate not in idle
    ]
    return Suggestion("add", table, -1, tuple(limits), tracked.calls, 0)


def _busiest(rate: Rate, peak: Peak) -> str:
    """The busiest window in words.

    >>> _busiest(Rate(1, 3_600_000_000, "1h"), Peak(41, "alice"))
    'busiest hour of 41 calls by alice'
    """
    about = "about " if peak.calls > MAX_ENTRIES else ""
    by = f" by {peak.who}" if peak.who else ""
    return f"busiest {window(rate.window_us)} of {about}{plural(peak.calls, 'call')}{by}"


def with_headroom(calls: int) -> int:
    """The limit to suggest if a window held that many calls.

    >>> [with_headroom(calls) for calls in (1, 3, 29, 205)]
    [5, 6, 60, 500]
    """
    return max(LEAST_LIMIT, rounded_up(HEADROOM * calls))


def rounded_up(n: int) -> int:
    """A number rounded up to one with few digits.

    >>> [rounded_up(n) for n in (0, 7, 41, 82, 101, 1000)]
    [1, 7, 50, 100, 120, 1000]
    """
    if n < 10:
        return max(1, n)
    scale = int("1" + "0" * (len(str(n)) - 2))
    return next(step * scale for step in _STEPS if step * scale >= n)
