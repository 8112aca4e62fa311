"""Heavy lines: strict JSON that is checked without building most of its values, which would take many times the line's size.

An empty list takes two bytes of a line, and 88 bytes of Python's memory. So a heavy line is checked as bytes. The check notes
where the members of the outer objects begin and end. Then only the members that mcpguard reads are built.

The check has two parts. A pattern checks that every token may follow the one before it. A loop checks that each bracket and
comma fits the array or object that it is in. Both take linear time: a deep line costs no more than a flat one.
"""

import re
from array import array
from bisect import bisect_left
from collections.abc import Callable
from itertools import compress, pairwise

from mcpguard.light_typing import Final
from mcpguard.wire import meta
from mcpguard.wire.heavy import TooDeep, Unbuilt
from mcpguard.wire.keys import RESERVED, RESERVED_PARAMS, TWICE, fault_in, faulty

_AT_ONCE: Final = 4096
"""How many keys are checked in one step."""

_PARTS: Final = 4
"""Hashes are compared in this many parts, one after another, because a set takes ten times the memory of its hashes."""

_BUILT_BYTES: Final = 65_536
"""How many bytes of a line's arrays and objects are built. Strings and numbers are always built, because they do not grow."""

_SHORT_BYTES: Final = 64
"""If members are shorter than this on average, their keys are found in one pass."""

_RESERVED: Final = {"": RESERVED, "params": RESERVED_PARAMS}
_KEPT: Final = {"": RESERVED, "params": RESERVED_PARAMS | {"clientInfo", "requestId"}, "_meta": meta.READ}
"""The members that are kept of an envelope, of `params` and of `_meta`."""

_INSIDE: Final = {"": "params", "params": "_meta"}
"""The member of the envelope, and of `params`, whose own members are read."""

_BUILT: Final = frozenset({"clientInfo", "inputResponses", meta.CLIENT_INFO, meta.CODEX_TURN})
"""Members that are built even if they are objects, because their own members are needed."""

_WS: Final = rb"[ \t\n\r]*+"
_STRING: Final = rb'"(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9A-Fa-f]{4}))*+"'
_NUMBER: Final = rb"-?+(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?+(?:[eE][+-]?+[0-9]++)?+"
_COLON: Final = _WS + rb":" + _WS + rb"(?!\])"
_OPENED: Final = rb"(?:[\[ \t\n\r]++|\{" + _WS + _STRING + _COLON + rb")*+"
_INNERMOST: Final = rb"(?:" + _STRING + rb"|\{" + _WS + rb"\}|(?=\])|true|false|null|" + _NUMBER + rb")"
_CLOSED: Final = rb"[\]} \t\n\r]*+"


# Opening brackets, with their keys; the innermost value, which is nothing in an empty array; and closing brackets
_FIRST: Final = re.compile(_OPENED + _INNERMOST + _CLOSED)
# The same after a comma, where a string may be a key or a value
_OTHERS: Final = re.compile(
    rb"(?:," + _WS + rb"(?!\])(?:" + _STRING + rb"(?:" + _COLON + _OPENED + _INNERMOST + rb")?+|" + _OPENED + _INNERMOST + rb")"
    + _CLOSED + rb"){1,64}+"
)  # fmt: skip
_KEY: Final = re.compile(_WS + rb"(" + _STRING + rb")" + _WS + rb":" + _WS)
_KEYS: Final = re.compile(rb"(" + _STRING + rb")" + _WS + rb":|" + _STRING)

_SPACE: Final = b" \t\n\r"
_MARKS: Final = b"[]{},"
_OTHER_BYTES: Final = bytes(set(range(256)) - set(_MARKS + b":"))
_IS_MARK: Final = bytes(byte in _MARKS for byte in range(256))
_ARRAY, _END_OF_ARRAY, _OBJECT, _END_OF_OBJECT, _COMMA = _MARKS
_COMMA_BEFORE_KEY: Final = ord(";")
_END: Final = {_ARRAY: _END_OF_ARRAY, _OBJECT: _END_OF_OBJECT}
_COMMA_IN: Final = {_END_OF_ARRAY: _COMMA, _END_OF_OBJECT: _COMMA_BEFORE_KEY}


Decode = Callable[[str], object]


