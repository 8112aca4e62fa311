"""The dialects of files, and a file as a document that can be edited in place."""

import codecs
import json
import re
from collections.abc import Iterable
from enum import Enum
from functools import lru_cache

from mcpguard.documents import jsonc, toml, yaml
from mcpguard.documents.model import Node, Unreadable, line_and_column
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
