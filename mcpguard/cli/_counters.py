"""Counters in words, from their labels."""

import json
from typing import NamedTuple, Self

from mcpguard.cli._store import selects
from mcpguard.core.policy import SELECTORS
from mcpguard.core.text import quoted


class Counted(NamedTuple):
    """A counter as its label has it.

    Attributes:
        namespace: Whose it is.
        values: What it counts for, by axis.
        others: The texts of its rule's other selectors, whose calls it counts together.
        window_us: Its window.
    """

    namespace: str
    values: dict[str, str]
    others: dict[str, list[str]]
    window_us: int

    @classmethod
    def of(cls, label: str) -> Self:
        """What a label says."""
        return cls(*json.loads(label))

    def is_selected(self, patterns: dict[str, str]) -> bool:
        """Whether every pattern matches what it counts for, or the text of the selector that it counts together."""
        return all(
            any(
                selects(key, pattern, text)
                for text in [*([self.values[key]] if key in self.values else []), *self.others.get(key, [])]
            )
            for key, pattern in patterns.items()
        )

    @property
    def text(self) -> str:
        """What it counts, on one line, but for its window."""
        parts = []
        for key in SELECTORS:
            if key in self.values:
                parts.append(f"{key}={quoted(self.values[key])}")
            elif key in self.others:
                parts.append(f"{key}={quoted(','.join(self.others[key]))} together")
        return " ".join(parts) or "every call"
