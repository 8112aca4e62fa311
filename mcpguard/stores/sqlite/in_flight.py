"""The calls in flight that hold places of caps. They are few, so a process always has all of them in memory."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from mcpguard.limiter.sliding import State
from mcpguard.stores.sqlite import log_lines

KINDS: Final = frozenset({log_lines.TAKEN, log_lines.FREED, log_lines.EMPTIED})
"""The kinds of lines that change places."""


class Place(NamedTuple):
    """A place of a cap that a call in flight holds.

    Attributes:
        counter_id: The cap's counter.
        call_id: The id of the call's row; negative for a call that was admitted without the store.
        owner: The process that took the place, see `owners`.
        label: The counter's label.
    """

    counter_id: int
    call_id: int
    owner: str
    label: str


class InFlight:
    """The places that are taken, at one position of the call log.

    Args:
        places: The places.
    """

    def __init__(self, places: Iterable[Place] = ()) -> None:
        self._places: dict[int, dict[int, Place]] = {}  # by counter and call
        for place in places:
            self.take(place)

    def __iter__(self) -> Iterator[Place]:
        return (place for places in self._places.values() for place in places.values())

    def copy(self) -> "InFlight":
        """A copy that changes on its own."""
        return InFlight(self)

    def of(self, counter_ids: Iterable[int]) -> list[Place]:
        """The places of some counters."""
        return [place for key in counter_ids for place in self._places.get(key, {}).values()]

    def state(self, counter_id: int) -> State:
        """The state of a counter: the ids of its calls."""
        return tuple(self._places.get(counter_id, ()))

    def take(self, place: Place) -> None:
        """Take a place."""
        self._places.setdefault(place.counter_id, {})[place.call_id] = place

    def free(self, counter_id: int, call_id: int) -> None:
        """Free a place, if it is taken."""
        places = self._places.get(counter_id, {})
        if places.pop(call_id, None) and not places:
            del self._places[counter_id]

    def follow(self, fields: Sequence[str]) -> None:
        """Apply a line of one of `KINDS`."""
        kind, counter_id, *rest = fields
        if kind == log_lines.TAKEN:
            call_id, owner, label = rest
            self.take(Place(int(counter_id), int(call_id), owner, label))
        elif kind == log_lines.FREED:
            self.free(int(counter_id), int(rest[0]))
        else:
            self._places.pop(int(counter_id), None)

    def without(self, owners: Collection[str]) -> "InFlight":
        """The places that others than these owners hold."""
        return InFlight(place for place in self if place.owner not in owners)
