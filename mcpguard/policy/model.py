"""Rules, and which of them apply to a call.

A rule selects calls and limits them. Of the rules that match a call, narrower rules override wider ones. The others apply: they
make the call's plan (see `plan`). `parse` parses rules, `explain` describes them, and `match` explains how they match a call.

A rule with limits and with a cap on calls in flight has two parts, which are overridden by the same parts of other rules.
"""

from collections.abc import Collection, Mapping, Sequence

from mcpguard.identity.caller import Agent, agent_matches
from mcpguard.light_typing import Final, NamedTuple
from mcpguard.limiter.plan import ARGUMENTS, SESSION, Counter, Label, Plan, Reported, counter_id
from mcpguard.limiter.sliding import Counts, Limit
from mcpguard.text.digest import cut
from mcpguard.text.patterns import glob, may_meet

SELECTORS: Final = ("user", "agent", "tool", "server", "role", "scope")
"""The selectors, in the order of a rule's text."""

AXES: Final = ("user", "agent", "tool", "server")
"""The parts of a call that every call has."""

PER: Final = (*AXES, SESSION, ARGUMENTS)
"""The allowed values in `per`."""

BUILT_IN: Final = "built-in"
"""The server of a client's own tools, which only a hook shows. Starter rules do not apply to them."""


def server_named(name: str) -> str:
    """The name of an MCP server in rules: its own, unless that is the name of the client's own tools."""
    return f"{name} (server)" if name == BUILT_IN else name


STARTER_RATES: Final = {"interactive": "100/1m", "subagent": "60/1m", "background": "30/1m", "api": "30/1m"}
"""The limits of the starter rules, by the tier of the agents that they select."""

COMPETING: Final = ("user", "agent", "tool")
"""Two rules compete only if each of these selectors is in both rules or in neither."""


class Call(NamedTuple):
    """The parts of a `tools/call` that rules select by.

    Attributes:
        user: The user; empty if unknown.
        agent: `client::tier::name`.
        server: The server's name.
        tool: The tool's name as the server knows it.
        roles: The verified token's roles.
        scopes: The verified token's scopes.
        session: The session that it belongs to. No rule selects by it.
    """

    user: str
    agent: str
    server: str
    tool: str
    roles: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()
    session: str = ""

    @classmethod
    def of(cls, record: Mapping[str, object]) -> "Call":
        """The call of a record of the audit log, which has no scopes; without its session. A member that it lacks is empty."""
        user, agent, tool, server = (str(record.get(axis, "")) for axis in AXES)
        roles = record.get("roles")
        return cls(user, agent, server, tool, tuple(map(str, roles)) if isinstance(roles, list) else ())


class Rate(NamedTuple):
    """At most `n` calls per window. `text` is the window in the policy's form: `90m`, or `session`."""

    n: int
    window_us: int
    text: str

    @property
    def is_per_session(self) -> bool:
        """Whether the limit counts each session by itself, whatever the rule's `per` is."""
        return self.text == SESSION


