"""Rules, and which of them apply to a call.

A rule selects calls and limits them. Of the rules that match a call, narrower rules override wider ones. The others apply: they
make the call's plan, which is the limits that must have room, and their counters. `parse` parses rules, `explain` describes
them, and `match` explains how they match a call.
"""

import json
from collections.abc import Iterator, Sequence
from operator import and_
from typing import Final, NamedTuple

from mcpguard.core.agent import Agent, agent_matches
from mcpguard.core.digest import cut, number
from mcpguard.core.limiter import Limit
from mcpguard.core.patterns import coverage, glob

SELECTORS: Final = ("user", "agent", "tool", "server", "role", "scope")
"""The selectors, in the order of a rule's text."""

AXES: Final = ("user", "agent", "tool", "server")
"""The allowed values in `per`."""

COMPETING: Final = ("user", "agent", "tool")
"""Two rules compete only if each of these selectors is in both rules or in neither."""


class Call(NamedTuple):
    """The parts of a `tools/call` that rules select on.

    Attributes:
        user: The user; empty if unknown.
        agent: `client::tier::name`.
        server: The server's name.
        tool: The tool's name as the server knows it.
        roles: The verified token's roles.
        scopes: The verified token's scopes.
    """

    user: str
    agent: str
    server: str
    tool: str
    roles: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()


class Rate(NamedTuple):
    """At most `n` calls per window. `text` is the window in the policy's form: `90m`."""

    n: int
    window_us: int
    text: str


class Rule(NamedTuple):
    """One `[[rule]]`.

    Attributes:
        selectors: Patterns by selector. Only `role` and `scope` can have more than one; all of them must match.
        per: The axes for whose values there are separate counters. `tool` implies `server`.
        per_text: `per` as the file writes it; empty if the file leaves it out.
        rates: The limits; none for `deny` and `unlimited`.
        deny: Whether the rule denies every call that it selects.
        observe: Whether the rule only reports.
        name: The rule's `name`; empty if it has none.
        line: Its line in the file, from 1; 0 if unknown.
    """

    selectors: dict[str, tuple[str, ...]]
    per: frozenset[str]
    per_text: str = ""
    rates: tuple[Rate, ...] = ()
    deny: bool = False
    observe: bool = False
    name: str = ""
    line: int = 0

    @property
    def text(self) -> str:
        """The rule in reports: its selectors, and `per=` if the file has it."""
        words = [f"{key}={','.join(self.selectors[key])}" for key in SELECTORS if key in self.selectors]
        if self.per_text:
            words.append(f"per={self.per_text}")
        return " ".join(words) or "every call"

    @property
    def key(self) -> tuple[object, ...]:
        """The selectors and `per`, which identify a rule within a policy."""
        return self.per, *(frozenset(self.selectors.get(selector, ())) for selector in SELECTORS)

    @property
    def agent(self) -> Agent | None:
        """The agent selector; None if the rule has none."""
        patterns = self.selectors.get("agent")
        return Agent.split(patterns[0]) if patterns else None

    @property
    def shared(self) -> dict[str, list[str]]:
        """The selectors that are not in `per`: the calls that they select share counters."""
        return {key: sorted(set(texts)) for key, texts in sorted(self.selectors.items()) if key not in self.per}

    @property
    def limit_text(self) -> str:
        """The limit as a policy file writes it: `20/1m 100/1h`, `deny` or `unlimited`."""
        if self.deny:
            return "deny"
        return " ".join(f"{rate.n}/{rate.text}" for rate in self.rates) or "unlimited"

    @property
    def axis(self) -> str:
        """The axis that reports name for the rule's limits."""
        for axis in ("agent", "user", "tool"):
            if axis in self.per:
                return axis
        return next((axis for axis in ("tool", "agent", "user") if axis in self.selectors), "tool")

    def matches(self, call: Call) -> bool:
        """Whether every selector of the rule matches the call."""
        for key, patterns in self.selectors.items():
            if key in {"role", "scope"}:
                values = call.roles if key == "role" else call.scopes
                if not all(_one_matches(pattern, values) for pattern in patterns):
                    return False
            elif not _MATCH[key](patterns[0], getattr(call, key)):
                return False
        return True

    def covers(self, other: "Rule", selector: str) -> bool:
        """Whether the rule is at least as wide as `other` in one selector.

        A pattern covers a pattern whose text it matches. A missing selector covers every pattern. A list of roles or scopes
        covers a longer list with the same roles or scopes.
        """
        mine, theirs = self.selectors.get(selector), other.selectors.get(selector)
        if mine is None or theirs is None:
            return mine is None
        match = _MATCH.get(selector, glob)
        return all(any(match(pattern, text) for text in theirs) for pattern in mine)

    @property
    def kind(self) -> tuple[object, ...]:
        """Equal for rules that compete. Only competing rules can override each other."""
        return self.per, *(key in self.selectors for key in COMPETING)

    @property
    def reach(self) -> tuple[object, ...]:
        """Equal for rules that differ only in role or scope."""
        return self.per, *(self.selectors.get(key) for key in AXES)

    def is_overridden_by(self, other: "Rule") -> bool:
        """Whether `other` overrides this rule for the calls that both match.

        It does if it competes with this rule, is narrower in at least one selector, and is wider in none. Of two patterns,
        neither of which covers the other, neither is narrower: both rules apply.
        """
        return (
            self.kind == other.kind
            and all(self.covers(other, key) for key in SELECTORS)
            and not all(other.covers(self, key) for key in SELECTORS)
        )


