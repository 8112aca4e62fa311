"""The database's schema, as numbered migrations that lose nothing.

Never edit a released step: files that have passed it would not get the change.
"""

import _sqlite3 as sqlite3

from mcpguard.errors import StoreUnavailable
from mcpguard.files import StrPath, is_there
from mcpguard.light_typing import Final
from mcpguard.stores.sqlite import database
from mcpguard.stores.sqlite.call_log import log_path

PAGE_BYTES: Final = 4096

STEPS: Final = (
    """
    -- the store's key, the position of the call log up to which all records are here (end, row, checksum), and pruned_us
    CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
    -- id: a hash of the label, which says what is counted. last_us: the start of the log's newest entry, in store time
    CREATE TABLE counter (
        id INTEGER PRIMARY KEY, window_us INTEGER NOT NULL, label TEXT NOT NULL, last_us INTEGER NOT NULL, log BLOB NOT NULL
    );
    -- bytes: about how many of the file its audit rows take
    CREATE TABLE namespace (
        id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, bytes INTEGER NOT NULL DEFAULT 0, keep_us INTEGER, max_bytes INTEGER
    );
    -- JSON that audit rows share. id: its hash. namespace: set for the context of a row, NULL for the limit that decided
    CREATE TABLE fragment (id INTEGER PRIMARY KEY, json TEXT NOT NULL, namespace INTEGER, uses INTEGER NOT NULL);
    CREATE TABLE audit (
        id INTEGER PRIMARY KEY, namespace INTEGER NOT NULL, time_us INTEGER NOT NULL, seq INTEGER NOT NULL,
        decision TEXT NOT NULL, context INTEGER NOT NULL, reported INTEGER, request_id TEXT, args_hash BLOB, trace_id TEXT,
        counted INTEGER, remaining INTEGER, retry_after_ms INTEGER, repeats INTEGER, detail TEXT,
        outcome TEXT, duration_us INTEGER
    );
    CREATE INDEX audit_of_namespace ON audit (namespace, id);
    -- which agent makes a call, as a hook noted. noted_us: in wall-clock time
    CREATE TABLE agent_note (
        namespace TEXT NOT NULL, tool_use_id TEXT NOT NULL, agent TEXT NOT NULL, noted_us INTEGER NOT NULL,
        PRIMARY KEY (namespace, tool_use_id)
    ) WITHOUT ROWID;
    -- the write-backs that were counted. once: the write-back id, which must not be counted again
    CREATE TABLE adopted (once TEXT PRIMARY KEY, time_us INTEGER NOT NULL) WITHOUT ROWID
    """,
    """
    -- the places that calls in flight hold. counter, label: of the cap. call: the id of the call's row, or a negative number
    -- if the call was admitted without the store. owner: the process, named by a file that it keeps locked
    CREATE TABLE in_flight (
        counter INTEGER NOT NULL, call INTEGER NOT NULL, owner TEXT NOT NULL, label TEXT NOT NULL, PRIMARY KEY (counter, call)
    ) WITHOUT ROWID
    """,
)

_PREVIEWS: Final = 3
"""Schema versions of unreleased programs."""

VERSION: Final = _PREVIEWS + len(STEPS)


def require_schema(db: sqlite3.Connection, path: StrPath) -> int:
    """The version of a file's schema; 0 if it is new.

    Raises:
        StoreUnavailable: Another program, a later version of mcpguard, or an unreleased one wrote the file.
    """
    # In one statement, because another process may be creating the store
    question = "SELECT user_version, EXISTS (SELECT 1 FROM sqlite_master) FROM pragma_user_version"
    found, has_tables = map(int, db.execute(question).fetchone())
    if not found and has_tables and not is_there(log_path(path)):
        raise database.no_store(path, database.OF_ANOTHER)  # each store has a call log
    if found > VERSION:
        raise StoreUnavailable(
            f"{path} has schema {found}, and this mcpguard knows schemas up to {VERSION}",
            "use the mcpguard that wrote it, or another file",
        )
    if 0 < found <= _PREVIEWS:
        raise StoreUnavailable(f"{path} was written by an unreleased preview of mcpguard", "move it away: a new one is made")
    return found


def migrate(db: sqlite3.Connection, path: StrPath) -> None:
    """Bring a file to the newest schema, in one step for readers. The caller holds the store's lock.

    Args:
        db: A connection in autocommit mode.
        path: The file.

    Raises:
        StoreUnavailable: See `require_schema`.
    """
    found = require_schema(db, path)
    if not found:
        db.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        db.execute("PRAGMA auto_vacuum = INCREMENTAL")  # pruning can then free disk space in small steps
    steps = STEPS[max(0, found - _PREVIEWS) :]
    if not steps:
        return
    with database.writing(db):
        for statement in ";".join(steps).split(";"):
            if statement.strip():
                db.execute(statement)
        db.execute(f"PRAGMA user_version = {max(found, _PREVIEWS) + len(steps)}")
