"""Locks files, for processes of one machine. The kernel releases a lock when its holder dies."""

import contextlib
import os
import sys
import time

from mcpguard.files import StrPath, close, open_private
from mcpguard.light_typing import Final

if sys.platform == "win32":
    import ctypes
    import msvcrt
    from ctypes import wintypes

    class _Overlapped(ctypes.Structure):
        """OVERLAPPED: the place of the lock."""

        _fields_ = (
            ("status", ctypes.c_size_t * 2),
            ("offset", wintypes.DWORD),
            ("offset_high", wintypes.DWORD),
            ("event", wintypes.HANDLE),
        )

    _LOCKED_BYTE: Final = 0x7FFF0000
    """Far behind the end of the file: other processes cannot read a locked byte."""

    _RELEASE: Final = 0
    _TRY_SHARED: Final = 1  # LOCKFILE_FAIL_IMMEDIATELY
    _TRY: Final = _TRY_SHARED | 2  # LOCKFILE_EXCLUSIVE_LOCK
    _HELD_BY_ANOTHER: Final = (33, 997)  # ERROR_LOCK_VIOLATION, ERROR_IO_PENDING

    _kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
    _at = ctypes.POINTER(_Overlapped)
    _kernel32.LockFileEx.argtypes = (wintypes.HANDLE, *[wintypes.DWORD] * 4, _at)
    _kernel32.UnlockFileEx.argtypes = (wintypes.HANDLE, *[wintypes.DWORD] * 3, _at)

    def _lock(fd: int, how: int) -> None:
        """As `flock`: a lock of another kind is replaced, and the file may have none in between, and if that fails."""
        handle, place = msvcrt.get_osfhandle(fd), ctypes.byref(_Overlapped(offset=_LOCKED_BYTE))
        _kernel32.UnlockFileEx(handle, 0, 1, 0, place)  # it may hold none
        if how != _RELEASE and not _kernel32.LockFileEx(handle, how, 0, 1, 0, place):
            error = ctypes.WinError(number := ctypes.get_last_error())
            raise BlockingIOError(*error.args) if number in _HELD_BY_ANOTHER else error

else:
    import fcntl

    _TRY, _RELEASE = fcntl.LOCK_EX | fcntl.LOCK_NB, fcntl.LOCK_UN
    _TRY_SHARED = fcntl.LOCK_SH | fcntl.LOCK_NB
    _lock = fcntl.flock


def try_lock(fd: int, how: int = _TRY) -> bool:
    """Take the lock on an open file if it is free. Returns whether it was. Closing the file releases it."""
    try:
        _lock(fd, how)
    except BlockingIOError:
        return False
    return True


QUICK_TRIES: Final = 25
"""How often a process that waits tries again at once, for about 50 µs. Most decisions on another CPU end sooner, and after a
pause the caches have gone cold."""

FIRST_PAUSE_S: Final = 0.0004
LAST_PAUSE_S: Final = 0.0008
"""The pauses of a process that waits longer."""

LEAST_PAUSED: Final = 0.25
"""The share of its timeout that a process must have paused before it gives up. On a busy machine a pause lasts many times as
long as it should, and the time would be over after a few tries."""


