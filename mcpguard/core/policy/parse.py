"""Parses a policy file. Errors name file, line, column, rule and field, and hint at the right form."""

import re
import tomllib
from collections.abc import Collection, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Final, NamedTuple

from mcpguard.core.agent import Agent, nearest
from mcpguard.core.digest import blake2b
from mcpguard.core.limiter import Counts
from mcpguard.core.policy.model import ARGUMENTS, AXES, PER, SELECTORS, Cost, Policy, Rate, Rule
from mcpguard.errors import PolicyError, Problem

if TYPE_CHECKING:
    from mcpguard.core.policy.places import Path

STARTER: Final = """\
# Who can call which tools, and how often. `mcpguard policy show` describes each rule in a sentence.
# These are the starter rules. Each user has one limit for all agents of a tier together.

[[rule]]
user = "*"
agent = "*::interactive::*"
per = ["user"]
limit = "100/1m"

[[rule]]
user = "*"
agent = "*::subagent::*"
per = ["user"]
limit = "60/1m"

[[rule]]
user = "*"
agent = "*::background::*"
per = ["user"]
limit = "30/1m"

[[rule]]
user = "*"
agent = "*::api::*"
per = ["user"]
limit = "30/1m"
"""
"""The policy in force if there is no file."""

MAX_N: Final = 1_000_000_000
"""The largest limit. A larger one never denies in practice; `unlimited` states that."""

UNIT_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
MAX_CONCURRENT: Final = 10_000
"""The largest cap on calls in flight. A store keeps an entry for each of them."""

MAX_WINDOW_SECONDS: Final = 3650 * 86400
"""The longest window, ten years. It keeps store times exact in the doubles of a Redis script."""

MAX_WAIT_SECONDS: Final = 3600
"""The longest `wait`. Few clients wait even for a minute, unless they get progress notifications."""

_COUNTS: Final[tuple[Counts, ...]] = ("calls", "cost", "errors")
_KEYS: Final = ("mode", "wait", "rule", "cost")
_RULE_KEYS: Final = (*SELECTORS, "per", "limit", "concurrent", "count", "wait", "mode", "name")
_ELSEWHERE: Final = {
    "cost": 'what a call costs is a table of its own: [[cost]]; to count it write count = "cost"',
    "arguments": 'rules do not select by arguments; to count equal arguments apart write per = ["user", "arguments"]',
}
"""Hints for keys that a rule does not have, although they are words of a policy."""

_COST_SELECTORS: Final = ("tool", "server")
_COST_KEYS: Final = (*_COST_SELECTORS, "cost")
_HEADER = re.compile(r"^[ \t]*\[\[[ \t]*(rule|cost)[ \t]*\]\]", re.MULTILINE)
_WAIT = re.compile(r"([0-9]+)([smh])")
_RATE = re.compile(r"([0-9]+)/([0-9]+)([smhdw])")
_LOOSE_RATE = re.compile(r"\s*([0-9]+)\s*(?:/|per|an?|each|every)\s*([0-9]*)\s*(ms|[a-z]+?)s?\s*", re.IGNORECASE)
_MILLISECONDS: Final = ("ms", "msec", "milli", "millisecond")
_UNITS: Final = {"sec": "s", "second": "s", "min": "m", "minute": "m", "hour": "h", "hr": "h", "day": "d", "week": "w"}


class _Fault(NamedTuple):
    """What is wrong at a path in a policy. `on_key` tells whether the key is meant and not its value."""

    path: "Path"
    message: str
    hint: str
    on_key: bool = False


