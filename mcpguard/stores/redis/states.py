"""Counters as the server keeps them: how many entries a log has, and the log; as `log.lua` has it."""

import struct
from functools import lru_cache
from typing import Final
from urllib.parse import quote

from mcpguard.core.limiter import EMPTY, State


def prefix(namespace: str) -> str:
    """What all keys of a namespace begin with; so they lie in one slot of a cluster."""
    return "{mcpguard:" + quote(namespace) + "}:"


def counter_key(prefix: str, counter_id: int) -> str:
    """The key of a counter's value."""
    return f"{prefix}counter:{counter_id}"


_COUNT: Final = struct.Struct("<H")


def log(value: bytes | None) -> State:
    """The log in a counter's value; None is a counter that there is not."""
    if value is None:
        return EMPTY
    return _layout(_COUNT.unpack_from(value)[0]).unpack_from(value, _COUNT.size)


@lru_cache(maxsize=256)
def _layout(entries: int) -> struct.Struct:
    return struct.Struct("<q" + "qI" * entries)
