"""The machine's clock, and the id of its start."""

import contextlib
import ctypes
import sys
import time
from typing import Any, Self

import pytest

from mcpguard.stores import clock
from tests.stores.conftest import as_on


def test_the_machines_own_clock_runs_forward_and_has_a_base() -> None:
    first = clock.boot_us()
    assert clock.boot_us() >= first > 0
    assert clock.base_id() == clock.base_id() != ""


class Libc:
    """The part of macOS' C library that names this boot."""

    def __init__(self, boot: bytes) -> None:
        self._boot = boot

    def sysctlbyname(self, name: bytes, buffer: Any, size: Any, new: None, new_size: int) -> int:
        assert (name, size._obj.value, new, new_size) == (b"kern.bootsessionuuid", 64, None, 0)
        buffer.value = self._boot
        return 0 if self._boot else -1


@pytest.mark.posix
def test_macos_clock_counts_sleep_and_has_another_base_than_one_that_did_not(monkeypatch: pytest.MonkeyPatch) -> None:
    module = as_on("darwin", clock, monkeypatch)
    monkeypatch.setattr(time, "clock_gettime_ns", {time.CLOCK_MONOTONIC_RAW: 7_000_999}.__getitem__)
    assert (module.boot_us(), module.boot_us(5)) == (7_000, 7_005)
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Libc(b"6A1D"))
    assert module.base_id() == "raw 6A1D"  # an older version wrote "6A1D"
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Libc(b""))
    with pytest.raises(OSError, match=r"kern\.bootsessionuuid"):
        module.base_id()


class Registry(contextlib.nullcontext[None]):
    """A stand-in for `winreg`, with the number of the boot; without it the key is missing."""

    HKEY_LOCAL_MACHINE = 0

    def __init__(self, boot: int | None) -> None:
        super().__init__()
        self.boot = boot

    def OpenKey(self, *_: object) -> Self:  # noqa: N802 - the name in winreg
        if self.boot is None:
            raise OSError
        return self

    def QueryValueEx(self, *_: object) -> tuple[int | None, int]:  # noqa: N802 - as above
        return self.boot, 4


def test_windows_base_is_the_number_of_the_boot_whatever_the_wall_clock_does(monkeypatch: pytest.MonkeyPatch) -> None:
    module = as_on("win32", clock, monkeypatch)
    registry = Registry(7)
    monkeypatch.setitem(sys.modules, "winreg", registry)
    assert module.base_id() == "boot 7"
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert module.base_id() == "boot 7"
    registry.boot = 8
    assert module.base_id() == "boot 8"


def test_without_its_number_windows_base_is_the_boot_rounded_to_ten_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    module = as_on("win32", clock, monkeypatch)
    monkeypatch.setitem(sys.modules, "winreg", Registry(None))
    booted_s, up_s = 1_800_000_000.0, 0.0
    monkeypatch.setattr(time, "time", lambda: booted_s + up_s)
    monkeypatch.setattr(time, "perf_counter", lambda: up_s)
    monkeypatch.setattr(time, "perf_counter_ns", lambda: round(up_s * 1e9))
    first = module.base_id()
    up_s = 86_400.5
    assert (module.base_id(), module.boot_us(1)) == (first, 86_400_500_001)
    booted_s += 86_400 + 601
    assert module.base_id() != first