class Rule(NamedTuple):
    """One `[[rule]]`.

    Attributes:
        selectors: Patterns by selector. Only `role` and `scope` can have more than one; all of them must match.
        per: The axes for whose values there are separate counters. `tool` implies `server`, and `arguments` implies `tool`.
            Of a part with limits per session: with `session`.
        per_text: `per` as the file writes it; empty if the file leaves it out.
        rates: The limits; none for `deny` and `unlimited`.
        deny: Whether the rule denies every call that it selects.
        observe: Whether the rule only reports.
        name: The rule's `name`; empty if it has none.
        line: Its line in the file, from 1; 0 if unknown.
        counts: What the limits count: `calls`, `cost` or `errors`. `concurrent` for a part that has only the cap.
        concurrent: The cap: the most calls in flight; 0 for `unlimited`; None if the rule has none.
        has_limit: Whether the rule has `limit`. If not, it has `concurrent`.
        wait_us: How long a call that the rule refuses may be held; None for the policy's `wait`.
        warn: The share of each limit, in percent, at which a call warns; None for no warning. A cap has none.
    """

    selectors: dict[str, tuple[str, ...]]
    per: frozenset[str]
    per_text: str = ""
    rates: tuple[Rate, ...] = ()
    deny: bool = False
    observe: bool = False
    name: str = ""
    line: int = 0
    counts: Counts = "calls"
    concurrent: int | None = None
    has_limit: bool = True
    wait_us: int | None = None
    warn: int | None = None

    @property
    def parts(self) -> tuple["Rule", ...]:
        """Rules with what has a `per` or a count of its own: the limits, those per session, and the cap on calls in flight."""
        found = [self if self.concurrent is None else self._replace(concurrent=None)] if self.has_limit else []
        per_session = () if SESSION in self.per else tuple([rate for rate in self.rates if rate.is_per_session])
        if per_session:
            others = tuple([rate for rate in self.rates if not rate.is_per_session])
            (limits,) = found
            found = [limits._replace(rates=others)] if others else []
            found.append(limits._replace(rates=per_session, per=self.per | {SESSION}))
        if self.concurrent is not None:
            found.append(self._replace(counts="concurrent", rates=(), deny=False, has_limit=False, warn=None))
        return tuple(found)

    @property
    def text(self) -> str:
        """The rule in reports: its selectors, and `per=` if the file has it."""
        words = [f"{key}={','.join(self.selectors[key])}" for key in SELECTORS if key in self.selectors]
        if self.per_text:
            words.append(f"per={self.per_text}")
        return " ".join(words) or "every call"

    @property
    def key(self) -> tuple[object, ...]:
        """The selectors, `per`, and what is counted: what identifies a part of a rule within a policy."""
        return self.counts, self.per, *(frozenset(self.selectors.get(selector, ())) for selector in SELECTORS)

    @property
    def agent(self) -> Agent | None:
        """The agent selector; None if the rule has none."""
        patterns = self.selectors.get("agent")
        return Agent.split(patterns[0]) if patterns else None

    @property
    def exact(self) -> dict[str, str]:
        """The selectors for `AXES` that are names, and not patterns with `*`."""
        return {axis: self.selectors[axis][0] for axis in AXES if "*" not in self.selectors.get(axis, ("*",))[0]}

    @property
    def shared(self) -> dict[str, list[str]]:
        """The selectors that are not in `per`: the calls that they select share counters."""
        return {key: sorted(set(texts)) for key, texts in sorted(self.selectors.items()) if key not in self.per}

    @property
    def limit_text(self) -> str:
        """The limit as a policy file writes it: `20/1m 100/1h`, `deny` or `unlimited`; empty if the rule has none."""
        if self.deny:
            return "deny"
        return " ".join(f"{rate.n}/{rate.text}" for rate in self.rates) or ("unlimited" if self.has_limit else "")

    @property
    def bounds(self) -> tuple[Rate, ...]:
        """Of a part: its limits; or its cap as a limit whose window is 0."""
        return (Rate(self.concurrent, 0, ""),) if self.concurrent else self.rates

    @property
    def reported(self) -> tuple[Reported, ...]:
        """How reports name the rule's limits and its cap, in the order of the file; for `deny`, one without a limit."""
        counts = None if self.counts == "calls" else self.counts
        found = [Reported(self.axis, self.text, rate.n, rate.text, counts) for rate in self.rates]
        if self.deny:
            found.append(Reported(self.axis, self.text, None, None))
        if self.concurrent:
            found.append(Reported(self.axis, self.text, self.concurrent, None, "concurrent"))
        return tuple(found)

    @property
    def limits_text(self) -> str:
        """All that the rule limits, as reports write it: `20/1m 100/1h 2-in-flight`, `3-errors/1m`, `deny` or `unlimited`."""
        words = [one.limit_text for one in self.reported]
        if self.has_limit and not self.rates and not self.deny:
            words.insert(0, "unlimited")
        if self.concurrent == 0:
            words.append("unlimited-in-flight")
        return " ".join(words)

    @property
    def is_starter(self) -> bool:
        """Whether it is a starter rule, without any change."""
        agent = self.agent
        limit = STARTER_RATES.get(agent.tier) if agent else None
        selectors = {"user": ("*",), "agent": (f"*::{agent.tier}::*" if agent else "",)}
        options = (self.concurrent, self.wait_us, self.warn)
        has_more = self.per_text or self.observe or self.name or any(one is not None for one in options)
        return (self.selectors, self.limit_text, self.counts) == (selectors, limit, "calls") and not has_more

    @property
    def axis(self) -> str:
        """The axis that reports name for the rule's limits."""
        stated = self.per_text.split(",") if ARGUMENTS in self.per else self.per
        for axis in ("agent", "user", "tool"):
            if axis in stated:
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
        return self.counts, self.per, *(key in self.selectors for key in COMPETING)

    @property
    def reach(self) -> tuple[object, ...]:
        """Equal for rules that differ only in role or scope."""
        return self.counts, self.per, *(self.selectors.get(key) for key in AXES)

    def covers_all_of(self, other: "Rule") -> bool:
        """Whether the rule is at least as wide as `other` in every selector."""
        return all(self.covers(other, key) for key in self.selectors)

    def is_wider_than(self, other: "Rule") -> bool:
        """Whether the rule is wider than `other` in at least one selector, and narrower in none."""
        return self.covers_all_of(other) and not other.covers_all_of(self)

    def is_overridden_by(self, other: "Rule") -> bool:
        """Whether `other` overrides this rule for the calls that both match.

        It does if it competes with this rule, is narrower in at least one selector, and is wider in none. Of two patterns,
        neither of which covers the other, neither is narrower: both rules apply.
        """
        return self.kind == other.kind and self.is_wider_than(other)

    def may_meet(self, other: "Rule") -> bool:
        """Whether a call may match both rules. If False, none can; if True, it is not certain that one can."""
        for key in AXES:
            mine, theirs = self.selectors.get(key, ()), other.selectors.get(key, ())
            if key == "agent":  # each part is a pattern of its own
                mine, theirs = self.agent or (), other.agent or ()
            if not all(map(may_meet, mine, theirs)):
                return False
        return True

    @property
    def options(self) -> list[str]:
        """The options of `policy set` for the rule's selectors and its `per`."""
        words = [word for key in SELECTORS for pattern in self.selectors.get(key, ()) for word in (f"--{key}", pattern)]
        per = self.per_text or (",".join(axis for axis in PER if axis in self.per) if SESSION in self.per else "")
        return words + (["--per", per] if per else [])

    @property
    def setting(self) -> list[str]:
        """The arguments of `policy set` for the rule."""
        count = ["--count", self.counts] if self.has_limit and self.counts != "calls" else []
        cap = [] if self.concurrent is None else ["--concurrent", f"{self.concurrent or 'unlimited'}"]
        return [*self.options, *cap, *count, *self.limit_text.split()]


