"""Parses JSON, with or without comments and trailing commas."""

import json
import re
from typing import Final

from mcpguard.documents.model import Child, Node, Object, Scalar, Unreadable
from mcpguard.documents.reading import Reader

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
    reader = _Reader(text, _BLANK_OR_COMMENT if comments else _BLANK, trailing_commas=trailing_commas)
    reader.skip()
    node = reader.value()
    reader.skip()
    if reader.at < len(text):
        raise reader.error("expected the end of the file")
    return node


class _Reader(Reader):
    def error(self, what: str) -> Unreadable:
        if self.skipped is _BLANK and self.text.startswith(("//", "/*"), self.at):
            what = "this client does not allow comments"
        elif self.text.startswith("/*", self.at):
            what = "the comment has no end"
        elif self.at == len(self.text):
            what += ", but the file ends"
        return super().error(what)

    def scalar(self) -> Scalar:
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
