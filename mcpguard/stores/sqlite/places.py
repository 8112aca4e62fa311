"""The calls in flight that hold places of caps, and the owners of the places: the processes that have admitted the calls.

The places are few, so a process always has all of them in memory.

Before a process takes its first place, it makes a file beside the database, and keeps it locked until it ends. The kernel
releases the lock even if the process is killed. So an owner whose file is missing or not locked has ended, and its places are
free.
"""

import contextlib
import os
from _thread import allocate_lock
from collections.abc import Iterable

from mcpguard.files import StrPath
from mcpguard.light_typing import Final, NamedTuple
from mcpguard.limiter.sliding import State
from mcpguard.locks import LifeSign, delete_if_dead, shows_life
from mcpguard.stores.sqlite.call_log import beside


class Place(NamedTuple):
    """A place of a cap that a call in flight holds.

    Attributes:
        counter_id: The cap's counter.
        call_id: The id of the call's row; negative for a call that was admitted without the store.
        owner: The process that took the place, see `Owner`.
        label: The counter's label.
    """

    counter_id: int
    call_id: int
    owner: str
    label: str


Places = dict[tuple[int, int], Place]
"""The places that are taken, by counter id and call id."""


def calls_of(places: Places, counter_id: int) -> State:
    """The state of a counter: the ids of its calls."""
    return tuple([call_id for counter, call_id in places if counter == counter_id])


def alive(places: Places, database: StrPath) -> Places:
    """The places of processes that still run."""
    ended = dead(database, {place.owner for place in places.values()})
    return {key: place for key, place in places.items() if place.owner not in ended}


_own: Final[dict[str, "Owner"]] = {}
_lock: Final = allocate_lock()


class Owner:
    """This process as an owner in one store, for everything of the process that has the store open.

    A store that fails is closed and opened again while calls are in flight: they keep their places, because the owner stays.

    Attributes:
        name: Its name; empty before its first place.
        removed: Its file, if somebody has removed it while this process ran; else empty.
    """

    def __init__(self, base: str) -> None:
        self.name = ""
        self.removed = ""
        self._base = base
        self._sign: LifeSign | None = None
        self._users: set[object] = set()

    @classmethod
    def of(cls, database: StrPath, user: object) -> "Owner":
        """This process as an owner in the store with this database.

        Args:
            database: The database.
            user: What uses the owner until it is closed with the same user.
        """
        base = _base(database)
        with _lock:
            own = _own.setdefault(base, cls(base))
            own._users.add(user)
            return own

    def prepare(self) -> str:
        """Make this process an owner, if it is none yet. Returns its name.

        Raises:
            OSError: Its file cannot be made.
        """
        with _lock:
            self._make_file()
            return self.name

    def check(self) -> None:
        """Make the file again if it was removed: the places of the process are its own again, unless others have freed them.

        Raises:
            OSError: It cannot be made.
        """
        with _lock:
            if self._sign is not None:
                self._make_file()

    def _make_file(self) -> None:
        """Make the file of the name, or of another one if a process that looks for the dead is about to delete that."""
        if self._sign is not None:
            if self._sign.is_there():
                return
            self.removed = self._sign.path
        name = self.name or os.urandom(8).hex()
        while True:
            with contextlib.suppress(BlockingIOError):
                self._sign, self.name = LifeSign(self._base + name), name
                return
            name = os.urandom(8).hex()

    def dead(self, others: Iterable[str]) -> set[str]:
        """Those of some owners in the same store that have ended."""
        return {name for name in others if not shows_life(self._base + name)}

    def close(self, user: object, *, has_places: bool) -> None:
        """Let this process be no owner any more, unless something else of it has the store open.

        Args:
            user: What does not use it any more; it may be closed again.
            has_places: Whether calls of the owner are in flight. Then it does not end before the process does.
        """
        with _lock:
            self._users.discard(user)
            if self._sign is not None and not self._users and not has_places:
                self._sign.end()
                self._sign, self.name, self.removed = None, "", ""


def dead(database: StrPath, owners: Iterable[str]) -> set[str]:
    """Those of some owners in a store that have ended."""
    return Owner(_base(database)).dead(owners)


def sweep(database: StrPath) -> None:
    """Delete the files of owners that have ended."""
    folder, beginning = os.path.split(_base(database))
    for name in os.listdir(folder):
        if name.startswith(beginning):
            delete_if_dead(os.path.join(folder, name))


def _base(database: StrPath) -> str:
    """The beginning of the names of owners' files."""
    return beside(database, "-owner-")
