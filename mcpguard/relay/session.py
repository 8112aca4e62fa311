"""The life of one `mcpguard run`: from the server's start to everybody's end.

However it ends, every wait is bounded and named here, and the exit status is the server's.

- The server exits by itself: what it has not answered is answered, if the client is still there, and what it leaves running is
  left alone. If it exits with 0 while somebody holds its output, as a launcher's child does, the session lasts as long as that.
- A signal kills the server: the same, and what it started is killed.
- The client closes its side, or a signal comes to us: the server is given time, then ended with all that it started. Nothing is
  written in its place.
"""

import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from mcpguard.relay.child import Child
from mcpguard.relay.readiness import PAUSE_S
from mcpguard.relay.wake import Wake

if TYPE_CHECKING:  # loaded while the server boots; we are needed before it starts
    from mcpguard.relay.console import Console
    from mcpguard.relay.pumps import Pumps

GRACE_AFTER_EOF_S: Final = 2.0
"""After the client has closed its side: for the server's last answers and its own exit. What both SDKs' clients wait."""

GRACE_AFTER_TERM_S: Final = 2.0
"""After SIGTERM, before SIGKILL."""

GRACE_AFTER_KILL_S: Final = 0.3
"""After SIGKILL, which does not reach a server that runs as another user."""

GRACE_AFTER_SIGNAL_S: Final = 1.0
"""After a signal to us that was passed on: clients kill a wrapper that is not gone in two seconds."""

DRAIN_S: Final = 2.0
DRAIN_AFTER_SIGNAL_S: Final = 0.3
"""After the server's exit: for our last answers, if it is not the client that is slow."""

QUIET_S: Final = 0.25
"""After the server's exit: how long a stream that somebody else holds open is watched for more of what the server wrote."""

BOOKS_S: Final = 0.5
"""How long a session's last rows may take."""

END_AFTER_SIGNAL_S: Final = 1.9
"""After a signal to us: for all of it."""

_NAMES: Final = ("SIGTERM", "SIGINT", "SIGHUP", "SIGBREAK")
_ENDING: Final = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
_SIGKILL: Final = 9


