import contextlib
import os
from collections.abc import Iterator

import pytest

from mcpguard.relay.console import Console


class Terminal:
    """A pipe as stderr."""

    def __init__(self) -> None:
        self.read_fd, self.write_fd = os.pipe()
        self.console = Console(self.write_fd)

    def fill(self) -> None:
        os.set_blocking(self.write_fd, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(self.write_fd, b"." * 4096)
        os.set_blocking(self.write_fd, True)

    def text(self) -> str:
        os.set_blocking(self.read_fd, False)
        data = b""
        try:
            while more := os.read(self.read_fd, 1 << 16):
                data += more
        except BlockingIOError:
            pass
        return data.decode()


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    one = Terminal()
    yield one
    os.close(one.read_fd)
    os.close(one.write_fd)


def test_a_line_says_whose_it_is(terminal: Terminal) -> None:
    terminal.console.line("hello wörld")
    assert terminal.text() == "mcpguard: hello wörld\n"


def test_a_full_pipe_stops_nothing_and_the_next_line_that_fits_tells_how_many_did_not(terminal: Terminal) -> None:
    terminal.fill()
    for number in range(1000):
        terminal.console.line(f"line {number}")
    terminal.text()
    terminal.console.line("there is room")
    terminal.console.line("and more")
    assert terminal.text() == (
        "mcpguard: there is room (1000 lines before this one were dropped: stderr was full)\nmcpguard: and more\n"
    )


def test_control_characters_line_ends_and_lone_surrogates_are_escaped(terminal: Terminal) -> None:
    terminal.console.line("a\x1b[2J\r\nmcpguard: forged\x00\x9b\u2028\u202e\ud800")
    assert terminal.text() == "mcpguard: a\\x1b[2J\\r\\nmcpguard: forged\\x00\\x9b\\u2028\\u202e\\ud800\n"


def test_a_long_line_is_cut_to_what_a_pipe_takes_whole(terminal: Terminal) -> None:
    terminal.console.line("x" * 10_000)
    text = terminal.text()
    assert len(text) == 4096
    assert text.endswith("x\n")


def test_a_pipe_whose_reader_is_gone_stops_nothing() -> None:
    read, write = os.pipe()
    console = Console(write)
    os.close(read)
    console.line("one")
    console.line("two")
    os.close(write)


def test_a_closed_descriptor_stops_nothing() -> None:
    read, write = os.pipe()
    console = Console(write)
    os.close(read)
    os.close(write)
    console.line("one")