class Counter(NamedTuple):
    """A counter of admitted calls.

    Attributes:
        id: 63 bits of a hash of `label`: the counter's key in every store.
        label: JSON: the namespace, the values of `per`, the rule's other selectors, the window in µs.
        window_us: The window's length.
    """

    id: int
    label: str
    window_us: int


class Reported(NamedTuple):
    """A limit in a denial and in the audit.

    Attributes:
        axis: `user`, `tool` or `agent`.
        rule: The rule's text.
        limit: Calls per window; None for `deny`.
        window: The window as the policy writes it; None for `deny`.
    """

    axis: str
    rule: str
    limit: int | None
    window: str | None

    def members(self) -> dict[str, object]:
        """The members as JSON, without those that do not apply."""
        return {key: value for key, value in self._asdict().items() if value is not None}


class Plan(NamedTuple):
    """The limits that a call must pass, how each is reported, and the counters that the limits name by index."""

    limits: tuple[Limit, ...] = ()
    reported: tuple[Reported, ...] = ()
    counters: tuple[Counter, ...] = ()

    @property
    def is_closed(self) -> bool:
        """Whether every call with this plan is denied."""
        return any(not limit.n and not limit.observe for limit in self.limits)


class Policy:
    """A policy in force.

    Args:
        rules: The rules, in the order of the file.
        digest: A hash of the file's text, for the audit.
        observe: Whether all rules only report.
    """

    def __init__(self, rules: tuple[Rule, ...], digest: str = "", *, observe: bool = False) -> None:
        self.rules = rules
        self.digest = digest
        self.observe = observe
        # The indexes of the rules, by the axes on which they have a selector without `*`, and then by these selectors
        self._places: dict[tuple[str, ...], dict[tuple[str, ...], list[int]]] = {}
        for at, rule in enumerate(rules):
            axes = tuple([axis for axis in AXES if "*" not in rule.selectors.get(axis, ("*",))[0]])
            names = tuple([rule.selectors[axis][0] for axis in axes])
            self._places.setdefault(axes, {}).setdefault(names, []).append(at)

    def reaches_tier(self, tier: str) -> bool:
        """Whether a rule can match calls of agents with this tier. If none can, nothing limits those calls."""
        agents = [rule.agent for rule in self.rules]
        return any(agent is None or glob(agent.tier, tier) for agent in agents)

    def plan(self, call: Call, namespace: str = "default") -> Plan:
        """The plan of `call`. It takes long to make: cache it."""
        return _plan([rule for rule, _ in self.applying(call)], call, namespace, self.observe)

    def applying(self, call: Call) -> list[tuple[Rule, int]]:
        """The rules that apply to `call`, with their indexes."""
        return [(self.rules[at], at) for at, winner in self.matching(call) if winner is None]

    def matched(self, call: Call) -> list[int]:
        """The indexes of the rules that match `call`, in order."""
        places: list[int] = []
        for axes, named in self._places.items():
            places += named.get(tuple([getattr(call, axis) for axis in axes]), ())
        return [at for at in sorted(places) if self.rules[at].matches(call)]

    def matching(self, call: Call) -> list[tuple[int, int | None]]:
        """The indexes of the rules that match `call`, each with the index of the rule that overrides it, or None."""
        matched = self.matched(call)
        rules = [self.rules[at] for at in matched]
        firsts: dict[tuple[object, ...], int] = {}  # of rules that differ only in role or scope, the first
        result: list[tuple[int, int | None]] = []
        for at, rule, narrower in zip(matched, rules, _narrower(rules, meet=True), strict=True):
            winner = matched[_lowest(narrower)] if narrower else firsts.setdefault(rule.reach, at)
            result.append((at, winner if winner != at else None))
        return result

    def overriding(self) -> list[list[int]]:
        """For each rule, the indexes of the rules that override it for the calls that both match."""
        return [list(_indexes(bits)) for bits in _narrower(self.rules, meet=False)]


