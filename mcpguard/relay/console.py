"""Lines on stderr, without waiting for whoever reads them, and without filling a log file."""

import threading
import time
from collections.abc import Callable

from mcpguard.light_typing import Final
from mcpguard.relay.readiness import LineOutput
from mcpguard.text.printing import printable

AT_ONCE: Final = 10
"""How many lines of one kind may be written in a burst. After that, one is written every `EVERY_S`."""

EVERY_S: Final = 1.0

MAX_BYTES: Final = 4096
"""How long a line may be. The rest is left out."""


class Console:
    """Writes whole lines to a descriptor and never waits for it.

    Args:
        fd: The descriptor.
        quiet: Whether only errors are written.
        clock_s: A monotone clock.
    """

    def __init__(self, fd: int = 2, *, quiet: bool = False, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._output = LineOutput(fd)
        self._is_quiet = quiet
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._dropped = 0
        self._torn = b""  # ends a line of which only the beginning was written
        self._kinds: dict[str, tuple[float, float, int]] = {}  # by kind: lines allowed, as of when, and left out since

    def line(self, text: str, *, kind: str = "") -> None:
        """Write `mcpguard: text`. If the descriptor is full the line is dropped; a later line says how many were.

        Args:
            text: The line.
            kind: Rations lines of which a client can cause any number: `AT_ONCE` of a kind are written at once, then one every
                `EVERY_S`, which says how many were left out. It must not contain names that a client chooses. Empty for no
                ration.
        """
        if not self._is_quiet:
            self._write(text, kind)

    def error(self, text: str, *, kind: str = "") -> None:
        """Write a line about a fault that somebody has to fix, or about its end, even if the console is quiet."""
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
            if self._dropped:
                text += f" ({self._dropped} lines before this one were dropped: stderr was full)"
            data = self._torn + f"mcpguard: {printable(text)}".encode(errors="backslashreplace")[: MAX_BYTES - 1] + b"\n"
            written = self._output.write(data)
            is_whole = written == len(data)
            self._dropped = 0 if is_whole else self._dropped + 1
            if written:
                self._torn = b"" if is_whole else b"\n"

    def _left_out(self, kind: str) -> int | None:
        """How many lines of a kind were left out before this one; None if this one has to be left out, too."""
        now_s = self._clock_s()
        tokens, since_s, left_out = self._kinds.get(kind, (AT_ONCE, now_s, 0))
        tokens = min(AT_ONCE, tokens + (now_s - since_s) / EVERY_S)
        is_written = tokens >= 1.0
        self._kinds[kind] = (tokens - 1.0, now_s, 0) if is_written else (tokens, now_s, left_out + 1)
        return left_out if is_written else None
