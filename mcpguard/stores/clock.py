"""Reads the clocks of this machine, and pauses upkeep so that no call waits for it.

`boot_us` never runs backwards, counts sleep, and ignores steps of the wall clock.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator

from mcpguard.files import read_at_once
from mcpguard.light_typing import Final, TypeVar


def wall_us() -> int:
    """Wall-clock time."""
    return time.time_ns() // 1000


def monotonic_us() -> int:
    """A monotone clock, to be compared within one process only."""
    return time.monotonic_ns() // 1000


if sys.platform == "linux":

    def boot_us(offset_us: int = 0) -> int:
        """Microseconds since the machine started, sleep included, plus an offset."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000 + offset_us

elif sys.platform == "darwin":

    def boot_us(offset_us: int = 0) -> int:
        """Microseconds since the machine started, sleep included: `time.monotonic` stops while a Mac sleeps."""
        return time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW) // 1000 + offset_us

else:

    def boot_us(offset_us: int = 0) -> int:
        """Microseconds since the machine started, sleep included, by the same clock in each version of Python on Windows."""
        return time.perf_counter_ns() // 1000 + offset_us


def boottime_offset(offsets: str) -> str:
    r"""How far a time namespace has shifted `boot_us`, as text; empty if it has not.

    The offset identifies the namespace. Its number does not, because the kernel reuses numbers.

    Args:
        offsets: The content of `/proc/self/timens_offsets`.

    >>> boottime_offset("monotonic           0         0\nboottime       100000         5\n")
    ' boottime 100000 5'
    """
    found = [line.split() for line in offsets.splitlines()]
    return next((" " + " ".join(one) for one in found if one[0] in {"boottime", "7"} and one[1:] != ["0", "0"]), "")


def base_id() -> str:
    """An id of the start of `boot_us`: of this boot of this machine, and of the shift by a time namespace.

    Raises:
        OSError: The system does not tell it.
    """
    if sys.platform == "linux":
        boot = read_at_once("/proc/sys/kernel/random/boot_id").decode().strip()
        with contextlib.suppress(OSError):  # kernels before 5.6 have no time namespaces
            boot += boottime_offset(read_at_once("/proc/self/timens_offsets").decode())
        return boot
    if sys.platform == "darwin":
        import ctypes

        size = ctypes.c_size_t(64)
        buffer = ctypes.create_string_buffer(size.value)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.sysctlbyname(b"kern.bootsessionuuid", buffer, ctypes.byref(size), None, 0):
            raise OSError(ctypes.get_errno(), "kern.bootsessionuuid")
        return f"raw {buffer.value.decode()}"  # without the word: of a version whose clock stopped while the Mac slept
    if sys.platform == "win32":
        import winreg

        place = r"SYSTEM\CurrentControlSet\Control\Session Manager\Memory Management\PrefetchParameters"
        with contextlib.suppress(OSError), winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, place) as key:
            return f"boot {winreg.QueryValueEx(key, 'BootId')[0]}"
    # Rounded to ten minutes, because it is derived from the wall clock. A larger step of that clock starts a new base
    return f"near {round((time.time() - time.perf_counter()) / 600)}"


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
