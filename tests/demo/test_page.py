"""The demo's page, on a terminal and in a pipe."""

import io
import re
import sys

import pytest

from mcpguard.demo.story import WIDTH, Page

COLOUR = re.compile(r"\x1b\[(?:[0-9;]*;)?(?:(?:3|4|9|10)[0-7]m|[34]8;)")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def use_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    stdout = Terminal()
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    return stdout


def test_in_a_pipe_there_are_no_escape_codes_and_eighty_columns_whatever_the_environment_says(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": "60"}.items():
        monkeypatch.setenv(name, value)
    page = Page()
    page.heading("A heading")
    page.verbatim('# a comment\n\nlimit = "5/1m" [bold]')
    page.verbatim("x" * 100, indent="")
    assert capsys.readouterr().out == f'\nA heading\n  # a comment\n\n  limit = "5/1m" [bold]\n{"x" * 100}\n'
    assert page.width == WIDTH


def test_on_a_terminal_it_has_colours_unless_no_color_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = use_terminal(monkeypatch)
    monkeypatch.setenv("NO_COLOR", "1")
    Page().heading("A heading")
    assert not COLOUR.search(terminal.getvalue())
    monkeypatch.delenv("NO_COLOR")
    Page().heading("A heading")
    assert COLOUR.search(terminal.getvalue())


@pytest.mark.parametrize(("columns", "width"), [("60", 60), ("200", WIDTH)])
def test_a_narrow_terminal_is_filled_and_a_wide_one_is_not(monkeypatch: pytest.MonkeyPatch, columns: str, width: int) -> None:
    use_terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", columns)
    page = Page()  # an old console of Windows wraps a line of full width
    assert page.width == min(int(columns) - page.legacy_windows, width)
