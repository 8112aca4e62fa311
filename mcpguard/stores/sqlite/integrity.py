"""Whether a database is whole. One that is damaged is reported and left as it is: never made anew, never written to.

Nothing here opens the file: to close it again would drop the locks of every connection that the process has on it.
"""

import sqlite3
from pathlib import Path
from typing import Final

from mcpguard.errors import StoreUnavailable

_suspects: Final[set[Path]] = set()
"""Files that this process has found damaged: before they are used again all of them is looked at."""


def identity(path: Path) -> tuple[int, int]:
    """What tells a file from another that has taken its place."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return (0, 0)
    return (stat.st_dev, stat.st_ino)


class DamagedError(StoreUnavailable):
    """A file is damaged: what it holds cannot be relied on."""


def damaged(path: Path, how: str) -> DamagedError:
    """What the user is told of a damaged database."""
    _suspects.add(path)
    return DamagedError(f"{path} is damaged: {how}", "move it away: a new one is made, with new counters")


def check_pages(db: sqlite3.Connection, path: Path) -> None:
    """Look at a database before it is used; at all of it where there is a reason to.

    Raises:
        StoreUnavailable: It is damaged.
        sqlite3.DatabaseError: Likewise.
    """
    size = size_bytes(path)
    if not size:
        raise damaged(path, "it is empty")
    pages, page_bytes = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
    if path in _suspects or pages * page_bytes > size:
        (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise damaged(path, found.splitlines()[-1])
        _suspects.discard(path)


def size_bytes(path: Path) -> int:
    """A file's size; 0 if it is not there."""
    try:
        return path.stat().st_size
    except OSError:
        return 0
