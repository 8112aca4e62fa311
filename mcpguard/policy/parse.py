"""Parses a policy file. Errors name file, line, column, rule and field, and hint at the right form."""

import re
import tomllib
from collections.abc import Sequence
from operator import itemgetter
from typing import Final

from mcpguard.errors import PolicyError, Problem
from mcpguard.limiter.plan import ARGUMENTS
from mcpguard.policy.model import AXES, SELECTORS, Cost, Policy, Rate, Rule
from mcpguard.policy.values import (
    Fault,
    nearest_word,
    parse_concurrent,
    parse_count,
    parse_limit,
    parse_mode,
    parse_per,
    parse_selector,
    parse_units,
    parse_wait,
    shown_value,
)
from mcpguard.text.digest import blake2b

STARTER: Final = """\
# Who can call which tools, and how often. `mcpguard policy show` describes each rule in a sentence.
# These are the starter rules. They count each agent of each user. A narrower rule with user and agent overrides them.

[[rule]]
user = "*"
agent = "*::interactive::*"
limit = "100/1m"

[[rule]]
user = "*"
agent = "*::subagent::*"
limit = "60/1m"

[[rule]]
user = "*"
agent = "*::background::*"
limit = "30/1m"

[[rule]]
user = "*"
agent = "*::api::*"
limit = "30/1m"
"""
"""The policy in force if there is no file."""

_KEYS: Final = ("mode", "wait", "rule", "cost")
_RULE_KEYS: Final = (*SELECTORS, "per", "limit", "concurrent", "count", "wait", "mode", "name")
_ELSEWHERE: Final = {
    "cost": 'write a table [[cost]] for what a call costs, and count = "cost" in a rule to count it',
    "arguments": 'write per = ["user", "arguments"] to count equal arguments separately: rules do not select by arguments',
}
"""Hints for keys that a rule does not have, although they are words of a policy."""

_SETTINGS: Final = frozenset({"store", "identity", "audit", "denials", "quiet", "max_frame_bytes"})
"""Words of `config.toml`."""

_COST_SELECTORS: Final = ("tool", "server")
_COST_KEYS: Final = (*_COST_SELECTORS, "cost")
_LIKE_HEADER = re.compile(r"[ \t]*(\[|(rule|cost)[ \t]*(\]|$))")
"""A line that is meant to be a header."""

_HEADER = re.compile(r"[ \t]*(\[|(rule|cost)[ \t]*(\]|$))")
"""A line that is meant to be a header."""

_SELECTION: Final = re.compile(rf"(?:^| )({'|'.join(SELECTORS)}|per)=")
_HEADER = re.compile(r"^[ \t]*\[\[[ \t]*(rule|cost)[ \t]*\]\]", re.MULTILINE)