class Cost(NamedTuple):
    """One `[[cost]]`: what the calls of some tools take of limits that count cost.

    Attributes:
        pattern: A rule that selects the calls, by `tool` and `server`. It has the line of the cost.
        units: 1 or more.
    """

    pattern: Rule
    units: int


class Policy:
    """A policy in force.

    Args:
        rules: The rules, in the order of the file.
        digest: A hash of the file's text, for the audit log.
        observe: Whether all rules only report.
        costs: What calls cost, in the order of the file.
        wait_us: How long a call may be held if the rules that refuse it have no `wait` of their own; 0 for not at all.
        is_starter: Whether it is the starter policy, because there is no file.

    Attributes:
        parts: The parts of the rules, in order, each with the index of its rule.
    """

    def __init__(
        self,
        rules: tuple[Rule, ...],
        digest: str = "",
        *,
        observe: bool = False,
        costs: tuple[Cost, ...] = (),
        wait_us: int = 0,
        is_starter: bool = False,
    ) -> None:
        self.rules = rules
        self.digest = digest
        self.observe = observe
        self.costs = costs
        self.wait_us = wait_us
        self.is_starter = is_starter
        self.parts = tuple([(part, at) for at, rule in enumerate(rules) for part in rule.parts])
        # The indexes of the parts, by the axes on which they have a selector without `*`, and then by these selectors
        self._places: dict[tuple[str, ...], dict[tuple[object, ...], list[int]]] = {}
        for at, (rule, _) in enumerate(self.parts):
            exact = rule.exact
            self._places.setdefault(tuple(exact), {}).setdefault(tuple(exact.values()), []).append(at)

    @property
    def mode_text(self) -> str:
        """The mode, in the words of the wrapper's messages."""
        return "mode=observe (nothing is denied)" if self.observe else "mode=enforce"

    def tier_warning(self, tier: str | None) -> str | None:
        """Warn of a tier that no rule can match, because it may be misspelt; None if a rule can, or if there is no tier."""
        agents = [rule.agent for rule in self.rules]
        if not tier or not agents or any(agent is None or glob(agent.tier, tier) for agent in agents):
            return None
        return f"no rule matches agents of the tier {tier}, so nothing limits their calls; check the spelling"

    def plan(self, call: Call, namespace: str = "default") -> Plan:
        """The plan of `call`. It takes long to make: cache it."""
        return _plan(self.applying(call), call, namespace, self)

    def without_waiting(self, counts: Collection[Counts]) -> "Policy":
        """The policy for calls that are decided at once, without caps, and with only the limits that count these."""
        counted = [rule for rule in self.rules if rule.has_limit and rule.counts in counts]
        rules = tuple([rule._replace(wait_us=rule.wait_us and 0, concurrent=rule.concurrent and 0) for rule in counted])
        return Policy(rules, self.digest, observe=self.observe, costs=self.costs, is_starter=self.is_starter)

    def cost(self, call: Call) -> int:
        """What a call takes of limits that count cost: by the narrowest `[[cost]]`, else 1.

        Of several, none of which is narrower than another, the highest applies.
        """
        matching = [one for one in self.costs if one.pattern.matches(call)]
        patterns = [one.pattern for one in matching]
        return max(
            (one.units for one in matching if not any(one.pattern.is_wider_than(other) for other in patterns)),
            default=1,
        )

    def applying(self, call: Call) -> list[tuple[Rule, int]]:
        """The parts of rules that apply to `call`, each with the index of its rule."""
        return [self.parts[at] for at, winner in self.matching(call) if winner is None]

    def naming_only(self, names: Mapping[str, object]) -> list[int]:
        """The indexes of the parts that select by no other names than these, in order. A pattern with `*` is no name.

        Of thousands of rules, few others can match a call of these names, or cover a rule for them.

        Args:
            names: Names by axis.
        """
        places: list[int] = []
        for axes, named in self._places.items():
            places += named.get(tuple([names.get(axis) for axis in axes]), ())
        return sorted(places)

    def matched(self, call: Call) -> list[int]:
        """The indexes of the parts whose rules match `call`, in order."""
        spared = call.server == BUILT_IN
        found = [(at, self.parts[at][0]) for at in self.naming_only(call._asdict())]
        return [at for at, part in found if part.matches(call) and not (spared and self.rules[self.parts[at][1]].is_starter)]

    def matching(self, call: Call) -> list[tuple[int, int | None]]:
        """The indexes of the parts whose rules match `call`, each with the index of the part that overrides it, or None."""
        matched = self.matched(call)
        kinds = {at: self.parts[at][0].kind for at in matched}
        firsts: dict[tuple[object, ...], int] = {}  # of rules that differ only in role or scope, the first
        result: list[tuple[int, int | None]] = []
        for at in matched:
            rule = self.parts[at][0]
            competing = [other for other in matched if kinds[other] == kinds[at]]
            winner = next((other for other in competing if rule.is_wider_than(self.parts[other][0])), None)
            if winner is None:
                first = firsts.setdefault(rule.reach, at)
                winner = first if first != at else None
            result.append((at, winner))
        return result


