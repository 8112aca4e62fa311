"""What differs between systems: the machine's clock, the id of its start, and which file systems are refused.

The modules are loaded as each system loads them, as far as they can be.
"""

import contextlib
import ctypes
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import pytest

from mcpguard.errors import StoreUnavailable
from mcpguard.stores import clock, filesystem
from mcpguard.stores.filesystem import network_mount
from tests.stores.conftest import as_on


def test_the_machines_own_clock_runs_forward_and_has_a_base() -> None:
    for read in clock.boot_us, clock.monotonic_us:
        first = read()
        assert read() >= first > 0
    assert clock.base_id() == clock.base_id() != ""


class BootLibc:
    """The part of macOS' C library that names this boot."""

    def __init__(self, boot: bytes) -> None:
        self._boot = boot

    def sysctlbyname(self, name: bytes, buffer: Any, size: Any, new: None, new_size: int) -> int:
        room = ctypes.cast(size, ctypes.POINTER(ctypes.c_size_t)).contents.value
        assert (name, room, new, new_size) == (b"kern.bootsessionuuid", 64, None, 0)
        buffer.value = self._boot
        return 0 if self._boot else -1


@pytest.mark.posix
def test_macos_clock_counts_sleep_and_has_another_base_than_one_that_did_not(monkeypatch: pytest.MonkeyPatch) -> None:
    module = as_on("darwin", clock, monkeypatch)
    monkeypatch.setattr(time, "clock_gettime_ns", {time.CLOCK_MONOTONIC_RAW: 7_000_999}.__getitem__)
    assert (module.boot_us(), module.boot_us(5)) == (7_000, 7_005)
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: BootLibc(b"6A1D"))
    assert module.base_id() == "raw 6A1D"  # an older version wrote "6A1D"
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: BootLibc(b""))
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


@pytest.mark.posix
@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "9p"])
@pytest.mark.parametrize("point", ["/", "/srv/share", "/srv/a\\040share", "/srv/dépôt"])
def test_a_network_file_system_is_refused(tmp_path: Path, kind: str, point: str) -> None:
    table = f"21 1 8:1 / / rw - ext4 /dev/sda rw\n36 21 0:1 / {point} rw,noatime shared:1 - {kind} host:/x rw\n"
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_bytes(table.encode())
    folder = Path(point.replace("\\040", " ")) / "state"
    assert network_mount(str(folder), mountinfo) == kind


@pytest.mark.posix
@pytest.mark.parametrize("folder", ["/srv/shared", "/srv/share/local/state", "/home/alice"])
def test_a_local_file_system_beside_or_inside_a_network_one_is_accepted(tmp_path: Path, folder: str) -> None:
    table = (
        "21 1 8:1 / / rw - ext4 /dev/sda rw\n"
        "36 21 0:1 / /srv/share rw - nfs4 host:/x rw\n"
        "37 36 8:2 / /srv/share/local rw - ext4 /dev/sdb rw\n"
    )
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text(table)
    assert network_mount(folder, mountinfo) == ""


def test_without_a_table_of_mounts_nothing_is_refused(tmp_path: Path) -> None:
    assert network_mount("/srv", tmp_path / "missing") == ""


class Libc:
    """The part of macOS' C library that tells on what file system a folder is."""

    def __init__(self, kind: bytes, flags: int, *, has_old_name: bool, fails: bool = False) -> None:
        self._found = (kind, flags, fails)
        setattr(self, "statfs$INODE64" if has_old_name else "statfs", self._statfs)

    def _statfs(self, path: bytes, found: Any) -> int:
        kind, flags, fails = self._found
        assert path == b"/Volumes/team/state"
        place = ctypes.cast(found, ctypes.POINTER(ctypes.c_char))
        for at, data in (64, flags.to_bytes(4, "little")), (72, kind + b"\0"):  # as sys/mount.h has them
            for n, byte in enumerate(data):
                place[at + n] = byte
        return -1 if fails else 0


LOCAL = 0x1000  # MNT_LOCAL
OTHERS = 0x0480_8010


def on_macos(monkeypatch: pytest.MonkeyPatch, libc: object = None) -> Any:
    """The module as macOS loads it."""
    monkeypatch.setattr(ctypes, "CDLL", lambda name: libc)
    return as_on("darwin", filesystem, monkeypatch)


@pytest.mark.posix
@pytest.mark.parametrize("has_old_name", [False, True])
@pytest.mark.parametrize(
    ("kind", "flags", "found"),
    [(b"smbfs", OTHERS, "smbfs"), (b"nfs", 0, "nfs"), (b"apfs", OTHERS | LOCAL, ""), (b"hfs", LOCAL, "")],
)
def test_on_macos_a_volume_that_is_not_local_is_refused(
    monkeypatch: pytest.MonkeyPatch, kind: bytes, flags: int, found: str, *, has_old_name: bool
) -> None:
    module = on_macos(monkeypatch, Libc(kind, flags, has_old_name=has_old_name))
    assert ctypes.sizeof(module._Statfs) == 2168  # what the system writes
    assert module.network_volume("/Volumes/team/state") == found
    monkeypatch.setattr(module.os.path, "realpath", lambda _: "/Volumes/team/state")
    if found:
        with pytest.raises(StoreUnavailable, match=rf"^state lies on a network file system \({found}\)$"):
            module.refuse_network("state")
    else:
        module.refuse_network("state")


@pytest.mark.posix
def test_on_macos_a_folder_of_which_nothing_is_known_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    module = on_macos(monkeypatch, Libc(b"smbfs", 0, has_old_name=False, fails=True))
    assert module.network_volume("/Volumes/team/state") == ""


@pytest.mark.posix
@pytest.mark.parametrize(
    "folder",
    [
        "/Users/a/Library/Mobile Documents/com~apple~CloudDocs",
        "/Users/a/library/mobile documents",
        "/Users/a/Library/CloudStorage/Dropbox/state",
    ],
)
def test_on_macos_a_folder_in_a_cloud_is_refused_however_it_is_written(monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    assert on_macos(monkeypatch).network_volume(folder) == "a folder that is synchronized with a cloud"


def test_on_windows_a_path_to_another_machine_and_a_drive_for_one_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    module = as_on("win32", filesystem, monkeypatch)
    kernel32 = SimpleNamespace(GetVolumePathNameW=lambda *_: 0, GetDriveTypeW=lambda root: 4 if root.value[0] == "N" else 3)
    monkeypatch.setattr(ctypes, "WinDLL", lambda _: kernel32, raising=False)
    assert [module.network_drive(folder) for folder in (r"\\server\share", r"N:\team", r"C:\team", r"\\?\C:\team")] == [
        "a network drive",
        "a network drive",
        "",
        "",
    ]
