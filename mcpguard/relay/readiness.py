"""Whether a descriptor is ready for a read or a write, how to wait until it is, and how to wake the thread that waits.

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

TICK_S: Final = 0.2
"""How often the main thread looks for a signal on Windows."""

if sys.platform == "win32":
    import contextlib
    import ctypes
    import msvcrt
    import threading
    import time
    from queue import Empty, SimpleQueue

    # Windows cannot tell whether a pipe is ready, whether its other end is open, or whether the client has closed its side
    def has_room(fd: int) -> bool:
        """Whether a write of `PIPE_BUF` bytes is known to return at once: never. So only threads that may block write."""
        return False

    def has_bytes(fd: int) -> bool:
        """Whether a read is known to return at once: never."""
        return False

    def has_ended(fd: int) -> bool:
        """Whether the client is known to have closed its side: never."""
        return False

    def has_reader(fd: int) -> bool:
        """Whether somebody is known to hold the other end of the output: never."""
        return False

    def await_bytes(fd: int) -> None:
        """Return at once: reads block on Windows."""

    def await_room(fd: int) -> None:
        """Return at once: writes block on Windows."""

    def await_server(fd: int, client_is_gone: Callable[[], bool], work: Callable[[], bool]) -> None:
        """Return at once: writes block on Windows."""

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

    class Wake:
        """A queue, polled every `TICK_S`, because on Windows no signal interrupts the wait for a lock.

        Args:
            output: The descriptor that the client reads from.
        """

        def __init__(self, output: int) -> None:
            del output
            self._queue: SimpleQueue[None] = SimpleQueue()

        def set(self) -> None:
            """End the current wait, or the next one."""
            self._queue.put(None)

        def wait(self, timeout_s: float | None) -> None:
            """Wait until `set` is called, a signal comes or time is up. It may return without a reason."""
            with contextlib.suppress(Empty):
                self._queue.get(timeout=TICK_S if timeout_s is None else min(timeout_s, TICK_S))

else:
    import contextlib
    import errno
    import io
    import os
    import select
    import signal
    import threading
    import time

    _PEER_END: Final = getattr(select, "POLLRDHUP", 0)
    """The event for the end of the other side. `poll` always reports a pipe's; half a socket's only if asked to, on Linux."""

    _PIPE_BYTES: Final = 65_536

    def _events(poll: select.poll, timeout_ms: float | None = None) -> list[tuple[int, int]]:
        """What `poll` reports. Nothing, perhaps too early, while the system has no memory to wait: a later look can tell."""
        try:
            return poll.poll(timeout_ms)
        except OSError as error:
            if error.errno != errno.ENOMEM:
                raise
        if timeout_ms != 0:
            time.sleep(LOOK_S)
        return []

    def _seen(fd: int, event: int, timeout_ms: float | None = 0) -> int:
        """The events of a descriptor. From any thread."""
        poll = select.poll()  # a new one: two threads must not use the same object
        poll.register(fd, event)
        return next((seen for _, seen in _events(poll, timeout_ms)), 0)

    def has_room(fd: int) -> bool:
        """Whether a write of `PIPE_BUF` bytes would return at once."""
        return bool(_seen(fd, select.POLLOUT) & select.POLLOUT)

    def has_bytes(fd: int) -> bool:
        """Whether a read would return at once."""
        return bool(_seen(fd, select.POLLIN))

    def has_ended(fd: int) -> bool:
        """Whether the client has closed its side, even while there are bytes to read."""
        return bool(_seen(fd, _PEER_END))

    def has_reader(fd: int) -> bool:
        """Whether somebody is known to hold the other end of the output; see `_watch_reader`."""
        return sys.platform == "linux" and not _seen(fd, 0)

    def await_bytes(fd: int) -> None:
        """Wait until there are bytes to read, or the end."""
        while not _seen(fd, select.POLLIN, None):
            pass

    def await_room(fd: int) -> None:
        """Wait until a write takes bytes, or fails."""
        while not _seen(fd, select.POLLOUT, None):
            pass

    def await_server(fd: int, client_is_gone: Callable[[], bool], work: Callable[[], bool]) -> None:
        """Wait until the pipe to the server, which is non-blocking, takes bytes, or the server has closed it.

        Args:
            fd: The pipe.
            client_is_gone: Tells whether the client has closed both its ends.
            work: Called while the pipe is full, and again at once if it returns True.

        Raises:
            ConnectionAbortedError: The client is gone, and the server has not taken a byte for `STUCK_S` since.
        """
        deadline = float("inf")
        while time.monotonic() < deadline:
            if _seen(fd, select.POLLOUT, 0 if work() else LOOK_S * 1000):
                return
            if deadline == float("inf") and client_is_gone():
                deadline = time.monotonic() + STUCK_S
        raise ConnectionAbortedError

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
            found = dict(_events(poll, int(timeout_s * 1000 + 0.999)))  # rounded up
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

    def _watch_reader(poll: select.poll, fd: int) -> None:
        """Have `poll` report that nobody reads from a descriptor any more. Only Linux does.

        A pipe is reported when its last reader closes it, a terminal when it hangs up, a socket when its other side is closed,
        a file and `/dev/null` never. A socket of which the other side has closed only the half that it writes has a reader.
        """
        if sys.platform == "linux":
            poll.register(fd, 0)  # errors and the end are reported whatever is asked for

    class Wake:
        """A pipe that signals are written to as well, so that a signal just before the wait ends the wait, too.

        Args:
            output: The descriptor that the client reads from. When nobody reads from it any more, the wait ends once.
        """

        def __init__(self, output: int) -> None:
            self._output = output
            self._read, write = os.pipe()
            os.set_blocking(self._read, False)
            os.set_blocking(write, False)
            self._write = write
            signal.set_wakeup_fd(write, warn_on_full_buffer=False)
            self._poll = select.poll()
            self._poll.register(self._read, select.POLLIN)
            _watch_reader(self._poll, output)

        def set(self) -> None:
            """End the current wait, or the next one."""
            with contextlib.suppress(BlockingIOError):  # full: it will wake anyway
                os.write(self._write, b"!")

        def wait(self, timeout_s: float | None) -> None:
            """Wait until `set` is called, a signal comes, the reader leaves or time is up. It may return without a reason."""
            if self._output in dict(_events(self._poll, None if timeout_s is None else timeout_s * 1000)):
                self._poll.unregister(self._output)  # it would end every later wait at once
            with contextlib.suppress(BlockingIOError):
                os.read(self._read, _PIPE_BYTES)
