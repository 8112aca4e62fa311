"""Suggests limits from the calls in the audit log.

A survey notes the calls that each rule counts, and finds the busiest of their sliding windows. A suggested limit is the busiest
window times `HEADROOM`, rounded up, and at least `LEAST_LIMIT`. So it is never below what was seen.

Caps on calls in flight, limits on cost or errors, and limits that count equal arguments separately stay as they are: the audit
log does not tell enough about what they count.

Memory grows with the calls, 8 bytes for each that a rule counts: `max_mb` bounds them.
"""

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from operator import itemgetter

from mcpguard.identity.caller import Agent
from mcpguard.light_typing import Final, Literal, NamedTuple
from mcpguard.limiter.plan import ARGUMENTS, SESSION
from mcpguard.policy.lint import superfluous
from mcpguard.policy.model import AXES, Call, Policy, Rate, Rule
from mcpguard.text.digest import MAX_NAME_BYTES
from mcpguard.text.patterns import glob
from mcpguard.text.printing import plural
from mcpguard.text.times import window

LEAST_CALLS: Final = 20
"""Fewer calls say too little about a rule."""

_Advice = Literal["change", "add", "keep", "few"]

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

COUNTED: Final = frozenset({"allowed", "would_deny", "allowed_unavailable"})
"""The decisions of calls that reached the server and cost quota."""

_BURST: Final = 4
"""A busiest window is a single burst if it has at least `LEAST_CALLS`, and more than this many times those of other times."""

_BURST_US: Final = 3_600_000_000
"""Windows in the same or the next span of this length, or of their own if that is longer, may be parts of one burst."""

_BURST_HISTORY: Final = 5
"""A history of less than this many such spans has no single burst: there is nothing to compare it with."""

_NEW_WINDOWS: Final = (Rate(1, 60_000_000, "1m"), Rate(1, 3_600_000_000, "1h"))
"""The windows of new rules."""

_MAX_TOOLS: Final = 1000
"""How many tools are counted for new rules. A client can make up any number of names."""

_MAX_CALLS: Final = 4096
"""How many different callers and tools are remembered with the rules that apply to them."""

_STEPS: Final = (10, 12, 15, 20, 25, 30, 40, 50, 60, 80, 100)
"""The first two digits of a rounded limit."""


class Peak(NamedTuple):
    """The busiest window of a rule.

    Attributes:
        calls: The calls in it.
        who: The values that the rule counts, such as the user; empty if it counts all calls together.
        begin_us: The wall-clock time of its first call.
    """

    calls: int = 0
    who: str = ""
    begin_us: int = 0


class _Busiest(NamedTuple):
    """The busiest window of a limit.

    Attributes:
        rate: The limit.
        peak: The window.
        most: By spans of time of `apart_us`, the most calls in a window that begins in them.
    """

    rate: Rate
    peak: Peak
    most: dict[int, int]

    @property
    def apart_us(self) -> int:
        """The length of spans whose windows are no parts of one burst, unless the spans are next to each other."""
        return max(self.rate.window_us, _BURST_US)

    def burst(self, history_us: int) -> str:
        """Say that the busiest window is a single burst, which may be a loop; empty if it is none."""
        calls, _, begin_us = self.peak
        at = begin_us // self.apart_us
        others = max((most for span, most in self.most.items() if abs(span - at) > 1), default=0)
        if calls < LEAST_CALLS or calls <= _BURST * others or history_us < _BURST_HISTORY * self.apart_us:
            return ""
        return f"a single burst, at other times no {window(self.rate.window_us)} has more than {plural(others, 'call')}"

    @property
    def text(self) -> str:
        """The busiest window in words: `busiest hour of 41 calls by alice`."""
        by = f" by {self.peak.who}" if self.peak.who else ""
        return f"busiest {window(self.rate.window_us)} of {plural(self.peak.calls, 'call')}{by}"

    @property
    def raised(self) -> tuple[int, str]:
        """The limit for it, and how that follows."""
        why = f"and at least {LEAST_LIMIT}" if HEADROOM * self.peak.calls < LEAST_LIMIT else "rounded up"
        return with_headroom(self.peak.calls), f"x{HEADROOM}, {why}"


