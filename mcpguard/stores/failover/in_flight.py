"""This wrapper's calls in flight that have places: local counting counts them, and the next store holds them.

Theory of operation. A call has a place on each cap that it was charged on. A store that admits a call knows its place by the id
of its row. A call that is admitted without a store, or outlives its store, has a random negative id instead, by which every
later store is asked to hold its place.

While a store is used, it has the places of all these calls. When it fails, each call that it admitted gets a negative id. The
next store first holds the place with the new id, and then frees the place with the row's id. So the call has a place at any
time. A store that comes back without its data has nothing to free.
"""

import os
from collections.abc import Sequence
from typing import Final, NamedTuple

from mcpguard.errors import StoreUnavailable
from mcpguard.limiter.plan import Counter, Plan
from mcpguard.limiter.sliding import State
from mcpguard.session.verdict import Ending, Verdict
from mcpguard.stores.api import Clock, Recoverable
from mcpguard.stores.failover.generations import Generations

TOO_SLOW: Final = StoreUnavailable("it answers too slowly")
"""The failure of a store that would let a call wait too long while it is handed the calls."""


class _Place(NamedTuple):
    """What a call in flight has.

    Attributes:
        id: The id by which a store knows it.
        plan: The call's plan.
        counters: The counters of calls in flight that were charged.
        may_be_held: Whether a store was asked to hold it. It may have done so even if it failed.
    """

    id: int
    plan: Plan
    counters: tuple[Counter, ...]
    may_be_held: bool = False


class CallsInFlight:
    """This wrapper's calls in flight that have places; see the module.

    Args:
        generations: Tells the row ids of successive stores apart.
    """

    def __init__(self, generations: Generations) -> None:
        self._generations = generations
        self._places: dict[int, _Place] = {}  # by the id of the call's row
        self._left: list[Ending] = []  # places in a store that has failed, which the next one has to free

    def decided(self, plan: Plan, verdict: Verdict) -> None:
        """Note a call that the store has decided by this plan, if it was admitted."""
        if verdict.forwards and verdict.row_id is not None and (caps := verdict.taken_caps(plan)):
            self._places[verdict.row_id] = _Place(self._generations.in_this_store(verdict.row_id), plan, tuple(caps))

    def take(self, place_id: int, plan: Plan, counters: Sequence[Counter]) -> None:
        """Note a call that was admitted without the store, by the id of its place: see `new_id`. Its row has no id yet."""
        self._places[place_id] = _Place(place_id, plan, tuple(counters))

    def name(self, place_id: int, row_id: int) -> None:
        """Note the id of the row of a call that was noted by `take`."""
        self._places[row_id] = self._places.pop(place_id)

    def on(self, counter: Counter) -> State:
        """The state of a counter of calls in flight, if there were no other wrappers."""
        return tuple([place.id for place in self._places.values() if counter in place.counters])

    def end(self, endings: Sequence[Ending]) -> None:
        """Forget calls that have ended. The store has been told."""
        for ending in endings:
            self._places.pop(ending.row_id, None)

    def end_without_store(self, endings: Sequence[Ending]) -> None:
        """Forget calls that have ended. The next store is told, if it may have their places."""
        for ending in endings:
            place = self._places.pop(ending.row_id, None)
            if place is not None and place.may_be_held:
                self._left.append(Ending(place.id, place.plan, failed=False))

    # the store

    def in_store(self, endings: Sequence[Ending]) -> list[Ending]:
        """The endings that the store has to be told, with its own ids of the calls.

        A call that failed is told even if it has no place. Then its id is that of no call that has one.
        """
        told: list[Ending] = []
        for ending in endings:
            place = self._places.get(ending.row_id)
            if place is not None:
                told.append(ending._replace(row_id=place.id))
            elif ending.failed:
                told.append(ending._replace(row_id=max(0, self._generations.in_this_store(ending.row_id))))
        return told

    def lose_store(self) -> None:
        """The store has failed. The next one may have its data."""
        for row_id, place in self._places.items():
            if place.id >= 0:
                self._left.append(Ending(place.id, place.plan, failed=False))
                self._places[row_id] = place._replace(id=new_id())

    def lose_data(self) -> None:
        """The store does not have the data of the one before."""
        self.lose_store()
        self._left = []

    def give(self, store: Recoverable, clock: Clock, *, until_us: int | None = None) -> None:
        """Let a store hold the calls that it has not admitted itself, and free what they have left in it.

        After a failure it may be done again, even with another store: a store holds a call once, whenever it is told.

        Args:
            store: The store.
            clock: The clock of `until_us`.
            until_us: After this time no operation begins; None for never.

        Raises:
            StoreUnavailable: It was not done, or not all of it, or it is too late.
        """
        calls: dict[int, tuple[Counter, ...]] = {}
        for row_id, place in self._places.items():
            if place.id < 0:
                calls[place.id] = place.counters
                self._places[row_id] = place._replace(may_be_held=True)

        def check_time() -> None:
            if until_us is not None and clock() > until_us:
                raise TOO_SLOW

        if calls:
            check_time()
            store.hold(calls)
        if self._left:
            check_time()
            store.settle(self._left)
            self._left = []


def new_id() -> int:
    """A random negative id that no other call has. Every program can represent it exactly, also as a floating-point number."""
    return -1 - (int.from_bytes(os.urandom(8)) >> 11)
