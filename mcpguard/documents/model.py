"""What all formats have in common: the tree of a document, in which each node knows its span in the text.

An edit replaces parts of the text and leaves the rest as it is, so nothing is ever written from the tree.
"""

import re
from collections.abc import Collection

from mcpguard.light_typing import Any, NamedTuple


class Unreadable(Exception):
    """A text that does not parse in its dialect, or has a form that cannot be edited in place.

    Args:
        message: One line: what is wrong.
        line: The line, from 1; 0 if the fault has no line.
        column: The column in characters, from 1; 0 if the fault has no line.
        hint: What to do if it is not the text that has to be corrected; else empty.
    """

    def __init__(self, message: str, line: int = 0, column: int = 0, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.line = line
        self.column = column


class Scalar(NamedTuple):
    """A text, number, truth value or null.

    Attributes:
        start: Its first character.
        end: The character after it.
        value: What it says. The value of a number depends on the format.
    """

    start: int
    end: int
    value: object


class Opaque(Scalar):
    """A YAML node with an anchor, a tag or a merge key, or an alias. Its content is not read: the value is how it is spelled.

    An edit of it could change other places, and other places can change what it says.
    """

    __slots__ = ()


class Child(NamedTuple):
    """An item of an array or a member of an object.

    Attributes:
        start: Where it begins: at its first character, at the dash of a YAML block, or with the names around a dotted key of
            TOML.
        node: Its value.
        key: The name of a member, decoded; empty for an item.
        key_start: The first character of the name.
        key_end: The character after the name.
    """

    start: int
    node: "Node"
    key: str = ""
    key_start: int = 0
    key_end: int = 0

    @property
    def end(self) -> int:
        """The character after its content, also after that of a block."""
        return self.node.end if isinstance(self.node, Scalar) else self.node.content_end


class Container:
    """An array or an object.

    Args:
        start: Its first character.
        end: The character after it. For a block, some character after its start.
        is_block: Whether it has no brackets: a YAML block, or what a header of TOML begins.

    Attributes:
        children: Its items or members, in the order of the file. Names can occur twice.
    """

    __slots__ = ("_last", "children", "end", "is_block", "start")

    def __init__(self, start: int, end: int = 0, *, is_block: bool = False) -> None:
        self.start = start
        self.end = end or start
        self.is_block = is_block
        self.children: list[Child] = []
        self._last: dict[str, Child] = {}

    def add(self, child: Child) -> None:
        """Add an item or a member after the others."""
        self.children.append(child)
        self._last[child.key] = child

    @property
    def content_end(self) -> int:
        """The character after its content, also if it is a block."""
        return self.children[-1].end if self.is_block and self.children else self.end


class Array(Container):
    """An array."""

    __slots__ = ()


class Object(Container):
    """A mapping or a table."""

    __slots__ = ()

    def member(self, key: str) -> Child | None:
        """The member of this name. If there are several, the last counts, as for parsers."""
        return self._last.get(key)

    def get(self, *keys: str) -> "Node | None":
        """The value of a member, or with several keys of a member of a member; None if there is none."""
        node: Node | None = self
        for key in keys:
            member = node.member(key) if isinstance(node, Object) else None
            node = member and member.node
        return node


Node = Scalar | Array | Object


def plain(node: Node, without: Collection[int] = ()) -> Any:
    """The value of a node, with dictionaries and lists.

    Args:
        node: The node.
        without: The `id` of each child that is left out.
    """
    if isinstance(node, Scalar):
        return node.value
    children = [child for child in node.children if id(child) not in without] if without else node.children
    if isinstance(node, Array):
        return [plain(child.node, without) for child in children]
    return {child.key: plain(child.node, without) for child in children}


KeyPath = tuple[str | int, ...]
"""The keys and indexes that lead to a value: `("rule", 0, "limit", 1)`."""

Span = tuple[int, int]
"""The offsets of the first character and of the one after the last."""


def span(node: Node, path: KeyPath, *, of_key: bool = False) -> Span:
    """The span of a value, or of its key if it has one. Of a table it is the header.

    Args:
        node: The document.
        path: The way to a value that is there.
        of_key: Whether the key is meant.
    """
    found = node.start, node.end
    for part in path:
        assert isinstance(node, Container)  # noqa: S101 - the value is there
        child = node.children[part] if isinstance(part, int) else node._last[part]
        node, named = child.node, of_key and child.key
        is_table = isinstance(node, Container) and node.is_block
        found = (child.start, child.key_end) if named and not is_table else (node.start, node.end)
    return found


def line_and_column(text: str, at: int) -> tuple[int, int]:
    """The line and the column of a character, both from 1."""
    breaks = [match.end() for match in re.finditer(r"\r\n|\n|\r", text[:at])]
    return len(breaks) + 1, at - (breaks[-1] if breaks else 0) + 1
