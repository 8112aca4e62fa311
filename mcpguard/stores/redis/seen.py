"""Remembers the counters that a store has read or written last, for local counting."""

from collections.abc import Sequence
from typing import Any, Final

from mcpguard.core.limiter import State
from mcpguard.core.policy.plan import Counter
from mcpguard.stores.redis import states
from mcpguard.stores.redis.request import USUAL_REPLY, time_in

MOST: Final = 20_000
"""How many counters are remembered: as many as local counting keeps."""

LEFT: Final = MOST * 3 // 4
"""How many counters are left when there were more than `MOST`, so that cleaning up is rare."""

MOST_REPLIES: Final = 64
"""How many replies are kept as they are. Usually a later one replaces one with the same counters before it is read."""


_Value = tuple[int, bytes | None, bytes | None]
"""A counter's window, its value, and the head that replaces the one in the value, if any."""


class Seen:
    """The counters' values, the most recently used last.

    Beyond `MOST`, empty counters are forgotten first, then the least recently used.
    """

    def __init__(self) -> None:
        self._values: dict[int, _Value] = {}  # by counter id
        self._replies: dict[int, tuple[Sequence[Counter], Sequence[Any]]] = {}  # not in `_values` yet; by identity of the counters

    def note(self, counters: Sequence[Counter], reply: Sequence[Any]) -> None:
        """Note the current values of counters, except those of calls in flight.

        Args:
            counters: The counters.
            reply: The reply of `charge.lua`: the server's time; the value of each counter; of each the head that replaces the
                one in the value, if any.
        """
        self._replies.pop(id(counters), None)
        self._replies[id(counters)] = counters, reply
        if len(self._replies) > MOST_REPLIES:
            self._read()

    def _read(self) -> None:
        for counters, reply in self._replies.values():
            self._keep(counters, reply)
        self._replies.clear()

    def _keep(self, counters: Sequence[Counter], reply: Sequence[Any]) -> None:
        if type(reply) is bytes:
            reply = _values(reply, len(counters))
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
        self._read()
        for key in ids:
            self._values.pop(key, None)

    def logs(self) -> dict[int, State]:
        """The counters' logs, by id."""
        self._read()
        return {key: states.log(value, head) for key, (_, value, head) in self._values.items()}


def _values(reply: bytes, count: int) -> list[Any]:
    """The values of counters in the reply to a usual call, in the form of other replies."""
    at = USUAL_REPLY.size + count
    values, heads = [], []
    for size in reply[USUAL_REPLY.size : at]:
        heads.append(reply[at : at + 28])
        at += 28
        values.append(reply[at : at + 28 + 12 * size])
        at += 28 + 12 * size
    return [time_in(reply), *values, *heads]
