"""Whether a descriptor takes or has bytes, and waiting until it does.

The client's descriptors may not wait by themselves: whoever has one open together with us can tell the system so for all, and
Node does.
"""

import sys
from collections.abc import Callable
from typing import Final

STUCK_S: Final = 2.0
"""How long a server may take nothing after its client has gone."""

PAUSE_S: Final = 10.0
"""How long a client may take nothing before it is not waited for: after its end, or the server's."""

LOOK_S: Final = 0.01
"""How often whoever waits for a server looks whether there is something else to do."""

if sys.platform == "win32":

    class Readiness:
        """There is no way to tell on Windows: a pipe is never called ready, so that a thread that may wait writes to it."""

        def __init__(self, fd: int) -> None:
            self._fd = fd

        def __call__(self) -> bool:
            """Whether a write of `PIPE_BUF` bytes would not wait."""
            return False

    class ServerInput:
        """Writes to a pipe wait in the system on Windows, so that there is nothing to wait for here."""

        def __init__(self, fd: int) -> None:
            del fd

        def wait(self, client: int, meanwhile: Callable[[], bool]) -> None:
            """Nothing to wait for."""

    class ClientEnd:
        """There is no way to tell on Windows but to read."""

        def __init__(self, fd: int) -> None:
            del fd

        def __call__(self) -> bool:
            """Whether the client has closed its side."""
            return False

    def has_bytes(fd: int) -> bool:
        """Whether a read would not wait: there is no way to tell on Windows."""
        return False

    def await_bytes(fd: int) -> None:
        """Nothing to wait for: reads wait by themselves on Windows."""

    def await_room(fd: int) -> None:
        """Nothing to wait for: writes wait by themselves on Windows."""

else:
    import os
    import select
    import time

    _ITS_END: Final = getattr(select, "POLLRDHUP", 0)
    """What to ask for to be told of the other side's end: of a pipe's always, of a socket's other half with this, on Linux."""

    class Readiness:
        """Asks the system.

        Args:
            fd: A pipe, a socket, a terminal or a file.
        """

        def __init__(self, fd: int) -> None:
            self._poll = select.poll()
            self._poll.register(fd, select.POLLOUT)

        def __call__(self) -> bool:
            """Whether a write of `PIPE_BUF` bytes would not wait."""
            return any(event & select.POLLOUT for _, event in self._poll.poll(0))

    class ServerInput:
        """The pipe to the server. A write to it never waits, so that the writer can do something else while the pipe is full.

        Args:
            fd: The pipe.
        """

        def __init__(self, fd: int) -> None:
            self._fd = fd
            os.set_blocking(fd, False)

        def wait(self, client: int, meanwhile: Callable[[], bool]) -> None:
            """Wait until the pipe takes bytes, or the server has closed it.

            Args:
                client: Where the client writes to us.
                meanwhile: Done while we wait; again at once as long as it says that it did something.

            Raises:
                ConnectionAbortedError: The client has closed its end of `client`, and the server has not taken a byte for
                    `STUCK_S` since.
            """
            poll = select.poll()
            poll.register(self._fd, select.POLLOUT)
            poll.register(client, _ITS_END)
            deadline = float("inf")
            while time.monotonic() < deadline:
                told = dict(poll.poll(0 if meanwhile() else LOOK_S * 1000))
                if self._fd in told:
                    return
                if client in told:
                    poll.unregister(client)
                    deadline = time.monotonic() + STUCK_S
            raise ConnectionAbortedError

    class ClientEnd:
        """Tells that the client has closed its side while there may still be something to read.

        Args:
            fd: Where the client writes to us.
        """

        def __init__(self, fd: int) -> None:
            self._fd = fd

        def __call__(self) -> bool:
            """Whether the client has closed its side. From any thread."""
            poll = select.poll()  # one of its own: two threads must not ask the same one
            poll.register(self._fd, _ITS_END)
            return bool(poll.poll(0))

    def has_bytes(fd: int) -> bool:
        """Whether a read would not wait."""
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(0))

    def await_bytes(fd: int) -> None:
        """Wait until there is something to read, or the end."""
        _await(fd, select.POLLIN)

    def await_room(fd: int) -> None:
        """Wait until a write takes something, or fails."""
        _await(fd, select.POLLOUT)

    def _await(fd: int, event: int) -> None:
        poll = select.poll()
        poll.register(fd, event)
        poll.poll()
