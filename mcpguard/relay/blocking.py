"""Reads, writes and waits by threads, for a system on which nobody can tell whether a pipe is ready, such as Windows.

It has the interface of `readiness`. Nothing in it is Windows' own.
"""

import os
import signal
import sys
import threading
from collections import deque
from queue import Empty, SimpleQueue

from mcpguard.light_typing import Final
from mcpguard.relay import threads

AT_ONCE_BYTES: Final = 4096
CHUNK_BYTES: Final = 64 * 1024

MAX_UNREAD_BYTES: Final = 32 * 1024 * 1024
"""If more of the client's bytes are not judged yet, no more are read: then its end is not noticed before some are."""

TAKES_S: Final = 0.01
"""How long a write is waited for before the thread that writes does other work."""


def has_room(fd: int) -> bool:
    """Whether a write of `AT_ONCE_BYTES` is known to return at once: never. So only threads that may wait write."""
    return False


def has_bytes(fd: int) -> bool:
    """Whether a read is known to return at once: never."""
    return False


def has_reader(fd: int) -> bool:
    """Whether somebody is known to hold the other end of the output: never."""
    return False


def await_room(fd: int) -> None:
    """Return at once: writes block."""


class ClientInput:
    """Reads what the client writes, in a thread of its own, so that its end is noticed while the server takes nothing.

    Args:
        fd: The descriptor that the client writes to.

    Attributes:
        has_ended: Whether the client has closed its side, even while there are bytes to read.

    Raises:
        McpguardError: The system has no thread left.
    """

    def __init__(self, fd: int) -> None:
        self.has_ended = False
        self._fd = fd
        self._chunks: deque[bytes] = deque()
        self._unread_bytes = 0
        self._is_woken = False
        self._changed = threading.Condition()
        threads.start(self._fetch, "client")

    def _fetch(self) -> None:
        chunk = b"begins"
        while chunk:
            try:
                chunk = os.read(self._fd, CHUNK_BYTES)
            except OSError:  # a broken stream counts as ended
                chunk = b""
            with self._changed:
                if chunk:
                    self._chunks.append(chunk)
                    self._unread_bytes += len(chunk)
                self.has_ended = not chunk
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._unread_bytes <= MAX_UNREAD_BYTES)

    def read(self) -> bytes:
        """The next bytes; empty at the end. Waits for them."""
        with self._changed:
            self._changed.wait_for(self.has_bytes)
            self._changed.notify_all()
            chunk = self._chunks.popleft() if self._chunks else b""
            self._unread_bytes -= len(chunk)
            return chunk

    def has_bytes(self) -> bool:
        """Whether there are bytes to read, or the end."""
        return bool(self._chunks) or self.has_ended

    def wait(self, timeout_s: float) -> bool:
        """Wait for bytes, for `wake`, or for this long. Returns whether a read would return at once."""
        with self._changed:
            self._changed.wait_for(lambda: self.has_bytes() or self._is_woken, timeout_s)
            self._is_woken = False
            return self.has_bytes()

    def wake(self) -> None:
        """End the current wait, or the next one. From any thread."""
        with self._changed:
            self._is_woken = True
            self._changed.notify_all()


class _Writer:
    """Writes pieces in a thread of its own, which is the only one that uses the descriptor.

    Args:
        fd: The descriptor.

    Attributes:
        fd: The same.

    Raises:
        McpguardError: The system has no thread left.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._devnull = os.open(os.devnull, os.O_WRONLY)
        self._pieces: SimpleQueue[bytes] = SimpleQueue()
        self._taken: int | OSError = 0  # what became of the last piece
        self._is_free = threading.Event()
        self._is_free.set()
        threads.start(self._write_pieces, "writer")

    def has_room(self, timeout_s: float) -> bool:
        """Wait at most this long until the last piece is written. Returns whether it is."""
        return self._is_free.wait(timeout_s)

    def _begin(self, piece: bytes) -> None:
        self._is_free.clear()
        self._pieces.put(piece)

    def _write_pieces(self) -> None:
        while True:
            if not (piece := self._pieces.get()):
                os.dup2(self._devnull, self.fd, inheritable=False)  # later writes go nowhere
                continue
            try:
                self._taken = os.write(self.fd, piece)
            except OSError as error:
                self._taken = error
            self._is_free.set()


class ServerInput(_Writer):
    """The pipe to the server."""

    _is_writing = False

    def write(self, data: bytes | memoryview) -> int:
        """Write some bytes; returns how many. Not from two threads at a time.

        Raises:
            BlockingIOError: The server takes none now. Call it again with the same bytes.
            OSError: The server has closed its input.
        """
        if not self._is_writing:
            self._is_writing = True
            self._begin(bytes(data[:CHUNK_BYTES]))
        if not self.has_room(TAKES_S):
            raise BlockingIOError
        self._is_writing = False
        if isinstance(self._taken, OSError):
            raise self._taken
        return self._taken

    def close(self) -> None:
        """End the server's input, after what is being written. From any thread; it does not wait."""
        self._pieces.put(b"")


class LineOutput(_Writer):
    """A descriptor for lines that may get lost."""

    def write(self, data: bytes) -> int:
        """Write without waiting for a reader; returns how many bytes are or will be written: all, or none."""
        if not self.has_room(0):
            return 0
        self._begin(data)
        self.has_room(TAKES_S)  # so that the last line of a process is written
        return len(data)


class Wake:
    """Wakes the main thread, also for signals: here no signal interrupts a wait, but each is written to a pipe.

    Args:
        output: The descriptor that the client reads from. Here nobody can tell when the client leaves.

    Raises:
        McpguardError: The system has no thread left.
    """

    def __init__(self, output: int) -> None:
        del output
        self._queue: SimpleQueue[None] = SimpleQueue()
        self._signals, written = os.pipe()
        if sys.platform != "win32":
            os.set_blocking(written, False)
        signal.set_wakeup_fd(written, warn_on_full_buffer=False)
        threads.start(self._heed_signals, "signals")

    def _heed_signals(self) -> None:
        while os.read(self._signals, CHUNK_BYTES):
            self.set()

    def set(self) -> None:
        """End the current wait, or the next one. From any thread."""
        self._queue.put(None)

    def wait(self, timeout_s: float | None) -> None:
        """Wait until `set` is called, a signal comes or time is up. It may return without a reason."""
        try:
            self._queue.get(timeout=timeout_s)
            while True:
                self._queue.get_nowait()  # all of them are one reason
        except Empty:
            pass
