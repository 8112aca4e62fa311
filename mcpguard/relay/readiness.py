"""Whether a descriptor is ready for a read or a write, and waiting until it is.

Reads and writes of the client's descriptors may be non-blocking: a process that shares a descriptor can set that for all of
them, and Node does.
"""

import sys
from collections.abc import Callable
from typing import Final

STUCK_S: Final = 2.0
"""How long a server may take nothing after its client has left, before it is given up."""

PAUSE_S: Final = 10.0
"""How long a client may take nothing, after it has closed its side or the server has ended, before it is given up."""

LOOK_S: Final = 0.01
"""How often a thread that waits for the server looks for other work."""

if sys.platform == "win32":

    class Readiness:
        """Windows cannot tell: a pipe is never called ready, so that only a thread that may wait writes to it."""

        def __init__(self, fd: int) -> None:
            self._fd = fd

        def __call__(self) -> bool:
            """Whether a write of `PIPE_BUF` bytes would return at once."""
            return False

    class ServerInput:
        """On Windows a write to a pipe blocks, so that there is nothing to wait for."""

        def __init__(self, fd: int) -> None:
            del fd

        def wait(self, client: int, work: Callable[[], bool]) -> None:
            """Return at once."""

    class ClientEnd:
        """Windows cannot tell without a read."""

        def __init__(self, fd: int) -> None:
            del fd

        def __call__(self) -> bool:
            """Whether the client has closed its side."""
            return False

    def has_bytes(fd: int) -> bool:
        """Whether a read would return at once: Windows cannot tell."""
        return False

    def await_bytes(fd: int) -> None:
        """Return at once: reads block on Windows."""

    def await_room(fd: int) -> None:
        """Return at once: writes block on Windows."""

else:
    import os
    import select
    import time

    _ITS_END: Final = getattr(select, "POLLRDHUP", 0)
    """The event for the end of the other side. A pipe's is always reported; half a socket's only if asked for, on Linux."""

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
            return any(event & select.POLLOUT for _, event in self._poll.poll(0))

    class ServerInput:
        """The pipe to the server. It is made non-blocking, so that the writer can do other work while the pipe is full.

        Args:
            fd: The pipe.
        """

        def __init__(self, fd: int) -> None:
            self._fd = fd
            os.set_blocking(fd, False)

        def wait(self, client: int, work: Callable[[], bool]) -> None:
            """Wait until the pipe takes bytes, or the server has closed it.

            Args:
                client: The descriptor that the client writes to.
                work: Called while the pipe is full; called again at once if it returns that it did something.

            Raises:
                ConnectionAbortedError: The client has closed its end of `client`, and the server has not taken a byte for
                    `STUCK_S` since.
            """
            poll = select.poll()
            poll.register(self._fd, select.POLLOUT)
            poll.register(client, _ITS_END)
            deadline = float("inf")
            while time.monotonic() < deadline:
                told = dict(poll.poll(0 if work() else LOOK_S * 1000))
                if self._fd in told:
                    return
                if client in told:
                    poll.unregister(client)
                    deadline = time.monotonic() + STUCK_S
            raise ConnectionAbortedError

    class ClientEnd:
        """Tells that the client has closed its side, even if there are still bytes to be read.

        Args:
            fd: The descriptor that the client writes to.
        """

        def __init__(self, fd: int) -> None:
            self._fd = fd

        def __call__(self) -> bool:
            """Whether the client has closed its side. From any thread."""
            poll = select.poll()  # a new one: two threads must not use the same object
            poll.register(self._fd, _ITS_END)
            return bool(poll.poll(0))

    def has_bytes(fd: int) -> bool:
        """Whether a read would return at once."""
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(0))

    def await_bytes(fd: int) -> None:
        """Wait until there are bytes to read, or the end."""
        _await(fd, select.POLLIN)

    def await_room(fd: int) -> None:
        """Wait until a write takes bytes, or fails."""
        _await(fd, select.POLLOUT)

    def _await(fd: int, event: int) -> None:
        poll = select.poll()
        poll.register(fd, event)
        poll.poll()
