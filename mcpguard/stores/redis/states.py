"""Reads counters in their form on the server, which `values.lua` describes."""

import struct
from urllib.parse import quote

from mcpguard.light_typing import Any, Final
from mcpguard.limiter.sliding import EMPTY, State
from mcpguard.stores.redis import rows


def prefix(namespace: str) -> str:
    """The beginning of all keys of a namespace. The braces put them into one slot of a cluster."""
    return "{mcpguard:" + quote(namespace) + "}:"


def counter_key(prefix: str, counter_id: int, *, window_us: int = 1) -> str:
    """The key of a counter; if its window is 0, that of the ids of calls in flight."""
    return f"{prefix}counter:{counter_id}" if window_us else f"{prefix}in_flight:{counter_id}"


_HEAD: Final = struct.Struct("<qqIq")
_ENTRY: Final = struct.Struct("<qI")
_ENDS: Final = (b"", bytes(_ENTRY.size))


def state(value: Any, window_us: int) -> State:
    """The state of a counter: a log, from its value; or the calls in flight, from the members of the set, oldest first."""
    return log(value) if window_us else tuple(sorted(map(rows.call_id, value or ())))


def newest_us(value: bytes) -> int:
    """The time of the newest entry in a counter's value."""
    newest: int = _HEAD.unpack_from(value)[1]
    return newest


def values(packed: bytes, count: int) -> list[bytes]:
    """The values of counters, as the reply to a usual call has them: first their heads, then the rest of each; see `usual.lua`.

    >>> values(b"a" * 28 + b"b" * 28 + bytes(12) + b"c" * 12, 2) == [b"a" * 28, b"b" * 28 + b"c" * 12]
    True
    """
    found = []
    at = count * _HEAD.size
    for head in range(0, count * _HEAD.size, _HEAD.size):
        first = at
        while packed[at : at + _ENTRY.size] not in _ENDS:
            at += _ENTRY.size
        found.append(packed[head : head + _HEAD.size] + packed[first:at])
        at += _ENTRY.size
    return found


def log(value: bytes | None) -> State:
    """The log in a counter's value; None is the value of a counter that does not exist."""
    if value is None:
        return EMPTY
    opened_us, newest_us, cost, _ = _HEAD.unpack_from(value)
    closed = [part for entry in _ENTRY.iter_unpack(value[_HEAD.size :]) for part in entry]
    return (opened_us, *closed, newest_us, cost)
