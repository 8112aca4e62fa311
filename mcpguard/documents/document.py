"""The dialects of files, and a file as a document that is edited in place, in the style of the file around each edit.

Each insertion into an array or an object can be undone exactly by a removal.
"""

import codecs
import itertools
import json
import re
from collections.abc import Collection, Iterable, Sequence
from enum import Enum
from functools import lru_cache

from mcpguard.documents import jsonc, toml, yaml
from mcpguard.documents.model import Array, Child, Container, Node, Object, Unreadable, line_and_column, plain
from mcpguard.light_typing import Final, NamedTuple


class Dialect(Enum):
    """What the reader of a file accepts."""

    JSON = "JSON"
    JSONC = "JSON with comments and trailing commas"
    TOML = "TOML"
    YAML = "YAML"

    @property
    def is_json(self) -> bool:
        """Whether it is one of the dialects of JSON."""
        return self not in (Dialect.TOML, Dialect.YAML)


def encoded(text: str) -> bytes:
    """The bytes of a file that mcpguard has edited or made.

    Raises:
        Unreadable: What mcpguard has written into it is not UTF-8.
    """
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise Unreadable("not changed: the server's name, an option or the path of mcpguard is not UTF-8") from None


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


class Document(NamedTuple):
    """A parsed file.

    Attributes:
        text: The file's text without the byte order mark.
        mark: The byte order mark, or nothing.
        dialect: How the text was parsed.
        root: The tree of nodes.
    """

    text: str
    mark: bytes
    dialect: Dialect
    root: Node

    def after(self, splices: Iterable[Splice]) -> bytes:
        """The file after edits.

        Raises:
            Unreadable: An edit is not UTF-8.
        """
        return self.mark + encoded(spliced(self.text, splices))

    def unreadable(self, message: str, at: int) -> Unreadable:
        """The error for a form that cannot be edited."""
        return Unreadable(message, *line_and_column(self.text, at))

    def line_start(self, at: int) -> int:
        """The first character of the line in which a character is."""
        return self.text.rfind("\n", 0, at) + 1

    def line_end(self, at: int) -> int:
        """The first character of the line after that in which a character is, or the end of the file."""
        return self.text.find("\n", at) + 1 or len(self.text)

    def line_break(self, at: int) -> str:
        """The line break that ends the line before a character's line; the file's first one if there is no such line."""
        end = self.line_start(at) or self.text.find("\n") + 1
        return "\r\n" if self.text.endswith("\r\n", 0, end) else "\n"

    def indentation(self, at: int) -> str:
        """The white space with which the line of a character begins."""
        match = re.compile(r"[ \t]*").match(self.text, self.line_start(at), at)
        return match[0] if match else ""


def is_blank(data: bytes) -> bool:
    """Whether a file has only white space, perhaps after a byte order mark."""
    return not data.removeprefix(codecs.BOM_UTF8).strip()


@lru_cache(maxsize=4)
def read(data: bytes, dialect: Dialect) -> Document:
    """Parse a file. The last files are remembered, because a file of many megabytes can have servers in hundreds of places.

    Raises:
        Unreadable: The file is not UTF-8, or not of this dialect.
    """
    body = data.removeprefix(codecs.BOM_UTF8)
    mark = data[: len(data) - len(body)]
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        before = body[: error.start].decode()
        raise Unreadable("the file is not UTF-8", *line_and_column(before, len(before))) from error
    try:
        return Document(text, mark, dialect, _parse(text, dialect))
    except RecursionError as error:
        raise Unreadable("the file is nested too deeply") from error


def _parse(text: str, dialect: Dialect) -> Node:
    if dialect is Dialect.TOML:
        return toml.parse(text)
    if dialect is Dialect.YAML:
        return yaml.parse(text)
    return jsonc.parse(text, is_strict=dialect is Dialect.JSON)


