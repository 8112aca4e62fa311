"""Counts the calls in the audit log by user, tool, hour …, with their decisions, errors and durations.

Memory grows with the number of different keys, and not with the number of rows.
"""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime
from itertools import accumulate

from mcpguard.light_typing import Final, NamedTuple
from mcpguard.session.audit import ERRORS, members
from mcpguard.session.verdict import REFUSED
from mcpguard.stores.api import Group, Tally
from mcpguard.stores.rows import unit_us

KEYS: Final = ("user", "agent", "tool", "server", "axis", "decision", "outcome", "hour")
"""What calls can be counted by."""


class Statistic(NamedTuple):
    """The calls with one key.

    Attributes:
        key: The user, the tool … For `hour` its start in UTC, RFC 3339. None for calls that have none.
        calls: How many. A row with `repeats` stands for that many.
        allowed: The calls that were forwarded, without those of `would_deny`.
        denied: The calls that were not forwarded.
        would_deny: The calls that were forwarded, but that a rule in observe mode would have denied.
        errors: The calls whose outcome is one of `ERRORS`.
        p50_ms: The median of the durations, in ms with an error of at most 0.5 %; None without durations.
        p95_ms: The 95th percentile.
        p99_ms: The 99th percentile.
    """

    key: str | None
    calls: int
    allowed: int
    denied: int
    would_deny: int
    errors: int
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None


class Figures:
    """Calls, counted by what became of them.

    Attributes:
        calls: All calls.
        denied: The calls that were not forwarded.
        would_deny: The calls that were forwarded only because a rule observes.
        outcomes: The calls by outcome.
    """

    def __init__(self) -> None:
        self.calls = self.denied = self.would_deny = 0
        self.outcomes: Counter[str] = Counter()
        self._durations: Counter[int] = Counter()

    def add(self, decision: str, calls: int, outcome: str | None, duration_us: int | None) -> None:
        """Count calls. The duration is rounded, so that there are few different ones."""
        self.calls += calls
        if decision in REFUSED:
            self.denied += calls
        elif decision == "would_deny":
            self.would_deny += calls
        if outcome is not None:
            self.outcomes[outcome] += calls
        if duration_us is not None:
            self._durations[duration_us] += calls

    @property
    def allowed(self) -> int:
        """The calls that were forwarded and would also have been with all rules enforced."""
        return self.calls - self.denied - self.would_deny

    @property
    def errors(self) -> int:
        """The calls with an outcome in `ERRORS`."""
        return sum(self.outcomes[word] for word in ERRORS)

    @property
    def error_share(self) -> float | None:
        """The share of errors among calls with an outcome; None without such calls."""
        ended = self.outcomes.total()
        return self.errors / ended if ended else None

    def percentiles_ms(self) -> list[float | None]:
        """The nearest-rank percentiles 50, 95 and 99 of the durations; None without durations."""
        if not self._durations:
            return [None] * 3
        durations_us, calls = zip(*sorted(self._durations.items()), strict=True)
        ranks = list(accumulate(calls))  # by duration, that of its last call
        return [durations_us[bisect_left(ranks, -(-ranks[-1] * share // 100))] / 1000 for share in (50, 95, 99)]


def statistics(tallies: Iterable[Tally], by: str) -> tuple[list[Statistic], Statistic]:
    """Count calls by one of `KEYS`.

    Returns:
        The calls by key, most calls first, but hours in their order; and all calls together.
    """
    sums: defaultdict[str | None, Figures] = defaultdict(Figures)
    total = Figures()
    for tally in tallies:
        for group, durations in tally.calls.items():
            if group.decision == "policy":
                continue
            for rounded_us, calls in durations.items():
                # The middle of what it may have been: at most 0.5 % off
                duration_us = None if rounded_us is None else rounded_us + unit_us(rounded_us) // 2
                for figures in (sums[_key(group, by)], total):
                    figures.add(group.decision, calls, group.outcome, duration_us)
    found = [_statistic(key, one) for key, one in sums.items()]
    found.sort(key=lambda one: (one.key or "") if by == "hour" else (-one.calls, one.key is None, one.key or ""))
    return found, _statistic("total", total)


def _statistic(key: str | None, one: Figures) -> Statistic:
    return Statistic(key, one.calls, one.allowed, one.denied, one.would_deny, one.errors, *one.percentiles_ms())


def _key(group: Group, by: str) -> str | None:
    if by == "hour":
        return datetime.fromtimestamp(group.hour * 3600, UTC).strftime("%Y-%m-%dT%H:00:00Z")
    value = getattr(group, by) if by in Group._fields else members(group.context).get(by)
    return None if value is None else str(value)
