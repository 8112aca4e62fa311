"""Edits the text of a policy, and keeps its comments, its order and its line ends."""

import re
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any, Final

import tomli_w

from mcpguard.documents.document import Dialect, Document, Splice, spliced
from mcpguard.documents.model import Array, Child, Object, plain
from mcpguard.documents.toml import located
from mcpguard.errors import McpguardError
from mcpguard.policy.parse import COST, RULE

_BLANK: Final = " \t\r\n"
"""White space in TOML. Python knows more characters of that kind."""

_DEFAULTS: Final = {"name": "", "mode": "enforce", "count": "calls"}
"""Values that a rule has without a line for them."""

_FIRST: Final = ("name", "mode")
"""The keys that are added above the others of a table."""

_REASON: Final = "busiest "
"""The beginning of a comment beside a suggested limit. The next suggestion replaces such a comment."""

_TOP_COMMENT: Final = re.compile(r"(?:[ \t]*#[^\n]*\n)+[ \t\r]*\n")
"""The comment about a whole file. Without a blank line below it, a comment belongs to what follows."""


class PolicyText:
    """Edits of a policy's text, which are made all at once.

    A table is named by its kind, `rule` or `cost`, and its place among the tables of this kind before the edits. A value is a
    text, a number, a list of texts, or for `limit` a list of limits that each have a comment.

    Args:
        text: The text of a valid policy.

    Each method raises `McpguardError` if the tables that it edits have no headers, because they are in a list in brackets.
    """

    def __init__(self, text: str) -> None:
        self._root = located(text)
        self._document = Document(text, b"", Dialect.TOML, self._root)
        self._wanted = plain(self._root)  # what the text must say after the edits, and nothing else
        self._text = text
        self._splices: list[Splice] = []
        self._new: list[str] = []

    def append(self, kind: str, table: Mapping[str, Any], comments: Sequence[str] = ()) -> None:
        """Add a table after all others, below comments, each of them a printable line."""
        self._tables(kind)
        added = {key: value for key, value in table.items() if value != _DEFAULTS.get(key)}
        self._wanted.setdefault(kind, []).append({key: _said(value) for key, value in added.items()})
        pairs = [_pair(key, value) for key, value in added.items()]
        self._new.append("\n".join(["", *(f"# {comment}" for comment in comments), f"[[{kind}]]", *pairs, ""]))

    def set(self, kind: str, at: int, values: Mapping[str, Any]) -> None:
        """Give a table other values, by key; None removes a key. The other keys stay, and so do values that mean the same.

        The comments in a list of limits are put above all its limits. If a word such as `deny` replaces the list, they are put
        after it.
        """
        table = self._tables(kind).children[at].node
        assert isinstance(table, Object)  # noqa: S101 - the policy is valid
        wanted: dict[str, Any] = self._wanted[kind][at]
        gone: list[Child] = []
        added: dict[str, str] = {}
        for key, value in values.items():
            member = table.member(key)
            if value is None or (key == "name" and not value):
                gone += [member] if member else []
                wanted.pop(key, None)
            elif _meant(key, value) != _meant(key, wanted.get(key, _DEFAULTS.get(key))):
                if member is None:
                    added[key] = _pair(key, value)
                elif key == "limit":
                    value = self._set_limit(member, value)
                else:
                    self._replace(member, _token(value))
                wanted[key] = _said(value)
        lines = [(self._document.line_start(member.start), self._document.line_end(member.end)) for member in gone]
        self._splices += [Splice(start, end, "") for start, end in lines]
        self._add_lines(table.end, [pair for key, pair in added.items() if key in _FIRST])
        self._add_lines(table.content_end, [pair for key, pair in added.items() if key not in _FIRST])

    def remove(self, kind: str, at: int) -> None:
        """Remove a table and the comment right above it."""
        tables, text, document = self._tables(kind), self._text, self._document
        table = tables.children[at]
        del self._wanted[kind][at]
        if not self._wanted[kind]:
            del self._wanted[kind]
        begin, end = document.line_start(table.start), document.line_end(table.end)
        above = begin
        while above and text[document.line_start(above - 1) : above].lstrip(_BLANK).startswith("#"):
            above = document.line_start(above - 1)
        if above:  # a comment that begins the file stays
            begin = above
        if following := text[end:].lstrip(_BLANK):
            self._splices.append(Splice(begin, document.line_start(len(text) - len(following)), ""))
        else:  # nothing that the blank lines above would separate
            begin = len(text[:begin].rstrip(_BLANK))
            self._splices.append(Splice(begin, len(text), "\n" if text.endswith("\n") else ""))

    def set_mode(self, mode: str) -> None:
        """Change the policy's mode, or add it below the comment that begins the file."""
        self._wanted["mode"] = mode
        if member := self._root.member("mode"):
            self._replace(member, _token(mode))
            return
        top = _TOP_COMMENT.match(self._text)
        at = top.end() if top else 0
        self._splices.append(Splice(at, at, f"{_pair('mode', mode)}\n\n"))

    def edited(self) -> str:
        """The text after the edits. If they leave no content, it gets a `mode`: an empty file is not a valid policy.

        Raises:
            McpguardError: The text would say something else than the edits.
        """
        end = "".join(self._new)
        line_break = "\r\n" if "\r\n" in self._text else "\n"
        new = spliced(self._text, [one._replace(text=re.sub(r"\r?\n", line_break, one.text)) for one in self._splices])
        if all(line.lstrip(_BLANK)[:1] in ("", "#") for line in [*new.split("\n"), *end.split("\n")]):
            end = f"\n{_pair('mode', 'enforce')}\n"
            self._wanted["mode"] = "enforce"
        if end:
            above = new.rstrip(_BLANK)
            new = above + (f"\n{end}" if above else end.lstrip("\n")).replace("\n", line_break)
        if tomllib.loads(new) != self._wanted:
            raise McpguardError("this edit would change more than it should", "edit the file by hand: mcpguard policy edit")
        return new

    def _tables(self, kind: str) -> Array:
        """The tables of a kind; an empty array if there are none."""
        tables = self._root.get(kind) or Array(0, is_block=True)
        assert isinstance(tables, Array)  # noqa: S101 - the policy is valid
        if not tables.is_block:
            message = f"the file has {kind} = […] in place of lines [[{kind}]], so only you can edit it"
            raise McpguardError(message, f"begin each {kind} with a line [[{kind}]]: mcpguard policy edit")
        return tables

    def _replace(self, member: Child, token: str) -> None:
        self._splices.append(Splice(member.node.start, member.node.end, token))

    def _add_lines(self, after: int, lines: Sequence[str]) -> None:
        """Add lines after the line in which a character is."""
        at = self._document.line_end(after)
        begin = "" if self._text[:at].endswith("\n") else "\n"
        if lines:
            self._splices.append(Splice(at, at, begin + "".join(f"{line}\n" for line in lines)))

    def _set_limit(self, member: Child, value: Any) -> Any:
        """Replace a limit or a list of limits. Returns what the text then says, with a place for comments on its limits."""
        text, node = self._text, member.node
        old = text[node.start : node.end]
        if value in ("deny", "unlimited") and _comments(old):
            end = node.end + len(text[node.end : self._document.line_end(node.end)].rstrip("\r\n"))
            comment = "; ".join(_comments(text[node.start : end]))
            self._splices.append(Splice(node.start, end, f"{_token(value)} # {comment}"))
            return value
        limits = [value] if isinstance(value, str) else value
        if _comments(old) and isinstance(limits[0], str):
            value = [(limit, "") for limit in limits]
        self._replace(member, _token(value, _comments(old)))
        return value


