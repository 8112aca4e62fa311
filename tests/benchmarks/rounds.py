"""Rounds of a measurement, and what is made of their figures: the table in the manual's page about performance."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple, Protocol, TypeVar

from tests.pages import ROOT

from .variants import CAT, GUARD, LEAST

PAGE: Final = ROOT / "docs" / "performance.md"

NAMES: Final = {"bare": "bare server", LEAST.name: "smallest possible relay", "warden": "mcp-warden", CAT.name: "`cat`"}
"""How the table names what mcpguard is compared with."""


class Effort(NamedTuple):
    share: float = 1.0  # of the usual rounds, calls and seconds
    wrappers: tuple[int, ...] = (1, 4, 16)  # how many share a store

    def of(self, usual: int) -> int:
        """How many instead of the usual number, at least 1."""
        return max(1, int(usual * self.share))


class Row(NamedTuple):
    text: str
    values: Mapping[str, Sequence[float]]  # the figures by variant
    unit: str = ""


class Named(Protocol):
    @property
    def name(self) -> str: ...


_Named = TypeVar("_Named", bound=Named)
_Figure = TypeVar("_Figure")


def take_turns(these: Sequence[_Named], rounds: int, take: Callable[[_Named], _Figure]) -> dict[str, list[_Figure]]:
    """What each gives in each round, by its name. A round goes once through all, so that all meet the same load."""
    found: dict[str, list[_Figure]] = {one.name: [] for one in these}
    for _ in range(rounds):
        for one in these:
            found[one.name].append(take(one))
    return found


def percentile(values: Iterable[float], percent: float) -> float:
    """The nearest-rank percentile.

    >>> percentile([4, 1, 3, 2], 50)
    2
    """
    ranked = sorted(values)
    return ranked[max(0, math.ceil(len(ranked) * percent / 100) - 1)]


def added(rounds: Mapping[str, Sequence[float]], over: str) -> dict[str, float]:
    """What each has more than `over`: the median of the differences within a round, which drift does not touch."""
    return {
        name: statistics.median(value - bare for value, bare in zip(values, rounds[over], strict=True))
        for name, values in rounds.items()
        if name != over
    }


def beside(*figures: Mapping[str, float]) -> dict[str, list[float]]:
    """Figures of the same variants, which stand beside each other in a row."""
    return {name: [one[name] for one in figures] for name in figures[0]}


def markdown(rows: Sequence[Row]) -> str:
    lines = ["", "| | mcpguard | for comparison |", "|---|---|---|"]
    for row in rows:
        cells = {name: f"{' / '.join(map(_rounded, values))} {row.unit}".strip() for name, values in row.values.items()}
        own = cells.pop(GUARD.name)
        lines.append(f"| {row.text} | {own} | {', '.join(f'{NAMES.get(name, name)} {cell}' for name, cell in cells.items())} |")
    return "\n".join([*lines, ""])


def _rounded(value: float) -> str:
    """Two digits of a large figure, since the rest differs from run to run. An added time under 0 is chance.

    >>> _rounded(26_412), _rounded(1_482), _rounded(98.4), _rounded(-3.6)
    ('26,000', '1,500', '98', '0')
    """
    value = max(0.0, value)
    step = 10 ** max(0, len(str(round(value))) - 2) if value >= 1000 else 1
    return f"{round(value / step) * step:,}"
