"""Explains rules: what they mean, in sentences; and what they are to a call, and the quota left."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import partial

from mcpguard.light_typing import Final, Literal, NamedTuple
from mcpguard.limiter import sliding
from mcpguard.limiter.plan import ARGUMENTS, SESSION, Counter, Plan, Reported
from mcpguard.limiter.sliding import State
from mcpguard.policy.model import AXES, SELECTORS, Call, Cost, Policy, Rate, Rule
from mcpguard.text.printing import amount
from mcpguard.text.times import span_in_words, window

_NAMED: Final = 3
"""How many of several rules a sentence names."""


def sentence(rule: Rule, costs: Sequence[Cost] = ()) -> str:
    """Describe what a rule limits and how it counts, in one sentence.

    Args:
        rule: The rule.
        costs: What calls cost by the policy, for a rule that counts cost.

    Returns:
        English text. It contains names and patterns unescaped: pass it through `printable` before you show it.
    """
    first, *more = rule.parts
    clauses = [_clause(first)]
    noun = {"cost": "unit", "errors": "error"}.get(rule.counts, "call")
    clauses += [f"at most {amount(rate.n, noun)} {span(rate)}" for part in more for rate in part.rates]
    if rule.has_limit and rule.concurrent is not None:
        calls = f"at most {amount(rule.concurrent, 'call')}" if rule.concurrent else "any number of calls"
        clauses.append(f"{calls} may be in flight at once")
    if any(_is_counted(part) for part in rule.parts):
        words = (SESSION, "sessions"), (ARGUMENTS, "calls with different arguments")
        clauses += [f"{what} are counted separately" for word, what in words if word in rule.per]
    clauses += _prices(rule, costs)
    if rule.wait_us is not None:
        clauses.append(
            f"a refused call waits up to {span_in_words(rule.wait_us)}" if rule.wait_us else "a refused call never waits"
        )
    if rule.warn is not None:
        clauses.append(f"mcpguard warns at {rule.warn}% of {'a' if len(rule.rates) > 1 else 'the'} limit")
    text = "; ".join(clauses)
    return f"{text} (reported only, not denied)." if rule.observe else f"{text}."


def sentences(policy: Policy) -> list[str]:
    """The sentence of each rule. If narrower rules override a rule, its sentence says so and names them by number."""
    found = []
    for rule, narrower in zip(policy.rules, overriding(policy), strict=True):
        text = sentence(rule, policy.costs)
        more = f", unless a narrower rule says otherwise: {rule_numbers(narrower)}" if narrower else ""
        found.append(f"{text[:-1]}{more}.")
    return found


class Covered:
    """Finds the rules that a rule may cover, among thousands, whether they select by names or by patterns.

    Args:
        rules: All rules.
    """

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._sorted: dict[str, list[tuple[str, int]]] = {}  # by axis the selectors in order, each with the index of its rule
        for at, rule in enumerate(rules):
            for axis, text in _texts(rule):
                self._sorted.setdefault(axis, []).append((text, at))
        for texts in self._sorted.values():
            texts.sort()

    def near(self, rule: Rule) -> list[int]:
        """The indexes of the rules that one of all rules may cover, in order: one of their selectors begins like its own."""
        spans = []
        for axis, pattern in _texts(rule):
            texts, prefix = self._sorted[axis], pattern.partition("*")[0]
            begin = bisect_left(texts, (prefix,))
            end = bisect_right(texts, prefix, begin, key=partial(_beginning, len(prefix)))
            spans.append((end - begin, begin, axis))
        size, begin, axis = min(spans)
        return sorted(at for _, at in self._sorted[axis][begin : begin + size])


def _texts(rule: Rule) -> list[tuple[str, str]]:
    """The selectors for `AXES`, each with its axis; and an empty one, which every rule has."""
    return [("", ""), *((axis, rule.selectors[axis][0]) for axis in AXES if axis in rule.selectors)]


def _beginning(size: int, text: tuple[str, int]) -> str:
    return text[0][:size]


def overriding(policy: Policy) -> list[list[int]]:
    """For each rule, the indexes of the rules that override a part of it for the calls that both match."""
    covered, parts = Covered(policy.rules), [rule.parts for rule in policy.rules]
    return [
        [at for at in covered.near(rule) if any(mine.is_overridden_by(other) for mine in rule.parts for other in parts[at])]
        for rule in policy.rules
    ]


def rule_numbers(places: Sequence[int]) -> str:
    """Some rules by their numbers.

    >>> rule_numbers([4]), rule_numbers(range(9))
    ('rule 5', 'rules 1, 2, 3 and 6 more')
    """
    numbers = [str(at + 1) for at in places]
    return f"rule{'s' if len(places) > 1 else ''} {series(_some(numbers, 'more'))}"


def _some(words: Sequence[str], more: str) -> Sequence[str]:
    """The first `_NAMED` of the words, and the number of the others as a word with `more`. A single other is named, too."""
    return words if len(words) <= _NAMED + 1 else [*words[:_NAMED], f"{len(words) - _NAMED} {more}"]


def cost_sentence(cost: Cost) -> str:
    """Describe a `[[cost]]` in one sentence; see `sentence`."""
    what = _what(cost.pattern)
    return f"A call of {what} takes {amount(cost.units, 'unit')} of each limit that counts cost."


def _prices(rule: Rule, costs: Sequence[Cost]) -> list[str]:
    """What the calls cost that a rule counts, as clauses."""
    if rule.counts != "cost" or not rule.rates:
        return []
    known = [cost for cost in costs if rule.may_meet(cost.pattern)]
    words = [f"a call of {_what(cost.pattern)} costs {cost.units:,}" for cost in known]
    return [series(_some(words, "more costs"))] if words else ["each call costs 1"]


def _clause(rule: Rule) -> str:
    """What one part of a rule limits."""
    who, what = _who(rule), _what(rule)
    if rule.deny:
        return f"{who} may {'not ' if 'user' in rule.exact else ''}call {what}{_through(rule)}"
    if rule.concurrent == 0:
        return f"{who} may have any number of calls of {what} in flight{_through(rule)}, unless another rule applies"
    if rule.concurrent:
        calls = amount(rule.concurrent, "call") + (f" of {what}" if what != "tools" else "")
        does = f"may have at most {calls} in flight at once"
    elif not rule.rates:
        counted = {"cost": " at any cost", "errors": " on errors"}.get(rule.counts, "")
        return f"{who} may call {what}{_through(rule)} without limit{counted}, unless another rule applies"
    elif rule.counts == "errors":
        does = f"may call {what} until calls fail {' or '.join(map(_times, rule.rates))}"
    elif rule.counts == "cost":
        units = [f"{amount(rate.n, 'unit')} {span(rate)}" for rate in rule.rates]
        does = f"may spend {series(units)} on {what}"
    else:
        does = f"may call {what} {series([_times(rate) for rate in rule.rates])}"
    return f"{who} {does}{_through(rule)}{_together(rule)}"


def _is_counted(rule: Rule) -> bool:
    """Whether a part of a rule counts anything."""
    return bool(rule.rates or rule.concurrent)


def span(rate: Rate) -> str:
    """A limit's window as an adverbial.

    >>> span(Rate(5, 3_600_000_000, "60m")), span(Rate(5, 5_400_000_000, "90m"))
    ('an hour', 'in any 90 minutes')
    """
    text = SESSION if rate.is_per_session else window(rate.window_us)
    if text[0].isdigit():
        return f"in any {text}"
    return f"{'an' if text == 'hour' else 'a'} {text}"


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
    """How a rule counts on an axis: `one` value, `each` value by itself, `all` selected values or `any` values together.

    A session belongs to one user, so a rule that counts sessions by themselves counts users by themselves, too.
    """
    if axis in rule.exact:
        return "one"
    if axis in rule.per or (axis == "user" and SESSION in rule.per):
        return "each"
    return "all" if axis in rule.selectors else "any"


def _who(rule: Rule) -> str:
    """The sentence's subject: users. If the rule counts anything, it says whether they share a counter."""
    users = _spread(rule, "user")
    badges = _badges(rule)
    if users == "one":
        return rule.selectors["user"][0] + badges
    narrowing = f"{_matching(rule, 'user')}{badges}"
    if rule.deny:
        return f"No user{narrowing}" if narrowing else "Nobody"
    if users == "each" or (narrowing and not _is_counted(rule)):
        return f"Each user{narrowing}"
    return f"All users{narrowing}{' together' if _is_counted(rule) else ''}"


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
    counted = _is_counted(rule)
    tools, servers = _spread(rule, "tool"), _spread(rule, "server")
    these_tools, these_servers = _matching(rule, "tool"), _matching(rule, "server")
    if tools == "one":
        text = rule.selectors["tool"][0]
    elif tools == "each" and counted:
        text = f"each tool{these_tools}"
    else:
        text = f"tools{these_tools}" if these_tools or counted else "any tool"
    if servers == "one":
        return f"{text} of {rule.selectors['server'][0]}"
    if servers == "each" and counted and (tools != "one" or "server" in rule.selectors):
        return f"{text} of each server{these_servers}"
    return f"{text} of servers{these_servers}" if these_servers else text


