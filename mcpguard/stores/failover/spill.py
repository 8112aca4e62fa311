"""Spill files: what a wrapper's write-behind buffer holds, on disk, so that it outlives the wrapper.

A file is the log of what was done to one buffer, a JSON array a line; replayed, it gives the buffer. The wrapper holds a lock
on its file, which the system frees when the wrapper ends, however that happens. Whoever gets the lock then owns what is in it.
"""

import contextlib
import errno
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from mcpguard.core.audit import Row
from mcpguard.core.text import compact
from mcpguard.errors import StoreUnavailable
from mcpguard.files import private_folder
from mcpguard.stores.api import Clock
from mcpguard.stores.clock import base_id
from mcpguard.stores.filesystem import refuse_network
from mcpguard.stores.locks import try_lock

MAX_FILE_BYTES: Final = 64 * 1024 * 1024
MAX_FOLDER_BYTES: Final = 256 * 1024 * 1024
"""How large a spill file may grow; and, for a new one to be made, all that wrappers of a store and namespace have left."""

MAX_WAITING: Final = 50_000
"""Records that wait for a file that cannot be written. Beyond it there is no file until the store is back."""

RETRY_US: Final = 1_000_000
RETRY_RECORDS: Final = 500
"""How often it is tried again to write, and how many records at a time: some milliseconds."""

_TRIES: Final = 3

Record = Sequence[Any]
"""What was done to a buffer, as JSON has it: a word, and what goes with it."""

HEADER: Final = "spill"
"""Begins the first record: the clock's base and reading, wall-clock time, and the members of a row."""


class SpillFile:
    """A spill file that this process holds the lock on.

    Args:
        fd: Its descriptor, which appends.
        path: Where it is.
    """

    def __init__(self, fd: int, path: Path) -> None:
        self.path = path
        self._fd = fd
        self._bytes = os.fstat(fd).st_size

    def append(self, records: Iterable[Record]) -> None:
        """Write records, all in one piece, or none of them.

        Raises:
            OSError: There is no room for them.
        """
        data = b"".join([f"{compact(record)}\n".encode() for record in records])
        if self._bytes + len(data) > MAX_FILE_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(self.path))
        try:
            if os.write(self._fd, data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._bytes)
            raise
        self._bytes += len(data)

    def read(self) -> Iterator[list[Any]]:
        """All records. A line that is none is left out, and a last one that a crash has cut off is removed.

        Raises:
            OSError: It cannot be read.
        """
        os.lseek(self._fd, 0, os.SEEK_SET)
        self._bytes = 0
        with open(self._fd, "rb", closefd=False) as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._bytes += len(line)
                with contextlib.suppress(ValueError):
                    if isinstance(record := json.loads(line), list) and record:
                        yield record
        os.ftruncate(self._fd, self._bytes)

    def remove(self) -> None:
        """Empty and remove it. If that fails it is empty all the same, and whoever finds it removes it."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, 0)
        self.close()
        with contextlib.suppress(OSError):
            self.path.unlink()

    def close(self) -> None:
        """Leave it to whoever locks it next."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class SpillFolder:
    """Where the wrappers of one store and namespace have their spill files.

    Args:
        folder: The folder; made if it is missing, with mode 0700.
        prefix: How the names of the files begin.
        base: What tells the start of this machine's clock from any other.
    """

    def __init__(self, folder: Path, prefix: str, *, base: Callable[[], str] = base_id) -> None:
        self.base = base
        self._folder = folder
        self._prefix = prefix

    def create(self) -> SpillFile:
        """A new file, of mode 0600.

        Raises:
            OSError: It cannot be made, or there is too much already.
            StoreUnavailable: It would be on a network file system, whose locks cannot be relied on.
        """
        private_folder(self._folder)
        refuse_network(self._folder)
        if sum(map(_size_bytes, self._paths())) > MAX_FOLDER_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(self._folder))
        for _ in range(_TRIES):  # somebody may lock, and remove, an empty file before we lock it
            path = self._folder / f"{self._prefix}{os.urandom(8).hex()}"
            found = _locked(path, os.O_CREAT | os.O_EXCL)
            if found:
                return found
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN), str(self._folder))

    def left_behind(self) -> Iterator[SpillFile]:
        """The files of wrappers that have ended, each of them locked by us now."""
        with contextlib.suppress(OSError, StoreUnavailable):
            refuse_network(self._folder)
            for path in self._paths():
                with contextlib.suppress(OSError):
                    found = _locked(path)
                    if found:
                        yield found

    def _paths(self) -> list[Path]:
        return sorted(path for path in self._folder.iterdir() if path.name.startswith(self._prefix))


def _size_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # taken in meanwhile
        return 0


def _locked(path: Path, how: int = 0) -> SpillFile | None:
    """A file that nobody else has locked, locked; None if somebody has, or it is removed meanwhile."""
    fd = os.open(path, os.O_RDWR | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0) | how, 0o600)
    try:
        if try_lock(fd) and os.path.samestat(os.fstat(fd), path.stat()):
            return SpillFile(fd, path)
    except FileNotFoundError:
        pass
    os.close(fd)
    return None


class SpillLog:
    """Keeps the log of one buffer in a file, as well as the disk allows: what cannot be written waits, in order.

    Args:
        folder: Where the file is made, with the first record that is flushed; None for no file at all.
        clock: The clock of the buffer's admissions.
        wall: Wall-clock time, which tells how old they are after a restart of the machine.
        file: One that exists, to go on with.

    Attributes:
        active: Whether records are written when they are flushed. Until then they wait.
    """

    def __init__(self, folder: SpillFolder | None, clock: Clock, wall: Clock, *, file: SpillFile | None = None) -> None:
        self.active = file is not None
        self._folder = folder
        self._clock = clock
        self._wall = wall
        self._file = file
        self._waiting: list[Record] = []
        self._retry_us: int | None = None  # not before then; None if the last write has succeeded
        self._is_off = folder is None and file is None

    def note(self, *records: Record) -> None:
        """Note what was done to the buffer."""
        if self._is_off:
            return
        self._waiting += records
        if len(self._waiting) > MAX_WAITING:  # what the file has is true, of an earlier time
            self._is_off = True
            self._waiting.clear()

    def flush(self) -> bool:
        """Write what was noted; whether all of it is in the file. Tries nothing while the file cannot be written."""
        if self._is_off:
            return False
        if self.active and self._waiting and self._retry_us is None:
            self._write(len(self._waiting))
        return not self._waiting

    def retry(self) -> None:
        """Write a part of what could not be written, if it is time to try that again."""
        if self._waiting and self._retry_us is not None and self._clock() >= self._retry_us:
            self._write(RETRY_RECORDS)

    def finish(self) -> int:
        """Write all that was noted and leave the file to others, for good; how many rows are not in it."""
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
        """Have no file from now on, until `clear`: what happens to the buffer cannot be noted in it."""
        self._is_off = True
        self._remove()

    def clear(self) -> None:
        """The buffer is empty, and nothing has to be kept of it."""
        self._remove()
        self._is_off = self._folder is None
        self.active = False
        self._retry_us = None

    def _remove(self) -> None:
        self._waiting.clear()
        if self._file is not None:
            self._file.remove()
            self._file = None

    def _write(self, most: int) -> bool:
        """Write so many of the records that wait; whether that was possible."""
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
