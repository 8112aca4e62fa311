"""Opens a store in the background: whoever needs it decides how long to wait."""

import threading
from collections.abc import Callable
from typing import Final

from mcpguard.errors import StoreUnavailable
from mcpguard.stores.api import Store

NOT_IN_TIME: Final = StoreUnavailable("it does not open in time")
"""Of an attempt that has not ended."""


class Connector:
    """Opens a store in a thread of its own.

    Args:
        reopen: Opens it; raises `StoreUnavailable` if it cannot.
    """

    def __init__(self, reopen: Callable[[], Store]) -> None:
        self._reopen = reopen
        self._mutex = threading.Lock()
        self._done = threading.Event()
        self._store: Store | None = None
        self._error = NOT_IN_TIME
        self._abandoned = False
        threading.Thread(target=self._open, name="mcpguard-connect", daemon=True).start()

    def _open(self) -> None:
        try:
            self._store = self._reopen()
        except Exception as error:
            self._error = unavailable(error)
        with self._mutex:
            self._done.set()
            if self._abandoned and self._store is not None:
                self._store.close()

    def wait(self, timeout_s: float) -> bool:
        """Whether the attempt has ended within a time."""
        return self._done.wait(timeout_s)

    def store(self) -> Store:
        """What was opened.

        Raises:
            StoreUnavailable: It could not be, or is not yet.
        """
        if self._store is None or not self._done.is_set():
            raise self._error
        return self._store

    def abandon(self) -> None:
        """Nobody wants the store any more: it is closed when it has been opened."""
        with self._mutex:
            self._abandoned = True
            if self._done.is_set() and self._store is not None:
                self._store.close()


def unavailable(error: Exception) -> StoreUnavailable:
    """What the user is told of a failure; one that no store should have is a bug, or damage that none has foreseen."""
    if isinstance(error, StoreUnavailable):
        return error
    return StoreUnavailable(f"internal error: {error!r}", "if the store is not damaged, please report it")
