"""Heavy lines: strict JSON that is checked without building most of its values, which would take many times the line's size.

An empty list takes two bytes of a line, and 88 bytes of Python's memory. So of a heavy line only those members are built that
mcpguard reads. Other values are skipped: patterns check them as bytes, from one bracket to the next. This takes linear time,
and no function calls itself for a deep value.
"""

import re
from collections.abc import Callable, Sequence

from mcpguard.light_typing import Final
from mcpguard.wire import meta
from mcpguard.wire.arguments import Unbuilt
from mcpguard.wire.keys import ONLY_BY_CASE, RESERVED, RESERVED_PARAMS, TWICE, fault_in, faulty

_BUILT_BYTES: Final = 65_536
"""How many bytes of a line's arrays and objects are built. Strings and numbers are always built, because they do not grow."""

_AT_ONCE: Final = 4096
"""How many keys of an object are checked at once: their text and its spellings take much memory, and no other thread runs."""

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
_SCALAR: Final = rb"(?:" + _STRING + rb"|true|false|null|" + _NUMBER + rb")"
_EMPTY: Final = rb"\[" + _WS + rb"\]|\{" + _WS + rb"\}"
_COLON: Final = _WS + rb":" + _WS

_LEAF: Final = re.compile(_SCALAR)
_KEY: Final = re.compile(_WS + rb"(" + _STRING + rb")" + _COLON)
_NEXT_KEY: Final = re.compile(_WS + rb"," + _WS + rb"(" + _STRING + rb")" + _COLON)
_COMMA: Final = re.compile(_WS + rb"," + _WS)
_SPACE: Final = re.compile(_WS)

_END: Final = {b"[": b"]", b"{": b"}"}

_LEAVES: Final = 1000
"""How many leaves are matched at once. No other thread runs meanwhile."""


def _patterns(leaf: bytes) -> dict[bytes, re.Pattern[bytes]]:
    """What may stand in an array or object, up to the next bracket, or up to the comma after `_LEAVES` leaves.

    A group matches if the next bracket must be an opening one.

    Args:
        leaf: The pattern of a value that is not looked into.

    Returns:
        The patterns by the bracket: the opening one for what is behind it; the closing one for what is behind a value. That of
        a closing bracket also matches nothing.
    """
    found = {}
    for begin, end, key in ((b"[", b"]", b""), (b"{", b"}", _STRING + _COLON)):
        opens, more = rb"(?=[\[{])", rb"(?:" + _WS + rb"," + _WS + key + leaf + rb"){0,%d}+" % _LEAVES
        more += _WS + rb"(?:(," + _WS + key + rb")" + opens + rb")?+"
        found[begin] = re.compile(
            _WS + rb"(?:" + key + leaf + more + rb"|(" + key + rb")" + opens + rb"|(?=" + re.escape(end) + rb"))"
        )
        found[end] = re.compile(more)
    return found


_INSIDE_OF: Final = _patterns(rb"(?:" + _SCALAR + rb"|" + _EMPTY + rb")")
_INSIDE_OF_DEEPEST: Final = _patterns(_SCALAR)
"""The patterns for arrays and objects in which there may be no others, not even empty ones."""

Decode = Callable[[str], object]


