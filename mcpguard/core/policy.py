"""Rules, and which of them apply to a call.

A rule selects calls and says how many. Of the rules that match a call some yield to a more particular one; what remains is
the call's plan: the limits that must have room, and the counters that they look at. `policy_parse` reads rules from a file,
`policy_explain` puts them in words.
"""

import json
from collections.abc import Sequence
from operator import and_
from typing import Final, NamedTuple

from mcpguard.core.agent import Agent, agent_matches
from mcpguard.core.digest import cut, number
from mcpguard.core.limiter import Limit
from mcpguard.core.patterns import coverage, glob

SELECTORS: Final = ("user", "agent", "tool", "server", "role", "scope")
"""What a rule can select on, in the order in which its text names them."""

AXES: Final = ("user", "agent", "tool", "server")
"""What a rule's allowance can be split by."""


class Call(NamedTuple):
    """What the policy sees of a `tools/call`.

    Attributes:
        user: Who calls; empty if that is not known.
        agent: `client::tier::name`.
        server: The server's configured name.
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
    """`n` per window. `text` is the window as it was written (`90m`)."""

    n: int
    window_us: int
    text: str


class Rule(NamedTuple):
    """One `[[rule]]`.

    Attributes:
        selectors: Patterns by selector; only `role` and `scope` have more than one, and want all of them.
        per: What the allowance is split by. A split by tool is one by server and tool.
        per_text: As the file gives it; empty if it does not.
        rates: The limits. None of them with `deny`; nor with `unlimited`.
        deny: Whether the rule closes what it selects.
        observe: Whether it reports only.
        name: What its author calls it.
        line: Where it stands in its file, from 1; 0 if that is not known.
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
        """The rule as it is reported: its selectors, and `per=` where the file gives one."""
        words = [f"{key}={','.join(self.selectors[key])}" for key in SELECTORS if key in self.selectors]
        if self.per_text:
            words.append(f"per={self.per_text}")
        return " ".join(words) or "every call"

    @property
    def key(self) -> tuple[object, ...]:
        """What no two rules of a policy have in common: the selectors, and what the allowance is split by."""
        return self.per, *(frozenset(self.selectors.get(selector, ())) for selector in SELECTORS)

    @property
    def agent(self) -> Agent | None:
        """The pattern for agents; None if the rule does not select on the agent."""
        patterns = self.selectors.get("agent")
        return Agent.split(patterns[0]) if patterns else None

    @property
    def shared(self) -> dict[str, list[str]]:
        """The selectors that its allowance is not split by: one counter is shared by all that they select."""
        return {key: sorted(set(texts)) for key, texts in sorted(self.selectors.items()) if key not in self.per}

    @property
    def limit_text(self) -> str:
        """What it allows, as a policy file has it: `20/1m 100/1h`, `deny` or `unlimited`."""
        if self.deny:
            return "deny"
        return " ".join(f"{rate.n}/{rate.text}" for rate in self.rates) or "unlimited"

    @property
    def axis(self) -> str:
        """The axis that its limits are reported under."""
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
        """Whether it is at least as wide as `other` in one selector.

        A selector covers one whose text it matches; none covers all; fewer roles or scopes cover more of the same.
        """
        mine, theirs = self.selectors.get(selector), other.selectors.get(selector)
        if mine is None or theirs is None:
            return mine is None
        match = _MATCH.get(selector, glob)
        return all(any(match(pattern, text) for text in theirs) for pattern in mine)

    @property
    def kind(self) -> tuple[object, ...]:
        """What it has in common with the rules that it competes with: one of them can be an override of another."""
        return self.per, *(key in self.selectors for key in ("user", "agent", "tool"))

    @property
    def reach(self) -> tuple[object, ...]:
        """What it has in common with the rules that differ in role or scope only: users, agents, tools, servers, and `per`."""
        return self.per, *(self.selectors.get(key) for key in AXES)

    def is_overridden_by(self, other: "Rule") -> bool:
        """Whether `other`, where it matches too, takes this one's place.

        It does if it is narrower in at least one selector and no less narrow in the rest. Of two patterns neither of which
        covers the other neither is narrower, so that both apply.
        """
        return (
            self.kind == other.kind
            and all(self.covers(other, key) for key in SELECTORS)
            and not all(other.covers(self, key) for key in SELECTORS)
        )


class Counter(NamedTuple):
    """Where admissions are counted.

    Attributes:
        id: 63 bits of a hash of `label`; the counter's key in every store.
        label: JSON: the namespace, the values that it is split by, the rule's other selectors, the window in µs.
        window_us: The window's length.
    """

    id: int
    label: str
    window_us: int


