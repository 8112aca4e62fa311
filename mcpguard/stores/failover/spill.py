"""Spill files: a wrapper's write-behind buffer on disk, for another wrapper to take in if this one ends.

Theory of operation. A file is the log of the changes of one buffer, a JSON array a line. Replayed, it gives the buffer. The
wrapper holds a lock on its file. The system releases the lock when the wrapper ends, however it ends. Whoever then gets the
lock owns the content. Records that cannot be written wait in memory, in order, and are tried again. Until then the file mirrors
an earlier state of the buffer.
"""

import contextlib
import errno
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

from mcpguard.errors import StoreUnavailable
from mcpguard.files import StrPath, private_folder, size_bytes
from mcpguard.session.audit import Row
from mcpguard.stores.api import Clock
from mcpguard.stores.clock import base_id
from mcpguard.stores.filesystem import refuse_network
from mcpguard.stores.locks import try_lock
from mcpguard.text.printing import compact

MAX_FILE_BYTES: Final = 64 * 1024 * 1024
MAX_FOLDER_BYTES: Final = 256 * 1024 * 1024
"""How large a spill file may become. No new file is made while all files of the store and namespace together exceed the
second."""

MAX_WAITING: Final = 50_000
"""How many records wait for a file that cannot be written. Beyond it no record is written until the store is back."""

RETRY_US: Final = 1_000_000
RETRY_RECORDS: Final = 500
"""How long after a failure writing is tried again, and how many records are then written: a few milliseconds of work."""

_TRIES: Final = 3

Record = Sequence[Any]
"""A change of a buffer, as JSON values: its kind, and what `WriteBehindBuffer.replay` takes for this kind."""

HEADER: Final = "spill"
"""The kind of the first record. It has the clock's base and reading, wall-clock time, and the members of a row."""

_HASH_AT: Final = Row._fields.index("args_hash")


def row_values(row: Row) -> list[Any]:
    """The members of a row as JSON values, in the order of `Row`."""
    values: list[Any] = list(row)
    values[_HASH_AT] = row.args_hash and row.args_hash.hex()
    return values


def row_of(members: Sequence[str], values: Sequence[Any]) -> Row:
    """The row of a record.

    Args:
        members: The members of a row, as the file's header names them.
        values: Their values.

    Raises:
        ValueError, TypeError: These are not the members of a row.
    """
    row = Row(**dict(zip(members, values, strict=True)))
    return row._replace(args_hash=row.args_hash and bytes.fromhex(str(row.args_hash)))


class SpillFile:
    """A spill file that this process has locked.

    Args:
        fd: The descriptor, opened for appending.
        path: The path.

    Attributes:
        damaged: How many lines `read` found that are no records.
    """

    def __init__(self, fd: int, path: str) -> None:
        self.path = path
        self.damaged = 0
        self._fd = fd
        self._bytes = os.fstat(fd).st_size
        self._is_torn = False

    def append(self, records: Iterable[Record]) -> None:
        """Write all records or none.

        Raises:
            OSError: They do not fit on the disk or under `MAX_FILE_BYTES`.
        """
        data = b"".join([f"{compact(record)}\n".encode() for record in records])
        if self._bytes + len(data) > MAX_FILE_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), self.path)
        self._cut()
        try:
            if os.write(self._fd, data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)
        except OSError:
            self._is_torn = True
            with contextlib.suppress(OSError):
                self._cut()
            raise
        self._bytes += len(data)

    def _cut(self) -> None:
        """Cut off half a record that a failed write has left. A full disk may refuse that, too, so it is tried again."""
        if self._is_torn:
            os.ftruncate(self._fd, self._bytes)
            self._is_torn = False

    def read(self) -> Iterator[list[Any]]:
        """All records. Lines that are no records are counted. A last line that a crash cut off is removed from the file.

        Raises:
            OSError: The file cannot be read.
        """
        os.lseek(self._fd, 0, os.SEEK_SET)
        self._bytes = self.damaged = 0
        with open(self._fd, "rb", closefd=False) as file:
            for line in file:
                if not line.endswith(b"\n"):
                    self.damaged += 1
                    break
                self._bytes += len(line)
                if record := _record(line):
                    yield record
                else:
                    self.damaged += 1
        os.ftruncate(self._fd, self._bytes)

    def remove(self) -> None:
        """Empty and remove the file. If removing fails, the next wrapper that finds the empty file removes it."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, 0)
        self.close()
        with contextlib.suppress(OSError):
            os.unlink(self.path)

    def close(self) -> None:
        """Release the file to whoever locks it next."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _record(line: bytes) -> list[Any] | None:
    """The record in a line; None if it is none."""
    with contextlib.suppress(ValueError):
        if isinstance(record := json.loads(line), list) and record:
            return record
    return None


