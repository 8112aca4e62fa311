"""The call log: the file that all processes append their decisions to. It is all that a call reads and writes.

A call must not wait for SQLite: whoever reads, prunes or vacuums the database shares its locks and its disk. So a call uses
this file alone, under one short lock: it reads what others appended, decides, and appends. Upkeep moves the records into the
database later, in one transaction with the position up to which the database has them.

The file is a ring buffer of fixed size. All of it is written once when the file is created, so a full disk stops no call.
A position is the number of bytes ever appended; modulo the size of the ring it is an offset in the file. A record is:

    position (8 bytes) · first row's id (8) · number of rows (4) · length of the text (4) · filler (12) · text · checksum (4)

The last byte of a record commits it. A reader ignores bytes whose position or checksum is wrong: a process was killed while it
wrote them, or they are left from an earlier round of the ring. Reading must be cheap, because each process reads the records of
all others before it decides. So one checksum checks many records: each is the checksum of all bytes before it (Adler-32, RFC
1950, section 9), as in SQLite's write-ahead log. `log_lines` writes the text.

The file is read with `pread`, not mapped: if somebody truncates it, a read fails, where access to a mapped page would kill the
process (SIGBUS).
"""

import contextlib
import json
import operator
import os
import stat
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

from mcpguard.errors import StoreDamaged, StoreUnavailable
from mcpguard.files import FolderChanges, StrPath, close, force_data, open_private, open_unnoted, pread, pwrite
from mcpguard.identity.client_agents import AgentNote
from mcpguard.light_typing import Final, NamedTuple
from mcpguard.locks import FileLock

HEAD: Final = struct.Struct("<qqII12s")
CHECKSUM_BYTES: Final = 4

_FILLER: Final = bytes(8) + b"\xff" * 4
"""What a head has where readers of an earlier preview expect a summary of the text. It tells them to read the text."""

ROW: Final = "+"
"""The beginning of a line of the text that is an audit row."""

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
        body, rows = text.encode(), f"\n{text}".count(f"\n{ROW}")
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


FORMAT: Final = 4
"""The format of records and header. Only unreleased previews wrote another one. Whoever changes a released format keeps reading
it: opening a store then drains such a log, and replaces it with one of the new format."""

RING_BYTES: Final = 8 * 1024 * 1024
"""The size of a new log's ring. It has room for about 15,000 calls: seconds of a storm, or hours of usual work."""

_HEADER_BYTES: Final = 4096
_DRAINED_AT: Final = 2048
_DRAINED: Final = struct.Struct("<qq4sI")
_identity: Final = operator.itemgetter(stat.ST_DEV, stat.ST_INO, stat.ST_SIZE)
"""What a file's status tells of which file it is, and how long."""

_END_BYTES: Final = CHECKSUM_BYTES + 8
_BLOCK_BYTES: Final = 64 * 1024
_RESERVED_SHARE: Final = 32
"""Calls leave this share of the ring to records that no call may wait for, such as outcomes and the ends of calls."""

_CHUNK_BYTES: Final = 8 * 1024
"""How much is read at once. More would only push other data out of the CPU's caches."""

MOVE_AWAY: Final = "move it away: a new one is made; calls that only it held are lost"


class Lost(StoreDamaged):
    """The log does not continue at a position: the records there were overwritten, or this is another log.

    Args:
        path: The log.
    """

    def __init__(self, path: StrPath) -> None:
        super().__init__(f"{path} is damaged: it does not continue where the database is", MOVE_AWAY)


class LogFull(StoreUnavailable):
    """The log has no room, since the database has not taken its records.

    Args:
        path: The log.
        drained_end: There is room once the database has the log up to this position.
    """

    def __init__(self, path: StrPath, drained_end: int) -> None:
        super().__init__(f"{path} is full", "the database beside it takes nothing: is the disk full?")
        self.drained_end = drained_end