def parse(text: str, *, source: str = "policy.toml", observe: bool = False, is_starter: bool = False) -> Policy:
    """Parse a policy file's text.

    Args:
        text: The file's content.
        source: How errors name the file.
        observe: Report only, whatever `mode` the file has.
        is_starter: There is no file: the rules have no lines.

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
    faults = [Fault((key,), f"unknown key {key!r}", _hint_at_top(key), on_key=True) for key in data if key not in _KEYS]
    whole = parse_mode(data.get("mode", "enforce"), faults)
    wait_us = parse_wait(data["wait"], faults) if "wait" in data else 0
    lines = _header_lines("" if is_starter else text)
    rules: list[Rule] = []
    numbers: dict[tuple[object, ...], int] = {}
    for at, (table, line) in enumerate(_tables(data, "rule", lines, faults)):
        found: list[Fault] = []
        rule = _rule(table, line, found)
        if rule is not None:
            twins = [twin for part in rule.parts if (twin := numbers.setdefault(part.key, at + 1)) <= at]
            if twins:
                message = f"the same selectors and per as rule {twins[0]}: {rule.text}"
                hint = 'keep one of them; a rule may have several limits: limit = ["20/1m", "100/1h"]'
                found.append(Fault((), message, hint))
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
                found.append(Fault((), f"the same selectors as cost {twin}: {cost.pattern.text}", "keep one of them"))
            costs.append(cost)
        faults += [fault._replace(path=("cost", at, *fault.path)) for fault in found]
    if faults:
        raise _error(source, _located(faults, text))
    digest = blake2b(text.encode(errors="surrogatepass"), digest_size=16).hexdigest()
    observe = observe or whole == "observe"
    return Policy(tuple(rules), digest, observe=observe, costs=tuple(costs), wait_us=wait_us, is_starter=is_starter)


def untouched(policy: Policy) -> set[int]:
    """The indexes of the starter rules that are in a policy as they were, except for their `per`, which has changed once."""
    starter = [(rule.selectors, rule.rates) for rule in parse(STARTER).rules]
    return {at for at, rule in enumerate(policy.rules) if (rule.selectors, rule.rates) in starter}


def _hint_at_top(key: str) -> str:
    if key in _RULE_KEYS:
        return f"write {key} below a line [[rule]]"
    if key in _SETTINGS:
        return f"write {key} into config.toml"
    return nearest_word(key, ("mode", "wait", "[[rule]]", "[[cost]]"))


def _tables(
    data: dict[str, object], name: str, lines: dict[str, list[int]], faults: list[Fault]
) -> list[tuple[dict[str, object], int]]:
    """The tables `[[name]]`, each with the line of its header; 0 if that is unknown."""
    tables = data.get(name, [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        hint = f"begin each {name} with a line [[{name}]]"
        faults.append(Fault((name,), f"{shown_value(name)} is not a list of tables", hint, on_key=True))
        return []
    known = lines[name] if len(lines[name]) == len(tables) else [0] * len(tables)
    return list(zip(tables, known, strict=True))


def _error(source: str, problems: Sequence[Problem]) -> PolicyError:
    first, *more = problems
    message = f"{source}: line {first.line}: {first.message}"
    if more:
        message += f" (and {len(more)} more error{'s' if len(more) > 1 else ''})"
    return PolicyError(message, first.hint, source=source, problems=problems)


def _located(faults: Sequence[Fault], text: str) -> list[Problem]:
    """The problems at the places of faults, in the order of the text."""
    from mcpguard.documents.model import span  # only for error messages
    from mcpguard.documents.toml import located

    root = located(text)
    spans = [span(root, fault.path, of_key=fault.on_key) for fault in faults]
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


def unreadable(source: str, why: str | None) -> PolicyError:
    """The error for a file that the system does not let this account read."""
    return PolicyError(f"{source}: cannot be read: {why}", "name a TOML file that this account may read")


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
    line = text[text.rfind("\n", 0, at) + 1 :].partition("\n")[0]
    hint = 'put text in quotes: tool = "search", limit = "100/1h"'
    if isinstance(error, RecursionError):
        reason, hint = "nested too deeply", "only per, limit, role and scope can be lists, and only of text"
    elif reason.startswith("Cannot overwrite"):
        hint = "write each key once; begin each rule with a line [[rule]]"
        at = text.rfind("\n", 0, at) + 1  # tomllib points behind the value
    elif reason == "Unclosed array" or (reason == "Invalid value" and _HEADER.match(line)):  # it began in a line before
        hint = 'put commas between the items of a list, and ] at its end: limit = ["20/1m", "100/1h"]'
    elif reason.startswith("Cannot declare") or _LIKE_HEADER.match(line):
        name = "cost" if "cost" in line else "rule"
        hint = f"begin each {name} with a line that has only [[{name}]]"
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
    faults: list[Fault] = []
    rule = _rule(table, 0, faults)
    if rule is None:
        raise PolicyError(f"{where}: {faults[0].message}", faults[0].hint)
    return rule


def parse_cost(table: dict[str, object], *, where: str) -> Cost:
    """Parse one `[[cost]]`; see `parse_rule`."""
    faults: list[Fault] = []
    cost = _cost(table, 0, faults)
    if cost is None:
        raise PolicyError(f"{where}: {faults[0].message}", faults[0].hint)
    return cost


def _rule(table: dict[str, object], line: int, faults: list[Fault]) -> Rule | None:
    """Parse one rule. If it is invalid, None, and every error is added to `faults`.

    Args:
        table: The rule's table in the policy file.
        line: The rule's line in the file; 0 if unknown.
        faults: Receives the errors. Their paths begin within the rule.
    """
    faults += [
        Fault((key,), f"unknown key {key!r}", _ELSEWHERE.get(key) or nearest_word(key, _RULE_KEYS), on_key=True)
        for key in table
        if key not in _RULE_KEYS
    ]
    selectors: dict[str, tuple[str, ...]] = {key: parse_selector(key, table[key], faults) for key in SELECTORS if key in table}
    rates: list[Rate] = []
    word = ""
    if "limit" not in table:
        if "concurrent" not in table:
            faults.append(Fault((), "no limit", 'add one: limit = "100/1h", "deny" or "unlimited"; or concurrent = 2'))
    elif table["limit"] in ("deny", "unlimited"):
        word = str(table["limit"])
    else:
        rates = parse_limit(table["limit"], faults)
    concurrent = parse_concurrent(table["concurrent"], faults) if "concurrent" in table else None
    counts = parse_count(table, faults)
    if word == "deny":
        for key in ("concurrent", "count", "wait"):
            if key in table:
                faults.append(Fault((key,), f"{key}: this rule denies every call", f"leave {key} out", on_key=True))
    given = "per" in table
    per = parse_per(table["per"], faults) if given else tuple(axis for axis in AXES if axis in selectors)
    name = table.get("name", "")
    if not isinstance(name, str):
        faults.append(Fault(("name",), f"name: {shown_value(name)} is not text", 'write name = "search, all users"'))
    mode = parse_mode(table.get("mode", "enforce"), faults)
    wait_us = parse_wait(table["wait"], faults) if "wait" in table else None
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


def _cost(table: dict[str, object], line: int, faults: list[Fault]) -> Cost | None:
    """Parse one `[[cost]]`. If it is invalid, None, and every error is added to `faults`."""
    for key in table:
        if key in _COST_KEYS:
            continue
        hint = "use only tool and server: a cost depends on nothing else" if key in SELECTORS else nearest_word(key, _COST_KEYS)
        faults.append(Fault((key,), f"unknown key {key!r}", hint, on_key=True))
    selectors: dict[str, tuple[str, ...]] = {
        key: parse_selector(key, table[key], faults) for key in _COST_SELECTORS if key in table
    }
    if table.get("cost") is None:
        faults.append(Fault((), "no cost", "add one: cost = 20"))
        return None
    units = parse_units(table["cost"], faults)
    return None if faults else Cost(selectors, units, line)
