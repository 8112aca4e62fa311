"""Whether a descriptor takes bytes without waiting."""

import sys

if sys.platform == "win32":

    class Readiness:
        """There is no way to tell on Windows: a pipe is never called ready, so that a thread that may wait writes to it."""

        def __init__(self, fd: int) -> None:
            self._fd = fd

        def __call__(self) -> bool:
            """Whether a write of `PIPE_BUF` bytes would not wait."""
            return False

else:
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
