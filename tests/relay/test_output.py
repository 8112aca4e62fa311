import os
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpguard.relay.output import ClientOutput
from tests.end_to_end.host import until

MIB = 1 << 20
PIPE_BYTES = 1 << 16
MOST_QUEUED_BYTES = 4 * MIB
NEVER = 30.0
"""Only a thread that hangs takes this long."""


def unseen(_: bytes) -> None:
    """Does not observe."""


class Client:
    """A pipe, with a `ClientOutput` on its write end."""

    def __init__(self) -> None:
        self.fd, self.write_fd = os.pipe()
        self.losses = 0
        self.output = ClientOutput(self.write_fd, self._lost, MOST_QUEUED_BYTES)
        self._received: list[bytes] = []

    def _lost(self) -> None:
        self.losses += 1

    def read(self, size: int) -> bytes:
        """Read exactly so many bytes."""
        data = bytearray()
        while len(data) < size:
            more = os.read(self.fd, size - len(data))
            assert more
            data += more
        return bytes(data)

    def reads_all(self) -> threading.Thread:
        """Read from now on, to the end of the stream."""
        return in_thread(lambda: self._received.extend(iter(lambda: os.read(self.fd, 1 << 16), b"")))

    def ended(self, reader: threading.Thread | None = None, replies: bytes = b"") -> bytes:
        """End the stream; returns all that the reader has read of it, which begins now if there is none."""
        reader = reader or self.reads_all()
        self.output.finish(lambda: replies)
        self.close_writer()
        assert joined(reader)
        return b"".join(self._received)

    def close_writer(self) -> None:
        if self.write_fd >= 0:
            os.close(self.write_fd)
            self.write_fd = -1

    def close_reader(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


@pytest.fixture
def client() -> Iterator[Client]:
    one = Client()
    yield one
    one.close_reader()
    one.close_writer()


def in_thread(work: object, *arguments: object) -> threading.Thread:
    assert callable(work)
    thread = threading.Thread(target=work, args=arguments)
    thread.start()
    return thread


def joined(thread: threading.Thread) -> bool:
    thread.join(NEVER)
    return not thread.is_alive()


frames_and_cuts = st.lists(st.integers(0, 9000), max_size=12).flatmap(
    lambda sizes: st.tuples(
        st.just([b"s%d" % number + b"." * size + b"\n" for number, size in enumerate(sizes)]),
        st.lists(st.integers(0, sum(sizes) + 4 * len(sizes)), max_size=10).map(sorted),
    )
)
replies_between = st.lists(st.tuples(st.integers(0, 10), st.integers(0, 9000)), max_size=12)


@given(frames_and_cuts, replies_between)
@settings(max_examples=150, deadline=None)
def test_a_reply_is_written_between_two_frames_and_at_the_first_chance(
    stream: tuple[list[bytes], list[int]], replies: list[tuple[int, int]]
) -> None:
    frames, cuts = stream
    data = b"".join(frames)
    chunks = [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    client = Client()
    expected_replies: list[bytes] = []
    bounds: list[tuple[int, int]] = []  # between which numbers of the server's frames each must come
    complete = 0
    reader = client.reads_all()
    for at, chunk in enumerate(chunks):
        for _, size in [one for one in replies if one[0] == at]:
            reply = b"r%d" % len(expected_replies) + b"," * size + b"\n"
            expected_replies.append(reply)
            after = complete
            for later in chunks[at:]:
                after += later.count(b"\n")
                if b"\n" in later:
                    break
            else:
                after = len(frames)
            bounds.append((complete, after))
            client.output.reply(reply)
        client.output.relay(chunk, unseen)
        complete += chunk.count(b"\n")
    lines = client.ended(reader).splitlines(keepends=True)
    client.close_reader()
    assert [line for line in lines if line[:1] == b"s"] == frames
    assert [line for line in lines if line[:1] == b"r"] == expected_replies
    before = [sum(line[:1] == b"s" for line in lines[: lines.index(reply)]) for reply in expected_replies]
    assert all(low <= number <= high for number, (low, high) in zip(before, bounds, strict=True)), (before, bounds)
    assert client.losses == 0


def test_frames_and_replies_of_several_threads_stay_whole_and_in_order(client: Client) -> None:
    frames = [b"s%d" % number + b"." * (number * 7919 % 200_000) + b"\n" for number in range(200)]
    replies = [[b"%d r%d" % (name, number) + b"," * (number * 31 % 6000) + b"\n" for number in range(300)] for name in (1, 2)]
    data = b"".join(frames)

    def relay() -> None:
        start = 0
        while start < len(data):
            size = 1 + start * 7 % 65536
            client.output.relay(data[start : start + size], unseen)
            start += size

    def reply(some: list[bytes]) -> None:
        for one in some:
            client.output.reply(one)

    reader = client.reads_all()
    writers = [in_thread(relay), *(in_thread(reply, some) for some in replies)]
    assert all(joined(writer) for writer in writers)
    lines = client.ended(reader).splitlines(keepends=True)
    assert [line for line in lines if line[:1] == b"s"] == frames
    assert [[line for line in lines if line[:1] == b"%d" % name] for name in (1, 2)] == replies


def test_a_reply_between_frames_is_written_at_once_however_large_it_is(client: Client) -> None:
    client.output.reply(b"first\n")
    assert client.read(6) == b"first\n"
    client.output.relay(b"frame\n", unseen)
    client.output.reply(b"r" * MIB + b"\n")
    assert client.read(MIB + 7) == b"frame\n" + b"r" * MIB + b"\n"


def test_a_reply_that_the_system_has_no_thread_for_is_written_with_the_next_one(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        client.output.reply(b"a" * MIB)
    client.output.reply(b"b" * MIB)
    assert client.read(2 * MIB) == b"a" * MIB + b"b" * MIB


def test_queued_replies_are_written_after_the_open_frame_even_if_the_server_is_silent_then(client: Client) -> None:
    client.output.relay(b"one, ", unseen)
    client.output.reply(b"r1\n")
    client.output.relay(b"end of one\n", unseen)
    expected = b"one, end of one\nr1\n"
    assert client.read(len(expected)) == expected


def test_a_reply_does_not_wait_for_a_client_that_does_not_read(client: Client) -> None:
    relaying = in_thread(client.output.relay, b"s" * MIB + b"\n", unseen)  # more than the pipe takes: waits
    assert client.read(1) == b"s"
    for _ in range(MOST_QUEUED_BYTES // MIB - 1):
        client.output.reply(b"r" * (MIB - 1) + b"\n")
    assert relaying.is_alive()
    data = client.ended()
    assert joined(relaying)
    assert data.count(b"\n") == MOST_QUEUED_BYTES // MIB
    assert data[: MIB + 1] == b"s" * (MIB - 1) + b"\nr"


def test_backpressure_lasts_until_the_client_reads(client: Client) -> None:
    client.output.relay(b"open, ", unseen)
    for _ in range(MOST_QUEUED_BYTES // MIB):
        client.output.reply(b"r" * (MIB - 1) + b"\n")
    client.output.await_room(lambda: False)
    client.output.reply(b"last\n")
    waiting = in_thread(client.output.await_room, lambda: False)
    waiting.join(0.2)
    assert waiting.is_alive()
    relaying = in_thread(client.output.relay, b"end\n", unseen)
    size = len(b"open, end\n") + MOST_QUEUED_BYTES + len(b"last\n")
    assert client.read(size).endswith(b"r\nlast\n")
    assert joined(waiting)
    assert joined(relaying)


def test_backpressure_ends_if_the_client_is_gone_while_a_frame_is_open(client: Client) -> None:
    client.output.relay(b"open, ", unseen)
    client.output.reply(b"r" * MOST_QUEUED_BYTES + b"\n")
    with pytest.raises(ConnectionAbortedError):
        client.output.await_room(lambda: True)


def test_a_client_that_is_gone_is_reported_once_and_not_waited_for(client: Client) -> None:
    client.close_reader()
    client.output.relay(b"frame\n", unseen)
    client.output.relay(b"frame\n", unseen)
    for _ in range(100):
        client.output.reply(b"r" * MIB + b"\n")
    client.output.finish(lambda: b"last\n")
    assert client.losses == 1


def test_backpressure_ends_when_the_client_goes(client: Client) -> None:
    relaying = in_thread(client.output.relay, b"s" * MIB, unseen)
    assert client.read(1) == b"s"
    client.output.reply(b"r" * MOST_QUEUED_BYTES + b"\n")
    waiting = in_thread(client.output.await_room, lambda: False)
    client.close_reader()
    assert joined(relaying)
    assert joined(waiting)
    assert client.losses == 1


@pytest.mark.parametrize("queued", [[b"waiting\n"], []])
@pytest.mark.parametrize("last", [b"last\n", b""])
def test_only_queued_and_last_replies_end_an_open_frame(client: Client, queued: list[bytes], last: bytes) -> None:
    client.output.relay(b"half", unseen)
    for reply in queued:
        client.output.reply(reply)
    replies = b"".join([*queued, last])
    assert client.ended(replies=last) == b"half" + (b"\n" + replies if replies else b"")


@pytest.mark.posix
def test_the_bytes_taken_grow_with_each_page_that_a_slow_client_reads(client: Client) -> None:
    finishing = in_thread(client.output.finish, lambda: b"r" * MIB)
    until(lambda: client.output.taken == PIPE_BYTES, "the pipe is full")
    client.read(4096)
    until(lambda: client.output.taken == PIPE_BYTES + 4096, "it has taken a page")
    client.read(MIB - 4096)
    assert joined(finishing)


def test_the_last_replies_are_requested_after_the_servers_last_bytes(client: Client) -> None:
    passed: list[int] = []

    def last_replies() -> bytes:
        passed.append(client.output.taken)
        return b"last\n"

    relaying = in_thread(client.output.relay, b"s" * MIB + b"\n", unseen)
    assert client.read(1) == b"s"  # it writes, and waits for the client
    finishing = in_thread(client.output.finish, last_replies)
    assert client.read(MIB + 5).endswith(b"s\nlast\n")
    assert joined(relaying)
    assert joined(finishing)
    assert passed == [MIB + 1]


def test_after_the_end_nothing_is_written_or_observed(client: Client) -> None:
    seen: list[bytes] = []
    client.output.relay(b"frame\n", seen.append)
    assert client.read(6) == b"frame\n"
    client.output.finish(lambda: b"last\n")
    client.output.relay(b"late\n", seen.append)
    assert seen == [b"frame\n"]
    client.output.reply(b"r" * MIB + b"\n")
    client.close_writer()
    assert os.read(client.fd, 1 << 16) == b"last\n"
    assert os.read(client.fd, 1 << 16) == b""
    assert client.losses == 0


@pytest.mark.posix
def test_everything_is_written_to_a_non_blocking_pipe(client: Client) -> None:
    os.set_blocking(client.write_fd, False)
    data = bytes(range(256)) * 4096 + b"\n"
    writing = in_thread(client.output.relay, data, unseen)
    assert client.read(len(data)) == data
    assert joined(writing)
    client.output.reply(data)
    assert client.read(len(data)) == data
    assert client.losses == 0