class _Tracked:
    """A rule, and the calls that it counts.

    Args:
        rule: The rule.
        rates: Its limits.
    """

    def __init__(self, rule: Rule, rates: tuple[Rate, ...]) -> None:
        self.rule = rule
        self.calls = 0
        self._rates = rates
        self._axes = [axis for axis in AXES if axis in rule.per]
        self._times: dict[tuple[str, ...], array[int]] = {}  # by the values of the axes, the times of the calls

    def add(self, call: Call, time_us: int) -> None:
        """Count a call."""
        self.calls += 1
        self._times.setdefault(tuple([getattr(call, axis) for axis in self._axes]), array("q")).append(time_us)

    def busiest(self) -> list[_Busiest]:
        """The busiest window of each limit."""
        found = [_Busiest(rate, Peak(), {}) for rate in self._rates]
        for values, unsorted in self._times.items():
            times, who = sorted(unsorted), self._who(values)
            found = [_busier(one, times, who) for one in found]
        return found

    def _who(self, values: tuple[str, ...]) -> str:
        """The values of a counter that the rule does not name itself, or that its tool implies."""
        implied = {"server"} if "tool" in self.rule.per and "server" not in self.rule.selectors else set()
        named = zip(self._axes, values, strict=True)
        return " ".join([value for axis, value in named if axis not in self.rule.exact and axis not in implied])


def _busier(one: _Busiest, times: Sequence[int], who: str) -> _Busiest:
    """The busiest window, the last of several, after the calls of one more counter. It begins with one of these calls."""
    peak, end = one.peak, 0
    for begin, begin_us in enumerate(times):
        while end < len(times) and times[end] < begin_us + one.rate.window_us:
            end += 1
        span = begin_us // one.apart_us
        one.most[span] = max(one.most.get(span, 0), end - begin)
        peak = max(peak, Peak(end - begin, who, begin_us), key=itemgetter(0, 2))
    return one._replace(peak=peak)


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

    kind: _Advice
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

    Args:
        policy: The policy in force.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._rules = {
            at: _Tracked(rule, rule.rates) for at, rule in enumerate(policy.rules) if rule.rates and _can_be_surveyed(rule)
        }
        self._tiers: dict[str, _Tracked] = {}
        self._tools: dict[str, _Tracked] = {}
        self._counting = lru_cache(_MAX_CALLS)(self._counting_of)
        self._denied: Counter[str] = Counter()
        self._calls = 0
        self._first_us = self._last_us = 0

    def add(self, rows: Iterable[Mapping[str, object]]) -> None:
        """Count rows, in any order."""
        for row in rows:
            if row["decision"] not in COUNTED:
                repeats = row.get("repeats")
                if "counts" not in row:
                    self._denied[str(row.get("rule"))] += repeats if isinstance(repeats, int) else 1
                continue
            time_us = int(str(row["time_us"]))
            self._calls += 1
            self._first_us = min(self._first_us or time_us, time_us)
            self._last_us = max(self._last_us, time_us)
            call = Call.of(row)
            for tracked in self._counting(call):
                tracked.add(call, time_us)

    def _counting_of(self, call: Call) -> list[_Tracked]:
        """The rules in force and the possible new rules that count a call."""
        found = [self._rules[at] for part, at in self._policy.applying(call) if part.rates and at in self._rules]
        agent = Agent.split(call.agent)
        if agent and _can_be_exact(agent.tier) and not any(_limits_tier(rule, agent.tier) for rule in self._policy.rules):
            rule = Rule({"user": ("*",), "agent": (f"*::{agent.tier}::*",)}, frozenset({"user"}), "user")
            found.append(self._tiers.setdefault(agent.tier, _Tracked(rule, _NEW_WINDOWS)))
        if _can_be_exact(call.tool) and not any(rules_tool(rule, call.tool) for rule in self._policy.rules):
            rule = Rule({"user": ("*",), "tool": (call.tool,)}, frozenset({"user", "tool", "server"}))
            if call.tool in self._tools or len(self._tools) < _MAX_TOOLS:
                found.append(self._tools.setdefault(call.tool, _Tracked(rule, _NEW_WINDOWS)))
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