class SpillFolder:
    """The spill files of all wrappers of one store and namespace.

    Args:
        folder: The folder. It is made if it is missing, with mode 0700.
        prefix: The beginning of the files' names.
        base: Returns an id of the start of this machine's clock, see `stores.clock.base_id`.
    """

    def __init__(self, folder: StrPath, prefix: str, *, base: Callable[[], str] = base_id) -> None:
        self.base = base
        self._folder = os.fspath(folder)
        self._prefix = prefix

    def create(self) -> SpillFile:
        """Make and lock a new file, of mode 0600.

        Raises:
            OSError: It cannot be made, or the files together exceed `MAX_FOLDER_BYTES`.
            StoreUnavailable: The folder is on a network file system, whose locks are not reliable.
        """
        private_folder(self._folder)
        refuse_network(self._folder)
        if sum(map(size_bytes, self._paths())) > MAX_FOLDER_BYTES:  # another wrapper may just take one in
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), self._folder)
        for _ in range(_TRIES):  # another wrapper may lock and remove the empty file first
            path = os.path.join(self._folder, f"{self._prefix}{os.urandom(8).hex()}")
            found = _locked(path, os.O_CREAT | os.O_EXCL)
            if found:
                return found
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN), self._folder)

    def left_behind(self) -> Iterator[SpillFile]:
        """Lock and return the files of wrappers that have ended."""
        with contextlib.suppress(OSError, StoreUnavailable):
            refuse_network(self._folder)
            for path in self._paths():
                with contextlib.suppress(OSError):
                    found = _locked(path)
                    if found:
                        yield found

    def _paths(self) -> list[str]:
        return [os.path.join(self._folder, name) for name in sorted(os.listdir(self._folder)) if name.startswith(self._prefix)]


def _locked(path: str, how: int = 0) -> SpillFile | None:
    """Open and lock a file. Returns None if another process has locked or removed it."""
    fd = os.open(path, os.O_RDWR | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0) | how, 0o600)
    try:
        if try_lock(fd) and os.path.samestat(os.fstat(fd), os.stat(path)):
            return SpillFile(fd, path)
    except FileNotFoundError:
        pass
    except OSError:  # this file system cannot lock: each try would leave a file and a descriptor
        os.close(fd)
        if how:
            with contextlib.suppress(OSError):
                os.unlink(path)
        raise
    os.close(fd)
    return None


class SpillLog:
    """Writes the changes of one buffer to a spill file.

    Args:
        folder: Where the file is made when the first record is written; None to write no file.
        clock: The clock of the buffer's charges.
        wall: Wall-clock time, from which the age of charges follows after the machine restarts.
        file: A file that exists and is continued.

    Attributes:
        active: Whether `flush` writes. Until then records wait.
    """

    def __init__(self, folder: SpillFolder | None, clock: Clock, wall: Clock, *, file: SpillFile | None = None) -> None:
        self.active = file is not None
        self._folder = folder
        self._clock = clock
        self._wall = wall
        self._file = file
        self._given_up: list[SpillFile] = []
        self._waiting: list[Record] = []
        self._retry_us: int | None = None  # when to try again; None if the last write succeeded
        self._is_off = folder is None and file is None

    def note(self, *records: Record) -> None:
        """Note changes of the buffer."""
        if self._is_off:
            return
        self._waiting += records
        if len(self._waiting) > MAX_WAITING:  # the file stays as it is, and mirrors an earlier state of the buffer
            self._is_off = True
            self._waiting.clear()

    def flush(self) -> bool:
        """Write what was noted, unless the last write failed. Returns whether the file has all that was noted."""
        if self._is_off:
            return False
        if self.active and self._waiting and self._retry_us is None:
            self._write(len(self._waiting))
        return not self._waiting

    def retry(self) -> None:
        """If the last write failed and `RETRY_US` have passed, write some of the records that wait."""
        if self._waiting and self._retry_us is not None and self._clock() >= self._retry_us:
            self._write(RETRY_RECORDS)

    def finish(self) -> int:
        """Write what was noted, and release the file to other wrappers for good. Returns how many rows it lacks."""
        self.active = True
        while self._waiting and self._write(RETRY_RECORDS):
            pass
        missing = sys.maxsize if self._is_off else sum(record[0] == "row" for record in self._waiting)
        self._is_off = True
        self._waiting.clear()
        if self._file is not None:
            self._file.close()
            self._file = None
        return missing

    def drop(self) -> None:
        """Remove the file, because it cannot be kept up to date. No new one is made until `clear`."""
        self._is_off = True
        self._waiting.clear()
        if self._file is not None:
            self._file.remove()
            self._file = None

    def clear(self) -> None:
        """Give the file up, because the buffer is empty. The next change that is written makes a new one.

        `sweep` removes the file. If this process ends before that, another one finds that all in the file is written.
        """
        self._waiting.clear()
        if self._file is not None:
            self._given_up.append(self._file)
            self._file = None
        self._is_off = self._folder is None
        self.active = False
        self._retry_us = None

    def sweep(self) -> None:
        """Remove the files that were given up. A disk may take its time for that, so no call may wait for it."""
        while self._given_up:
            self._given_up[0].remove()
            del self._given_up[0]

    def _write(self, most: int) -> bool:
        """Write at most `most` of the records that wait. Returns whether it succeeded."""
        try:
            if self._file is None:
                self._file = self._created()
            self._file.append(self._waiting[:most])
        except (OSError, StoreUnavailable):
            self._retry_us = self._clock() + RETRY_US
            return False
        del self._waiting[:most]
        if not self._waiting:
            self._retry_us = None
        return True

    def _created(self) -> SpillFile:
        assert self._folder is not None  # noqa: S101 - else it is off
        file = self._folder.create()
        try:
            file.append([(HEADER, self._folder.base(), self._clock(), self._wall(), Row._fields)])
        except OSError:
            file.remove()
            raise
        return file
