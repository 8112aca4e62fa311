"""Finds where the keys and values of a TOML text are. `tomllib` does not tell, and errors have to point at them."""

import re
import tomllib
from typing import Final, NamedTuple

Path = tuple[str | int, ...]
"""The keys and indexes that lead to a value: `("rule", 0, "limit", 1)`."""

Span = tuple[int, int]
"""The offsets of the first character and of the one after the last."""

_DEPTH: Final = 4
"""The longest path of a value in a policy. Deeper values are not located, so that nesting cannot exhaust the stack."""

_STRING: Final = r'"""(?:\\.|[^\\])*?"{3,5}|\'\'\'.*?\'{3,5}|"(?:\\.|[^"\\])*"|\'[^\']*\''
_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_KEY_PART = re.compile(r"[ \t]*([A-Za-z0-9_-]+|\"(?:\\.|[^\"\\])*\"|'[^']*')[ \t]*")
_SCALAR = re.compile(rf"{_STRING}|[^\s,\]}}#]+(?: [0-9]{{2}}:[^\s,\]}}#]+)?", re.DOTALL)  # a space may precede a time
_TOKEN = re.compile(rf"{_STRING}|#[^\n]*|[\[{{]|[\]}}]|[^\"'#\[\]{{}}]+", re.DOTALL)


class Places(NamedTuple):
    """Where keys and values are.

    Attributes:
        keys: The spans of keys and of headers, by path.
        values: The spans of values, by path.
    """

    keys: dict[Path, Span]
    values: dict[Path, Span]


def places(text: str) -> Places:
    """Find the keys and values of a text.

    Args:
        text: A text that `tomllib` accepts.
    """
    return _Finder(text).found


class _Finder:
    """Walks through a text once, from its beginning to its end."""

    def __init__(self, text: str) -> None:
        self.found = Places({}, {})
        self._text = text
        self._newest: dict[Path, int] = {}  # the index of the newest table of each array of tables
        at, table = _skipped(text, 0), Path()
        while at < len(text):
            if text[at] == "[":
                table, at = self._header(at)
            else:
                at = self._pair(at, table)
            at = _skipped(text, at)

    def _header(self, at: int) -> tuple[Path, int]:
        """The path of the table whose header begins here, and the header's end."""
        is_array = self._text.startswith("[[", at)
        names, end = self._names(at + 1 + is_array)
        end += 1 + is_array
        path: Path = ()
        for name in names:
            path = (*path, self._newest[path], name) if path in self._newest else (*path, name)
            self.found.keys.setdefault(path, (at, end))
        if is_array:
            self._newest[path] = self._newest.get(path, -1) + 1
        if path in self._newest:
            path = (*path, self._newest[path])
            self.found.keys.setdefault(path, (at, end))
        return path, end

    def _pair(self, at: int, table: Path) -> int:
        """The end of the key and value that begin here."""
        names, end = self._names(at)
        path = table
        for name in names:
            path = (*path, name)
            self.found.keys.setdefault(path, (at, at + len(self._text[at:end].rstrip())))
        return self._value(_skipped(self._text, end + 1), path)

    def _names(self, at: int) -> tuple[list[str], int]:
        """The parts of the key that begins here, and its end."""
        names = []
        while True:
            part = _KEY_PART.match(self._text, at)
            assert part is not None  # noqa: S101 - the text is valid
            names.append(next(iter(tomllib.loads(f"{part[1]} = 0"))))
            at = part.end()
            if self._text[at] != ".":
                return names, at
            at += 1

    def _value(self, at: int, path: Path) -> int:
        """The end of the value that begins here."""
        text, begin = self._text, at
        if text[at] not in "[{":
            at = _end(_SCALAR, text, at)
        elif len(path) > _DEPTH:
            at = self._end_of_nested(at)
        else:
            closing = {"[": "]", "{": "}"}[text[at]]
            index, at = 0, _skipped(text, at + 1)
            while text[at] != closing:
                at = self._pair(at, path) if closing == "}" else self._value(at, (*path, index))
                index, at = index + 1, _skipped(text, at)
                if text[at] == ",":
                    at = _skipped(text, at + 1)
            at += 1
        self.found.values[path] = (begin, at)
        return at

    def _end_of_nested(self, at: int) -> int:
        """The end of the array or table that begins here."""
        depth = 0
        while True:
            end = _end(_TOKEN, self._text, at)
            char = self._text[at]
            depth += (char in "[{") - (char in "]}")
            at = end
            if not depth:
                return at


def _skipped(text: str, at: int) -> int:
    """The next offset that is not in white space or a comment."""
    return _end(_BLANK, text, at)


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    assert match is not None  # noqa: S101 - the text is valid
    return match.end()