def _can_be_exact(name: str) -> bool:
    """Whether a rule can select exactly this name. A long name is cut in the audit log."""
    return bool(name) and "*" not in name and len(name.encode(errors="replace")) < MAX_NAME_BYTES and name.isprintable()


def _can_be_surveyed(rule: Rule) -> bool:
    """Whether the audit log shows which calls a rule counts, and limits follow from the busiest window. It has no scopes."""
    return rule.counts == "calls" and not any(map(_counts_apart, rule.parts)) and "scope" not in rule.selectors


def _counts_apart(part: Rule) -> bool:
    """Whether a part of a rule counts sessions, or calls with different arguments, separately."""
    return bool({ARGUMENTS, SESSION} & part.per)


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


def rules_tool(rule: Rule, tool: str) -> bool:
    """Whether a rule decides how often a tool may be called, or that it may not."""
    patterns = rule.selectors.get("tool")
    is_for_tool = patterns is not None and glob(patterns[0], tool)
    return is_for_tool and (rule.deny or (_limits_calls(rule) and _is_for_all(rule)))


def _limits_calls(rule: Rule) -> bool:
    """Whether a rule limits calls or their cost, or says that they are not limited."""
    return rule.has_limit and rule.counts != "errors" and not _counts_apart(rule.parts[0])


def _of_rule(tracked: _Tracked, at: int, denied: int, history_us: int) -> Suggestion:
    """The suggestion for a rule in force."""
    limits = tuple([_of_rate(one, tracked.calls, history_us) for one in tracked.busiest()])
    kind: _Advice = "few" if tracked.calls < LEAST_CALLS else "change" if any(one.n != one.was for one in limits) else "keep"
    return Suggestion(kind, _table(tracked.rule), at, limits, tracked.calls, denied)


def _table(rule: Rule) -> dict[str, object]:
    """The table of a rule in a policy file, without its limit."""
    table: dict[str, object] = {key: texts[0] if len(texts) == 1 else list(texts) for key, texts in rule.selectors.items()}
    return table | ({"per": [axis for axis in rule.per_text.split(",") if axis != "none"]} if rule.per_text else {})


def _of_rate(one: _Busiest, calls: int, history_us: int) -> SuggestedLimit:
    """The suggestion for a limit in force of a rule that has counted so many calls."""
    (was, window_us, text), seen = one.rate, one.peak.calls
    kept = SuggestedLimit(was, text, was, one.peak, one.text, "")
    low, high = FITS
    if calls < LEAST_CALLS:
        return kept._replace(busiest="", why=f"only {plural(calls, 'call')} seen")
    if history_us < 2 * window_us and was >= HEADROOM * seen:
        return kept._replace(why="stays, the history is shorter than two windows")
    if low * seen <= was <= max(LEAST_LIMIT, high * seen):
        return kept._replace(why="stays, it fits")
    n, why = one.raised
    return kept._replace(n=n, why=why, burst=one.burst(history_us) if n != was else "")


def _new(tracked: _Tracked, history_us: int) -> Suggestion:
    """The suggestion of a new rule. A limit that can never deny a call is left out."""
    table = _table(tracked.rule)
    if tracked.calls < LEAST_CALLS:
        return Suggestion("few", table, -1, (), tracked.calls, 0)
    busiest = tracked.busiest()
    rates = [one.rate._replace(n=one.raised[0]) for one in busiest]
    idle = [rate for rate, _ in superfluous(rates)]
    limits = [
        SuggestedLimit(rate.n, rate.text, None, one.peak, one.text, one.raised[1], one.burst(history_us))
        for rate, one in zip(rates, busiest, strict=True)
        if rate not in idle
    ]
    return Suggestion("add", table, -1, tuple(limits), tracked.calls, 0)


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
