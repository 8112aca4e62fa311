"""Locks files, for processes of one machine. The kernel releases a lock when its holder dies.

A blocking `flock` takes no timeout, so `QueueLock` calls it in a helper thread. It also starves while many processes hold the
lock shortly, one after another: when its thread has woken up, another process has the lock again. So `QueueLock` first tries
several times, with pauses in between.
"""

import contextlib
import os
import sys
import threading
import time
from pathlib import Path
from typing import Final

from mcpguard.files import open_private

if sys.platform == "win32":  # pragma: no cover - not run in CI
    import msvcrt

    _LOCKED_BYTE: Final = 0x7FFF0000  # far behind the end of the file, because other processes cannot read a locked byte

    _TRY, _WAIT, _RELEASE = msvcrt.LK_NBLCK, -1, msvcrt.LK_UNLCK

    _TRY_SHARED = _TRY

    def _lock(fd: int, how: int) -> None:
        os.lseek(fd, _LOCKED_BYTE, os.SEEK_SET)
        if how == _WAIT:
            while not try_lock(fd):
                time.sleep(0.001)
            return
        try:
            msvcrt.locking(fd, how, 1)
        except OSError as error:
            raise BlockingIOError from error

else:
    import fcntl

    _TRY, _WAIT, _RELEASE = fcntl.LOCK_EX | fcntl.LOCK_NB, fcntl.LOCK_EX, fcntl.LOCK_UN
    _TRY_SHARED = fcntl.LOCK_SH | fcntl.LOCK_NB
    _lock = fcntl.flock


def try_lock(fd: int) -> bool:
    """Take the lock on an open file if it is free. Returns whether it was. Closing the file releases it."""
    return _tried(fd, _TRY)


def _tried(fd: int, how: int) -> bool:
    try:
        _lock(fd, how)
    except BlockingIOError:
        return False
    return True


TRY_EVERY_S: Final = 0.002

FIRST_PAUSE_S: Final = 0.0001
LAST_PAUSE_S: Final = 0.0064
"""The pauses before a process waits in the queue: 12.7 ms in all. A decision holds the lock for some 20 µs."""


