"""The bytes between a store and its server: fragments, timeouts and unasked data."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mcpguard.errors import StoreUnavailable
from mcpguard.stores.redis.link import Link
from mcpguard.stores.redis.url import parse
from tests.redis_servers import ENOUGH_S, wait_for

pytestmark = pytest.mark.posix  # by a Unix socket, where the link asks nothing of its own first

BUDGET_S = 1.0
"""Long enough for a peer that answers, on a busy machine."""
QUESTION = b"*2\r\n$4\r\nECHO\r\n$2\r\nhi\r\n"
Peer = Callable[[Callable[[socket.socket], None]], Link]


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Peer]:
    """Opens a link to a server that runs the test's function for its connection."""
    with contextlib.ExitStack() as opened:

        def connected(does: Callable[[socket.socket], None]) -> Link:
            listening = socket.socket(socket.AF_UNIX)
            listening.bind(str(tmp_path / "s"))
            listening.listen()

            def serve() -> None:
                with listening, listening.accept()[0] as link:
                    link.settimeout(ENOUGH_S)
                    does(link)
                    with contextlib.suppress(ConnectionResetError):  # the link has not read everything
                        assert link.recv(1) == b""

            thread = threading.Thread(target=serve)
            thread.start()

            def has_ended() -> None:
                thread.join(ENOUGH_S)
                assert not thread.is_alive()

            opened.callback(has_ended)
            deadline_s = time.monotonic() + ENOUGH_S
            link = Link(parse(f"unix://{tmp_path}/s"), timeout_s=BUDGET_S, key="k", deadline_s=deadline_s)
            return opened.enter_context(contextlib.closing(link))

        yield connected


def ask(link: Link, after_s: float = ENOUGH_S) -> list[Any]:
    return link.ask([("ECHO", "hi")], deadline_s=time.monotonic() + after_s)


def answers(*parts: bytes) -> Callable[[socket.socket], None]:
    """A server that answers a question with these parts."""

    def answer(link: socket.socket) -> None:
        assert link.recv(100) == QUESTION
        for part in parts:
            link.sendall(part)

    return answer


def test_a_reply_that_comes_byte_by_byte_is_read_whole_and_an_error_inside_it_is_a_value(peer: Peer) -> None:
    whole = b"*4\r\n$3\r\n\x00\r\n\r\n:7\r\n$-1\r\n-NOSCRIPT none\r\n"
    (reply,) = ask(peer(answers(*[bytes([byte]) for byte in whole])))
    assert reply[:3] == [b"\x00\r\n", 7, None]
    assert str(reply[3]) == "NOSCRIPT none"


def test_a_reply_that_trickles_in_is_given_up_after_the_budget_and_closes_the_connection(peer: Peer) -> None:
    enough = threading.Event()

    def drip(link: socket.socket) -> None:
        answers(b"$1000000\r\n")(link)
        with contextlib.suppress(BrokenPipeError):  # it is given up between two bytes
            while not enough.wait(BUDGET_S / 20):
                link.sendall(b"x")

    link = peer(drip)
    with pytest.raises(StoreUnavailable, match="does not answer within 1000 ms"):
        ask(link)
    enough.set()
    assert link.is_lost()
    with pytest.raises(StoreUnavailable):  # nothing more is sent on it
        ask(link)


def test_a_command_whose_time_was_over_before_it_was_sent_still_has_some_time_for_its_reply(peer: Peer) -> None:
    assert ask(peer(answers(b"$2\r\nhi\r\n")), -ENOUGH_S) == [b"hi"]


def test_a_first_wait_of_less_than_a_millisecond_ends(peer: Peer) -> None:
    with pytest.raises(StoreUnavailable, match="does not answer within"):
        ask(peer(answers()), 0.0005)


def test_a_connection_with_unasked_data_counts_as_lost(peer: Peer) -> None:
    link = peer(lambda link: link.sendall(b"+surprise\r\n"))
    wait_for(link.is_lost, "it is taken for a reply")


def test_surplus_replies_are_not_taken_for_those_of_later_commands(peer: Peer) -> None:
    link = peer(answers(b"+one\r\n+two\r\n"))
    assert ask(link) == [b"one"]
    assert link.is_lost()


def test_a_malformed_reply_closes_the_connection(peer: Peer) -> None:
    link = peer(answers(b"HTTP/1.1 400 Bad Request\r\n\r\n"))
    with pytest.raises(StoreUnavailable, match="does not answer"):
        ask(link)
    assert link.is_lost()
