"""Keeps a process that decides many calls from filling the call log, so that there is room for the calls of others."""

import time
from collections.abc import Callable
from typing import Final

from mcpguard.stores.sqlite import call_log
from mcpguard.stores.sqlite.call_log import CallLog
from mcpguard.stores.sqlite.follower import Follower
from mcpguard.stores.sqlite.upkeep import Upkeep

PACE_BYTES: Final = 64 * 1024
PACE_SHARE: Final = 4
"""Each time that a process has appended `PACE_BYTES`, it checks how much of the log is free. Once it has appended more than
1 / `PACE_SHARE` of that since its last wait, it waits until the database has all records up to that wait. So a process has at
most two such shares in the log, and n busy processes leave 2 / (n + 2) of the log free for others."""

LOOK_EVERY_S: Final = 0.001
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
        self._note_wait()

    def _note_wait(self) -> None:
        self._waited_bytes = self._log.appended_bytes
        self._mark = self._follower.at.end
        self.next_check_bytes = self._waited_bytes + PACE_BYTES

    def keep(self, hurry: Callable[[], None]) -> None:
        """Wait for the database, if this process has filled its share of the log.

        Args:
            hurry: Called before the wait, to start upkeep.

        Raises:
            StoreUnavailable, OSError: The log cannot be read.
        """
        appended_bytes = self._log.appended_bytes
        self.next_check_bytes = appended_bytes + PACE_BYTES
        free_bytes = call_log.RING_BYTES - (self._follower.at.end - self._log.drained().end)
        if appended_bytes - self._waited_bytes > free_bytes // PACE_SHARE:
            hurry()
            self.await_drained(self._mark)
            self._note_wait()

    def await_drained(self, end: int) -> None:
        """Wait until the database has the log up to a position, for at most the timeout."""
        until_s = time.monotonic() + self._timeout_s
        with self._upkeep.awaited():
            while self._log.drained().end < end and time.monotonic() < until_s:
                time.sleep(LOOK_EVERY_S)
