"""Notes of which agent makes which call, in an SQLite store: taken by a hook before the call, read when it comes.

A hook is a process that lives for a moment before each call. It needs nothing of a store but this table, so it writes there
without opening the whole of it. Times are wall-clock times, and a wall clock may be set back: a note from the future is old.
"""

import contextlib
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from mcpguard.core.claude_code import NOTE_KEPT_US, AgentNote
from mcpguard.stores.queue import queue_of

_BATCH: Final = 500


def leave(path: Path, namespace: str, note: AgentNote, *, wall_us: int, timeout_s: float) -> bool:
    """Write a note into a file that is a store already.

    Args:
        path: The file; one that is missing is not made.
        namespace: Only wrappers of this namespace see the note.
        note: The note.
        wall_us: Wall-clock time.
        timeout_s: How long to wait, for the queue and for the database together.

    Returns:
        Whether it was written; it is not if the queue took too long.

    Raises:
        OSError, sqlite3.Error: The file is missing, is no store, is of an older program, or cannot be written.
    """
    deadline_s = time.monotonic() + timeout_s
    path.stat()  # before the queue's file is made beside it
    with contextlib.closing(queue_of(path)) as queue:
        if not queue.acquire(timeout_s):
            return False
        try:
            uri = f"{path.absolute().as_uri()}?mode=rw"
            left_s = max(0.0, deadline_s - time.monotonic())
            with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=left_s, isolation_level=None)) as db:
                db.execute("PRAGMA synchronous = NORMAL")
                db.execute("PRAGMA wal_autocheckpoint = 0")  # that is the wrappers' upkeep
                db.execute("BEGIN IMMEDIATE")
                write(db, namespace, note, wall_us=wall_us)
                db.execute("COMMIT")
        finally:
            queue.release()
    return True


def write(db: sqlite3.Connection, namespace: str, note: AgentNote, *, wall_us: int) -> None:
    """Write a note and drop those that are too old, in the caller's transaction."""
    prune(db, wall_us=wall_us)
    db.execute("INSERT OR REPLACE INTO agent_note VALUES (?, ?, ?, ?)", (namespace, *note, wall_us))


def read(db: sqlite3.Connection, namespace: str, tool_use_ids: Sequence[str], *, wall_us: int) -> dict[str, str]:
    """The agents noted for these calls that are not too old, by id."""
    found: dict[str, str] = {}
    for at in range(0, len(tool_use_ids), _BATCH):
        some = tool_use_ids[at : at + _BATCH]
        marks = ",".join("?" * len(some))
        found |= db.execute(
            f"SELECT tool_use_id, agent FROM agent_note WHERE namespace = ? AND tool_use_id IN ({marks})"  # noqa: S608
            " AND noted_us BETWEEN ? AND ?",
            (namespace, *some, wall_us - NOTE_KEPT_US, wall_us + NOTE_KEPT_US),
        ).fetchall()
    return found


def prune(db: sqlite3.Connection, *, wall_us: int) -> None:
    """Drop the notes that are too old; also those from a future that a wall clock was set back from."""
    db.execute("DELETE FROM agent_note WHERE noted_us NOT BETWEEN ? AND ?", (wall_us - NOTE_KEPT_US, wall_us + NOTE_KEPT_US))
