"""Which file systems a store refuses. The look of each system is tested on all, as far as they can load it."""

import ctypes
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mcpguard.errors import StoreUnavailable
from mcpguard.stores import filesystem
from mcpguard.stores.filesystem import network_mount
from tests.stores.conftest import as_on


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
