"""Heavy lines: strict JSON of which little is built, since all of it would cost many times the line's size.

A list of empty lists takes two bytes of a line for each, and 88 in Python's memory. So a heavy line is checked as bytes, and
where the members of its outer objects begin and end is noted on the way. Then only what the guard looks at is built.

The check has two parts. A pattern sees to it that every token may follow the one before it, and a loop that each bracket and
comma fits the array or object that it is in. Both cost the same whatever the line holds: a deep one costs no more than a flat.
"""

import re
from array import array
from bisect import bisect_left
from collections.abc import Callable
from functools import cache
from itertools import compress, pairwise
from typing import Final, NamedTuple

from mcpguard.core import meta
from mcpguard.core.keys import AT_ONCE, RESERVED, RESERVED_PARAMS, ManyKeys

HEAVY_PARTS: Final = 50_000
"""Commas and opening brackets from which on a line is heavy."""

_BUILT_BYTES: Final = 65_536
"""How much of a line's arrays and objects is built. Texts and numbers always are, since they do not grow."""

_SHORT_BYTES: Final = 64
"""Members that are no longer than this on average have their keys found all at once."""

_RESERVED: Final = {"": RESERVED, "params": RESERVED_PARAMS}
_KEPT: Final = {"": RESERVED, "params": RESERVED_PARAMS | {"clientInfo", "requestId"}, "_meta": meta.READ}
"""What is kept of an envelope, of `params` and of `_meta`."""

_INSIDE: Final = {"": "params", "params": "_meta"}
"""In the envelope, and in `params`: the member that is looked into in its turn."""

_BUILT: Final = frozenset({"clientInfo", "inputResponses", meta.CLIENT_INFO})
"""Members that are built though they are objects: their own members count."""

_WS: Final = rb"[ \t\n\r]*+"
_STRING: Final = rb'"(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9A-Fa-f]{4}))*+"'
_NUMBER: Final = rb"-?+(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?+(?:[eE][+-]?+[0-9]++)?+"
_COLON: Final = _WS + rb":" + _WS + rb"(?!\])"
_OPENED: Final = rb"(?:[\[ \t\n\r]++|\{" + _WS + _STRING + _COLON + rb")*+"
_INNERMOST: Final = rb"(?:" + _STRING + rb"|\{" + _WS + rb"\}|(?=\])|true|false|null|" + _NUMBER + rb")"
_CLOSED: Final = rb"[\]} \t\n\r]*+"


@cache  # compiled when they are first needed: most sessions never see a heavy line, and all have a start
def _compiled(pattern: bytes) -> re.Pattern[bytes]:
    return re.compile(pattern)


# Brackets that open, with their keys; what is within, which is nothing in an empty array; and brackets that close
_FIRST: Final = _OPENED + _INNERMOST + _CLOSED
# After a comma the same; a string may be a key, or the whole of it
_OTHERS: Final = (
    rb"(?:," + _WS + rb"(?!\])(?:" + _STRING + rb"(?:" + _COLON + _OPENED + _INNERMOST + rb")?+|" + _OPENED + _INNERMOST + rb")"
    + _CLOSED + rb"){1,64}+"
)  # fmt: skip
_KEY: Final = _WS + rb"(" + _STRING + rb")" + _WS + rb":" + _WS
_KEYS: Final = rb"(" + _STRING + rb")" + _WS + rb":|" + _STRING

_SPACE: Final = b" \t\n\r"
_MARKS: Final = b"[]{},"
_OTHER_BYTES: Final = bytes(set(range(256)) - set(_MARKS + b":"))
_IS_MARK: Final = bytes(byte in _MARKS for byte in range(256))
_ARRAY, _END_OF_ARRAY, _OBJECT, _END_OF_OBJECT, _COMMA = _MARKS
_COMMA_BEFORE_KEY: Final = ord(";")
_END: Final = {_ARRAY: _END_OF_ARRAY, _OBJECT: _END_OF_OBJECT}
_COMMA_IN: Final = {_END_OF_ARRAY: _COMMA, _END_OF_OBJECT: _COMMA_BEFORE_KEY}


class TooDeep(ValueError):
    """More arrays and objects within one another than are allowed."""


class Unbuilt(NamedTuple):
    """A value that was only checked: its text."""

    text: str


