"""The layout of a namespace on the server: its keys, and the form of audit rows and counters.

Rows are in two streams, one of them for refusals, and outcomes in a hash. `values.lua` describes the values of counters.
"""

import struct
from collections.abc import Iterable, Sequence
from urllib.parse import quote

from mcpguard.light_typing import Any, Final, TypeVar
from mcpguard.limiter.plan import Counter
from mcpguard.limiter.sliding import EMPTY, State
from mcpguard.session.audit import Outcome, Row, cut_id, is_whole
from mcpguard.session.verdict import REFUSED, DecisionRequest
from mcpguard.stores.api import StoredRow

SCHEMA: Final = 1
"""The version of this layout. A layout that was released only gets additions."""

BATCH: Final = 500
"""How many counters, calls, rows or outcomes are in one command, so that the server decides calls in between."""

_T = TypeVar("_T")


class RedisKeys:
    """The keys of a namespace. The braces put them into one slot of a cluster.

    Args:
        namespace: The namespace.

    Attributes:
        meta: The schema, and the key of the arguments' hashes.
        labels: The index of counters: their labels by id.
        audit: The keys of `audit.lua`: the two streams, the outcomes, and the size of the streams.
        tended: Exists if upkeep was done lately.
    """

    def __init__(self, namespace: str) -> None:
        self._prefix = "{mcpguard:" + quote(namespace) + "}:"
        self.meta = self._prefix + "meta"
        self.labels = self._prefix + "counters"
        self.audit = tuple([self._prefix + name for name in ("audit", "refused", "outcomes", "size")])
        self.tended = self._prefix + "tended"

    def log(self, counter_id: int) -> str:
        """The key of a counter's log."""
        return f"{self._prefix}counter:{counter_id}"

    def in_flight(self, counter_id: int) -> str:
        """The key of a counter's calls in flight."""
        return f"{self._prefix}in_flight:{counter_id}"

    def counter(self, counter: Counter) -> str:
        """The key of what a counter counts."""
        return self.log(counter.id) if counter.window_us else self.in_flight(counter.id)

    def caps(self, counters: Sequence[Counter]) -> list[str]:
        """The keys of those counters that count calls in flight."""
        return [self.in_flight(counter.id) for counter in counters if not counter.window_us]

    def adopted(self, write_back_id: str, at: int) -> str:
        """The key of a part of a write-back, which exists if the part was counted."""
        return f"{self._prefix}adopted:{write_back_id}:{at}"

    def note(self, key: str) -> str:
        """The key of a hook's note."""
        return f"{self._prefix}note:{key}"


_LINES: Final = ("time_us", "request_id", "args_hash", "trace_id", "context", "decision", "reported", "detail")
_CALL_LINES: Final = 5
_NUMBERS: Final = ("seq", "counted", "remaining", "retry_after_ms", "repeats")
_PACKED_NUMBERS: Final = struct.Struct("<5q")
"""A row is two fields of a stream entry: `call` has `_LINES` up to the context, a line each. `row` has the other lines, then
`_NUMBERS` packed, with -1 for None.

`charge.lua` writes the same form. `call` is known before a call is decided, so the script passes it on as it is. Numbers as
text would cost the server more than the rest of its work for a row.
"""


def beginning(request: DecisionRequest, time_us: int) -> bytes:
    """The field `call` of a request's row."""
    request_id = cut_id(request.request_id)
    args_hash = request.args_hash.hex() if request.args_hash else ""
    return f"{time_us}\n{request_id}\n{args_hash}\n{request.trace_id or ''}\n{request.context}\n".encode()


def packed(row: Row) -> tuple[bytes, bytes]:
    """The fields of a row."""
    lines = [_line(getattr(row, name)) + "\n" for name in _LINES]
    numbers = [-1 if (value := getattr(row, name)) is None else value for name in _NUMBERS]
    return "".join(lines[:_CALL_LINES]).encode(), "".join(lines[_CALL_LINES:]).encode() + _PACKED_NUMBERS.pack(*numbers)


def _line(value: object) -> str:
    return "" if value is None else value.hex() if isinstance(value, bytes) else str(value)


def row(fields: Sequence[bytes]) -> Row:
    """The row of a stream entry. Fields that a later version of the program added are ignored."""
    named = dict(zip(fields[::2], fields[1::2], strict=True))
    whole = named.get(b"call", b"") + named[b"row"]
    *lines, numbers = whole.split(b"\n", len(_LINES))
    values: dict[str, Any] = {name: line.decode() or None for name, line in zip(_LINES, lines, strict=True)}
    values |= {
        name: None if value < 0 else value for name, value in zip(_NUMBERS, _PACKED_NUMBERS.unpack(numbers), strict=True)
    }
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


def batches(items: Sequence[_T]) -> list[Sequence[_T]]:
    """The items, at most `BATCH` at a time."""
    return [items[at : at + BATCH] for at in range(0, len(items), BATCH)]


_HEAD: Final = struct.Struct("<qqIq")
_ENTRY: Final = struct.Struct("<qI")


def calls(members: Iterable[bytes] | None) -> State:
    """The calls in flight in a counter, from the members of its set, oldest first."""
    return tuple(sorted(map(call_id, members or ())))


def newest_us(value: bytes) -> int:
    """The time of the newest entry in a counter's value."""
    newest: int = _HEAD.unpack_from(value)[1]
    return newest


def log(value: bytes | None) -> State:
    """The log in a counter's value; None is the value of a counter that does not exist."""
    if value is None:
        return EMPTY
    opened_us, newest_us, cost, _ = _HEAD.unpack_from(value)
    closed = [part for entry in _ENTRY.iter_unpack(value[_HEAD.size :]) for part in entry]
    return (opened_us, *closed, newest_us, cost)
