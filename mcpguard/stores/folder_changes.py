"""Whether a folder's entries have changed, at less cost than a look at each of them."""

import contextlib
import os
import sys
import time

from mcpguard.files import SETTLING_NS, StrPath, close


class FolderChanges:
    """Tells whether a file in a folder may have been made, removed, renamed or replaced, by the times of the folder.

    A file's own times cannot tell that if the file is written all the time. And a look at them makes the next write take
    longer, since the system then has to note its time.

    Args:
        folder: The folder. What replaces the folder itself is not noticed.
    """

    def __init__(self, folder: StrPath) -> None:
        self._fd = -1
        if sys.platform != "win32":  # which opens no folders
            with contextlib.suppress(OSError):  # files in a folder that may not be read can be used nevertheless
                self._fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._stamp: tuple[int, int] | None = None

    def may_have_changed(self) -> bool:
        """Whether there may have been a change since the last call that returned True.

        Always true if the folder cannot be opened.
        """
        if self._fd < 0:
            return True
        stat = os.fstat(self._fd)
        stamp = (stat.st_mtime_ns, stat.st_ctime_ns)
        if stamp == self._stamp:
            return False
        # Another change can have the same times, as long as they are new
        self._stamp = stamp if time.time_ns() - max(stamp) > SETTLING_NS else None
        return True

    def close(self) -> None:
        """Close the folder."""
        if self._fd >= 0:
            close(self._fd)
            self._fd = -1
