"""Parses JSON, with or without comments and trailing commas, into nodes that know their place."""

import json
import re
from typing import Final

from mcpguard.clients.nodes import Array, Member, Node, Object, Scalar, Unreadable, place

_BLANK: Final = re.compile(r"[ \t\r\n]*")
_BLANK_OR_COMMENT: Final = re.compile(r"(?:[ \t\r\n]+|//[^\r\n]*|/\*.*?\*/)*", re.DOTALL)
_STRING: Final = re.compile(
    r'"(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+"'
)  # else a missing quote costs 2^n steps
_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_WORD: Final = re.compile(r"true|false|null")


def parse(text: str, *, comments: bool, trailing_commas: bool) -> Node:
    """Parse a document. Numbers become floats, as in JavaScript.

    Args:
        text: The document, without a byte order mark.
        comments: Whether comments are allowed.
        trailing_commas: Whether a comma may follow the last item or member.

    Raises:
        Unreadable: The text is not a document of this dialect.
    """
    return _Reader(text, comments=comments, trailing_commas=trailing_commas).document()


class _Reader:
    def __init__(self, text: str, *, comments: bool, trailing_commas: bool) -> None:
        self.text = text
        self.at = 0
        self.skipped = _BLANK_OR_COMMENT if comments else _BLANK
        self.trailing_commas = trailing_commas

    def document(self) -> Node:
        self.skip()
        node = self.value()
        self.skip()
        if self.at < len(self.text):
            raise self.error("expected the end of the file")
        return node

    def skip(self) -> None:
        match = self.skipped.match(self.text, self.at)
        self.at = match.end() if match else self.at

    def next(self) -> str:
        return self.text[self.at : self.at + 1]

    def error(self, what: str) -> Unreadable:
        if self.skipped is _BLANK and self.text.startswith(("//", "/*"), self.at):
            what = "this client does not allow comments"
        elif self.text.startswith("/*", self.at):
            what = "the comment has no end"
        elif self.at == len(self.text):
            what += ", but the file ends"
        return Unreadable(what, *place(self.text, self.at))

    def value(self) -> Node:
        start = self.at
        if self.next() == "{":
            return self.object()
        if self.next() == "[":
            return self.array()
        if self.next() == '"':
            return self.string()
        if match := _NUMBER.match(self.text, start):
            self.at = match.end()
            return Scalar(start, self.at, float(match[0]))
        if match := _WORD.match(self.text, start):
            self.at = match.end()
            return Scalar(start, self.at, json.loads(match[0]))
        raise self.error("expected a value")

    def string(self) -> Scalar:
        start = self.at
        match = _STRING.match(self.text, start)
        if match is None:
            broken = self.next() == '"'
            raise self.error("this string has no end, a wrong escape or a control character" if broken else "expected a string")
        self.at = match.end()
        token = match[0]
        return Scalar(start, self.at, json.loads(token) if "\\" in token else token[1:-1])

    def object(self) -> Object:
        start = self.at
        members: list[Member] = []
        self.at += 1
        self.skip()
        more = self.next() != "}"
        while more:
            key = self.string()
            self.skip()
            self.take(":", "expected a colon")
            self.skip()
            members.append(Member(str(key.value), key.start, key.start, key.end, self.value()))
            more = self.comma("}")
        self.take("}", "expected a comma or }")
        return Object(start, self.at, members)

    def array(self) -> Array:
        start = self.at
        items: list[Node] = []
        self.at += 1
        self.skip()
        more = self.next() != "]"
        while more:
            items.append(self.value())
            more = self.comma("]")
        self.take("]", "expected a comma or ]")
        return Array(start, self.at, items, [item.start for item in items])

    def take(self, char: str, what: str) -> None:
        if self.next() != char:
            raise self.error(what)
        self.at += 1

    def comma(self, closing: str) -> bool:
        """Read a comma. False if no item or member follows."""
        self.skip()
        if self.next() != ",":
            return False
        self.at += 1
        self.skip()
        if self.next() == closing and not self.trailing_commas:
            raise self.error(f"this client does not allow a comma before {closing}")
        return self.next() != closing