class Skimmer:
    """Checks one line, and builds what mcpguard reads of it.

    Args:
        line: UTF-8.
        decode: Builds a value from its text.
        max_depth: How deep arrays and objects may be nested.
        max_batch: How many members a batch may have.
    """

    def __init__(self, line: bytes, decode: Decode, *, max_depth: int, max_batch: int) -> None:
        self._line = line
        self._decode = decode
        self._max_depth = max_depth
        self._max_batch = max_batch
        self._bytes_left = _BUILT_BYTES

    def read(self) -> tuple[object, list[tuple[int, int]]]:
        """The line's value, and the start and end of each member if it is a batch.

        Returns:
            An object with the members that are kept; or a list with the objects of a batch, and None for its other members, cut
            off when it has more members than allowed; or `Unbuilt`.

        Raises:
            RecursionError: Arrays and objects are nested deeper than allowed.
            ValueError: The line is not one JSON value.
        """
        value: object = None
        spans: list[tuple[int, int]] = []
        start = self._after_space(0)
        first = self._line[start : start + 1]
        if first == b"{":
            value, end = self._object(start, 1, "")
        elif first == b"[":
            value, spans, end = self._batch(start)
        else:
            value, end = Unbuilt(self._line.decode()), self._skip(start, 0)
        if self._after_space(end) != len(self._line):
            raise ValueError("not JSON")
        return value, spans

    def _batch(self, start: int) -> tuple[list[object], list[tuple[int, int]], int]:
        """The members of an array, their spans, and where the array ends."""
        members: list[object] = []
        spans: list[tuple[int, int]] = []
        at = self._after_space(start + 1)
        if self._line[at : at + 1] == b"]":
            return members, spans, at + 1
        while True:
            is_object = self._line[at : at + 1] == b"{"
            member, end = self._object(at, 2, "") if is_object else (None, self._skip(at, 1))
            members.append(member)
            spans.append((at, end))
            if len(members) > self._max_batch:
                return members, spans, self._skip(start, 0)
            comma = _COMMA.match(self._line, end)
            if comma is None:
                return members, spans, self._closed(end, b"]")
            at = comma.end()

    def _object(self, start: int, depth: int, where: str) -> tuple[dict[str, object], int]:
        """The object at an index, with only those members that are kept, and where it ends. `depth` is its own."""
        keys: list[str] = []
        kept: dict[str, object] = {}
        at, pattern = start + 1, _KEY
        while match := pattern.match(self._line, at):
            pattern = _NEXT_KEY
            text = match[1].decode()
            key = str(self._decode(text)) if "\\" in text else text[1:-1]
            keys.append(key)
            if key in _KEPT[where]:
                kept[key], at = self._member(match.end(), depth, where, key)
            else:
                at = self._skip(match.end(), depth)
        end = self._closed(at, b"}")
        fault = _fault_in_many(keys, _RESERVED[where]) if where in _RESERVED else None
        return kept if fault is None else faulty(kept, fault, has_two_ids=keys.count("id") > 1), end

    def _member(self, start: int, depth: int, where: str, key: str) -> tuple[object, int]:
        """The value of a member, which is `Unbuilt` if it is not built, and where it ends."""
        first = self._line[start : start + 1]
        if first == b"{" and key == _INSIDE.get(where):
            return self._object(start, depth + 1, key)
        end = self._skip(start, depth)
        text = self._line[start:end].decode()
        if first in _END:
            self._bytes_left -= len(text) if key in _BUILT else 0
            if key not in _BUILT or self._bytes_left < 0:
                return Unbuilt(text), end
        return self._decode(text), end

    def _skip(self, at: int, depth: int) -> int:
        """Check the value at an index. Returns where it ends. `depth` is that of the array or object around it."""
        line = self._line
        if leaf := _LEAF.match(line, at):
            return leaf.end()
        ends: list[bytes] = []  # the closing brackets that are still to come
        is_opening = True
        while True:
            bracket = line[at : at + 1]
            if is_opening and bracket in _END:
                ends.append(_END[bracket])
                depth += 1
                if depth > self._max_depth:
                    raise RecursionError
                at += 1
            elif ends and bracket == ends[-1]:
                ends.pop()
                depth -= 1
                at += 1
                if not ends:
                    return at
                bracket = ends[-1]
            elif ends and bracket == b",":  # there may be more leaves than are matched at once
                bracket = ends[-1]
            else:
                raise ValueError("not JSON")
            inside = _INSIDE_OF_DEEPEST if depth == self._max_depth else _INSIDE_OF
            match = inside[bracket].match(line, at)
            if match is None or ((end := match.end()) == at and line[at : at + 1] == b","):
                raise ValueError("not JSON")
            at, is_opening = end, match.lastindex is not None

    def _closed(self, at: int, bracket: bytes) -> int:
        """The index after a closing bracket, which may have space before it."""
        at = self._after_space(at)
        if self._line[at : at + 1] != bracket:
            raise ValueError("not JSON")
        return at + 1

    def _after_space(self, at: int) -> int:
        match = _SPACE.match(self._line, at)
        return match.end() if match else at


def _fault_in_many(keys: Sequence[str], reserved: frozenset[str]) -> str | None:
    """See `fault_in_keys`. A line has room for a million keys. So folded keys are kept as bytes, which take less than text."""
    parts = [keys[at : at + _AT_ONCE] for at in range(0, len(keys), _AT_ONCE)]
    different: set[str] = set()
    for some in parts:
        different.update(some)
    if len(different) < len(keys):
        return TWICE
    del different
    for some in parts:
        if fault := fault_in("\0".join(some), len(some), reserved):
            return fault
    if len(keys) > _AT_ONCE and len({key.casefold().encode() for key in keys}) < len(keys):
        return ONLY_BY_CASE
    return None
