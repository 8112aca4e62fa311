"""Finds keys of a JSON object that two parsers could read differently."""

from collections.abc import Iterable
from functools import lru_cache
from itertools import islice
from typing import Final

RESERVED: Final = frozenset({"jsonrpc", "id", "method", "params", "result", "error"})
"""The keys of an envelope that JSON-RPC defines."""

RESERVED_PARAMS: Final = frozenset({"name", "arguments", "_meta", "task", "requestState", "inputResponses"})
"""The keys of `params` that MCP defines."""


def _spellings(keys: str) -> list[str]:
    """The keys as case-insensitive parsers read them. Go's `encoding/json/v2` then also ignores underscores and dashes.

    So does Python's SDK in some keys: it reads `meta` as `_meta`, and `request_state` as `requestState`.
    """
    folded = keys.casefold()
    joined = folded.replace("_", "").replace("-", "")
    return folded.split("\0") if joined == folded else [*folded.split("\0"), *joined.split("\0")]


_SPELLINGS: Final = {keys: frozenset(_spellings("\0".join(keys))) for keys in (RESERVED, RESERVED_PARAMS)}

# C strings end at U+0000. ujson up to 4 drops a lone high surrogate: it reads "method\ud800" as "method". JavaScript's
# Object.assign sets the prototype from __proto__. Rust's serde_json with its feature raw_value parses the text below
# the other key: it reads `{"$serde_json::private::RawValue": "…"}` as whatever the text holds, such as a call.
_PROTOTYPE: Final = "\0__proto__"
_PRIVATE: Final = "\0$serde_json::private::"

AT_ONCE: Final = 4096
"""How many keys are checked in one step."""

_FEW_CHARS: Final = 256
"""The faults of keys with at most this many characters in all are cached."""

_TWICE: Final = "a key that occurs twice"
_NEAR_RESERVED: Final = "a key that differs from a reserved key only by case or separators"

_PARTS: Final = 4
"""Hashes are compared in this many parts, one after another, because a set takes ten times the memory of its hashes."""


class FaultyObject(dict[str, object]):
    """An object whose keys have a fault that a `dict` does not show, such as a duplicate key, which has its last value.

    Attributes:
        fault: The fault, for an error message.
        has_two_ids: Whether `id` is among the duplicate keys.
    """

    __slots__ = ("fault", "has_two_ids")
    fault: str
    has_two_ids: bool


def as_object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """The object with these members; a `FaultyObject` if a key is duplicate."""
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
    """Why two parsers could read an object's keys differently; None if they could not.

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
    all_keys = ManyKeys(reserved)
    rest = iter(keys)
    while some := list(islice(rest, AT_ONCE)):
        all_keys.add(some)
    return all_keys.fault


def has_surrogate(text: str) -> bool:
    """Whether a text has a lone surrogate. A regular expression with such a range would take half a millisecond to compile."""
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _fault_in(text: str, count: int, reserved: frozenset[str]) -> str | None:
    """`fault_in_keys` for `count` keys, joined with U+0000, so that each step checks all of them at once."""
    if text.count("\0") >= count or has_surrogate(text):
        return "U+0000 or a lone surrogate in a key"
    each = f"\0{text}"
    if _PROTOTYPE in each or _PRIVATE in each:
        return "a key to which some parsers give a special meaning"
    if len(set(text.casefold().split("\0"))) < count:
        return "two keys that differ only by case"
    if _SPELLINGS[reserved].isdisjoint(_spellings(text)):
        return None
    others = "\0".join([key for key in text.split("\0") if key not in reserved])
    return None if _SPELLINGS[reserved].isdisjoint(_spellings(others)) else _NEAR_RESERVED


_fault_in_few = lru_cache(maxsize=256)(_fault_in)  # a client repeats the same few keys


class ManyKeys:
    """Checks the keys of one object, added in parts, with 8 bytes of memory for each key.

    Keys of different parts are compared by 64 bits of their hashes. One in 30 million lines with a million keys is refused by
    mistake.

    Args:
        reserved: `RESERVED` or `RESERVED_PARAMS`.
    """

    def __init__(self, reserved: frozenset[str]) -> None:
        from array import array  # few sessions see an object with so many keys

        self._reserved = reserved
        self._fault: str | None = None
        self._ids = 0
        self._hashes = array("q")

    def add(self, keys: list[str]) -> None:
        """Add some of the keys, at most `AT_ONCE`."""
        self._ids += keys.count("id")
        if keys and self._fault is None:
            text = "\0".join(keys)
            self._fault = _TWICE if len(set(keys)) < len(keys) else _fault_in(text, len(keys), self._reserved)
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
