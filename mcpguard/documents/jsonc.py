"""Parses JSON, with or without comments and trailing commas."""

import json
import re
from typing import Final

from mcpguard.documents.model import Array, Child, Node, Object, Scalar, Unreadable, line_and_column

_BLANK: Final = re.compile(r"[ \t\r\n]*")
_BLANK_OR_COMMENT: Final = re.compile(r"(?:[ \t\r\n]+|//[^\r\n]*|/\*.*?\*/)*", re.DOTALL)
_STRING: Final = re.compile(
    r'"(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+"'
)  # else a missing quote costs 2^n steps
_OTHER: Final = re.compile(r"(?P<number>-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?)|true|false|null")


def parse(text: str, *, comments: bool, trailing_commas: bool) -> Node:
    """Parse a document. Numbers become floats, as in JavaScript.

    Args:
        text: The document, without a byte order mark.
        comments: Whether comments are allowed.
        trailing_commas: Whether a comma may follow the last item or member.

    Raises:
        Unreadable: The text is not a document of this dialect.
    """
    reader = Reader(text, _BLANK_OR_COMMENT if comments else _BLANK, trailing_commas=trailing_commas)
    reader.skip()
    node = reader.value()
    reader.skip()
    if reader.at < len(text):
        raise reader.error("expected the end of the file")
    return node


class Reader:
    """Reads a text from its beginning to its end. Arrays and inline tables of TOML are read alike.

    Args:
        text: The text.
        skipped: White space, and comments if they are allowed.
        trailing_commas: Whether a comma may follow the last item or member.

    Attributes:
        at: The next character.
    """

    def __init__(self, text: str, skipped: re.Pattern[str], *, trailing_commas: bool) -> None:
        self.text = text
        self.at = 0
        self._skipped = skipped
        self._trailing_commas = trailing_commas

    def skip(self) -> None:
        """Go past white space and comments."""
        match = self._skipped.match(self.text, self.at)
        self.at = match.end() if match else self.at

    def next(self) -> str:
        """The next character; empty at the end."""
        return self.text[self.at : self.at + 1]

    def take(self, char: str, what: str) -> None:
        """Go past a character."""
        if self.next() != char:
            raise self.error(what)
        self.at += 1

    def error(self, what: str) -> Unreadable:
        """The error for what is here."""
        if self._skipped is _BLANK and self.text.startswith(("//", "/*"), self.at):
            what = "this client does not allow comments"
        elif self.text.startswith("/*", self.at):
            what = "the comment has no end"
        elif self.at == len(self.text):
            what += ", but the file ends"
        return Unreadable(what, *line_and_column(self.text, self.at))

    def value(self) -> Node:
        """Read a value."""
        start, opening = self.at, self.next()
        if opening not in ("{", "["):
            return self.scalar()
        node: Object | Array = Object(start) if opening == "{" else Array(start)
        closing = "}" if opening == "{" else "]"
        self.at += 1
        self.skip()
        more = self.next() != closing
        while more:
            if isinstance(node, Object):
                self.member(node)
            else:
                node.add(Child(self.at, self.value()))
            self.skip()
            if more := self.next() == ",":
                self.at += 1
                self.skip()
                more = self.next() != closing
                if not (more or self._trailing_commas):
                    raise self.error(f"this client does not allow a comma before {closing}")
        self.take(closing, f"expected a comma or {closing}")
        node.end = self.at
        return node

    def scalar(self) -> Scalar:
        """Read a value without brackets."""
        start = self.at
        if self.next() == '"':
            value = self._string()
            return Scalar(start, self.at, value)
        match = _OTHER.match(self.text, start)
        if match is None:
            raise self.error("expected a value")
        self.at = match.end()
        return Scalar(start, self.at, float(match[0]) if match["number"] else json.loads(match[0]))

    def member(self, holder: Object) -> None:
        """Read a member of an object."""
        start = self.at
        key, key_end = self._string(), self.at
        self.skip()
        self.take(":", "expected a colon")
        self.skip()
        holder.add(Child(start, self.value(), key, start, key_end))

    def _string(self) -> str:
        match = _STRING.match(self.text, self.at)
        if match is None:
            broken = self.next() == '"'
            raise self.error("this string has no end, a wrong escape or a control character" if broken else "expected a string")
        self.at = match.end()
        return str(json.loads(match[0])) if "\\" in match[0] else match[0][1:-1]
