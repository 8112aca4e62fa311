"""That the manual's figures are renewed from a run, and nothing else of the page changes."""

import re

import pytest

from . import figures, page
from .calls import PLACES
from .figures import HOT, LINES, P50
from .report import Row, Section
from .session import BenchmarkError

SECTIONS = [
    Section(f"{HOT}, {PLACES['split']}", [Row(P50, {"mcpguard": 98.4, "least": 11, "warden": 64.4})]),
    Section(f"{HOT}, {PLACES['one']}", [Row(P50, {"mcpguard": 80, "least": 14})]),
    Section("calls pipelined", [Row("calls/s", {"mcpguard": 26_412, "warden": 12_345})]),
]


def test_a_line_has_its_figures_and_those_of_others_that_were_measured_in_all_places() -> None:
    text = figures.markdown(SECTIONS)
    assert "server that answers at once, on two cores / on one | 98 / 80 µs | smallest possible relay 11 / 14 µs |" in text
    assert "wait for answers | 26,000 | mcp-warden 12,000 |" in text


def test_a_line_that_was_not_measured_has_a_dash() -> None:
    assert "| denials per second, of a client that does not wait | – |  |" in figures.markdown(SECTIONS)
    assert len(re.findall(r"^\|", figures.markdown([]), re.MULTILINE)) == len(LINES) + 2


def test_figures_replace_those_between_their_marks_and_nothing_else() -> None:
    old = f"# Page\n\n{page.begin('a')}\nold a\n{page.END}\n\n{page.begin('b')}\nold b\n{page.END}\nEnd\n"
    new = page.renewed(old, {"b": "new b"})
    assert new == old.replace("old b", "new b")
    assert page.renewed(new, {"a": "new a"}) == new.replace("old a", "new a")


def test_a_page_without_a_mark_is_not_overwritten() -> None:
    with pytest.raises(BenchmarkError, match="does not have the lines"):
        page.renewed(f"{page.begin('a')}\n", {"a": ""})


def test_the_page_about_performance_has_all_marks_and_the_picture() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert "new" in page.renewed(text, {"figures": "new", "curves": "new"})
    assert f"(images/benchmarks/{page.PICTURE.name})" in text
    assert page.PICTURE.exists()
