"""The state machine of the circuit breaker: whether calls use the store, and when a store that failed is probed.

Theory of operation. The breaker does no I/O. Its owner tells it what happened.

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
    half-open    closed       the store has received the whole outage log        close
    half-open    open         the probe failed                               trip
"""

import os
from collections.abc import Callable
from typing import Final, Literal

from mcpguard.errors import StoreUnavailable
from mcpguard.stores.api import Clock

PROBE_US: Final = (1_000_000, 5_000_000)
"""The least and the most time between two probes. It is random in between, so that many wrappers do not probe at once."""

NOT_IN_TIME: Final = StoreUnavailable("it does not open in time")
"""The failure of a store that is still being opened."""

State = Literal["connecting", "closed", "open", "half-open"]


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
        self.state: State = "connecting"
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