def parse(text: str, *, source: str = "policy.toml", observe: bool = False) -> Policy:
    """Parse a policy file's text.

    Args:
        text: The file's content.
        source: How errors name the file.
        observe: Report only, whatever `mode` the file has.

    Raises:
        PolicyError: The text is not TOML, or has invalid keys or values. It has every problem with its line and column.
    """
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # not TOMLDecodeError for a number with too many digits, or for deep nesting
        raise _error(source, [_not_toml(error, text)]) from error
    if not data:
        hint = "write rules into the file, or remove it for the starter policy"
        raise _error(source, [_problem(text, 0, 0, "the file is empty", hint)])
    faults = [_Fault((key,), f"unknown key {key!r}", _hint_at_top(key), on_key=True) for key in data if key not in _KEYS]
    whole = _mode(data.get("mode", "enforce"), faults)
    wait_us = _wait(data["wait"], faults) if "wait" in data else 0
    lines = _header_lines(text)
    rules: list[Rule] = []
    numbers: dict[tuple[object, ...], int] = {}
    for at, (table, line) in enumerate(_tables(data, "rule", lines, faults)):
        found: list[_Fault] = []
        rule = _rule(table, line, found)
        if rule is not None:
            twins = [twin for part in rule.parts if (twin := numbers.setdefault(part.key, at + 1)) <= at]
            if twins:
                message = f"the same selectors and per as rule {twins[0]}: {rule.text}"
                hint = 'keep one of them; a rule may have several limits: limit = ["20/1m", "100/1h"]'
                found.append(_Fault((), message, hint))
            rules.append(rule)
        faults += [fault._replace(path=("rule", at, *fault.path)) for fault in found]
    costs: list[Cost] = []
    priced: dict[tuple[object, ...], int] = {}
    for at, (table, line) in enumerate(_tables(data, "cost", lines, faults)):
        found = []
        cost = _cost(table, line, found)
        if cost is not None:
            twin = priced.setdefault(cost.pattern.key, at + 1)
            if twin <= at:
                found.append(_Fault((), f"the same selectors as cost {twin}: {cost.pattern.text}", "keep one of them"))
            costs.append(cost)
        faults += [fault._replace(path=("cost", at, *fault.path)) for fault in found]
    if faults:
        raise _error(source, _located(faults, text))
    digest = blake2b(text.encode(errors="surrogatepass"), digest_size=16).hexdigest()
    observe = observe or whole == "observe"
    return Policy(tuple(rules), digest, observe=observe, costs=tuple(costs), wait_us=wait_us)


def _hint_at_top(key: str) -> str:
    if key in _RULE_KEYS:
        return f"write {key} below a line [[rule]]"
    return _nearest(key, ("mode", "wait", "[[rule]]", "[[cost]]"))


