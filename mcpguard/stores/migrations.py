"""The SQLite schema, as numbered steps that lose nothing.

Step n brings a file from version n - 1 to n. A released step is never edited: a file that has it will not see the edit.
"""

import sqlite3
from typing import Final

from mcpguard.errors import StoreUnavailable

STEPS: Final = (
    """
    CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
    -- id: a hash of the label, which says what is counted
    CREATE TABLE counter (id INTEGER PRIMARY KEY, label TEXT NOT NULL, window_us INTEGER NOT NULL);
    CREATE TABLE state (id INTEGER PRIMARY KEY, last_us INTEGER NOT NULL, log BLOB NOT NULL);
    -- id: a hash of the JSON, which many audit rows share
    CREATE TABLE fragment (id INTEGER PRIMARY KEY, json TEXT NOT NULL);
    CREATE TABLE audit (
        id INTEGER PRIMARY KEY, time_us INTEGER NOT NULL, seq INTEGER NOT NULL, decision TEXT NOT NULL,
        context INTEGER NOT NULL, reported INTEGER, request_id TEXT, args_hash BLOB, trace_id TEXT, counted INTEGER,
        remaining INTEGER, retry_after_ms INTEGER, repeats INTEGER, detail TEXT
    );
    CREATE TABLE outcome (id INTEGER PRIMARY KEY, outcome TEXT NOT NULL, duration_us INTEGER NOT NULL);
    """,
    # A program that knows only the first step and has the file open must not go on counting in the old place: it gets no such
    # table, and is refused when it opens the file again
    """
    ALTER TABLE state RENAME TO snapshot;
    -- what the snapshot lacks is in the rows after it
    INSERT INTO meta SELECT 'folded', coalesce(max(id), 0) FROM audit;
    -- charged: the fragment that lists what was charged, 0 in a barrier, which has no context either
    ALTER TABLE audit ADD COLUMN charged_us INTEGER;
    ALTER TABLE audit ADD COLUMN charged INTEGER
    """,
    """
    -- which agent makes a call, as a hook noted it in wall-clock time
    CREATE TABLE agent_note (
        namespace TEXT NOT NULL, tool_use_id TEXT NOT NULL, agent TEXT NOT NULL, noted_us INTEGER NOT NULL,
        PRIMARY KEY (namespace, tool_use_id)
    ) WITHOUT ROWID;
    """,
)

VERSION: Final = len(STEPS)


def migrate(db: sqlite3.Connection, *, path: str, stop_before: int | None = None) -> None:
    """Bring a file up to this program's schema. The caller holds the queue lock.

    Args:
        db: A connection in autocommit mode.
        path: How an error names the file.
        stop_before: For tests: leave out this step and all after it.

    Raises:
        StoreUnavailable: The file was written by a later program.
    """
    found = db.execute("PRAGMA user_version").fetchone()[0]
    if found > VERSION:
        raise StoreUnavailable(
            f"{path} has schema {found}, and this mcpguard knows schemas up to {VERSION}",
            "use the mcpguard that wrote it, or another file",
        )
    for number, step in enumerate(STEPS[found:stop_before], found + 1):
        db.execute("BEGIN IMMEDIATE")
        try:
            for statement in step.split(";"):
                if statement.strip():
                    db.execute(statement)
            db.execute(f"PRAGMA user_version = {number}")
            db.execute("COMMIT")
        except BaseException:
            db.execute("ROLLBACK")
            raise