class QueueLock:
    """A lock between processes, whose shares are about equal if many want it. One thread at a time may call it.

    Args:
        fd: The open file. The lock closes it.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._mutex = threading.Lock()
        self._wanted = False
        self._closed = False
        self._helper_busy = False
        self._asked = threading.Semaphore(0)
        self._granted = threading.Semaphore(0)
        self._helper: threading.Thread | None = None

    def acquire(self, timeout_s: float) -> bool:
        """Wait for the lock. Returns False after the timeout; the lock is then released as soon as it is granted."""
        if not self._helper_busy:
            try:
                _lock(self._fd, _TRY)
            except BlockingIOError:
                pass
            else:
                return True
        until_s = time.monotonic() + timeout_s
        if not self._helper_busy and self._retried(until_s):
            return True
        with self._mutex:
            if not self._helper_busy:
                self._helper_busy = True
                self._ask()
            self._wanted = True
        if self._granted.acquire(timeout=max(0, until_s - time.monotonic())):
            return True
        with self._mutex:
            if self._wanted:
                self._wanted = False
                return False
        return self._granted.acquire()  # it was granted between the timeout and the mutex

    def _retried(self, until_s: float) -> bool:
        """Try to take the lock after pauses that double, as long as there is time for another one."""
        pause_s = FIRST_PAUSE_S
        while pause_s <= LAST_PAUSE_S and time.monotonic() + pause_s < until_s:
            time.sleep(pause_s)
            if try_lock(self._fd):
                return True
            pause_s *= 2
        return False

    def acquire_by_trying(self, timeout_s: float) -> bool:
        """Poll for the lock, without a place in the queue. After the timeout nothing waits for it."""
        deadline = time.monotonic() + timeout_s
        while not try_lock(self._fd):
            if time.monotonic() >= deadline:
                return False
            time.sleep(TRY_EVERY_S)
        return True

    def release(self) -> None:
        """Release the lock to the next process."""
        _lock(self._fd, _RELEASE)

    def close(self) -> None:
        """Close the file, which releases the lock. A helper thread that waits closes the file when it gets the lock."""
        with self._mutex:
            if not self._closed and not self._helper_busy:
                os.close(self._fd)
            self._closed = True
            if self._helper is not None and not self._helper_busy:
                self._asked.release()

    def _ask(self) -> None:
        if self._helper is None:
            self._helper = threading.Thread(target=self._help, name="mcpguard-queue", daemon=True)
            self._helper.start()
        self._asked.release()

    def _help(self) -> None:
        while self._asked.acquire() and not (self._closed and not self._helper_busy):
            _lock(self._fd, _WAIT)
            with self._mutex:
                if self._closed:
                    _lock(self._fd, _RELEASE)  # closing does not, if another descriptor shares the open file
                    os.close(self._fd)
                    self._helper_busy = False
                    return
                if self._wanted:
                    self._wanted = False
                    self._granted.release()
                else:
                    _lock(self._fd, _RELEASE)
                self._helper_busy = False  # after the release: `acquire` reads it without the mutex


def lock_file(path: Path) -> QueueLock:
    """A lock on a file, which is made if it is missing.

    Raises:
        OSError: The file cannot be opened.
    """
    return QueueLock(open_private(path))


class SharedHold:
    """A shared lock on a file, by which a process can tell whether others hold it, too.

    Args:
        path: The file. It is made if it is missing.

    Raises:
        OSError: The file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._fd = open_private(path)

    def alone(self) -> bool:
        """Try to hold it exclusively. Returns whether no other process holds it; always true on Windows.

        The caller holds the store's lock.
        """
        if sys.platform == "win32":  # pragma: no cover - not run in CI
            return True
        return try_lock(self._fd)

    def share(self) -> None:
        """Hold it together with others.

        The caller holds the store's lock, so that no process calls `alone` at the same time.
        """
        if sys.platform != "win32":
            fcntl.flock(self._fd, fcntl.LOCK_SH)

    def close(self) -> None:
        """Release it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class LifeSign:
    """A file that this process keeps locked, so that others can tell whether the process still runs.

    Args:
        path: The file, which no other process makes.

    Raises:
        BlockingIOError: Another process deleted the file before it was locked. Use another path.
        OSError: The file cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = open_private(path)
        if not (try_lock(self._fd) and self.is_there()):
            os.close(self._fd)
            raise BlockingIOError

    def is_there(self) -> bool:
        """Whether the path still names the file."""
        try:
            return os.path.samestat(os.fstat(self._fd), self._path.stat())
        except FileNotFoundError:
            return False

    def end(self) -> None:
        """Delete the file."""
        _close_and_delete(self._fd, self._path)


def shows_life(path: Path) -> bool:
    """Whether a process keeps the file locked as a `LifeSign`. Of a file that may not be read nobody knows: then it is true."""
    try:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except FileNotFoundError:
        return False
    except PermissionError:
        return True
    try:
        return not _tried(fd, _TRY_SHARED)  # shared, since others may ask at the same time
    finally:
        os.close(fd)


def delete_if_dead(path: Path) -> None:
    """Delete a `LifeSign`'s file, unless its process still runs."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        if _tried(fd, _TRY_SHARED):
            _close_and_delete(fd, path)
        else:
            os.close(fd)


def _close_and_delete(fd: int, path: Path) -> None:
    """Close a locked file and delete it: in this order on Windows, where an open file cannot be deleted.

    Elsewhere the lock is held until the file is deleted: a process that has just made it may be about to lock it.
    """
    if sys.platform == "win32":  # pragma: no cover - not run in CI
        os.close(fd)
    with contextlib.suppress(OSError):
        path.unlink()
    if sys.platform != "win32":
        os.close(fd)