def _tables(
    data: dict[str, object], name: str, lines: dict[str, list[int]], faults: list[_Fault]
) -> list[tuple[dict[str, object], int]]:
    """The tables `[[name]]`, each with the line of its header; 0 if that is unknown."""
    tables = data.get(name, [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        hint = f"begin each {name} with a line [[{name}]]"
        faults.append(_Fault((name,), f"{_shown(name)} is not a list of tables", hint, on_key=True))
        return []
    known = lines[name] if len(lines[name]) == len(tables) else [0] * len(tables)
    return list(zip(tables, known, strict=True))


def _error(source: str, problems: Sequence[Problem]) -> PolicyError:
    first, *more = problems
    message = f"{source}: line {first.line}: {first.message}"
    if more:
        message += f" (and {len(more)} more error{'s' if len(more) > 1 else ''})"
    return PolicyError(message, first.hint, source=source, problems=problems)


def _located(faults: Sequence[_Fault], text: str) -> list[Problem]:
    """The problems at the places of faults, in the order of the text."""
    from mcpguard.core.policy.places import places  # only for error messages

    keys, values = places(text)
    spans = [
        (keys if fault.on_key else values).get(fault.path) or keys.get(fault.path) or values[fault.path] for fault in faults
    ]
    found = []
    line, counted = 1, 0
    for (begin, end), (path, message, hint, _) in sorted(zip(spans, faults, strict=True), key=itemgetter(0)):
        line += text.count("\n", counted, begin)
        counted = begin
        number = path[1] + 1 if len(path) > 1 and isinstance(path[1], int) else 0
        message = f"{path[0]} {number}: {message}" if number else message
        rule = number if path[0] == "rule" else 0
        found.append(_problem(text, begin, end, message, hint, line=line, rule=rule))
    return found


def _problem(text: str, begin: int, end: int, message: str, hint: str, *, line: int = 0, rule: int = 0) -> Problem:
    """The problem with a part of a text, or with the part's first line if it has several. `line` is its line if it is known."""
    line_begin = text.rfind("\n", 0, begin) + 1
    line_end = text.find("\n", begin)
    shown = text[line_begin : len(text) if line_end < 0 else line_end].rstrip("\r")
    width = max(1, min(end, line_begin + len(shown)) - begin)
    return Problem(message, hint, line or text.count("\n", 0, begin) + 1, begin - line_begin + 1, width, shown, rule)


def _header_lines(text: str) -> dict[str, list[int]]:
    """The lines of the headers `[[rule]]` and `[[cost]]`."""
    lines: dict[str, list[int]] = {"rule": [], "cost": []}
    line, counted = 1, 0
    for match in _HEADER.finditer(text):
        line += text.count("\n", counted, match.start())
        counted = match.start()
        lines[match[1]].append(line)
    return lines


def text_of(content: bytes, *, source: str) -> str:
    """Decode the content of a policy file.

    Args:
        content: The file's bytes.
        source: How errors name the file.

    Raises:
        PolicyError: The bytes are not UTF-8. The message names file and line.
    """
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        text = content.decode(errors="replace")
        at = len(content[: error.start].decode())
        problem = _problem(text, at, at + 1, "not UTF-8", "a policy is a file in TOML, saved as UTF-8")
        raise _error(source, [problem]) from error


def _not_toml(error: Exception, text: str) -> Problem:
    if text.startswith("\ufeff"):
        return _problem(text, 0, 1, "begins with a byte order mark", "save the file as UTF-8 without one")
    words = str(error)
    found = re.search(r"\(at line (\d+), column (\d+)\)", words)
    at = _offset(text, int(found[1]), int(found[2])) if found else len(text)
    reason = re.sub(r"\s*\((?:at line \d+, column \d+|at end of document)\)", "", words)
    hint = 'put text in quotes: tool = "search", limit = "100/1h"'
    if isinstance(error, RecursionError):
        reason, hint = "nested too deeply", "only per, limit, role and scope can be lists, and only of text"
    elif reason.startswith("Cannot overwrite"):
        hint = "write each key once; begin each rule with a line [[rule]]"
        at = text.rfind("\n", 0, at) + 1  # tomllib points behind the value
    return _problem(text, at, at + 1, f"not TOML: {reason}", hint)


def _offset(text: str, line: int, column: int) -> int:
    begin = 0
    for _ in range(line - 1):
        begin = text.index("\n", begin) + 1
    return begin + column - 1


def parse_rule(table: dict[str, object], *, where: str) -> Rule:
    """Parse one rule.

    Args:
        table: The rule's table in the policy file.
        where: How errors name the rule.

    Raises:
        PolicyError: The rule is invalid. The message is the first error, and begins with `where`.
    """
    faults: list[_Fault] = []
    rule = _rule(table, 0, faults)
    if rule is None:
        raise PolicyError(f"{where}: {faults[0].message}", faults[0].hint)
    return rule


def parse_cost(table: dict[str, object], *, where: str) -> Cost:
    """Parse one `[[cost]]`; see `parse_rule`."""
    faults: list[_Fault] = []
    cost = _cost(table, 0, faults)
    if cost is None:
        raise PolicyError(f"{where}: {faults[0].message}", faults[0].hint)
    return cost


def _rule(table: dict[str, object], line: int, faults: list[_Fault]) -> Rule | None:
    """Parse one rule. If it is invalid, None, and every error is added to `faults`.

    Args:
        table: The rule's table in the policy file.
        line: The rule's line in the file; 0 if unknown.
        faults: Receives the errors. Their paths begin within the rule.
    """
    faults += [
        _Fault((key,), f"unknown key {key!r}", _ELSEWHERE.get(key) or _nearest(key, _RULE_KEYS), on_key=True)
        for key in table
        if key not in _RULE_KEYS
    ]
    selectors: dict[str, tuple[str, ...]] = {key: _selector(key, table[key], faults) for key in SELECTORS if key in table}
    rates: list[Rate] = []
    word = ""
    if "limit" not in table:
        if "concurrent" not in table:
            faults.append(_Fault((), "no limit", 'add one: limit = "100/1h", "deny" or "unlimited"; or concurrent = 2'))
    elif table["limit"] in ("deny", "unlimited"):
        word = str(table["limit"])
    else:
        rates = _rates(table["limit"], faults)
    concurrent = _concurrent(table["concurrent"], faults) if "concurrent" in table else None
    counts = _counts(table, faults)
    if word == "deny":
        for key in ("concurrent", "count", "wait"):
            if key in table:
                faults.append(_Fault((key,), f"{key}: this rule denies every call", f"leave {key} out", on_key=True))
    given = "per" in table
    per = _per(table["per"], faults) if given else tuple(axis for axis in AXES if axis in selectors)
    name = table.get("name", "")
    if not isinstance(name, str):
        faults.append(_Fault(("name",), f"name: {_shown(name)} is not text", 'name = "search, everybody"'))
    mode = _mode(table.get("mode", "enforce"), faults)
    wait_us = _wait(table["wait"], faults) if "wait" in table else None
    if faults:
        return None
    implied = {"tool", "server"} if ARGUMENTS in per else {"server"} if "tool" in per else set()
    return Rule(
        selectors=selectors,
        per=frozenset(per) | implied,
        per_text=(",".join(per) or "none") if given else "",
        rates=tuple(rates),
        deny=word == "deny",
        observe=mode == "observe",
        name=str(name),
        line=line,
        counts=counts,
        concurrent=concurrent,
        has_limit="limit" in table,
        wait_us=wait_us,
    )


def _concurrent(value: object, faults: list[_Fault]) -> int:
    """Parse a `concurrent`; 0 for `unlimited`."""
    if value == "unlimited":
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= MAX_CONCURRENT:
        hint = f'a whole number from 1 to {MAX_CONCURRENT}, or "unlimited"'
        if value == 0:
            hint = 'to close a tool write limit = "deny"'
        elif isinstance(value, str) and value.strip().isdecimal():
            hint = f"without quotes: concurrent = {value.strip()[:20]}"
        faults.append(_Fault(("concurrent",), f"concurrent: {_shown(value)} is not a number of calls in flight", hint))
        return 0
    return value


def _counts(table: dict[str, object], faults: list[_Fault]) -> Counts:
    """Parse what the limits of a rule count."""
    value = table.get("count", "calls")
    if value not in _COUNTS:
        hint = _nearest(value if isinstance(value, str) else "", _COUNTS)
        if value == "concurrent":
            hint = "to cap calls in flight write concurrent = 2"
        faults.append(_Fault(("count",), f"count: {_shown(value)} cannot be counted", hint))
        return "calls"
    if value != "calls" and "limit" not in table:
        faults.append(_Fault(("count",), f"count: no limit that counts {value}", 'add one: limit = "100/1h"'))
    return next(one for one in _COUNTS if one == value)


def _wait(value: object, faults: list[_Fault]) -> int:
    """Parse a `wait`; in microseconds."""
    match = _WAIT.fullmatch(value) if isinstance(value, str) and len(value) <= 32 else None
    seconds = int(match[1]) * UNIT_SECONDS[match[2]] if match else 0
    if match is None or seconds > MAX_WAIT_SECONDS:
        hint = f'a wait is text, from "0s" to "{MAX_WAIT_SECONDS}s" (s m h): wait = "5s"'
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_WAIT_SECONDS:
            hint = f'did you mean "{value}s"?'
        what = "is not a time to wait" if match is None else "is too long"
        faults.append(_Fault(("wait",), f"wait: {_shown(value)} {what}", hint))
    return seconds * 1_000_000


def _cost(table: dict[str, object], line: int, faults: list[_Fault]) -> Cost | None:
    """Parse one `[[cost]]`. If it is invalid, None, and every error is added to `faults`."""
    for key in table:
        if key in _COST_KEYS:
            continue
        hint = "costs depend on tool and server only" if key in SELECTORS else _nearest(key, _COST_KEYS)
        faults.append(_Fault((key,), f"unknown key {key!r}", hint, on_key=True))
    selectors: dict[str, tuple[str, ...]] = {key: _selector(key, table[key], faults) for key in _COST_SELECTORS if key in table}
    units = table.get("cost")
    if units is None:
        faults.append(_Fault((), "no cost", "add one: cost = 20"))
    elif isinstance(units, bool) or not isinstance(units, int) or not 0 < units <= MAX_N:
        hint = f"a whole number from 1 to {MAX_N}"
        if units == 0:
            hint = 'for calls that cost nothing write a narrower rule with limit = "unlimited" and count = "cost"'
        elif isinstance(units, str) and units.strip().isdecimal():
            hint = f"without quotes: cost = {units.strip()[:20]}"
        faults.append(_Fault(("cost",), f"cost: {_shown(units)} is not a number of units", hint))
    return None if faults or not isinstance(units, int) else Cost(selectors, units, line)


def _rates(value: object, faults: list[_Fault]) -> list[Rate]:
    """Parse the rates of a `limit`."""
    values = value if isinstance(value, list) else [value]
    if not values:
        faults.append(_Fault(("limit",), "limit: an empty list", 'limit = "100/1h", "deny" or "unlimited"'))
    rates: list[Rate] = []
    for at, item in enumerate(values):
        path: Path = ("limit", at) if isinstance(value, list) else ("limit",)
        rate = _rate(item)
        if not isinstance(rate, Rate):
            faults.append(_Fault(path, f"limit: {rate[0]}", rate[1]))
            continue
        twin = next((other for other in rates if other.window_us == rate.window_us), None)
        if twin is not None:
            both = f"{twin.n}/{twin.text} and {rate.n}/{rate.text}"
            faults.append(_Fault(path, f"limit: two limits for one window: {both}", "keep one of them"))
        rates.append(rate)
    return rates


def _rate(value: object) -> Rate | tuple[str, str]:
    """A limit `N/W`, or what is wrong with it and a hint.

    >>> _rate("100/90m")
    Rate(n=100, window_us=5400000000, text='90m')
    """
    if not isinstance(value, str):
        return f"{_shown(value)} is not text", 'a limit is text in quotes: "100/1h"'
    if value in ("deny", "unlimited"):
        return f"{_shown(value)} stands alone", f'limit = "{value}", without other limits'
    match = _RATE.fullmatch(value)
    if not match or len(value) > 32:
        return f"{value[:60]!r} is not a limit", _nearest_rate(value)
    n, count, unit = int(match[1]), int(match[2]), match[3]
    seconds = count * UNIT_SECONDS[unit]
    if n == 0:
        return f"{_shown(value)} admits nothing", 'to close a tool write limit = "deny"'
    if n > MAX_N:
        return f"{_shown(value)} is over {MAX_N} calls", 'for no limit write limit = "unlimited"'
    if not 0 < seconds <= MAX_WINDOW_SECONDS:
        return f"{_shown(value)} has a window out of bounds", "a window is from 1s to 3650d"
    return Rate(n, seconds * 1_000_000, f"{count}{unit}")


def _nearest_rate(text: str) -> str:
    match = _LOOSE_RATE.fullmatch(text)
    if match and len(text) <= 64:
        word = match[3].lower()
        if word in _MILLISECONDS:
            n, window_ms = int(match[1]), int(match[2] or 1)
            per_second = n * 1000 // window_ms if 0 < window_ms < 1000 else 0
            meant = f'did you mean "{per_second}/1s"? ' if per_second else ""
            return f"{meant}the shortest window is 1s (s m h d w; m is minutes)"
        unit = word if word in UNIT_SECONDS else _UNITS.get(word)
        if unit:
            return f'did you mean "{int(match[1])}/{int(match[2] or 1)}{unit}"?'
    several = re.split(r"[\s,;]+", text.strip())
    if len(several) > 1 and all(_RATE.fullmatch(one) for one in several):
        return f"write each limit by itself: {' '.join(several)}"
    if near := _closest(text.strip().lower(), ("deny", "unlimited")):
        return f'did you mean "{near}"?'
    return 'a limit is a number of calls per window, such as "5/1m" or "100/90m" (s m h d w), or "deny" or "unlimited"'


def _selector(key: str, value: object, faults: list[_Fault]) -> tuple[str, ...]:
    is_list = key in {"role", "scope"} and isinstance(value, list)
    values = value if is_list and isinstance(value, list) else [value]
    if not values:
        faults.append(_Fault((key,), f"{key}: an empty list", f"leave {key} out to match any"))
    return tuple([_pattern(key, item, (key, at) if is_list else (key,), faults) for at, item in enumerate(values)])


def _pattern(key: str, value: object, path: "Path", faults: list[_Fault]) -> str:
    if not isinstance(value, str):
        faults.append(_Fault(path, f"{key}: {_shown(value)} is not text", f'{key} = "…", with * for any text'))
        return ""
    if not value:
        faults.append(_Fault(path, f"{key}: empty text matches nothing", f'leave {key} out to match any, or write "*"'))
    elif key == "agent" and value == "*":
        return "*::*::*"
    elif key == "agent" and Agent.parse(value) is None:
        hint = f'an agent is client::tier::name; did you mean "{nearest(value)}"?'
        faults.append(_Fault(path, f"agent: {_shown(value)} does not have three parts", hint))
    return value


def _per(value: object, faults: list[_Fault]) -> tuple[str, ...]:
    if not isinstance(value, list):
        hint = "per = []" if value in ("", "none") else f'per = ["{value if isinstance(value, str) else "user"}"]'
        faults.append(_Fault(("per",), f"per: {_shown(value)} is not a list", f"write {hint}"))
        return ()
    for at, axis in enumerate(value):
        if axis not in PER:
            meant = axis if isinstance(axis, str) and axis not in SELECTORS else ""  # role is not a misspelt tool
            faults.append(_Fault(("per", at), f"per: unknown axis {_shown(axis)}", _nearest(meant, PER)))
    return tuple(axis for axis in PER if axis in value)


def _mode(value: object, faults: list[_Fault]) -> str:
    if value not in ("enforce", "observe"):
        faults.append(_Fault(("mode",), f"mode: {_shown(value)} is neither", 'mode = "enforce" or mode = "observe"'))
    return "observe" if value == "observe" else "enforce"


def _shown(value: object) -> str:
    """A value in a message: as in Python, but not long."""
    try:
        return repr(value)[:60]
    except ValueError:  # a hexadecimal number with more digits than Python converts to decimal ones
        return "this number"


def _nearest(word: str, known: Collection[str]) -> str:
    near = _closest(word, known)
    return f"did you mean {near!r}?" if near else f"known: {' '.join(known)}"


def _closest(word: str, known: Collection[str]) -> str | None:
    import difflib  # only for error messages

    return next(iter(difflib.get_close_matches(word, known, 1, 0.5)), None)
