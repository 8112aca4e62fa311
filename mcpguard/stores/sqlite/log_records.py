"""The records of the call log, as bytes.

A record is:

    position (8 bytes) · first row's id (8) · number of rows (4) · length of the text (4) · charge (12) · text · checksum (4)

The last byte of a record commits it. A reader ignores bytes whose position or checksum is wrong: a process was killed while it
wrote them, or they are left from an earlier round of the ring.

Two things make reading cheap. The head has the charge, see `Charge`: it is all that a reader needs of most records. And one
checksum checks many records, because each is the checksum of all bytes before it (Adler-32, RFC 1950, section 9), as in
SQLite's write-ahead log.
"""

import struct
import zlib
from collections.abc import Iterable, Iterator

from mcpguard.errors import StoreUnavailable
from mcpguard.light_typing import Final, NamedTuple

HEAD: Final = struct.Struct("<qqIIqI")
CHECKSUM_BYTES: Final = 4

MAX_TEXT_BYTES: Final = 2 * 1024 * 1024
"""The longest text of one record: a quarter of the ring."""


class Position(NamedTuple):
    """How far a process has read the log.

    Attributes:
        end: The position after the last record that it has read.
        row: The id of the next audit row.
        checksum: The checksum that ends that record. If it is still there, the log continues where the process stopped reading.
    """

    end: int
    row: int
    checksum: bytes


START: Final = Position(CHECKSUM_BYTES, 1, bytes(CHECKSUM_BYTES))
"""The start of an empty log, after four zero bytes in place of a checksum."""


Charge = tuple[int, int]
"""What a record changes: the store time at which counters were charged, and the length of the end of its text that names them.
`NO_CHARGE` if it changes nothing, `IN_TEXT` if only its text tells."""

_BY_TEXT: Final = (1 << 32) - 1
NO_CHARGE: Final[Charge] = (0, 0)
IN_TEXT: Final[Charge] = (0, _BY_TEXT)

Charges = tuple[str, list[int]]
"""Charges of the same counters, one after another: the text that names the counters, and the store time of each charge."""

Change = Charges | str
"""What consecutive records change. Of a record whose head does not tell, all of its text."""


def pack(at: Position, records: Iterable[tuple[str, int, Charge]]) -> tuple[bytes, Position]:
    """Records as the log has them if they follow a position, and the position after them.

    Args:
        at: The position.
        records: Each record's text, how many audit rows it has, and what it changes.

    Raises:
        StoreUnavailable: A text is longer than `MAX_TEXT_BYTES`, the most that a reader can read.
    """
    begin, row, checksum = at
    data, end = b"", begin
    for text, rows, (time_us, charge_bytes) in records:
        body = text.encode()
        if len(body) > MAX_TEXT_BYTES:
            raise StoreUnavailable(f"the call log takes no record of {len(body)} bytes")
        body = HEAD.pack(end, row, rows, len(body), time_us, charge_bytes) + body
        checksum = zlib.adler32(checksum + body, int.from_bytes(checksum, "little")).to_bytes(CHECKSUM_BYTES, "little")
        data += body + checksum
        end = begin + len(data)
        row += rows
    return data, tuple.__new__(Position, (end, row, checksum))  # half the time of `Position(…)`


def texts(data: bytes, at: Position) -> Iterator[tuple[str, Position]]:
    """The text of each complete record, and the position after it.

    Args:
        data: What the log has from the checksum before a position on.
        at: The position.
    """
    for stop, length, row, _, _ in _records(data, at):
        yield data[stop - length : stop].decode(), Position(at.end + stop, row, data[stop : stop + CHECKSUM_BYTES])


def changes(data: bytes, at: Position) -> tuple[list[Change], Position, bool]:
    """What the complete records change, the position after them, and whether there may be more of them in the log.

    Args:
        data: See `texts`.
        at: See `texts`.
    """
    found = _records(data, at)
    if not found:
        return [], at, False
    changed: list[Change] = []
    counters, counters_bytes = b"", -1  # of the newest change, if it is `Charges`
    times: list[int] = []
    for stop, length, _, time_us, charge_bytes in found:
        if charge_bytes == counters_bytes and data.startswith(counters, stop - charge_bytes):
            times.append(time_us)
        elif charge_bytes == _BY_TEXT:
            changed.append(data[stop - length : stop].decode())
            counters_bytes = -1
        elif charge_bytes:
            counters, counters_bytes, times = data[stop - charge_bytes : stop], charge_bytes, [time_us]
            changed.append((counters.decode(), times))
    stop, _, row, _, _ = found[-1]
    end, head = at.end + stop, stop + CHECKSUM_BYTES
    next_end = data[head : head + 8]
    after = tuple.__new__(Position, (end, row, data[stop:head]))
    return changed, after, len(next_end) < 8 or next_end == end.to_bytes(8, "little")


def first_length(data: bytes, at: Position) -> int:
    """The length of the first record and of the checksum before it, by its head; 0 if there is no head of a record.

    Args:
        data: See `texts`.
        at: See `texts`.
    """
    if len(data) < CHECKSUM_BYTES + HEAD.size:
        return 0
    end, _, _, length, _, _ = HEAD.unpack_from(data, CHECKSUM_BYTES)
    return 2 * CHECKSUM_BYTES + HEAD.size + length if end == at.end and length <= MAX_TEXT_BYTES else 0


_Found = tuple[int, int, int, int, int]
"""A record in data: where its text stops, the length of its text, the id of the next row, its charge."""


def _records(data: bytes, at: Position) -> list[_Found]:
    """The complete records in data that begins with the checksum before a position."""
    found = []
    head, (end, row, _) = CHECKSUM_BYTES, at
    begin = end - head  # the position at which data begins
    unpack, head_bytes, last_head, last_stop = HEAD.unpack_from, HEAD.size, len(data) - HEAD.size, len(data) - CHECKSUM_BYTES
    while head <= last_head:
        position, first_row, rows, length, time_us, charge_bytes = unpack(data, head)
        stop = head + head_bytes + length
        if position != begin + head or first_row != row or stop > last_stop:
            break
        row += rows
        found.append((stop, length, row, time_us, charge_bytes))
        head = stop + CHECKSUM_BYTES
    while found and _checksum(data[: found[-1][0]]) != data[found[-1][0] : found[-1][0] + CHECKSUM_BYTES]:
        found.pop()  # it is not whole, or one before it
    return found


def _checksum(data: bytes) -> bytes:
    """The checksum that follows some data, which begin with the checksum before them."""
    return zlib.adler32(data, int.from_bytes(data[:CHECKSUM_BYTES], "little")).to_bytes(CHECKSUM_BYTES, "little")
