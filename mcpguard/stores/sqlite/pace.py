"""Keeps processes that decide many calls from filling the call log, so that there is room for the calls of others."""

import time
from collections.abc import Callable
from typing import Final

from mcpguard.stores.sqlite import call_log
from mcpguard.stores.sqlite.call_log import CallLog
from mcpguard.stores.sqlite.follower import Follower
from mcpguard.stores.sqlite.upkeep import Upkeep

PACE_BYTES: Final = 32 * 1024
"""A process checks how full the log is each time that it has appended this much: about 60 single calls."""

SLOW_S: Final = 2.0
"""A process that takes longer than this from one check to the next never waits: it does not fill the log."""

CROWDED_SHARE: Final = 1 / 2
"""When more than this share of the log waits for the database, the log is crowded. The fuller it is, the longer a process waits
before it takes more calls, and the sooner it checks again. So a process with many calls waits most, and upkeep can work."""

LONGEST_WAIT_S: Final = 0.25
"""The longest wait before a process takes more calls, however long the timeout is."""

LOOK_EVERY_S: Final = 0.005
"""How often a process that waits for the database checks how far it is."""


class Pace:
    """How fast one process fills the log.

    Args:
        log: The call log.
        follower: This process.
        upkeep: The store's upkeep, which drains the log.
        timeout_s: How long to wait for the database at most.

    Attributes:
        next_check_bytes: `keep` does something only if the process has appended more than this.
    """

    def __init__(self, log: CallLog, follower: Follower, upkeep: Upkeep, *, timeout_s: float) -> None:
        self._log = log
        self._follower = follower
        self._upkeep = upkeep
        self._timeout_s = timeout_s
        self.next_check_bytes = log.appended_bytes + PACE_BYTES
        self._checked_s = time.monotonic()

    def keep(self, hurry: Callable[[], None]) -> None:
        """Wait for a moment if the log is crowded, unless this process is slow, or could not write the database itself.

        Args:
            hurry: Called before the wait, to start upkeep.

        Raises:
            StoreUnavailable, OSError: The log cannot be read.
        """
        is_slow = time.monotonic() - self._checked_s > SLOW_S
        crowding = 0.0 if is_slow or self._upkeep.is_failing else self._crowding()
        if crowding:
            hurry()
            with self._upkeep.awaited():
                longest_s = min(self._timeout_s, LONGEST_WAIT_S)
                time.sleep(longest_s * crowding**0.5)  # a root, to slow processes down as soon as it is crowded
        self.next_check_bytes = self._log.appended_bytes + round(PACE_BYTES * (1 - crowding))
        self._checked_s = time.monotonic()

    def _crowding(self) -> float:
        """From 0, the log is not crowded, to 1, it is full."""
        waiting_share = (self._follower.at.end - self._log.drained().end) / call_log.RING_BYTES
        return max(0.0, (waiting_share - CROWDED_SHARE) / (1 - CROWDED_SHARE))

    def await_drained(self, end: int) -> None:
        """Wait until the database has the log up to a position, for at most the timeout."""
        until_s = time.monotonic() + self._timeout_s
        with self._upkeep.awaited():
            while self._log.drained().end < end and time.monotonic() < until_s:
                time.sleep(LOOK_EVERY_S)
