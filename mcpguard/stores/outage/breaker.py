"""The circuit breaker: when a store that failed is probed, and an attempt to open it."""

import math
import os
import threading
from collections.abc import Callable
from typing import Final

from mcpguard.errors import LOOK_AT_LIMITS, StoreUnavailable
from mcpguard.stores.api import Recoverable

PROBE_US: Final = (1_000_000, 5_000_000)
"""The least and the most time between two probes. It is random in between, so that many wrappers do not probe at once."""

NOT_IN_TIME: Final = StoreUnavailable("it does not open in time")
"""The failure of a store that is still being opened."""

STEP_S: Final = 0.005
"""How long each step of a wait is. On a busy machine it takes several times as long, and so does opening a store."""


def probe_wait_us() -> int:
    """How long to wait until the next probe."""
    least_us, most_us = PROBE_US
    return least_us + int.from_bytes(os.urandom(4)) % (most_us - least_us)


class Connector:
    """One attempt to open a store. It begins at once.

    Args:
        reopen: Opens the store; raises `StoreUnavailable` if it cannot.
    """

    def __init__(self, reopen: Callable[[], Recoverable]) -> None:
        self._reopen = reopen
        self._mutex = threading.Lock()
        self._done = threading.Event()
        self._store: Recoverable | None = None
        self._error = NOT_IN_TIME
        self._abandoned = False
        try:
            threading.Thread(target=self._open, name="mcpguard-connect", daemon=True).start()
        except RuntimeError as error:
            self._error = StoreUnavailable(f"it cannot be opened: {error}", LOOK_AT_LIMITS)
            self._done.set()

    def _open(self) -> None:
        try:
            self._store = self._reopen()
        except Exception as error:
            self._error = unavailable(error)
        with self._mutex:
            self._done.set()
            if self._abandoned and self._store is not None:
                self._store.close()

    def wait(self, timeout_s: float, *, is_patient: bool = True) -> bool:
        """Wait for the end of the attempt.

        Args:
            timeout_s: How long to wait.
            is_patient: Whether to wait in steps, so longer on a busy machine. False if the caller has a deadline.

        Returns:
            Whether the attempt has ended.
        """
        if not is_patient:
            return self._done.wait(timeout_s)
        for _ in range(math.ceil(timeout_s / STEP_S)):
            if self._done.wait(STEP_S):
                break
        return self._done.is_set()

    def store(self) -> Recoverable:
        """The store that was opened.

        Raises:
            StoreUnavailable: It could not be opened, or the attempt has not ended.
        """
        if self._store is None or not self._done.is_set():
            raise self._error
        return self._store

    def abandon(self) -> None:
        """Close the store now, or as soon as it has been opened."""
        with self._mutex:
            self._abandoned = True
            if self._done.is_set() and self._store is not None:
                self._store.close()


def unavailable(error: Exception) -> StoreUnavailable:
    """The failure that the user is told. An exception that stores do not document is a bug, or damage that no check foresaw."""
    if isinstance(error, StoreUnavailable):
        return error
    return StoreUnavailable(f"internal error: {error!r}", "report it, unless the store is damaged")
