"""Counters as the server keeps them: how many entries a log has, the log, and the label; as `log.lua` has it."""

import struct
from functools import lru_cache
from typing import Final
from urllib.parse import quote

from mcpguard.core.limiter import EMPTY, State


def prefix(namespace: str) -> str:
    """What all keys of a namespace begin with; so they lie in one slot of a cluster."""
    return "{mcpguard:" + quote(namespace) + "}:"


_COUNT: Final = struct.Struct("<H")


def log(value: bytes | None) -> State:
    """The log in a counter's value, with or without its label; None is a counter that there is not."""
    if value is None:
        return EMPTY
    return _layout(_COUNT.unpack_from(value)[0]).unpack_from(value, _COUNT.size)


def label(value: bytes) -> str:
    """The label in a counter's value."""
    return value[_COUNT.size + _layout(_COUNT.unpack_from(value)[0]).size :].decode()


@lru_cache(maxsize=256)
def _layout(entries: int) -> struct.Struct:
    return struct.Struct("<q" + "qI" * entries)
