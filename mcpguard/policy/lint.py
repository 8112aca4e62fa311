"""Warns of probable mistakes in a valid policy."""

import re
import shlex
from collections.abc import Collection, Iterable, Iterator, Sequence

from mcpguard.identity.caller import TIERS, known_client
from mcpguard.light_typing import Final, NamedTuple
from mcpguard.limiter.plan import ARGUMENTS, SESSION
from mcpguard.limiter.sliding import grain
from mcpguard.policy.explain import Covered, overriding, rule_numbers, series
from mcpguard.policy.model import AXES, BUILT_IN, COMPETING, PER, SELECTORS, Cost, Policy, Rate, Rule
from mcpguard.text.patterns import glob
from mcpguard.text.times import span_in_words, window

MAX_PATIENCE_US: Final = 5_000_000
"""How long every known client waits for an answer. Progress notifications extend that in few of them.

Source: docs/policy.md#waiting.
"""

_ANY: Final = {("*",), ("*::*::*",)}
"""Patterns that match each value of an axis."""

_BUILT_IN_TOOLS: Final = (
    *("Agent", "Bash", "Edit", "Monitor", "NotebookEdit", "Read", "Skill", "Task", "WebFetch", "WebSearch", "Write"),
    *("apply_patch", "spawn_agent", "run_shell_command", "write_file", "web_fetch"),
)
"""Tools of clients that people limit: of Claude Code and Cursor, of Codex, Gemini CLI and Copilot CLI."""

_CLAUDE_CODE_NAME = re.compile(r"mcp__(.+?)__(.+)", re.DOTALL)


def warnings(policy: Policy, *, tiers: Collection[str] = ()) -> list[str]:
    """Find what the author of a policy probably does not mean.

    Args:
        policy: A policy.
        tiers: Tiers that are used here beside the usual ones.

    Returns:
        A line for each rule that can never admit, because another rule denies all of its calls; for each limit that another
        limit of its rule makes superfluous; for each cost that no limit counts, or that is above a whole limit; for each wait
        without effect, or so long that clients give up; for each rule on built-in tools that a hook does not hold; for each
        tool that has its name in Claude Code; for each client that has its name in `clientInfo`; and for each tier that is
        neither usual nor in `tiers`.
    """
    return [
        *_never_admitting(policy),
        *_never_binding(policy),
        *_costs(policy),
        *_waits(policy),
        *_beyond_hooks(policy),
        *_foreign_names(policy),
        *_own_names(policy),
        *_unknown_tiers(policy, {*TIERS, *tiers}),
    ]


def label(policy: Policy, at: int) -> str:
    """A rule in a warning: its line if it is known, its number and its text."""
    rule = policy.rules[at]
    return f"{f'line {rule.line}: ' if rule.line else ''}rule {at + 1} ({rule.text})"


def place(warning: str) -> tuple[int, int]:
    """The line and the number of the rule in the label that a warning begins with; 0 if it has none.

    >>> place("line 3: rule 1 (tool=a) has matched none of the calls"), place("line 9: the cost of tool=a has no effect")
    ((3, 1), (9, 0))
    """
    line, number = re.findall(r"^(?:line (\d+): )?(?:rule (\d+) \()?", warning)[0]
    return int(line or 0), int(number or 0)


class Capped(NamedTuple):
    """The rules that still cap calls of other rules more tightly, each in a line with the command that drops it.

    Attributes:
        warnings: Those that keep the callers of another rule below its limit.
        notes: Other starter rules; and those that apply in place of another rule.
    """

    warnings: list[str]
    notes: list[str]


