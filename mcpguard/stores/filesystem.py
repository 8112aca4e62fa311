"""Refuses file systems on which the files of a store are not safe."""

import os
import re
from typing import Final

from mcpguard.errors import StoreUnavailable
from mcpguard.files import StrPath, read_at_once

_NETWORK: Final = frozenset(
    "9p afs beegfs ceph cifs drvfs fuse.glusterfs fuse.sshfs glusterfs gpfs lustre ncpfs nfs nfs4 smb3 smbfs".split()
)


def refuse_network(folder: StrPath, table: StrPath = "/proc/self/mountinfo") -> None:
    """Refuse a folder on a network file system, whose locks and shared memory do not work between machines.

    Args:
        folder: A folder that exists.
        table: Linux's table of mounts. Other systems have none, and nothing is refused there.

    Raises:
        StoreUnavailable: The folder is on a network file system.
    """
    try:
        mounts = read_at_once(table).decode(errors="replace").splitlines()
    except OSError:
        return
    inside = f"{os.path.realpath(folder)}/"
    kind, longest = "", -1
    for mount in mounts:
        left, _, right = mount.partition(" - ")
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), left.split(" ")[4])
        if len(point) >= longest and inside.startswith(point.rstrip("/") + "/"):
            kind, longest = right.split(" ")[0], len(point)
    if kind in _NETWORK:
        raise StoreUnavailable(
            f"{folder} lies on a network file system ({kind})",
            "name a local file with --store, or use Redis to share counters between machines",
        )
