"""The output to the client: the server's stream, and mcpguard's replies, which are written between two frames."""

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable

from mcpguard.errors import McpguardError
from mcpguard.light_typing import Final
from mcpguard.relay import threads
from mcpguard.relay.readiness import AT_ONCE_BYTES, LOOK_S, await_room, has_reader, has_room

MAX_QUEUED_BYTES: Final = 32 * 1024 * 1024
"""If more bytes of replies are queued, mcpguard reads nothing from the client until the client has read some."""

_TOGETHER_BYTES: Final = 16 * 1024
"""Short replies are written together until they have this many bytes. The rest of the queue is not copied."""


class ClientOutput:
    """Writes to the client, from several threads.

    Args:
        fd: The descriptor that the client reads from.
        gone: Called once when the client has closed its end.
        most_queued_bytes: See `MAX_QUEUED_BYTES`.

    Attributes:
        taken: How many bytes the client or its pipe has taken.
        queued_bytes: How many bytes of replies are queued.
    """

    def __init__(self, fd: int, gone: Callable[[], None], most_queued_bytes: int = MAX_QUEUED_BYTES) -> None:
        self.taken = 0
        self._fd = fd
        self._gone = gone
        self._most_queued_bytes = most_queued_bytes
        self._writing = threading.Lock()
        self._changed = threading.Condition(threading.Lock())
        self._queue: deque[bytes] = deque()
        self.queued_bytes = 0
        self._in_frame = False
        self._broken = False
        self._finished = False
        self._replier: threading.Thread | None = None

    def relay(self, chunk: bytes, observe: Callable[[bytes], None]) -> None:
        """Write a chunk of the server's, and queued replies where a frame ends. Waits for the client.

        Args:
            chunk: What the server wrote.
            observe: Called with the chunk before it is written. After `finish` it is not called, and nothing is written.
        """
        with self._writing:
            if self._finished:
                return
            observe(chunk)
            if self._queue and not chunk.endswith(b"\n"):
                end = chunk.rfind(b"\n") + 1
                self._write(chunk[:end], end)
                self._in_frame = self._in_frame and not end
                self._write_queued()
                chunk = chunk[end:]
            self._write(chunk, len(chunk))
            self._in_frame = not chunk.endswith(b"\n") if chunk else self._in_frame
            if self._queue:
                self._write_queued()
        if self._queue:
            self._wake()

    def reply(self, data: bytes) -> None:
        """Write mcpguard's own frames between two of the server's: at once if that does not block, else from a queue."""
        if not self._queue and self._writing.acquire(blocking=False):
            try:
                if not self._queue and not self._in_frame and len(data) <= AT_ONCE_BYTES and has_room(self._fd):
                    self._write(data)
                    return
            finally:
                self._writing.release()
        with self._changed:
            self._queue.append(data)
            self.queued_bytes += len(data)
            if self._replier is None:
                with contextlib.suppress(McpguardError):  # the system has no thread now: the next reply tries again
                    self._replier = threads.start(self._reply_queued, "replies")
            self._changed.notify_all()

    def await_room(self, client_is_gone: Callable[[], bool]) -> None:
        """Backpressure: wait while more than `most_queued_bytes` are queued.

        Args:
            client_is_gone: Tells whether the client has closed both its ends.

        Raises:
            ConnectionAbortedError: The client is gone.
        """
        with self._changed:
            while self.queued_bytes > self._most_queued_bytes and not self._broken:
                if client_is_gone():
                    raise ConnectionAbortedError
                self._changed.wait(LOOK_S)

    @property
    def has_reader(self) -> bool:
        """Whether the client, or somebody else, is known to hold its end."""
        return has_reader(self._fd)

    @property
    def waits_for_reader(self) -> bool:
        """Whether somebody holds the other end, and has left no room for more."""
        return self.has_reader and not has_room(self._fd)

    @property
    def is_writing(self) -> bool:
        """Whether a write is under way. It lasts until the client takes the bytes."""
        return self._writing.locked()

    def finish(self, last_replies: Callable[[], bytes]) -> None:
        """End the stream: end a frame that the server left open, write all replies, and discard everything later.

        Waits for the client.

        Args:
            last_replies: Returns the last replies. It is called when nothing more from the server is passed on.
        """
        with self._writing:
            self._finished = True
            replies = last_replies()
            if self._in_frame and (replies or self._queue):
                self._write(b"\n")
            self._in_frame = False
            self._write_queued()
            self._write(replies)
            self._broken = True  # the process is about to end, which would cut off a later frame

    def _write(self, data: bytes, at_once: int = AT_ONCE_BYTES) -> None:
        """Write in pieces of `at_once` bytes; discard the data if the client is gone. The caller holds `_writing`.

        A longer write returns only when the client has taken all of it, so `taken` would not show that a slow client reads.
        """
        written = 0
        try:
            while written < len(data) and not self._broken:
                try:
                    count = os.write(self._fd, data[written : written + at_once])
                except BlockingIOError:
                    await_room(self._fd)
                    continue
                written += count
                self.taken += count
        except OSError:
            self._broken = True
            self._wake()
            self._gone()

    def _write_queued(self) -> None:
        """Write the queued replies unless a frame of the server's is open. The caller holds `_writing`."""
        while self._queue and not self._in_frame:
            together: list[bytes] = []
            size = 0
            with self._changed:
                while self._queue and size < _TOGETHER_BYTES:
                    together.append(self._queue.popleft())
                    size += len(together[-1])
            self._write(b"".join(together))
            with self._changed:
                self.queued_bytes -= size
                self._changed.notify_all()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _reply_queued(self) -> None:
        """The thread that writes replies while the server is silent."""
        while True:
            with self._changed:
                while not self._queue or self._in_frame:
                    self._changed.wait()
            with self._writing:
                self._write_queued()