def _said(value: Any) -> Any:
    """A value without the comments of its limits."""
    return [one if isinstance(one, str) else one[0] for one in value] if isinstance(value, list) else value


def _meant(key: str, value: Any) -> Any:
    """What a value means: `60s` means the same as `1m`, and limits the same in any order. None for no value."""
    if value is None:
        return None
    found = {**RULE.values, **COST.values}[key].parse(key, _said(value), [])
    return sorted(found) or value if key == "limit" else found  # `deny` and `unlimited` have no limits


def _pair(key: str, value: object) -> str:
    return f"{key} = {_token(value)}"


def _token(value: Any, comments: Sequence[str] = ()) -> str:
    """A value in TOML. `comments` are put above limits that have comments themselves."""
    if not isinstance(value, list):
        text = tomli_w.dumps({"x": value})[len("x = ") : -1]
        return "".join(char if char.isprintable() else f"\\U{ord(char):08x}" for char in text)
    if not value or isinstance(value[0], str):
        return f"[{', '.join(map(_token, value))}]"
    lines = [f"# {comment}" for comment in comments if not comment.startswith(_REASON)]
    lines += [f"{_token(limit)},{comment and f' # {comment}'}" for limit, comment in value]
    return "\n  ".join(["[", *lines]) + "\n]"


def _comments(text: str) -> list[str]:
    """The comments in a list of limits: a limit never contains #."""
    return re.findall(r"#[ \t]*(.*\S)", text)