class Outline:
    """A line that was checked, and the places where its outer values begin and end.

    Args:
        line: UTF-8.
        decode: Builds a value from its text.
        max_depth: How deep arrays and objects may be nested.
        max_batch: How many members a batch may have. Of a longer batch no member is built.
        where: `_meta` if the line is the text of that member; empty if it is a whole line of the client's.

    Raises:
        TooDeep: They are nested deeper.
        ValueError: The line is not one JSON value.
    """

    def __init__(self, line: bytes, decode: Decode, *, max_depth: int, max_batch: int, where: str = "") -> None:
        self._line = line
        self._decode = decode
        self._max_depth = max_depth
        self._max_batch = max_batch
        self._where = where
        self._start = len(line) - len(line.lstrip(_SPACE))
        self._first = line[self._start]
        self._marks = _Check(line, levels=3 if self._first == _ARRAY else 2, max_depth=max_depth, max_batch=max_batch).marks
        self._bytes_left = _BUILT_BYTES

    def value(self) -> object:
        """The built value: an object; or a list with the objects of a batch, and None for its other members; or `Unbuilt`."""
        if self._first == _OBJECT:
            return self._object(self._start, len(self._line), 0, self._where)
        if self._first != _ARRAY:
            return Unbuilt(self._line.decode())
        spans = self.spans()
        if len(spans) > self._max_batch:
            return [None] * len(spans)
        return [self._object(start, end, 1) if self._line[start] == _OBJECT else None for start, end in spans]

    def spans(self) -> list[tuple[int, int]]:
        """The start and end of each member of a batch; of a batch that is too long, one more than allowed."""
        spans = [self._trimmed(at + 1, end) for at, end in pairwise(self._marks[0])]
        return spans if spans[0][0] < spans[0][1] else []

    def _trimmed(self, start: int, end: int) -> tuple[int, int]:
        """A span without the spaces at its ends."""
        text = self._line[start:end].rstrip(_SPACE)
        return start + len(text) - len(text.lstrip(_SPACE)), start + len(text)

    def _object(self, start: int, end: int, level: int, where: str = "") -> dict[str, object]:
        """The object in a span, with only those members that are kept."""
        marks = self._marks[level]
        marks = marks[bisect_left(marks, start) : bisect_left(marks, end)]
        checked = _ManyKeys(_RESERVED[where]) if where in _RESERVED else None
        kept: dict[str, object] = {}
        for at in range(0, len(marks) - 1, _AT_ONCE):
            some = marks[at : at + _AT_ONCE + 1]
            keys = self._keys(some)
            if checked:
                checked.add(keys)
            if not _KEPT[where].isdisjoint(keys):
                for nth, key in enumerate(keys):
                    if key in _KEPT[where]:
                        kept[key] = self._member(key, some[nth] + 1, some[nth + 1], level, where)
        return checked.object_of(kept) if checked else kept

    def _keys(self, marks: "array[int]") -> list[str]:
        """The keys between consecutive marks of an object."""
        start, end, count = marks[0] + 1, marks[-1], len(marks) - 1
        keys: list[bytes] = []
        if end - start < _SHORT_BYTES * count:
            keys = [key for key in _KEYS.findall(self._line, start, end) if key]
        if len(keys) != count:  # the pattern has found keys of inner objects, too; or there is no member
            matches = [_KEY.match(self._line, mark + 1) for mark in marks[:-1]]
            keys = [match[1] for match in matches if match]
        return self._decode(f"[{b','.join(keys).decode()}]")  # type: ignore[return-value]

    def _member(self, key: str, start: int, end: int, level: int, where: str) -> object:
        """The value of a member; `Unbuilt` if it is not built."""
        match = _KEY.match(self._line, start)
        start, end = self._trimmed(match.end() if match else start, end)
        first = self._line[start]
        if first == _OBJECT and key == _INSIDE.get(where):
            if key == "params":
                return self._object(start, end, level + 1, key)
            inner = Outline(
                self._line[start:end], self._decode, max_depth=self._max_depth, max_batch=self._max_batch, where=key
            )
            return inner.value()
        text = self._line[start:end].decode()
        if first in _END:
            self._bytes_left -= len(text) if key in _BUILT else 0
            if key not in _BUILT or self._bytes_left < 0:
                return Unbuilt(text)
        return self._decode(text)


