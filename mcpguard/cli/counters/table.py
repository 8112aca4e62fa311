"""Counters as text: what they count; and their usage, as a table for a terminal and as lines of key=value for a pipe."""

import sys
from collections.abc import Mapping, Sequence
from typing import Final

import click

from mcpguard.cli.present import Columns, fit, fit_all, room_beside
from mcpguard.limiter.plan import ARGUMENTS, Reported, label_parts
from mcpguard.policy.model import SELECTORS
from mcpguard.reading.usage import Usage
from mcpguard.text.printing import quoted
from mcpguard.text.times import span, span_up

NARROW: Final = 64
"""The width below which a counter has a line of its own."""

_BAR: Final = 8
_COLUMNS: Final = (("USAGE", _BAR), ("USED", -6), ("LIMIT", 9), ("LEFT", -6), ("FREE", 5))
_LONGEST: Final = 15
"""The most columns that a limit takes. In a narrow table it takes more than usual only if it does not count calls."""

_PRESSED: Final = 0.8
_SHOWN: Final = 8
"""How many digits of an arguments' hash people see."""


def counter_text(label: str) -> str:
    """What the counter with this label counts, on one line without the window."""
    counter = label_parts(label)
    parts = []
    for key in SELECTORS:
        if key in counter.values:
            parts.append(f"{key}={quoted(counter.values[key])}")
        elif key in counter.shared:
            parts.append(f"{key}={quoted(','.join(counter.shared[key]))} (counted together)")
    if ARGUMENTS in counter.values:
        parts.append(f"{ARGUMENTS}={arguments_text(counter.values[ARGUMENTS])}")
    return " ".join(parts) or "every call"


def arguments_text(digest: str) -> str:
    """The arguments that a counter counts, for people: the beginning of their hash, or a mark if they are not known."""
    return digest[:_SHOWN] or "?"


class Table:
    """Formats usages as lines of a table.

    Args:
        width: The width of the terminal in columns.
        coloured: Whether the bars are coloured.
    """

    def __init__(self, width: int, *, coloured: bool) -> None:
        self._width = width
        self._coloured = coloured
        encoding = (sys.stdout.encoding or "").lower().replace("-", "")
        self._blocks = " ▏▎▍▌▋▊▉█" if encoding.startswith("utf") else " #"

    def lines(self, usages: Sequence[Usage]) -> list[str]:
        """The heading, and the lines of each usage."""
        columns = self._columns(usages)
        spare = room_beside(columns, self._width)
        found = [self._heading(columns)]
        for one in usages:
            counter = _counter_text(one)
            if self._width < NARROW:
                found.append(fit(counter, self._width - 1).rstrip())
                found.append(f"  {self._cells(one, columns)}".rstrip())
            else:
                found.append(f"{self._cells(one, columns)} {fit(counter, spare)}".rstrip())
        return found

    def _columns(self, usages: Sequence[Usage]) -> Columns:
        """The columns. Where there is room, a large number is not cut."""
        is_wide = self._width >= NARROW
        limit = max((len(self._limit(one)) for one in usages if is_wide or one.counts != "calls"), default=0)
        number = max((len(str(n)) for one in usages if is_wide for n in (one.used, one.left)), default=0)
        wider = {"LIMIT": min(_LONGEST, limit), "USED": -number, "LEFT": -number}
        return [(name, max(size, wider.get(name, 0), key=abs)) for name, size in _COLUMNS]

    def _heading(self, columns: Columns) -> str:
        names = " ".join(fit(name, size) for name, size in columns)
        return f"COUNTER\n  {names.rstrip()}" if self._width < NARROW else f"{names} COUNTER"

    def _cells(self, one: Usage, columns: Columns) -> str:
        left = "" if one.left is None else f"{one.left}"
        cells = [self._bar(one), str(one.used), self._limit(one), left, _free_text(one)]
        padded = fit_all(cells, columns)
        if self._coloured and one.rate:
            padded[0] = click.style(padded[0], fg="red" if not one.left else "yellow" if one.share >= _PRESSED else "green")
        return " ".join(padded)

    def _limit(self, one: Usage) -> str:
        """The limit: as in a policy where there is room, else shorter."""
        if self._width >= NARROW:
            return limit_text(one)
        return short_limit({"limit": one.rate.n if one.rate else "-", "window": _window(one), "counts": one.counts})

    def _bar(self, one: Usage) -> str:
        steps = len(self._blocks) - 1
        filled = round(one.share * _BAR * steps)
        if one.rate and one.used:
            filled = max(1, filled if not one.left else min(filled, _BAR * steps - 1))  # only a full counter has a full bar
        return (self._blocks[-1] * (filled // steps) + self._blocks[filled % steps]).strip()


def _counter_text(one: Usage) -> str:
    """What a counter counts, on one line."""
    words = [f"{key}={quoted(one.counter[key])}" for key in SELECTORS if key in one.counter]
    if ARGUMENTS in one.counter:
        words.append(f"{ARGUMENTS}={arguments_text(one.counter[ARGUMENTS])}")
    return " ".join(words) or "every call"


def limit_text(one: Usage) -> str:
    """A counter's limit; for a counter without a rule its window."""
    text = Reported("", "", one.rate.n if one.rate else 0, _window(one), one.counts).limit_text
    return text if one.rate else "-" + text.removeprefix("0").removeprefix("-")


def _window(one: Usage) -> str:
    """The window as a policy writes it; empty for calls in flight."""
    return one.rate.text if one.rate else span(one.window_us) if one.window_us else ""


def _free_text(one: Usage) -> str:
    """When the limit allows the next call."""
    if one.next_free_ms is None:
        return "-"
    return span_up(one.next_free_ms, 1000) if one.next_free_ms else "now"


def plain(one: Usage) -> str:
    """A usage as one line of key=value."""
    words = [f"left={'-' if one.left is None else one.left}", f"used={one.used}", f"limit={limit_text(one)}"]
    words.append("next_free_ms=" + ("-" if one.next_free_ms is None else str(one.next_free_ms)))
    return " ".join([*words, _counter_text(one), "rule=" + (quoted(one.rule.text) if one.rule else "-")])


def usage_as_json(one: Usage) -> dict[str, object]:
    """A usage as JSON. Without a rule, what depends on a rule is null."""
    return {
        "rule": one.rule.text if one.rule else None,
        "counter": dict(one.counter),
        "limit": one.rate.n if one.rate else None,
        "window": _window(one) or None,
        **({} if one.counts == "calls" else {"counts": one.counts}),
        "used": one.used,
        "left": one.left,
        "next_free_ms": one.next_free_ms,
    }


def short_limit(record: Mapping[str, object]) -> str:
    """The limit of a record that has one, short enough for a column.

    >>> short_limit({"limit": 2, "counts": "concurrent"}), short_limit({"limit": 3, "window": "1m", "counts": "errors"})
    ('2 at once', '3 err/1m')
    >>> short_limit({"limit": 100, "window": "1h", "counts": "cost"}), short_limit({"limit": 5, "window": "1m"})
    ('100 u/1h', '5/1m')
    """
    if record.get("counts") == "concurrent":
        return f"{record['limit']} at once"
    unit = {"cost": " u", "errors": " err"}.get(str(record.get("counts")), "")
    return f"{record['limit']}{unit}/{record['window']}"
