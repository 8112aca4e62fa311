"""Whether a descriptor is ready for a read or a write, and how to wait until it is.

Reads and writes of the client's descriptors may be non-blocking. That is a property of the open file, which any process that
shares it can set, and Node does.
"""

import sys
from collections.abc import Callable
from typing import Final

STUCK_S: Final = 2.0
"""How long a server may take nothing after the client has gone. Then the remaining bytes are discarded."""

LOOK_S: Final = 0.01
"""How often a thread that waits looks for other work, or for the end of the client."""

if sys.platform == "win32":
    import ctypes
    import msvcrt
    import threading
    import time

    class Readiness:
        """On Windows a pipe never counts as ready, because Windows cannot tell: only threads that may block write to it."""

        def __init__(self, fd: int) -> None:
            self._fd = fd

        def __call__(self) -> bool:
            """Whether a write of `PIPE_BUF` bytes would return at once."""
            return False

    class ServerInput:
        """On Windows the writes themselves block."""

        def __init__(self, fd: int) -> None:
            del fd

        def wait(self, client_is_gone: Callable[[], bool], work: Callable[[], bool]) -> None:
            """Return at once."""

    class ClientEnd:
        """On Windows only a read can tell."""

        def __init__(self, fd: int) -> None:
            del fd

        def __call__(self) -> bool:
            """Whether the client has closed its side."""
            return False

    class ClientInput:
        """Waits for bytes from the client, for a time. On Windows it looks again and again.

        Args:
            fd: The descriptor that the client writes to.
        """

        def __init__(self, fd: int) -> None:
            self._fd = fd
            self._woken = threading.Event()

        def wait(self, timeout_s: float) -> bool:
            """Wait for bytes, for `wake`, or for this long. Returns whether a read would return at once."""
            until_s = time.monotonic() + timeout_s
            while not self._has_bytes():
                left_s = until_s - time.monotonic()
                if left_s <= 0 or self._woken.wait(min(left_s, LOOK_S)):
                    self._woken.clear()
                    return False
            return True

        def _has_bytes(self) -> bool:
            """Whether there are bytes, or the end; True for a descriptor that is not a pipe, which cannot tell."""
            count = ctypes.c_ulong()
            handle = ctypes.c_void_p(msvcrt.get_osfhandle(self._fd))
            found = ctypes.windll.kernel32.PeekNamedPipe(handle, None, 0, None, ctypes.byref(count), None)
            return not found or count.value > 0

        def wake(self) -> None:
            """End the current wait. From any thread."""
            self._woken.set()

        def close(self) -> None:
            """Do nothing: there is nothing to release."""

    def has_bytes(fd: int) -> bool:
        """Whether a read is known to return at once: never, because Windows cannot tell."""
        return False

    def await_bytes(fd: int) -> None:
        """Return at once: reads block on Windows."""

    def await_room(fd: int) -> None:
        """Return at once: writes block on Windows."""

    def has_reader(fd: int) -> bool:
        """Whether somebody is known to hold the other end of the output: never, because Windows cannot tell."""
        return False

