import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import cast

import pytest

from mcpguard.relay.console import Console
from mcpguard.relay.process import ServerProcess, spawn
from mcpguard.relay.readiness import has_reader
from mcpguard.relay.supervisor import ShutdownTimeouts, Supervisor
from mcpguard.relay.traffic import Traffic
from tests.end_to_end.host import CAT, PYTHON, WINDOWS, release, until
from tests.relay.conftest import made

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

PASSED_ON = ("SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGWINCH")
SIGNALS = [
    getattr(signal, name)
    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGBREAK", "SIGCHLD", *PASSED_ON)
    if hasattr(signal, name)
]
SLEEP = [*PYTHON, "import time; time.sleep(1000)"]
ENDED_STATUS = 1 if WINDOWS else 128 + signal.SIGTERM
"""The status of a server that mcpguard has ended, by a signal if there are signals."""
posix = pytest.mark.posix
IGNORING = "import os, signal; signal.signal(15, signal.SIG_IGN); os.write(1, b'up'); signal.pause()"


SOON = ShutdownTimeouts(
    after_eof_s=0.1, after_term_s=0.1, after_signal_s=0.1, drain_s=0.1, drain_after_signal_s=0.1, pause_s=0.5, quiet_s=0.1
)
LATE_S = 30.0
"""As long as a busy machine may need."""
PATIENT = SOON._replace(after_eof_s=LATE_S, after_term_s=LATE_S, after_signal_s=LATE_S, end_after_signal_s=LATE_S)
"""For a server that may take its time."""


class FakeTraffic:
    """Stands for the traffic and all its parts.

    Attributes:
        client_leaves: Whether the client ends its input at the start.
        client_waits: Whether it has not.
        answer: Writes the last answers, and tells that they have ended.
        takes: How often `taken` still grows.
        unanswered: How often `awaits_answers` is still true. So are `writes` for `is_passing_on` and `late` for
            `waits_for_reader`.
    """

    child: ServerProcess

    def __init__(self, supervisor: Supervisor, client_output: int) -> None:
        self.output = self.stream = self.dispatcher = self.upstream = self.bookkeeper = self
        self.supervisor = supervisor
        self.client_output = client_output
        self.client_leaves, self.client_waits = False, True
        self.answer: Callable[[], None] = lambda: supervisor.ended("answers")
        self.unanswered = self.writes = self.takes = self.late = self._taken = 0

    def start(self) -> None:
        if self.client_leaves:
            self.supervisor.ended("input")
            self.child.stdin.close()

    def client_left(self) -> None:
        self.client_waits = False

    def end(self) -> None:
        """The stream of the server ends."""

    def awaits_answers(self) -> bool:
        return self._still("unanswered")

    is_passing_on = property(lambda self: self._still("writes"))
    waits_for_reader = property(lambda self: self._still("late"))
    has_reader = property(lambda self: has_reader(self.client_output))

    def _still(self, what: str) -> bool:
        setattr(self, what, getattr(self, what) - 1)
        return bool(getattr(self, what) >= 0)

    @property
    def taken(self) -> int:
        if self.takes:
            self.takes -= 1
            self._taken += 1
        return self._taken

    def close_input(self, why: str) -> None:
        assert why
        self.child.stdin.close()

    def answer_rest(self, how: str) -> None:
        assert how
        self.answer()

    def finish(self, timeout_s: float) -> None:
        assert timeout_s <= ShutdownTimeouts().last_rows_s


class Scene:
    """A supervisor, a real server, and stderr."""

    def __init__(self, timeouts: ShutdownTimeouts = SOON, store_s: float = 0.0) -> None:
        self.client_reads, self.client_output = os.pipe()
        self.supervisor = Supervisor(timeouts, store_s, output=self.client_output)
        self.traffic = FakeTraffic(self.supervisor, self.client_output)
        self.read, self.write = os.pipe()
        self.children: list[ServerProcess] = []

    def server(self, *argv: str) -> ServerProcess:
        child = spawn(argv, os.environ)
        self.children.append(child)
        self.traffic.child = child
        child.confirm()
        return child

    def up(self, *argv: str) -> ServerProcess:
        """Start a server, and wait until it writes `up`."""
        child = self.server(*argv)
        assert os.read(child.stdout, 3).strip() == b"up"
        return child

    def supervise(self, guard: Callable[[], None] = lambda: None) -> int:
        return self.supervisor.supervise(self.children[0], cast(Traffic, self.traffic), Console(self.write), guard)

    def stream_ends_with(self, child: ServerProcess) -> threading.Thread:
        """Read the server's output to its end, as the downstream loop does."""

        def downstream() -> None:
            while os.read(child.stdout, 1 << 16):
                pass
            self.supervisor.ended("server")

        thread = threading.Thread(target=downstream)
        thread.start()
        return thread

    def reader_leaves(self) -> None:
        os.close(self.client_reads)
        self.client_reads = -1


