"""Wakes the main thread: from a signal's handler, or from another thread."""

import sys

if sys.platform == "win32":
    import contextlib
    from queue import Empty, SimpleQueue

    TICK_S = 0.2

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
    import os
    import select
    import signal

    from mcpguard.relay.readiness import events, watch_reader

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
            watch_reader(self._poll, output)

        def set(self) -> None:
            """End the current wait, or the next one."""
            with contextlib.suppress(BlockingIOError):  # full: it will wake anyway
                os.write(self._write, b"!")

        def wait(self, timeout_s: float | None) -> None:
            """Wait until `set` is called, a signal comes, the reader leaves or time is up. It may return without a reason."""
            if self._output in dict(events(self._poll, None if timeout_s is None else timeout_s * 1000)):
                self._poll.unregister(self._output)  # it would end every later wait at once
            with contextlib.suppress(BlockingIOError):
                os.read(self._read, 1 << 16)
