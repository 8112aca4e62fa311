"""Counts the calls in the audit log by user, tool, hour …, with their decisions, errors and durations.

Memory grows with the number of different keys, and not with the number of rows.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Final, NamedTuple

from mcpguard.session.audit import ERRORS, members
from mcpguard.session.verdict import REFUSED
from mcpguard.stores.api import Group, Tally
from mcpguard.stores.groups import unit_us

KEYS: Final = ("user", "agent", "tool", "server", "axis", "decision", "outcome", "hour")
"""What calls can be counted by."""

_NOT_CALLS: Final = "policy"


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


class _Sum:
    """The counts of one key, with a histogram of the durations."""

    def __init__(self) -> None:
        self.allowed = self.denied = self.would_deny = self.errors = 0
        self.durations: Counter[int | None] = Counter()

    def add(self, group: Group, durations: Mapping[int | None, int]) -> None:
        calls = sum(durations.values())
        if group.decision in REFUSED:
            self.denied += calls
        elif group.decision == "would_deny":
            self.would_deny += calls
        else:
            self.allowed += calls
        if group.outcome in ERRORS:
            self.errors += calls
        self.durations.update(durations)

    def merge(self, other: "_Sum") -> None:
        self.allowed += other.allowed
        self.denied += other.denied
        self.would_deny += other.would_deny
        self.errors += other.errors
        self.durations.update(other.durations)

    def statistic(self, key: str | None) -> Statistic:
        calls = self.allowed + self.denied + self.would_deny
        ended = {duration_us: number for duration_us, number in self.durations.items() if duration_us is not None}
        parts = [_percentile_ms(ended, share) for share in (50, 95, 99)]
        return Statistic(key, calls, self.allowed, self.denied, self.would_deny, self.errors, *parts)


def statistics(tallies: Iterable[Tally], by: str) -> tuple[list[Statistic], Statistic]:
    """Count calls by one of `KEYS`.

    Returns:
        The calls by key, most calls first, but hours in their order; and all calls together.
    """
    sums: defaultdict[str | None, _Sum] = defaultdict(_Sum)
    for tally in tallies:
        for group, durations in tally.calls.items():
            if group.decision != _NOT_CALLS:
                sums[_key(group, by)].add(group, durations)
    total = _Sum()
    for one in sums.values():
        total.merge(one)
    found = [one.statistic(key) for key, one in sums.items()]
    found.sort(key=lambda one: (one.key or "") if by == "hour" else (-one.calls, one.key is None, one.key or ""))
    return found, total.statistic("total")


def _key(group: Group, by: str) -> str | None:
    if by == "hour":
        return datetime.fromtimestamp(group.hour * 3600, UTC).strftime("%Y-%m-%dT%H:00:00Z")
    value = getattr(group, by) if by in Group._fields else members(group.context).get(by)
    return None if value is None else str(value)


def _percentile_ms(durations: Mapping[int, int], share: int) -> float | None:
    """The nearest-rank percentile. Durations were rounded down; the middle of what they may have been is at most 0.5 % off."""
    rank = -(-sum(durations.values()) * share // 100)
    for duration_us in sorted(durations):
        rank -= durations[duration_us]
        if rank <= 0:
            return (duration_us + unit_us(duration_us) // 2) / 1000
    return None
