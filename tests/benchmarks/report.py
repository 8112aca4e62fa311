"""Figures, and how they are printed."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


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


def text(sections: Sequence[Section]) -> str:
    """A line for each row, with the figures of all variants."""
    lines = []
    for section in sections:
        lines += ["", section.title]
        for row in section.rows:
            found = ", ".join(f"{name} {value:,.{row.decimals}f}" for name, value in row.values.items())
            lines.append(f"  {row.label}: {found}")
    return "\n".join(lines)
