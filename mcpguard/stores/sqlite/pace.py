"""Keeps processes that decide many calls from filling the call log, so that there is room for the calls of others."""

import time
from collections.abc import Callable
from typing import Final

from mcpguard.stores.sqlite import call_log
from mcpguard.stores.sqlite.call_log import CallLog
from mcpguard.stores.sqlite.follower import Follower
from mcpguard.stores.sqlite.upkeep import Upkeep

PACE_BYTES: Final = 16 * 1024
"""A process checks how full the log is each time that it has appended this much: about 30 single calls."""

SLOW_S: Final = 1.0
"""A process that takes longer than this to append `PACE_BYTES` never waits: it does not fill the log."""

CROWDED_SHARE: Final = 1 / 2
CLEARED_SHARE: Final = 1 / 4
"""When more than the first of these shares of the log waits for the database, the log is crowded. Then all processes but slow
ones wait before they take more calls, until only the second share waits: so upkeep has the processor to itself."""

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
        """Wait for the database if the log is crowded, unless this process is slow, or could not write the database itself.

        Args:
            hurry: Called before the wait, to start upkeep.

        Raises:
            StoreUnavailable, OSError: The log cannot be read.
        """
        is_slow = time.monotonic() - self._checked_s > SLOW_S
        end, drained_end = self._follower.at.end, self._log.drained().end
        crowded_end = end - round(CROWDED_SHARE * call_log.RING_BYTES)
        step_bytes = PACE_BYTES
        if drained_end < crowded_end and not is_slow and not self._upkeep.is_failing:
            hurry()
            self.await_drained(end - round(CLEARED_SHARE * call_log.RING_BYTES))
            if drained_end < self._log.drained().end < crowded_end:
                step_bytes = 0  # upkeep goes on: wait again after the next call
        self.next_check_bytes = self._log.appended_bytes + step_bytes
        self._checked_s = time.monotonic()

    def await_drained(self, end: int) -> None:
        """Wait until the database has the log up to a position, for at most the timeout."""
        until_s = time.monotonic() + self._timeout_s
        with self._upkeep.awaited():
            while self._log.drained().end < end and time.monotonic() < until_s:
                time.sleep(LOOK_EVERY_S)