@pytest.fixture
def scene(request: pytest.FixtureRequest) -> Iterator[Scene]:
    """A scene, whose supervisor waits only for a moment unless the test says more."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in SIGNALS}  # a shell may have had some ignored
    one = Scene(**getattr(request, "param", {}))
    yield one
    for number, handler in before.items():
        signal.signal(number, handler)
    for child in one.children:
        child.kill()
        release(child.stdin)
        os.close(child.stdout)
    for fd in (one.read, one.write, one.client_reads, one.client_output):
        if fd >= 0:
            os.close(fd)


@pytest.mark.parametrize("first", ["input", "reader"])
def test_a_server_that_runs_on_gets_sigterm_when_input_and_reader_are_gone(scene: Scene, first: str) -> None:
    scene.server(*SLEEP)
    if first == "input":
        scene.supervisor.ended("input")
        timer = threading.Timer(0.1, scene.reader_leaves)
    else:
        scene.reader_leaves()
        timer = threading.Timer(0.1, scene.supervisor.ended, ["input"])
    timer.start()
    assert scene.supervise() == ENDED_STATUS
    timer.join()


@posix
@pytest.mark.parametrize("name", PASSED_ON)
def test_a_signal_that_comes_before_the_guard_is_loaded_and_does_not_tell_to_end_is_passed_on(scene: Scene, name: str) -> None:
    number = signal.Signals[name]
    tells = f"import os, signal; signal.signal({number}, lambda *_: os.write(1, b'got')); os.write(1, b'up')"
    child = scene.up(sys.executable, "-S", "-c", f"{tells}\nwhile os.read(0, 1): pass\nos._exit(6)")

    def client() -> None:
        assert os.read(child.stdout, 3) == b"got"
        child.stdin.close()

    os.kill(os.getpid(), number)
    assert scene.supervise(threading.Thread(target=client).start) == 6


def signal_at_output(child: ServerProcess, length: int) -> threading.Thread:
    """Send SIGTERM to this process once the server has written so many bytes more."""

    def client() -> None:
        os.read(child.stdout, length)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=client)
    thread.start()
    return thread


@posix
@made("scene", timeouts=PATIENT)
def test_a_second_signal_is_passed_on_too(scene: Scene) -> None:
    child = scene.up("sh", "-c", "trap 'echo got' INT; trap 'exit 5' TERM; echo up; while :; do sleep 0.01; done")
    client = signal_at_output(child, 4)
    os.kill(os.getpid(), signal.SIGINT)
    assert scene.supervise() == 5
    client.join()


@posix
@made("scene", timeouts=SOON._replace(after_term_s=LATE_S))
def test_a_server_that_has_got_sigterm_gets_no_second_one(scene: Scene) -> None:
    child = scene.up("sh", "-c", "trap \"trap 'exit 5' TERM; echo got\" TERM; echo up; while :; do sleep 0.01; done")
    client = signal_at_output(child, 4)
    scene.supervisor.ended("client")
    assert scene.supervise() == 128 + signal.SIGKILL
    client.join()


@posix
@made("scene", timeouts=PATIENT._replace(after_term_s=1000.0, after_signal_s=1000.0, end_after_signal_s=0.0))
def test_a_server_has_less_time_after_a_signal_if_the_guard_loads_slowly(scene: Scene) -> None:
    scene.up(sys.executable, "-S", "-c", IGNORING)
    os.kill(os.getpid(), signal.SIGTERM)  # no time is left, as if the guard had taken it
    assert scene.supervise() == 128 + signal.SIGKILL


@posix
@made("scene", timeouts=PATIENT._replace(after_eof_s=1000.0))
def test_a_signal_shortens_the_grace_after_the_clients_end(scene: Scene) -> None:
    scene.up("sh", "-c", "trap 'exit 5' INT; echo up; while :; do sleep 0.01; done")
    scene.supervisor.ended("client")
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    assert scene.supervise() == 5
    timer.join()


@posix
def test_a_launchers_child_is_killed_though_its_client_leaves_before_the_guard_is_loaded(scene: Scene) -> None:
    child = scene.up(sys.executable, "-S", "-c", "import os; os.fork() and (os.read(0, 1), os._exit(0));" + IGNORING)
    downstream = scene.stream_ends_with(child)

    def load() -> None:
        child.stdin.write(b"x")
        until(lambda: child.poll() == 0, "the launcher is gone")
        scene.supervisor.ended("client")

    assert scene.supervise(load) == 0
    downstream.join(30)
    assert not downstream.is_alive()


@made("scene", timeouts=PATIENT)
def test_requests_in_flight_are_awaited_though_the_server_has_exited_since_its_child_may_answer_them(scene: Scene) -> None:
    scene.server(*CAT)
    scene.traffic.client_leaves, scene.traffic.unanswered = True, 2
    assert scene.supervise() == 0
    assert scene.traffic.unanswered < 0


@pytest.mark.parametrize(("leaves", "waits"), [("nobody", True), ("client", False), pytest.param("signal", False, marks=posix)])
def test_after_the_client_has_left_nothing_is_answered_in_the_servers_place(scene: Scene, leaves: str, waits: bool) -> None:
    child = scene.server(*PYTHON, "import os; os.read(0, 1); os._exit(7)")
    downstream = scene.stream_ends_with(child)
    if leaves == "client":
        scene.traffic.client_leaves = True
    elif leaves == "signal":
        os.kill(os.getpid(), signal.SIGTERM)
    else:
        child.stdin.write(b"\n")
    scene.supervise()
    assert scene.traffic.client_waits == waits
    downstream.join()


@posix
def test_a_signal_that_is_ignored_at_the_start_stays_ignored(scene: Scene) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    Supervisor(SOON)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


@made("scene", timeouts=PATIENT)
def test_waking_the_main_thread_never_blocks(scene: Scene) -> None:
    for _ in range(100_000):
        scene.supervisor.ended("client")
    child = scene.server(*CAT)
    child.stdin.close()
    assert scene.supervise() == 0


@posix
@made("scene", timeouts=SOON._replace(after_term_s=1000.0))
def test_a_signal_shortens_the_grace_after_sigterm(scene: Scene) -> None:
    tells = "import os, signal; signal.signal(15, lambda *_: os.write(1, b'term')); os.write(1, b'up')"
    child = scene.up(sys.executable, "-S", "-c", f"{tells}\nwhile True: signal.pause()")

    def signal_us() -> None:
        assert os.read(child.stdout, 4) == b"term"
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=signal_us)
    thread.start()
    scene.supervisor.ended("client")
    assert scene.supervise() == 128 + signal.SIGKILL
    thread.join()


@made("scene", timeouts=SOON._replace(drain_s=0.0), store_s=LATE_S)
def test_the_last_answers_are_waited_for_as_long_as_the_store_may_take(scene: Scene) -> None:
    scene.server(*PYTHON, "import os; os._exit(1)")
    told: list[str] = []

    def answer() -> None:
        told.append("the last answers")
        scene.supervisor.ended("answers")

    answering = threading.Timer(0.1, answer)
    scene.traffic.answer = answering.start
    assert scene.supervise() == 1
    assert told
    answering.join()


@pytest.mark.parametrize(
    ("writes", "takes", "late"),
    [(3, 0, 0), (1000, 0, 0), (1000, 0, 3), (1000, 3, 0)],
    ids=["is slow", "takes nothing", "may read later", "takes bytes"],
)
def test_a_client_is_waited_for_while_it_may_read_and_a_bounded_time_if_it_takes_nothing(
    scene: Scene, writes: int, takes: int, late: int
) -> None:
    output, scene.traffic.client_leaves = scene.traffic.output, late > 0
    output.writes, output.takes, output.late = writes, takes, late
    scene.server(*PYTHON, "import os; os._exit(1)")
    assert scene.supervise() == 1
    assert output.writes == -1 if writes == 3 else output.writes > 980, "each is found after `QUIET_S`"
    assert output.takes == 0
    assert output.late < 0 or not late


@posix
@pytest.mark.parametrize(
    ("scene", "server", "status"),
    [({"timeouts": PATIENT}, CAT, 0), ({"timeouts": SOON._replace(end_after_signal_s=LATE_S)}, SLEEP, 128 + 9)],
    indirect=["scene"],
    ids=["heeds its input", "heeds nothing"],
)
def test_a_server_that_cannot_be_signalled_does_not_delay_the_end(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, server: list[str], status: int
) -> None:
    def not_permitted(_pid: int, _number: int) -> None:
        raise PermissionError

    scene.server(*server)
    os.kill(os.getpid(), signal.SIGTERM)
    with monkeypatch.context() as patched:
        for name in ("kill", "killpg"):
            patched.setattr(os, name, not_permitted)
        assert scene.supervise() == status


@posix
@made("scene", timeouts=PATIENT)
def test_signals_that_the_client_has_blocked_are_received(scene: Scene) -> None:
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGTERM})
    try:
        scene.server(*CAT)
        timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM))
        timer.start()
        assert scene.supervise() == 0  # the server has it blocked, too, and ends with its input
        timer.join()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
