"""Remembers the counters that a store has read or written last, for local counting."""

from collections.abc import Sequence

from mcpguard.light_typing import Any, Final
from mcpguard.limiter.plan import Counter
from mcpguard.limiter.sliding import State
from mcpguard.stores.redis import states
from mcpguard.stores.redis.request import USUAL_REPLY, time_in

MOST: Final = 20_000
"""How many counters are remembered: as many as local counting keeps."""

LEFT: Final = MOST * 3 // 4
"""How many counters are left when there were more than `MOST`, so that cleaning up is rare."""

_Value = tuple[int, bytes | None]
"""A counter's window and value."""


class Seen:
    """The counters' values, the most recently used last.

    Beyond `MOST`, empty counters are forgotten first, then the least recently used.

    Attributes:
        forgotten_until_us: Until when one that was forgotten may hold something; 0 if there is none.
    """

    def __init__(self) -> None:
        self.forgotten_until_us = 0
        self._values: dict[int, _Value] = {}  # by counter id

    def note(self, counters: Sequence[Counter], reply: Sequence[Any]) -> None:
        """Note the current values of counters, except those of calls in flight.

        Args:
            counters: The counters.
            reply: The reply of `charge.lua`; or the time and the counters' values.
        """
        if type(reply) is bytes:
            self._keep(counters, states.values(reply[USUAL_REPLY.size :], len(counters)), time_in(reply))
        else:
            self._keep(counters, reply[1:], reply[0])

    def _keep(self, counters: Sequence[Counter], values: Sequence[Any], now_us: int) -> None:
        for counter, value in zip(counters, values, strict=False):
            if counter.window_us:
                self._values.pop(counter.id, None)
                self._values[counter.id] = counter.window_us, value
        if len(self._values) > MOST:  # takes a few milliseconds, once for thousands of new counters
            alive = [
                (key, (window_us, value))
                for key, (window_us, value) in self._values.items()
                if value and states.newest_us(value) + window_us > now_us
            ]
            self._values = dict(alive[-LEFT:])
            gone = [states.newest_us(value) + window_us for _, (window_us, value) in alive[:-LEFT] if value]
            self.forgotten_until_us = max([self.forgotten_until_us, *gone])

    def forget(self, ids: Sequence[int]) -> None:
        """Forget these counters, because they were emptied."""
        for key in ids:
            self._values.pop(key, None)

    def logs(self) -> dict[int, State]:
        """The counters' logs, by id."""
        return {key: states.log(value) for key, (_, value) in self._values.items()}
