"""Figures, and the one table they are printed in."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

WIDTH = 80
COLUMN = 9


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of several variants."""

    label: str
    values: Mapping[str, float]
    decimals: int = 0


@dataclass(frozen=True, slots=True)
class Section:
    """Rows that were measured together."""

    title: str
    rows: Sequence[Row]


def percentile(values: Iterable[float], percent: float) -> float:
    """The nearest-rank percentile.

    >>> percentile([4, 1, 3, 2], 50)
    2
    """
    ranked = sorted(values)
    return ranked[max(0, math.ceil(len(ranked) * percent / 100) - 1)]


def medians(rounds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in rounds.items()}


def added(rounds: Mapping[str, Sequence[float]], over: str) -> dict[str, float]:
    """What each has more than `over`: the median of the differences within a round, which drift does not touch."""
    base = rounds.get(over, ())
    return {
        name: statistics.median(value - bare for value, bare in zip(values, base, strict=True))
        for name, values in rounds.items()
        if name != over and base
    }


def memory_row(peaks_kib: Mapping[str, float]) -> Row:
    return Row("peak memory, MiB", {name: kib / 1024 for name, kib in peaks_kib.items()}, 1)


def table(sections: Sequence[Section], variants: Sequence[str]) -> str:
    """Lay the sections out, a column for each variant, `-` where nothing was measured."""
    lines = [_line("", variants)]
    for section in sections:
        lines += ["", section.title]
        for row in section.rows:
            cells = [f"{row.values[name]:,.{row.decimals}f}" if name in row.values else "-" for name in variants]
            lines.append(_line(f"  {row.label}", cells))
    return "\n".join(lines)


def _line(label: str, cells: Sequence[str]) -> str:
    return (f"{label:<{WIDTH - COLUMN * len(cells)}}" + "".join(f"{cell:>{COLUMN}}" for cell in cells)).rstrip()
