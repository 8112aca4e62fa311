"""`mcpguard usage` and `reset`: counters as text, and usages as a table for a terminal and as lines of key=value for a pipe."""

import sys
from collections.abc import Mapping, Sequence
from typing import Final

import click

from mcpguard.cli.present import fit, fit_all, room_beside
from mcpguard.limiter.plan import ARGUMENTS, SESSION, Reported, label_parts
from mcpguard.policy.model import SELECTORS
from mcpguard.reading.usage import Usage
from mcpguard.text.printing import quoted
from mcpguard.text.times import span, span_up

_BAR: Final = 8
_COLUMNS: Final = (("USAGE", _BAR), ("USED", -6), ("LIMIT", 9), ("LEFT", -6), ("FREE", 5))
_LONGEST: Final = 15
"""The most columns that a number or a limit takes."""

_PRESSED: Final = 0.8
_SHOWN: Final = 8
"""How many digits of an arguments' hash people see."""


def counter_text(label: str) -> str:
    """What the counter with this label counts, on one line without the window."""
    counter = label_parts(label)
    return _text(counter.values, counter.shared)


def _text(values: Mapping[str, str], shared: Mapping[str, Sequence[str]]) -> str:
    parts = []
    for key in SELECTORS:
        if key in values:
            parts.append(f"{key}={quoted(values[key])}")
        elif key in shared:
            parts.append(f"{key}={quoted(','.join(shared[key]))} (counted together)")
    if SESSION in values:
        parts.append(f"{SESSION}={quoted(values[SESSION]) if values[SESSION] else '?'}")  # that of no call yet
    if ARGUMENTS in values:
        parts.append(f"{ARGUMENTS}={values[ARGUMENTS][:_SHOWN] or '?'}")  # unknown before a call
    return " ".join(parts) or "every call"


def table(usages: Sequence[Usage], width: int) -> list[str]:
    """The lines of a table: the heading, and a line for each usage.

    Args:
        usages: The usages.
        width: The width of the terminal in columns.
    """
    cells = [
        [_bar(one), str(one.used), limit_text(one), "" if one.left is None else str(one.left), _free_text(one)]
        for one in usages
    ]
    longest = [max(map(len, column)) for column in zip(*cells, strict=True)] or [0] * len(_COLUMNS)
    columns = [
        (name, max(size, (min(_LONGEST, most) if size > 0 else -min(_LONGEST, most)), key=abs))
        for (name, size), most in zip(_COLUMNS, longest, strict=True)
    ]
    found = [" ".join(fit_all([name for name, _ in columns], columns)) + " COUNTER"]
    for one, texts in zip(usages, cells, strict=True):
        padded = fit_all(texts, columns)
        if one.rate:
            padded[0] = click.style(padded[0], fg="red" if not one.left else "yellow" if one.share >= _PRESSED else "green")
        found.append(" ".join([*padded, fit(_text(one.counter, {}), room_beside(columns, width))]).rstrip())
    return found


def _bar(one: Usage) -> str:
    blocks = " ▏▎▍▌▋▊▉█" if (sys.stdout.encoding or "").lower().startswith("utf") else " #"
    steps = len(blocks) - 1
    filled = round(one.share * _BAR * steps)
    if one.rate and one.used:
        filled = max(1, filled if not one.left else min(filled, _BAR * steps - 1))  # only a full counter has a full bar
    return (blocks[-1] * (filled // steps) + blocks[filled % steps]).strip()


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
    return " ".join([*words, _text(one.counter, {}), "rule=" + (quoted(one.rule.text) if one.rule else "-")])


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
