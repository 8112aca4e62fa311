"""Rules in words, and what is odd about a policy though it can be taken up."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from mcpguard.core.agent import Agent
from mcpguard.core.identity import known_client
from mcpguard.core.limiter import EXACT
from mcpguard.core.patterns import glob
from mcpguard.core.policy import AXES, SELECTORS, Policy, Rate, Rule

_UNITS_US: Final = {
    "week": 604_800_000_000,
    "day": 86_400_000_000,
    "hour": 3_600_000_000,
    "minute": 60_000_000,
    "second": 1_000_000,
}
_CLAUDE_CODE_NAME = re.compile(r"mcp__(.+?)__(.+)", re.DOTALL)


def sentence(rule: Rule) -> str:
    """What a rule limits, as one sentence that says how it is counted.

    Args:
        rule: The rule.

    Returns:
        English text. Names and patterns stand in it as they are: what shows it has to make them printable.
    """
    if rule.deny:
        text = _denying(rule)
    elif not rule.rates:
        text = f"{_who(rule, together=False)} may call {_what(rule)}{_through(rule)} without limit, other rules aside"
    elif "tool" in rule.selectors or "tool" in rule.per:
        times = series([_times(rate) for rate in rule.rates])
        text = f"{_who(rule)} may call {_what(rule)} {times}{_through(rule)}{_together(rule)}"
    else:
        first, *more = rule.rates
        calls = [f"{first.n:,} call{'' if first.n == 1 else 's'} {span(first)}", *(f"{rate.n:,} {span(rate)}" for rate in more)]
        text = f"{_who(rule)} may make {series(calls)}{_to_servers(rule)}{_through(rule)}{_together(rule)}"
    return f"{text} (reported only, not denied)." if rule.observe else f"{text}."


def span(rate: Rate) -> str:
    """A rate's window in words.

    >>> span(Rate(5, 3_600_000_000, "60m")), span(Rate(5, 5_400_000_000, "90m"))
    ('an hour', 'in any 90 minutes')
    """
    text = window(rate.window_us)
    if text[0].isdigit():
        return f"in any {text}"
    return f"{'an' if text == 'hour' else 'a'} {text}"


def window(window_us: int) -> str:
    """A window's length in words.

    >>> window(3_600_000_000), window(5_400_000_000)
    ('hour', '90 minutes')
    """
    word, us = next((word, us) for word, us in _UNITS_US.items() if window_us % us == 0)
    count = window_us // us
    return f"{count:,} {word}s" if count > 1 else word


def _times(rate: Rate) -> str:
    return f"once {span(rate)}" if rate.n == 1 else f"{rate.n:,} times {span(rate)}"


def series(words: Sequence[str]) -> str:
    """Joins words as English does.

    >>> series(["a"]), series(["a", "b"]), series(["a", "b", "c"])
    ('a', 'a and b', 'a, b and c')
    """
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def _matching(rule: Rule, selector: str) -> str:
    """` matching PATTERN`, but for a pattern that matches all."""
    pattern = rule.selectors.get(selector, ("*",))[0]
    return "" if pattern in ("*", "*::*::*") else f" matching {pattern}"


def _spread(rule: Rule, axis: str) -> str:
    """How a rule counts along an axis: `one` value, `each` of several apart, `all` selected together, or `any` of them."""
    patterns = rule.selectors.get(axis)
    if patterns and "*" not in patterns[0]:
        return "one"
    if axis in rule.per:
        return "each"
    return "all" if patterns else "any"


def _who(rule: Rule, *, together: bool = True) -> str:
    """The sentence's subject: users, or their agents. With `together`, those who share an allowance are said to."""
    users = _spread(rule, "user")
    badges = _badges(rule)
    narrowing = f"{_matching(rule, 'user')}{badges}"
    if users == "one":
        user = rule.selectors["user"][0] + badges
    elif users == "each" or (narrowing and not together):
        user = f"each user{narrowing}"
    elif narrowing:
        user = f"all users{narrowing} together"
    else:
        user = "everybody together" if together else "everybody"
    if together and _spread(rule, "agent") == "each":
        agent = f"Each agent{_matching(rule, 'agent')}"
        return f"{agent}, all its users together," if user == "everybody together" else f"{agent} of {user}"
    return user if users == "one" else user[0].upper() + user[1:]