def still_capped(policy: Policy, *, policy_option: Sequence[str] = ()) -> Capped:
    """Find the rules that still cap calls of other rules more tightly.

    Args:
        policy: A policy.
        policy_option: The option that names the policy file, for the commands; empty if none is needed.
    """
    tightness = Tightness(policy)
    defeated: dict[int, list[int]] = {}  # by a rule: the rules whose calls it caps
    for at, other in tightness.defeated():
        defeated.setdefault(other, []).append(at)
    noted: dict[int, list[int]] = {}
    for at, rule in enumerate(policy.rules):
        if rule.rates and at not in tightness.starter:
            for other in tightness.capping(at, tightness.starter):
                noted.setdefault(other, []).append(at)
    noted = {other: ats for other, ats in noted.items() if other not in defeated}
    replaced: dict[int, list[int]] = {}
    for at in sorted(set(range(len(policy.rules))) - tightness.starter):
        for other in tightness.replacing(at):
            replaced.setdefault(other, []).append(at)

    def lines(found: dict[int, list[int]], how: str) -> list[str]:
        return [
            f"{label(policy, other)} {how.format(rule_numbers(ats))}, at"
            f" {policy.rules[other]._replace(concurrent=None).limits_text};"
            f" to drop it: {unset_command(policy, other, policy_option=policy_option)}"
            for other, ats in sorted(found.items())
        ]

    caps = "still caps calls of {} more tightly"
    return Capped(lines(defeated, caps), lines(noted, caps) + lines(replaced, "applies in place of {} to calls of its agents"))


def unset_command(policy: Policy, at: int, *, policy_option: Sequence[str] = ()) -> str:
    """The command that removes the limit of a rule.

    Args:
        policy: The policy.
        at: The index of the rule.
        policy_option: The option that names the policy file; empty if none is needed.
    """
    rule = policy.rules[at]
    first = rule.parts[0]
    is_one_of_two = (
        len({part.counts for part in rule.parts}) > 1 or sum(one.parts[0].key[1:] == first.key[1:] for one in policy.rules) > 1
    )
    count = ["--count", first.counts] if is_one_of_two else []
    return shlex.join(["mcpguard", "policy", "unset", *policy_option, *first.options, *count])


def superfluous(rates: Sequence[Rate]) -> Iterator[tuple[Rate, Rate]]:
    """The limits of a rule that can never deny a call, each with another limit that denies earlier."""
    for rate in rates:
        for other in rates:
            if other is not rate and not can_deny_beside(rate, other):
                yield rate, other
                break


def _never_binding(policy: Policy) -> Iterator[str]:
    for rule, at in policy.parts:
        if rule.counts == "errors":  # calls in flight can exceed the smaller limit
            continue
        for rate, other in superfluous(rule.rates):
            most = admitted_at_most(other, rate.window_us)
            yield (
                f"{label(policy, at)}: the limit {rate.n}/{rate.text} can never deny a call, because {other.n}/{other.text}"
                f" admits at most {most} in any {window(rate.window_us)}; remove one of them"
            )


def _costs(policy: Policy) -> Iterator[str]:
    """Warn of costs that nothing counts, and of costs above a whole limit."""
    counting = [(rule, at) for rule, at in policy.parts if rule.counts == "cost" and rule.rates]
    for cost in policy.costs:
        name = f"{f'line {cost.pattern.line}: ' if cost.pattern.line else ''}{cost_text(cost)}"
        meeting = [(rule, at) for rule, at in counting if rule.may_meet(cost.pattern)]
        if not meeting:
            hint = 'write count = "cost" in a rule, or remove it'
            yield f"{name} has no effect, because no rule that counts cost applies to its calls; {hint}"
        for rule, at in meeting:
            least = min(rule.rates)
            if cost.units > least.n and not policy.observe and not rule.observe and not _is_replaced(policy, rule, cost):
                yield (
                    f"{name}: {label(policy, at)} never admits such a call, because it costs {cost.units:,} and the"
                    f" whole limit is {least.n}/{least.text}; raise the limit or lower the cost"
                )


def _is_replaced(policy: Policy, rule: Rule, cost: Cost) -> bool:
    """Whether a narrower cost, or a narrower rule, applies to all calls of a rule that have this cost."""
    if any(cost.pattern.is_wider_than(one.pattern) and one.pattern.covers_all_of(rule) for one in policy.costs):
        return True
    both = {key: cost.pattern if key in ("tool", "server") else rule for key in SELECTORS}
    return any(
        rule.is_overridden_by(other) and all(other.covers(one, key) for key, one in both.items()) for other, _ in policy.parts
    )


def cost_text(cost: Cost) -> str:
    """A `[[cost]]` by the calls that it is for."""
    return f"the cost of {cost.pattern.text if cost.pattern.selectors else 'any call'}"


