"""Remembers the counters that a store has read or written last, for local counting."""

from collections.abc import Sequence
from typing import Final

from mcpguard.limiter.plan import Counter
from mcpguard.limiter.sliding import State
from mcpguard.stores.redis import layout

MOST: Final = 20_000
"""How many counters are remembered: as many as local counting keeps."""


class Seen:
    """The counters' values, the most recently used last.

    Beyond `most`, empty counters are forgotten first, then the least recently used.

    Args:
        most: The bound.

    Attributes:
        forgotten_until_us: Until when one that was forgotten may hold something; 0 if there is none.
    """

    def __init__(self, most: int = MOST) -> None:
        self.forgotten_until_us = 0
        self._most = most
        self._values: dict[int, tuple[int, bytes | None]] = {}  # windows and values by counter id

    def note(self, counters: Sequence[Counter], values: Sequence[bytes | None], now_us: int) -> None:
        """Note the current values of counters, except those of calls in flight."""
        for counter, value in zip(counters, values, strict=True):
            if counter.window_us:
                self._values.pop(counter.id, None)
                self._values[counter.id] = counter.window_us, value
        if len(self._values) > self._most:  # takes a few milliseconds, once for thousands of new counters
            alive = {key: one for key, one in self._values.items() if _until_us(*one) > now_us}
            gone = list(alive)[: -self._most * 3 // 4]
            self.forgotten_until_us = max([self.forgotten_until_us, *[_until_us(*alive.pop(key)) for key in gone]])
            self._values = alive

    def forget(self, ids: Sequence[int]) -> None:
        """Forget these counters, because they were emptied."""
        for key in ids:
            self._values.pop(key, None)

    def logs(self) -> dict[int, State]:
        """The counters' logs, by id."""
        return {key: layout.log(value) for key, (_, value) in self._values.items()}


def _until_us(window_us: int, value: bytes | None) -> int:
    """Until when a counter with this value holds something."""
    return layout.newest_us(value) + window_us if value else 0
