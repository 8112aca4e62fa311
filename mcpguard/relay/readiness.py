"""Whether a descriptor takes bytes without waiting."""

import sys
from collections.abc import Callable
from typing import Final

STUCK_S: Final = 2.0
"""How long a server may take nothing after its client has gone."""

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

    def has_bytes(fd: int) -> bool:
        """Whether a read would not wait: there is no way to tell on Windows."""
        return False

else:
    import os
    import select
    import time

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
            poll.register(client, 0)  # for its end, which is always told
            deadline = float("inf")
            while time.monotonic() < deadline:
                told = dict(poll.poll(0 if meanwhile() else LOOK_S * 1000))
                if self._fd in told:
                    return
                if client in told:
                    poll.unregister(client)
                    deadline = time.monotonic() + STUCK_S
            raise ConnectionAbortedError

    def has_bytes(fd: int) -> bool:
        """Whether a read would not wait."""
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(0))
