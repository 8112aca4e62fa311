"""Whether a descriptor takes bytes without waiting."""

import sys
from typing import Final

STUCK_S: Final = 2.0
"""How long a server may take nothing after its client has gone."""

if sys.platform == "win32":

    class Readiness:
        """There is no way to tell on Windows: a pipe is never called ready, so that a thread that may wait writes to it."""

        def __init__(self, fd: int) -> None:
            self._fd = fd

        def __call__(self) -> bool:
            """Whether a write of `PIPE_BUF` bytes would not wait."""
            return False

    class Takes:
        """Writes to a pipe wait in the system on Windows, so that there is nothing to wait for here."""

        def __init__(self, fd: int) -> None:
            del fd

        def wait(self, fd: int, client: int) -> None:
            """Nothing to wait for."""

else:
    import os
    import select

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

    class Takes:
        """Makes writes to a pipe not wait, so that their writer can wait for more than the pipe.

        Args:
            fd: The pipe.
        """

        def __init__(self, fd: int) -> None:
            os.set_blocking(fd, False)

        def wait(self, fd: int, client: int) -> None:
            """Wait until `fd` takes bytes, or its reader is gone.

            Raises:
                ConnectionAbortedError: The client's end of `client` is closed, and the reader has not taken a byte for
                    `STUCK_S` since.
            """
            poll = select.poll()
            poll.register(fd, select.POLLOUT)
            poll.register(client, 0)  # for its end, which is always told
            if fd in dict(poll.poll()):
                return
            poll.unregister(client)
            if not poll.poll(STUCK_S * 1000):
                raise ConnectionAbortedError
