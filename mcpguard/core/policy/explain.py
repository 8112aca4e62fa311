"""Describes rules in sentences, and warns of probable mistakes in a valid policy."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from mcpguard.core.agent import Agent
from mcpguard.core.identity import known_client
from mcpguard.core.limiter import EXACT
from mcpguard.core.patterns import glob
from mcpguard.core.policy.model import AXES, COMPETING, SELECTORS, Policy, Rate, Rule

_UNITS_US: Final = {
    "week": 604_800_000_000,
    "day": 86_400_000_000,
    "hour": 3_600_000_000,
    "minute": 60_000_000,
    "second": 1_000_000,
}
_EVERYBODY: Final = "all users together"
_CLAUDE_CODE_NAME = re.compile(r"mcp__(.+?)__(.+)", re.DOTALL)


def sentence(rule: Rule) -> str:
    """Describe what a rule limits and how it counts, in one sentence.

    Args:
        rule: The rule.

    Returns:
        English text. It contains names and patterns unescaped: pass it through `printable` before you show it.
    """
    if rule.deny:
        text = _denying(rule)
    elif not rule.rates:
        text = f"{_who(rule, together=False)} may call {_what(rule)}{_through(rule)} without limit, unless another rule applies"
    elif "tool" in rule.selectors or "tool" in rule.per:
        times = series([_times(rate) for rate in rule.rates])
        text = f"{_who(rule)} may call {_what(rule)} {times}{_through(rule)}{_together(rule)}"
    else:
        first, *more = rule.rates
        calls = [f"{first.n:,} call{'' if first.n == 1 else 's'} {span(first)}", *(f"{rate.n:,} {span(rate)}" for rate in more)]
        text = f"{_who(rule)} may make {series(calls)}{_to_servers(rule)}{_through(rule)}{_together(rule)}"
    return f"{text} (reported only, not denied)." if rule.observe else f"{text}."


def span(rate: Rate) -> str:
    """A limit's window as an adverbial.

    >>> span(Rate(5, 3_600_000_000, "60m")), span(Rate(5, 5_400_000_000, "90m"))
    ('an hour', 'in any 90 minutes')
    """
    text = window(rate.window_us)
    if text[0].isdigit():
        return f"in any {text}"
    return f"{'an' if text == 'hour' else 'a'} {text}"


def window(window_us: int) -> str:
    """The length of a window in words.

    >>> window(3_600_000_000), window(5_400_000_000)
    ('hour', '90 minutes')
    """
    word, us = next((word, us) for word, us in _UNITS_US.items() if window_us % us == 0)
    count = window_us // us
    return f"{count:,} {word}s" if count > 1 else word


def _times(rate: Rate) -> str:
    return f"once {span(rate)}" if rate.n == 1 else f"{rate.n:,} times {span(rate)}"


def series(words: Sequence[str]) -> str:
    """Join words with commas and `and`.

    >>> series(["a"]), series(["a", "b"]), series(["a", "b", "c"])
    ('a', 'a and b', 'a, b and c')
    """
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def _matching(rule: Rule, selector: str) -> str:
    """` matching PATTERN`; empty for a pattern that matches everything."""
    pattern = rule.selectors.get(selector, ("*",))[0]
    return "" if pattern in ("*", "*::*::*") else f" matching {pattern}"


def _spread(rule: Rule, axis: str) -> str:
    """How a rule counts on an axis: `one` value, `each` value by itself, `all` selected values or `any` values together."""
    patterns = rule.selectors.get(axis)
    if patterns and "*" not in patterns[0]:
        return "one"
    if axis in rule.per:
        return "each"
    return "all" if patterns else "any"


def _who(rule: Rule, *, together: bool = True) -> str:
    """The sentence's subject: users, or their agents. With `together`, it says who shares a counter."""
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
        user = _EVERYBODY if together else "everybody"
    if together and _agent_is_subject(rule):
        agent = f"Each agent{_matching(rule, 'agent')}"
        return agent if user == _EVERYBODY else f"{agent} of {user.removesuffix(' together')}"
    return user if users == "one" else user[0].upper() + user[1:]


def _agent_is_subject(rule: Rule) -> bool:
    return bool(rule.rates) and _spread(rule, "agent") == "each"


def _badges(rule: Rule) -> str:
    """The roles and scopes that the caller must have."""
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
    """The servers of a rule that does not distinguish tools."""
    spread = _spread(rule, "server")
    if spread == "one":
        return f" to server {rule.selectors['server'][0]}"
    return {"each": " to each server", "all": " to servers", "any": ""}[spread] + _matching(rule, "server")


def _through(rule: Rule) -> str:
    if _agent_is_subject(rule):
        return ""
    patterns = rule.selectors.get("agent")
    if not patterns:
        return ""
    return f" through {'agent' if '*' not in patterns[0] else 'agents'} {patterns[0]}"


def _together(rule: Rule) -> str:
    """What shares a counter, except the users if they are the subject."""
    users, tools, servers = _spread(rule, "user"), _spread(rule, "tool"), _spread(rule, "server")
    words = []
    if _agent_is_subject(rule) and users in ("all", "any"):
        words.append("these users" if _matching(rule, "user") or _badges(rule) else "all users")
    if tools in ("all", "any"):
        words.append("all tools" if not _matching(rule, "tool") else "these tools")
    if servers == "all" and _matching(rule, "server"):
        words.append("these servers")
    elif servers == "all" or (servers == "any" and tools != "any"):
        words.append("all servers")
    if _spread(rule, "agent") == "all":
        words.append("these agents")
    return f", counting {series(words)} together" if words else ""