def _plan(parts: Sequence[tuple[Rule, int]], call: Call, namespace: str, policy: Policy) -> Plan:
    limits: list[Limit] = []
    reported: list[Reported] = []
    counters: dict[Counter, int] = {}
    for rule, at in parts:
        observed = policy.observe or rule.observe
        wait_us = policy.wait_us if rule.wait_us is None else rule.wait_us
        reported += rule.reported
        if rule.deny:
            limits.append(Limit(0, 0, -1, at, observed))
        cost = policy.cost(call) if rule.counts == "cost" else 1
        for rate in rule.bounds:
            counter = _counter(rule, call, namespace, rate.window_us)
            number = counters.setdefault(counter, len(counters))
            warn_at = -(-rate.n * (rule.warn or 0) // 100)
            mark = counters.setdefault(counter.mark, len(counters)) if warn_at else -1
            limits.append(Limit(rate.n, rate.window_us, number, at, observed, rule.counts, cost, wait_us, warn_at, mark))
    return Plan(tuple(limits), tuple(reported), tuple(counters))


def _counter(rule: Rule, call: Call, namespace: str, window_us: int) -> Counter:
    values: dict[str, str] = {axis: cut(getattr(call, axis)) for axis in AXES if axis in rule.per}
    if SESSION in rule.per:
        values[SESSION] = cut(call.session)
    if ARGUMENTS in rule.per:
        values[ARGUMENTS] = ""
    label = Label(namespace, values, rule.shared, rule.counts, window_us).text
    return Counter(counter_id(label), label, window_us)


def _one_matches(pattern: str, values: Sequence[str]) -> bool:
    return pattern in values or ("*" in pattern and any(glob(pattern, value) for value in values))


_MATCH: Final = {"user": glob, "agent": agent_matches, "tool": glob, "server": glob}
