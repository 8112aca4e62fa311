"""Whether a database is whole. One that is damaged is reported and left as it is: never made anew, never written to.

Nothing here opens the file: to close it again would drop the locks of every connection that the process has on it.
"""

import contextlib
import sqlite3
from pathlib import Path
from typing import Final

from mcpguard.errors import StoreUnavailable

_suspects: Final[set[Path]] = set()
"""Files that this process has found damaged: before they are used again all of them is looked at."""

_kept: Final[dict[tuple[int, int], sqlite3.Connection]] = {}
"""For each damaged file, by device and inode, the connection that is not closed."""


def let_go(db: sqlite3.Connection, path: Path) -> None:
    """Close a connection. Of a damaged file one stays open until the process ends: the last to close writes the log into it."""
    with contextlib.suppress(sqlite3.Error, OSError):
        if path in _suspects and _kept.setdefault(identity(path), db) is db:
            _keep_for_ever(db)
        else:
            db.close()


def _keep_for_ever(db: sqlite3.Connection) -> None:
    """See to it that the interpreter does not close a connection when it ends: it would clear `_kept`, too."""
    with contextlib.suppress(ImportError):  # a Python built without it
        import ctypes  # for a damaged file only

        ctypes.pythonapi.Py_IncRef(ctypes.py_object(db))


def identity(path: Path) -> tuple[int, int]:
    """What tells a file from another that has taken its place."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return (0, 0)
    return (stat.st_dev, stat.st_ino)


def damaged(path: Path, how: str) -> StoreUnavailable:
    """What the user is told of a damaged file."""
    _suspects.add(path)
    return StoreUnavailable(f"{path} is damaged: {how}", "move it away: a new one is made, with new counters")


def check_file(path: Path, *, made: bool) -> None:
    """Look at a file before it is opened. The caller holds the queue lock.

    Args:
        path: The file, which exists.
        made: Whether it has been a database before.

    Raises:
        StoreUnavailable: It was one, and is empty.
    """
    if made and path.stat().st_size == 0:
        raise damaged(path, "it is empty")


def check_pages(db: sqlite3.Connection, path: Path) -> None:
    """Look at a database before it is used; at all of it where there is a reason to.

    Raises:
        StoreUnavailable: It is damaged.
        sqlite3.DatabaseError: Likewise.
    """
    pages, page_bytes = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
    there_bytes = size_bytes(path) + log_bytes(path)
    if path in _suspects or pages * page_bytes > there_bytes:
        (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise damaged(path, found.splitlines()[-1])
        _suspects.discard(path)


def size_bytes(path: Path) -> int:
    """A file's size; 0 if it is not there. A database's only grows."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def log_bytes(path: Path) -> int:
    """The size of a database's write-ahead log; 0 if it has none."""
    return size_bytes(path.with_name(path.name + "-wal"))
