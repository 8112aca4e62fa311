"""Writes files of clients. A file has its old bytes or its new bytes, whenever the process is killed.

Before a file is changed, its bytes are saved in the folder of the backups. Only this account can read that folder, because
clients' files hold keys of servers. A backup is never overwritten and never deleted.
"""

import contextlib
import errno
import os
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from mcpguard import whole_files
from mcpguard.errors import McpguardError
from mcpguard.files import private_folder, read_at_once


class NotWritten(McpguardError):
    """A file was left as it is."""


def replace(path: Path, old: bytes | None, new: bytes, *, backups: Path) -> None:
    """Replace a file's content. The file keeps its mode, its owner and its attributes; a link to it stays a link.

    Args:
        path: The file.
        old: The content that the new one was made from; None if there is no file. Then its folder is created, too.
        new: The new content.
        backups: The folder of the backups.

    Raises:
        NotWritten: The file cannot be written, or its content is not `old`. It was left as it is. Or another program changed it
            right afterwards.
    """
    target = Path(os.path.realpath(path))

    def check() -> None:
        if _content(target) != old or Path(os.path.realpath(path)) != target:
            raise _changed(path)

    with _reported(path):
        if old is None:
            target.parent.mkdir(parents=True, exist_ok=True)
        else:
            whole_files.require_writable(target)
            _save(target, old, backups)
        whole_files.remove_leftovers(target)
        whole_files.replace(target, new, check=check)
    with contextlib.suppress(OSError):  # written, even if it cannot be read
        if _content(target) != new:
            raise NotWritten(f"{path}: another program has changed the file right afterwards", "quit it, then run this again")


def remove(path: Path, old: bytes, *, backups: Path) -> None:
    """Remove a file that mcpguard created.

    Raises:
        NotWritten: The file cannot be removed, or its content is not `old`. It was left as it is.
    """
    with _reported(path):
        _save(path, old, backups)
        if _content(path) != old:
            raise _changed(path)
        os.unlink(path)  # noqa: PTH108
        whole_files.sync_folder(path.parent)


@contextlib.contextmanager
def _reported(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        hint = _HINTS.get(error.errno or 0, "check that the file, its folder and mcpguard's own folder can be written to")
        raise NotWritten(f"{path}: not changed: {error.strerror or error}", hint) from error


_HINTS: Final = {
    errno.EINVAL: "check where the link leads",
    errno.ESTALE: whole_files.SWAPPED_HINT,
    errno.ETXTBSY: whole_files.IN_USE_HINT,
    errno.EACCES: "give your account the right to write to the file and to its folder",
    errno.EPERM: "if it belongs to another account, run this command as that account; else give the file a group of yours",
    errno.EROFS: "the file is on a read-only file system: edit the file that it is made from",
    errno.ENOSPC: "free some space on the disk, then run this again",
    errno.EDQUOT: "free some of your disk quota, then run this again",
    errno.EBUSY: "the file is a mount point, which cannot be replaced: edit the file on the other side",
}


def _changed(path: Path) -> NotWritten:
    return NotWritten(f"{path}: not changed, because another program has changed it just now", "run this again")


def _content(path: Path) -> bytes | None:
    try:
        return read_at_once(path)
    except FileNotFoundError:
        return None


def _save(path: Path, data: bytes, backups: Path) -> None:
    """Save a file's bytes in a new file with mode 0600, whose name has the time and the path.

    Raises:
        NotWritten: The file cannot be saved.
    """
    where = re.sub(r"[^\w.-]+", "-", str(path)).strip("-")[-150:]
    name = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(4)}-{where}"
    try:
        private_folder(backups)
        whole_files.replace(backups / name, data)
    except OSError as error:
        what = f"{path}: not changed, because no copy of it can be saved in {backups}: {error.strerror or error}"
        raise NotWritten(what, "check that this folder can be written to, and that the disk is not full") from error
