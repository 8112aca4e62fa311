"""The SQLite database behind the call log: its schema, counters, audit rows and agent notes.

No call writes to it. Only the process with the store's lock does, and stores the log's position in the same transaction. It
uses a rollback journal, not WAL: a truncated `-shm` file, which is mapped, would kill every reader (SIGBUS).
"""

import _sqlite3 as sqlite3
import contextlib
import errno
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence

from mcpguard.errors import LOOK_AT_LIMITS, StoreDamaged, StoreUnavailable
from mcpguard.files import StrPath, size_bytes
from mcpguard.light_typing import Final, TypeVar
from mcpguard.limiter.sliding import State
from mcpguard.stores.sqlite.call_log import START, Position, beside, log_path
from mcpguard.stores.sqlite.memory import Memory, unpack_log
from mcpguard.stores.sqlite.places import Place

BUSY_S: Final = 2.0
"""How long a connection waits for another one's lock."""

_CREATION_S: Final = 0.5
_CREATION_LOOK_S: Final = 0.01
"""How long a reader waits for the tables of a store that is being created, and how often it looks for them."""

_LOOK_S: Final = 0.05
"""How long a look waits that tells whether a database is locked. A transaction of a usual program is shorter."""

_BATCH: Final = 500
_NO_ROOM: Final = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
_NO_DESCRIPTOR: Final = (errno.EMFILE, errno.ENFILE)
_EMPTY: Final = "it is empty"
OF_ANOTHER: Final = "another program made this database"
_T = TypeVar("_T")

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
    CREATE TABLE adopted (once TEXT PRIMARY KEY, time_us INTEGER NOT NULL) WITHOUT ROWID;
    -- the places that calls in flight hold. counter, label: of the cap. call: the id of the call's row, or a negative number
    -- if the call was admitted without the store. owner: the process, named by a file that it keeps locked
    CREATE TABLE in_flight (
        counter INTEGER NOT NULL, call INTEGER NOT NULL, owner TEXT NOT NULL, label TEXT NOT NULL, PRIMARY KEY (counter, call)
    ) WITHOUT ROWID
    """,
)
"""The schema, as numbered migrations that lose nothing. Never edit a released step: files that have passed it would not get the
change."""

_PREVIEWS: Final = 4
"""Schema versions of unreleased programs."""

VERSION: Final = _PREVIEWS + len(STEPS)

_suspects: Final[set[str]] = set()
"""Files that this process found damaged. They are checked in full before they are used again."""


def connect(path: StrPath, *, mode: str = "rw", timeout_s: float = BUSY_S) -> sqlite3.Connection:
    """A connection to a database that exists.

    Args:
        path: The file.
        mode: How SQLite opens it.
        timeout_s: How long each statement waits for another process.

    Raises:
        sqlite3.Error: It cannot be opened.
    """
    uri = f"{_uri(os.path.realpath(path))}?mode={mode}"
    db = sqlite3.connect(uri, uri=True, timeout=timeout_s, isolation_level=None, check_same_thread=False)
    db.execute("PRAGMA mmap_size = 0")  # reading a truncated mapped file would kill the process
    db.execute("PRAGMA fullfsync = ON")  # as `files.force` on macOS; elsewhere it changes nothing
    return db


@contextlib.contextmanager
def readable(path: StrPath) -> Iterator[sqlite3.Connection]:
    """A transaction that reads a database, also while another program has locked it, as long as that one changes nothing.

    Raises:
        sqlite3.Error: It cannot be read, or is being changed.
    """
    with contextlib.closing(connect(path, timeout_s=_LOOK_S)) as db:
        try:
            db.execute("SELECT 1 FROM sqlite_schema LIMIT 1")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
        else:
            with reading(db):
                yield db
            return
    # A program that changes a database makes a journal before, and changes the file's times
    before = _unchanged(path)
    with contextlib.closing(connect(path, mode="ro&immutable=1")) as db:
        yield db
    if before is None or before != _unchanged(path):
        raise sqlite3.OperationalError("database is locked")


def _unchanged(path: StrPath) -> tuple[int, int, int] | None:
    """What tells whether a file was changed; None while it is being changed."""
    if size_bytes(beside(path, "-journal")) or size_bytes(beside(path, "-wal")):
        return None
    found = os.stat(path)
    return found.st_ino, found.st_size, found.st_mtime_ns


def _uri(name: str) -> str:
    """The URI of a file for SQLite.

    >>> _uri("/srv/50%/a?b#c.db"), _uri("C:/srv/a.db")
    ('file:///srv/50%25/a%3fb%23c.db', 'file:///C:/srv/a.db')
    """
    name = name.replace("\\", "/") if sys.platform == "win32" else name
    for char in "%?#":
        name = name.replace(char, f"%{ord(char):02x}")
    return f"file://{name}" if name.startswith("/") else f"file:///{name}"


@contextlib.contextmanager
def writing(db: sqlite3.Connection) -> Iterator[None]:
    """A transaction that writes."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:  # a commit can fail, too
        with contextlib.suppress(sqlite3.Error):
            db.execute("ROLLBACK")
        raise


