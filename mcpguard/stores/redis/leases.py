"""The leases of the calls in flight that this process has admitted.

A place of a call in flight has a lease, so that it becomes free if its wrapper dies or loses the server. A wrapper that was
stopped for longer than a lease may find that another call has got the place.
"""

from collections.abc import Callable, Mapping, Sequence

from mcpguard.light_typing import Final
from mcpguard.stores.api import Clock
from mcpguard.stores.redis import layout

LOST: Final = (
    "this process was stopped, or cut off from the store, for {:g} s or more, and places of its calls in flight were given "
    "to other calls: until its own calls end, more calls than `concurrent` allows may be in flight"
)

RunScript = Callable[..., Sequence[int]]
"""Runs the script of this name with these keys and arguments, and returns its reply: see `RedisServer.run`."""


class LeasedCall:
    """The places of one call.

    Attributes:
        keys: The keys of their counters.
        sent_us: When the command was sent that gave them, or renewed their lease.
    """

    def __init__(self, keys: Sequence[str], sent_us: int) -> None:
        self.keys = keys
        self.sent_us = sent_us


class Leases:
    """The leases of a store object. One thread may add and end places while another renews them.

    Args:
        lease_us: How long a lease is.
        clock: A clock that counts sleep, too.
    """

    def __init__(self, lease_us: int, clock: Clock) -> None:
        self._lease_us = lease_us
        self._clock = clock
        self._places: dict[int, LeasedCall] = {}
        self._is_lost = False
        self._next_us = 0

    def add(self, call_id: int, place: LeasedCall) -> None:
        """Keep the places of a call until it ends."""
        self._places[call_id] = place

    def end(self, call_id: int) -> LeasedCall | None:
        """Forget a call that has ended. Returns its places, if it had any."""
        return self._places.pop(call_id, None)

    @property
    def has_work(self) -> bool:
        """Whether there are leases to renew, or a loss to report."""
        return bool(self._places) or self._is_lost

    def renew_due(self, run: RunScript) -> None:
        """Renew all leases, if a third of the oldest one has passed. After a failure, try again after a thirtieth.

        Raises:
            StoreUnavailable: The server does not answer, or refuses.
        """
        now_us = self._clock()
        if now_us < self._next_us:
            return
        self._next_us = now_us + self._lease_us // 30
        places = self._places.copy()
        if any(now_us - place.sent_us >= self._lease_us // 3 for place in places.values()):
            self.renew(places, run)

    def are_kept(self, places: Mapping[int, LeasedCall], run: RunScript) -> bool:
        """Whether calls still have the places that they have just got. If their leases may have ended, renews them first."""
        while any(map(self.is_late, places.values())):
            if not self.renew(places, run):
                return False
        return True

    def renew(self, places: Mapping[int, LeasedCall], run: RunScript) -> bool:
        """Renew the leases of calls. Returns whether each call still has its places.

        Raises:
            StoreUnavailable: The server does not answer, or refuses.
        """
        have_all = True
        for some in layout.batches(list(places.items())):
            sent_us = self._clock()
            keys = [key for _, place in some for key in place.keys]
            found = iter(run("renew", keys, *[layout.member(call_id) for call_id, place in some for _ in place.keys]))
            for call_id, place in some:
                kept = [key for key in place.keys if next(found)]
                if len(kept) < len(place.keys) and self.is_late(place):
                    have_all = False
                    self._is_lost = self._is_lost or call_id in self._places
                place.keys, place.sent_us = kept, sent_us
                if not kept:
                    self.end(call_id)
        return have_all

    def settled(self, place: LeasedCall, freed: int) -> None:
        """Note how many places a call still had when it ended."""
        if freed < len(place.keys) and self.is_late(place):
            self._is_lost = True

    def is_late(self, place: LeasedCall) -> bool:
        """Whether the lease may have ended, so that the server may have given the places to others.

        Before that, places are gone only after a `reset`, or if the server has lost its data: no other call has them. It is
        taken to end a tenth early, because the server's clock and ours may differ in speed.
        """
        return self._clock() > place.sent_us + self._lease_us - self._lease_us // 10

    def take_loss(self) -> tuple[str, ...]:
        """What to tell the user if places were lost since this was last called."""
        is_lost, self._is_lost = self._is_lost, False
        return (LOST.format(self._lease_us / 1_000_000),) if is_lost else ()
