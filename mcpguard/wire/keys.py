"""Finds keys of a JSON object that two parsers could read differently."""

from functools import lru_cache

from mcpguard.light_typing import Final

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

_FEW_CHARS: Final = 256
"""The faults of keys with at most this many characters in all are cached."""

TWICE: Final = "a key that occurs twice"
ONLY_BY_CASE: Final = "two keys that differ only by case"
_NEAR_RESERVED: Final = "a key that differs from a reserved key only by case or separators"


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
    return faulty(plain, TWICE, has_two_ids=sum(key == "id" for key, _ in pairs) > 1)


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
    text = "\0".join(obj)
    return (fault_in if len(text) > _FEW_CHARS else _fault_in_few)(text, len(obj), reserved)


def has_surrogate(text: str) -> bool:
    """Whether a text has a lone surrogate. A regular expression with such a range would take half a millisecond to compile."""
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def fault_in(text: str, count: int, reserved: frozenset[str]) -> str | None:
    """`fault_in_keys` for `count` keys, joined with U+0000, so that each step checks all of them at once."""
    if text.count("\0") >= count or has_surrogate(text):
        return "U+0000 or a lone surrogate in a key"
    each = f"\0{text}"
    if _PROTOTYPE in each or _PRIVATE in each:
        return "a key to which some parsers give a special meaning"
    if len(set(text.casefold().split("\0"))) < count:
        return ONLY_BY_CASE
    if _SPELLINGS[reserved].isdisjoint(_spellings(text)):
        return None
    others = "\0".join([key for key in text.split("\0") if key not in reserved])
    return None if _SPELLINGS[reserved].isdisjoint(_spellings(others)) else _NEAR_RESERVED


_fault_in_few = lru_cache(maxsize=256)(fault_in)  # a client repeats the same few keys