class FileLock:
    """A lock between processes.

    A blocking `flock` takes no timeout, and a process that waits in it has no advantage: when it wakes up, another process has
    the lock again. So a process that waits tries a few times at once, and then again and again, with pauses.

    Args:
        fd: The open file. The lock closes it.

    Attributes:
        fd: The same; -1 once it is closed.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def acquire(self, timeout_s: float) -> bool:
        """Wait for the lock; return whether it was taken.

        Args:
            timeout_s: How long to wait; 0 to try once. On a busy machine it may take longer, see `LEAST_PAUSED`.
        """
        try:
            _lock(self.fd, _TRY)  # a usual call pays for no more
        except BlockingIOError:
            return self._wait(timeout_s)
        return True

    def _wait(self, timeout_s: float) -> bool:
        until_s = time.monotonic() + timeout_s
        for _ in range(QUICK_TRIES if timeout_s else 0):
            if try_lock(self.fd):
                return True
        pause_s, paused_s = FIRST_PAUSE_S, 0.0
        while paused_s < timeout_s * LEAST_PAUSED or time.monotonic() < until_s:
            time.sleep(pause_s)
            if try_lock(self.fd):
                return True
            paused_s += pause_s
            pause_s = min(2 * pause_s, LAST_PAUSE_S)
        return False

    def share(self) -> bool:
        """Hold the lock together with others, unless a process holds it alone. Returns whether it is held.

        Then `acquire` tells whether no other process holds it, too. If not, this one may hold it no longer.
        """
        return try_lock(self.fd, _TRY_SHARED)

    def release(self) -> None:
        """Release the lock to the next process.

        Does not raise, because what was done under the lock counts. If the system refuses, the lock stays held until the next
        release or the end of this process.
        """
        try:  # noqa: SIM105 - on every call's path
            _lock(self.fd, _RELEASE)
        except OSError:
            pass

    def close(self) -> None:
        """Close the file, which releases the lock."""
        if self.fd >= 0:
            close(self.fd)
            self.fd = -1


def lock_file(path: StrPath) -> FileLock:
    """A lock on a file, which is made if it is missing.

    Raises:
        OSError: The file cannot be opened.
    """
    return FileLock(open_private(path))


class LifeSign(FileLock):
    """A file that this process keeps locked, so that others can tell whether the process still runs.

    `end` deletes the file; `close` leaves it to whoever locks it next.

    Args:
        path: The file. It is made if it is missing.

    Attributes:
        path: The same.

    Raises:
        BlockingIOError: Another process has locked the file, or has deleted it before it was locked.
        OSError: The file cannot be made.
    """

    def __init__(self, path: StrPath) -> None:
        self.path = os.fspath(path)
        is_new = not os.path.exists(path)
        super().__init__(open_private(path))
        try:
            if not (try_lock(self.fd) and self.is_there()):
                raise BlockingIOError
        except OSError as error:
            os.close(self.fd)
            if is_new and not isinstance(error, BlockingIOError):  # this file system cannot lock: each try would leave a file
                os.unlink(path)
            raise

    def is_there(self) -> bool:
        """Whether the path still names the file."""
        try:
            return os.path.samestat(os.fstat(self.fd), os.stat(self.path))
        except FileNotFoundError:
            return False

    def end(self) -> None:
        """Delete the file."""
        _close_and_delete(self.fd, self.path)
        self.fd = -1


_LOOKS: Final = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
"""How a file is opened whose lock is looked at. To open a pipe might never end."""


def shows_life(path: StrPath) -> bool:
    """Whether a process keeps the file locked as a `LifeSign`. Of a file that may not be read nobody knows: then it is true."""
    try:
        fd = os.open(path, _LOOKS)
    except FileNotFoundError:
        return False
    except PermissionError:
        return True
    try:
        return not try_lock(fd, _TRY_SHARED)  # shared, since others may ask at the same time
    finally:
        close(fd)


def delete_if_dead(path: StrPath) -> None:
    """Delete a `LifeSign`'s file, unless its process still runs."""
    with contextlib.suppress(OSError):
        fd = os.open(path, _LOOKS)
        if try_lock(fd, _TRY_SHARED):
            _close_and_delete(fd, path)
        else:
            os.close(fd)


def _close_and_delete(fd: int, path: StrPath) -> None:
    """Close a locked file and delete it: in this order on Windows, where an open file cannot be deleted.

    Elsewhere the lock is held until the file is deleted: a process that has just made it may be about to lock it.
    """
    if sys.platform == "win32":
        os.close(fd)
    with contextlib.suppress(OSError):
        os.unlink(path)
    if sys.platform != "win32":
        close(fd)
