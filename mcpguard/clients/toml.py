"""Finds the places of values in a TOML file. tomllib decides whether the file is valid, and what its values are."""

import re
import tomllib
from typing import Any, Final

from mcpguard.clients.nodes import Array, Member, Node, Object, Scalar, Unreadable, place, plain

_PLACE: Final = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")
_NOT_FOUND: Final = "mcpguard cannot find the places of values in this file"
_SPACE: Final = re.compile(r"[ \t]*")
_BLANK_OR_COMMENT: Final = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)*")
_KEY: Final = re.compile(r"""[A-Za-z0-9_-]+|"(?:\\.|[^"\\])*"|'[^']*'""")
_SCALAR: Final = re.compile(
    r'''
    """ (?: \\. | [^\\] )*? "{3,5}            # up to two quotes can stand before the closing three
    | \'\'\' .*? \'{3,5}
    | " (?: \\. | [^"\\] )* "
    | ' [^']* '
    | [0-9]{4}-[0-9]{2}-[0-9]{2}[ ][0-9]{2}:[^\s,\]}\#]+     # a date and a time
    | [^\s,\]}\#]+
    ''',
    re.VERBOSE | re.DOTALL,
)


def parse(text: str) -> Object:
    """Parse a document. Numbers with a point stay texts.

    Args:
        text: The document, without a byte order mark.

    Raises:
        Unreadable: The text is not TOML.
    """
    try:
        values = tomllib.loads(text, parse_float=str)
    except ValueError as error:
        raise _unreadable(text, str(error)) from error
    root = _Locator(text).document()
    if plain(root) != values:
        raise Unreadable(_NOT_FOUND)
    return root


def _unreadable(text: str, message: str) -> Unreadable:
    match = _PLACE.search(message)
    if match is None:  # a number with thousands of digits
        return Unreadable(message)
    what = message[:1].lower() + message[1 : match.start()]
    return Unreadable(what, *(place(text, len(text)) if match[1] is None else (int(match[1]), int(match[2]))))


class _Locator:
    """Reads a text that is known to be valid."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def document(self) -> Object:
        root = table = Object(0, len(self.text), is_block=True)
        self.skip()
        while self.at < len(self.text):
            if self.text[self.at] == "[":
                table = self.header(root)
            else:
                self.member(table)
            self.skip()
        return root

    def skip(self, pattern: re.Pattern[str] = _BLANK_OR_COMMENT) -> None:
        match = pattern.match(self.text, self.at)
        self.at = match.end() if match else self.at

    def match(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self.text, self.at)
        if match is None:
            raise Unreadable(_NOT_FOUND, *place(self.text, self.at))
        self.at = match.end()
        return match[0]

    def header(self, root: Object) -> Object:
        start = self.at
        is_array = self.text.startswith("[[", start)
        self.at += 2 if is_array else 1
        *parents, (name, key_start, key_end) = self.key()
        parent = _descended(root, [part for part, _, _ in parents], start)
        self.at += 2 if is_array else 1
        found = parent.get(name)
        if is_array:
            table = Object(start, start, is_block=True)
            if isinstance(found, Array):
                found.items.append(table)
            else:
                parent.add(Member(name, start, key_start, key_end, Array(start, start, [table], [], is_block=True)))
            return table
        return _descended(parent, [name], start)

    def key(self) -> list[tuple[str, int, int]]:
        """The names of a dotted key, with their places."""
        parts: list[tuple[str, int, int]] = []
        while True:
            self.skip(_SPACE)
            start = self.at
            word = self.match(_KEY)
            parts.append((_value(word) if word[0] in "\"'" else word, start, self.at))
            self.skip(_SPACE)
            if not self.text.startswith(".", self.at):
                return parts
            self.at += 1

    def member(self, table: Object) -> None:
        start = self.at
        *parents, (name, key_start, key_end) = self.key()
        table = _descended(table, [part for part, _, _ in parents], start)
        self.at += 1  # =
        self.skip(_SPACE)
        table.add(Member(name, start, key_start, key_end, self.value()))

    def value(self) -> Node:
        start = self.at
        if self.text[start] == "[":
            items: list[Node] = []
            while self.opens_next("]"):
                items.append(self.value())
            return Array(start, self.at, items, [item.start for item in items])
        if self.text[start] == "{":
            table = Object(start, start)
            while self.opens_next("}"):
                self.member(table)
            table.end = self.at
            return table
        word = self.match(_SCALAR)
        return Scalar(start, self.at, _value(word))

    def opens_next(self, closing: str) -> bool:
        """Go past a bracket or a comma to the next item; past the closing bracket if there is none."""
        self.skip()
        if self.text[self.at] in "[{,":
            self.at += 1
            self.skip()
        if self.text[self.at] != closing:
            return True
        self.at += 1
        return False


def _descended(table: Object, names: list[str], start: int) -> Object:
    """The table of a dotted name, created if it does not exist. Of an array of tables the last is meant."""
    for name in names:
        found = table.get(name)
        if found is None:
            found = Object(start, start, is_block=table.is_block)
            table.add(Member(name, start, start, start, found))
        if isinstance(found, Array):
            found = found.items[-1]
        if not isinstance(found, Object):
            raise Unreadable(_NOT_FOUND)
        table = found
    return table


def _value(word: str) -> Any:
    return tomllib.loads(f"x = {word}", parse_float=str)["x"]
