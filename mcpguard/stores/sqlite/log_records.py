"""The records of the call log, as bytes.

A record is:

    position (8 bytes) · first row's id (8) · number of rows (4) · length of the text (4) · filler (12) · text · checksum (4)

The last byte of a record commits it. A reader ignores bytes whose position or checksum is wrong: a process was killed while it
wrote them, or they are left from an earlier round of the ring.

One checksum checks many records, because each is the checksum of all bytes before it (Adler-32, RFC 1950, section 9), as in
SQLite's write-ahead log.
"""

import struct
import zlib
from collections.abc import Iterable

from mcpguard.errors import StoreUnavailable
from mcpguard.light_typing import Final, NamedTuple

HEAD: Final = struct.Struct("<qqII12s")
CHECKSUM_BYTES: Final = 4

_FILLER: Final = bytes(8) + b"\xff" * 4
"""What a head has where readers of an earlier preview expect a summary of the text. It tells them to read the text."""

ROW: Final = "+"
"""The beginning of a line of the text that is an audit row."""

_LATER_ROW: Final = f"\n{ROW}"

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


def rows_in(text: str) -> int:
    """How many audit rows a record has."""
    return text.count(_LATER_ROW) + text.startswith(ROW)


def pack(at: Position, texts: Iterable[str]) -> tuple[bytes, Position]:
    """Records as the log has them if they follow a position, and the position after them.

    Args:
        at: The position.
        texts: Each record's text, as `log_lines` writes it.

    Raises:
        StoreUnavailable: A text is longer than `MAX_TEXT_BYTES`, the most that a reader can read.
    """
    begin, row, checksum = at
    data, end = bytearray(), begin
    for text in texts:
        body, rows = text.encode(), rows_in(text)
        if len(body) > MAX_TEXT_BYTES:
            raise StoreUnavailable(f"the call log takes no record of {len(body)} bytes")
        body = HEAD.pack(end, row, rows, len(body), _FILLER) + body
        checksum = zlib.adler32(checksum + body, int.from_bytes(checksum, "little")).to_bytes(CHECKSUM_BYTES, "little")
        data += body + checksum
        end = begin + len(data)
        row += rows
    return bytes(data), tuple.__new__(Position, (end, row, checksum))  # half the time of `Position(…)`


def texts(data: bytes, at: Position) -> list[tuple[str, Position]]:
    """The text of each complete record, and the position after it.

    Args:
        data: What the log has from the checksum before a position on.
        at: The position.
    """
    found = []  # the stop of each text, its length, and the id of the next row
    head, (end, row, _) = CHECKSUM_BYTES, at
    begin = end - head  # the position at which data begins
    read_head, head_bytes, last_head, last_stop = HEAD.unpack_from, HEAD.size, len(data) - HEAD.size, len(data) - CHECKSUM_BYTES
    while head <= last_head:
        position, first_row, rows, length, _ = read_head(data, head)
        stop = head + head_bytes + length
        if position != begin + head or first_row != row or stop > last_stop:
            break
        row += rows
        found.append((stop, length, row))
        head = stop + CHECKSUM_BYTES
    while found and _checksum(data[: found[-1][0]]) != data[found[-1][0] : found[-1][0] + CHECKSUM_BYTES]:
        found.pop()  # it is not whole, or one before it
    new = tuple.__new__
    return [
        (data[stop - length : stop].decode(), new(Position, (end + stop, row, data[stop : stop + CHECKSUM_BYTES])))
        for stop, length, row in found
    ]


def first_length(data: bytes, at: Position) -> int:
    """The length of the first record and of the checksum before it, by its head; 0 if there is no head of a record.

    Args:
        data: See `texts`.
        at: See `texts`.
    """
    if len(data) < CHECKSUM_BYTES + HEAD.size:
        return 0
    end, _, _, length, _ = HEAD.unpack_from(data, CHECKSUM_BYTES)
    return 2 * CHECKSUM_BYTES + HEAD.size + length if end == at.end and length <= MAX_TEXT_BYTES else 0


def _checksum(data: bytes) -> bytes:
    """The checksum that follows some data, which begin with the checksum before them."""
    return zlib.adler32(data, int.from_bytes(data[:CHECKSUM_BYTES], "little")).to_bytes(CHECKSUM_BYTES, "little")
