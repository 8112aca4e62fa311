"""Parses a policy file. Errors name file, line, rule and field, and hint at the right form."""

import re
import tomllib
from collections.abc import Collection
from typing import Final

from mcpguard.core.agent import Agent, nearest
from mcpguard.core.digest import blake2b
from mcpguard.core.policy.model import AXES, SELECTORS, Policy, Rate, Rule
from mcpguard.errors import PolicyError

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
MAX_WINDOW_SECONDS: Final = 3650 * 86400
"""The longest window, ten years. It keeps store times exact in the doubles of a Redis script."""

_RULE_KEYS: Final = (*SELECTORS, "per", "limit", "mode", "name")
_HEADER = re.compile(r"^[ \t]*\[\[[ \t]*rule[ \t]*\]\]", re.MULTILINE)
_RATE = re.compile(r"([0-9]+)/([0-9]+)([smhdw])")
_LOOSE_RATE = re.compile(r"\s*([0-9]+)\s*(?:/|per|an?|each|every)\s*([0-9]*)\s*([a-z]+?)s?\s*", re.IGNORECASE)
_UNITS: Final = {"sec": "s", "second": "s", "min": "m", "minute": "m", "hour": "h", "hr": "h", "day": "d", "week": "w"}


def parse(text: str, *, source: str = "policy.toml", observe: bool = False) -> Policy:
    """Parse a policy file's text.

    Args:
        text: The file's content.
        source: How errors name the file.
        observe: Report only, whatever `mode` the file has.

    Raises:
        PolicyError: The text is not TOML, or a rule is invalid. The message names file, line, rule and field.
    """
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # not TOMLDecodeError for a number with too many digits, or for deep nesting
        raise PolicyError(*_not_toml(error, source, text)) from error
    if not data:
        raise PolicyError(
            f"{source}: line 1: the file is empty", "write rules into the file, or remove it for the starter policy"
        )
    for key in data:
        if key not in {"mode", "rule"}:
            raise PolicyError(f"{source}: line {_line_of(key, text)}: unknown key {key!r}", _nearest(key, ("mode", "[[rule]]")))
    whole = _mode(data.get("mode", "enforce"), f"{source}: line {_line_of('mode', text)}")
    tables = data.get("rule", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise PolicyError(
            f"{source}: line {_line_of('rule', text)}: 'rule' is not a list of tables", "begin each rule with a line [[rule]]"
        )
    lines = _header_lines(text)
    first_line = _line_of("rule", text)
    rules: list[Rule] = []
    numbers: dict[tuple[object, ...], int] = {}
    for at, table in enumerate(tables):
        line = lines[at] if len(lines) == len(tables) else 0
        where = f"{source}: line {line or first_line}: rule {at + 1}"
        rule = parse_rule(table, where=where, line=line)
        twin = numbers.setdefault(rule.key, at + 1)
        if twin <= at:
            raise PolicyError(
                f"{where}: the same selectors and per as rule {twin}: {rule.text}",
                'keep one of them; a rule may have several limits: limit = ["20/1m", "100/1h"]',
            )
        rules.append(rule)
    digest = blake2b(text.encode(errors="surrogatepass"), digest_size=16).hexdigest()
    return Policy(tuple(rules), digest, observe=observe or whole == "observe")


def _header_lines(text: str) -> list[int]:
    """The lines of the headers `[[rule]]`."""
    lines = []
    line, counted = 1, 0
    for match in _HEADER.finditer(text):
        line += text.count("\n", counted, match.start())
        counted = match.start()
        lines.append(line)
    return lines


def _line_of(key: str, text: str) -> int:
    """The first line that sets this key or begins this table; 1 if none is found."""
    match = re.search(rf"^[ \t]*(?:\[+[ \t]*)?[\"']?{re.escape(key)}\b", text, re.MULTILINE)
    return text.count("\n", 0, match.start()) + 1 if match else 1


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
        line = content.count(b"\n", 0, error.start) + 1
        raise PolicyError(f"{source}: line {line}: not UTF-8", "a policy is a file in TOML, saved as UTF-8") from error


def _not_toml(error: Exception, source: str, text: str) -> tuple[str, str]:
    if text.startswith("\ufeff"):
        return f"{source}: line 1: begins with a byte order mark", "save the file as UTF-8 without one"
    words = str(error)
    found = re.search(r"\(at line (\d+), column (\d+)\)", words)
    line = int(found[1]) if found else text.count("\n") + 1
    reason = re.sub(r"\s*\((?:at line \d+, column \d+|at end of document)\)", "", words)
    hint = 'put text in quotes: tool = "search", limit = "100/1h"'
    if isinstance(error, RecursionError):
        reason, hint = "nested too deeply", "only per, limit, role and scope can be lists, and only of text"
    elif reason.startswith("Cannot overwrite"):
        hint = "write each key once; begin each rule with a line [[rule]]"
    return f"{source}: line {line}: not TOML: {reason}", hint


def parse_rule(table: dict[str, object], *, where: str, line: int = 0) -> Rule:
    """Parse one rule.

    Args:
        table: The rule's table in the policy file.
        where: How errors name the rule.
        line: The rule's line in the file.

    Raises:
        PolicyError: The rule is invalid. The message begins with `where`.
    """
    for key in table:
        if key not in _RULE_KEYS:
            raise PolicyError(f"{where}: unknown key {key!r}", _nearest(key, _RULE_KEYS))
    selectors: dict[str, tuple[str, ...]] = {key: _selector(key, table[key], where) for key in SELECTORS if key in table}
    if "limit" not in table:
        raise PolicyError(f"{where}: no limit", 'add one: limit = "100/1h", "deny" or "unlimited"')
    rates, word = parse_limits(table["limit"], where=f"{where}: limit")
    given = "per" in table
    per = _per(table["per"], where) if given else tuple(axis for axis in AXES if axis in selectors)
    name = table.get("name", "")
    if not isinstance(name, str):
        raise PolicyError(f"{where}: name: {name!r} is not text", 'name = "search, everybody"')
    return Rule(
        selectors=selectors,
        per=frozenset(per) | ({"server"} if "tool" in per else frozenset()),
        per_text=(",".join(per) or "none") if given else "",
        rates=rates,
        deny=word == "deny",
        observe=_mode(table.get("mode", "enforce"), where) == "observe",
        name=name,
        line=line,
    )


def parse_limits(value: object, *, where: str) -> tuple[tuple[Rate, ...], str]:
    """Parse a rule's `limit`: rates, or the word `deny` or `unlimited`.

    Raises:
        PolicyError: The value is none of these. The message begins with `where`.
    """
    if value in ("deny", "unlimited"):
        return (), str(value)
    values = value if isinstance(value, list) else [value]
    if not values:
        raise PolicyError(f"{where}: an empty list", 'limit = "100/1h", "deny" or "unlimited"')
    rates = tuple(parse_rate(item, where=where) for item in values)
    windows: dict[int, Rate] = {}
    for rate in rates:
        if rate.window_us in windows:
            both = f"{windows[rate.window_us].n}/{windows[rate.window_us].text} and {rate.n}/{rate.text}"
            raise PolicyError(f"{where}: two limits for one window: {both}", "keep one of them")
        windows[rate.window_us] = rate
    return rates, ""


def parse_rate(value: object, *, where: str = "limit") -> Rate:
    """Parse one limit `N/W`.

    >>> parse_rate("100/90m")
    Rate(n=100, window_us=5400000000, text='90m')

    Raises:
        PolicyError: The value does not have that form, or is out of bounds. The message begins with `where`.
    """
    if not isinstance(value, str):
        raise PolicyError(f"{where}: {value!r} is not text", 'a limit is text in quotes: "100/1h"')
    if value in ("deny", "unlimited"):
        raise PolicyError(f"{where}: {value!r} stands alone", f'limit = "{value}", without other limits')
    match = _RATE.fullmatch(value)
    if not match or len(value) > 32:
        raise PolicyError(f"{where}: {value[:60]!r} is not a limit", _nearest_rate(value))
    n, count, unit = int(match[1]), int(match[2]), match[3]
    seconds = count * UNIT_SECONDS[unit]
    if n == 0:
        raise PolicyError(f"{where}: {value!r} admits nothing", 'to close a tool write limit = "deny"')
    if n > MAX_N:
        raise PolicyError(f"{where}: {value!r} is over {MAX_N} calls", 'for no limit write limit = "unlimited"')
    if not 0 < seconds <= MAX_WINDOW_SECONDS:
        raise PolicyError(f"{where}: {value!r} has a window out of bounds", "a window is from 1s to 3650d")
    return Rate(n, seconds * 1_000_000, f"{count}{unit}")


def _nearest_rate(text: str) -> str:
    match = _LOOSE_RATE.fullmatch(text)
    if match and len(text) <= 64:
        word = match[3].lower()
        unit = word if word in UNIT_SECONDS else _UNITS.get(word)
        if unit:
            return f'did you mean "{int(match[1])}/{int(match[2] or 1)}{unit}"?'
    several = re.split(r"[\s,;]+", text.strip())
    if len(several) > 1 and all(_RATE.fullmatch(one) for one in several):
        return f"write each limit by itself: {' '.join(several)}"
    if near := _closest(text.strip().lower(), ("deny", "unlimited")):
        return f'did you mean "{near}"?'
    return 'a limit is a number of calls per window, such as "5/1m" or "100/90m" (s m h d w), or "deny" or "unlimited"'


def _selector(key: str, value: object, where: str) -> tuple[str, ...]:
    several = key in {"role", "scope"}
    values = value if several and isinstance(value, list) else [value]
    if not values:
        raise PolicyError(f"{where}: {key}: an empty list", f"leave {key} out to match any")
    return tuple(_pattern(key, item, where) for item in values)


def _pattern(key: str, value: object, where: str) -> str:
    if not isinstance(value, str):
        raise PolicyError(f"{where}: {key}: {value!r} is not text", f'{key} = "…", with * for any text')
    if not value:
        raise PolicyError(f"{where}: {key}: empty text matches nothing", f'leave {key} out to match any, or write "*"')
    if key == "agent" and value == "*":
        return "*::*::*"
    if key == "agent" and Agent.parse(value) is None:
        raise PolicyError(
            f"{where}: agent: {value!r} does not have three parts",
            f'an agent is client::tier::name; did you mean "{nearest(value)}"?',
        )
    return value


def _per(value: object, where: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        hint = "per = []" if value in ("", "none") else f'per = ["{value}"]'
        raise PolicyError(f"{where}: per: {value!r} is not a list", f"write {hint}")
    for axis in value:
        if axis not in AXES:
            meant = "" if axis in SELECTORS else str(axis)  # role is not a misspelt tool
            raise PolicyError(f"{where}: per: unknown axis {axis!r}", _nearest(meant, AXES))
    return tuple(axis for axis in AXES if axis in value)


def _mode(value: object, where: str) -> str:
    if value not in ("enforce", "observe"):
        raise PolicyError(f"{where}: mode: {value!r} is neither", 'mode = "enforce" or mode = "observe"')
    return str(value)


def _nearest(word: str, known: Collection[str]) -> str:
    near = _closest(word, known)
    return f"did you mean {near!r}?" if near else f"known: {' '.join(known)}"


def _closest(word: str, known: Collection[str]) -> str | None:
    import difflib  # only for error messages

    return next(iter(difflib.get_close_matches(word, known, 1, 0.5)), None)
