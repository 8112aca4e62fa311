"""Finds bursts: denials of one caller, tool and limit that follow each other closely."""

import heapq
from typing import Final, NamedTuple

from mcpguard.limiter.plan import Reported

GAP_US: Final = 60 * 1_000_000
"""Denials of one kind within this time are in one burst."""

LEAST: Final = 5
"""Fewer denials than this are no burst."""

WORST: Final = 20
"""How many bursts are kept: those with the most denials."""

_OPEN: Final = 4096
"""The most bursts that are followed at once. Beyond that, all but the newest half end."""

Kind = tuple[str, str, str, str, str, Reported | None]
"""What the denials of a burst have in common: decision, user, agent, server, tool, limit. A name is empty if it is unknown."""


class Burst(NamedTuple):
    """A burst.

    Attributes:
        calls: How many calls were denied, or would have been.
        first_us: The time of its first row.
        last_us: The time of its last row.
        kind: See `Kind`.
    """

    calls: int
    first_us: int
    last_us: int
    kind: Kind


class Bursts:
    """The bursts among rows, which come roughly in the order of time."""

    def __init__(self) -> None:
        self._open: dict[Kind, Burst] = {}  # the burst with the newest row is the last
        self._worst: list[tuple[int, int, int, Burst]] = []  # a heap
        self._ended = 0

    def add(self, kind: Kind, time_us: int, calls: int) -> None:
        """Count the denials of a row."""
        burst = self._open.pop(kind, None)
        if burst and time_us - burst.last_us > GAP_US:
            self._end(burst)
            burst = None
        if burst:
            first, last = min(burst.first_us, time_us), max(burst.last_us, time_us)
            self._open[kind] = Burst(burst.calls + calls, first, last, kind)
            return
        if len(self._open) >= _OPEN:
            for old in list(self._open)[: _OPEN // 2]:
                self._end(self._open.pop(old))
        self._open[kind] = Burst(calls, time_us, time_us, kind)

    def _end(self, burst: Burst) -> None:
        self._ended += 1  # orders equal bursts, so that kinds are not compared
        if burst.calls >= LEAST:
            self._worst = _pushed(self._worst, (burst.calls, -burst.first_us, self._ended, burst))

    def worst(self) -> list[Burst]:
        """The bursts with the most calls, the worst first."""
        found = self._worst
        for number, burst in enumerate(self._open.values(), self._ended + 1):
            if burst.calls >= LEAST:
                found = _pushed(found, (burst.calls, -burst.first_us, number, burst))
        return [one[-1] for one in sorted(found, reverse=True)]


def _pushed(heap: list[tuple[int, int, int, Burst]], one: tuple[int, int, int, Burst]) -> list[tuple[int, int, int, Burst]]:
    """A heap of at most `WORST` with one more."""
    heap = list(heap)
    (heapq.heappush if len(heap) < WORST else heapq.heappushpop)(heap, one)
    return heap