def _through(rule: Rule) -> str:
    if _is_counted(rule) and _spread(rule, "agent") == "each":
        return f" through each agent{_matching(rule, 'agent')}"
    patterns = rule.selectors.get("agent")
    if not patterns:
        return ""
    return f" through {'agent' if '*' not in patterns[0] else 'agents'} {patterns[0]}"


def _together(rule: Rule) -> str:
    """What shares a counter, except the users, who are the subject."""
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
    return f", counting {series(words)} together" if words else ""


Status = Literal["applies", "overridden", "no match"]


class RuleMatch(NamedTuple):
    """How a rule matches a call, or a part of it.

    Attributes:
        at: The rule's index in the policy.
        rule: The rule. If only one of its two parts is overridden, or each by another rule: one part.
        status: Whether it applies, is overridden, or does not match.
        reason: Why it does not apply, as a clause; empty if it does.
        winner: The index of the rule that overrides it; None if none does.
        narrower_in: The selectors in which the winner is narrower; empty if it wins because it comes first in the file.
    """

    at: int
    rule: Rule
    status: Status
    reason: str = ""
    winner: int | None = None
    narrower_in: tuple[str, ...] = ()


class Headroom(NamedTuple):
    """The quota left of a limit.

    Attributes:
        reported: The limit, as a denial names it.
        at: Its rule's index in the policy.
        counter: The limit's counter; None for `deny`.
        used: The calls, units or errors in the counter, or the calls in flight; 0 for `deny`.
        remaining: How many more the limit admits.
        retry_after_us: The wait until it admits such a call: 0 if it does now, None if waiting does not help, or if nobody
            knows how long it takes.
        cost: What the call takes of it: 1 unless it counts cost.
    """

    reported: Reported
    at: int
    counter: Counter | None
    used: int
    remaining: int
    retry_after_us: int | None
    cost: int = 1

    @property
    def is_too_costly(self) -> bool:
        """Whether the call costs more than the whole limit."""
        return self.reported.limit is not None and self.cost > self.reported.limit

    @property
    def is_known(self) -> bool:
        """Whether the counter is known. It is not if it depends on arguments that are not given."""
        return self.counter is None or not self.counter.is_split


