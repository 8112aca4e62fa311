"""Describes counters, from their labels in the store."""

from typing import Final, NamedTuple, Self

from mcpguard.cli._filters import selects
from mcpguard.core.limiter import Counts
from mcpguard.core.policy.explain import window
from mcpguard.core.policy.model import SELECTORS
from mcpguard.core.policy.plan import ARGUMENTS, label_parts
from mcpguard.core.text import amount, quoted

_SHOWN: Final = 8
"""How many digits of an arguments' hash people see."""


class Counted(NamedTuple):
    """What a counter counts.

    Attributes:
        namespace: The counter's namespace.
        values: The values that it counts, such as one user, by axis; of `arguments` their hash.
        others: The patterns of its rule's other selectors. The counter counts all matching calls together.
        counts: What it counts of the calls.
        window_us: The window of its limit; 0 for calls in flight.
    """

    namespace: str
    values: dict[str, str]
    others: dict[str, list[str]]
    counts: Counts
    window_us: int

    @classmethod
    def of(cls, label: str) -> Self:
        """Parse a label."""
        return cls(*label_parts(label))

    def is_selected(self, patterns: dict[str, str]) -> bool:
        """Whether every pattern matches a value of the counter, or the text of another selector of its rule."""
        return all(
            any(
                selects(key, pattern, text)
                for text in [*([self.values[key]] if key in self.values else []), *self.others.get(key, [])]
            )
            for key, pattern in patterns.items()
        )

    @property
    def text(self) -> str:
        """What the counter counts, on one line without the window."""
        parts = []
        for key in SELECTORS:
            if key in self.values:
                parts.append(f"{key}={quoted(self.values[key])}")
            elif key in self.others:
                parts.append(f"{key}={quoted(','.join(self.others[key]))} (counted together)")
        if ARGUMENTS in self.values:
            parts.append(f"{ARGUMENTS}={arguments_text(self.values[ARGUMENTS])}")
        return " ".join(parts) or "every call"

    def used_text(self, used: int) -> str:
        """What the counter holds: `5 calls in the last hour`, `2 calls in flight`."""
        noun = {"cost": "unit", "errors": "error"}.get(self.counts, "call")
        where = "in flight" if self.counts == "concurrent" else f"in the last {window(self.window_us)}"
        return f"{amount(used, noun)} {where}"


def arguments_text(digest: str) -> str:
    """The arguments that a counter counts, for people: the beginning of their hash, or a mark if they are not known."""
    return digest[:_SHOWN] or "?"
