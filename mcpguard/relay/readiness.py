"""Whether a descriptor is ready for a read or a write, how to wait until it is, and how to wake the thread that waits.

Reads and writes of the client's descriptors may be non-blocking. That is a property of the open file, which any process that
shares it can set, and Node does.
"""

import sys
import time
from collections.abc import Callable

from mcpguard.light_typing import Final

__all__ = [
    "AT_ONCE_BYTES",
    "CHUNK_BYTES",
    "ClientInput",
    "LineOutput",
    "ServerInput",
    "Wake",
    "await_room",
    "await_server",
    "has_bytes",
    "has_reader",
    "has_room",
]

LOOK_S: Final = 0.01
"""How often a thread that waits looks for other work, or for the end of the client."""

if sys.platform == "win32":
    from mcpguard.relay.blocking import (
        AT_ONCE_BYTES,
        CHUNK_BYTES,
        ClientInput,
        LineOutput,
        ServerInput,
        Wake,
        await_room,
        has_bytes,
        has_reader,
        has_room,
    )

else:
    import contextlib
    import os
    import select
    import signal
    from functools import partial

    AT_ONCE_BYTES: Final = select.PIPE_BUF
    """A pipe or socket that `poll` calls writable takes this much without blocking: 4096 bytes on Linux, 512 on macOS."""

    CHUNK_BYTES: Final = 64 * 1024
    """The size of a pipe."""

    # That the other end is gone is reported by Linux always, and by macOS if something is asked: then it does not call the
    # descriptor writable. The end of half a socket is reported by Linux if asked, and by macOS to who waits for bytes
    _PEER_END: Final = getattr(select, "POLLRDHUP", 0)
    _READER_END: Final = 0 if sys.platform == "linux" else select.POLLIN
    _GONE: Final = select.POLLHUP | select.POLLERR | _PEER_END | (select.POLLNVAL if sys.platform == "linux" else 0)
    """What is reported if nobody has the other end. An invalid descriptor is closed on Linux, on macOS perhaps a device."""

    LOOK_AGAIN_S: Final = 1.0
    """How often the reader of an output is looked for after macOS has reported the end of one half of a socket."""

    def _seen(fd: int, event: int, timeout_ms: float | None = 0) -> int:
        """The events of a descriptor. From any thread."""
        poll = select.poll()  # a new one: two threads must not use the same object
        poll.register(fd, event)
        return next((seen for _, seen in poll.poll(timeout_ms)), 0)

    def has_room(fd: int) -> bool:
        """Whether a write of `AT_ONCE_BYTES` would return at once, perhaps with an error."""
        return bool(_seen(fd, select.POLLOUT))

    def has_bytes(fd: int) -> bool:
        """Whether a read would return at once."""
        return bool(_seen(fd, select.POLLIN))

    def has_reader(fd: int) -> bool:
        """Whether somebody holds the other end of the output.

        A pipe has no reader when its last one closes it, a terminal when it hangs up, a socket when its other side is closed.
        A file and `/dev/null` always have one, and so has a socket of which the other side has closed the half that it writes.
        """
        return not _seen(fd, select.POLLOUT) & _GONE

    def await_room(fd: int) -> None:
        """Wait until a write takes bytes, or fails."""
        while not _seen(fd, select.POLLOUT, None):
            pass

    def _pipe() -> tuple[int, int]:
        """A pipe of which neither end blocks: the end to read, and the end to write."""
        read, write = os.pipe()
        os.set_blocking(read, False)
        os.set_blocking(write, False)
        return read, write

    class ServerInput:
        """The pipe to the server. Writes do not block, so that the thread that writes can do other work.

        Args:
            fd: Our end of the pipe.

        Attributes:
            fd: The same.
            write: Writes some bytes; returns how many. Raises `BlockingIOError` if the server takes none now.
        """

        def __init__(self, fd: int) -> None:
            self.fd = fd
            self._devnull = os.open(os.devnull, os.O_WRONLY)  # opened early: later there may be no descriptor left
            os.set_blocking(fd, False)
            self.write = partial(os.write, fd)

        def has_room(self, timeout_s: float) -> bool:
            """Wait at most this long until a write would return at once. Returns whether it would."""
            return bool(_seen(self.fd, select.POLLOUT, timeout_s * 1000))

        def close(self) -> None:
            """End the server's input. The descriptor stays open, on the null device: another thread may be about to write."""
            os.dup2(self._devnull, self.fd, inheritable=False)

    class LineOutput:
        """A descriptor for lines that may get lost.

        Args:
            fd: The descriptor.
        """

        def __init__(self, fd: int) -> None:
            self._fd = fd

        def write(self, data: bytes) -> int:
            """Write without waiting for a reader; returns how many bytes were written."""
            written = 0
            with contextlib.suppress(OSError):
                while written < len(data) and has_room(self._fd):
                    written += os.write(self._fd, data[written : written + AT_ONCE_BYTES])
            return written

    class ClientInput:
        """Reads what the client writes.

        Args:
            fd: The descriptor that the client writes to.
        """

        def __init__(self, fd: int) -> None:
            self._fd = fd
            self._woken, self._wake = _pipe()  # there are descriptors: the server's start has just closed some

        def read(self) -> bytes:
            """The next bytes; empty at the end. Waits for them.

            Raises:
                OSError: The stream is broken.
            """
            while True:
                try:
                    return os.read(self._fd, CHUNK_BYTES)
                except BlockingIOError:
                    _seen(self._fd, select.POLLIN, None)

        def has_bytes(self) -> bool:
            """Whether there are bytes to read, or the end."""
            return has_bytes(self._fd)

        @property
        def has_ended(self) -> bool:
            """Whether the client has closed its side, even while there are bytes to read."""
            return bool(_seen(self._fd, select.POLLIN | _PEER_END) & _GONE)

        def wait(self, timeout_s: float) -> bool:
            """Wait for bytes, for `wake`, or for this long. Returns whether a read would return at once."""
            poll = select.poll()
            poll.register(self._fd, select.POLLIN)
            poll.register(self._woken, select.POLLIN)
            found = dict(poll.poll(int(timeout_s * 1000 + 0.999)))  # rounded up
            if self._woken in found:
                os.read(self._woken, CHUNK_BYTES)
            return self._fd in found

        def wake(self) -> None:
            """End the current wait, or the next one. From any thread."""
            with contextlib.suppress(BlockingIOError):  # full: it will wake anyway
                os.write(self._wake, b"!")

    class Wake:
        """A pipe that signals are written to as well, so that a signal just before the wait ends the wait, too.

        Args:
            output: The descriptor that the client reads from. When nobody reads from it any more, the wait ends once.
        """

        def __init__(self, output: int) -> None:
            self._output = output
            self._read, self._write = _pipe()
            signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
            self._poll = select.poll()
            self._poll.register(self._read, select.POLLIN)
            self._poll.register(output, _READER_END)
            self._looks_again = False

        def set(self) -> None:
            """End the current wait, or the next one."""
            with contextlib.suppress(BlockingIOError):  # full: it will wake anyway
                os.write(self._write, b"!")

        def wait(self, timeout_s: float | None) -> None:
            """Wait until `set` is called, a signal comes, the reader leaves or time is up. It may return without a reason."""
            if self._looks_again:
                timeout_s = LOOK_AGAIN_S if timeout_s is None else min(timeout_s, LOOK_AGAIN_S)
            is_reported = self._output in dict(self._poll.poll(None if timeout_s is None else timeout_s * 1000))
            if is_reported:
                self._poll.unregister(self._output)  # it would end every later wait at once
            self._looks_again = (is_reported or self._looks_again) and has_reader(self._output)
            with contextlib.suppress(BlockingIOError):
                os.read(self._read, CHUNK_BYTES)


def await_server(pipe: ServerInput, client_is_gone: Callable[[], bool], work: Callable[[], bool], stuck_s: float) -> None:
    """Wait until the server takes bytes, or has closed its input.

    Args:
        pipe: The pipe to the server.
        client_is_gone: Tells whether the client has closed both its ends.
        work: Called while the pipe is full, and again at once if it returns True.
        stuck_s: How long the server may take nothing after the client has gone.

    Raises:
        ConnectionAbortedError: The client is gone, and the server has not taken a byte for `stuck_s` since.
    """
    deadline = float("inf")
    while time.monotonic() < deadline:
        if pipe.has_room(0 if work() else LOOK_S):
            return
        if deadline == float("inf") and client_is_gone():
            deadline = time.monotonic() + stuck_s
    raise ConnectionAbortedError