class CallLog:
    """An open call log.

    Args:
        path: The file.
        writable: Whether to open it for appending. A reader needs no write permission.

    Attributes:
        header: The store's key and its time base, and the size of the ring.
        folder: Tells a call whether to `check` again.
        ring_bytes: The size of the ring.
        appended_bytes: How much this object has appended.

    Raises:
        OSError: It cannot be opened.
        StoreUnavailable: It is not a call log, or was truncated.
    """

    def __init__(self, path: StrPath, *, writable: bool = True) -> None:
        self.path = os.fspath(path)
        flags = (os.O_RDWR if writable else os.O_RDONLY) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        self.fd = open_unnoted(path, flags | getattr(os, "O_NONBLOCK", 0))  # to open a pipe might never end
        try:
            if not stat.S_ISREG(os.fstat(self.fd).st_mode):
                raise damaged(self.path, "it is not a file")
            self._identity = _identity(os.fstat(self.fd))
            self.ring_bytes = self._identity[2] - _HEADER_BYTES
            self.header = self._read_header()
            self.folder = FolderChanges(os.path.dirname(path))
        except BaseException:
            os.close(self.fd)
            raise
        self.appended_bytes = 0
        self._room_until = 0

    def _read_header(self) -> Mapping[str, object]:
        try:
            header = json.loads(pread(self.fd, _DRAINED_AT, 0).rstrip(b"\0"))
        except (ValueError, RecursionError):
            header = None
        if not isinstance(header, dict) or "key" not in header:
            raise damaged(self.path, "it does not begin as a call log does")
        if header.get("format") != FORMAT:
            raise StoreUnavailable(
                f"{self.path} has format {header.get('format')}, and this mcpguard knows format {FORMAT}",
                "use the mcpguard that wrote it, or another store",
            )
        if header.get("ring_bytes", RING_BYTES) != self.ring_bytes:
            raise damaged(self.path, "it does not have its size")
        return header

    def write_header(self, header: Mapping[str, object]) -> None:
        """Replace the header. The caller has the store's lock."""
        _write_all(self.fd, _header(header), 0)
        self.header = header

    @property
    def key(self) -> bytes:
        """The store's key."""
        return bytes.fromhex(str(self.header["key"]))

    def turn(self) -> FileLock:
        """The lock on the log. It has a file descriptor of its own, since on Windows locking moves the file's offset.

        Raises:
            OSError, StoreUnavailable: The path no longer names this file.
        """
        self.check()
        fd = os.open(self.path, os.O_RDWR | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))
        if _identity(os.fstat(fd)) != self._identity:
            os.close(fd)
            self.check()
        return FileLock(fd)

    def check(self) -> None:
        """Check that the path still names this file, and that the file has its full size.

        Raises:
            StoreUnavailable: It was removed, replaced or truncated.
        """
        try:
            found = _identity(os.stat(self.path))
        except FileNotFoundError:
            found = (0, 0, 0)
        if found != self._identity:
            if found[:2] == self._identity[:2]:
                raise damaged(self.path, "it was cut")
            raise StoreUnavailable(
                f"{self.path} was removed or replaced", "leave it in place: calls that it held are no longer counted"
            )

    def ends_at(self, at: Position) -> bool:
        """Whether the log ends at a position. If not, it has more there, or not the record that ends there."""
        end, _, checksum = at
        offset = end % self.ring_bytes - CHECKSUM_BYTES
        if not 0 <= offset <= self.ring_bytes - _END_BYTES:
            found = self._read(end - CHECKSUM_BYTES, _END_BYTES)
        else:
            found = pread(self.fd, _END_BYTES, _HEADER_BYTES + offset)
        return found[:CHECKSUM_BYTES] == checksum and found[CHECKSUM_BYTES:] != end.to_bytes(8, "little")

    def _continues(self, at: Position) -> bool:
        """Whether the log has the record that ends at a position."""
        return self._read(at.end - CHECKSUM_BYTES, CHECKSUM_BYTES) == at.checksum

    def resumed(self, at: Position, database: StrPath) -> tuple[Position | None, str]:
        """Where to read on in a log whose database has it up to a position, and what is lost by that, for the store's owner.

        Args:
            at: The database's position: the result, in a whole store.
            database: The database.

        Returns:
            The position, or None if nothing in the log comes after the database; and the message, or an empty text.
        """
        if self._continues(at):
            return at, ""
        drained = self.drained()
        if drained.end > at.end and self._continues(drained):
            return drained, f"{database} is older than its call log: what was counted and audited between them is lost"
        return None, f"{self.path} ends before its database does, as after a power cut: calls that only it held are lost"

    def records(self, at: Position) -> Iterator[tuple[str, Position]]:
        """The text of each record after a position, with the position after it. Reads without a lock.

        Raises:
            Lost: The log does not have the record that ends there.
        """
        while found := self.some(at):
            yield from found
            at = found[-1][1]

    def some(self, at: Position) -> list[tuple[str, Position]]:
        """As `records`, for the next few of them: about 15 single calls. Empty at the end of the log."""
        data = self._read(at.end - CHECKSUM_BYTES, _CHUNK_BYTES)
        if data[:CHECKSUM_BYTES] != at.checksum:
            raise Lost(self.path)
        if (length := first_length(data, at)) > len(data):
            data = self._read(at.end - CHECKSUM_BYTES, length)
        return texts(data, at)

    def end(self, at: Position) -> Position:
        """The end of the log, found by reading on from a position."""
        for _, after in self.records(at):
            at = after
        return at

    def append(self, at: Position, data: bytes, *, uses_reserve: bool = False) -> None:
        """Append all packed records or none. The caller has the lock.

        Args:
            at: The end of the log, for which they were packed.
            data: The records.
            uses_reserve: Whether they may take the room that calls leave.

        Raises:
            LogFull: There is no room, since the database has not taken enough records.
            OSError: The write failed, and nothing was appended.
        """
        begin = at[0]
        end = begin + len(data)
        if end > self._room_until:
            reserve = self.ring_bytes // _RESERVED_SHARE
            drained_end = self.drained().end
            self._room_until = drained_end - CHECKSUM_BYTES + self.ring_bytes - reserve
            lacking_bytes = end - self._room_until - (reserve if uses_reserve else 0)
            if lacking_bytes > 0:
                raise LogFull(self.path, drained_end + lacking_bytes)
        offset = begin % self.ring_bytes
        try:
            if len(data) > self.ring_bytes - offset or pwrite(self.fd, data, _HEADER_BYTES + offset) < len(data):
                self._write(begin, data)  # in two places, or again because the file took only a part
        except OSError:  # undo all of it: a record may be whole, and a process that has read it must notice
            with contextlib.suppress(OSError):
                self._write(begin, bytes(len(data)))
            raise
        self.appended_bytes += len(data)

    def force(self) -> None:
        """Force to the disk what was appended. No lock is needed, so that many processes can wait for the disk at once.

        Raises:
            OSError: The disk did not take it. It stays in the log, since others may have read it and gone on.
        """
        force_data(self.fd)

    def drained(self) -> Position:
        """The position up to which the database has all records. Those may be overwritten."""
        for _ in range(100):
            data = pread(self.fd, _DRAINED.size, _DRAINED_AT)
            if len(data) == _DRAINED.size:
                end, row, checksum, check = _DRAINED.unpack(data)
                if check == zlib.crc32(data[:-4]):
                    return Position(end, row, checksum)
        raise damaged(self.path, "its position is not readable")

    def set_drained(self, at: Position) -> None:
        """Allow the records before a position to be overwritten. The caller has the store's lock."""
        body = _DRAINED.pack(at.end, at.row, at.checksum, 0)[:-4]
        _write_all(self.fd, body + zlib.crc32(body).to_bytes(4, "little"), _DRAINED_AT)

    def begin_at(self, at: Position) -> None:
        """Empty the log and let it continue at a position. The caller has the lock; no other process has the log open."""
        self._write(at.end - CHECKSUM_BYTES, at.checksum + bytes(HEAD.size))
        self.set_drained(at)

    def _read(self, at: int, count: int) -> bytes:
        offset = at % self.ring_bytes
        beyond = offset + count - self.ring_bytes
        if beyond <= 0:
            return pread(self.fd, count, _HEADER_BYTES + offset)
        return pread(self.fd, count - beyond, _HEADER_BYTES + offset) + pread(self.fd, beyond, _HEADER_BYTES)

    def _write(self, at: int, data: bytes) -> None:
        offset = at % self.ring_bytes
        before_wrap = self.ring_bytes - offset
        _write_all(self.fd, data[:before_wrap], _HEADER_BYTES + offset)
        if len(data) > before_wrap:
            _write_all(self.fd, data[before_wrap:], _HEADER_BYTES)

    def close(self) -> None:
        """Close the file."""
        if self.fd >= 0:
            close(self.fd)
            self.fd = -1
            self.folder.close()