def _waits(policy: Policy) -> Iterator[str]:
    """Warn of waits without effect, and of waits for which clients have no patience."""
    hint = "some clients give up earlier (the OpenAI Agents SDK for Python after 5 seconds)"
    if policy.wait_us > MAX_PATIENCE_US:
        yield f"the wait of the policy is {span_in_words(policy.wait_us)}, but {hint}"
    for at, rule in enumerate(policy.rules):
        if not rule.wait_us:
            continue
        if rule.observe or not (rule.rates or rule.concurrent):
            yield f"{label(policy, at)}: its wait has no effect, because it never refuses a call"
        elif rule.wait_us > MAX_PATIENCE_US:
            yield f"{label(policy, at)}: its wait is {span_in_words(rule.wait_us)}, but {hint}"


def _unknown_tiers(policy: Policy, known: Collection[str]) -> Iterator[str]:
    import difflib  # only for warnings

    for at, rule in enumerate(policy.rules):
        tier = rule.agent.tier if rule.agent else "*"
        if any(glob(tier, one) for one in known):
            continue
        near = difflib.get_close_matches(tier, known, 1)
        hint = f'did you mean "{near[0]}"?' if near else "check the spelling"
        yield f"{label(policy, at)} is for the tier {tier}, which is none of {' '.join(TIERS)}; {hint}"


def _never_admitting(policy: Policy) -> Iterator[str]:
    if policy.observe:
        return
    covered, shutters = Covered(policy.rules), dict[int, int]()
    for closing, instead in _exceptions(policy).items():
        deny, others = policy.rules[closing], [policy.rules[other] for other in instead]
        for at in covered.near(deny):
            rule = policy.rules[at]
            is_closed = not rule.deny and at not in instead and deny.covers_all_of(rule)
            if is_closed and not any(map(rule.may_meet, others)):
                shutters.setdefault(at, closing)
    for at, closing in sorted(shutters.items()):
        if not policy.rules[at].is_starter:  # nobody expects it to admit what another rule denies
            yield (
                f"{label(policy, at)} can never admit a call: {label(policy, closing)} denies all of its calls;"
                f" {_remedy(policy.rules, at, closing)}"
            )


def _exceptions(policy: Policy) -> dict[int, set[int]]:
    """For each rule that denies calls, the rules that apply in its place where both match."""
    alike: dict[object, list[int]] = {}
    for part, at in policy.parts:
        alike.setdefault(part.reach, []).append(at)
    return {
        at: {*narrower, *(other for other in alike[rule.reach] if other < at)}
        for at, (rule, narrower) in enumerate(zip(policy.rules, overriding(policy), strict=True))
        if rule.deny and not rule.observe
    }


def _remedy(rules: Sequence[Rule], at: int, shutter: int) -> str:
    """How to make a rule an exception from the rule that denies its calls."""
    rule, deny = rules[at].parts[0], rules[shutter]
    added = [key for key in COMPETING if key in rule.selectors and key not in deny.selectors]
    any_of = {key: ("*::*::*" if key == "agent" else "*",) for key in added}
    wider = deny._replace(selectors=deny.selectors | any_of, per=rule.per)
    if rule.counts != "calls":
        return f"an exception from rule {shutter + 1} is a narrower rule that limits calls"
    if not wider.is_overridden_by(rule):
        return f"only a rule that is narrower than rule {shutter + 1} can be an exception from it"
    steps = [f'{key} = "*"' for key in added]
    per = deny.per if deny.per_text else deny.per.union(added, ["server"] if "tool" in added else [])
    if per != rule.per:
        steps.append("per = [" + ", ".join(f'"{axis}"' for axis in PER if axis in rule.per) + "]")
    return f"if it is meant to be an exception, write {series(steps)} in rule {shutter + 1}"


def beyond_hooks(policy: Policy, rule: Rule) -> str:
    """What a hook, which decides calls of built-in tools, does not do of a rule, as the end of a sentence; empty if nothing."""
    wait_us = policy.wait_us if rule.wait_us is None else rule.wait_us
    gaps = ["makes no call wait"] if wait_us else []
    gaps += ["caps no calls in flight"] if rule.concurrent else []
    gaps += ["counts no errors in Codex, which does not tell of them"] if rule.counts == "errors" else []
    return series(gaps) if gaps else ""