@contextlib.contextmanager
def reading(db: sqlite3.Connection) -> Iterator[None]:
    """A transaction that reads one state of the database."""
    db.execute("BEGIN")
    try:
        yield
    finally:
        with contextlib.suppress(sqlite3.Error):  # SQLite has done it already after some errors, and the caller reports those
            db.execute("ROLLBACK")


def require_schema(db: sqlite3.Connection, path: StrPath) -> int:
    """The version of a file's schema; 0 if it is new.

    Raises:
        StoreUnavailable: Another program, a later version of mcpguard, or an unreleased one wrote the file.
    """
    # In one statement, because another process may be creating the store
    question = "SELECT user_version, EXISTS (SELECT 1 FROM sqlite_master) FROM pragma_user_version"
    found, has_tables = map(int, db.execute(question).fetchone())
    if not found and has_tables:
        raise no_store(path, OF_ANOTHER)
    if found > VERSION:
        raise StoreUnavailable(
            f"{path} has schema {found}, and this mcpguard knows schemas up to {VERSION}",
            "use the mcpguard that wrote it, or another file",
        )
    if 0 < found <= _PREVIEWS:
        raise StoreUnavailable(f"{path} was written by an unreleased preview of mcpguard", "move it away: a new one is made")
    return found


def await_schema(db: sqlite3.Connection, path: StrPath) -> None:
    """Wait until the process that is creating a store has made its tables, all of which come at once.

    Raises:
        StoreUnavailable: See `require_schema`; or there are no tables after half a second.
    """
    until_s = time.monotonic() + _CREATION_S
    while not require_schema(db, path):
        if time.monotonic() > until_s:
            raise damaged(path, _EMPTY)
        time.sleep(_CREATION_LOOK_S)


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
    with writing(db):
        for statement in ";".join(steps).split(";"):
            if statement.strip():
                db.execute(statement)
        db.execute(f"PRAGMA user_version = {max(found, _PREVIEWS) + len(steps)}")


def position(db: sqlite3.Connection) -> Position:
    """The position of the log up to which the database has all records."""
    found = dict(db.execute("SELECT key, value FROM meta WHERE key IN ('end', 'row', 'checksum')").fetchall())
    return Position(found["end"], found["row"], bytes(found["checksum"])) if found else START


def set_position(db: sqlite3.Connection, at: Position) -> None:
    """Store that position, in the transaction that wrote the records before it."""
    db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", list(at._asdict().items()))


def key(db: sqlite3.Connection) -> bytes | None:
    """The store's key, if the database has one already."""
    found = db.execute("SELECT value FROM meta WHERE key = 'key'").fetchone()
    return bytes(found[0]) if found else None


def begin(db: sqlite3.Connection, value: bytes, at: Position) -> None:
    """Store the key and the position of a call log in a new database."""
    with writing(db):
        db.execute("INSERT INTO meta VALUES ('key', ?)", (value,))
        set_position(db, at)


def load(db: sqlite3.Connection) -> Memory:
    """The counters, places and notes."""
    places = db.execute("SELECT counter, call, owner, label FROM in_flight ORDER BY call")
    memory = Memory(_logs(db.execute("SELECT id, window_us, log FROM counter")), map(Place._make, places))
    found = db.execute("SELECT namespace, tool_use_id, agent, noted_us FROM agent_note ORDER BY noted_us")
    memory.notes = {(namespace, key): (agent, noted_us) for namespace, key, agent, noted_us in found}
    memory.write_back_ids = {one for (one,) in db.execute("SELECT once FROM adopted")}
    return memory


