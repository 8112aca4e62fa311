import os
import socket

import pytest

from mcpguard.relay import readiness
from mcpguard.relay.readiness import ClientEnd, Readiness, ServerInput


@pytest.fixture
def full() -> ServerInput:
    """A pipe to a server that reads nothing, as full as can be."""
    _, write = os.pipe()
    pipe = ServerInput(write)
    while Readiness(write)():
        os.write(write, b"x" * 4096)
    return pipe


@pytest.mark.parametrize("kind", ["pipe", "socket", "socket of which one half is closed"])
def test_a_client_that_has_left_is_noticed_while_the_server_reads_nothing(
    full: ServerInput, monkeypatch: pytest.MonkeyPatch, kind: str
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
    assert ClientEnd(fd)()
    with pytest.raises(ConnectionAbortedError):
        full.wait(fd, lambda: False)
    theirs.close()
    ours.close()


def test_a_client_that_has_not_left_has_not_ended() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.send(b"something")
        assert not ClientEnd(ours.fileno())()
