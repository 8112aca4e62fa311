"""Describes counters, from their labels in the store."""

from collections.abc import Mapping
from typing import Final

from mcpguard.cli._filters import selects
from mcpguard.limiter.plan import ARGUMENTS, Label, label_parts
from mcpguard.policy.model import SELECTORS
from mcpguard.stores.api import Held
from mcpguard.text.printing import amount, quoted
from mcpguard.text.times import window

_SHOWN: Final = 8
"""How many digits of an arguments' hash people see."""


def is_selected(counter: Label, patterns: Mapping[str, str]) -> bool:
    """Whether every pattern matches a value of the counter, or the text of another selector of its rule."""
    return all(
        any(
            selects(key, pattern, text)
            for text in [*([counter.values[key]] if key in counter.values else []), *counter.shared.get(key, [])]
        )
        for key, pattern in patterns.items()
    )


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


def used_text(held: Held) -> str:
    """What a counter holds: `5 calls in the last hour`, `2 calls in flight`."""
    counter = label_parts(held.label)
    noun = {"cost": "unit", "errors": "error"}.get(counter.counts, "call")
    where = "in flight" if counter.counts == "concurrent" else f"in the last {window(counter.window_us)}"
    return f"{amount(held.used, noun)} {where}"


def arguments_text(digest: str) -> str:
    """The arguments that a counter counts, for people: the beginning of their hash, or a mark if they are not known."""
    return digest[:_SHOWN] or "?"
