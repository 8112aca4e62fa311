"""Ends the server's process group when mcpguard is killed.

On Linux the kernel kills the server itself then, but not the processes that it has started. So a shell waits for the end of a
pipe that only mcpguard holds. If nothing was written to the pipe before its end, the shell kills the group.
"""

import contextlib
import os
import sys
from typing import Final

_SHELL: Final = "/bin/sh"
_SCRIPT: Final = 'read -r word || kill -s KILL -- "-$1"'


class Watchdog:
    """Ends a process group if mcpguard ends before `dismiss`. Does nothing on Windows, or without a shell.

    Args:
        group: The number of the process group.
    """

    def __init__(self, group: int) -> None:
        self._write = -1
        if sys.platform == "win32":
            return
        read, self._write = os.pipe()
        nowhere = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_WRONLY, 0) for fd in (1, 2)]
        try:
            os.posix_spawn(
                _SHELL,
                [_SHELL, "-c", _SCRIPT, "mcpguard-watchdog", str(group)],
                {},
                file_actions=[(os.POSIX_SPAWN_DUP2, read, 0), *nowhere],
                setpgroup=0,  # signals to mcpguard's group or the server's must not reach it
            )
        except OSError:
            self.dismiss()
        finally:
            os.close(read)

    def dismiss(self) -> None:
        """The group is gone: end the shell."""
        if self._write >= 0:
            with contextlib.suppress(OSError):
                os.write(self._write, b"done\n")
            os.close(self._write)
            self._write = -1
