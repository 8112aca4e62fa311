"""The owners of places: processes whose calls in flight are capped.

Before a process takes its first place, it makes a file beside the database, and keeps it locked until it ends. The kernel
releases the lock even if the process is killed. So an owner whose file is missing or not locked has ended, and its places are
free.
"""

import os
import threading
from collections.abc import Iterable
from typing import Final

from mcpguard.files import StrPath
from mcpguard.stores.locks import LifeSign, delete_if_dead, shows_life
from mcpguard.stores.sqlite.call_log import beside


class Owners:
    """The owners in one store.

    Args:
        database: The database.
    """

    def __init__(self, database: StrPath) -> None:
        self._base = beside(database, "-owner-")

    def file(self, name: str) -> str:
        """An owner's file."""
        return self._base + name

    def dead(self, names: Iterable[str]) -> set[str]:
        """Those of some owners that have ended."""
        return {name for name in names if not shows_life(self.file(name))}

    def sweep(self) -> None:
        """Delete the files of owners that have ended."""
        folder, beginning = os.path.split(self._base)
        for name in os.listdir(folder):
            if name.startswith(beginning):
                delete_if_dead(os.path.join(folder, name))


class _Owner:
    """This process as an owner.

    Attributes:
        name: Its name.
        sign: Its file.
        users: How many of the stores that this process has open use it.
        removed: The file, if somebody has removed it while this process ran; else empty.
    """

    def __init__(self, owners: Owners) -> None:
        self.users = 0
        self.removed = ""
        self._make(owners, os.urandom(8).hex())

    def _make(self, owners: Owners, name: str) -> None:
        """Make the file of a name, or of another one if a process that looks for the dead is about to delete that."""
        while True:
            try:
                self.sign, self.name = LifeSign(owners.file(name)), name
            except BlockingIOError:
                name = os.urandom(8).hex()
                continue
            return

    def check(self, owners: Owners) -> None:
        """Make the file again if it was removed: the places of the process are its own again, unless others have freed them."""
        if not self.sign.is_there():
            self.removed = owners.file(self.name)
            self._make(owners, self.name)


_own: Final[dict[str, _Owner]] = {}
_lock: Final = threading.Lock()
"""What this process is an owner of. A store that fails is closed and opened again while calls are in flight: they keep their
places, because the owner stays."""


class Ownership:
    """This process as an owner, for one of the stores that it opens.

    Args:
        owners: The owners in that store.
    """

    def __init__(self, owners: Owners) -> None:
        self._owners = owners
        self._key = owners.file("")
        with _lock:
            self._owner = _own.get(self._key)
            if self._owner is not None:
                self._owner.users += 1

    @property
    def name(self) -> str:
        """The owner's name; empty before the first place."""
        return "" if self._owner is None else self._owner.name

    def prepare(self) -> str:
        """Make the owner's file if it is missing. Returns the owner's name.

        Raises:
            OSError: It cannot be made.
        """
        with _lock:
            if self._owner is None:
                self._owner = _own.get(self._key) or _Owner(self._owners)
                self._owner.users += 1
                _own[self._key] = self._owner
            self._owner.check(self._owners)
            return self._owner.name

    def check(self) -> str:
        """Make the owner's file again if it was removed. Returns the file, if that has ever happened; else an empty text.

        Raises:
            OSError: It cannot be made.
        """
        with _lock:
            if self._owner is None:
                return ""
            self._owner.check(self._owners)
            return self._owner.removed

    def close(self, *, has_places: bool) -> None:
        """End the owner, unless another store of this process uses it.

        Args:
            has_places: Whether calls of the owner are in flight. Then it does not end before the process does.
        """
        with _lock:
            owner, self._owner = self._owner, None
            if owner is not None:
                owner.users -= 1
                if not owner.users and not has_places:
                    del _own[self._key]
                    owner.sign.end()
