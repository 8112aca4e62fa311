"""Gathers the figures of a report from audit rows, in memory that does not grow with the number of rows or names."""

import heapq
import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

from mcpguard.light_typing import Final, NamedTuple
from mcpguard.limiter.plan import Reported
from mcpguard.reading.statistics import Figures
from mcpguard.session.audit import axis_of, members
from mcpguard.session.verdict import REFUSED
from mcpguard.stores.api import StoredRow

AXES: Final = ("user", "agent", "tool", "none")
"""The axes of a denial. `none` stands for a denial that no limit made, such as of an invalid line."""

NAMES: Final = 500
"""The most names of a kind that are counted separately. Beyond twice as many, the rarest are forgotten."""

MAX_SLOTS: Final = 170
"""The most points of a chart: a week has 168 hours."""

SLOTS_US: Final = tuple(seconds * 1_000_000 for seconds in (60, 300, 900, 3600, 6 * 3600, 86400, 7 * 86400))

GAP_US: Final = 60 * 1_000_000
"""Denials of one kind within this time are in one burst."""

LEAST_BURST: Final = 5
"""Fewer denials than this are no burst."""

WORST: Final = 20
"""How many bursts are kept: those with the most denials."""

_OPEN: Final = 4096
"""The most bursts that are followed at once. Beyond that, all but the newest half end."""

_BUCKETS: Final = 24
"""How many buckets a power of ten has, in which durations are counted. A bucket is 10 % wide."""


def rounded_us(duration_us: int) -> int:
    """A duration, rounded to the middle of its bucket. It is at most 5 % off."""
    return round(10 ** (round(_BUCKETS * math.log10(max(1, duration_us))) / _BUCKETS))


Name = tuple[str, ...]
"""A user, an agent, or a server and its tool."""


class Named:
    """Figures by name, of at most `2 * NAMES` names."""

    def __init__(self) -> None:
        self.figures: dict[Name, Figures] = {}

    def of(self, *name: str) -> Figures:
        """The figures of a name."""
        if name not in self.figures and len(self.figures) >= 2 * NAMES:
            for rare in sorted(self.figures, key=lambda one: self.figures[one].calls)[:NAMES]:
                del self.figures[rare]
        return self.figures.setdefault(name, Figures())

    def top(self, n: int) -> list[tuple[Name, Figures]]:
        """The names with the most calls."""
        return heapq.nsmallest(n, self.figures.items(), key=lambda one: (-one[1].calls, one[0]))


class Slot:
    """The calls of one interval of time."""

    def __init__(self) -> None:
        self.figures = Figures()
        self.denied: Counter[str] = Counter()  # by axis
        self.would_deny: Counter[str] = Counter()


@dataclass
class Use:
    """How a limit was used, as far as rows name it: a row names the limit that decided.

    Attributes:
        denied: The calls that it denied.
        would_deny: The calls that it would have denied, if it had not only observed.
        was_full: Whether the `exceeded` of a row has it: it had no room for a call.
        peak: The most calls, units or errors that one counter of the limit held at a call that was allowed, or the most calls
            in flight.
    """

    denied: int = 0
    would_deny: int = 0
    was_full: bool = False
    peak: int = 0


class BurstKind(NamedTuple):
    """What the denials of a burst have in common. A name is empty if it is unknown."""

    decision: str
    user: str
    agent: str
    server: str
    tool: str
    limit: Reported | None


class Burst(NamedTuple):
    """A burst.

    Attributes:
        calls: How many calls were denied, or would have been.
        first_us: The time of its first row.
        last_us: The time of its last row.
        kind: See `BurstKind`.
    """

    calls: int
    first_us: int
    last_us: int
    kind: BurstKind