else:
    import contextlib
    import errno
    import io
    import os
    import select
    import threading
    import time

    _PEER_END: Final = getattr(select, "POLLRDHUP", 0)
    """The event for the end of the other side. `poll` always reports a pipe's; half a socket's only if asked to, on Linux."""

    _PIPE_BYTES: Final = 65_536

    def events(poll: select.poll, timeout_ms: float | None = None) -> list[tuple[int, int]]:
        """What `poll` reports. Nothing, perhaps too early, while the system has no memory to wait: a later look can tell."""
        try:
            return poll.poll(timeout_ms)
        except OSError as error:
            if error.errno != errno.ENOMEM:
                raise
        if timeout_ms != 0:
            time.sleep(LOOK_S)
        return []

    class Readiness:
        """Tells whether a write would return at once.

        Args:
            fd: A pipe, a socket, a terminal or a file.
        """

        def __init__(self, fd: int) -> None:
            self._poll = select.poll()
            self._poll.register(fd, select.POLLOUT)

        def __call__(self) -> bool:
            """Whether a write of `PIPE_BUF` bytes would return at once."""
            return any(event & select.POLLOUT for _, event in events(self._poll, 0))

    class ServerInput:
        """The pipe to the server, made non-blocking, so that the writer can do other work while the pipe is full.

        Args:
            fd: The pipe.
        """

        def __init__(self, fd: int) -> None:
            self._fd = fd
            os.set_blocking(fd, False)

        def wait(self, client_is_gone: Callable[[], bool], work: Callable[[], bool]) -> None:
            """Wait until the pipe takes bytes, or the server has closed it.

            Args:
                client_is_gone: Tells whether the client has closed both its ends.
                work: Called while the pipe is full, and again at once if it returns True.

            Raises:
                ConnectionAbortedError: The client is gone, and the server has not taken a byte for `STUCK_S` since.
            """
            poll = select.poll()
            poll.register(self._fd, select.POLLOUT)
            deadline = float("inf")
            while time.monotonic() < deadline:
                if events(poll, 0 if work() else LOOK_S * 1000):
                    return
                if deadline == float("inf") and client_is_gone():
                    deadline = time.monotonic() + STUCK_S
            raise ConnectionAbortedError

    class ClientEnd:
        """Tells whether the client has closed its side, even while there are bytes to read.

        Args:
            fd: The descriptor that the client writes to.
        """

        def __init__(self, fd: int) -> None:
            self._fd = fd

        def __call__(self) -> bool:
            """Whether the client has closed its side. From any thread."""
            poll = select.poll()  # a new one: two threads must not use the same object
            poll.register(self._fd, _PEER_END)
            return bool(events(poll, 0))

    class ClientInput:
        """Waits for bytes from the client, for a time.

        Args:
            fd: The descriptor that the client writes to.
        """

        def __init__(self, fd: int) -> None:
            self._fd = fd
            self._pipe: tuple[io.FileIO, io.FileIO] | None = None  # `wake` writes to the second end
            self._waking = threading.Lock()

        def wait(self, timeout_s: float) -> bool:
            """Wait for bytes, for `wake`, or for this long. Returns whether a read would return at once.

            The first wait returns at once: only from then on does `wake` end a wait. Without a free descriptor for a pipe,
            a wait lasts at most `LOOK_S` instead.
            """
            if self._pipe is None:
                timeout_s = 0 if self._open_pipe() else min(timeout_s, LOOK_S)
            poll = select.poll()
            poll.register(self._fd, select.POLLIN)
            if self._pipe:
                poll.register(self._pipe[0], select.POLLIN)
            found = dict(events(poll, int(timeout_s * 1000 + 0.999)))  # rounded up
            if self._pipe and self._pipe[0].fileno() in found:
                self._pipe[0].read(_PIPE_BYTES)
            return self._fd in found

        def _open_pipe(self) -> bool:
            """Open the pipe; returns whether there were descriptors for it."""
            try:
                woken, waking = os.pipe()
            except OSError:
                return False
            os.set_blocking(woken, False)
            os.set_blocking(waking, False)
            self._pipe = io.FileIO(woken), io.FileIO(waking, "w")
            return True

        def wake(self) -> None:
            """End the current wait, or the next one. From any thread."""
            with self._waking:
                if self._pipe is not None:
                    self._pipe[1].write(b"!")  # if the pipe is full, the wait will end anyway

        def close(self) -> None:
            """Release the pipe. Nobody waits now."""
            with self._waking:
                pipe, self._pipe = self._pipe, None
            for end in pipe or ():
                with contextlib.suppress(OSError):
                    end.close()

    def has_bytes(fd: int) -> bool:
        """Whether a read would return at once."""
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(events(poll, 0))

    def await_bytes(fd: int) -> None:
        """Wait until there are bytes to read, or the end."""
        _await(fd, select.POLLIN)

    def await_room(fd: int) -> None:
        """Wait until a write takes bytes, or fails."""
        _await(fd, select.POLLOUT)

    def _await(fd: int, event: int) -> None:
        poll = select.poll()
        poll.register(fd, event)
        while not events(poll):
            pass

    def watch_reader(poll: select.poll, fd: int) -> None:
        """Have `poll` report that nobody reads from a descriptor any more. Only Linux does.

        A pipe is reported when its last reader closes it, a terminal when it hangs up, a socket when its other side is closed,
        a file and `/dev/null` never. A socket of which the other side has closed only the half that it writes has a reader.
        """
        if sys.platform == "linux":
            poll.register(fd, 0)  # errors and the end are reported whatever is asked for

    def has_reader(fd: int) -> bool:
        """Whether somebody is known to hold the other end of the output; see `watch_reader`."""
        if sys.platform != "linux":
            return False
        poll = select.poll()
        watch_reader(poll, fd)
        return not events(poll, 0)
