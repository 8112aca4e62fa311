"""Edits the text of a policy, and keeps its comments, its order and its line ends."""

import io
import re
import tomllib
from collections.abc import Sequence
from typing import Any, Final

import tomlkit
from tomlkit.exceptions import TOMLKitError

from mcpguard.errors import McpguardError
from mcpguard.policy.model import Cost, Policy, Rule

_BLANK: Final = " \t\r\n"
"""White space in TOML. Python knows more characters of that kind."""

_DEFAULTS: Final = {"name": "", "mode": "enforce"}
"""Values that a rule has without a line for them."""

_EDITED: Final = ("limit", "count", "concurrent", "wait", "name", "mode")
"""The keys of a rule that an edit changes. The other keys identify the rule."""

_REASON: Final = "busiest "
"""The beginning of a comment beside a suggested limit. The next suggestion replaces such a comment."""


def _document(text: str) -> Any:
    """Parse a text for editing. tomlkit rejects some texts that tomllib accepts."""
    try:
        return tomlkit.parse(text)
    except (TOMLKitError, ValueError, RecursionError) as error:
        what = f"this file can only be edited by hand: {error}"
        raise McpguardError(what, "use mcpguard policy edit") from error


def _whole(text: str) -> Any:
    """Parse a whole file for editing.

    Raises:
        McpguardError: tomlkit would not write all of it as it is, such as tables of two kinds in turns.
    """
    document = _document(text)
    if tomlkit.dumps(document) != text:
        raise McpguardError("this file can only be edited by hand", "use mcpguard policy edit")
    return document


def lines_of(text: str) -> list[str]:
    """A text's lines with their ends, by the rules of TOML: Python's other line ends can be part of a comment or a name."""
    return list(io.StringIO(text, newline="\n"))


def ended_alike(old: str, new: str) -> str:
    """Give new lines the line ends of the old text: this module and tomlkit write LF."""
    if "\r\n" not in old:
        return new
    kept = set(lines_of(old))
    return "".join(line if line in kept else re.sub(r"\r?\n$", "\r\n", line) for line in lines_of(new))


def appended(text: str, table: dict[str, Any], reasons: dict[str, str] | None = None, *, name: str = "rule") -> str:
    """A policy's text with a rule or a cost added at its end.

    Args:
        text: The policy's text.
        table: The rule or the cost.
        reasons: A comment for each of its limits; None for no comments.
        name: `rule` or `cost`.
    """
    document = _document(text)
    table = {key: value for key, value in table.items() if value != _DEFAULTS.get(key)}
    if reasons is not None:
        table["limit"] = _commented([(limit, reasons[limit]) for limit in table["limit"]])
    if isinstance(document.get(name), tomlkit.items.Array):  # rule = [{…}]
        document = _whole(text)
        inline = tomlkit.inline_table()
        inline.update(table)
        document[name].append(inline)
        return tomlkit.dumps(document)
    body = [_pair(key, value) for key, value in table.items()]
    return "".join([text.rstrip(_BLANK), f"\n\n[[{name}]]\n", *body])


def _pair(key: str, value: object) -> str:
    return f"{key} = {tomlkit.item(value).as_string()}\n"


def _tables(policy: Policy, name: str) -> Sequence[Rule | Cost]:
    return policy.rules if name == "rule" else policy.costs


def _end(policy: Policy, line: int, lines: list[str]) -> int:
    """The number of the last line before the header that follows the header on a line."""
    headers = [*(rule.line for rule in policy.rules), *(cost.line for cost in policy.costs)]
    return min((header - 1 for header in headers if header > line), default=len(lines))


def _parted(text: str, policy: Policy, name: str, at: int) -> tuple[str, Any, Any, str]:
    """A rule or a cost for editing. Other tables stay as they are, even the spacing of their headers.

    Args:
        text: The policy's text.
        policy: The policy.
        name: `rule` or `cost`.
        at: The place of the rule or the cost.

    Returns:
        The text before it, a document with it, its table in this document, and the text after it.
    """
    line = _tables(policy, name)[at].line
    if not line:  # rule = [{…}]
        document = _whole(text)
        return "", document, document[name][at], ""
    lines = lines_of(text)
    end = _end(policy, line, lines)
    document = _document("".join(lines[line - 1 : end]))
    return "".join(lines[: line - 1]), document, document[name][0], "".join(lines[end:])


def replaced(text: str, policy: Policy, at: int, table: dict[str, Any]) -> str:
    """A policy's text with other values in the rule at a place.

    Args:
        text: The policy's text.
        policy: The policy.
        at: The rule's place.
        table: The values, by key; None to remove a key. Keys that are not in it stay.
    """
    table = {key: table[key] for key in _EDITED if key in table}
    before, document, rule, after = _parted(text, policy, "rule", at)
    added = _edited(rule, table)
    if not policy.rules[at].line:
        rule.update(added)
        return tomlkit.dumps(document)
    new = lines_of(tomlkit.dumps(document))
    last = max(at for at, one in enumerate(new) if not _is_blank_or_comment(one))
    if not new[last].endswith("\n"):
        new[last] += "\n"
    for key, value in added.items():  # tomlkit would put it after the comments of the next table
        new.insert(1 if key in _DEFAULTS else last + 1, _pair(key, value))
        last += 1
    return "".join([before, *new, after])


