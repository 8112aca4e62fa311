"""The supervisor: from the server's start to the end of the session.

The exit status is the server's. Every wait of a shutdown is bounded and named here.

- **The server exits by itself.** mcpguard answers the requests in flight, if the client has not ended its input. Processes that
  the server started go on. If it exits with 0 while another process holds its output, as a launcher's child does, the session
  lasts as long as that process.
- **A signal kills the server.** The same, but mcpguard kills the processes that the server started.
- **The client ends its input.** The server's input ends, too. While somebody still reads, the server may take its time, as
  without mcpguard. mcpguard answers nothing in its place.
- **The client is gone, or mcpguard gets a signal that ends it.** The server has some time to exit. Then mcpguard ends it with
  all processes that it started: with a signal first, but on Windows, where no signal reaches it.

Signals that do not tell mcpguard to end are passed on to the server's group.
"""

import signal
import sys
import threading
import time
from collections.abc import Callable

from mcpguard.errors import status_text
from mcpguard.light_typing import TYPE_CHECKING, Final, NamedTuple
from mcpguard.relay.process import ServerProcess
from mcpguard.relay.readiness import Wake

if TYPE_CHECKING:  # loaded while the server boots; the supervisor is needed before it starts
    from mcpguard.relay.console import Console
    from mcpguard.relay.traffic import Ended, Traffic


class ShutdownTimeouts(NamedTuple):
    """How long each part of a shutdown may take.

    Attributes:
        after_eof_s: After the client is gone: for the server's exit. The clients of both SDKs wait 2 s, and then end mcpguard
            on Windows.
        after_term_s: After SIGTERM, before SIGKILL.
        after_kill_s: After SIGKILL, which does not reach a server that runs as another user.
        after_signal_s: After a signal to mcpguard, which is passed on. Clients kill a wrapper that still runs after 2 s.
        drain_s: After the server's exit: how long the client may take none of the last answers.
        drain_after_signal_s: The same after a signal to mcpguard.
        pause_s: After the server's exit: how long the client may take nothing that the server wrote. Then it counts as gone.
        quiet_s: After the server's exit: how long a stream that another process holds open must be silent to count as ended.
        last_rows_s: For the session's last audit rows.
        end_after_signal_s: After a signal to mcpguard: for the whole shutdown. Clients wait 2 s, and the process takes a moment
            to end.
    """

    after_eof_s: float = 1.5 if sys.platform == "win32" else 2.0
    after_term_s: float = 2.0
    after_kill_s: float = 0.3
    after_signal_s: float = 1.0
    drain_s: float = 2.0
    drain_after_signal_s: float = 0.3
    pause_s: float = 10.0
    quiet_s: float = 0.25
    last_rows_s: float = 0.5
    end_after_signal_s: float = 1.7


SHUTDOWN_TIMEOUTS: Final = ShutdownTimeouts()


def _known(*names: str) -> tuple[signal.Signals, ...]:
    return tuple(getattr(signal, name) for name in names if hasattr(signal, name))


_ENDING: Final = _known("SIGTERM", "SIGINT", "SIGHUP", "SIGBREAK")
_PASSED_ON: Final = _known("SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGWINCH")
_SIGKILL: Final = 9


