"""The call log: a file that every wrapper appends its decisions to, and that no call waits for.

SQLite's locks, checkpoints and disk accesses are shared with whoever reads or tidies the database. A call cannot afford that.
So a call takes part in this file alone, under one short lock: read what others appended, decide, append. The database
follows: upkeep moves records into it, together with the position up to which it has them, in one transaction.

The file is a ring of fixed size that is written once when it is made, so that a full disk does not stop a call. Positions count
the bytes ever appended; a position's place in the file is its remainder by the ring's size. One record is:

    position (8 bytes) · first row's number (8) · number of rows (4) · length of the text (4) · text · CRC-32 (4)

A record that a process left unfinished when it was killed, or that a former round of the ring left, does not have its own
position in it or does not have the right checksum: it is not there. So the write that completes a record is the commit.
The file is read and written with `pread` and `pwrite`: one that was cut is an error, where a mapped one would kill us (SIGBUS).
"""

import json
import os
import struct
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from mcpguard.errors import StoreDamaged, StoreUnavailable
from mcpguard.files import open_private
from mcpguard.stores.locks import QueueLock

FORMAT: Final = 1

RING_BYTES: Final = 8 * 1024 * 1024
"""Room for some 15,000 single calls, or 60,000 that come in batches: seconds of a storm, and hours of an agent's usual work."""

_HEADER_BYTES: Final = 4096
_DRAINED_AT: Final = 2048
_DRAINED: Final = struct.Struct("<qq4sI")
_HEAD: Final = struct.Struct("<qqII")
_CHECKSUM_BYTES: Final = 4
_CHUNK_BYTES: Final = 64 * 1024

MAX_TEXT_BYTES: Final = RING_BYTES // 4
"""The longest text of one record."""

if sys.platform == "win32":  # pragma: no cover - not run in CI
    import threading

    _seeking = threading.Lock()

    def _pread(fd: int, count: int, at: int) -> bytes:
        with _seeking:
            os.lseek(fd, at, os.SEEK_SET)
            return os.read(fd, count)

    def _pwrite(fd: int, data: bytes, at: int) -> int:
        with _seeking:
            os.lseek(fd, at, os.SEEK_SET)
            return os.write(fd, data)

    _sync = os.fsync

else:
    _pread = os.pread
    _pwrite = os.pwrite
    if sys.platform == "darwin":
        _sync = os.fsync
    else:
        _sync = os.fdatasync


class Position(NamedTuple):
    """How far somebody has read the log.

    Attributes:
        end: The position after the last record.
        row: The number of the next audit row.
        checksum: The last record's, by which a reader knows that the log is still the one that it has read.
    """

    end: int
    row: int
    checksum: bytes


START: Final = Position(_CHECKSUM_BYTES, 1, bytes(_CHECKSUM_BYTES))
"""The beginning of an empty log: after the zeros that stand for the checksum of no record."""


class Lost(Exception):
    """The log does not continue where somebody stopped to read: it was written over, or is another one."""


class LogFull(StoreUnavailable):
    """The database does not follow the log, which has no more room."""


