"""The demo's page, on a terminal and off it."""

import io
import re
import sys

import pytest

from mcpguard.demo.page import WIDTH, Page

MESSAGE = (
    "Tool search_customers rate limit exceeded for user alice@acme.com: 100 calls per 1h. Retry in 847 seconds. "
    "[bold]No markup[/bold] in it."
)

COLOUR = re.compile(r"\x1b\[(?:[0-9;]*;)?(?:(?:3|4|9|10)[0-7]m|[34]8;)")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def use_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    stdout = Terminal()
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    return stdout


def fill(page: Page) -> None:
    page.title("A title")
    page.heading("A heading")
    page.verbatim('# a comment\n\nlimit = "5/1m"\n')
    page.denial(429, MESSAGE, {"axis": "user", "limit": 100})
    page.result("cost", MESSAGE, MESSAGE)
    page.table(["who", "calls"], [["alice", "3,000"], ["bob", "10"]], names=1)
    with page.progress("Working", 4, every=2) as show:
        for done in range(1, 5):
            show(done, f"{done} done")


def test_in_a_pipe_there_are_no_escape_codes_even_if_colours_are_forced(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    fill(Page())
    assert "\x1b" not in capsys.readouterr().out


def test_in_a_pipe_no_line_is_wider_than_eighty_columns_or_ends_in_blanks(capsys: pytest.CaptureFixture[str]) -> None:
    fill(Page())
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert [line for line in lines if line != line.rstrip()] == []


def test_a_denial_is_shown_as_it_was_received_and_none_of_it_is_taken_for_markup(capsys: pytest.CaptureFixture[str]) -> None:
    Page().denial(429, MESSAGE, {"axis": "user", "tool": "größe"})
    assert capsys.readouterr().out.splitlines() == [
        "  code     429",
        "  message  Tool search_customers rate limit exceeded for user alice@acme.com:",
        "           100 calls per 1h. Retry in 847 seconds. [bold]No markup[/bold] in it.",
        "  data",
        "    {",
        '      "axis": "user",',
        '      "tool": "größe"',
        "    }",
    ]


def test_a_line_of_a_file_or_a_command_is_not_wrapped(capsys: pytest.CaptureFixture[str]) -> None:
    Page().verbatim(MESSAGE, indent="")
    assert capsys.readouterr().out == f"{MESSAGE}\n"


def test_a_result_has_its_label_once_beside_its_paragraphs(capsys: pytest.CaptureFixture[str]) -> None:
    Page().result("cost", MESSAGE, "[i]So.")
    first, *more = capsys.readouterr().out.splitlines()
    assert first.startswith("  cost        Tool ")
    assert all(line.startswith(" " * 14) for line in more)
    assert " ".join([first, *more]).split() == ["cost", *MESSAGE.split(), "[i]So."]


def test_in_a_pipe_progress_is_a_line_every_so_many_steps(capsys: pytest.CaptureFixture[str]) -> None:
    with Page().progress("Working", 4, every=2) as show:
        for done in range(1, 5):
            show(done, f"{done} done")
    assert capsys.readouterr().out.splitlines() == ["  2 of 4: 2 done", "  4 of 4: 4 done"]


def test_a_table_sets_words_left_and_numbers_right(capsys: pytest.CaptureFixture[str]) -> None:
    Page().table(["who", "calls"], [["alice", "3,000"], ["bob", "10"]], names=1)
    assert capsys.readouterr().out.splitlines() == ["  who    calls", "  alice  3,000", "  bob       10"]


def test_on_a_terminal_it_has_colours_and_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = use_terminal(monkeypatch)
    fill(Page())
    assert COLOUR.search(terminal.getvalue())
    assert "4/4" in terminal.getvalue()


def test_on_a_terminal_with_no_color_it_has_no_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = use_terminal(monkeypatch)
    monkeypatch.setenv("NO_COLOR", "1")
    fill(Page())
    assert "A title" in terminal.getvalue()
    assert not COLOUR.search(terminal.getvalue())


def test_a_narrow_terminal_is_filled_and_a_wide_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    use_terminal(monkeypatch)
    for columns, width in (("60", 60), ("200", WIDTH)):
        monkeypatch.setenv("COLUMNS", columns)
        assert Page().width == width


def test_in_a_pipe_lines_are_of_eighty_columns_whatever_the_terminal_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert Page().width == WIDTH