def _badges(rule: Rule) -> str:
    """The roles and scopes that the caller has to have."""
    words = []
    for key in ("role", "scope"):
        names = rule.selectors.get(key, ())
        plain = [name for name in names if "*" not in name]
        if plain:
            words.append(f"{key}{'s' if len(plain) > 1 else ''} {series(plain)}")
        words += [f"a {key} matching {name}" for name in names if "*" in name]
    return f" with {series(words)}" if words else ""


def _what(rule: Rule) -> str:
    counted = bool(rule.rates)
    tools, servers = _spread(rule, "tool"), _spread(rule, "server")
    if tools == "one":
        text = rule.selectors["tool"][0]
    elif tools == "each" and counted:
        text = f"each tool{_matching(rule, 'tool')}"
    elif "tool" in rule.selectors and _matching(rule, "tool"):
        text = f"tools{_matching(rule, 'tool')}"
    else:
        text = "tools" if counted else "any tool"
    if servers == "one":
        return f"{text} of {rule.selectors['server'][0]}"
    if servers == "each" and counted and (tools != "one" or "server" in rule.selectors):
        return f"{text} of each server{_matching(rule, 'server')}"
    if "server" in rule.selectors and _matching(rule, "server"):
        return f"{text} of servers{_matching(rule, 'server')}"
    return text


def _to_servers(rule: Rule) -> str:
    """Where the calls go of a rule that tells no tools apart."""
    spread = _spread(rule, "server")
    if spread == "one":
        return f" to server {rule.selectors['server'][0]}"
    return {"each": " to each server", "all": " to servers", "any": ""}[spread] + _matching(rule, "server")


def _through(rule: Rule) -> str:
    if rule.rates and _spread(rule, "agent") == "each":
        return ""  # it is the subject
    patterns = rule.selectors.get("agent")
    if not patterns:
        return ""
    return f" through {'agent' if '*' not in patterns[0] else 'agents'} {patterns[0]}"


def _together(rule: Rule) -> str:
    """What has one allowance together, users apart: they are the subject."""
    tools, servers = _spread(rule, "tool"), _spread(rule, "server")
    words = []
    if tools in ("all", "any"):
        words.append("all tools" if not _matching(rule, "tool") else "these tools")
    if servers == "all" and _matching(rule, "server"):
        words.append("these servers")
    elif servers == "all" or (servers == "any" and tools != "any"):
        words.append("all servers")
    if _spread(rule, "agent") == "all":
        words.append("these agents")
    return f", {series(words)} together" if words else ""


def _denying(rule: Rule) -> str:
    what = f"{_what(rule)}{_through(rule)}"
    badges = _badges(rule)
    if _spread(rule, "user") == "one":
        return f"{rule.selectors['user'][0]}{badges} may not call {what}"
    narrowing = f"{_matching(rule, 'user')}{badges}"
    return f"No user{narrowing} may call {what}" if narrowing else f"Nobody may call {what}"


def warnings(policy: Policy) -> list[str]:
    """What a policy says that its author can hardly mean, one line each.

    Args:
        policy: A policy.

    Returns:
        A line for each rule that can never admit because another denies all that it selects, for each tool that is named as
        Claude Code shows it, and for each client that is named as it names itself.
    """
    return [*_never_admitting(policy), *_foreign_names(policy), *_own_names(policy)]


def tier_warning(policy: Policy, tier: str | None) -> str | None:
    """A line for an agent whose tier is one that no rule can match, be it for a slip of the pen; None for any other.

    Args:
        policy: A policy.
        tier: The tier that is configured; None or empty if none is.
    """
    if not tier or not policy.rules or policy.reaches_tier(tier):
        return None
    return f"no rule matches agents of the tier {tier}, so that nothing limits their calls"


def label(policy: Policy, at: int) -> str:
    """How a warning names a rule: its number, its text, and its line if that is known."""
    rule = policy.rules[at]
    return f"{f'line {rule.line}: ' if rule.line else ''}rule {at + 1} ({rule.text})"


def _never_admitting(policy: Policy) -> Iterator[str]:
    if policy.observe:
        return
    named: dict[tuple[str, str], list[int]] = {}
    for at, rule in enumerate(policy.rules):
        for name in _names(rule):
            named.setdefault(name, []).append(at)
    shutters: dict[int, int] = {}
    for at, rule in enumerate(policy.rules):
        if rule.deny and not rule.observe:
            near = min([named[name] for name in _names(rule)], key=len, default=range(len(policy.rules)))
            for closed in _closed_by(policy.rules, at, near):
                shutters.setdefault(closed, at)
    for at, shutter in sorted(shutters.items()):
        yield (
            f"{label(policy, at)} can never admit: {label(policy, shutter)} denies all that it selects;"
            " an exception has the same of user, agent and tool, and the same per"
        )


