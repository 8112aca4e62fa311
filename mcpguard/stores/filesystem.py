"""Refuses file systems on which the files of a store are not safe."""

import os
import sys

from mcpguard.errors import StoreUnavailable
from mcpguard.files import StrPath, read_at_once
from mcpguard.light_typing import Final

_NETWORK: Final = frozenset(
    "9p afs beegfs ceph cifs drvfs fuse.glusterfs fuse.sshfs glusterfs gpfs lustre ncpfs nfs nfs4 smb3 smbfs".split()
)

_CLOUD: Final = ("/library/mobile documents/", "/library/cloudstorage/")
"""Where macOS keeps what it synchronizes: iCloud's folder, and those of other services. A file there may be replaced, or be
moved into the cloud, while it is in use."""


def refuse_network(folder: StrPath) -> None:
    """Refuse a folder on a network file system, whose locks and shared memory do not work between machines.

    Args:
        folder: A folder that exists.

    Raises:
        StoreUnavailable: The folder is on a network file system.
    """
    if sys.platform == "win32":
        kind = network_drive(os.path.realpath(folder))
    elif sys.platform == "darwin":
        kind = network_volume(os.path.realpath(folder))
    else:
        kind = network_mount(os.path.realpath(folder))
    if kind:
        raise StoreUnavailable(
            f"{folder} lies on a network file system ({kind})",
            "name a local file with --store, or use Redis to share counters between machines",
        )


def network_mount(folder: str, table: StrPath = "/proc/self/mountinfo") -> str:
    """The kind of the network file system that a folder is on; empty if it is on a local one, or nothing can be known.

    Args:
        folder: An absolute path without links.
        table: Linux's table of mounts.
    """
    import re

    try:
        mounts = read_at_once(table).decode(errors="replace").splitlines()
    except OSError:
        return ""
    kind, longest = "", -1
    for mount in mounts:
        left, _, right = mount.partition(" - ")
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), left.split(" ")[4])
        if len(point) >= longest and f"{folder}/".startswith(point.rstrip("/") + "/"):
            kind, longest = right.split(" ")[0], len(point)
    return kind if kind in _NETWORK else ""


if sys.platform == "win32":
    import ctypes

    _DRIVE_REMOTE: Final = 4

    def network_drive(folder: str) -> str:
        r"""As `network_mount`, for a drive that stands for a network folder, and for a path such as `\\server\share`."""
        kernel32 = ctypes.WinDLL("kernel32")
        root = ctypes.create_unicode_buffer(len(folder) + 2)
        if not kernel32.GetVolumePathNameW(folder, root, len(root)):
            root.value = folder
        is_remote = folder.startswith("\\\\") and not folder.startswith(("\\\\?\\", "\\\\.\\"))
        return "a network drive" if is_remote or kernel32.GetDriveTypeW(root) == _DRIVE_REMOTE else ""


if sys.platform == "darwin":
    import ctypes

    _MNT_LOCAL: Final = 0x1000

    class _Statfs(ctypes.Structure):
        """`struct statfs` with 64-bit inodes, of sys/mount.h."""

        _fields_ = (
            ("sizes", ctypes.c_uint32 * 2),
            ("counts", ctypes.c_uint64 * 5),
            ("fsid", ctypes.c_int32 * 2),
            ("owner", ctypes.c_uint32),
            ("type", ctypes.c_uint32),
            ("flags", ctypes.c_uint32),
            ("subtype", ctypes.c_uint32),
            ("kind", ctypes.c_char * 16),
            ("rest", ctypes.c_char * (2 * 1024 + 8 * 4)),
        )

    def network_volume(folder: str) -> str:
        """As `network_mount`, also for a folder that a service synchronizes with its cloud."""
        if any(cloud in f"{folder.lower()}/" for cloud in _CLOUD):
            return "a folder that is synchronized with a cloud"
        libc = ctypes.CDLL(None)
        statfs = getattr(libc, "statfs$INODE64", None) or libc.statfs  # on ARM there is only one
        found = _Statfs()
        if statfs(os.fsencode(folder), ctypes.byref(found)) or found.flags & _MNT_LOCAL:
            return ""
        return found.kind.decode(errors="replace")
