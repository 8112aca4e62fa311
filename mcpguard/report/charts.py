"""Draws charts as SVG. Colours are CSS variables of the page, so that charts follow its theme."""

import math
import re
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple
from xml.etree import ElementTree


class Series(NamedTuple):
    """One series of a chart.

    Attributes:
        name: Its name in the legend.
        colour: The name of a CSS variable.
        values: A value for each point; None for no value.
    """

    name: str
    colour: str
    values: Sequence[float | None]


def stacked(number: int, labels: Sequence[str], series: Sequence[Series]) -> str:
    """Bars on top of each other.

    Args:
        number: The chart's number in the page.
        labels: The label of each point; empty for a point whose label is not shown.
        series: The series, the lowest first.
    """
    highest = max(
        (sum(value or 0 for value in values) for values in zip(*[one.values for one in series], strict=True)), default=0
    )
    return _drawn(_pygal().StackedBar(_config(series)), number, labels, series, _ticks(highest))


def lines(number: int, labels: Sequence[str], series: Sequence[Series]) -> str:
    """Lines on a logarithmic scale; see `stacked`. All values are greater than 0."""
    values = [value for one in series for value in one.values if value is not None]
    powers = range(math.floor(math.log10(min(values))), math.ceil(math.log10(max(values))) + 1)
    ticks = [10.0**power for power in (powers if len(powers) > 1 else [powers[0], powers[0] + 1])]
    chart = _pygal().Line(_config(series), logarithmic=True, dots_size=1.5, stroke_style={"width": 1.5})
    return _drawn(chart, number, labels, series, ticks)


def _pygal() -> Any:
    """The library, without its hook for imports, of which Python 3.11 warns at each further import."""
    import pygal

    sys.meta_path[:] = [finder for finder in sys.meta_path if type(finder).__name__ != "PluginImportFixer"]
    return pygal


def _ticks(highest: float) -> list[float]:
    """Three to six numbers of a scale for counts, from 0 to at least the highest.

    >>> _ticks(7), _ticks(3), _ticks(21)
    ([0.0, 2.0, 4.0, 6.0, 8.0], [0.0, 1.0, 2.0, 3.0], [0.0, 5.0, 10.0, 15.0, 20.0, 25.0])
    """
    step = 1.0
    while step * 5 < highest:
        step *= 2.5 if str(step)[0] == "2" else 2
    return [step * at for at in range(max(2, math.ceil(highest / step)) + 1)]


def _config(series: Sequence[Series]) -> object:
    from pygal import Config
    from pygal.style import Style

    style = Style(
        background="transparent",
        plot_background="transparent",
        foreground="var(--text)",
        foreground_strong="var(--text)",
        foreground_subtle="var(--muted)",
        guide_stroke_color="var(--line)",
        major_guide_stroke_color="var(--line)",
        guide_stroke_dasharray="none",
        major_guide_stroke_dasharray="none",
        opacity="1",
        opacity_hover="1",
        stroke_opacity="1",
        transition="0s",
        font_family="inherit",
        label_font_size=13,
        major_label_font_size=13,
        colors=tuple(f"var(--{one.colour})" for one in series),
    )
    return Config(
        style=style,
        js=[],
        disable_xml_declaration=True,
        width=900,
        height=300,
        margin=8,
        spacing=8,
        show_legend=False,
        show_x_guides=False,
        truncate_label=-1,
        formatter=_short,
    )


def _drawn(chart: Any, number: int, labels: Sequence[str], series: Sequence[Series], ticks: Sequence[float]) -> str:
    """The chart as text."""
    chart.x_labels = labels
    chart.y_labels = [{"value": tick, "label": _short(tick)} for tick in ticks]
    chart.range = ticks[0], ticks[-1]
    for one in series:
        chart.add(one.name, one.values)
    root = chart.render_tree()
    _slim(root)
    root.set("id", f"chart{number}")  # in place of a random one
    style = next(one for one in root.iter() if one.tag == "style")
    style.text = re.sub(r"#chart-[0-9a-f-]{36}", f"#chart{number}", style.text or "")
    return ElementTree.tostring(root, encoding="unicode")


def _slim(parent: ElementTree.Element) -> None:
    """Remove pygal's script and what is there for it, and all that nobody sees. It makes a chart a third as large."""
    for name, value in parent.attrib.items():
        if name in {"x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "width", "height", "d", "transform"}:
            parent.set(name, re.sub(r"[0-9]+\.[0-9]+", lambda number: f"{float(number[0]):.2f}", value))
    for name in ("rx", "ry"):
        parent.attrib.pop(name, None)
    if "tooltip-trigger" in parent.get("class", ""):
        parent.attrib.pop("class")
    for child in list(parent):
        _slim(child)
        if _is_needless(child):
            parent.remove(child)


def _is_needless(element: ElementTree.Element) -> bool:
    if element.tag == "g":
        text = element.find("text")
        return not len(element) or (element.get("class") == "guides" and text is not None and not text.text)
    return element.tag in {"script", "desc", "title", ElementTree.Comment} or element.get("height") == "0.00"


def _short(value: float) -> str:
    """A number on an axis.

    >>> _short(1500.0), _short(2e6), _short(0.25)
    ('1.5k', '2M', '0.25')
    """
    for unit, sign in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.3g}{sign}"
    return f"{value:.3g}"
