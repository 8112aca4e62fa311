"""The audit: two streams of rows, of which one has the refusals, and beside them a hash of how the calls ended."""

import struct
from collections.abc import Sequence
from typing import Any, Final

from mcpguard.core.audit import Row, cut_id, record
from mcpguard.core.verdict import REFUSED, DecisionRequest
from mcpguard.stores.api import Entry

_LINES: Final = ("time_us", "request_id", "args_hash", "trace_id", "context", "decision", "reported", "detail")
_NUMBERS: Final = ("seq", "counted", "remaining", "retry_after_ms", "repeats")
_PACKED: Final = struct.Struct("<5q")
"""A row is one field in the stream: the former as lines, none of which has a newline within; then the latter, -1 for none.

As `charge.lua` has it: numbers as text would cost a server more than all else that it does for a row.
"""


def beginning(request: DecisionRequest, time_us: int) -> str:
    """The lines before the context, which are known before a call is decided."""
    request_id = cut_id(request.request_id) or ""
    return f"{time_us}\n{request_id}\n{request.args_hash.hex() if request.args_hash else ''}\n{request.trace_id or ''}"


def packed(row: Row) -> bytes:
    """A row as its stream has it."""
    lines = [_line(getattr(row, name)) + "\n" for name in _LINES]
    numbers = [-1 if (value := getattr(row, name)) is None else value for name in _NUMBERS]
    return "".join(lines).encode() + _PACKED.pack(*numbers)


def _line(value: object) -> str:
    return "" if value is None else value.hex() if isinstance(value, bytes) else str(value)


def row(found: Sequence[bytes]) -> Row:
    """A row from its fields; those that a later program has added do not count."""
    whole = dict(zip(found[::2], found[1::2], strict=True))[b"row"]
    *lines, numbers = whole.split(b"\n", len(_LINES))
    values: dict[str, Any] = {name: line.decode() or None for name, line in zip(_LINES, lines, strict=True)}
    values |= {name: None if value < 0 else value for name, value in zip(_NUMBERS, _PACKED.unpack(numbers), strict=True)}
    values["time_us"] = int(values["time_us"])
    values["args_hash"] = bytes.fromhex(values["args_hash"]) if values["args_hash"] else None
    return Row(**values)


def row_id(stream_id: bytes) -> int:
    """The id of a row: its time and its number within the millisecond, as one number.

    >>> stream_id(row_id(b"1767225600000-3"))
    '1767225600000-3'
    """
    ms, _, number = stream_id.partition(b"-")
    return int(ms) << 64 | int(number)


def stream_id(row_id: int) -> str:
    """The id that the server gives a row in its stream."""
    return f"{row_id >> 64}-{row_id & (1 << 64) - 1}"


def keys(prefix: str) -> tuple[str, ...]:
    """The keys of `audit.lua` in a namespace: the two streams, the outcomes, and how much memory the streams take."""
    return tuple([prefix + name for name in ("audit", "refused", "outcomes", "size")])


def stream(row: Row) -> int:
    """Which of the two streams a row belongs in, as `audit.lua` counts them."""
    return 2 if row.decision in REFUSED else 1


def entry(name: bytes, found: Sequence[bytes], outcome: bytes | None) -> Entry:
    """A row as it is read, with how its call ended."""
    word, _, duration_us = (outcome or b"").partition(b" ")
    how = {"outcome": word.decode(), "duration_us": int(duration_us)} if word else {}
    return Entry(row_id(name), record(row(found), **how))  # type: ignore[arg-type]