def rule_matches(policy: Policy, call: Call) -> list[RuleMatch]:
    """How each rule matches a call, in the order of the file. A rule whose parts differ in that has one for each part."""
    parts: list[list[tuple[Rule, int | None]]] = [[] for _ in policy.rules]
    for place, winner in policy.matching(call):
        part, at = policy.parts[place]
        parts[at].append((part, winner))
    found: list[RuleMatch] = []
    for at, rule in enumerate(policy.rules):
        matches = [_part_match(policy, at, part, winner) for part, winner in parts[at]]
        if not matches:
            found.append(RuleMatch(at, rule, "no match", _mismatch(rule, call)))
        elif all(one[2:] == matches[0][2:] for one in matches):
            found.append(matches[0]._replace(rule=rule))
        else:
            found += matches
    return found


def _part_match(policy: Policy, at: int, part: Rule, winner: int | None) -> RuleMatch:
    """How a part of a rule that matches is treated.

    Args:
        policy: The policy.
        at: The rule's index.
        part: The part.
        winner: The index of the part that overrides it; None if none does.
    """
    if winner is None:
        return RuleMatch(at, part, "applies")
    other, number = policy.parts[winner]
    narrower = tuple(key for key in SELECTORS if not other.covers(part, key)) if part.is_overridden_by(other) else ()
    if narrower:
        return RuleMatch(at, part, "overridden", f"rule {number + 1} is narrower in {series(narrower)}", number, narrower)
    differing = [key for key in ("role", "scope") if part.selectors.get(key) != other.selectors.get(key)]
    reason = f"rule {number + 1} comes first in the file, and differs in {series(differing)} only"
    return RuleMatch(at, part, "overridden", reason, number)


def _mismatch(rule: Rule, call: Call) -> str:
    """Why a rule does not match, as a clause that names each selector that does not match the call."""
    if rule.matches(call):
        return "starter rules do not apply to built-in tools"
    words = []
    for key in SELECTORS:
        for pattern in rule.selectors.get(key, ()):
            if Rule({key: (pattern,)}, frozenset()).matches(call):
                continue
            if key not in AXES:
                words.append(f"no {key} matches {pattern}" if "*" in pattern else f"the {key} {pattern} is missing")
            elif not getattr(call, key):
                words.append(f"the {key} is not known")
            else:
                words.append(f"the {key} does not match {pattern}" if "*" in pattern else f"the {key} is not {pattern}")
    return series(words)


def headrooms(plan: Plan, states: Sequence[State], now_us: int) -> list[Headroom]:
    """The quota left of each limit of a plan.

    Args:
        plan: The plan of a call.
        states: The states of the plan's counters, in order.
        now_us: The store's time.
    """
    found = []
    for limit, reported in zip(plan.limits, plan.reported, strict=True):
        if not limit.n:
            found.append(Headroom(reported, limit.rule, None, 0, 0, None))
            continue
        counter, state = plan.counters[limit.counter], states[limit.counter]
        used, wait_us = used_of(state, limit.n, limit.window_us, now_us, limit.cost)
        found.append(Headroom(reported, limit.rule, counter, used, max(0, limit.n - used), wait_us, limit.cost))
    return found


def used_of(state: State, n: int, window_us: int, now_us: int, cost: int = 1) -> tuple[int, int | None]:
    """What a counter holds, and the wait until a limit of `n` admits a call: see `Headroom`."""
    if not window_us:
        return len(state), 0 if len(state) < n else None
    log = sliding.live(state, window_us, now_us)
    return sliding.used(log), sliding.retry_after(log, n, window_us, now_us, cost)
