"""The life of one `mcpguard run`: from the server's start to everybody's end.

However it ends (the client closes its side, the server exits, a signal comes), every wait is bounded and named here, every
request in flight is answered, nothing that the server started is left behind, and the exit status is the server's.
"""

import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from mcpguard.relay.child import Child
from mcpguard.relay.wake import Wake

if TYPE_CHECKING:  # loaded while the server boots; we are needed before it starts
    from mcpguard.relay.console import Console
    from mcpguard.relay.pumps import Pumps

GRACE_AFTER_EOF_S: Final = 2.0
"""After the client has closed its side: for the server's last answers and its own exit. What both SDKs' clients wait."""

GRACE_AFTER_TERM_S: Final = 2.0
"""After SIGTERM, before SIGKILL."""

GRACE_AFTER_SIGNAL_S: Final = 1.0
"""After a signal to us that was passed on: clients kill a wrapper that is not gone in two seconds."""

DRAIN_S: Final = 2.0
DRAIN_AFTER_SIGNAL_S: Final = 0.3
"""After the server's exit: for the client to read what it wrote last, and then our last answers."""

_NAMES: Final = ("SIGTERM", "SIGINT", "SIGHUP", "SIGBREAK")
_ENDING: Final = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))


class Life:
    """Supervises the server and the pumps.

    Make it in the main thread before the server is started, so that no signal finds us without a handler.
    """

    def __init__(self) -> None:
        self._events: set[str] = set()
        self._signals: list[int] = []
        self._woken = Wake()
        for number in _ENDING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._on_signal)
        if sys.platform != "win32":
            signal.signal(signal.SIGCHLD, self._on_exit)

    def ended(self, side: str) -> None:
        """Note that a stream has ended: `client` or `server`. From any thread."""
        self._events.add(side)
        self._woken.set()

    def _on_signal(self, number: int, _frame: object) -> None:
        self._signals.append(number)
        self._woken.set()

    def _on_exit(self, *_: object) -> None:
        self._woken.set()

    def supervise(self, child: Child, pumps: "Pumps", console: "Console") -> int:
        """Wait for the end, and bring it about in order.

        Returns:
            The exit status: the server's.
        """
        if sys.platform == "win32":
            threading.Thread(target=child.wait, args=(self._on_exit,), daemon=True).start()
        self._wait(lambda: child.poll() is not None or bool(self._events or self._signals))
        if self._signals:
            self._end(child, self._signals[0], GRACE_AFTER_SIGNAL_S)
        elif child.poll() is None:
            self._end_of_stream(child)
        how = f"server exited with status {child.status}"
        child.kill()
        drain_s = DRAIN_AFTER_SIGNAL_S if self._signals else DRAIN_S
        deadline_s = time.monotonic() + drain_s
        self._wait(lambda: "server" in self._events, drain_s)
        if not (self._signals or "client" in self._events):
            console.line(how)
        pumps.finish(how, deadline_s)
        return child.status or 0

    def _end_of_stream(self, child: Child) -> None:
        """One side has ended and the server lives: give it time, then end it. A signal cuts that short."""
        child.close_stdin()
        self._wait(lambda: child.poll() is not None or bool(self._signals), GRACE_AFTER_EOF_S)
        if child.poll() is None:
            first = self._signals[0] if self._signals else signal.SIGTERM
            self._end(child, first, GRACE_AFTER_SIGNAL_S if self._signals else GRACE_AFTER_TERM_S)

    def _end(self, child: Child, number: int, grace_s: float) -> None:
        """Ask the server's group to end; kill it if it does not."""
        child.signal(number)
        if not self._wait(lambda: child.poll() is not None, grace_s):
            child.kill()
            self._wait(lambda: child.poll() is not None)

    def _wait(self, done: Callable[[], bool], timeout_s: float | None = None) -> bool:
        """Wait until `done`, which a signal or the end of a stream brings about; False if that took too long."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not done():
            left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
            if left_s == 0.0:
                return False
            self._woken.wait(left_s)
        return True