_ESCAPED: Final = re.compile(r"[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
"""Characters that JSON leaves as they are, and another dialect does not."""


def quoted(text: str) -> str:
    """A text in double quotes, which JSON, TOML and YAML read alike."""
    return _ESCAPED.sub(lambda match: f"\\u{ord(match[0]):04x}", json.dumps(text, ensure_ascii=False))


_COMMA: Final = re.compile(r"((?>[ \t\r\n]+|//[^\r\n]*|/\*.*?\*/|#[^\n]*)*+),", re.DOTALL)
"""The next comma that is not in a comment. Comments of one dialect cannot begin where another dialect's can."""


def prepended(document: Document, array: Array, tokens: Sequence[str]) -> Splice:
    """Insert items before the first item of an array.

    An array without items gets them right after its bracket, and everything that it contains stays behind them.
    """
    text = document.text
    if not array.children:
        return Splice(array.start + 1, array.start + 1, ", ".join(tokens))
    first, *others = array.children
    if array.is_block:
        gap = document.line_break(first.start) + " " * (first.start - document.line_start(first.start))
        return Splice(first.start, first.start, "".join(f"- {token}{gap}" for token in tokens))
    if "\n" in text[array.start : first.start]:
        gap = "," + document.line_break(first.start) + document.indentation(first.start)
    else:
        between = text[first.end : others[0].start] if others else ""
        gap = between if between.rstrip(" \t") == "," else ", "
    return Splice(first.start, first.start, "".join(token + gap for token in tokens))


def appended(document: Document, container: Container, short: str, long: str) -> Splice:
    """Insert an item or a member after the last one of a container with brackets.

    Args:
        document: The file.
        container: The array or object.
        short: Its text on one line.
        long: Its text in a container whose first child begins a line.
    """
    if not container.children:
        return Splice(container.start + 1, container.start + 1, short)
    first, end = container.children[0].start, container.children[-1].end
    if "\n" not in document.text[container.start : first]:
        return Splice(end, end, f", {short}")
    gap = document.line_break(first) + document.indentation(first)
    return Splice(end, end, f",\n{long}".replace("\n", gap))


def without(document: Document, container: Container, places: Collection[int]) -> list[Splice]:
    """Remove items or members, with a comma each, from a container with brackets, or some items of a block. Comments stay.

    Args:
        document: The file.
        container: The array or object.
        places: Which children to remove.
    """
    text, children = document.text, container.children
    if len(places) == len(children):
        return [_emptied(text, container)] if places else []
    splices: list[Splice] = []
    is_first = True
    for at, child in enumerate(children):
        if at not in places:
            is_first = False
        elif is_first:
            following = children[at + 1].start
            splices.append(Splice(child.start, following, _without_comma(text[child.end : following])))
        else:
            before = children[at - 1].end
            splices.append(Splice(before, child.end, _without_comma(text[before : child.start])))
    return splices


def _emptied(text: str, container: Container) -> Splice:
    """Remove all of a container with brackets but its comments."""
    children, end = container.children, container.end - 1
    start = children[0].start
    gaps = itertools.pairwise(children)
    comments = "".join(_without_comma(text[child.end : following.start]) for child, following in gaps)
    rest = comments + _without_comma(text[children[-1].end : end], or_all=True)
    before = text[container.start + 1 : start]
    if before and not (before + rest).strip():  # what is inserted into an empty container follows its bracket
        start, rest = container.start + 1, ""
    return Splice(start, end, rest)


def emptied_block(document: Document, array: Array, member: Child) -> Splice:
    """Replace a YAML block, which cannot be empty, by an empty array. Comments stay."""
    text, items = document.text, array.children
    gaps = [text[member.key_end : items[0].start].partition(":")[2]]
    gaps += [text[item.end : following.start] for item, following in itertools.pairwise(items)]
    beside, *below = [line.rstrip() for line in "".join(gaps).split("\n")]
    comments = document.line_break(array.start).join([beside, *filter(None, below)])
    return Splice(member.key_end, items[-1].end, f": []{comments}")


def member_after(document: Document, holder: Object, member: Child, key: str, tokens: Sequence[str]) -> str:
    """The text of a new member with an array, for insertion right after another member's value."""
    text = document.text
    relation = text[member.key_end : member.node.start]
    if relation.strip(" \t") not in (":", "=") or (document.dialect is Dialect.YAML and relation == ":"):
        relation = ": "
    space = "" if relation in (":", "=") else " "
    name = f'"{key}"' if document.dialect.is_json else text[member.start : member.key_start] + key
    value = f"[{f',{space}'.join(tokens)}]"
    start = document.line_start(member.start)
    if holder.is_block:
        column = member.start - start
        indentation = " " * column if document.dialect is Dialect.YAML else document.indentation(member.start)
        return f"{document.line_break(member.start)}{indentation}{name}{relation}{value}"
    indentation = document.indentation(member.start)
    begins_line = start + len(indentation) == member.start
    gap = document.line_break(member.start) + indentation if begins_line else space
    return f",{gap}{name}{relation}{value}"


def without_member(document: Document, holder: Object, member: Child) -> list[Splice]:
    """Remove a member from an object; nothing if a block has a comment or anything else beside it."""
    text = document.text
    at = holder.children.index(member)
    if not holder.is_block:
        return without(document, holder, {at})
    before, end = holder.children[at - 1].end if at else len(text), member.end
    if before < member.start and not text[before : member.start].strip():
        return [Splice(before, end, "")]
    start, line_end = document.line_start(member.start), document.line_end(end)
    is_alone = not (text[start : member.start] + text[end:line_end]).strip()
    return [Splice(start, line_end, "")] if is_alone else []


def _without_comma(gap: str, *, or_all: bool = False) -> str:
    """The comments of a gap between items, with their white space; with `or_all`, the white space alone, too."""
    comma = _COMMA.match(gap)
    left = comma[1] + gap[comma.end() :] if comma else gap
    return left if or_all or left.strip() else ""


def removed(document: Document, nodes: Iterable[Node]) -> bytes:
    """The file without some values, and without each container around them that insertions have made for them.

    Insertions put white space after the bracket of such a container.

    Raises:
        Unreadable: This would change something else.
    """
    gone = {id(node) for node in nodes}
    dropped: set[int] = set()

    def cut(container: Container) -> list[Splice]:
        """Remove what is in a container, unless the container becomes one that is gone."""
        splices: list[Splice] = []
        for child in container.children:
            if isinstance(child.node, Container) and id(child.node) not in gone:
                splices += cut(child.node)
        places = {at for at, child in enumerate(container.children) if id(child.node) in gone}
        dropped.update(id(container.children[at]) for at in places)
        if len(places) == len(container.children) > 0 and container is not document.root and _is_made(document.text, container):
            gone.add(id(container))
            return []
        return splices + without(document, container, places)

    root = document.root
    new = document.after(cut(root) if isinstance(root, Container) else [])
    if plain(read(new, document.dialect).root) != plain(root, dropped):
        raise Unreadable("a value cannot be removed in place")
    return new


def _is_made(text: str, container: Container) -> bool:
    before = text[container.start + 1 : container.children[0].start]
    after = text[container.children[-1].end : container.end - 1]
    return before != "" and not (before + after).strip()