Decode = Callable[[str], object]


def is_heavy(line: bytes) -> bool:
    """Whether building all of a line could cost many times its size."""
    return len(line) > HEAVY_PARTS and line.count(b",") + line.count(b"[") + line.count(b"{") > HEAVY_PARTS


class Outline:
    """A line that was checked, and where its outer values begin and end.

    Args:
        line: UTF-8.
        decode: Builds a value of its text.
        deepest: How many arrays and objects may be within one another.
        most: How many members a batch may have. Of a longer one no member is built.
        where: What the line is if it is not all that a client wrote: `_meta`.

    Raises:
        TooDeep: More of them are.
        ValueError: The line is not one JSON value.
    """

    def __init__(self, line: bytes, decode: Decode, *, deepest: int, most: int, where: str = "") -> None:
        self._line = line
        self._decode = decode
        self._deepest = deepest
        self._most = most
        self._where = where
        self._start = len(line) - len(line.lstrip(_SPACE))
        self._first = line[self._start]
        self._marks = _Check(line, levels=3 if self._first == _ARRAY else 2, deepest=deepest, most=most).marks
        self._room = _BUILT_BYTES

    def value(self) -> object:
        """What the guard looks at: an object, or a list of objects and, for members of other kinds, None; else `Unbuilt`."""
        if self._first == _OBJECT:
            return self._object(self._start, len(self._line), 0, self._where)
        if self._first != _ARRAY:
            return Unbuilt(self._line.decode())
        spans = self.spans()
        if len(spans) > self._most:
            return [None] * len(spans)
        return [self._object(start, end, 1) if self._line[start] == _OBJECT else None for start, end in spans]

    def spans(self) -> list[tuple[int, int]]:
        """Where each member of a batch begins and ends. Of one that has more than it may, one more than that are told."""
        spans = [self._trimmed(at + 1, end) for at, end in pairwise(self._marks[0])]
        return spans if spans[0][0] < spans[0][1] else []

    def _trimmed(self, start: int, end: int) -> tuple[int, int]:
        """The same place without the spaces at its ends."""
        text = self._line[start:end].rstrip(_SPACE)
        return start + len(text) - len(text.lstrip(_SPACE)), start + len(text)

    def _object(self, start: int, end: int, level: int, where: str = "") -> dict[str, object]:
        """The object there, with those of its members that are kept."""
        marks = self._marks[level]
        marks = marks[bisect_left(marks, start) : bisect_left(marks, end)]
        told = ManyKeys(_RESERVED[where]) if where in _RESERVED else None
        kept: dict[str, object] = {}
        for at in range(0, len(marks) - 1, AT_ONCE):
            some = marks[at : at + AT_ONCE + 1]
            keys = self._keys(some)
            if told:
                told.add(keys)
            if not _KEPT[where].isdisjoint(keys):
                for nth, key in enumerate(keys):
                    if key in _KEPT[where]:
                        kept[key] = self._member(key, some[nth] + 1, some[nth + 1], level, where)
        return told.object_of(kept) if told else kept

    def _keys(self, marks: "array[int]") -> list[str]:
        """The keys between marks that follow one another in an object."""
        start, end, count = marks[0] + 1, marks[-1], len(marks) - 1
        keys: list[bytes] = []
        if end - start < _SHORT_BYTES * count:
            keys = [key for key in _compiled(_KEYS).findall(self._line, start, end) if key]
        if len(keys) != count:  # there are objects within, and their keys too; or no member at all
            matches = [_compiled(_KEY).match(self._line, mark + 1) for mark in marks[:-1]]
            keys = [match[1] for match in matches if match]
        return self._decode(f"[{b','.join(keys).decode()}]")  # type: ignore[return-value]

    def _member(self, key: str, start: int, end: int, level: int, where: str) -> object:
        """The value of a member. What is not built is `Unbuilt`."""
        match = _compiled(_KEY).match(self._line, start)
        start, end = self._trimmed(match.end() if match else start, end)
        first = self._line[start]
        if first == _OBJECT and key == _INSIDE.get(where):
            if key == "params":
                return self._object(start, end, level + 1, key)
            inner = Outline(self._line[start:end], self._decode, deepest=self._deepest, most=self._most, where=key)
            return inner.value()
        text = self._line[start:end].decode()
        if first in _END:
            self._room -= len(text) if key in _BUILT else 0
            if key not in _BUILT or self._room < 0:
                return Unbuilt(text)
        return self._decode(text)


