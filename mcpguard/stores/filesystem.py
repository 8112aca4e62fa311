"""The file systems that a store's files can lie on."""

import re
from pathlib import Path
from typing import Final

from mcpguard.errors import StoreUnavailable

_NETWORK: Final = frozenset(
    "9p afs beegfs ceph cifs drvfs fuse.glusterfs fuse.sshfs glusterfs gpfs lustre ncpfs nfs nfs4 smb3 smbfs".split()
)


def refuse_network(folder: Path, table: Path = Path("/proc/self/mountinfo")) -> None:
    """Refuse a folder on a file system whose locks and shared memory are not those of one machine.

    Args:
        folder: It exists.
        table: Linux's table of mounts; elsewhere there is none, and SQLite's own locks have to tell.

    Raises:
        StoreUnavailable: It is on such a file system.
    """
    try:
        mounts = table.read_text(errors="replace").splitlines()
    except OSError:
        return
    inside = f"{folder.resolve()}/"
    kind, longest = "", -1
    for mount in mounts:
        left, _, right = mount.partition(" - ")
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), left.split(" ")[4])
        if len(point) >= longest and inside.startswith(point.rstrip("/") + "/"):
            kind, longest = right.split(" ")[0], len(point)
    if kind in _NETWORK:
        raise StoreUnavailable(
            f"{folder} lies on a network file system ({kind})",
            "counters that machines share belong into Redis; here, name a local file with --store",
        )
