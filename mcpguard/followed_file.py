"""Follows the content of a file that other programs write."""

import os
import sys
import time
from stat import S_ISDIR, S_ISREG

from mcpguard.files import StrPath, read_at_once
from mcpguard.light_typing import Final

SETTLING_NS: Final = 50_000_000
"""A file that changed less than this ago may change again unnoticed: two changes can have the same time stamp."""

if sys.platform == "win32":
    import _winapi
    import ctypes

    _kernel32 = ctypes.WinDLL("kernel32")
    _READ_ATTRIBUTES: Final = 0x80
    _FOLDERS_TOO: Final = 0x02000000  # FILE_FLAG_BACKUP_SEMANTICS
    _TO_1970: Final = 116_444_736_000_000_000
    """The time from 1601, when Windows' times begin, in its unit of 100 ns."""

    def _changed_ns(path: str) -> int:
        """When a file was last changed, also if its time of writing was set back. `os.stat` has no such time on Windows."""
        basic = (ctypes.c_int64 * 5)()  # FILE_BASIC_INFO, whose fourth time this is
        handle = _winapi.CreateFile(path, _READ_ATTRIBUTES, 7, 0, _winapi.OPEN_EXISTING, _FOLDERS_TOO, 0)
        try:
            _kernel32.GetFileInformationByHandleEx(ctypes.c_void_p(handle), 0, basic, ctypes.sizeof(basic))
        finally:
            _winapi.CloseHandle(handle)
        return (basic[3] - _TO_1970) * 100


class FollowedFile:
    """A file's content as of the last look. A look at an unchanged file costs one `stat`.

    Args:
        path: The file.
        max_bytes: At most one byte more than this is read; None for all bytes.

    Attributes:
        content: The content; a text with the reason if the file cannot be read; None if it does not exist.
        mode: The permission bits.
    """

    def __init__(self, path: StrPath, *, max_bytes: int | None = None) -> None:
        self._path = os.fspath(path)
        self.content: bytes | str | None = None
        self.mode = 0
        self._max_bytes = max_bytes
        self._stamp: tuple[int, ...] | None = None
        self._settled = False

    def look(self) -> bool:
        """Read the file if it may have changed. Returns whether `content` has changed."""
        before = self.content
        try:
            stat = os.stat(self._path)
            changed_ns = stat.st_ctime_ns
            if sys.platform == "win32":
                changed_ns = _changed_ns(self._path)
        except (FileNotFoundError, NotADirectoryError):
            self._stamp, self.content = None, None
            return before is not None
        except (OSError, ValueError) as error:  # a folder cannot be entered, or the name is invalid
            self._stamp = None
            self.content = (error.strerror if isinstance(error, OSError) else None) or str(error)
            return self.content != before
        stamp = (stat.st_ino, stat.st_nlink, stat.st_size, stat.st_mtime_ns, changed_ns)
        if stamp == self._stamp and self._settled:
            return False
        self._stamp = stamp
        self._settled = time.time_ns() - max(stat.st_mtime_ns, changed_ns) > SETTLING_NS
        self.mode = stat.st_mode & 0o777
        if not (S_ISREG(stat.st_mode) or S_ISDIR(stat.st_mode)):
            self.content = "not a regular file"  # reading a pipe could block for ever
            return self.content != before
        try:
            self.content = read_at_once(self._path, -1 if self._max_bytes is None else self._max_bytes + 1)
        except OSError as error:
            self.content = error.strerror or str(error)
            self._stamp = None  # read it again: the reason may pass and leave no trace in the file's times
        return self.content != before
