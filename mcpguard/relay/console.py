"""Our lines on stderr, which may be a pipe that nobody reads."""

import os
import sys
import threading

from mcpguard.core.audit import printable
from mcpguard.relay.readiness import Readiness


class Console:
    """Writes whole lines to a descriptor without ever waiting for it.

    Args:
        fd: Where to.
    """

    def __init__(self, fd: int = 2) -> None:
        self._fd = fd
        self._lock = threading.Lock()
        self._dropped = 0
        self._is_ready = Readiness(fd)

    def line(self, text: str) -> None:
        """Write `mcpguard: text`, or count it as dropped if the other side does not take it now."""
        with self._lock:
            try:
                if sys.platform != "win32" and not self._is_ready():
                    self._dropped += 1
                    return
                if self._dropped:
                    text += f" ({self._dropped} lines before this one were dropped: stderr was full)"
                data = f"mcpguard: {printable(text)}".encode(errors="backslashreplace")
                os.write(self._fd, data[:4095] + b"\n")
                self._dropped = 0
            except OSError:
                self._dropped += 1