def create(path: StrPath, key: bytes, at: Position = START, *, ring_bytes: int = RING_BYTES) -> None:
    """Create an empty log. It gets its name when it is complete. The caller has the store's lock.

    Args:
        path: The file.
        key: The store's key.
        at: Where the log begins.
        ring_bytes: The size of its ring, a multiple of 64 KiB. The header tells it to whoever opens the log.

    Raises:
        OSError: It cannot be made.
    """
    new = f"{path}-new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new)
    fd = open_private(new)
    try:
        _write_all(fd, _header({"format": FORMAT, "key": key.hex(), "ring_bytes": ring_bytes}), 0)
        for offset in range(_HEADER_BYTES, _HEADER_BYTES + ring_bytes, _BLOCK_BYTES):
            _write_all(fd, bytes(_BLOCK_BYTES), offset)  # allocates the blocks, so that appending needs no disk space
    finally:
        os.close(fd)
    log = CallLog(new)
    log.begin_at(at)
    force_data(log.fd)  # before the rename: after a power cut the name must not lead to a file of zeros
    log.close()
    os.rename(new, path)


def log_path(database: StrPath) -> str:
    """The path of a database's call log."""
    return beside(database, "-calls")


def beside(database: StrPath, suffix: str) -> str:
    """The path of a file beside a database. Links are resolved, so that all processes use one file whatever link they name."""
    return os.path.realpath(database) + suffix


