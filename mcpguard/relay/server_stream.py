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

    def read(self) -> bytes:
        """Some of what comes next; empty at the end. For the pump down.

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
