"""The leases of the calls in flight that this process has admitted.

A place of a call in flight has a lease, so that it becomes free if its wrapper dies or loses the server. A wrapper that was
stopped for longer than a lease may find that another call has got the place.
"""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from mcpguard.stores.api import Clock
from mcpguard.stores.redis import layout

LOST: Final = (
    "this process was stopped, or cut off from the store, for {:g} s or more, and places of its calls in flight were given "
    "to other calls: until its own calls end, more calls than `concurrent` allows may be in flight"
)

_BATCH: Final = 500

Run = Callable[[Sequence[str], Sequence[str]], Sequence[int]]
"""Runs `renew.lua` with these keys and arguments, and returns its reply."""


class Places(NamedTuple):
    """The places of one call.

    Attributes:
        keys: The keys of their counters.
        sent_us: When the command was sent that gave them, or renewed their leases.
    """

    keys: Sequence[str]
    sent_us: int


class Leases:
    """The leases of a store object. One thread may add and end places while another renews them.

    Args:
        lease_us: How long a lease is.
        clock: A monotonic clock.
    """

    def __init__(self, lease_us: int, clock: Clock) -> None:
        self._lease_us = lease_us
        self._clock = clock
        self._places: dict[int, Places] = {}
        self._is_lost = False
        self._next_us = 0

    def add(self, call_id: int, keys: Sequence[str], sent_us: int) -> None:
        """Keep the places of a call until it ends, if it has any."""
        if keys:
            self._places[call_id] = Places(keys, sent_us)

    def end(self, call_id: int) -> None:
        """Forget a call that has ended."""
        self._places.pop(call_id, None)

    @property
    def has_work(self) -> bool:
        """Whether there are leases to renew, or a loss to report."""
        return bool(self._places) or self._is_lost

    def is_late(self, sent_us: int) -> bool:
        """Whether leases that a command gave may have ended, so that the server may have given the places to others.

        A tenth early, because the server's clock and ours may differ in speed.
        """
        return self._clock() > sent_us + self._lease_us - self._lease_us // 10

    def renew_due(self, run: Run) -> None:
        """Renew all leases, if a third of the oldest one has passed. After a failure, try again after a thirtieth.

        Raises:
            StoreUnavailable: The server does not answer, or refuses.
        """
        now_us = self._clock()
        if now_us < self._next_us:
            return
        self._next_us = now_us + self._lease_us // 30
        calls = list(self._places.copy().items())
        if not any(now_us - places.sent_us >= self._lease_us // 3 for _, places in calls):
            return
        for at in range(0, len(calls), _BATCH):
            some = calls[at : at + _BATCH]
            sent_us = self._clock()
            keys = [key for _, places in some for key in places.keys]
            found = iter(run(keys, [layout.member(call_id) for call_id, places in some for _ in places.keys]))
            for call_id, places in some:
                self._renewed(call_id, places, [key for key in places.keys if next(found)], sent_us)

    def _renewed(self, call_id: int, places: Places, kept: Sequence[str], sent_us: int) -> None:
        """Note which places of a call are left. Before a lease has ended, only a `reset` or a loss of data takes one away."""
        if call_id not in self._places:  # the call has ended meanwhile
            return
        self._is_lost |= len(kept) < len(places.keys) and self.is_late(places.sent_us)
        if kept:
            self.add(call_id, kept, sent_us)
        else:
            self.end(call_id)

    def take_loss(self) -> tuple[str, ...]:
        """What to tell the user if places were lost since this was last called."""
        is_lost, self._is_lost = self._is_lost, False
        return (LOST.format(self._lease_us / 1_000_000),) if is_lost else ()
