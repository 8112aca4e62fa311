"""Counts audit rows by what statistics need, so that nothing has to be made of each row."""

from collections import Counter, defaultdict
from collections.abc import Iterable

from mcpguard.light_typing import Final
from mcpguard.session.audit import axis_of
from mcpguard.stores.api import Group, StoredRow, Tally

HOUR_US: Final = 3600 * 1_000_000

DIGITS: Final = 3
"""How many digits of a duration are kept. The rest becomes zero, so half a unit of the last digit is at most 0.5 %."""


def rounded_us(duration_us: int) -> int:
    """A duration in µs, rounded down to `DIGITS` digits.

    >>> rounded_us(999), rounded_us(1239), rounded_us(123_999)
    (999, 1230, 123000)
    """
    unit = unit_us(duration_us)
    return duration_us // unit * unit


def unit_us(duration_us: int) -> int:
    """The unit of the last digit that `rounded_us` keeps of a duration."""
    return int(10 ** max(0, len(str(duration_us)) - DIGITS))


def tally(rows: Iterable[StoredRow], last_id: int) -> Tally:
    """Count rows.

    Args:
        rows: The rows.
        last_id: The id of the last row that was looked at.
    """
    calls: defaultdict[Group, Counter[int | None]] = defaultdict(Counter)
    for _, row, outcome, duration_us in rows:
        group = Group(
            row.context, axis_of(row.decision, row.reported, row.detail), row.decision, outcome, row.time_us // HOUR_US
        )
        calls[group][None if duration_us is None else rounded_us(duration_us)] += row.repeats or 1
    return Tally(last_id, calls)