def _narrower(rules: Sequence[Rule], *, meet: bool) -> list[int]:
    """For each of some rules, the rules that override it, as a set of bits.

    It is `Rule.is_overridden_by` for all pairs, in time that does not grow with the square of their number. If all rules match
    one call, `meet` makes it faster.
    """
    kinds: dict[tuple[object, ...], int] = {}
    for at, rule in enumerate(rules):
        kinds[rule.kind] = kinds.get(rule.kind, 0) | 1 << at
    covered = [kinds[rule.kind] for rule in rules]
    for key in SELECTORS:
        columns = [[rule.selectors.get(key, ()) for rule in rules]]
        if key == "agent":  # each part is a pattern of its own
            agents = [rule.agent or () for rule in rules]
            columns = [[agent[part : part + 1] for agent in agents] for part in range(3)]
        for column in columns:
            covered = [*map(and_, covered, coverage(column, meet=meet and key in AXES))]
    alike: dict[int, int] = {}  # rules that cover the same rules are equally wide: neither overrides the other
    for at, bits in enumerate(covered):
        alike[bits] = alike.get(bits, 0) | 1 << at
    return [bits & ~alike[bits] for bits in covered]


def _indexes(bits: int) -> Iterator[int]:
    """The numbers of the bits in a set, in order."""
    while bits:
        yield _lowest(bits)
        bits &= bits - 1


def _lowest(bits: int) -> int:
    """The number of the lowest bit of a set that is not empty."""
    return (bits & -bits).bit_length() - 1


def _plan(rules: Sequence[Rule], call: Call, namespace: str, observe: bool) -> Plan:
    limits: list[Limit] = []
    reported: list[Reported] = []
    counters: dict[str, tuple[int, Counter]] = {}
    for place, rule in enumerate(rules):
        observed = observe or rule.observe
        if rule.deny:
            limits.append(Limit(0, 0, -1, place, observed))
            reported.append(Reported(rule.axis, rule.text, None, None))
        for rate in rule.rates:
            label = _label(rule, call, namespace, rate.window_us)
            if label not in counters:
                counters[label] = (len(counters), Counter(counter_id(label), label, rate.window_us))
            limits.append(Limit(rate.n, rate.window_us, counters[label][0], place, observed))
            reported.append(Reported(rule.axis, rule.text, rate.n, rate.text))
    return Plan(tuple(limits), tuple(reported), tuple(counter for _, counter in counters.values()))


def _label(rule: Rule, call: Call, namespace: str, window_us: int) -> str:
    values = {axis: cut(getattr(call, axis)) for axis in AXES if axis in rule.per}
    return json.dumps([namespace, values, rule.shared, window_us], separators=(",", ":"))


def window_of(label: str) -> int:
    """The window in µs in a counter's label."""
    return int(json.loads(label)[-1])


def counter_id(label: str) -> int:
    """The key of a counter in every store."""
    return number(label)


def _one_matches(pattern: str, values: Sequence[str]) -> bool:
    return pattern in values or ("*" in pattern and any(glob(pattern, value) for value in values))


_MATCH: Final = {"user": glob, "agent": agent_matches, "tool": glob, "server": glob}
