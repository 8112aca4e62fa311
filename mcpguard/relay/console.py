"""Lines on stderr, which may be a pipe that nobody reads, or a log file that grows."""

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Final

from mcpguard.core.text import printable
from mcpguard.relay.readiness import Readiness

AT_ONCE: Final = 10
"""How many lines of one kind are written at once, before one is written every `EVERY_S`."""

EVERY_S: Final = 1.0


class _Kind:
    """How many lines of a kind may be written now, and how many were left out since the last one that was."""

    def __init__(self, now_s: float) -> None:
        self.room = float(AT_ONCE)
        self.since_s = now_s
        self.left_out = 0


class Console:
    """Writes whole lines to a descriptor and never waits for it.

    Args:
        fd: The descriptor.
        quiet: Whether only errors are written.
        clock_s: A monotone clock.
    """

    def __init__(self, fd: int = 2, *, quiet: bool = False, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._fd = fd
        self._is_quiet = quiet
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._dropped = 0
        self._kinds: dict[str, _Kind] = {}
        self._is_ready = Readiness(fd)

    def line(self, text: str, *, kind: str = "") -> None:
        """Write `mcpguard: text`. If the descriptor is full the line is dropped; a later line says how many were.

        Args:
            text: The line.
            kind: Names lines of which a client can cause any number: `AT_ONCE` of a kind are written at once, then one every
                `EVERY_S`, which says how many were left out. A kind must not contain names that a client chooses.
        """
        if not self._is_quiet:
            self._write(text, kind)

    def error(self, text: str, *, kind: str = "") -> None:
        """Write a line about something that somebody has to mend, or that is mended, even if the console is quiet."""
        self._write(text, kind)

    def internal_error(self, error: Exception) -> None:
        """Write a line about a bug in mcpguard."""
        self.error(f"internal error, please report it: {error!r}", kind="internal error")

    def _write(self, text: str, kind: str) -> None:
        with self._lock:
            if kind:
                left_out = self._left_out(kind)
                if left_out is None:
                    return
                if left_out:
                    text += f" ({left_out} more like this were left out)"
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

    def _left_out(self, kind: str) -> int | None:
        """How many lines of a kind were left out before this one; None if this one has to be left out, too."""
        now_s = self._clock_s()
        one = self._kinds.setdefault(kind, _Kind(now_s))
        one.room = min(AT_ONCE, one.room + (now_s - one.since_s) / EVERY_S)
        one.since_s = now_s
        if one.room < 1.0:
            one.left_out += 1
            return None
        one.room -= 1.0
        left_out, one.left_out = one.left_out, 0
        return left_out
