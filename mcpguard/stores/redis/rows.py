"""Converts audit rows to and from their form on the server: two streams, one of them for refusals, and a hash of outcomes."""

import struct
from collections.abc import Sequence

from mcpguard.light_typing import Any, Final
from mcpguard.session.audit import Outcome, Row, cut_id, is_whole
from mcpguard.session.verdict import REFUSED, DecisionRequest
from mcpguard.stores.api import StoredRow

_LINES: Final = ("time_us", "request_id", "args_hash", "trace_id", "context", "decision", "reported", "detail")
_CALL_LINES: Final = 5
_NUMBERS: Final = ("seq", "counted", "remaining", "retry_after_ms", "repeats")
_PACKED: Final = struct.Struct("<5q")
"""A row is two fields of a stream entry: `call` has `_LINES` up to the context, a line each. `row` has the other lines, then
`_NUMBERS` packed, with -1 for None.

`charge.lua` writes the same form. `call` is known before a call is decided, so the script passes it on as it is. Numbers as
text would cost the server more than the rest of its work for a row.
"""


MOST_ROWS: Final = 500
"""How many rows of a stream are read at once."""

_LONG_BYTES: Final = 1 << 20
"""A reply of this length arrives in time."""


def next_count(count: int, found: Sequence[tuple[bytes, Sequence[bytes]]]) -> int:
    """How many rows of a stream to read next: more and more, unless the rows are so long that the reply would be, too.

    Args:
        count: How many were read last.
        found: The rows that came, with their stream ids. There is at least one.
    """
    size = sum([len(part) for _, fields in found for part in fields])
    return max(1, min(8 * count, MOST_ROWS, _LONG_BYTES * count // size))


def beginning(request: DecisionRequest, time_us: int) -> bytes:
    """The field `call` of a request's row."""
    request_id = cut_id(request.request_id)
    args_hash = request.args_hash.hex() if request.args_hash else ""
    return f"{time_us}\n{request_id}\n{args_hash}\n{request.trace_id or ''}\n{request.context}\n".encode()


def packed(row: Row) -> tuple[bytes, bytes]:
    """The fields of a row."""
    lines = [_line(getattr(row, name)) + "\n" for name in _LINES]
    numbers = [-1 if (value := getattr(row, name)) is None else value for name in _NUMBERS]
    return "".join(lines[:_CALL_LINES]).encode(), "".join(lines[_CALL_LINES:]).encode() + _PACKED.pack(*numbers)


def _line(value: object) -> str:
    return "" if value is None else value.hex() if isinstance(value, bytes) else str(value)


def row(fields: Sequence[bytes]) -> Row:
    """The row of a stream entry. Fields that a later version of the program added are ignored."""
    named = dict(zip(fields[::2], fields[1::2], strict=True))
    whole = named.get(b"call", b"") + named[b"row"]
    *lines, numbers = whole.split(b"\n", len(_LINES))
    values: dict[str, Any] = {name: line.decode() or None for name, line in zip(_LINES, lines, strict=True)}
    values |= {name: None if value < 0 else value for name, value in zip(_NUMBERS, _PACKED.unpack(numbers), strict=True)}
    values["time_us"] = int(values["time_us"])
    values["args_hash"] = bytes.fromhex(values["args_hash"]) if values["args_hash"] else None
    return Row(**values)


def row_id(stream_id: bytes) -> int:
    """The row id: the stream id, which is a time in ms and a number, as one integer.

    >>> stream_id(row_id(b"1767225600000-3"))
    '1767225600000-3'
    """
    ms, _, number = stream_id.partition(b"-")
    return int(ms) << 64 | int(number)


def stream_id(row_id: int) -> str:
    """The stream id of a row id."""
    return f"{row_id >> 64}-{row_id & (1 << 64) - 1}"


def member(call_id: int) -> str:
    """How a counter of calls in flight names a call: by the stream id of its row, or by its id from `Recoverable.give_places`.

    >>> member(-5), call_id(b"-5"), call_id(b"1767225600000-3") == row_id(b"1767225600000-3")
    ('-5', -5, True)
    """
    return str(call_id) if call_id < 0 else stream_id(call_id)


def call_id(member: bytes) -> int:
    """The id of a call in flight; see `member`."""
    return int(member) if member.startswith(b"-") else row_id(member)


def audit_keys(prefix: str) -> tuple[str, ...]:
    """The keys of `audit.lua` in a namespace: the two streams, the outcomes, and the size of the streams."""
    return tuple([prefix + name for name in ("audit", "refused", "outcomes", "size")])


def first_id(time_us: int) -> int:
    """The smallest row id of a row written at this time, by the server's clock."""
    return time_us // 1000 << 64


def stream(decision: str) -> int:
    """The stream of the rows with a decision, as `audit.lua` numbers them: 1, or 2 for refusals."""
    return 2 if decision in REFUSED else 1


def stored(stream_id: bytes, fields: Sequence[bytes], outcome: bytes | None) -> StoredRow | None:
    """The row of a stream entry, joined with its outcome; None if it is damaged."""
    try:
        found = row(fields)
        known = None if outcome is None else parse_outcome(row_id(stream_id), outcome)
    except (ValueError, KeyError, struct.error):  # another program has written to the stream, or changed the outcome
        return None
    word, duration_us = (None, None) if known is None else (known.outcome, known.duration_us)
    return StoredRow(row_id(stream_id), found, word, duration_us) if is_whole(found, word, duration_us) else None


def parse_outcome(row_id: int, value: bytes) -> Outcome:
    """The outcome in a field of the hash of outcomes."""
    word, _, duration_us = value.partition(b" ")
    return Outcome(row_id, word.decode(), int(duration_us))