class CallLog:
    """An open call log.

    Args:
        path: The file.
        writable: Whether it can be appended to; a reader needs no right to write.

    Attributes:
        header: What was told when it was made: the store's key, and its time base.

    Raises:
        OSError: It cannot be opened.
        StoreUnavailable: It is not a call log, or was cut.
    """

    def __init__(self, path: Path, *, writable: bool = True) -> None:
        self.path = path
        self._name = str(path)
        flags = (os.O_RDWR if writable else os.O_RDONLY) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        self.fd = os.open(path, flags)
        try:
            self._identity = _identity(os.fstat(self.fd))
            self.header = self._read_header()
        except BaseException:
            os.close(self.fd)
            raise
        self._room_until = 0

    def _read_header(self) -> Mapping[str, object]:
        try:
            header = json.loads(_pread(self.fd, _DRAINED_AT, 0).rstrip(b"\0"))
        except ValueError:
            header = None
        if not isinstance(header, dict) or "key" not in header:
            raise damaged(self.path, "it does not begin like a call log")
        if header.get("format") != FORMAT:
            raise StoreUnavailable(
                f"{self.path} has format {header.get('format')}, and this mcpguard knows format {FORMAT}",
                "use the mcpguard that wrote it, or another file",
            )
        if self._identity[2] != _HEADER_BYTES + RING_BYTES:
            raise damaged(self.path, "it does not have its size")
        return header

    def write_header(self, header: Mapping[str, object]) -> None:
        """Replace what the log tells of itself. The caller has the store's lock."""
        _pwrite(self.fd, _header(header), 0)
        self.header = header

    @property
    def key(self) -> bytes:
        """The store's key."""
        return bytes.fromhex(str(self.header["key"]))

    def turn(self) -> QueueLock:
        """The lock on the log, on an open file of its own: where locking moves a file's position, reading must not meet it.

        Raises:
            OSError, StoreUnavailable: The path names this file no more.
        """
        self.check()
        fd = os.open(self.path, os.O_RDWR | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))
        if _identity(os.fstat(fd)) != self._identity:
            os.close(fd)
            self.check()
        return QueueLock(fd)

    def check(self) -> None:
        """Look whether the path still names this file, whole.

        Raises:
            StoreUnavailable: It does not.
        """
        try:
            found = _identity(os.stat(self._name))  # noqa: PTH116 - on every call's path
        except FileNotFoundError:
            found = (0, 0, 0)
        if found != self._identity:
            if found[:2] == self._identity[:2]:
                raise damaged(self.path, "it was cut")
            raise StoreUnavailable(f"{self.path} was removed or replaced", "calls that it held are not counted any more")

    def has_more(self, at: Position) -> bool:
        """Whether there may be a record after a position.

        Raises:
            Lost: The log is not the one that was read up to there.
        """
        found = self._read(at.end - _CHECKSUM_BYTES, _CHECKSUM_BYTES + 8)
        if found[:_CHECKSUM_BYTES] != at.checksum:
            raise Lost
        return found[_CHECKSUM_BYTES:] == at.end.to_bytes(8, "little")

    def records(self, at: Position) -> Iterator[tuple[str, Position]]:
        """The records after a position, each with the position after it. Reads without a lock.

        Raises:
            Lost: See `has_more`.
        """
        wanted = _CHUNK_BYTES
        while self.has_more(at):
            data = self._read(at.end, wanted)
            offset = 0
            while record := _record_at(data, offset, at):
                text, at, offset = record
                yield text, at
            if not offset and wanted > _CHUNK_BYTES:
                return
            wanted = _CHUNK_BYTES if offset else _HEAD.size + MAX_TEXT_BYTES + _CHECKSUM_BYTES

    def end(self, at: Position) -> Position:
        """The end of the log, sought from a position on."""
        for _, after in self.records(at):
            at = after
        return at

    def append(self, at: Position, text: str, rows: int, *, durable: bool = False) -> Position:
        """Append one record: see `append_all`."""
        return self.append_all(at, [(text, rows)], durable=durable)

    def append_all(self, at: Position, records: Iterable[tuple[str, int]], *, durable: bool = False) -> Position:
        """Append records at the end of the log, all or none; the caller has the lock and has read all that is there.

        Args:
            at: The end.
            records: Each record's lines, and how many of them are audit rows.
            durable: Whether to force them to the disk.

        Raises:
            LogFull: There is no room, because the database does not follow.
            StoreUnavailable: A record is longer than a reader looks for. It must not be written: others would stop before it.
            OSError: They cannot be written. Then nothing was appended.
        """
        data = bytearray()
        after = at
        for text, rows in records:
            body = text.encode()
            if len(body) > MAX_TEXT_BYTES:
                raise StoreUnavailable(f"{self.path} takes no record of {len(body)} bytes")
            body = _HEAD.pack(after.end, after.row, rows, len(body)) + body
            checksum = zlib.crc32(body).to_bytes(_CHECKSUM_BYTES, "little")
            after = Position(after.end + len(body) + _CHECKSUM_BYTES, after.row + rows, checksum)
            data += body + checksum
        if after.end > self._room_until:
            self._room_until = self.drained().end - _CHECKSUM_BYTES + RING_BYTES
            if after.end > self._room_until:
                raise LogFull(f"{self.path} is full", "the database beside it takes nothing: is the disk full?")
        self._write(at.end, bytes(data))
        if durable:
            try:
                _sync(self.fd)
            except OSError:
                self._write(at.end, bytes(_HEAD.size))  # it may be lost in a power cut, so it must not count now
                raise
        return after

    def drained(self) -> Position:
        """The position up to which the database has everything. What lies before may be written over."""
        for _ in range(100):
            data = _pread(self.fd, _DRAINED.size, _DRAINED_AT)
            if len(data) == _DRAINED.size:
                end, row, checksum, check = _DRAINED.unpack(data)
                if check == zlib.crc32(data[:-4]):
                    return Position(end, row, checksum)
        raise damaged(self.path, "its position is not readable")

    def set_drained(self, at: Position) -> None:
        """Let what lies before a position be written over. The caller has the store's lock."""
        body = _DRAINED.pack(at.end, at.row, at.checksum, 0)[:-4]
        _pwrite(self.fd, body + zlib.crc32(body).to_bytes(4, "little"), _DRAINED_AT)

    def begin_at(self, at: Position) -> None:
        """Let the log be empty and go on at a position. The caller has the lock, and nobody else has the log open."""
        self._write(at.end - _CHECKSUM_BYTES, at.checksum + bytes(_HEAD.size))
        self.set_drained(at)

    def _read(self, at: int, count: int) -> bytes:
        place = at % RING_BYTES
        data = _pread(self.fd, min(count, RING_BYTES - place), _HEADER_BYTES + place)
        if len(data) < count and place + len(data) == RING_BYTES:
            data += _pread(self.fd, count - len(data), _HEADER_BYTES)
        return data

    def _write(self, at: int, data: bytes) -> None:
        place = at % RING_BYTES
        first = data[: RING_BYTES - place]
        _write_all(self.fd, first, _HEADER_BYTES + place)
        if len(first) < len(data):
            _write_all(self.fd, data[len(first) :], _HEADER_BYTES)

    def close(self) -> None:
        """Close the file."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _record_at(data: bytes, offset: int, at: Position) -> tuple[str, Position, int] | None:
    """The whole record that begins at an offset, the position after it, and the offset there; None if there is none."""
    begin = offset + _HEAD.size
    if begin > len(data):
        return None
    end, row, rows, length = _HEAD.unpack_from(data, offset)
    last = begin + length + _CHECKSUM_BYTES
    if end != at.end or row != at.row or last > len(data):
        return None
    checksum = data[begin + length : last]
    if zlib.crc32(data[offset : begin + length]).to_bytes(_CHECKSUM_BYTES, "little") != checksum:
        return None
    return data[begin : begin + length].decode(), Position(end + last - offset, row + rows, checksum), last


def create(path: Path, header: Mapping[str, object], at: Position = START) -> None:
    """Make an empty log; the caller has the store's lock. It appears under its name when it is whole.

    Raises:
        OSError: It cannot be made.
    """
    new = path.with_name(path.name + "-new")
    new.unlink(missing_ok=True)
    fd = open_private(new)
    try:
        _write_all(fd, _header(header), 0)
        for place in range(_HEADER_BYTES, _HEADER_BYTES + RING_BYTES, _CHUNK_BYTES):
            _write_all(fd, bytes(_CHUNK_BYTES), place)  # not a hole: a write into it must not need room on the disk
    finally:
        os.close(fd)
    log = CallLog(new)
    log.begin_at(at)
    _sync(log.fd)  # a power cut soon afterwards must not leave a file of zeros in its place
    log.close()
    new.rename(path)


def log_path(database: Path) -> Path:
    """Where the call log of a database lies."""
    return beside(database, "-calls")


def beside(database: Path, suffix: str) -> Path:
    """A file beside a database: beside the file itself, so that all who use it by whatever link share that, too."""
    real = Path(os.path.realpath(database))
    return real.with_name(real.name + suffix)


def damaged(path: Path, how: str) -> StoreDamaged:
    """What the user is told of a log that cannot be trusted."""
    return StoreDamaged(f"{path} is damaged: {how}", "move it away: a new one is made; calls that only it held are lost")


def _header(header: Mapping[str, object]) -> bytes:
    return json.dumps(header).encode().ljust(_DRAINED_AT, b"\0")


def _identity(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_dev, found.st_ino, found.st_size


def _write_all(fd: int, data: bytes, at: int) -> None:
    written = 0
    while written < len(data):
        written += _pwrite(fd, data[written:], at + written)
