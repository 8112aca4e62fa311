"""Whether descriptors are ready: by `poll` as Linux has it and as macOS has it, and by threads, as on Windows."""

import contextlib
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from mcpguard.relay import blocking, readiness
from mcpguard.relay.readiness import await_server
from tests.end_to_end.host import ends, fill, until

WAYS: list[ModuleType] = [blocking] if sys.platform == "win32" else [readiness, blocking]


@pytest.fixture(params=WAYS, ids=lambda way: way.__name__.rpartition(".")[2])
def way(request: pytest.FixtureRequest) -> ModuleType:
    """What runs on this system, and the threads that run on Windows."""
    module: ModuleType = request.param
    return module


class DarwinPoll:
    """`poll` as macOS has it, on Linux's.

    A descriptor of which nothing is asked is not looked at, and a device is invalid. That the other end is gone is POLLHUP,
    without POLLOUT. Who waits for bytes is told so when half of a socket's other end is closed.
    """

    real: Callable[[], "select.poll"]

    def __init__(self) -> None:
        self._poll = DarwinPoll.real()
        self._asked: dict[int, int] = {}

    def register(self, fd: int, events: int) -> None:
        assert not events & ~(select.POLLIN | select.POLLOUT), "macOS has no POLLRDHUP"
        if events:
            self._asked[fd] = events
            self._poll.register(fd, events | (select.POLLRDHUP if events & select.POLLIN else 0))

    def unregister(self, fd: int) -> None:
        del self._asked[fd]
        self._poll.unregister(fd)

    def poll(self, timeout_ms: float | None = None) -> list[tuple[int, int]]:
        found = []
        for fd, seen in self._poll.poll(timeout_ms):
            if os.fstat(fd).st_rdev == Path(os.devnull).stat().st_rdev:
                found.append((fd, select.POLLNVAL))
                continue
            if seen & (select.POLLHUP | select.POLLERR | select.POLLRDHUP):
                seen = select.POLLHUP | (seen & select.POLLIN)
            found.append((fd, seen & (self._asked[fd] | select.POLLHUP)))
        return found


