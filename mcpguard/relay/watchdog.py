"""Ends the server's process group when mcpguard is killed.

On Linux the kernel kills the server itself then, but not the processes that it has started. So a shell waits for the end of a
pipe that only mcpguard holds, and then kills the group. It ignores the signals that all processes of a session may get.
"""

import contextlib
import os
import signal
import sys
from typing import Final

from mcpguard.files import close

_SHELL: Final = "/bin/sh"
_SCRIPT: Final = 'trap "" HUP INT QUIT TERM USR1 USR2; read -r word; kill -s KILL -- "-$1"'


class Watchdog:
    """Ends a process group if mcpguard ends before `dismiss`.

    Does nothing on Windows, without a shell, or if the system has no descriptors left.

    Args:
        group: The number of the process group.
    """

    def __init__(self, group: int) -> None:
        self._pid: int | None = None  # the shell
        if sys.platform == "win32":
            return
        try:
            read, self._write = os.pipe()
        except OSError:
            return
        nowhere = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_WRONLY, 0) for fd in (1, 2)]
        try:
            self._pid = os.posix_spawn(
                _SHELL,
                [_SHELL, "-c", _SCRIPT, "mcpguard-watchdog", str(group)],
                {},
                file_actions=[(os.POSIX_SPAWN_DUP2, read, 0), *nowhere],
                setpgroup=0,  # signals to mcpguard's group or the server's must not reach it
            )
        except OSError:
            close(self._write)
        finally:
            close(read)

    def dismiss(self) -> None:
        """The group is gone: end the shell."""
        if sys.platform != "win32" and self._pid is not None:
            with contextlib.suppress(OSError):
                os.kill(self._pid, signal.SIGKILL)
                os.waitpid(self._pid, 0)
            close(self._write)
            self._pid = None
