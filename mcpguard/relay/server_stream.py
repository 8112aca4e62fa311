"""What the server writes, on its way to the pump."""

import os
import threading
from collections import deque
from typing import Final

from mcpguard.relay.readiness import has_bytes

CHUNK_BYTES: Final = 64 * 1024
"""What a pipe holds."""

MAX_HELD_BYTES: Final = 32 * 1024 * 1024
"""What may wait for the client to read before the server has to."""


class ServerStream:
    """The server's output, read by one pump, and read ahead of it where nothing else would go on.

    A client that writes thousands of calls before it reads one leaves no room for their answers. The pump then waits for the
    client, the server for the pump, and whoever writes to the server for the server: that one reads ahead meanwhile.

    Args:
        fd: Our end of the server's standard output.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._reading = threading.Lock()
        self._held: deque[bytes] = deque()
        self._held_bytes = 0

    def read(self) -> bytes:
        """Some of what comes next; empty at the end. For the pump.

        Raises:
            OSError: The stream is broken.
        """
        with self._reading:
            if not self._held:
                return os.read(self._fd, CHUNK_BYTES)
            chunk = self._held.popleft()
            self._held_bytes -= len(chunk)
            return chunk

    def read_ahead(self) -> bool:
        """Read some for the pump to come if that is busy with what it has; whether there was any. Does not wait."""
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
