"""Files and folders that are nobody else's business, on a disk of this machine."""

import contextlib
import errno
import os
import re
import stat
import sys
from pathlib import Path
from typing import Final

from mcpguard.core.redaction import holds_token
from mcpguard.errors import ConfigError, StoreUnavailable

_NETWORK: Final = frozenset(
    "9p afs beegfs ceph cifs drvfs fuse.glusterfs fuse.sshfs glusterfs gpfs lustre ncpfs nfs nfs4 smb3 smbfs".split()
)


def named_path(name: str, *, where: str) -> Path:
    """The absolute path of what somebody named; a ~ in front is a home folder.

    Args:
        name: As it was written.
        where: The setting, option or variable that it stands in.

    Raises:
        ConfigError: There is no such folder to begin at, or this is a token, which is not repeated then.
    """
    if holds_token(name):
        hint = "write the token into a file that only you can read, and name that file"
        raise ConfigError(f"{where} holds a token where a path belongs", hint)
    try:
        return Path(name).expanduser().absolute()
    except (RuntimeError, OSError) as error:  # no such account, one without a home, or a working folder that is gone
        raise ConfigError(f"{where}: the folder that {name} begins at is not known", "write the whole path") from error


def read_at_once(path: Path, max_bytes: int = -1) -> bytes:
    """What a file holds, or its beginning. A named pipe is refused: it could be waited for without end.

    Raises:
        OSError: It cannot be read.
    """
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if stat.S_ISFIFO(mode):
            raise OSError(errno.EINVAL, "a pipe, not a file", str(path))
        with open(fd, "rb", closefd=False) as file:
            return file.read(max_bytes)
    finally:
        os.close(fd)


def open_private(path: Path) -> int:
    """A file descriptor for reading and writing; a new file has mode 0600 whatever the umask."""
    flags = os.O_RDWR | getattr(os, "O_CLOEXEC", 0)
    try:
        return os.open(path, flags)
    except FileNotFoundError:
        fd = os.open(path, flags | os.O_CREAT, 0o600)
        if sys.platform != "win32":
            os.fchmod(fd, 0o600)
        return fd


def private_folder(folder: Path) -> None:
    """Make a folder, and those above it, of mode 0700 whatever the umask; one that exists is left as it is."""
    if folder.is_dir():
        return
    private_folder(folder.parent)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
        folder.chmod(0o700)


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