def _names(rule: Rule) -> list[tuple[str, str]]:
    """What a rule names in full; so does each rule that it covers."""
    return [(axis, rule.selectors[axis][0]) for axis in AXES if "*" not in rule.selectors.get(axis, ("*",))[0]]


def _closed_by(rules: Sequence[Rule], closing: int, near: Sequence[int]) -> Iterator[int]:
    """The rules of which one rule denies every call that they match, and nothing takes its place for any of them.

    Args:
        rules: All of them.
        closing: The place of the one that denies.
        near: The places of those that it can cover.
    """
    deny = rules[closing]
    axis = next((axis for axis in AXES if axis in deny.selectors), "")
    exceptions: dict[str, list[int]] = {}  # by what they name on this axis: two that name different things do not meet
    for at in near:
        if deny.is_overridden_by(rules[at]) or (at < closing and deny.reach == rules[at].reach):
            exceptions.setdefault(dict(_names(rules[at])).get(axis, ""), []).append(at)
    every = {at for some in exceptions.values() for at in some}
    for at in near:
        rule = rules[at]
        if rule.deny or at in every or not all(deny.covers(rule, key) for key in SELECTORS):
            continue
        name = dict(_names(rule)).get(axis)
        meeting = [*exceptions.get(name, ()), *exceptions.get("", ())] if name else every
        if not any(_overlap(rule, rules[other]) for other in meeting):
            yield at


def _overlap(rule: Rule, other: Rule) -> bool:
    """Whether a call can match both; in doubt, yes."""
    for key in AXES:
        mine, theirs = rule.selectors.get(key), other.selectors.get(key)
        if mine and theirs and not _meet(key, mine[0], theirs[0]):
            return False
    return True


def _meet(key: str, one: str, two: str) -> bool:
    if key == "agent":
        return all(_meet("", mine, theirs) for mine, theirs in zip(Agent.split(one) or (), Agent.split(two) or (), strict=True))
    if "*" not in one:
        return glob(two, one)
    if "*" not in two:
        return glob(one, two)
    (mine, *_, my_end), (theirs, *_, their_end) = one.split("*"), two.split("*")
    begin = mine.startswith(theirs) or theirs.startswith(mine)
    return begin and (my_end.endswith(their_end) or their_end.endswith(my_end))


def counted_in_grains(rule: Rule, before: Iterable[Rule]) -> list[str]:
    """What a limit of 64 or less says of calls that a larger one has counted, one sentence for each such window.

    Args:
        rule: The rule with the limits that are in force from now on.
        before: The rules that may have counted in its counters.
    """
    larger = {
        rate.window_us
        for other in before
        if other.per == rule.per and other.shared == rule.shared and _overlap(rule, other)
        for rate in other.rates
        if rate.n > EXACT
    }
    return [
        f"Calls already made count up to {_short(-(-rate.window_us // EXACT))} longer (a {EXACT}th of the {rate.text} window):"
        f" above {EXACT} the time of each is not kept."
        for rate in rule.rates
        if rate.n <= EXACT and rate.window_us in larger
    ]


def _short(span_us: int) -> str:
    """A span of time in whole seconds, rounded up.

    >>> _short(1_350_000_000), _short(3_600_000_001)
    ('22m 30s', '1h 1s')
    """
    minutes, seconds = divmod(-(-span_us // 1_000_000), 60)
    hours, minutes = divmod(minutes, 60)
    return " ".join(f"{count}{unit}" for count, unit in ((hours, "h"), (minutes, "m"), (seconds, "s")) if count)


def _foreign_names(policy: Policy) -> Iterator[str]:
    for at, rule in enumerate(policy.rules):
        match = _CLAUDE_CODE_NAME.fullmatch(rule.selectors.get("tool", ("",))[0])
        if match:
            names = f'tool = "{match[2]}", server = "{match[1]}"'
            yield f"{label(policy, at)} names a tool as Claude Code shows it; did you mean {names}?"


def _own_names(policy: Policy) -> Iterator[str]:
    for at, rule in enumerate(policy.rules):
        own = rule.agent
        if own and known_client(own.client) != own.client:
            agent = own._replace(client=known_client(own.client))
            yield f'{label(policy, at)} names a client as it calls itself; did you mean agent = "{agent}"?'
