"""What keeps the store small: one process at a time moves the log into the database, and drops what is too old or too much.

None of this is on a call's path: calls look at the call log alone, and the store's lock is no call's. Readers of the database
may have to wait for a transaction of upkeep, and upkeep for them.
"""

import json
import sqlite3
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from mcpguard.core.claude_code import NOTE_KEPT_US
from mcpguard.core.digest import number
from mcpguard.core.limiter import State
from mcpguard.stores.sqlite import database, entries
from mcpguard.stores.sqlite.call_log import RING_BYTES, CallLog, Position
from mcpguard.stores.sqlite.memory import pack, replay, touched

DRAIN_BYTES: Final = 128 * 1024
DRAIN_EVERY_US: Final = 2_000_000
"""The log is moved when it holds so much that is new, or when so long nobody has: a transaction waits for the disk."""

PRUNE_EVERY_US: Final = 60_000_000

_RECORD_BYTES_AT_ONCE: Final = 1024 * 1024
_PRUNED_AT_ONCE: Final = 2000
_SPARE_PAGES: Final = 256
_PAGES_AT_ONCE: Final = 512

_ROW_BYTES: Final = 120
_FRAGMENT_BYTES: Final = 60
"""What a row and a text that rows share take in the file beside their own text: measured, and rounded up."""

_GRACE_US: Final = 60_000_000
"""How long after its window a counter's label is kept. A charge that finds a counter empty brings the label again."""

_ONCE_KEPT_US: Final = 30 * 86_400_000_000

_INSERT_ROW: Final = f"INSERT INTO audit VALUES ({', '.join('?' * 17)})"  # noqa: S608 - marks only
_SET_OUTCOME: Final = "UPDATE audit SET outcome = ?, duration_us = ? WHERE id = ? AND outcome IS NULL"
_USE: Final = """
    INSERT INTO fragment VALUES (?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET uses = uses + excluded.uses
"""
_UNUSE: Final = "UPDATE fragment SET uses = uses - ? WHERE id = ?"
_SET_COUNTER: Final = """
    INSERT INTO counter VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (id) DO UPDATE SET last_us = ?4, log = ?5
"""
_SET_LABEL: Final = "UPDATE counter SET label = ? WHERE id = ?"
_OLDEST: Final = f"""
    SELECT id, time_us, context, reported, coalesce(length(detail), 0) + coalesce(length(request_id), 0)
    FROM audit WHERE namespace = ? AND id < (SELECT max(id) FROM audit) ORDER BY id LIMIT {_PRUNED_AT_ONCE}
"""  # noqa: S608 - a constant only


