"""Follows the content of a file that other programs write."""

import contextlib
import os
import sys
import time
from stat import S_ISDIR, S_ISREG
from typing import Final

from mcpguard.files import SETTLING_NS, StrPath, close, read_at_once

HELD_S: Final = 1.0
"""How long a file that is kept open is taken for the one that its path names. Only another folder in the place of one of the
path's folders goes unnoticed for so long: if the file itself is edited, removed, renamed or replaced, its own times change."""


class FollowedFile:
    """A file's content as of the last look. A look at an unchanged file costs one `fstat`, since the file is kept open.

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
        self._may_hold = False
        self._fd = -1  # the file, once it has settled
        self._held_until_s = 0.0

    def look(self) -> bool:
        """Read the file if it may have changed. Returns whether `content` has changed."""
        if self._fd >= 0 and time.monotonic() < self._held_until_s:
            try:
                held = os.fstat(self._fd)
            except OSError:  # on a network file system the file may be gone
                pass
            else:
                if (held.st_ino, held.st_nlink, held.st_size, held.st_mtime_ns, held.st_ctime_ns) == self._stamp:
                    return False
        self._let_go()
        before = self.content
        try:
            stat = os.stat(self._path)
        except (FileNotFoundError, NotADirectoryError):
            self._stamp, self.content = None, None
            return before is not None
        except (OSError, ValueError) as error:  # a folder cannot be entered, or the name is invalid
            self._stamp = None
            self.content = (error.strerror if isinstance(error, OSError) else None) or str(error)
            return self.content != before
        stamp = (stat.st_ino, stat.st_nlink, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        if stamp == self._stamp and self._settled:
            if self._may_hold:
                self._hold()
            return False
        self._stamp = stamp
        self._may_hold = os.path.realpath(self._path) == self._path  # not behind a link, which can be changed itself
        self._settled = time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) > SETTLING_NS
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

    def _hold(self) -> None:
        """Keep the file open, so that the next looks need not find it by its path."""
        if sys.platform != "win32":  # where others could not replace the file then
            with contextlib.suppress(OSError):
                self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
                self._held_until_s = time.monotonic() + HELD_S

    def _let_go(self) -> None:
        if self._fd >= 0:
            close(self._fd)
            self._fd = -1