def _beyond_hooks(policy: Policy) -> Iterator[str]:
    for at, rule in enumerate(policy.rules):
        server, tool = (rule.selectors.get(key, ("*",))[0] for key in ("server", "tool"))
        is_meant = server != "*" or any(glob(tool, one) for one in _BUILT_IN_TOOLS if tool != "*")
        if is_meant and glob(server, BUILT_IN) and (gaps := beyond_hooks(policy, rule)):
            yield f"{label(policy, at)} is for built-in tools, which a hook decides: it {gaps}"


def _foreign_names(policy: Policy) -> Iterator[str]:
    for at, rule in enumerate(policy.rules):
        match = _CLAUDE_CODE_NAME.fullmatch(rule.selectors.get("tool", ("",))[0])
        if match:
            names = f'tool = "{match[2]}", server = "{match[1]}"'
            yield f"{label(policy, at)} names a tool by its name in Claude Code; did you mean {names}?"


def _own_names(policy: Policy) -> Iterator[str]:
    for at, rule in enumerate(policy.rules):
        own = rule.agent
        if own and known_client(own.client) != own.client:
            agent = own._replace(client=known_client(own.client))
            yield f'{label(policy, at)} names a client by its name in clientInfo; did you mean agent = "{agent}"?'


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
        self.starter = {at for at, rule in enumerate(policy.rules) if rule.is_starter}
        self._policy = policy
        self._rules = [rule.parts[0] for rule in policy.rules]  # the part with the limits, if there is one
        self._parts = [rule.parts for rule in policy.rules]
        self._narrower = [[part for one in others for part in self._parts[one]] for others in overriding(policy)]

    def capping(self, at: int, among: Iterable[int] | None = None) -> list[int]:
        """The indexes of the rules that cap the calls of a rule more tightly, in order; only those `among`, if given."""
        others = range(len(self._rules)) if among is None else sorted(among)
        return [other for other in others if other != at and self._caps(other, at)]

    def replacing(self, at: int) -> list[int]:
        """The indexes of the starter rules that apply in place of a rule to some of its calls, in order."""
        return [other for other in sorted(self.starter - {at}) if self._rules[at].is_overridden_by(self._rules[other])]

    def defeated(self) -> Iterator[tuple[int, int]]:
        """The rules that no caller can exhaust, each with a rule that caps all of its calls more tightly.

        If that is a starter rule that nobody has edited, it is enough that it keeps some callers below the limit for good.

        Yields:
            The index of the rule, and that of the other.
        """
        for at, rule in enumerate(self._rules):
            if at in self.starter or not rule.rates:
                continue
            near = {self._policy.parts[place][1] for place in self._policy.naming_only(rule.exact)}
            yield from ((at, other) for other in self.capping(at, near) if self._defeats(other, at))

    def _caps(self, other: int, at: int) -> bool:
        return any(self._part_caps(wide, other, self._rules[at]) for wide in self._parts[other])

    def _part_caps(self, wide: Rule, other: int, rule: Rule) -> bool:
        return (
            self._counts_all_of(wide, rule)
            and _can_deny_first(wide, rule)
            and wide.may_meet(rule)
            and _spans(wide, rule, ("tool", "server"))
            and not wide.is_overridden_by(rule)
            and not rule.is_overridden_by(wide)  # an exception from it
            and not any(wide.is_overridden_by(one) and _spans(one, rule, SELECTORS) for one in self._narrower[other])
        )

    def _counts_all_of(self, wide: Rule, rule: Rule) -> bool:
        """Whether a rule counts at least as much of each call as another one counts. A call costs at least 1."""
        if wide.counts == rule.counts:
            return True
        if wide.counts == "calls" and rule.counts == "cost":
            return not any(cost.units > 1 and rule.may_meet(cost.pattern) for cost in self._policy.costs)
        return (wide.counts, rule.counts) in {("cost", "calls"), ("calls", "errors"), ("cost", "errors")}

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
    split_further = {ARGUMENTS, SESSION} & wide.per - rule.per  # as far as a caller likes: it caps only what has no limit
    if rule.deny or wide.observe or (split_further and rule.rates):
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
