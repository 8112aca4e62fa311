"""Checks that a database is not damaged. A damaged one is reported and never written to.

Nothing here opens the file: closing it again would release all POSIX locks that the process's connections have on it.
"""

import os
import sqlite3
from typing import Final

from mcpguard.errors import StoreDamaged, StoreUnavailable
from mcpguard.files import StrPath, size_bytes

EMPTY: Final = "it is empty"

_suspects: Final[set[str]] = set()
"""Files that this process found damaged. They are checked in full before they are used again."""


def identity(path: StrPath) -> tuple[int, int]:
    """A value by which a replaced file is detected."""
    try:
        stat = os.stat(path)
    except FileNotFoundError:
        return (0, 0)
    return (stat.st_dev, stat.st_ino)


def replaced(path: StrPath) -> StoreUnavailable:
    """The error for a database that was open and is no longer at its path."""
    return StoreUnavailable(f"{path} was removed or replaced", "leave it in place: its counters are lost")


def damaged(path: StrPath, how: str, condition: str = "") -> StoreDamaged:
    """The error for a damaged database.

    Args:
        path: The database.
        how: What is wrong with it.
        condition: Begins the hint, which says to move the file away.
    """
    _suspects.add(os.fspath(path))
    return StoreDamaged(f"{path} is damaged: {how}", f"{condition}move it away: a new one is made, with new counters")


def check_pages(db: sqlite3.Connection, path: StrPath) -> None:
    """Check a database before it is used: its size always, every page only if there is a suspicion.

    Raises:
        StoreUnavailable, sqlite3.DatabaseError: It is damaged.
    """
    size = size_bytes(path)
    if not size:
        raise damaged(path, EMPTY)
    pages, page_bytes = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
    if os.fspath(path) in _suspects or pages * page_bytes > size:
        (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise damaged(path, found.splitlines()[-1])
        _suspects.discard(os.fspath(path))
