import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from mcpguard.relay.dispatch import AnswersQueue
from mcpguard.relay.downstream import MAX_AHEAD_BYTES, MAX_UNREAD_BYTES, Downstream, ServerStream
from mcpguard.relay.readiness import CHUNK_BYTES


class Server:
    """A stream, with the test as the server."""

    def __init__(self) -> None:
        self.reads, self.writes = os.pipe()
        self.stream = ServerStream(self.reads)

    def write(self, data: bytes) -> None:
        os.write(self.writes, data)

    def end(self) -> None:
        os.close(self.writes)
        self.writes = -1


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server()
    yield one
    if one.writes >= 0:
        one.end()
    os.close(one.reads)


@pytest.mark.posix
def test_bytes_that_were_read_ahead_come_first_and_in_order_and_the_end_is_left_to_the_loop(server: Server) -> None:
    assert not server.stream.read_ahead(), "the server is silent"
    for part in (b"1", b"2"):
        server.write(part)
        assert server.stream.read_ahead()
    server.write(b"3")
    server.end()
    assert [server.stream.read() for _ in range(3)] == [b"1", b"2", b"3"]
    assert not server.stream.read_ahead()
    assert server.stream.read() == b""


def test_nothing_is_read_ahead_while_the_downstream_loop_reads(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    ahead: list[bool] = []
    read = os.read

    def read_slowly(fd: int, size: int) -> bytes:
        ahead.append(not ahead and server.stream.read_ahead())
        return read(fd, size)

    server.write(b"for the loop")
    monkeypatch.setattr(os, "read", read_slowly)
    assert server.stream.read() == b"for the loop"
    assert ahead == [False]


@pytest.mark.posix
def test_the_bytes_that_are_read_ahead_are_bounded(server: Server) -> None:
    for _ in range(MAX_AHEAD_BYTES // CHUNK_BYTES):
        server.write(b"x" * CHUNK_BYTES)
        assert server.stream.read_ahead()
    server.write(b"y")
    assert not server.stream.read_ahead()
    assert server.stream.read() == b"x" * CHUNK_BYTES
    assert server.stream.read_ahead()


@pytest.mark.posix
def test_the_stream_of_a_server_that_is_gone_ends_even_if_another_process_goes_on_writing(server: Server) -> None:
    server.write(b"ahead")
    assert server.stream.read_ahead()
    server.write(b"last")
    server.stream.end()
    assert server.stream.read() + server.stream.read() == b"aheadlast"
    others = 0
    for _ in range(100):
        server.write(b"x" * 4096)
        others += len(server.stream.read())
        server.stream.read_ahead()
    assert CHUNK_BYTES <= others < 3 * CHUNK_BYTES


@pytest.mark.posix
def test_a_stream_has_more_while_bytes_are_held_or_in_the_pipe_and_at_its_end(server: Server) -> None:
    assert not server.stream.has_more
    server.write(b"x")
    assert server.stream.has_more
    assert server.stream.read_ahead()
    assert server.stream.has_more
    assert server.stream.read() == b"x"
    assert not server.stream.has_more
    server.end()
    assert server.stream.has_more


def test_the_loop_has_answers_read_if_too_much_is_unread() -> None:
    chunks = [bytes(MAX_UNREAD_BYTES), bytes(1), b""]
    read: list[int] = []
    stream: Any = SimpleNamespace(read=lambda: chunks.pop(0))
    output: Any = SimpleNamespace(relay=lambda chunk, observe: observe(chunk))
    dispatcher: Any = SimpleNamespace(session=None, unread=AnswersQueue(), read_answers=read.append)
    Downstream(stream, output, dispatcher).run(lambda: None)
    assert read == [2]