class Upkeep:
    """Draining, pruning and shrinking of one store. Whoever calls has the store's lock.

    Args:
        path: The database.
        log: The call log.
        namespace: Whose audit rows are pruned: others of the file have settings of their own.
        keep_us: How long they are kept.
        max_bytes: How much of the file the namespace's audit may take before its oldest rows go.
    """

    def __init__(self, path: Path, log: CallLog, *, namespace: str, keep_us: int, max_bytes: int) -> None:
        self._path = path
        self._log = log
        self._namespace = namespace
        self._keep_us = keep_us
        self._max_bytes = max(max_bytes - RING_BYTES, max_bytes // 2)
        self._db: sqlite3.Connection | None = None
        self._drained_us: int | None = None
        self._has_more_to_prune = False

    def is_due(self, end: int, drained: Position, now_us: int) -> bool:
        """Whether `tend` would do something now.

        Args:
            end: The newest position of the log that the caller knows of.
            drained: As the log has it.
            now_us: The store's time.
        """
        if self._drained_us is None:
            self._drained_us = now_us
        waits_us = now_us - self._drained_us
        return end - drained.end >= DRAIN_BYTES or (end > drained.end and waits_us >= DRAIN_EVERY_US) or self._has_more_to_prune

    def tend(self, *, now_us: int, wall_us: int) -> None:
        """Drain the log; and let go of some of what is too old or too much, where it is time to look.

        Args:
            now_us: The store's time.
            wall_us: Wall-clock time.

        Raises:
            sqlite3.Error, OSError: The database or the log cannot be used.
            Lost: The log does not continue where the database is.
        """
        self._drained_us = now_us
        self.drain()
        db = self._connected()
        size, pruned_us = self._own(db)
        if abs(wall_us - pruned_us) > PRUNE_EVERY_US:
            self._prune_shared(db, now_us, wall_us)
            self._has_more_to_prune = True
        if self._has_more_to_prune or size > self._max_bytes:
            self._has_more_to_prune = self._prune_rows(db, wall_us - self._keep_us) or self._shrink(db)

    @property
    def is_behind(self) -> bool:
        """Whether `tend` has more to do at once."""
        return self._has_more_to_prune

    def _connected(self) -> sqlite3.Connection:
        if self._db is None:
            self._db = database.connect(self._path, mode="rw")
            self._db.execute("PRAGMA synchronous = FULL")  # nobody's call waits for it
        return self._db

    def drain(self) -> None:
        """Move into the database all that the log holds."""
        db = self._connected()
        at = last = database.position(db)
        batch: list[str] = []
        size = 0
        for text, after in self._log.records(at):
            batch.append(text)
            last = after
            size += len(text)
            if size > _RECORD_BYTES_AT_ONCE:
                self._write(db, at, batch, last)
                at, batch, size = last, [], 0
        if batch:
            self._write(db, at, batch, last)

    def _write(self, db: sqlite3.Connection, since: Position, batch: list[str], upto: Position) -> None:
        with database.writing(db):
            _Drain(db, self._log.key).write(since.row, batch)
            database.set_position(db, upto)
        self._log.set_drained(upto)
        while self._own(db)[0] > self._max_bytes and self._prune_rows(db, 0):
            pass

    def _own(self, db: sqlite3.Connection) -> tuple[int, int]:
        """How much of the file the namespace's audit takes, and when somebody looked last for what is too old."""
        found = db.execute("SELECT bytes, pruned_us FROM namespace WHERE name = ?", (self._namespace,)).fetchone()
        return found or (0, 0)

    def _prune_rows(self, db: sqlite3.Connection, before_us: int) -> bool:
        """Drop some of the namespace's oldest rows if they are too old or too many; whether there may be more to drop.

        Never the newest row of all: row numbers must not be used twice.
        """
        with database.writing(db):
            found = db.execute("SELECT id, bytes FROM namespace WHERE name = ?", (self._namespace,)).fetchone()
            if not found:
                return False
            namespace, size = found
            surplus = size - self._max_bytes
            if surplus > 0:
                surplus += self._max_bytes // 32  # so that it is not for each row that one goes
            gone: list[int] = []
            unused: dict[int, int] = {}
            freed = 0
            for row, time_us, context, reported, text_bytes in db.execute(_OLDEST, (namespace,)):
                if time_us >= before_us and freed >= surplus:
                    break
                gone.append(row)
                freed += _ROW_BYTES + text_bytes
                for fragment in (context, reported):
                    if fragment is not None:
                        unused[fragment] = unused.get(fragment, 0) + 1
            if not gone:
                return False
            db.executemany("DELETE FROM audit WHERE id = ?", [(row,) for row in gone])
            db.executemany(_UNUSE, [(count, fragment) for fragment, count in unused.items()])
            freed += self._drop_unused(db, list(unused))
            db.execute("UPDATE namespace SET bytes = max(0, bytes - ?) WHERE id = ?", (freed, namespace))
            return len(gone) == _PRUNED_AT_ONCE or freed < surplus

    def _drop_unused(self, db: sqlite3.Connection, ids: list[int]) -> int:
        """Drop those fragments that no row uses any more; the bytes that contexts among them took."""
        freed = 0
        for some in database.batches(ids):
            question = f"SELECT namespace, length(json) FROM fragment WHERE uses <= 0 AND id IN ({database.marks(some)})"  # noqa: S608
            freed += sum(_FRAGMENT_BYTES + length for namespace, length in db.execute(question, some) if namespace is not None)
            db.execute(f"DELETE FROM fragment WHERE uses <= 0 AND id IN ({database.marks(some)})", some)  # noqa: S608 - marks only
        return freed

    def _prune_shared(self, db: sqlite3.Connection, now_us: int, wall_us: int) -> None:
        """Drop counters whose windows have passed, and old notes and names; a wall clock may have been set back meanwhile."""
        with database.writing(db):
            db.execute("DELETE FROM counter WHERE last_us + window_us + ? <= ?", (_GRACE_US, now_us))
            kept = (wall_us - NOTE_KEPT_US, wall_us + NOTE_KEPT_US)
            db.execute("DELETE FROM agent_note WHERE noted_us NOT BETWEEN ? AND ?", kept)
            db.execute("DELETE FROM adopted WHERE time_us < ?", (wall_us - _ONCE_KEPT_US,))
            db.execute("UPDATE namespace SET pruned_us = ? WHERE name = ?", (wall_us, self._namespace))

    def _shrink(self, db: sqlite3.Connection) -> bool:
        """Give some of the file's free pages back; whether there are more. Some stay: they are soon used again."""
        pages, free = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count"))
        surplus = free - max(_SPARE_PAGES, pages // 16)
        if surplus <= 0:
            return False
        db.execute(f"PRAGMA incremental_vacuum({min(surplus, _PAGES_AT_ONCE)})").fetchall()
        return bool(surplus > _PAGES_AT_ONCE)

    def close(self) -> None:
        """Close the database."""
        if self._db is not None:
            self._db.close()
            self._db = None


class _Drain:
    """Writes some records of the log into the database, in the caller's transaction."""

    def __init__(self, db: sqlite3.Connection, key: bytes) -> None:
        self._db = db
        self._key = key
        self._rows: list[tuple[object, ...]] = []
        self._uses: dict[str, int] = {}
        self._own: dict[str, str] = {}  # namespaces of contexts
        self._bytes: dict[str, int] = {}
        self._outcomes: dict[int, tuple[str, int]] = {}
        self._counters: dict[int, tuple[int, str]] = {}

    def write(self, first_row: int, batch: list[str]) -> None:
        """Write records that begin with an audit row's number."""
        row = first_row
        others: list[list[str]] = []
        for text in batch:
            time.sleep(0)  # a call that has come meanwhile goes first
            for line in text.split("\n"):
                fields = line.split("\t")
                if fields[0] == entries.ROW:
                    self._take_row(row, fields)
                    row += 1
                else:
                    others.append(fields)
        for fields in others:
            self._take(fields)
        self._write_rows()
        self._write_counters(batch)

    def _take_row(self, number_: int, fields: list[str]) -> None:
        row = entries.read_row(fields)
        if row.context not in self._own:
            self._own[row.context] = str(json.loads(row.context)["namespace"])
        namespace = self._own[row.context]
        for text in (row.context, row.reported):
            if text is not None:
                self._uses[text] = self._uses.get(text, 0) + 1
        size = _ROW_BYTES + len(row.detail or "") + len(row.request_id or "")
        self._bytes[namespace] = self._bytes.get(namespace, 0) + size
        self._rows.append((number_, namespace, *row))

    def _take(self, fields: list[str]) -> None:
        kind = fields[0]
        if kind == entries.OUTCOME:
            self._outcomes.setdefault(int(fields[1]), (fields[2], int(fields[3])))
        elif kind == entries.COUNTER:
            self._counters[int(fields[1])] = (int(fields[2]), fields[3])
        elif kind == entries.NOTE:
            namespace, agent = json.loads(fields[1]), json.loads(fields[3])
            self._db.execute(
                "INSERT OR REPLACE INTO agent_note VALUES (?, ?, ?, ?)", (namespace, fields[2], agent, int(fields[4]))
            )
        elif kind == entries.ONCE:
            self._db.execute("INSERT OR REPLACE INTO adopted VALUES (?, ?)", (fields[1], int(fields[2])))

    def _write_rows(self) -> None:
        db = self._db
        ids = {text: number(text, self._key) for text in self._uses}
        db.executemany(
            "INSERT OR IGNORE INTO namespace (name, bytes, pruned_us) VALUES (?, 0, 0)", [(name,) for name in self._bytes]
        )
        namespaces = dict(db.execute("SELECT name, id FROM namespace"))
        for text in self._own:
            if not db.execute("SELECT 1 FROM fragment WHERE id = ?", (ids[text],)).fetchone():
                self._bytes[self._own[text]] += _FRAGMENT_BYTES + len(text)
        uses = [(ids[text], text, namespaces.get(self._own.get(text, "")), count) for text, count in self._uses.items()]
        db.executemany(_USE, uses)
        rows = []
        for place, namespace, time_us, seq, decision, context, reported, *rest in self._rows:
            outcome = self._outcomes.pop(int(str(place)), (None, None))
            limit = None if reported is None else ids[str(reported)]
            rows.append((place, namespaces[str(namespace)], time_us, seq, decision, ids[str(context)], limit, *rest, *outcome))
        db.executemany(_INSERT_ROW, rows)
        db.executemany(_SET_OUTCOME, [(*outcome, row) for row, outcome in self._outcomes.items()])
        db.executemany("UPDATE namespace SET bytes = bytes + ? WHERE name = ?", [(n, name) for name, n in self._bytes.items()])

    def _write_counters(self, batch: Iterable[str]) -> None:
        """Bring the counters that the records change up to date."""
        ids = {key for text in batch for key in touched(text)}
        states: dict[int, State] = database.logs(self._db, ids)
        for text in batch:
            replay(states, text)
        self._db.executemany("DELETE FROM counter WHERE id = ?", [(key,) for key, log in states.items() if not log])
        windows = self._windows(batch)
        values = [
            (key, windows[key], self._counters.get(key, (0, "[]"))[1], log[-2], pack(log)) for key, log in states.items() if log
        ]
        self._db.executemany(_SET_COUNTER, values)
        labels = [(label, key) for key, (_, label) in self._counters.items() if key in states]
        self._db.executemany(_SET_LABEL, labels)

    def _windows(self, batch: Iterable[str]) -> Mapping[int, int]:
        windows = {key: window_us for key, (window_us, _) in self._counters.items()}
        for text in batch:
            for line in text.split("\n"):
                if line[0] == entries.ROW and (charged := line.rpartition("\t")[2]):
                    windows |= {key: window_us for key, window_us, _ in entries.read_charges(charged)}
                elif line[0] == entries.MERGED:
                    fields = line.split("\t")
                    windows[int(fields[1])] = int(fields[2])
        return windows