class _Check:
    """Checks a line, and notes the marks (brackets and commas) of its outer values.

    An outer value is the line's own, or an object inside an outer value.

    Args:
        line: UTF-8.
        levels: How many levels of outer values there are. Deeper values are inner ones.
        max_depth: How deep arrays and objects may be nested.
        max_batch: How many members the line's own array may have. If it has more, its values do not count as outer.

    Raises:
        TooDeep: They are nested deeper.
        ValueError: The line is not one JSON value.

    Attributes:
        marks: By depth, the places of the outer values' marks: the opening bracket, commas, and the closing bracket.
    """

    def __init__(self, line: bytes, *, levels: int, max_depth: int, max_batch: int) -> None:
        self.marks = [array("I") for _ in range(levels)]
        self._max_depth = max_depth
        self._max_batch = max_batch
        # The closing brackets that are still to come:
        self._outer: list[int] = []  # of the outer values
        self._inner: list[int] = []  # of the values inside them, except the innermost; 0 stands for the outer values
        self._end = 0  # of the innermost value; 0 if that is an outer one
        at = 0
        match = _FIRST.match(line)
        while match:
            self._check_brackets(line[at : match.end()], at)
            at = match.end()
            match = _OTHERS.match(line, at)
        if at != len(line) or self._outer or self._end:
            raise ValueError("not JSON")

    def _check_brackets(self, piece: bytes, start: int) -> None:
        """Check the brackets and commas of the piece of the line that begins at `start`."""
        if b"\\" in piece:
            piece = piece.replace(b"\\\\", b"__").replace(b'\\"', b"__")
        parts = piece.split(b'"')  # every other part is a string
        marks = b"".join(parts[::2]).translate(None, _OTHER_BYTES)
        outer = self._match(marks.replace(b",:", bytes([_COMMA_BEFORE_KEY])).replace(b":", b""))
        if any(outer):
            parts[1::2] = map(b"_".__mul__, map(len, parts[1::2]))
            places = array("I", compress(range(start, start + len(piece)), b'"'.join(parts).translate(_IS_MARK)))
            for marks_there, numbers in zip(self.marks, outer, strict=True):
                marks_there.extend(map(places.__getitem__, numbers))

    def _match(self, marks: bytes) -> list[list[int]]:
        """Check that every mark fits; returns, by depth, which of the marks are the outer values'."""
        outer: list[list[int]] = [[] for _ in self.marks]
        inner, end = self._inner, self._end
        depth = len(self._outer)
        comma = self._comma()
        an_array, an_object = _ARRAY, _OBJECT  # locals are faster
        for nth, mark in enumerate(marks):
            if mark == end:
                end = inner.pop()
            elif not end and mark == comma:
                outer[depth - 1].append(nth)
            elif not end:
                at, end = self._match_outer(mark)
                depth, comma = len(self._outer), self._comma()
                if end:
                    inner.append(0)
                else:
                    outer[at].append(nth)
            elif mark == an_array or mark == an_object:  # noqa: SIM109 - faster than `in`, millions of times
                inner.append(end)
                end = _END[mark]
                if depth + len(inner) > self._max_depth:
                    raise TooDeep
            elif mark != _COMMA_IN[end]:
                raise ValueError("not JSON")
        self._end = end
        return outer

    def _comma(self) -> int:
        """The mark of a comma in the innermost outer value if that is an object, else 0."""
        return _COMMA_BEFORE_KEY if self._outer[-1:] == [_END_OF_OBJECT] else 0

    def _match_outer(self, mark: int) -> tuple[int, int]:
        """Check a mark in an outer value; returns its depth, and the closing bracket if it opens an inner value, else 0."""
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
        elif len(self.marks[0]) > self._max_batch + 1:
            return 0, self._outer.pop()
        return depth - 1, 0


class _ManyKeys:
    """Checks the keys of one object, added in parts, with 8 bytes of memory for each key.

    Keys of different parts are compared by 64 bits of their hashes. One in 30 million lines with a million keys is refused by
    mistake.

    Args:
        reserved: `RESERVED` or `RESERVED_PARAMS`.
    """

    def __init__(self, reserved: frozenset[str]) -> None:
        self._reserved = reserved
        self._fault: str | None = None
        self._ids = 0
        self._hashes = array("q")

    def add(self, keys: list[str]) -> None:
        """Add some of the keys, at most `_AT_ONCE`."""
        self._ids += keys.count("id")
        if keys and self._fault is None:
            text = "\0".join(keys)
            self._fault = TWICE if len(set(keys)) < len(keys) else fault_in(text, len(keys), self._reserved)
            self._hashes.extend(map(hash, text.casefold().split("\0")))

    @property
    def fault(self) -> str | None:
        """See `fault_in_keys`."""
        if self._fault is None:
            parts = ({value for value in self._hashes if value % _PARTS == part} for part in range(_PARTS))
            if sum(map(len, parts)) < len(self._hashes):
                self._fault = "two keys that are equal, or differ only by case"
        return self._fault

    def object_of(self, members: dict[str, object]) -> dict[str, object]:
        """The object with these keys, of whose members only `members` were kept."""
        fault = self.fault
        return members if fault is None else faulty(members, fault, has_two_ids=self._ids > 1)
