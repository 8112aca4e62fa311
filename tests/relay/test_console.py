import os
from collections.abc import Iterator

import pytest

from mcpguard.relay import readiness
from mcpguard.relay.console import AT_ONCE, EVERY_S, Console
from tests.end_to_end.host import fill


class Terminal:
    """A pipe as stderr."""

    def __init__(self) -> None:
        self.read_fd, self.write_fd = os.pipe()
        self.time_s = 1000.0
        self.console = Console(self.write_fd, clock_s=lambda: self.time_s)

    def text(self) -> str:
        os.set_blocking(self.read_fd, False)
        data = b""
        try:
            while more := os.read(self.read_fd, 1 << 16):
                data += more
        except OSError:  # nothing more
            pass
        return data.decode()


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    one = Terminal()
    yield one
    os.close(one.read_fd)
    os.close(one.write_fd)


def test_a_line_begins_with_mcpguard(terminal: Terminal) -> None:
    terminal.console.line("hello wörld")
    assert terminal.text() == "mcpguard: hello wörld\n"


@pytest.mark.posix
def test_a_full_pipe_drops_lines_and_the_next_line_counts_them(terminal: Terminal) -> None:
    fill(terminal.write_fd)
    for number in range(1000):
        terminal.console.line(f"line {number}")
    terminal.text()
    terminal.console.line("there is room")
    terminal.console.line("and more")
    found = terminal.text()
    assert found == "mcpguard: there is room (1000 lines before this one were dropped: stderr was full)\nmcpguard: and more\n"


def test_control_characters_line_ends_and_lone_surrogates_are_escaped(terminal: Terminal) -> None:
    terminal.console.line("a\x1b[2J\r\nmcpguard: forged\x00\x9b\u2028\u202e\ud800")
    assert terminal.text() == "mcpguard: a\\x1b[2J\\r\\nmcpguard: forged\\x00\\x9b\\u2028\\u202e\\ud800\n"


def test_a_long_line_is_cut_to_what_a_pipe_takes_in_one_piece(terminal: Terminal) -> None:
    terminal.console.line("x" * 10_000)
    text = terminal.text()
    assert len(text) == 4096
    assert text.endswith("x\n")


@pytest.mark.posix
@pytest.mark.parametrize("room", [1, 2, 8])
def test_a_line_is_written_in_pieces_that_do_not_block_and_one_that_was_torn_is_ended(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    left = [True] * room
    monkeypatch.setattr(readiness, "AT_ONCE_BYTES", 512)  # as on macOS
    monkeypatch.setattr(readiness, "has_room", lambda _: bool(left and left.pop()))
    terminal.console.line("x" * 4000)
    left += [True] * 8
    terminal.console.line("next")
    written = min(512 * room, 4011)
    dropped = "" if room == 8 else " (1 lines before this one were dropped: stderr was full)"
    assert terminal.text() == "mcpguard: " + "x" * (written - 10 - (room == 8)) + f"\nmcpguard: next{dropped}\n"


def test_a_pipe_without_a_reader_and_a_closed_descriptor_are_ignored() -> None:
    read, write = os.pipe()
    console = Console(write)
    os.close(read)
    console.line("one")
    os.close(write)
    console.line("two")


def test_lines_of_a_kind_are_rationed_to_one_a_second_that_counts_the_others(terminal: Terminal) -> None:
    for number in range(AT_ONCE + 1000):
        terminal.console.line(f"denied {number}", kind="denied user")
    terminal.console.error("unavailable", kind="store unavailable")
    found = terminal.text().splitlines()
    assert found == [*(f"mcpguard: denied {number}" for number in range(AT_ONCE)), "mcpguard: unavailable"]
    for _ in range(4):
        terminal.time_s += EVERY_S / 2
        terminal.console.line("again", kind="denied user")
    told = terminal.text().splitlines()
    assert told == ["mcpguard: again (1001 more like this were left out)", "mcpguard: again (1 more like this were left out)"]
    terminal.time_s += 1000 * EVERY_S
    for _ in range(AT_ONCE + 1):
        terminal.console.line("calm again", kind="denied user")
    assert terminal.text() == "mcpguard: calm again\n" * AT_ONCE


def test_a_quiet_console_writes_nothing_but_errors(terminal: Terminal) -> None:
    console = Console(terminal.write_fd, quiet=True)
    console.line("news")
    console.line("denied", kind="denied user")
    console.error("broken")
    assert terminal.text() == "mcpguard: broken\n"
