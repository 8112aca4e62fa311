"""The charts of a report show the values that they are given."""

import re

from mcpguard.report.charts import Series, lines, stacked

LABELS = ["a", "", "c"]


def bars(svg: str, colour: str) -> list[tuple[float, float]]:
    """The y and the height of each bar of a colour."""
    found = re.findall(rf'<rect [^>]*y="([\d.]+)"[^>]*height="([\d.]+)"[^>]*--{colour}\)', svg)
    return [(float(y), float(height)) for y, height in found]


def test_bars_have_the_heights_of_their_values_and_stand_on_each_other() -> None:
    svg = stacked(LABELS, [Series("x", "green", [10, None, 20]), Series("y", "red", [10, None, None])])
    (low, high), (red,) = bars(svg, "green"), bars(svg, "red")
    assert high[1] == 2 * low[1] == 2 * red[1]
    assert red[0] + red[1] == low[0]
    assert re.findall(r">([^<>]+)</text>", svg) == ["0", "5", "10", "15", "20", "a", "c"]


def test_a_line_ends_where_there_is_no_value_and_a_lonely_point_is_seen() -> None:
    svg = lines(["", "", "", ""], [Series("x", "blue", [1, 10, None, 100])])
    (path,) = re.findall(r'<path d="(M[^"]*)" style="fill:none', svg)
    assert re.sub(r"[\d. ]+", "", path) == "MhLhMh"
    y = [float(one) for one in re.findall(r"[ML][\d.]+ ([\d.]+)h", path)]
    assert y[0] - y[1] == y[1] - y[2] > 0, "the scale is logarithmic"
    assert re.findall(r">([^<>]+)</text>", svg) == ["1", "10", "100"]
