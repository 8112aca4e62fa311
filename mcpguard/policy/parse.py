"""Parses a policy file. Errors name file, line, column, rule and field, and hint at the right form."""

import re
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter

from mcpguard.errors import PolicyError, Problem
from mcpguard.light_typing import Any, Final, NamedTuple, TypeVar
from mcpguard.limiter.plan import ARGUMENTS
from mcpguard.policy.model import AXES, SELECTORS, STARTER_RATES, Cost, Policy, Rule
from mcpguard.policy.values import (
    MAX_CONCURRENT,
    MAX_N,
    MAX_WAIT_SECONDS,
    Axes,
    Fault,
    Limits,
    Number,
    Patterns,
    Share,
    Text,
    TimeSpan,
    ValueType,
    Words,
    nearest_word,
    shown_value,
)
from mcpguard.text.digest import blake2b

SCHEMA_FILE: Final = "policy.schema.json"
"""The file beside a policy that holds its schema."""

SCHEMA_LINE: Final = f"#:schema ./{SCHEMA_FILE}\n"
"""The first line of each policy that mcpguard makes. Editors take the schema from it."""

STARTER: Final = f"""{SCHEMA_LINE}\
# Who can call which tools, and how often. `mcpguard policy show` describes each rule in a sentence.
# These are the starter rules. They count each agent of each user. A narrower rule with user and agent overrides them.
""" + "".join(
    f'''
[[rule]]
user = "*"
agent = "*::{tier}::*"
limit = "{limit}"
'''
    for tier, limit in STARTER_RATES.items()
)
"""The policy in force if there is no file."""

_MODE: Final = Words(("enforce", "observe"))
_WAIT: Final = TimeSpan(MAX_WAIT_SECONDS)
_ELSEWHERE: Final = {
    "cost": 'write a table [[cost]] for what a call costs, and count = "cost" in a rule to count it',
    "arguments": 'write per = ["user", "arguments"] to count equal arguments separately: rules do not select by arguments',
}
_SETTINGS: Final = ("store", "identity", "audit", "notify", "denials", "quiet", "max_frame_bytes")
"""Words of `config.toml`."""


class TableKeys(NamedTuple):
    """The keys that a table may have.

    Attributes:
        values: What each may have as its value.
        hints: Hints for keys that belong elsewhere.
        others: How other keys are written that it may have.
    """

    values: Mapping[str, ValueType]
    hints: Mapping[str, str]
    others: tuple[str, ...] = ()

    def parse(self, table: Mapping[str, object], faults: list[Fault]) -> dict[str, Any]:
        """The values of a table. Other keys than these are faults."""
        found = {}
        for key, value in table.items():
            if key in self.values:
                found[key] = self.values[key].parse(key, value, faults)
            else:
                hint = self.hints.get(key) or nearest_word(key, (*self.values, *self.others))
                faults.append(Fault((key,), f"unknown key {shown_value(key)}", hint, on_key=True))
        return found


RULE: Final = TableKeys(
    {
        **{key: Patterns(may_be_list=key in ("role", "scope")) for key in SELECTORS},
        "per": Axes(),
        "limit": Limits(),
        "concurrent": Number(MAX_CONCURRENT, "calls in flight", 'write limit = "deny" to close a tool', unlimited=True),
        "count": Words(("calls", "cost", "errors"), {"concurrent": "write concurrent = 2 to cap calls in flight"}),
        "wait": _WAIT,
        "warn": Share(),
        "mode": _MODE,
        "name": Text(),
    },
    _ELSEWHERE,
)
COST: Final = TableKeys(
    {
        "tool": Patterns(),
        "server": Patterns(),
        "cost": Number(
            MAX_N, "units", 'write a narrower rule for calls that cost nothing, with limit = "unlimited" and count = "cost"'
        ),
    },
    dict.fromkeys(SELECTORS, "use only tool and server: a cost depends on nothing else"),
)
NOT_WITH_DENY: Final = ("concurrent", "count", "wait", "warn")
"""The keys that a rule that denies every call cannot have."""

TOP: Final = TableKeys(
    {"mode": _MODE, "wait": _WAIT},
    {key: f"write {key} below a line [[rule]]" for key in RULE.values}
    | {key: f"write {key} into config.toml" for key in _SETTINGS},
    ("[[rule]]", "[[cost]]"),
)
_TABLES: Final = ("rule", "cost")
_HEADER: Final = re.compile(r"[ \t]*\[\[[ \t]*(rule|cost)[ \t]*\]\]")
_LIKE_HEADER: Final = r"[ \t]*(\[|(rule|cost)[ \t]*(\]|$))"  # compiled only for an error
"""A line that is meant to be a header."""


def tables_of(text: str) -> dict[str, Any]:
    """The tables of a text in TOML.

    Raises:
        ValueError, RecursionError: It is not TOML. It is no `TOMLDecodeError` if a number has too many digits.
    """
    import tomllib  # takes 4 ms to load, and a hook may do without it

    return tomllib.loads(text)