class Bursts:
    """The bursts among rows, which come roughly in the order of time."""

    def __init__(self) -> None:
        self._open: dict[BurstKind, Burst] = {}  # the burst with the newest row is the last
        self._ended: list[Burst] = []

    def add(self, kind: BurstKind, time_us: int, calls: int) -> None:
        """Count the denials of a row."""
        burst = self._open.pop(kind, None)
        if burst and time_us - burst.last_us > GAP_US:
            self._end(burst)
            burst = None
        if len(self._open) >= _OPEN:
            for old in list(self._open)[: _OPEN // 2]:
                self._end(self._open.pop(old))
        burst = burst or Burst(0, time_us, time_us, kind)
        first, last = min(burst.first_us, time_us), max(burst.last_us, time_us)
        self._open[kind] = Burst(burst.calls + calls, first, last, kind)

    def _end(self, burst: Burst) -> None:
        if burst.calls >= LEAST_BURST:
            self._ended = _worst([*self._ended, burst])

    def worst(self) -> list[Burst]:
        """The bursts with the most calls, the worst first."""
        return _worst([*self._ended, *(burst for burst in self._open.values() if burst.calls >= LEAST_BURST)])


def _worst(bursts: Sequence[Burst]) -> list[Burst]:
    return sorted(bursts, key=lambda burst: (-burst.calls, burst.first_us))[:WORST]


class PeriodFindings:
    """The figures of a report.

    Args:
        since_us: The beginning of the period.
        until_us: Its end.
        begin_us: Where charts begin.
    """

    def __init__(self, since_us: int, until_us: int, begin_us: int) -> None:
        self.since_us = since_us
        self.until_us = until_us
        self.slot_us = slot_us(until_us - begin_us)
        self.first_us = begin_us // self.slot_us * self.slot_us
        self.slots = [Slot() for _ in range(-((self.first_us - until_us) // self.slot_us))]
        self.all = Figures()
        self.decisions: Counter[str] = Counter()
        self.users, self.agents, self.tools = Named(), Named(), Named()
        self.limits: dict[Reported, Use] = {}
        self.bursts = Bursts()

    def add(self, stored: StoredRow) -> None:
        """Count a row, which stands for at least one call."""
        row, outcome = stored.row, stored.outcome
        decision = row.decision
        weight = row.repeats or 1
        duration = None if stored.duration_us is None else rounded_us(stored.duration_us)
        self.decisions[decision] += weight
        slot = self.slots[min(len(self.slots) - 1, max(0, (row.time_us - self.first_us) // self.slot_us))]
        user, agent, server, tool = _names(row.context)
        counted = [self.all, slot.figures]
        counted += [self.users.of(user)] if user else []
        counted += [self.agents.of(agent)] if agent else []
        counted += [self.tools.of(server, tool)] if tool else []
        for figures in counted:
            figures.add(decision, weight, outcome, duration)
        limit = _limit(row.reported) if row.reported else None
        use = self._use(limit) if limit else None
        if decision in REFUSED or decision == "would_deny":
            counts = slot.denied if decision in REFUSED else slot.would_deny
            axis = axis_of(row.decision, row.reported, row.detail)
            counts[axis if axis in AXES else "none"] += weight
            if use and decision in REFUSED:
                use.denied += weight
            elif use:
                use.would_deny += weight
            for one in json.loads(row.detail or "{}").get("exceeded", ()):
                self._use(Reported.of(one)).was_full = True
            self.bursts.add(BurstKind(decision, user, agent, server, tool, limit), row.time_us, weight)
        elif use and row.counted and decision == "allowed":
            use.peak = max(use.peak, row.counted)

    def _use(self, limit: Reported) -> Use:
        """The use of a limit. The rules of edited policies are kept too, but at most `NAMES` limits."""
        return self.limits.setdefault(limit, Use()) if limit in self.limits or len(self.limits) < NAMES else Use()


@lru_cache(NAMES)
def _names(context: str) -> tuple[str, str, str, str]:
    """The user, the agent, the server and the tool of a row; empty if unknown."""
    named = members(context)
    user, agent, server, tool = (str(named.get(key, "")) for key in ("user", "agent", "server", "tool"))
    return user, agent, server, tool


@lru_cache(NAMES)
def _limit(text: str) -> Reported | None:
    """The limit of a row; None if the row sums up denials of several limits."""
    found = json.loads(text)
    return Reported.of(found) if "rule" in found else None


def slot_us(period_us: int) -> int:
    """The shortest of `SLOTS_US` with which a period has at most `MAX_SLOTS` slots; for very long periods, more weeks.

    >>> slot_us(7 * 86_400_000_000) // 3_600_000_000
    1
    """
    for slot in SLOTS_US:
        if period_us <= (MAX_SLOTS - 1) * slot:
            return slot
    week = SLOTS_US[-1]
    return week * -(-period_us // (week * (MAX_SLOTS - 1)))


def gather(pages: Iterable[Sequence[StoredRow]], since_us: int, until_us: int) -> PeriodFindings:
    """The figures of a period. Charts begin with its first call: a new log would otherwise show days before it existed.

    Args:
        pages: The rows of the period, some at a time. Rows that stand for no call are ignored.
        since_us: The beginning of the period.
        until_us: Its end, which is later.
    """
    of_calls = ([stored for stored in page if stored.row.decision != "policy"] for page in pages)
    first = next(filter(None, of_calls), [])
    begin_us = min((stored.row.time_us for stored in first), default=since_us)
    findings = PeriodFindings(since_us, until_us, min(max(since_us, begin_us), until_us - 1))
    for page in chain([first], of_calls):
        for stored in page:
            findings.add(stored)
    return findings
