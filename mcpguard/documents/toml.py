"""Finds the spans of values in a TOML text. tomllib decides whether the text is valid, and what its values are."""

import re
import tomllib
from typing import Any, Final

from mcpguard.documents.jsonc import JsoncParser
from mcpguard.documents.model import Array, Child, Object, Scalar, Unreadable, line_and_column, plain

_PLACE: Final = r" \(at (?:line (\d+), column (\d+)|end of document)\)$"  # compiled only for an error
_NOT_FOUND: Final = "mcpguard cannot find the places of values in this file"
_BLANK_OR_COMMENT: Final = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)*")
_KEY: Final = re.compile(r"""[ \t]*(?P<key>[A-Za-z0-9_-]+|"(?:\\.|[^"\\])*"|'[^']*')[ \t]*(?P<dot>\.?)""")
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
    root = located(text)
    if plain(root) != values:
        raise Unreadable(_NOT_FOUND)
    return root


def _unreadable(text: str, error: str) -> Unreadable:
    what, at = reason_and_place(text, error)
    if at is None:  # a number with thousands of digits
        return Unreadable(what)
    return Unreadable(what[:1].lower() + what[1:], *line_and_column(text, at))


def reason_and_place(text: str, error: str) -> tuple[str, int | None]:
    """What tomllib says is wrong in a text, and the character where; None if it names no place."""
    match = re.search(_PLACE, error)
    if match is None:
        return error, None
    before = text.split("\n")[: int(match[1] or 1) - 1]
    at = len(text) if match[1] is None else sum(map(len, before)) + len(before) + int(match[2]) - 1
    return error[: match.start()], at


def located(text: str) -> Object:
    """The tree of a text that tomllib accepts."""
    reader = _Locator(text, _BLANK_OR_COMMENT)
    root = table = Object(0, len(text), is_block=True)
    reader.skip()
    while reader.at < len(text):
        if reader.next() == "[":
            table = reader.header(root)
        else:
            reader.member(table)
        reader.skip()
    return root


class _Locator(JsoncParser):
    """Reads a text that is known to be valid."""

    def match(self, pattern: re.Pattern[str]) -> re.Match[str]:
        match = pattern.match(self.text, self.at)
        if match is None:
            raise self.error(_NOT_FOUND)
        self.at = match.end()
        return match

    def header(self, root: Object) -> Object:
        start = self.at
        brackets = 2 if self.text.startswith("[[", start) else 1
        self.at += brackets
        parent, child = self.key(root)
        self.at += brackets
        if brackets == 2:
            if parent.member(child.key) is None:
                parent.add(child._replace(start=start, node=Array(start, self.at, is_block=True)))
            if isinstance(tables := parent.get(child.key), Array):
                tables.add(Child(start, Object(start, is_block=True)))
        table = _descended(parent, child)
        table.start, table.end = start, self.at
        return table

    def key(self, holder: Object) -> tuple[Object, Child]:
        """Read a dotted key. Returns the object of its last name, and a child for it."""
        start = self.at
        while True:
            match = self.match(_KEY)
            word = match["key"]
            name = _value(word) if word[0] in "\"'" else word
            child = Child(start, Object(start, match.end("key"), is_block=holder.is_block), name, *match.span("key"))
            if not match["dot"]:
                return holder, child
            holder = _descended(holder, child)

    def member(self, holder: Object) -> None:
        holder, child = self.key(holder)
        self.at += 1  # =
        self.skip()
        holder.add(child._replace(node=self.value()))

    def scalar(self) -> Scalar:
        start = self.at
        word = self.match(_SCALAR)[0]
        return Scalar(start, self.at, _value(word))


def _descended(holder: Object, new: Child) -> Object:
    """The table of a name, the new one if there is none yet. Of an array of tables the last is meant."""
    if holder.member(new.key) is None:
        holder.add(new)
    node = holder.get(new.key)
    if isinstance(node, Array):
        node = node.children[-1].node
    if not isinstance(node, Object):
        raise Unreadable(_NOT_FOUND)
    return node


def _value(word: str) -> Any:
    if word[0] in "\"'" and "\\" not in word and not word.startswith(('""', "''")):
        return word[1:-1]
    return tomllib.loads(f"x = {word}", parse_float=str)["x"]