def parse(
    text: str,
    *,
    source: str = "policy.toml",
    observe: bool = False,
    is_starter: bool = False,
    tables_of: Callable[[str], dict[str, Any]] = tables_of,
) -> Policy:
    """Parse a policy file's text.

    Args:
        text: The file's content.
        source: How errors name the file.
        observe: Report only, whatever `mode` the file has.
        is_starter: There is no file: the rules have no lines.
        tables_of: Returns the tables of the text.

    Raises:
        PolicyError: The text is not TOML, or has invalid keys or values. It has every problem with its line and column.
    """
    try:
        data = tables_of(text)
    except (ValueError, RecursionError) as error:
        raise _error(source, text, [_not_toml(error, text)]) from error
    if not data:
        hint = "write rules into the file, or remove it for the starter policy"
        raise _error(source, text, [_Mark(0, 0, "the file is empty", hint)])
    faults: list[Fault] = []
    top = TOP.parse({key: value for key, value in data.items() if key not in _TABLES}, faults)
    lines: dict[str, list[int]] = {kind: [] for kind in _TABLES}
    for number, line in enumerate(() if is_starter else text.split("\n"), 1):
        if header := _HEADER.match(line):
            lines[header[1]].append(number)
    rules = _parsed(data, "rule", _rule, lines, faults)
    costs = _parsed(data, "cost", _cost, lines, faults)
    if faults:
        raise _error(source, text, _located(faults, text))
    digest = blake2b(text.encode(errors="surrogatepass"), digest_size=16).hexdigest()
    observe = observe or top.get("mode") == "observe"
    return Policy(tuple(rules), digest, observe=observe, costs=tuple(costs), wait_us=top.get("wait", 0), is_starter=is_starter)


_T = TypeVar("_T", bound=Rule | Cost)
_Parse = Callable[[dict[str, object], int, list[Fault]], _T | None]


