import errno
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path
from typing import NoReturn

import pytest

from mcpguard.relay import readiness
from mcpguard.relay.readiness import ClientInput, Wake, await_server, has_ended, has_room
from tests.end_to_end.host import ends


@pytest.fixture
def full() -> int:
    """A pipe to a server that reads nothing, as full as can be."""
    _, write = os.pipe()
    while has_room(write):
        os.write(write, b"x" * 4096)
    return write


@pytest.mark.parametrize("kind", ["pipe", "socket", "socket of which one half is closed"])
def test_a_client_that_has_left_is_noticed_while_the_server_reads_nothing(
    full: int, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(readiness, "STUCK_S", 0.1)
    ours, theirs = socket.socketpair()
    fd = ours.fileno()
    if kind == "pipe":
        fd, write = os.pipe()
        os.write(write, b"still to be read")
        os.close(write)
    elif kind == "socket":
        theirs.close()
    else:
        theirs.send(b"still to be read")
        theirs.shutdown(socket.SHUT_WR)
    assert has_ended(fd)
    with pytest.raises(ConnectionAbortedError):
        await_server(full, lambda: has_ended(fd), lambda: False)
    theirs.close()
    ours.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
@pytest.mark.parametrize("kind", ["pipe", "terminal", "socket"])
def test_an_output_has_a_reader_until_the_last_one_closes_it(tmp_path: Path, kind: str) -> None:
    read, write = ends(kind, tmp_path)
    other = os.dup(read)
    os.write(write, b"still to be read\n")
    assert readiness.has_reader(write)
    os.close(read)
    assert readiness.has_reader(write)
    os.close(other)
    assert not readiness.has_reader(write)
    os.close(write)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
@pytest.mark.parametrize("kind", ["file", "null device"])
def test_a_file_always_counts_as_read(tmp_path: Path, kind: str) -> None:
    read, write = ends(kind, tmp_path)
    os.close(read)
    assert readiness.has_reader(write)
    os.close(write)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_a_socket_whose_other_side_has_ended_what_it_writes_has_a_reader() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.shutdown(socket.SHUT_WR)
        assert readiness.has_reader(ours.fileno())


def test_a_client_that_has_not_left_has_not_ended() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.send(b"something")
        assert not has_ended(ours.fileno())


@pytest.mark.posix
def test_a_descriptor_is_looked_at_again_after_the_system_had_no_memory_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real, refusals = select.poll, [1]
    pauses: list[float] = []

    class Poll:
        def __init__(self) -> None:
            self._poll = real()
            self.register = self._poll.register

        def poll(self, timeout_ms: float | None = None) -> list[tuple[int, int]]:
            if refusals:
                refusals.pop()
                raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
            return self._poll.poll(timeout_ms)

    monkeypatch.setattr(select, "poll", Poll)
    monkeypatch.setattr(time, "sleep", pauses.append)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.send(b"something")
        assert not readiness.has_bytes(ours.fileno())
        assert pauses == []  # who only looks does not wait
        assert readiness.has_bytes(ours.fileno())
        refusals.append(1)
        readiness.await_bytes(ours.fileno())
        assert pauses == [readiness.LOOK_S]
        refusals.append(1)
        readiness.await_room(ours.fileno())
        assert not refusals


@pytest.mark.posix
def test_the_main_thread_wakes_for_no_reason_if_the_system_has_no_memory_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    class Poll:
        def register(self, *_: int) -> None:
            pass

        def poll(self, _: float | None = None) -> NoReturn:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    pauses: list[float] = []
    monkeypatch.setattr(select, "poll", Poll)
    monkeypatch.setattr(time, "sleep", pauses.append)
    before = signal.set_wakeup_fd(-1)
    try:
        Wake(1).wait(None)
    finally:
        signal.set_wakeup_fd(before)
    assert pauses == [readiness.LOOK_S]


@pytest.mark.posix
def test_without_a_free_descriptor_bytes_are_awaited_in_short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> tuple[int, int]:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    ours, theirs = socket.socketpair()
    client = ClientInput(ours.fileno())
    with ours, theirs:
        with monkeypatch.context() as patched:
            patched.setattr(os, "pipe", refuse)
            assert not client.wait(3600.0)  # what would wake it has to be looked for
            client.wake()
            theirs.send(b"something")
            assert client.wait(3600.0)
        assert client.wait(3600.0)
        client.close()
