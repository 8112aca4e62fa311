"""Parses JSON, and JSON with comments and trailing commas."""

import json
import re
from typing import Final, NoReturn

from mcpguard.documents.model import Array, Child, Node, Object, Scalar, Unreadable, line_and_column

_BLANK: Final = re.compile(r"[ \t\r\n]*")
_BLANK_OR_COMMENT: Final = re.compile(r"(?:[ \t\r\n]+|//[^\r\n]*|/\*.*?\*/)*", re.DOTALL)


def _refused(word: str) -> NoReturn:
    raise ValueError(word)


_MOST_LEVELS: Final = 200
"""How deep arrays and objects may be nested: what works on the parsed document is recursive, and takes more frames a level."""

_DECODER: Final = json.JSONDecoder(parse_int=float, parse_constant=_refused)


def parse(text: str, *, is_strict: bool) -> Node:
    """Parse a document. Numbers become floats, as in JavaScript.

    Args:
        text: The document, without a byte order mark.
        is_strict: Whether neither comments nor trailing commas are allowed.

    Raises:
        Unreadable: The text is not a document of this dialect.
        RecursionError: Arrays and objects are nested too deeply.
    """
    reader = JsoncParser(text, _BLANK if is_strict else _BLANK_OR_COMMENT)
    reader.skip()
    node = reader.value()
    reader.skip()
    if reader.at < len(text):
        raise reader.error("expected the end of the file")
    return node


class JsoncParser:
    """Reads a text from its beginning to its end.

    Args:
        text: The text.
        skipped: White space, and comments if they are allowed. Then a comma may follow the last item or member, too.

    Attributes:
        at: The next character.
    """

    def __init__(self, text: str, skipped: re.Pattern[str]) -> None:
        self.text = text
        self.at = 0
        self._skipped = skipped
        self._levels = 0

    def skip(self) -> None:
        """Go past white space and comments."""
        match = self._skipped.match(self.text, self.at)
        self.at = match.end() if match else self.at

    def next(self) -> str:
        """The next character; empty at the end."""
        return self.text[self.at : self.at + 1]

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
        """Read a value.

        Raises:
            Unreadable: It is not a value of this dialect.
            RecursionError: Arrays and objects are nested too deeply.
        """
        start, opening = self.at, self.next()
        if opening not in ("{", "["):
            return self.scalar()
        self._levels += 1
        if self._levels > _MOST_LEVELS:
            raise RecursionError
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
                if not more and self._skipped is _BLANK:
                    raise self.error(f"this client does not allow a comma before {closing}")
        self._take(closing, f"expected a comma or {closing}")
        self._levels -= 1
        node.end = self.at
        return node

    def scalar(self) -> Scalar:
        """Read a value without brackets."""
        start, is_text = self.at, self.next() == '"'
        try:
            value, self.at = _DECODER.raw_decode(self.text, start)
        except ValueError:
            what = "this string has no end, a wrong escape or a control character" if is_text else "expected a value"
            raise self.error(what) from None
        return Scalar(start, self.at, value)

    def member(self, holder: Object) -> None:
        """Read a member of an object."""
        if self.next() != '"':
            raise self.error("expected a string")
        key = self.scalar()
        self.skip()
        self._take(":", "expected a colon")
        self.skip()
        holder.add(Child(key.start, self.value(), str(key.value), key.start, key.end))

    def _take(self, char: str, what: str) -> None:
        if self.next() != char:
            raise self.error(what)
        self.at += 1