def load_counters(db: sqlite3.Connection, ids: Sequence[int]) -> Memory:
    """Some counters alone."""
    question = "SELECT id, window_us, log FROM counter WHERE id IN (%s)"
    return Memory(_logs(row for some in batches(ids) for row in db.execute(question % marks(some), some)))


def _logs(rows: Iterable[tuple[int, int, bytes]]) -> Iterator[tuple[int, int, State]]:
    return ((key, window_us, unpack_log(log)) for key, window_us, log in rows)


def outcomes(db: sqlite3.Connection, row_ids: Sequence[int]) -> dict[int, tuple[str, int]]:
    """Outcome and duration in µs of some audit rows, by row id, as far as the database has them."""
    found: dict[int, tuple[str, int]] = {}
    for some in batches(row_ids):
        question = f"SELECT id, outcome, duration_us FROM audit WHERE outcome IS NOT NULL AND id IN ({marks(some)})"  # noqa: S608 - marks only
        found |= {row_id: (outcome, us) for row_id, outcome, us in db.execute(question, some)}
    return found


def batches(values: Sequence[_T]) -> Iterator[Sequence[_T]]:
    """Split values into as many as one statement takes."""
    for at in range(0, len(values), _BATCH):
        yield values[at : at + _BATCH]


def marks(values: Sequence[object]) -> str:
    """Question marks for values."""
    return ",".join("?" * len(values))


@contextlib.contextmanager
def reported(path: StrPath) -> Iterator[None]:
    """Turn errors of SQLite and of the system into `StoreUnavailable`."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise unavailable(path, error) from error


def no_store(path: StrPath, how: str) -> StoreUnavailable:
    """The error for a file that is no store, probably because its path is mistyped."""
    return StoreUnavailable(
        f"{path} is not a store of mcpguard: {how}", "correct the path, or move the file away: a new one is made"
    )


def unavailable(path: StrPath, error: sqlite3.Error | OSError) -> StoreUnavailable:
    """The error for the user."""
    if isinstance(error, OSError):
        if error.errno in _NO_ROOM:
            return StoreUnavailable(f"{path} cannot be used: {error.strerror}", "check that its disk is not full")
        what = f"{error.filename or path} cannot be used: {error.strerror or error}"
        if error.errno in _NO_DESCRIPTOR:
            return StoreUnavailable(what, LOOK_AT_LIMITS)
        return StoreUnavailable(what, "name another place with MCPGUARD_HOME or --store")
    words = str(error)
    if "not a database" in words and not os.path.exists(log_path(path)):  # each store has a call log
        return no_store(path, words)
    if "no such table" in words:
        return no_store(path, OF_ANOTHER) if size_bytes(path) else damaged(path, _EMPTY)
    if "malformed" in words:  # SQLite says so, too, if the disk reports an error
        return damaged(path, f"{words}, or its disk cannot be read", "if its disk works, ")
    if "not a database" in words:
        return damaged(path, words)
    if isinstance(error, sqlite3.IntegrityError) or getattr(error, "sqlite_errorname", "") == "SQLITE_IOERR_SHORT_READ":
        return damaged(path, f"its parts do not belong together ({words}): was it copied while it was in use?")
    if "unable to open" in words and os.path.isdir(path):
        return StoreUnavailable(f"{path} is a folder", "name a file in it, such as mcpguard.db")
    if "locked" in words:
        return StoreUnavailable(f"{path} cannot be used: {words}", "end the program that holds its lock")
    return StoreUnavailable(
        f"{path} cannot be used: {words}", "check that its disk is not full, and that this account may write to it"
    )


# damage: nothing here opens the file, since closing it again would release all POSIX locks of the process's connections


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

    The caller has the store's lock, or reads in a transaction: so the file does not change meanwhile.

    Raises:
        StoreUnavailable, sqlite3.DatabaseError: It is damaged.
    """
    pages, page_bytes = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
    size = size_bytes(path)
    if not size:
        raise damaged(path, _EMPTY)
    if os.fspath(path) in _suspects or pages * page_bytes > size:
        (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise damaged(path, found.splitlines()[-1])
        _suspects.discard(os.fspath(path))
