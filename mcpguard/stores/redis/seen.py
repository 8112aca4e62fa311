"""Remembers the counters that a store has read or written last, for local counting."""

from collections.abc import Sequence
from typing import Any, Final

from mcpguard.core.limiter import State
from mcpguard.core.policy.plan import Counter
from mcpguard.stores.redis import states

MOST: Final = 20_000
"""How many counters are remembered: as many as local counting keeps."""

LEFT: Final = MOST * 3 // 4
"""How many counters are left when there were more than `MOST`, so that cleaning up is rare."""


_Value = tuple[int, bytes | None, bytes | None]
"""A counter's window, its value, and the head that replaces the one in the value, if any."""


class Seen:
    """The counters' values, the most recently used last.

    Beyond `MOST`, empty counters are forgotten first, then the least recently used.
    """

    def __init__(self) -> None:
        self._values: dict[int, _Value] = {}  # by counter id

    def note(self, counters: Sequence[Counter], reply: Sequence[Any]) -> None:
        """Note the current values of counters, except those of calls in flight.

        Args:
            counters: The counters.
            reply: The reply of `charge.lua`: the server's time; the value of each counter; of each the head that replaces the
                one in the value, if any.
        """
        count = len(counters)
        for at, counter in enumerate(counters, 1):
            if counter.window_us:
                self._values.pop(counter.id, None)
                self._values[counter.id] = (counter.window_us, reply[at], reply[at + count])
        if len(self._values) > MOST:  # takes some milliseconds, once for thousands of new counters
            alive = [
                (key, (window_us, value, head))
                for key, (window_us, value, head) in self._values.items()
                if value and states.newest_us(head or value) + window_us > reply[0]
            ]
            self._values = dict(alive[-LEFT:])

    def forget(self, ids: Sequence[int]) -> None:
        """Forget these counters, because they were emptied."""
        for key in ids:
            self._values.pop(key, None)

    def logs(self) -> dict[int, State]:
        """The counters' logs, by id."""
        return {key: states.log(value, head) for key, (_, value, head) in self._values.items()}