class Supervisor:
    """Starts and ends the traffic with one server.

    Make it in the main thread before the server is started, so that there is a handler for every signal.

    Args:
        timeouts: How long each part of the shutdown may take.
        store_s: How long the store may take. The last answers wait for that if a call just uses the store.
        output: The descriptor that the client reads from.
    """

    def __init__(self, timeouts: ShutdownTimeouts, store_s: float = 0.0, *, output: int = 1) -> None:
        self._timeouts = timeouts
        self._store_s = store_s
        self._ended: set[str] = set()
        self._signals: list[int] = []
        self._signalled_s = 0.0
        self._is_launcher = False  # whether the server exited with 0 before the client left
        self._had_client_at_exit = False  # whether the client had not ended its input when the server exited
        self._woken = Wake(output)
        self._server: ServerProcess | None = None  # gets the signals that are passed on
        self._early: list[int] = []  # those that came before
        for numbers, handler in ((_ENDING, self._on_signal), (_PASSED_ON, self._pass_on)):
            for number in numbers:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    signal.signal(number, handler)
        if sys.platform != "win32":
            signal.signal(signal.SIGCHLD, self._on_exit)

    def ended(self, what: "Ended") -> None:
        """Note what has ended. From any thread."""
        self._ended.add(what)
        self._woken.set()

    def _on_signal(self, number: int, _frame: object) -> None:
        if not self._signals:
            self._signalled_s = time.monotonic()
        self._signals.append(number)
        self._woken.set()

    def _pass_on(self, number: int, _frame: object) -> None:
        if self._server is None:
            self._early.append(number)
        elif sys.platform != "win32":
            self._server.pass_on(number)

    def _on_exit(self, *_: object) -> None:
        self._had_client_at_exit = self._has_client
        self._woken.set()

    def supervise(self, server: ServerProcess, traffic: "Traffic", console: "Console", guard: Callable[[], None]) -> int:
        """Start the traffic, wait until something ends, and shut down in order.

        Args:
            server: The server's process.
            traffic: The traffic.
            console: Takes lines for stderr.
            guard: Called once the traffic has started: loads what calls are judged by.

        Returns:
            The exit status: the server's.
        """
        if sys.platform == "win32":
            threading.Thread(target=server.wait, args=(self._on_exit,), daemon=True).start()
        else:  # a client may start mcpguard with blocked signals; the server has inherited that already
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD, *_ENDING, *_PASSED_ON})
        self._server = server
        for number in self._early:
            self._pass_on(number, None)
        traffic.start()
        guard()
        self._wait(lambda: self._has_exited(server) or self._is_over(traffic))
        # Asked twice: the guard may have taken long to load, and the exit may be seen before its signal is handled
        if server.status == 0 and (self._had_client_at_exit or self._has_client):
            self._is_launcher = True  # a process that it started may have its pipes, and serve
            self._wait(lambda: self._has_exited(server) or self._is_over(traffic))
        is_ended_by_us = not self._has_exited(server) and self._end_server(server, traffic)
        if is_ended_by_us or server.was_killed:
            server.kill()
        status = 128 + _SIGKILL if server.status is None else server.status
        how = f"server exited with {status_text(status)}"
        traffic.upstream.close_input(how)
        self._await_late_answers(server, traffic)
        traffic.stream.end()
        self._drain("server", traffic, self._timeouts.quiet_s, self._timeouts.pause_s)
        if self._signals or not self._has_client:
            traffic.dispatcher.client_left()
        else:
            (console.error if status else console.line)(how)
        traffic.answer_rest(how)
        answers_s = self._store_s + self._timeouts.drain_s
        self._drain("answers", traffic, answers_s, answers_s)
        traffic.bookkeeper.finish(self.at_most(self._timeouts.last_rows_s))
        self._server = None  # another group may get its number
        return status

    @property
    def _has_client(self) -> bool:
        """Whether the client has not left: it has not ended its input, and has not stopped reading."""
        return self._ended.isdisjoint(("input", "client"))

    def _is_over(self, traffic: "Traffic") -> bool:
        """Whether a running server has to end: by a signal, because its client is gone, or because it has closed its output.

        After the end of its input it may close its output long before it exits.
        """
        if self._signals or "client" in self._ended:
            return True
        return not traffic.output.has_reader if "input" in self._ended else "server" in self._ended

    def _has_exited(self, server: ServerProcess) -> bool:
        """Whether the server has exited; for a launcher, whether no process still holds its output."""
        return "server" in self._ended if self._is_launcher else server.poll() is not None

    def at_most(self, most_s: float) -> float:
        """How long a part of the shutdown may take: `most_s`, or less after a signal."""
        if not self._signals:
            return most_s
        return max(0.05, min(most_s, self._signalled_s + self._timeouts.end_after_signal_s - time.monotonic()))

    def _end_server(self, server: ServerProcess, traffic: "Traffic") -> bool:
        """End a running server after the end of a stream, or after a signal, which leaves it less time.

        Returns:
            Whether it was told to end; False if it has exited by itself.
        """
        if not self._signals:
            traffic.upstream.close_input("the server has closed its output")
            if self._wait(lambda: self._has_exited(server), self._timeouts.after_eof_s, 0.0):
                return False
        if self._signals:
            traffic.dispatcher.client_left()
        sent: set[int] = set()

        def has_ended() -> bool:
            self._pass_on_signals(server, sent)
            return self._has_exited(server)

        self._pass_on_signals(server, sent)  # before its input ends: a server that heeds both ends by the signal
        traffic.upstream.close_input("mcpguard is about to end")
        term_s = 0.0 if sys.platform == "win32" and not self._signals else self._timeouts.after_term_s
        if not self._wait(has_ended, self.at_most(term_s), self._timeouts.after_signal_s):
            server.kill()
            self._wait(lambda: self._has_exited(server), self._timeouts.after_kill_s)
        return True

    def _pass_on_signals(self, server: ServerProcess, sent: set[int]) -> None:
        """Send a server the signals that it has not got: those to mcpguard, or SIGTERM if there is none.

        A client may send SIGINT and, a moment later, SIGTERM, which a server that ignores SIGINT heeds. On Windows no signal
        reaches a server, which has no console of mcpguard's.

        Args:
            server: The server.
            sent: The signals that it has got. The others are added.
        """
        if sys.platform != "win32":
            for number in self._signals or [signal.SIGTERM]:
                if number not in sent:
                    sent.add(number)
                    server.signal(number)

    def _await_late_answers(self, server: ServerProcess, traffic: "Traffic") -> None:
        """If a server exited with 0 and requests are in flight, a process that holds its stream may answer them.

        It has `after_eof_s` for that, or as long as somebody reads.
        """
        began_s = time.monotonic()
        while server.status == 0 and not self._signals and traffic.dispatcher.awaits_answers():
            ended = self._wait(lambda: "server" in self._ended, self._timeouts.quiet_s, 0.0)
            if ended or (time.monotonic() - began_s >= self._timeouts.after_eof_s and self._is_over(traffic)):
                return

    def _drain(self, what: "Ended", traffic: "Traffic", step_s: float, pause_s: float) -> None:
        """Wait until the client has received what the server wrote last, or the last answers.

        Give up after a signal, or when the client takes nothing for a while, unless it has ended its input and may read later.
        If another process holds the server's stream open, give up when no bytes are passed on that the server can have written.

        Args:
            what: What ends then: `server` or `answers`.
            traffic: The traffic.
            step_s: How often to look.
            pause_s: How long the client may take nothing.
        """
        taken, idle_s = traffic.output.taken, 0.0
        while not self._wait(lambda: what in self._ended, step_s, self._timeouts.drain_after_signal_s):
            before, taken = taken, traffic.output.taken
            idle_s = idle_s + step_s if taken == before else 0.0
            has_more = what == "answers" or traffic.is_passing_on
            may_read_later = "input" in self._ended and traffic.output.waits_for_reader  # else it may wait only for the exit
            if self._signals or not has_more or (idle_s >= pause_s and not may_read_later):
                return

    def _wait(self, done: Callable[[], bool], timeout_s: float | None = None, after_signal_s: float | None = None) -> bool:
        """Wait until a condition is true; returns False if that took too long.

        Args:
            done: The condition. Only a signal, a call of `ended`, or the end of whoever reads the output makes it true.
            timeout_s: How long to wait; None for no limit.
            after_signal_s: How long to wait after a signal to mcpguard; None for as long as without a signal.
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
