"""The server's output, and the loop that moves it to the client: bytes pass unchanged, and are kept."""

import os
import sys
import threading
from collections import deque
from collections.abc import Callable

from mcpguard.light_typing import Final
from mcpguard.relay.dispatch import Dispatcher
from mcpguard.relay.output import ClientOutput
from mcpguard.relay.readiness import CHUNK_BYTES, has_bytes

MAX_AHEAD_BYTES: Final = 32 * 1024 * 1024
"""The most bytes that are read ahead. Then the server has to wait for the client."""

MAX_UNREAD_BYTES: Final = 512 * 1024
"""If more is unread, this loop waits for the session, and has it read twice as much as it passes on, to bound the memory.
Usually the bookkeeper reads the answers while there are no calls."""


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
        self._ahead: deque[bytes] = deque()
        self._ahead_bytes = 0
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
            chunk = self._ahead.popleft() if self._ahead else b""
            if chunk:
                self._passed_bytes += len(chunk)
                self._ahead_bytes -= len(chunk)  # last, so that `end`, which takes no lock, counts no byte too few
            else:
                chunk = os.read(self._fd, CHUNK_BYTES)
                self._passed_bytes += len(chunk)
            return chunk

    def end(self) -> None:
        """End the stream after what the server, which is gone, can have written, even if another process goes on writing."""
        waiting = self._ahead_bytes + 2 * CHUNK_BYTES  # read ahead; in the pipe; in a read that is under way
        self._end_bytes = waiting + self._passed_bytes

    @property
    def has_more(self) -> bool:
        """Whether there are bytes to read, or the end."""
        return bool(self._ahead) or has_bytes(self._fd)

    def read_ahead(self) -> bool:
        """Read some bytes ahead if the downstream loop is busy; returns whether there were any. Does not wait."""
        if self._ahead_bytes >= MAX_AHEAD_BYTES or not self._reading.acquire(blocking=False):
            return False
        try:
            if not has_bytes(self._fd):
                return False
            chunk = os.read(self._fd, CHUNK_BYTES)
            if not chunk:
                return False  # the end, which the downstream loop has to read
            self._ahead.append(chunk)
            self._ahead_bytes += len(chunk)
        except OSError:
            return False
        finally:
            self._reading.release()
        return True


class Downstream:
    """The loop from the server to the client.

    Args:
        stream: The server's output.
        output: The client's side.
        dispatcher: Keeps chunks that may contain answers, and lets the session read them.

    Attributes:
        kept: Called when a chunk was kept, so that there may be something to record.
    """

    def __init__(self, stream: ServerStream, output: ClientOutput, dispatcher: Dispatcher) -> None:
        self._stream = stream
        self._output = output
        self._dispatcher = dispatcher
        self.kept: Callable[[], None] = lambda: None

    def run(self, ended: Callable[[], None]) -> None:
        """Move bytes until the stream ends.

        Args:
            ended: Called then.
        """
        try:
            while chunk := self._stream.read():
                self._output.relay(chunk, self._observe)
                if self._dispatcher.unread.size_bytes > MAX_UNREAD_BYTES:
                    self._dispatcher.read_answers(2 * len(chunk))
        except OSError:
            pass  # a broken stream counts as ended
        finally:
            ended()

    def _observe(self, chunk: bytes) -> None:
        """Keep a chunk before it is written to the client, because the client may retry as soon as it reads the chunk.

        If the store has to be told of the end of a call, it is told before the client can know of the end.
        """
        session = self._dispatcher.session
        if self._dispatcher.unread.add(chunk, awaits_answers=session is None or session.in_flight.awaits_answers):
            self.kept()
            if session is not None and session.in_flight.to_settle:
                self._dispatcher.read_answers()
