"""Remembers the counters that a store has read or written last, for local counting."""

from collections.abc import Sequence
from typing import Final

from mcpguard.core.limiter import State
from mcpguard.core.policy.plan import Counter
from mcpguard.stores.redis import states

MOST: Final = 20_000
"""How many counters are remembered: as many as local counting keeps."""

LEFT: Final = MOST * 3 // 4
"""How many counters are left when there were more than `MOST`, so that cleaning up is rare."""


class Seen:
    """The counters' values, the most recently used last.

    Beyond `MOST`, empty counters are forgotten first, then the least recently used.
    """

    def __init__(self) -> None:
        self._values: dict[int, tuple[int, bytes | None]] = {}  # window and value by counter id

    def note(self, counters: Sequence[Counter], values: Sequence[bytes | None], now_us: int) -> None:
        """Note the current values of counters, except those of calls in flight."""
        for counter, value in zip(counters, values, strict=True):
            if counter.window_us:
                self._values.pop(counter.id, None)
                self._values[counter.id] = (counter.window_us, value)
        if len(self._values) > MOST:  # takes some milliseconds, once for thousands of new counters
            alive = [
                (key, (window_us, value))
                for key, (window_us, value) in self._values.items()
                if value and states.newest_us(value) + window_us > now_us
            ]
            self._values = dict(alive[-LEFT:])

    def forget(self, ids: Sequence[int]) -> None:
        """Forget these counters, because they were emptied."""
        for key in ids:
            self._values.pop(key, None)

    def logs(self) -> dict[int, State]:
        """The counters' logs, by id."""
        return {key: states.log(value) for key, (_, value) in self._values.items()}
