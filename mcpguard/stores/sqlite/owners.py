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
_lock: Final = threading.Lock()
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
