"""Edits the text of a policy, and keeps its comments, its order and its line ends."""

import io
import re
from typing import Any, Final

import tomlkit
from tomlkit.exceptions import TOMLKitError

from mcpguard.core.policy.model import Policy
from mcpguard.errors import McpguardError

_BLANK: Final = " \t\r\n"
"""White space in TOML. Python knows more characters of that kind."""

_UNSAID: Final = {"name": "", "mode": "enforce"}
"""Values of a rule that need no line."""

_REASON: Final = "busiest "
"""The beginning of a comment beside a suggested limit. The next suggestion replaces such a comment."""


def _document(text: str) -> Any:
    """Parse a text for editing. tomlkit rejects some texts that tomllib accepts."""
    try:
        return tomlkit.parse(text)
    except (TOMLKitError, ValueError, RecursionError) as error:
        what = f"this file can only be edited by hand: {error}"
        raise McpguardError(what, "use mcpguard policy edit") from error


def _lines(text: str) -> list[str]:
    """A text's lines with their ends, by the rules of TOML: Python's other line ends can be part of a comment or a name."""
    return list(io.StringIO(text, newline="\n"))


def ended_alike(old: str, new: str) -> str:
    """Give new lines the line ends of the old text: this module and tomlkit write LF."""
    if "\r\n" not in old:
        return new
    kept = set(_lines(old))
    return "".join(line if line in kept else re.sub(r"\r?\n$", "\r\n", line) for line in _lines(new))


def appended(text: str, table: dict[str, Any], reasons: dict[str, str] | None = None) -> str:
    """A policy's text with a rule added at its end.

    Args:
        text: The policy's text.
        table: The rule.
        reasons: A comment for each of its limits; None for no comments.
    """
    document = _document(text)
    table = {key: value for key, value in table.items() if value != _UNSAID.get(key)}
    if reasons is not None:
        table["limit"] = _commented([(limit, reasons[limit]) for limit in table["limit"]])
    if isinstance(document.get("rule"), tomlkit.items.Array):  # rule = [{…}]
        inline = tomlkit.inline_table()
        inline.update(table)
        document["rule"].append(inline)
        return tomlkit.dumps(document)
    body = [f"{key} = {tomlkit.item(value).as_string()}\n" for key, value in table.items()]
    return "".join([text.rstrip(_BLANK), "\n\n[[rule]]\n", *body])


def replaced(text: str, policy: Policy, at: int, table: dict[str, Any]) -> str:
    """A policy's text with another limit in the rule at a place, and with another name and mode if the table has them."""
    line = policy.rules[at].line
    if not line:  # rule = [{…}]
        document = _document(text)
        _set_labels(document["rule"][at], table)
        document["rule"][at].update({key: value for key, value in table.items() if key not in _UNSAID})
        document["rule"][at].update(_labels_to_add(document["rule"][at], table))
        return tomlkit.dumps(document)
    lines = _lines(text)
    end = policy.rules[at + 1].line - 1 if at + 1 < len(policy.rules) else len(lines)
    document = _document("".join(lines[line - 1 : end]))  # other rules stay as they are, even the spacing of their headers
    found = document["rule"][0]
    _set_limit(found, table["limit"])
    _set_labels(found, table)
    new = _lines(tomlkit.dumps(document))
    for key, value in _labels_to_add(found, table).items():  # tomlkit would put it after the comments of the next rule
        new.insert(1, f"{key} = {tomlkit.item(value).as_string()}\n")
    return "".join([*lines[: line - 1], *new, *lines[end:]])