class _Check:
    """Checks a line, and notes the marks of its outer values: brackets and commas.

    Args:
        line: UTF-8.
        levels: How deep values are outer ones, if all that they are in are objects, or the line's own array.
        deepest: How many arrays and objects may be within one another.
        most: How many members the line's own array may have. If it has more, its values are not outer ones.

    Raises:
        TooDeep: More of them are.
        ValueError: The line is not one JSON value.

    Attributes:
        marks: The places of outer values' marks by depth: the bracket that opens, commas, and the bracket that closes.
    """

    def __init__(self, line: bytes, *, levels: int, deepest: int, most: int) -> None:
        self.marks = [array("I") for _ in range(levels)]
        self._deepest = deepest
        self._most = most
        self._outer: list[int] = []  # the brackets that will close the outer values that are open
        self._inner: list[int] = []  # those that will close the values in them, but for the innermost; 0 for the outer one
        self._end = 0  # the one that will close the innermost value; 0 if that is an outer one
        at = 0
        match = _compiled(_FIRST).match(line)
        while match:
            self._piece(line[at : match.end()], at)
            at = match.end()
            match = _compiled(_OTHERS).match(line, at)
        if at != len(line) or self._outer or self._end:
            raise ValueError("not JSON")

    def _piece(self, piece: bytes, start: int) -> None:
        if b"\\" in piece:
            piece = piece.replace(b"\\\\", b"__").replace(b'\\"', b"__")
        parts = piece.split(b'"')  # every other one is a text
        marks = b"".join(parts[::2]).translate(None, _OTHER_BYTES)
        outer = self._follow(marks.replace(b",:", bytes([_COMMA_BEFORE_KEY])).replace(b":", b""))
        if any(outer):
            parts[1::2] = map(b"_".__mul__, map(len, parts[1::2]))
            places = array("I", compress(range(start, start + len(piece)), b'"'.join(parts).translate(_IS_MARK)))
            for marks_there, numbers in zip(self.marks, outer, strict=True):
                marks_there.extend(map(places.__getitem__, numbers))

    def _follow(self, marks: bytes) -> list[list[int]]:
        """See that every mark fits. The numbers of those that are outer values', by their depth."""
        outer: list[list[int]] = [[] for _ in self.marks]
        inner, end = self._inner, self._end
        depth = len(self._outer)
        comma = self._comma()
        an_array, an_object = _ARRAY, _OBJECT
        for nth, mark in enumerate(marks):
            if mark == end:
                end = inner.pop()
            elif not end and mark == comma:
                outer[depth - 1].append(nth)
            elif not end:
                at, end = self._follow_outer(mark)
                depth, comma = len(self._outer), self._comma()
                if end:
                    inner.append(0)
                else:
                    outer[at].append(nth)
            elif mark == an_array or mark == an_object:  # noqa: SIM109 - faster than `in`, millions of times
                inner.append(end)
                end = _END[mark]
                if depth + len(inner) > self._deepest:
                    raise TooDeep
            elif mark != _COMMA_IN[end]:
                raise ValueError("not JSON")
        self._end = end
        return outer

    def _comma(self) -> int:
        """The comma that fits where the innermost outer value is an object; none elsewhere."""
        return _COMMA_BEFORE_KEY if self._outer[-1:] == [_END_OF_OBJECT] else 0

    def _follow_outer(self, mark: int) -> tuple[int, int]:
        """The same in an outer value: the mark's depth; and, if an inner value begins there, the bracket that will close it."""
        depth = len(self._outer)
        if mark in _END:
            if depth == len(self.marks) or (depth and mark == _ARRAY):
                return depth, _END[mark]
            self._outer.append(_END[mark])
            return depth, 0
        if depth and mark == self._outer[-1]:
            self._outer.pop()
        elif mark != _COMMA or self._outer != [_END_OF_ARRAY]:
            raise ValueError("not JSON")
        elif len(self.marks[0]) > self._most + 1:
            return 0, self._outer.pop()
        return depth - 1, 0
