"""What the server writes, on its way to the pump."""

import os
import sys
import threading
from collections import deque
from typing import Final

from mcpguard.relay.readiness import has_bytes

CHUNK_BYTES: Final = 64 * 1024
"""What a pipe holds."""

MAX_HELD_BYTES: Final = 32 * 1024 * 1024
"""What may wait for the client to read before the server has to."""


class ServerStream:
    """The server's output, read by the pump down, and read ahead of it by the pump up where nothing would go on otherwise.

    A client that writes thousands of calls before it reads an answer leaves no room for answers. Then the pump down waits for
    the client, the server for that pump, and the pump up for the server. So the pump up reads ahead, and all of them go on.

    Args:
        fd: Our end of the server's standard output.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._reading = threading.Lock()
        self._held: deque[bytes] = deque()
        self._held_bytes = 0
        self._passed_bytes = 0
        self._end_bytes = sys.maxsize  # where the stream ends though its pipe does not

    def read(self) -> bytes:
        """Some of what comes next; empty at the end. For the pump down.

        Raises:
            OSError: The stream is broken.
        """
        with self._reading:
            if self._passed_bytes >= self._end_bytes:
                return b""
            chunk = self._held.popleft() if self._held else b""
            if chunk:
                self._passed_bytes += len(chunk)
                self._held_bytes -= len(chunk)  # after it: `end` must miss none
            else:
                chunk = os.read(self._fd, CHUNK_BYTES)
                self._passed_bytes += len(chunk)
            return chunk

    def end(self) -> None:
        """The server is gone: what it wrote is in the pipe. The stream ends behind that, whoever else goes on writing to it."""
        waiting = self._held_bytes + 2 * CHUNK_BYTES  # held, in the pipe, and in the hand of whoever is reading now
        self._end_bytes = waiting + self._passed_bytes

    @property
    def has_more(self) -> bool:
        """Whether there is something left to be read, or the end."""
        return bool(self._held) or has_bytes(self._fd)

    def read_ahead(self) -> bool:
        """Read some in advance if the pump down is busy with what it has; whether there was any. Does not wait."""
        if self._held_bytes >= MAX_HELD_BYTES or not self._reading.acquire(blocking=False):
            return False
        try:
            if not has_bytes(self._fd):
                return False
            chunk = os.read(self._fd, CHUNK_BYTES)
            if not chunk:
                return False  # the end is for the pump to find
            self._held.append(chunk)
            self._held_bytes += len(chunk)
        except OSError:
            return False
        finally:
            self._reading.release()
        return True