def with_limits(text: str, policy: Policy, at: int, limits: list[tuple[str, str]]) -> str:
    """A policy's text with other limits in the rule at a place. Comments beside the old limits are kept above the new ones.

    Args:
        text: The text. Before the rule, it is the policy's own.
        policy: The policy.
        at: The rule's place.
        limits: The limits, each with a comment.
    """
    line = policy.rules[at].line
    if not line:  # rule = [{…}]
        document = _document(text)
        document["rule"][at]["limit"] = _commented(limits, document["rule"][at]["limit"].as_string())
        return tomlkit.dumps(document)
    lines = _lines(text)
    end = policy.rules[at + 1].line - 1 if at + 1 < len(policy.rules) else len(lines)
    document = _document("".join(lines[line - 1 : end]))
    found = document["rule"][0]
    found["limit"] = _commented(limits, found["limit"].as_string())
    return "".join([*lines[: line - 1], tomlkit.dumps(document), *lines[end:]])


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


def _set_labels(found: Any, table: dict[str, Any]) -> None:
    """Change the name and the mode that a rule has."""
    for key in _UNSAID.keys() & found.keys() & table.keys():
        if key == "name" and not table[key]:
            del found[key]
        else:
            found[key] = table[key]


def _labels_to_add(found: Any, table: dict[str, Any]) -> dict[str, Any]:
    """The name and the mode that a rule does not have yet."""
    return {key: table[key] for key in _UNSAID if key in table and key not in found and table[key] != _UNSAID[key]}


def with_mode(text: str, policy: Policy, mode: str) -> str:
    """Change the policy's mode, or add it below the comment that begins the file."""
    lines = _lines(text)
    end = policy.rules[0].line - 1 if policy.rules and policy.rules[0].line else len(lines)
    document = _document("".join(lines[:end]))
    if "mode" in document:
        document["mode"] = mode
        return "".join([tomlkit.dumps(document), *lines[end:]])
    at = 0
    while at < end and lines[at].lstrip(_BLANK).startswith("#"):
        at += 1
    if not (0 < at < end and not lines[at].strip(_BLANK)):  # without a blank line below it, a comment belongs to what follows
        return f'mode = "{mode}"\n\n{text}'
    return "".join([*lines[: at + 1], f'mode = "{mode}"\n\n', *lines[at + 1 :]])


def _set_limit(found: Any, limit: str | list[str]) -> None:
    """Change a limit.

    In a list with comments, limits that do not change keep their place and comment. If a word such as `deny` replaces the list,
    the comments are put after it.
    """
    array = found["limit"]
    if "#" not in array.as_string():  # a limit never contains #
        found["limit"] = limit
        return
    if limit in ("deny", "unlimited"):
        found["limit"] = limit
        found["limit"].comment("; ".join(re.findall(r"#[ \t]*(.*\S)", array.as_string() + array.trivia.comment)))
        return
    wanted = {text.partition("/")[2]: text for text in ([limit] if isinstance(limit, str) else limit)}
    for place in reversed(range(len(array))):
        text = wanted.pop(str(array[place]).partition("/")[2], None)
        if text is None:
            del array[place]
        else:
            array[place] = text
    array.extend(wanted.values())


def removed(text: str, policy: Policy, at: int) -> str:
    """A policy's text without the rule at a place and the comment right above it."""
    if not policy.rules[at].line:
        document = _document(text)
        del document["rule"][at]
        return tomlkit.dumps(document)
    lines = text.split("\n")
    begin = policy.rules[at].line - 1
    end = policy.rules[at + 1].line - 1 if at + 1 < len(policy.rules) else len(lines)
    while end > begin + 1 and _is_aside(lines[end - 1]):  # comments right before the next rule belong to it
        end -= 1
    while end < len(lines) - 1 and not lines[end].strip():
        end += 1
    above = begin
    while above and lines[above - 1].lstrip().startswith("#"):
        above -= 1
    if above:  # a comment right above the rule is removed with it, unless it begins the file
        begin = above
    new = "\n".join([*lines[:begin], *lines[end:]])
    return new if len(policy.rules) > 1 else _without_rules(new)


def _is_aside(line: str) -> bool:
    return not line.strip() or line.lstrip().startswith("#")


def _without_rules(text: str) -> str:
    """Add a `mode` to a text without content: an empty file is not a valid policy."""
    if _document(text):
        return text
    above = text.rstrip(_BLANK)
    return (f"{above}\n\n" if above else "") + 'mode = "enforce"\n'
