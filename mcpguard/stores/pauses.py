"""Pauses in upkeep, so that no call waits for it: only one thread at a time has the interpreter's lock."""

import time
from collections.abc import Callable, Iterable, Iterator

from mcpguard.light_typing import Final, TypeVar

WORK_S: Final = 0.0002
"""How long to work before a pause. A call of this process that comes in between waits as long. A call of another process on the
same CPU can wait so long three times: until each of the processes that it passes through has the CPU."""

PAUSE_S: Final = 0.0001
"""A pause. `sleep(0)` would not do: the thread would take the interpreter's lock again before another one wakes up."""

QUIET_S: Final = 0.005
"""If there was a call, a pause lasts until there was none for this long. So a call that follows soon meets no work."""

GIVE_WAY_S: Final = 0.02
"""After this long, work goes on although there are calls, with a pause of `PAUSE_S` after each `WORK_S`."""

LOOK_EVERY_S: Final = 0.001

_T = TypeVar("_T")


class Pauses:
    """The pauses of one piece of work.

    Args:
        busy: Whether there was a call within the last `QUIET_S`.
        awaited: Whether calls wait for this work. Then there are no pauses.
    """

    def __init__(self, busy: Callable[[], bool], awaited: Callable[[], bool]) -> None:
        self._busy = busy
        self._awaited = awaited
        self._since_s = time.perf_counter()
        self._gives_way_until_s = self._since_s + GIVE_WAY_S

    def between(self, items: Iterable[_T]) -> Iterator[_T]:
        """The items, with a pause before one if it is time."""
        for item in items:
            if time.perf_counter() - self._since_s > WORK_S:
                self._pause()
            yield item

    def _pause(self) -> None:
        if not self._awaited():
            time.sleep(PAUSE_S)
        while self._busy() and not self._awaited() and time.perf_counter() < self._gives_way_until_s:
            time.sleep(LOOK_EVERY_S)
        self._since_s = time.perf_counter()
