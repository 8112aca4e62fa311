"""Reads a text from its beginning to its end: what JSON and TOML have in common."""

import re
from abc import ABC, abstractmethod

from mcpguard.documents.model import Array, Child, Node, Object, Scalar, Unreadable, line_and_column


class Reader(ABC):
    """Reads values, of which some are in brackets.

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
        self.skipped = skipped
        self._trailing_commas = trailing_commas

    def skip(self) -> None:
        """Go past white space and comments."""
        match = self.skipped.match(self.text, self.at)
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
        return Unreadable(what, *line_and_column(self.text, self.at))

    @abstractmethod
    def scalar(self) -> Scalar:
        """Read a value without brackets."""

    @abstractmethod
    def member(self, holder: Object) -> None:
        """Read a member of an object."""

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
