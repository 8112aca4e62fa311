"""Keys of an object that two JSON parsers could read differently."""

import re
from array import array
from collections.abc import Iterable
from functools import lru_cache
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

_FEW_CHARS: Final = 256
"""What was found of keys that are no longer than this in all is remembered."""

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
    if len(obj) > AT_ONCE:
        return _fault_in_many(obj, reserved)
    text = "\0".join(obj)
    return (_fault_in if len(text) > _FEW_CHARS else _fault_in_few)(text, len(obj), reserved)


def _fault_in_many(keys: Iterable[str], reserved: frozenset[str]) -> str | None:
    told = ManyKeys(reserved)
    rest = iter(keys)
    while some := list(islice(rest, AT_ONCE)):
        told.add(some)
    return told.fault


def _fault_in(text: str, count: int, reserved: frozenset[str]) -> str | None:
    """The same for so many keys, with U+0000 between them. One step for all of them, not for each: there may be a million."""
    odd = _odd(text)
    if text.count("\0") >= count or (odd and not odd[1]):
        return "U+0000 or a lone surrogate in a key"
    if odd:
        return "a key that has a meaning of its own for some parsers"
    if len(set(text.casefold().split("\0"))) < count:
        return "two keys that differ in case alone"
    if _FOLDED[reserved].isdisjoint(_spellings(text)):
        return None
    others = "\0".join([key for key in text.split("\0") if key not in reserved])
    return None if _FOLDED[reserved].isdisjoint(_spellings(others)) else "a key that is a reserved one in other letters"


_fault_in_few = lru_cache(maxsize=256)(_fault_in)  # a client uses the same few keys all day


def _spellings(keys: str) -> list[str]:
    """These keys as parsers see them that ignore case; Go's `encoding/json/v2` ignores underscores and dashes then, too."""
    folded = keys.casefold()
    joined = folded.replace("_", "").replace("-", "")
    return folded.split("\0") if joined == folded else [*folded.split("\0"), *joined.split("\0")]


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
            text = "\0".join(keys)
            self._fault = _TWICE if len(set(keys)) < len(keys) else _fault_in(text, len(keys), self._reserved)
            self._hashes.extend(map(hash, text.casefold().split("\0")))

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
