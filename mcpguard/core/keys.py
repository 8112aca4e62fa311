"""Keys of an object that two JSON parsers could read differently."""

import re
from array import array
from collections.abc import Iterable
from itertools import islice
from typing import Final

RESERVED: Final = frozenset({"jsonrpc", "id", "method", "params", "result", "error"})
"""The keys of an envelope that mean something to JSON-RPC."""

RESERVED_PARAMS: Final = frozenset({"name", "arguments", "_meta", "task", "requestState", "inputResponses"})
"""The keys of `params` that mean something to MCP."""

_FOLDED: Final = {keys: frozenset(map(str.casefold, keys)) for keys in (RESERVED, RESERVED_PARAMS)}

# C strings end at U+0000. ujson up to 4 drops a lone high surrogate: its "method\ud800" is "method". JavaScript's Object.assign
# takes the members of __proto__ for its own. Rust's serde_json parses the text below the other key, with its feature raw_value:
# `{"$serde_json::private::RawValue": "…"}` is to it whatever the text says, such as a call.
_odd = re.compile("[\ud800-\udfff]|(?:\\A|\0)(__proto__|\\$serde_json::private::)").search

AT_ONCE: Final = 4096
"""Keys that are looked at in one step."""

_TWICE: Final = "a key that comes twice"

_PARTS: Final = 4
"""A set of all the hashes takes ten times their size, so there is one for this part of them at a time."""


class FaultyObject(dict[str, object]):
    """An object whose keys have a fault that its members no longer show. A key that comes twice has its last value.

    Attributes:
        fault: What is wrong with its keys.
        has_two_ids: Whether `id` comes more than once.
    """

    __slots__ = ("fault", "has_two_ids")
    fault: str
    has_two_ids: bool


def as_object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """The object of these members; a `FaultyObject` if a key comes twice."""
    plain = dict(pairs)
    if len(plain) == len(pairs):
        return plain
    return faulty(plain, _TWICE, has_two_ids=sum(key == "id" for key, _ in pairs) > 1)


def faulty(members: dict[str, object], fault: str, *, has_two_ids: bool) -> FaultyObject:
    """An object with a fault in its keys."""
    made = FaultyObject(members)
    made.fault, made.has_two_ids = fault, has_two_ids
    return made


def fault_in_keys(obj: dict[str, object], reserved: frozenset[str]) -> str | None:
    """What could make two parsers read these keys differently; None if nothing could.

    Args:
        obj: An object.
        reserved: `RESERVED` or `RESERVED_PARAMS`.
    """
    if isinstance(obj, FaultyObject):
        return obj.fault
    if obj.keys() <= reserved:
        return None
    return _fault_in_some(list(obj), reserved) if len(obj) <= AT_ONCE else _fault_in_many(obj, reserved)


def _fault_in_many(keys: Iterable[str], reserved: frozenset[str]) -> str | None:
    told = ManyKeys(reserved)
    rest = iter(keys)
    while some := list(islice(rest, AT_ONCE)):
        told.add(some)
    return told.fault


def _fault_in_some(keys: list[str], reserved: frozenset[str]) -> str | None:
    """The same for keys that all differ. One step for all of them instead of one for each: there may be a million."""
    text = "\0".join(keys)
    odd = _odd(text)
    if text.count("\0") >= len(keys) or (odd and not odd[1]):
        return "U+0000 or a lone surrogate in a key"
    if odd:
        return "a key that has a meaning of its own for some parsers"
    folded = text.casefold().split("\0")
    if len(set(folded)) < len(keys):
        return "two keys that differ in case alone"
    others = [fold for key, fold in zip(keys, folded, strict=True) if key not in reserved]
    # Go's `encoding/json/v2` does not see underscores and dashes either, where it ignores case
    joined = "\0".join(others).replace("_", "").replace("-", "").split("\0")
    if not _FOLDED[reserved].isdisjoint(others + joined):
        return "a key that is a reserved one in other letters"
    return None


class ManyKeys:
    """The keys of one object, told some at a time, in 8 bytes of memory for each.

    Keys told at different times count as equal if 64 bits of their hashes are: once in 30 million lines of a million keys a
    line is refused for no other reason.

    Args:
        reserved: `RESERVED` or `RESERVED_PARAMS`.
    """

    def __init__(self, reserved: frozenset[str]) -> None:
        self._reserved = reserved
        self._fault: str | None = None
        self._ids = 0
        self._hashes = array("q")

    def add(self, keys: list[str]) -> None:
        """Tell some of the keys, at most `AT_ONCE`."""
        self._ids += keys.count("id")
        if keys and self._fault is None:
            self._fault = _TWICE if len(set(keys)) < len(keys) else _fault_in_some(keys, self._reserved)
            self._hashes.extend(map(hash, "\0".join(keys).casefold().split("\0")))

    @property
    def fault(self) -> str | None:
        """What could make two parsers read them differently; None if nothing could."""
        if self._fault is None:
            parts = ({one for one in self._hashes if one % _PARTS == part} for part in range(_PARTS))
            if sum(map(len, parts)) < len(self._hashes):
                self._fault = "two keys that are equal, or differ in case alone"
        return self._fault

    def object_of(self, members: dict[str, object]) -> dict[str, object]:
        """The object that has these keys, with those of its members that were kept."""
        fault = self.fault
        return members if fault is None else faulty(members, fault, has_two_ids=self._ids > 1)