def _parsed(
    data: dict[str, object], kind: str, parse_one: "_Parse[_T]", lines: dict[str, list[int]], faults: list[Fault]
) -> list[_T]:
    """Parse the tables `[[kind]]`.

    Args:
        data: The policy.
        kind: `rule` or `cost`.
        parse_one: Parses one table.
        lines: The lines of the headers, by kind. Unless there is one for each table, the lines of the tables are unknown.
        faults: Receives the errors.
    """
    tables = data.get(kind, [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        faults.append(
            Fault((kind,), f"{kind!r} is not a list of tables", f"begin each {kind} with a line [[{kind}]]", on_key=True)
        )
        return []
    known = lines[kind] if len(lines[kind]) == len(tables) else [0] * len(tables)
    found: list[_T] = []
    numbers: dict[object, int] = {}
    for at, (table, line) in enumerate(zip(tables, known, strict=True)):
        own: list[Fault] = []
        parsed = parse_one(table, line, own)
        if parsed is not None:
            rule = parsed if isinstance(parsed, Rule) else parsed.pattern
            twin = min(numbers.setdefault(part.key, at + 1) for part in rule.parts)
            if twin <= at:
                same, hint = "selectors", "keep one of them"
                if kind == "rule":
                    same, hint = "selectors and per", f'{hint}; a rule may have several limits: limit = ["20/1m", "100/1h"]'
                own.append(Fault((), f"the same {same} as {kind} {twin}: {rule.text}", hint))
            found.append(parsed)
        faults += [one._replace(path=(kind, at, *one.path)) for one in own]
    return found


class _Mark(NamedTuple):
    """What is wrong between two offsets of a text, perhaps in the rule of this number."""

    begin: int
    end: int
    message: str
    hint: str
    rule: int = 0


def _located(faults: Sequence[Fault], text: str) -> list[_Mark]:
    """Faults at the places of their values, in the order of the text."""
    from mcpguard.documents.model import span  # only for error messages
    from mcpguard.documents.toml import located

    root = located(text)
    found = []
    for path, message, hint, on_key in faults:
        number = path[1] + 1 if len(path) > 1 and isinstance(path[1], int) else 0
        message = f"{path[0]} {number}: {message}" if number else message
        found.append(_Mark(*span(root, path, of_key=on_key), message, hint, number if path[0] == "rule" else 0))
    return sorted(found, key=itemgetter(0, 1))


def _error(source: str, text: str, marks: Sequence[_Mark]) -> PolicyError:
    """The error with a problem for each mark. Of a part that has several lines, the first is shown."""
    from bisect import bisect_left  # only for error messages

    ends = [match.start() for match in re.finditer("\n", text)] + [len(text)]
    problems = []
    for begin, end, message, hint, rule in marks:
        line = bisect_left(ends, begin)
        line_begin = ends[line - 1] + 1 if line else 0
        shown = text[line_begin : ends[line]].rstrip("\r")
        width = max(1, min(end, line_begin + len(shown)) - begin)
        problems.append(Problem(message, hint, line + 1, begin - line_begin + 1, width, shown, rule))
    first, *more = problems
    message = f"{source}: line {first.line}: {first.message}"
    if more:
        message += f" (and {len(more)} more error{'s' if len(more) > 1 else ''})"
    return PolicyError(message, first.hint, source=source, problems=problems)


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
        mark = _Mark(at, at + 1, "not UTF-8", "a policy is a file in TOML, saved as UTF-8")
        raise _error(source, text, [mark]) from error


def _not_toml(error: Exception, text: str) -> _Mark:
    if text.startswith("\ufeff"):
        return _Mark(0, 1, "begins with a byte order mark", "save the file as UTF-8 without one")
    from mcpguard.documents.toml import reason_and_place  # only for error messages

    reason, place = reason_and_place(text, str(error))
    at = len(text) if place is None else place
    line = text[text.rfind("\n", 0, at) + 1 :].partition("\n")[0]
    hint = 'put text in quotes: tool = "search", limit = "100/1h"'
    if isinstance(error, RecursionError):
        reason, hint = "nested too deeply", "only per, limit, role and scope can be lists, and only of text"
    elif reason.startswith("Cannot overwrite"):
        hint = "write each key once; begin each rule with a line [[rule]]"
        at = text.rfind("\n", 0, at) + 1  # tomllib points behind the value
    elif reason == "Unclosed array" or (reason == "Invalid value" and _HEADER.match(line)):  # it began in a line before
        hint = 'put commas between the items of a list, and ] at its end: limit = ["20/1m", "100/1h"]'
    elif reason.startswith("Cannot declare") or re.match(_LIKE_HEADER, line):
        name = "cost" if "cost" in line else "rule"
        hint = f"begin each {name} with a line that has only [[{name}]]"
    return _Mark(at, at + 1, f"not TOML: {reason}", hint)


def parse_rule(table: dict[str, object], *, where: str) -> Rule:
    """Parse one rule.

    Args:
        table: The rule's table in the policy file.
        where: How errors name the rule.

    Raises:
        PolicyError: The rule is invalid. The message is the first error, and begins with `where`.
    """
    return _alone(table, where, _rule)


def parse_cost(table: dict[str, object], *, where: str) -> Cost:
    """Parse one `[[cost]]`; see `parse_rule`."""
    return _alone(table, where, _cost)


def _alone(table: dict[str, object], where: str, parse_one: "_Parse[_T]") -> _T:
    faults: list[Fault] = []
    found = parse_one(table, 0, faults)
    if found is None:
        raise PolicyError(f"{where}: {faults[0].message}", faults[0].hint)
    return found


def _rule(table: dict[str, object], line: int, faults: list[Fault]) -> Rule | None:
    """Parse one rule. If it is invalid, None, and every error is added to `faults`.

    Args:
        table: The rule's table in the policy file.
        line: The rule's line in the file; 0 if unknown.
        faults: Receives the errors. Their paths begin within the rule.
    """
    found = RULE.parse(table, faults)
    if not found.keys() & {"limit", "concurrent"}:
        faults.append(Fault((), "no limit", 'add one: limit = "100/1h", "deny" or "unlimited"; or concurrent = 2'))
    deny = table.get("limit") == "deny"
    faults += [
        Fault((key,), f"{key}: this rule denies every call", f"leave {key} out", on_key=True)
        for key in NOT_WITH_DENY
        if deny and key in table
    ]
    counts = found.get("count", "calls")
    if counts in ("cost", "errors") and "limit" not in found:
        faults.append(Fault(("count",), f"count: no limit that counts {counts}", 'add one: limit = "100/1h"'))
    if "warn" in found and table.get("limit") in (None, "unlimited"):
        faults.append(Fault(("warn",), "warn: no limit with a window", 'add one: limit = "100/1h"'))
    if faults:
        return None
    selectors: dict[str, tuple[str, ...]] = {key: found[key] for key in SELECTORS if key in found}
    per = found.get("per", tuple(axis for axis in AXES if axis in selectors))
    implied = {"tool", "server"} if ARGUMENTS in per else {"server"} if "tool" in per else set()
    return Rule(
        selectors=selectors,
        per=frozenset(per) | implied,
        per_text=(",".join(per) or "none") if "per" in found else "",
        rates=found.get("limit", ()),
        deny=deny,
        observe=found.get("mode") == "observe",
        name=found.get("name", ""),
        line=line,
        counts=counts,
        concurrent=found.get("concurrent"),
        has_limit="limit" in found,
        wait_us=found.get("wait"),
        warn=found.get("warn"),
    )


def _cost(table: dict[str, object], line: int, faults: list[Fault]) -> Cost | None:
    """Parse one `[[cost]]`. If it is invalid, None, and every error is added to `faults`."""
    found = COST.parse(table, faults)
    if "cost" not in found:
        faults.append(Fault((), "no cost", "add one: cost = 20"))
    if faults:
        return None
    selectors: dict[str, tuple[str, ...]] = {key: found[key] for key in ("tool", "server") if key in found}
    return Cost(Rule(selectors, frozenset(), line=line), found["cost"])
