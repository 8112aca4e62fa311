"""Describes counters, from their labels in the store."""

import json
from typing import NamedTuple, Self

from mcpguard.cli._filters import selects
from mcpguard.core.policy.model import SELECTORS
from mcpguard.core.text import quoted


class Counted(NamedTuple):
    """What a counter counts.

    Attributes:
        namespace: The counter's namespace.
        values: The values that it counts, such as one user, by axis.
        others: The patterns of its rule's other selectors. The counter counts all matching calls together.
        window_us: The window of its limit.
    """

    namespace: str
    values: dict[str, str]
    others: dict[str, list[str]]
    window_us: int

    @classmethod
    def of(cls, label: str) -> Self:
        """Parse a label."""
        return cls(*json.loads(label))

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
        return " ".join(parts) or "every call"
