"""What ends the server's group when the guard is killed and can end nothing any more.

The server itself dies with us where the kernel can be asked for that; what it has started does not. So a shell waits for the
end of a pipe that only we hold: if that comes without a word from us, it kills the group.
"""

import contextlib
import os
import sys
from typing import Final

_SHELL: Final = "/bin/sh"
_SCRIPT: Final = 'read -r word || kill -s KILL -- "-$1"'


class Watchdog:
    """Watches over us on behalf of a process group. Does nothing on Windows, or where there is no shell.

    Args:
        group: The number of the process group.
    """

    def __init__(self, group: int) -> None:
        self._leash = -1
        if sys.platform == "win32":
            return
        ours, self._leash = os.pipe()
        nowhere = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_WRONLY, 0) for fd in (1, 2)]
        try:
            os.posix_spawn(
                _SHELL,
                [_SHELL, "-c", _SCRIPT, "mcpguard-watchdog", str(group)],
                {},
                file_actions=[(os.POSIX_SPAWN_DUP2, ours, 0), *nowhere],
                setpgroup=0,  # what is sent to our group, or to the server's, is not for it
            )
        except OSError:
            self.dismiss()
        finally:
            os.close(ours)

    def dismiss(self) -> None:
        """The group is gone: there is nothing to watch over any more."""
        if self._leash >= 0:
            with contextlib.suppress(OSError):
                os.write(self._leash, b"done\n")
            os.close(self._leash)
            self._leash = -1