class Life:
    """Supervises the server and the pumps.

    Make it in the main thread before the server is started, so that no signal finds us without a handler.
    """

    def __init__(self) -> None:
        self._events: set[str] = set()
        self._signals: list[int] = []
        self._signalled_s = 0.0
        self._is_launcher = False  # whether it exited with 0 before its client had ended
        self._woken = Wake()
        for number in _ENDING:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._on_signal)
        if sys.platform != "win32":
            signal.signal(signal.SIGCHLD, self._on_exit)

    def ended(self, side: str) -> None:
        """Note what has ended: `client` or `server`, whose stream that was, or `answers`, our last ones. From any thread."""
        self._events.add(side)
        self._woken.set()

    def _on_signal(self, number: int, _frame: object) -> None:
        if not self._signals:
            self._signalled_s = time.monotonic()
        self._signals.append(number)
        self._woken.set()

    def _on_exit(self, *_: object) -> None:
        self._woken.set()

    def supervise(self, child: Child, pumps: "Pumps", console: "Console") -> int:
        """Begin to move bytes, wait for the end, and bring it about in order.

        Returns:
            The exit status: the server's.
        """
        if sys.platform == "win32":
            threading.Thread(target=child.wait, args=(self._on_exit,), daemon=True).start()
        else:  # a client may have them blocked where it starts us; the server has inherited that already
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD, *_ENDING})
        self._is_launcher = child.poll() == 0
        pumps.start()
        self._wait(lambda: child.poll() is not None or self._is_ending)
        if child.status == 0 and "client" not in self._events:  # what it started may serve on: whoever has its pipes does
            self._is_launcher = True
            self._wait(lambda: self._is_ending)
        is_ended_by_us = not self._is_over(child) and self._bring_to_an_end(child, pumps)
        if is_ended_by_us or child.was_killed:
            child.kill()
        status = 128 + _SIGKILL if child.status is None else child.status
        how = f"server exited with status {status}"
        pumps.close_input(how)
        self._drain_stream(child, pumps)
        is_news = not (self._signals or "client" in self._events)
        if is_news:
            (console.error if status else console.line)(how)
        else:
            pumps.client_left()
        pumps.answer_rest(how)
        self._drain_answers(pumps)
        pumps.close_books(self.at_most(BOOKS_S))
        return status

    @property
    def _is_ending(self) -> bool:
        """Whether a side has ended, or a signal has come."""
        return bool(self._events or self._signals)

    def _is_over(self, child: Child) -> bool:
        """Whether the server has ended."""
        return "server" in self._events if self._is_launcher else child.poll() is not None

    def at_most(self, most_s: float) -> float:
        """How long something may still take: `most_s`, or less after a signal."""
        if not self._signals:
            return most_s
        return max(0.05, min(most_s, self._signalled_s + END_AFTER_SIGNAL_S - time.monotonic()))

    def _bring_to_an_end(self, child: Child, pumps: "Pumps") -> bool:
        """A side has ended, or a signal has come, and the server lives: give it time, then end it. A signal cuts that short.

        Returns:
            Whether it has been told to end; else it has ended by itself.
        """
        if not self._signals:
            pumps.close_input("the server has closed its output")
            if self._wait(lambda: self._is_over(child), GRACE_AFTER_EOF_S, 0.0):
                return False
        if self._signals:
            pumps.client_left()
        child.signal(self._signals[0] if self._signals else signal.SIGTERM)
        pumps.close_input("mcpguard is about to end")
        if not self._wait(lambda: self._is_over(child), GRACE_AFTER_TERM_S, GRACE_AFTER_SIGNAL_S):
            child.kill()
            self._wait(lambda: self._is_over(child), GRACE_AFTER_KILL_S)
        return True

    def _drain_stream(self, child: Child, pumps: "Pumps") -> None:
        """Wait until what the server wrote last has been passed on.

        That ends with the end of its stream. Where somebody else holds that open it ends with what the server can have written,
        as long as the client takes it. If the server exited with 0 and owes answers, whoever holds its stream may give them.
        """
        began_s = time.monotonic()
        while child.status == 0 and not self._signals and pumps.awaits_answers():
            ended = self._wait(lambda: "server" in self._events, QUIET_S, 0.0)
            if ended or time.monotonic() - began_s >= GRACE_AFTER_EOF_S:
                break
        pumps.end_stream()
        taken, idle_s = pumps.output.taken, 0.0
        while not self._wait(lambda: "server" in self._events, QUIET_S, DRAIN_AFTER_SIGNAL_S):
            before, taken = taken, pumps.output.taken
            idle_s = idle_s + QUIET_S if taken == before else 0.0
            if self._signals or not pumps.is_passing_on or idle_s >= PAUSE_S:
                return

    def _drain_answers(self, pumps: "Pumps") -> None:
        """Wait until the client has taken our last answers: as long as it takes something, but not after a signal."""
        taken = pumps.output.taken
        while not self._wait(lambda: "answers" in self._events, DRAIN_S, DRAIN_AFTER_SIGNAL_S):
            before, taken = taken, pumps.output.taken
            if self._signals or taken == before:
                return

    def _wait(self, done: Callable[[], bool], timeout_s: float | None = None, after_signal_s: float | None = None) -> bool:
        """Wait until `done`, which a signal or the end of something brings about; False if that took too long.

        Args:
            done: What is waited for.
            timeout_s: How long; None for as long as it takes.
            after_signal_s: How long after a signal to us; None if that makes no difference.
        """
        began_s = time.monotonic()
        while not done():
            limits_s = [] if timeout_s is None else [timeout_s]
            if self._signals and after_signal_s is not None:
                limits_s.append(max(0.0, self._signalled_s - began_s) + after_signal_s)
            left_s = min(limits_s) - (time.monotonic() - began_s) if limits_s else None
            if left_s is not None and left_s <= 0.0:
                return False
            self._woken.wait(left_s)
        return True
