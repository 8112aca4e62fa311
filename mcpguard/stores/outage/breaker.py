"""The circuit breaker: why calls do without the store, when the store is probed, and the attempt to open it."""

import math
import os
import threading
from collections.abc import Callable
from typing import Final

from mcpguard.errors import LOOK_AT_LIMITS, StoreUnavailable
from mcpguard.stores.api import Clock, Recoverable

PROBE_US: Final = (1_000_000, 5_000_000)
"""The least and the most time between two probes. It is random in between, so that many wrappers do not probe at once."""

NOT_IN_TIME: Final = StoreUnavailable("it does not open in time")
"""The failure of a store that is still being opened."""

STEP_S: Final = 0.005
"""How long each step of a wait is. On a busy machine it takes several times as long, and so does opening a store."""


def _random_below(bound: int) -> int:
    return int.from_bytes(os.urandom(4)) % bound


class CircuitBreaker:
    """Why calls do without the store, and when it is probed next.

    Args:
        clock: A monotone clock.
        random_below: Returns a random number from zero up to, but not including, its argument.

    Attributes:
        failure: Why the store cannot be used. It means nothing while calls use the store.
    """

    def __init__(self, clock: Clock, random_below: Callable[[int], int] = _random_below) -> None:
        self.failure = NOT_IN_TIME
        self._clock = clock
        self._random_below = random_below
        self._probe_us = 0

    def trip(self, failure: StoreUnavailable) -> None:
        """The store failed: let some time pass before it is probed."""
        self.failure = failure
        least_us, most_us = PROBE_US
        self._probe_us = self._clock() + least_us + self._random_below(most_us - least_us)

    @property
    def is_probe_due(self) -> bool:
        """Whether the next probe should begin now."""
        return self._clock() >= self._probe_us


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
