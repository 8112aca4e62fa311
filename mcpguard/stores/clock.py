"""The time of one machine: a clock that never runs backwards, counts sleep, and ignores steps of the wall clock."""

import contextlib
import os
import sys
import time
from pathlib import Path

if sys.platform == "linux":

    def boot_us() -> int:
        """Microseconds since the machine started, sleep included."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000

else:

    def boot_us() -> int:
        """Microseconds since the machine started, sleep included: macOS's and Windows' monotonic clocks count it."""
        return time.monotonic_ns() // 1000


def base_id() -> str:
    """What tells the start of `boot_us` from any other: this boot of this machine, in this time namespace.

    Raises:
        OSError: The system does not say.
    """
    if sys.platform == "linux":
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        with contextlib.suppress(OSError):  # kernels before 5.6 have no time namespaces
            boot += " " + os.readlink("/proc/self/ns/time")  # noqa: PTH115 - not a path but a name
        return boot
    if sys.platform == "darwin":
        import ctypes.util

        size = ctypes.c_size_t(64)
        buffer = ctypes.create_string_buffer(size.value)
        libc = ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True)
        if libc.sysctlbyname(b"kern.bootsessionuuid", buffer, ctypes.byref(size), None, 0):
            raise OSError(ctypes.get_errno(), "kern.bootsessionuuid")
        return buffer.value.decode()
    # To the nearest ten minutes: it moves with the wall clock, and a step of it then only starts a new base
    return f"boot {round((time.time() - time.monotonic()) / 600)}"
