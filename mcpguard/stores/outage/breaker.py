"""The circuit breaker: whether calls use the store, when a store that failed is probed, and the attempt to open it.

Theory of operation. `CircuitBreaker` does no I/O. Its owner tells it what happened.

    state        calls                       the store
    connecting   the first one may wait      is being opened for the first time
    closed       use the store               answers
    open         are decided without it      has failed; the next probe is scheduled
    half-open    are decided without it      is probed: it is opened, and then receives the outage log

    from         to           event                                          method
    connecting   closed       the store was opened                           close
    connecting   half-open    it was not opened in time; the attempt goes on begin_probe
    connecting   open         it could not be opened                         trip
    closed       open         one of its operations failed                   trip
    open         half-open    a probe begins                                 begin_probe
    half-open    closed       the store has received the outage log          close
    half-open    open         the probe failed                               trip
"""

import math
import os
import threading
from collections.abc import Callable

from mcpguard.errors import LOOK_AT_LIMITS, NOT_IN_TIME, StoreUnavailable
from mcpguard.light_typing import Final, Literal
from mcpguard.stores.api import Clock, Recoverable

PROBE_US: Final = (1_000_000, 5_000_000)
"""The least and the most time between two probes. It is random in between, so that many wrappers do not probe at once."""

STEP_S: Final = 0.005
"""How long each step of a wait is. On a busy machine it takes several times as long, and so does opening a store."""

BreakerState = Literal["connecting", "closed", "open", "half-open"]


def _random_below(bound: int) -> int:
    return int.from_bytes(os.urandom(4)) % bound


class CircuitBreaker:
    """The state of one store, as its owner reports it.

    Args:
        clock: A monotone clock.
        random_below: Returns a random number from zero up to, but not including, its argument.

    Attributes:
        state: See the module.
        failure: Why the store cannot be used. It means nothing while the breaker is closed.
    """

    def __init__(self, clock: Clock, random_below: Callable[[int], int] = _random_below) -> None:
        self.state: BreakerState = "connecting"
        self.failure = NOT_IN_TIME
        self._clock = clock
        self._random_below = random_below
        self._probe_us = 0

    def close(self) -> None:
        """The store can be used."""
        self.state = "closed"

    def begin_probe(self) -> None:
        """A probe begins; or the first attempt to open the store takes too long, and is a probe from now on."""
        self.state = "half-open"

    def trip(self, failure: StoreUnavailable) -> bool:
        """The store failed.

        Args:
            failure: The reason.

        Returns:
            Whether the user has to be told: the store was usable, or the reason was not known before.
        """
        is_news = self.state != "half-open" or self.failure is NOT_IN_TIME
        self.state = "open"
        self.failure = failure
        least_us, most_us = PROBE_US
        self._probe_us = self._clock() + least_us + self._random_below(most_us - least_us)
        return is_news

    @property
    def is_probe_due(self) -> bool:
        """Whether the scheduled probe should begin now."""
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
