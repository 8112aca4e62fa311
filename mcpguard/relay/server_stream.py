"""The server's output, as it is read by the downstream loop."""

import os
import sys
import threading
from collections import deque
from typing import Final

from mcpguard.relay.readiness import has_bytes

CHUNK_BYTES: Final = 64 * 1024
"""The size of a pipe."""

MAX_HELD_BYTES: Final = 32 * 1024 * 1024
"""The most bytes that are read ahead. Then the server has to wait for the client."""


class ServerStream:
    """The server's output. The downstream loop reads it; the upstream loop reads it ahead to resolve a deadlock.

    A client that writes thousands of calls before it reads an answer leaves no room for answers. Then the downstream loop waits
    for the client, the server for the downstream loop, and the upstream loop for the server. So the upstream loop reads ahead,
    which lets the server go on.

    Args:
        fd: mcpguard's end of the server's standard output.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._reading = threading.Lock()
        self._held: deque[bytes] = deque()
        self._held_bytes = 0
        self._passed_bytes = 0
        self._end_bytes = sys.maxsize  # the length at which the stream ends, even if its pipe does not

    def read(self) -> bytes:
        """The next bytes; empty at the end. Only the downstream loop calls it.

        Raises:
            OSError: The stream is broken.
        """
        with self._reading:
            if self._passed_bytes >= self._end_bytes:
                return b""
            chunk = self._held.popleft() if self._held else b""
            if chunk:
                self._passed_bytes += len(chunk)
                self._held_bytes -= len(chunk)  # last, so that `end`, which takes no lock, counts no byte too few
            else:
                chunk = os.read(self._fd, CHUNK_BYTES)
                self._passed_bytes += len(chunk)
            return chunk

    def end(self) -> None:
        """End the stream after what the server, which is gone, can have written, even if another process goes on writing."""
        waiting = self._held_bytes + 2 * CHUNK_BYTES  # held; in the pipe; in a read that is under way
        self._end_bytes = waiting + self._passed_bytes

    @property
    def has_more(self) -> bool:
        """Whether there are bytes to read, or the end."""
        return bool(self._held) or has_bytes(self._fd)

    def read_ahead(self) -> bool:
        """Read some bytes ahead if the downstream loop is busy; returns whether there were any. Does not wait."""
        if self._held_bytes >= MAX_HELD_BYTES or not self._reading.acquire(blocking=False):
            return False
        try:
            if not has_bytes(self._fd):
                return False
            chunk = os.read(self._fd, CHUNK_BYTES)
            if not chunk:
                return False  # the end, which the downstream loop has to read
            self._held.append(chunk)
            self._held_bytes += len(chunk)
        except OSError:
            return False
        finally:
            self._reading.release()
        return True