def _edited(found: Any, table: dict[str, Any]) -> dict[str, Any]:
    """Change the values that a rule has. Returns the values that it does not have yet."""
    added = {}
    for key, value in table.items():
        if key not in found:
            if value is not None and value != _DEFAULTS.get(key):
                added[key] = value
        elif value is None or (key == "name" and not value):
            del found[key]
        elif key == "limit":
            _set_limit(found, value)
        else:
            found[key] = value
    return added


def with_cost(text: str, policy: Policy, at: int, units: int) -> str:
    """A policy's text with other units in the cost at a place."""
    before, document, cost, after = _parted(text, policy, "cost", at)
    cost["cost"] = units
    return before + tomlkit.dumps(document) + after


def with_limits(text: str, policy: Policy, at: int, limits: list[tuple[str, str]]) -> str:
    """A policy's text with other limits in the rule at a place. Comments beside the old limits are kept above the new ones.

    Args:
        text: The text. Before the rule, it is the policy's own.
        policy: The policy.
        at: The rule's place.
        limits: The limits, each with a comment.
    """
    before, document, rule, after = _parted(text, policy, "rule", at)
    rule["limit"] = _commented(limits, rule["limit"].as_string())
    return before + tomlkit.dumps(document) + after


def _commented(limits: list[tuple[str, str]], old: str = "") -> Any:
    """An array with a line for each limit and its comment, below the comments of an old array."""
    array = tomlkit.array()
    for comment in re.findall(r"#[ \t]*(.*\S)", old):  # a limit never contains #
        if not comment.startswith(_REASON):
            array.add_line(comment=comment, indent="  ")
    for limit, comment in limits:
        array.add_line(limit, comment=comment, indent="  ")
    array.add_line(indent="")
    return array


def with_mode(text: str, policy: Policy, mode: str) -> str:
    """Change the policy's mode, or add it below the comment that begins the file."""
    lines = lines_of(text)
    end = _end(policy, 0, lines)
    document = _document("".join(lines[:end]))
    if "mode" in document:
        document["mode"] = mode
        return "".join([tomlkit.dumps(document), *lines[end:]])
    at = 0
    while at < end and lines[at].lstrip(_BLANK).startswith("#"):
        at += 1
    if not 0 < at < end or lines[at].strip(_BLANK):  # without a blank line below it, a comment belongs to what follows
        return f'mode = "{mode}"\n\n{text}'
    return "".join([*lines[: at + 1], f'mode = "{mode}"\n\n', *lines[at + 1 :]])


def _set_limit(found: Any, limit: str | list[str]) -> None:
    """Change a limit.

    In a list with comments, limits that do not change keep their place and comment. If tomlkit cannot put new limits beside the
    comments, these are put above all limits. If a word such as `deny` replaces the list, the comments are put after it.
    """
    array = found["limit"]
    old = array.as_string()
    if "#" not in old:  # a limit never contains #
        found["limit"] = limit
        return
    if limit in ("deny", "unlimited"):
        found["limit"] = limit
        found["limit"].comment("; ".join(re.findall(r"#[ \t]*(.*\S)", old + array.trivia.comment)))
        return
    limits = [limit] if isinstance(limit, str) else limit
    wanted = {text.partition("/")[2]: text for text in limits}
    for place in reversed(range(len(array))):
        text = wanted.pop(str(array[place]).partition("/")[2], None)
        if text is None:
            del array[place]
        else:
            array[place] = text
    array.extend(wanted.values())
    if sorted(_texts(array)) != sorted(limits):
        found["limit"] = _commented([(text, "") for text in limits], old)


def _texts(array: Any) -> list[str]:
    """The texts in an array as it is written; none if it is not TOML. Beside comments tomlkit misplaces texts and commas."""
    try:
        return list(tomllib.loads(f"texts = {array.as_string()}")["texts"])
    except tomllib.TOMLDecodeError:
        return []


def removed(text: str, policy: Policy, at: int, *, name: str = "rule") -> str:
    """A policy's text without the rule or the cost at a place and the comment right above it."""
    line = _tables(policy, name)[at].line
    if not line:
        document = _whole(text)
        del document[name][at]
        return tomlkit.dumps(document)
    lines = text.split("\n")
    begin = line - 1
    end = _end(policy, line, lines)
    while end > begin + 1 and _is_blank_or_comment(lines[end - 1]):  # comments right before the next table belong to it
        end -= 1
    while end < len(lines) - 1 and not lines[end].strip():
        end += 1
    above = begin
    while above and lines[above - 1].lstrip().startswith("#"):
        above -= 1
    if above:  # a comment right above the table is removed with it, unless it begins the file
        begin = above
    if end >= len(lines) - 1:  # nothing follows that the blank lines above would separate
        while begin and not lines[begin - 1].strip():
            begin -= 1
    new = "\n".join([*lines[:begin], *lines[end:]]).removesuffix("\r")  # of a line above a last line without an end
    return new if len(policy.rules) + len(policy.costs) > 1 else _without_rules(new)


def _is_blank_or_comment(line: str) -> bool:
    return not line.strip() or line.lstrip().startswith("#")


def _without_rules(text: str) -> str:
    """Add a `mode` to a text without content: an empty file is not a valid policy."""
    if _document(text):
        return text
    above = text.rstrip(_BLANK)
    return (f"{above}\n\n" if above else "") + 'mode = "enforce"\n'
