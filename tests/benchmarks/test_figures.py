"""That the manual's figures are renewed from a run, and nothing else of the page changes."""

import re
from xml.etree import ElementTree

import pytest

from . import figures, flat
from .calls import PLACES
from .figures import HOT, LINES, P50
from .report import Row, Section, added, percentile, table
from .session import BenchmarkError

SECTIONS = [
    Section(f"{HOT}, {PLACES['split']}", [Row(P50, {"mcpguard": 98.4, "least": 11, "warden": 64.4})]),
    Section(f"{HOT}, {PLACES['one']}", [Row(P50, {"mcpguard": 80, "least": 14})]),
    Section("calls pipelined", [Row("calls/s", {"mcpguard": 26_412, "warden": 12_345})]),
]
CURVES = [
    flat.Curve("rules", ["10", "1,000,000"], [10, 1_000_000], [100, 120], [200, 190], [300, 900], [50, 51]),
    flat.Curve("audit rows", ["1", "20 × 5"], [1, 100], [100, 130], [200, 190], [300, -3], [50, 51]),
]


def test_a_line_has_its_figures_and_those_of_others_that_were_measured_in_all_places_and_a_dash_without_any() -> None:
    text = figures.markdown(SECTIONS)
    assert "server that answers at once, on two cores / on one | 98 / 80 µs | smallest possible relay 11 / 14 µs |" in text
    assert "wait for answers | 26,000 | mcp-warden 12,000 |" in text
    assert "| denials per second, of a client that does not wait | – |  |" in text
    assert len(re.findall(r"^\|", text, re.MULTILINE)) == len(LINES) + 2


def test_figures_replace_those_between_their_marks_and_nothing_else() -> None:
    old = f"# Page\n\n{figures.begin('a')}\nold a\n{figures.END}\n\n{figures.begin('b')}\nold b\n{figures.END}\nEnd\n"
    assert figures.renewed(old, {"b": "new b"}) == old.replace("old b", "new b")
    with pytest.raises(BenchmarkError, match="does not have the lines"):
        figures.renewed(f"{figures.begin('a')}\n", {"a": ""})


def test_the_page_about_performance_has_all_marks_and_the_picture() -> None:
    text = figures.PAGE.read_text(encoding="utf-8")
    assert "new" in figures.renewed(text, {"figures": "new", "curves": "new"})
    assert f"(images/benchmarks/{figures.PICTURE.name})" in text
    assert figures.PICTURE.exists()


def test_curves_become_a_picture_with_every_point_inside_of_it_and_a_table_that_compares_with_the_smallest_size() -> None:
    root = ElementTree.fromstring(flat.picture(CURVES))  # noqa: S314 - ours
    width, height = map(float, root.attrib["viewBox"].split()[2:])
    circles = list(root.iter("{http://www.w3.org/2000/svg}circle"))
    assert len(circles) == 2 * 2 * 3
    for circle in circles:
        assert 0 < float(circle.attrib["cx"]) < width / 2
        assert 0 < float(circle.attrib["cy"]) < height
    assert "| added to the median, µs | 100 | 120 | 1.20 |\n" in flat.markdown(CURVES)


def test_drift_between_rounds_does_not_count_as_added() -> None:
    assert added({"bare": [10, 50, 30], "relay": [15, 54, 36]}, "bare") == {"relay": 5}


def test_the_percentile_is_one_of_the_values() -> None:
    assert percentile(range(1, 101), 99) == 99
    assert percentile([7.0], 99) == 7


def test_the_table_has_80_columns_with_two_peers() -> None:
    text = table([Section("calls", [Row("added to p50, us", {"least": 20, "other": 120}, 1)])], ["least", *"abcd", "other"])
    assert max(map(len, text.splitlines())) == 80
    assert text.splitlines()[-1].split() == ["added", "to", "p50,", "us", "20.0", *"----", "120.0"]
