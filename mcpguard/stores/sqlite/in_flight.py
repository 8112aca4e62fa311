"""The calls in flight that hold places of caps, and the owners of the places: the processes that have admitted the calls.

The places are few, so a process always has all of them in memory.

Before a process takes its first place, it makes a file beside the database, and keeps it locked until it ends. The kernel
releases the lock even if the process is killed. So an owner whose file is missing or not locked has ended, and its places are
free.
"""

import os
from _thread import allocate_lock
from collections.abc import Collection, Iterable, Iterator, Sequence

from mcpguard.files import StrPath
from mcpguard.light_typing import Final, NamedTuple
from mcpguard.limiter.sliding import State
from mcpguard.locks import LifeSign, delete_if_dead, shows_life
from mcpguard.stores.sqlite import log_lines
from mcpguard.stores.sqlite.call_log import beside

KINDS: Final = frozenset({log_lines.TAKEN, log_lines.FREED, log_lines.EMPTIED})
"""The kinds of lines that change places."""


class Place(NamedTuple):
    """A place of a cap that a call in flight holds.

    Attributes:
        counter_id: The cap's counter.
        call_id: The id of the call's row; negative for a call that was admitted without the store.
        owner: The process that took the place, see `Owners`.
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
        self._places = {place[:2]: place for place in places}

    def __iter__(self) -> Iterator[Place]:
        return iter(self._places.values())

    def copy(self) -> "InFlight":
        """A copy that changes on its own."""
        return InFlight(self)

    def of(self, counter_ids: Collection[int]) -> list[Place]:
        """The places of some counters."""
        return [place for place in self if place.counter_id in counter_ids]

    def state(self, counter_id: int) -> State:
        """The state of a counter: the ids of its calls."""
        return tuple([place.call_id for place in self if place.counter_id == counter_id])

    def take(self, place: Place) -> None:
        """Take a place."""
        self._places[place[:2]] = place

    def free(self, counter_id: int, call_id: int) -> None:
        """Free a place, if it is taken."""
        self._places.pop((counter_id, call_id), None)

    def follow(self, fields: Sequence[str]) -> None:
        """Apply a line of one of `KINDS`."""
        kind, counter_id, *rest = fields
        if kind == log_lines.TAKEN:
            call_id, owner, label = rest
            self.take(Place(int(counter_id), int(call_id), owner, label))
        elif kind == log_lines.FREED:
            self.free(int(counter_id), int(rest[0]))
        else:
            for place in self.of([int(counter_id)]):
                self.free(place.counter_id, place.call_id)

    def without(self, owners: Collection[str]) -> "InFlight":
        """The places that others than these owners hold."""
        return InFlight(place for place in self if place.owner not in owners)


class _Own:
    """This process as an owner in one store.

    Attributes:
        name: Its name.
        sign: Its file.
        users: Those of the stores that this process has open that use it.
        removed: The file, if somebody has removed it while this process ran; else empty.
    """

    def __init__(self, base: str) -> None:
        self.users: set[Owners] = set()
        self.removed = ""
        self._base = base
        self._make(os.urandom(8).hex())

    def _make(self, name: str) -> None:
        """Make the file of a name, or of another one if a process that looks for the dead is about to delete that."""
        while True:
            try:
                self.sign, self.name = LifeSign(self._base + name), name
            except BlockingIOError:
                name = os.urandom(8).hex()
                continue
            return

    def check(self) -> None:
        """Make the file again if it was removed: the places of the process are its own again, unless others have freed them."""
        if not self.sign.is_there():
            self.removed = self.sign.path
            self._make(self.name)


_own: Final[dict[str, _Own]] = {}
_lock: Final = allocate_lock()
"""What this process is an owner of. A store that fails is closed and opened again while calls are in flight: they keep their
places, because the owner stays."""


class Owners:
    """The owners in one store, of which this process may be one.

    Args:
        database: The database.
    """

    def __init__(self, database: StrPath) -> None:
        self._base = beside(database, "-owner-")

    def dead(self, names: Iterable[str]) -> set[str]:
        """Those of some owners that have ended."""
        return {name for name in names if not shows_life(self._base + name)}

    def sweep(self) -> None:
        """Delete the files of owners that have ended."""
        folder, beginning = os.path.split(self._base)
        for name in os.listdir(folder):
            if name.startswith(beginning):
                delete_if_dead(os.path.join(folder, name))

    @property
    def name(self) -> str:
        """The name of this process as an owner; empty before its first place."""
        own = _own.get(self._base)
        return own.name if own else ""

    def prepare(self) -> str:
        """Make this process an owner, if it is none yet. Returns its name.

        Raises:
            OSError: Its file cannot be made.
        """
        with _lock:
            own = _own[self._base] = _own.get(self._base) or _Own(self._base)
            own.users.add(self)
            own.check()
            return own.name

    def check(self) -> str:
        """Make this process's file again if it was removed. Returns the file, if that has ever happened; else an empty text.

        Raises:
            OSError: It cannot be made.
        """
        with _lock:
            if own := _own.get(self._base):
                own.check()
            return own.removed if own else ""

    def close(self, *, has_places: bool) -> None:
        """Let this process be no owner any more, unless another of its stores uses it.

        Args:
            has_places: Whether calls of the owner are in flight. Then it does not end before the process does.
        """
        with _lock:
            if own := _own.get(self._base):
                own.users.discard(self)
                if not own.users and not has_places:
                    del _own[self._base]
                    own.sign.end()
