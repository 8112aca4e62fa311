"""Draws curves as one SVG, a panel for each, readable on a light and on a dark page."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from xml.sax.saxutils import escape

COLUMNS: Final = 2
WIDTH, HEIGHT = 430, 250
LEFT, TOP, RIGHT, BOTTOM = 52, 34, 16, 40
LEGEND: Final = 26
GREY: Final = "#7d8590"  # has a contrast of about 4 to both white and black
STYLES: Final = (("#2f81f7", "none"), ("#d2691e", "6 3"), ("#2da44e", "2 3"))


@dataclass(frozen=True, slots=True)
class Panel:
    """One set of axes. Both are logarithmic.

    Attributes:
        title: What the x axis counts.
        labels: The texts below it.
        xs: Where they stand.
        lines: The y values by name.
        band: Two y values: what is between them is shaded.
    """

    title: str
    labels: Sequence[str]
    xs: Sequence[float]
    lines: Mapping[str, Sequence[float]]
    band: tuple[float, float]


def svg(panels: Sequence[Panel], *, unit: str, description: str) -> str:
    """All panels, with the same y axis, below one legend. A value below 1 is drawn as 1."""
    values = [y for panel in panels for line in panel.lines.values() for y in line]
    low, high = 10 ** math.floor(math.log10(max(1, min(values)))), 10 ** math.ceil(math.log10(max(10, *values)))
    rows = -(-len(panels) // COLUMNS)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {COLUMNS * WIDTH} {LEGEND + rows * HEIGHT}" '
        f'font-family="system-ui, sans-serif" font-size="11" fill="{GREY}" role="img">',
        f"<title>{escape(description)}</title>",
        *_legend(list(panels[0].lines), unit),
    ]
    for at, panel in enumerate(panels):
        x, y = at % COLUMNS * WIDTH, LEGEND + at // COLUMNS * HEIGHT
        parts += [f'<g transform="translate({x} {y})">', *_panel(panel, low, high), "</g>"]
    return "\n".join([*parts, "</svg>", ""])


def _legend(names: Sequence[str], unit: str) -> Iterator[str]:
    x = LEFT
    for name, (colour, dashes) in zip(names, STYLES, strict=False):
        yield f'<path d="M{x} 14 h26" stroke="{colour}" stroke-width="2" stroke-dasharray="{dashes}"/>'
        yield f'<text x="{x + 32}" y="18">{escape(name)}, {escape(unit)}</text>'
        x += 54 + 7 * len(f"{name}, {unit}")


def _panel(panel: Panel, low: float, high: float) -> Iterator[str]:
    inner_width, inner_height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    first, last = math.log10(min(panel.xs)), math.log10(max(panel.xs))

    def across(value: float) -> float:
        return LEFT + inner_width * (math.log10(value) - first) / (last - first or 1)

    def down(value: float) -> float:
        return TOP + inner_height * (1 - (math.log10(max(low, value)) - math.log10(low)) / (math.log10(high) - math.log10(low)))

    yield f'<text x="{LEFT}" y="{TOP - 12}" font-size="13" font-weight="600">{escape(panel.title)}</text>'
    top, bottom = down(panel.band[1]), down(panel.band[0])
    yield (
        f'<rect x="{LEFT}" y="{top:.1f}" width="{inner_width}" height="{bottom - top:.1f}" fill="{STYLES[0][0]}" '
        'fill-opacity="0.18"/>'
    )
    tick = low
    while tick <= high:
        y = down(tick)
        yield f'<path d="M{LEFT} {y:.1f} h{inner_width}" stroke="{GREY}" stroke-opacity="0.35"/>'
        yield f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:,.0f}</text>'
        tick *= 10
    for x, label in zip(map(across, panel.xs), panel.labels, strict=True):
        anchor = "start" if x < LEFT + 20 else "end" if x > WIDTH - RIGHT - 20 else "middle"
        yield f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="{anchor}">{escape(label)}</text>'
    for ys, (colour, dashes) in zip(panel.lines.values(), STYLES, strict=False):
        places = [(across(x), down(y)) for x, y in zip(panel.xs, ys, strict=True)]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        yield f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dashes}"/>'
        for x, y in places:
            yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>'