class Reported(NamedTuple):
    """How a limit is named in a denial and in the audit.

    Attributes:
        axis: `user`, `tool` or `agent`.
        rule: The rule's text.
        limit: Calls per window; None for `deny`.
        window: The window as it was written; None for `deny`.
    """

    axis: str
    rule: str
    limit: int | None
    window: str | None

    def members(self) -> dict[str, object]:
        """As JSON has it, without what does not apply."""
        return {key: value for key, value in self._asdict().items() if value is not None}


class Plan(NamedTuple):
    """What one call has to pass: limits, how each is reported, and the counters they name by index."""

    limits: tuple[Limit, ...] = ()
    reported: tuple[Reported, ...] = ()
    counters: tuple[Counter, ...] = ()

    @property
    def is_closed(self) -> bool:
        """Whether no call with this plan goes on, ever."""
        return any(not limit.n and not limit.observe for limit in self.limits)


class Policy:
    """A policy in force.

    Args:
        rules: In the order of the file.
        digest: A hash of the text that it was read from, for the audit.
        observe: Whether everything is reported only.
    """

    def __init__(self, rules: tuple[Rule, ...], digest: str = "", *, observe: bool = False) -> None:
        self.rules = rules
        self.digest = digest
        self.observe = observe
        self._places: dict[tuple[str, ...], dict[tuple[str, ...], list[int]]] = {}  # by what they name without a `*`
        for at, rule in enumerate(rules):
            axes = tuple([axis for axis in AXES if "*" not in rule.selectors.get(axis, ("*",))[0]])
            names = tuple([rule.selectors[axis][0] for axis in axes])
            self._places.setdefault(axes, {}).setdefault(names, []).append(at)

    def reaches_tier(self, tier: str) -> bool:
        """Whether a rule can match calls of agents of a tier; where none can, nothing limits them."""
        agents = [rule.agent for rule in self.rules]
        return any(agent is None or glob(agent.tier, tier) for agent in agents)

    def plan(self, call: Call, namespace: str = "default") -> Plan:
        """What `call` has to pass. It is worth remembering."""
        return _plan([rule for rule, _ in self.applying(call)], call, namespace, self.observe)

    def applying(self, call: Call) -> list[tuple[Rule, int]]:
        """The rules that apply to `call`, with their places in the file."""
        return [(self.rules[at], at) for at, winner in self.matching(call) if winner is None]

    def matched(self, call: Call) -> list[int]:
        """The places of the rules that match `call`."""
        places: list[int] = []
        for axes, named in self._places.items():
            places += named.get(tuple([getattr(call, axis) for axis in axes]), ())
        return [at for at in sorted(places) if self.rules[at].matches(call)]

    def matching(self, call: Call) -> list[tuple[int, int | None]]:
        """The places of the rules that match `call`, each with the place of the rule it yields to, if it does."""
        matched = self.matched(call)
        rules = [self.rules[at] for at in matched]
        firsts: dict[tuple[object, ...], int] = {}
        result: list[tuple[int, int | None]] = []
        for at, rule, narrower in zip(matched, rules, _narrower(rules), strict=True):
            winner = matched[_lowest(narrower)] if narrower else firsts.setdefault(rule.reach, at)
            result.append((at, winner if winner != at else None))
        return result


def _narrower(rules: Sequence[Rule]) -> list[int]:
    """For each of the rules that match a call those that it yields to, as a set of bits: `Rule.yields_to`, for all pairs."""
    kinds: dict[tuple[object, ...], int] = {}
    for at, rule in enumerate(rules):
        kinds[rule.kind] = kinds.get(rule.kind, 0) | 1 << at
    covered = [kinds[rule.kind] for rule in rules]
    for key in SELECTORS:
        lists = [rule.selectors.get(key, ()) for rule in rules]
        columns = [lists]
        if key == "agent":  # each of its parts is a pattern of its own
            agents = [rule.agent or () for rule in rules]
            columns = [[agent[part : part + 1] for agent in agents] for part in range(3)]
        for column in columns:
            covered = [*map(and_, covered, coverage(column, meet=key in AXES))]
    alike: dict[int, int] = {}
    for at, bits in enumerate(covered):  # rules that cover the same are as wide as each other
        alike[bits] = alike.get(bits, 0) | 1 << at
    return [bits & ~alike[bits] for bits in covered]


def _lowest(bits: int) -> int:
    """The lowest bit of a set that has some."""
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
    """The window in µs of the counter that a label names."""
    return int(json.loads(label)[-1])


def counter_id(label: str) -> int:
    """The key of a counter in every store."""
    return number(label)


def _one_matches(pattern: str, values: Sequence[str]) -> bool:
    return pattern in values or ("*" in pattern and any(glob(pattern, value) for value in values))


_MATCH: Final = {"user": glob, "agent": agent_matches, "tool": glob, "server": glob}
