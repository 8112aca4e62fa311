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
    """Counters' values, the most recently used last. Beyond `MOST` those go that hold nothing, then the least recently used."""

    def __init__(self) -> None:
        self._values: dict[int, tuple[int, bytes | None]] = {}  # with the counter's window

    def note(self, counters: Sequence[Counter], values: Sequence[bytes | None], now_us: int) -> None:
        """Take these values for the counters' own."""
        for counter, value in zip(counters, values, strict=True):
            self._values.pop(counter.id, None)
            self._values[counter.id] = (counter.window_us, value)
        if len(self._values) > MOST:  # to look at all of them takes some milliseconds, once for thousands that are new
            alive = [
                (key, (window_us, value))
                for key, (window_us, value) in self._values.items()
                if value and states.newest_us(value) + window_us > now_us
            ]
            self._values = dict(alive[-LEFT:])

    def forget(self, ids: Sequence[int]) -> None:
        """Forget counters that were emptied."""
        for key in ids:
            self._values.pop(key, None)

    def logs(self) -> dict[int, State]:
        """The counters' logs, by id."""
        return {key: states.log(value) for key, (_, value) in self._values.items()}