def _denying(rule: Rule) -> str:
    what = f"{_what(rule)}{_through(rule)}"
    badges = _badges(rule)
    if _spread(rule, "user") == "one":
        return f"{rule.selectors['user'][0]}{badges} may not call {what}"
    narrowing = f"{_matching(rule, 'user')}{badges}"
    return f"No user{narrowing} may call {what}" if narrowing else f"Nobody may call {what}"


def warnings(policy: Policy) -> list[str]:
    """Find what the author of a policy probably does not mean.

    Args:
        policy: A policy.

    Returns:
        A line for each rule that can never admit, because another rule denies all of its calls; for each tool that has its name
        in Claude Code; and for each client that has its name in `clientInfo`.
    """
    return [*_never_admitting(policy), *_foreign_names(policy), *_own_names(policy)]


def tier_warning(policy: Policy, tier: str | None) -> str | None:
    """Warn of a tier that no rule can match, because it may be misspelt; None if a rule can.

    Args:
        policy: A policy.
        tier: The configured tier; None or empty if there is none.
    """
    if not tier or not policy.rules or policy.reaches_tier(tier):
        return None
    return f"no rule matches agents of the tier {tier}, so nothing limits their calls; is it misspelt?"


def label(policy: Policy, at: int) -> str:
    """A rule in a warning: its line if it is known, its number and its text."""
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
            f"{label(policy, at)} can never admit a call: {label(policy, shutter)} denies all of its calls;"
            f" {_remedy(policy.rules, at, shutter)}"
        )


def _remedy(rules: Sequence[Rule], at: int, shutter: int) -> str:
    """How to make a rule an exception from the rule that denies its calls."""
    rule, deny = rules[at], rules[shutter]
    added = [key for key in COMPETING if key in rule.selectors and key not in deny.selectors]
    any_of = {key: ("*::*::*" if key == "agent" else "*",) for key in added}
    wider = deny._replace(selectors=deny.selectors | any_of, per=rule.per)
    if not wider.is_overridden_by(rule):
        return f"only a rule that is narrower than rule {shutter + 1} can be an exception from it"
    steps = [f'{key} = "*"' for key in added]
    per = deny.per if deny.per_text else deny.per.union(added, ["server"] if "tool" in added else [])
    if per != rule.per:
        steps.append("per = [" + ", ".join(f'"{axis}"' for axis in AXES if axis in rule.per) + "]")
    return f"if it is meant to be an exception, write {series(steps)} in rule {shutter + 1}"


def _names(rule: Rule) -> list[tuple[str, str]]:
    """A rule's selectors without `*`. Each rule that it covers has the same ones."""
    return [(axis, rule.selectors[axis][0]) for axis in AXES if "*" not in rule.selectors.get(axis, ("*",))[0]]


def _closed_by(rules: Sequence[Rule], closing: int, near: Sequence[int]) -> Iterator[int]:
    """The rules that can never admit, because one rule denies every call that they match and no exception overrides it.

    Args:
        rules: All rules.
        closing: The index of the rule that denies.
        near: The indexes of the rules that it may cover.
    """
    deny = rules[closing]
    axis = next((axis for axis in AXES if axis in deny.selectors), "")
    exceptions: dict[str, list[int]] = {}  # by their value on this axis, because rules with different values never meet
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
    """Whether a call may match both rules. If False, none can; if True, it is not certain that one can."""
    for key in AXES:
        mine, theirs = rule.selectors.get(key), other.selectors.get(key)
        if mine and theirs and not _meet(key, mine[0], theirs[0]):
            return False
    return True


def _meet(key: str, one: str, two: str) -> bool:
    """Whether a text may match both patterns."""
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
    """Explain which calls count longer than the window because a limit above 64 has counted them, one sentence for each window.

    Args:
        rule: The rule with the new limits.
        before: The rules that may have counted in the same counters.
    """
    larger = {
        rate.window_us
        for other in before
        if other.per == rule.per and other.shared == rule.shared and _overlap(rule, other)
        for rate in other.rates
        if rate.n > EXACT
    }
    return [
        f"Calls made before this edit may count up to {_short(-(-rate.window_us // EXACT))} longer than {rate.text}:"
        f" a limit above {EXACT} has counted them in groups, without the time of each call."
        for rate in rule.rates
        if rate.n <= EXACT and rate.window_us in larger
    ]


def _short(span_us: int) -> str:
    """A time span in whole seconds, rounded up.

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
            yield f"{label(policy, at)} names a tool by its name in Claude Code; did you mean {names}?"


def _own_names(policy: Policy) -> Iterator[str]:
    for at, rule in enumerate(policy.rules):
        own = rule.agent
        if own and known_client(own.client) != own.client:
            agent = own._replace(client=known_client(own.client))
            yield f'{label(policy, at)} names a client by its name in clientInfo; did you mean agent = "{agent}"?'