@pytest.fixture(params=["linux", "darwin"] if sys.platform == "linux" else ["this"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A system that has `poll`."""
    if request.param == "darwin":
        DarwinPoll.real = select.poll
        monkeypatch.setattr(select, "poll", DarwinPoll)
        monkeypatch.setattr(readiness, "_PEER_END", 0)
        monkeypatch.setattr(readiness, "_READER_END", select.POLLIN)
        monkeypatch.setattr(readiness, "_GONE", select.POLLHUP | select.POLLERR)
    name: str = request.param
    return name


@pytest.fixture
def signals() -> Iterator[None]:
    """Undo what `Wake` does for signals."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, before)


@pytest.mark.posix
@pytest.mark.usefixtures("system")
@pytest.mark.parametrize("kind", ["pipe", "socket", "socket of which one half is closed"])
def test_a_client_that_has_left_is_noticed_though_there_are_bytes_to_read(kind: str) -> None:
    ours, theirs = socket.socketpair()
    fd = ours.fileno()
    theirs.send(b"something")
    assert not readiness.ClientInput(fd).has_ended
    if kind == "pipe":
        fd, write = os.pipe()
        os.write(write, b"still to be read")
        os.close(write)
    else:
        theirs.send(b"still to be read")
        theirs.shutdown(socket.SHUT_WR) if "half" in kind else theirs.close()
    assert readiness.ClientInput(fd).has_ended
    theirs.close()
    ours.close()


@pytest.mark.posix
@pytest.mark.usefixtures("system")
@pytest.mark.parametrize(
    ("kind", "is_full"), [("pipe", False), ("pipe", True), ("socket", False), ("socket", True), ("terminal", False)]
)
def test_an_output_has_a_reader_until_the_last_one_closes_it(tmp_path: Path, kind: str, is_full: bool) -> None:
    read, write = ends(kind, tmp_path)
    other = os.dup(read)
    os.write(write, b"still to be read\n")
    if is_full:
        fill(write)
    assert readiness.has_reader(write)
    assert readiness.has_room(write) != is_full
    os.close(read)
    assert readiness.has_reader(write)
    os.close(other)
    assert not readiness.has_reader(write)
    assert readiness.has_room(write), "a write fails at once"
    readiness.await_room(write)
    os.close(write)


@pytest.mark.posix
@pytest.mark.usefixtures("system")
@pytest.mark.parametrize("kind", ["file", "null device"])
def test_a_file_always_counts_as_read(tmp_path: Path, kind: str) -> None:
    read, write = ends(kind, tmp_path)
    assert not readiness.ClientInput(read).has_ended
    os.close(read)
    assert readiness.has_reader(write)
    assert readiness.has_room(write)
    os.close(write)


@pytest.mark.posix
@pytest.mark.usefixtures("system")
def test_a_socket_whose_other_side_has_ended_what_it_writes_has_a_reader() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.shutdown(socket.SHUT_WR)
        assert readiness.has_reader(ours.fileno())


@pytest.mark.posix
@pytest.mark.usefixtures("system", "signals")
@pytest.mark.parametrize("kind", ["pipe", "socket", "socket of which one half is closed before"])
def test_the_main_thread_wakes_once_when_the_reader_leaves(tmp_path: Path, kind: str) -> None:
    read, write = ends(kind.partition(" ")[0], tmp_path)
    if "half" in kind:
        with socket.socket(fileno=os.dup(read)) as theirs:
            theirs.shutdown(socket.SHUT_WR)
    woken = readiness.Wake(write)
    leaving = threading.Timer(0.05, os.close, (read,))
    leaving.start()
    while readiness.has_reader(write):
        woken.wait(None)
    woken.wait(0.0)
    began = time.monotonic()
    woken.wait(0.05)
    assert time.monotonic() - began >= 0.04, "and not again and again"
    leaving.join()
    os.close(write)


@pytest.mark.usefixtures("signals")
def test_a_signal_ends_the_main_threads_wait(way: ModuleType) -> None:
    got: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: got.append(number))
    woken = way.Wake(1)
    threading.Timer(0.1, signal.raise_signal, (signal.SIGINT,)).start()
    while not got:
        woken.wait(None)
    assert got == [signal.SIGINT]


@pytest.mark.usefixtures("signals")
def test_the_main_threads_wait_ends_when_another_thread_sets_it_or_time_is_up(way: ModuleType) -> None:
    woken = way.Wake(1)
    for _ in range(3):
        woken.set()
    woken.wait(None)
    began = time.monotonic()
    woken.wait(0.05)
    assert time.monotonic() - began >= 0.04
    threading.Timer(0.1, woken.set).start()
    woken.wait(None)


def test_what_the_client_writes_is_awaited_and_read_to_its_end_and_a_wait_can_be_ended(way: ModuleType) -> None:
    read, write = os.pipe()
    client = way.ClientInput(read)
    client.wait(0.0)
    client.wake()
    assert not client.wait(3600.0)
    threading.Timer(0.05, client.wake).start()
    assert not client.wait(3600.0)
    assert not client.wait(0.001)
    os.write(write, b"one")
    assert client.wait(3600.0)
    assert client.read() == b"one"
    assert not client.has_bytes()
    assert not client.has_ended
    os.close(write)
    assert client.wait(3600.0)
    assert client.read() == b""
    assert client.has_bytes()
    assert client.has_ended
    os.close(read)


def test_a_client_that_writes_more_than_is_judged_has_to_wait() -> None:
    read, write = os.pipe()
    client = blocking.ClientInput(read)
    sent = 0

    def send() -> None:
        nonlocal sent
        while sent < 2 * blocking.MAX_UNREAD_BYTES:
            sent += os.write(write, b"." * 65_536)
        os.close(write)

    sending = threading.Thread(target=send)
    sending.start()
    sending.join(0.3)
    assert sent < 1.1 * blocking.MAX_UNREAD_BYTES
    got = 0
    while data := client.read():
        got += len(data)
    assert got == 2 * blocking.MAX_UNREAD_BYTES
    sending.join(30)
    os.close(read)


def test_the_server_gets_what_is_written_to_it_and_then_its_end(way: ModuleType) -> None:
    read, write = os.pipe()
    pipe = way.ServerInput(write)
    data, got = bytes(range(256)) * 4000, bytearray()

    def server() -> None:
        while more := os.read(read, 1 << 16):
            got.extend(more)

    reading = threading.Thread(target=server)
    reading.start()
    written = 0
    while written < len(data):
        try:
            written += pipe.write(data[written:])
        except BlockingIOError:
            assert pipe.has_room(30)
    pipe.close()
    pipe.close()
    reading.join(30)
    assert bytes(got) == data
    assert pipe.write(b"goes nowhere") == 12
    for fd in (read, write):
        os.close(fd)


def test_a_server_that_has_closed_its_input_is_an_error_of_the_write(way: ModuleType) -> None:
    read, write = os.pipe()
    pipe = way.ServerInput(write)
    os.close(read)
    for _ in range(2):
        with pytest.raises(OSError, match=r"Broken pipe|Invalid argument"):
            pipe.write(b"something")
    pipe.close()


def test_a_server_that_takes_nothing_is_given_up_some_time_after_its_client_has_left(way: ModuleType) -> None:
    client_read, client_write = os.pipe()
    read, write = os.pipe()
    client, pipe = way.ClientInput(client_read), way.ServerInput(write)
    with contextlib.suppress(BlockingIOError):
        while True:
            pipe.write(b"." * 65_536)
    worked: list[int] = []

    def work() -> bool:
        worked.append(1)
        if len(worked) == 3:
            os.close(client_write)
        return False

    with pytest.raises(ConnectionAbortedError):
        await_server(pipe, lambda: bool(client.has_ended), work, stuck_s=0.1)
    assert len(worked) > 3
    pipe.close()  # does not wait for the server
    os.close(read)


def test_lines_that_nobody_reads_are_not_waited_for(way: ModuleType) -> None:
    read, write = os.pipe()
    output = way.LineOutput(write)
    fill(write)
    taken = [output.write(b"line\n") for _ in range(1000)]
    assert sum(taken) <= 5
    os.read(read, 1 << 20)
    until(lambda: output.write(b"last\n") == 5, "there is room again")
    while not os.read(read, 1 << 20).endswith(b"last\n"):
        pass  # a thread may be about to write it
