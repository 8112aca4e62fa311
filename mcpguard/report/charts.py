"""Draws charts as SVG. Colours are CSS variables of the page, so that charts follow its theme."""

import math
from collections.abc import Callable, Sequence

from mcpguard.light_typing import Final, NamedTuple

_WIDTH: Final = 900
_HEIGHT: Final = 300
_LEFT: Final = 52
_TOP: Final = 12
_BOTTOM: Final = 274
"""Where the drawing area begins and ends. Around it are the labels."""


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


def stacked(labels: Sequence[str], series: Sequence[Series]) -> str:
    """Bars on top of each other.

    Args:
        labels: The label of each point; empty for a point whose label is not shown.
        series: The series, the lowest first.
    """
    ends = [0.0] * len(labels)
    highest = max(
        (sum(value or 0 for value in values) for values in zip(*[one.values for one in series], strict=True)), default=0
    )
    ticks = _ticks(highest)
    width = (_WIDTH - _LEFT) / len(labels)
    bars = []
    for one in series:
        for at, value in enumerate(one.values):
            if value:
                y = _y(ends[at] + value, 0, ticks[-1])
                height = _y(ends[at], 0, ticks[-1]) - y
                shape = f'x="{_x(at, labels) - 0.4 * width:.2f}" y="{y:.2f}" width="{0.8 * width:.2f}" height="{height:.2f}"'
                bars.append(f'<rect {shape} style="fill:var(--{one.colour})"/>')
                ends[at] += value
    return _drawn(labels, ticks, lambda tick: _y(tick, 0, ticks[-1]), bars)


def lines(labels: Sequence[str], series: Sequence[Series]) -> str:
    """Lines on a logarithmic scale; see `stacked`. All values are greater than 0."""
    logs = [math.log10(value) for one in series for value in one.values if value is not None]
    low, high = math.floor(min(logs)), max(math.ceil(max(logs)), math.floor(min(logs)) + 1)
    curves = []
    for one in series:
        path, pen = "", "M"
        for at, value in enumerate(one.values):
            if value is None:
                pen = "M"
            else:  # a line of no length, so that a point without neighbours is seen
                path += f"{pen}{_x(at, labels):.2f} {_y(math.log10(value), low, high):.2f}h0"
                pen = "L"
        curves.append(f'<path d="{path}" style="fill:none;stroke:var(--{one.colour});stroke-width:2;stroke-linecap:round"/>')
    ticks = [10.0**power for power in range(low, high + 1)]
    return _drawn(labels, ticks, lambda tick: _y(math.log10(tick), low, high), curves)


def _x(at: int, labels: Sequence[str]) -> float:
    return _LEFT + (_WIDTH - _LEFT) * (at + 0.5) / len(labels)


def _y(value: float, low: float, high: float) -> float:
    return _BOTTOM - (_BOTTOM - _TOP) * (value - low) / (high - low)


def _drawn(labels: Sequence[str], ticks: Sequence[float], y: Callable[[float], float], shapes: Sequence[str]) -> str:
    """The chart as text."""
    guides = [f'<path d="M{_LEFT} {y(tick):.2f}H{_WIDTH}" style="stroke:var(--line)"/>' for tick in ticks]
    texts = [f'<text x="{_LEFT - 8}" y="{y(tick) + 4:.2f}" text-anchor="end">{_short(tick)}</text>' for tick in ticks]
    texts += [
        f'<text x="{_x(at, labels):.2f}" y="{_HEIGHT - 6}" text-anchor="middle">{label}</text>'
        for at, label in enumerate(labels)
        if label
    ]
    style = 'style="fill:var(--muted);font-size:13px"'
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" {style}>{"".join([*guides, *shapes, *texts])}</svg>'


def _ticks(highest: float) -> list[float]:
    """Three to six numbers of a scale for counts, from 0 to at least the highest.

    >>> _ticks(7), _ticks(3), _ticks(21)
    ([0.0, 2.0, 4.0, 6.0, 8.0], [0.0, 1.0, 2.0, 3.0], [0.0, 5.0, 10.0, 15.0, 20.0, 25.0])
    """
    step = 1.0
    while step * 5 < highest:
        step *= 2.5 if str(step)[0] == "2" else 2
    return [step * at for at in range(max(2, math.ceil(highest / step)) + 1)]


def _short(value: float) -> str:
    """A number on an axis.

    >>> _short(1500.0), _short(2e6), _short(0.25)
    ('1.5k', '2M', '0.25')
    """
    for unit, sign in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.3g}{sign}"
    return f"{value:.3g}"