def damaged(path: StrPath, how: str) -> StoreDamaged:
    """The error for a damaged log."""
    return StoreDamaged(f"{path} is damaged: {how}", MOVE_AWAY)


def removed(path: StrPath) -> str:
    """The message that a database's log is missing."""
    return f"{path} was removed: calls that only it held are no longer counted, and have no audit rows"


def _header(header: Mapping[str, object]) -> bytes:
    return json.dumps(header).encode().ljust(_DRAINED_AT, b"\0")


def _write_all(fd: int, data: bytes, at: int) -> None:
    written = pwrite(fd, data, at)
    while written < len(data):
        written += pwrite(fd, data[written:], at + written)


NOTED: Final = "n"


def note_line(namespace: str, note: AgentNote, wall_us: int) -> str:
    """The line of an agent note. Without a text it removes the note with this key."""
    return f"{NOTED}\t{json.dumps(namespace)}\t{note.key}\t{json.dumps(note.text)}\t{wall_us}"


def read_note(fields: Sequence[str]) -> tuple[str, AgentNote, int]:
    """The namespace, the note and its wall-clock time in a line's fields."""
    _, namespace, key, agent, wall_us = fields
    return json.loads(namespace), AgentNote(key, json.loads(agent)), int(wall_us)


def leave_note(database: StrPath, namespace: str, note: AgentNote, *, wall_us: int, timeout_s: float) -> bool:
    """Append a note to a store's call log. Returns whether it was; False if the lock did not come free in time.

    Args:
        database: The database.
        namespace: See `Address.leave_note`.
        note: See there, too.
        wall_us: Wall-clock time.
        timeout_s: How long to wait for the lock.

    Raises:
        OSError, StoreUnavailable: It cannot be appended.
    """
    with contextlib.closing(CallLog(log_path(database))) as log, contextlib.closing(log.turn()) as lock:
        at = log.end(log.drained())  # before the turn, because calls wait for it
        if not lock.acquire(timeout_s):
            return False
        try:
            log.check()
            at = log.end(at)
            log.append(at, pack(at, [note_line(namespace, note, wall_us)])[0])
        finally:
            lock.release()
    return True
