"""Reads the counters of a namespace."""

from collections.abc import Callable, Sequence
from typing import Any, Final

from mcpguard.limiter import sliding
from mcpguard.limiter.plan import Counter, window_of
from mcpguard.limiter.sliding import EMPTY, State
from mcpguard.stores.api import Clock, Held
from mcpguard.stores.redis.link import Command, scan
from mcpguard.stores.redis.states import counter_key, state

_BATCH: Final = 500


class Counters:
    """Reads a namespace's counters.

    Args:
        ask: Sends commands, and returns their replies.
        prefix: The beginning of the namespace's keys.
        clock: The store's time instead of the server's.
    """

    def __init__(self, ask: Callable[..., list[Any]], prefix: str, clock: Clock | None) -> None:
        self._ask = ask
        self._prefix = prefix
        self._clock = clock

    def held(self) -> list[Held]:
        """See `Store`."""
        index: dict[bytes, bytes] = {}
        for piece in scan(lambda command: self._ask(command)[0], self._prefix + "counters"):
            index |= piece
        held: list[Held] = []
        counters = [Counter(int(key), label.decode(), window_of(label.decode())) for key, label in index.items()]
        for at in range(0, len(counters), _BATCH):
            some = counters[at : at + _BATCH]
            found, now_us = self.peek(some)
            for (_, label, window_us), found_state in zip(some, found, strict=True):
                live = sliding.live(found_state, window_us, now_us) if window_us else EMPTY
                used = sliding.used(live) if window_us else len(found_state)
                held += [Held(label, used, live)] if used else []
        return held

    def peek(self, counters: Sequence[Counter]) -> tuple[list[State], int]:
        """See `Store`."""
        logs = [counter_key(self._prefix, counter.id) for counter in counters if counter.window_us]
        caps = [counter_key(self._prefix, counter.id, window_us=0) for counter in counters if not counter.window_us]
        read: list[Command] = [("MGET", *logs)] if logs else []
        read += [("ZRANGE", key, 0, -1, "WITHSCORES") for key in caps]
        server_time, *replies = self._ask(("TIME",), *read)
        now_us = self._clock() if self._clock else parse_time_us(server_time)
        values = iter(replies.pop(0) if logs else ())
        in_flight = iter([_with_lease(reply, now_us) for reply in replies])
        found = [state(next(values if one.window_us else in_flight), one.window_us) for one in counters]
        return found, now_us


def parse_time_us(reply: Sequence[bytes]) -> int:
    """The reply to `TIME` in microseconds."""
    seconds, us = reply
    return int(seconds) * 1_000_000 + int(us)


def _with_lease(reply: Sequence[bytes], now_us: int) -> list[bytes]:
    """The ids in the reply to `ZRANGE … WITHSCORES` whose leases have not ended."""
    return [member for member, until in zip(reply[::2], reply[1::2], strict=True) if float(until) > now_us]
