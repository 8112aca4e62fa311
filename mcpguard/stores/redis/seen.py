"""What a store has last seen of its counters: what a wrapper counts on from when the server does not answer."""

from collections.abc import Sequence
from typing import Final

from mcpguard.core.limiter import State
from mcpguard.core.policy import Counter
from mcpguard.stores.redis import states

MOST: Final = 20_000
"""Counters that are remembered: as many as a wrapper counts by itself."""

LEFT: Final = MOST * 3 // 4
"""Counters that are left when there were too many, so that there are not too many soon again."""


class Seen:
    """Counters' values, the most recently used last. Beyond `MOST` those go that hold nothing, then the least recently used.

    Attributes:
        forgotten_until_us: Until when, in the store's time, one that was dropped may hold something; 0 if none was.
    """

    def __init__(self) -> None:
        self._values: dict[int, tuple[int, bytes | None]] = {}
        self.forgotten_until_us = 0

    def note(self, counters: Sequence[Counter], values: Sequence[bytes | None], now_us: int) -> None:
        """Take these values for the counters' own."""
        for counter, value in zip(counters, values, strict=True):
            self._values.pop(counter.id, None)
            self._values[counter.id] = (counter.window_us, value)
        if len(self._values) > MOST:
            self._drop(now_us)

    def _drop(self, now_us: int) -> None:
        """Drop some: all of this takes a few milliseconds, once for thousands of counters that are new."""
        until_us = {key: states.newest_us(value) + window_us for key, (window_us, value) in self._values.items() if value}
        alive = [key for key in self._values if until_us.get(key, now_us) > now_us]
        forgotten = alive[: max(0, len(alive) - LEFT)]
        self.forgotten_until_us = max([self.forgotten_until_us, *[until_us[key] for key in forgotten]])
        self._values = {key: self._values[key] for key in alive[len(forgotten) :]}

    def forget(self, ids: Sequence[int]) -> None:
        """Forget counters that were emptied."""
        for key in ids:
            self._values.pop(key, None)

    def logs(self) -> dict[int, State]:
        """The counters' logs, by id."""
        return {key: states.log(value) for key, (_, value) in self._values.items()}
