"""What all dialects have in common: the tree of a document, in which each node knows its place in the text.

An edit replaces parts of the text and leaves the rest as it is, so nothing is ever written from the tree.
"""

import re
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple


class Unreadable(Exception):
    """A file that does not parse in its client's dialect, or has a form that cannot be edited in place.

    Args:
        message: One line: what is wrong.
        line: The line, from 1; 0 if the fault has no place in the file.
        column: The column in characters, from 1; 0 if the fault has no place in the file.
        hint: What to do if it is not the file that has to be corrected; else empty.
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
        value: What it says. The value of a number depends on the dialect.
    """

    start: int
    end: int
    value: object


class Array(NamedTuple):
    """An array.

    Attributes:
        start: Its first character.
        end: The character after it. For a block, some character after its last item.
        items: Its items.
        leads: Where each item begins: at its first character, or at the dash of a YAML block. Empty for an array that is only
            read.
        is_block: Whether it has no brackets: a YAML block or a TOML array of tables.
    """

    start: int
    end: int
    items: "list[Node]"
    leads: list[int]
    is_block: bool = False


class Member(NamedTuple):
    """A member of an object.

    Attributes:
        key: Its name, decoded.
        start: Where it begins. A dotted key of TOML begins with the names of the objects around.
        key_start: The first character of the name.
        key_end: The character after the name.
        node: Its value.
    """

    key: str
    start: int
    key_start: int
    key_end: int
    node: "Node"


class Object:
    """An object: a mapping or a table.

    Args:
        start: Its first character.
        end: The character after it. For a block, some character after its start.
        members: Its members in the order of the file. Names can occur twice.
        is_block: Whether it has no braces: a YAML block or a TOML table.
    """

    __slots__ = ("_last", "end", "is_block", "members", "start")

    def __init__(self, start: int, end: int, members: Iterable[Member] = (), *, is_block: bool = False) -> None:
        self.start = start
        self.end = end
        self.members = list(members)
        self.is_block = is_block
        self._last = {member.key: member for member in self.members}

    def add(self, member: Member) -> None:
        """Add a member after the others."""
        self.members.append(member)
        self._last[member.key] = member

    def member(self, key: str) -> Member | None:
        """The member of this name. If there are several, the last counts, as for parsers."""
        return self._last.get(key)

    def get(self, key: str) -> "Node | None":
        """The value of a member; None if there is none."""
        member = self._last.get(key)
        return member.node if member else None


class Opaque(NamedTuple):
    """A YAML node with an anchor, a tag or a merge key, or an alias. Its content is not read.

    An edit of it could change other places, and other places can change what it says.

    Attributes:
        start: Its first character; that of the anchored node if it is an alias.
        end: The character after it.
        text: How the file spells it.
    """

    start: int
    end: int
    text: str


Node = Scalar | Array | Object | Opaque


def plain(node: Node, without: Collection[int] = ()) -> Any:
    """The value of a node, with dictionaries and lists.

    Args:
        node: The node.
        without: The `id` of each member that is left out.
    """
    if isinstance(node, Object):
        return {member.key: plain(member.node, without) for member in node.members if id(member) not in without}
    if isinstance(node, Array):
        return [plain(item, without) for item in node.items]
    return node.value if isinstance(node, Scalar) else node.text


def content_end(node: Node) -> int:
    """The character after the content of a node, also of a block."""
    if isinstance(node, Array | Object) and node.is_block:
        children = [member.node for member in node.members] if isinstance(node, Object) else node.items
        return content_end(children[-1]) if children else node.end
    return node.end


_LINE_BREAK = re.compile(r"\r\n|\n|\r")


def place(text: str, at: int) -> tuple[int, int]:
    """The line and the column of a character, both from 1."""
    breaks = [match.end() for match in _LINE_BREAK.finditer(text, 0, at)]
    return len(breaks) + 1, at - (breaks[-1] if breaks else 0) + 1


class Splice(NamedTuple):
    """An edit: the characters from `start` up to `end` are replaced."""

    start: int
    end: int
    text: str


def spliced(text: str, splices: Iterable[Splice]) -> str:
    """A text after edits that do not overlap."""
    parts, at = [], 0
    for splice in sorted(splices):
        parts += [text[at : splice.start], splice.text]
        at = splice.end
    return "".join([*parts, text[at:]])
