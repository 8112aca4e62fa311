"""Moves records of the call log into the database, and deletes audit rows that are too old or too many, to make room.

All of it is done in the caller's transaction, some at a time.
"""

import _sqlite3 as sqlite3
import json
from collections import Counter
from collections.abc import Iterable, Sequence

from mcpguard.light_typing import Final
from mcpguard.stores.api import DISORDER_US
from mcpguard.stores.clock import Pauses
from mcpguard.stores.sqlite import call_log, database, log_lines
from mcpguard.stores.sqlite.database import PAGE_BYTES
from mcpguard.stores.sqlite.memory import pack_log
from mcpguard.text.digest import number

_ROW_BYTES: Final = 160
_FRAGMENT_BYTES: Final = 100
_LONG: Final = 1000
"""Bytes in the file for a row, and for a text that rows share, besides their characters: measured, and rounded up."""

_ROWS_AT_ONCE: Final = 32
"""How many rows are kept until they are inserted. A row takes about a kilobyte as Python's values."""

_INSERT_ROW: Final = f"INSERT INTO audit VALUES ({', '.join('?' * 17)})"  # noqa: S608 - marks only
_SET_OUTCOME: Final = "UPDATE audit SET outcome = ?, duration_us = ? WHERE id = ? AND outcome IS NULL"
_USE: Final = """
    INSERT INTO fragment VALUES (?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET uses = uses + excluded.uses
"""
_SET_COUNTER: Final = """
    INSERT INTO counter VALUES (?, ?, ?, ?, ?)
    ON CONFLICT (id) DO UPDATE SET last_us = excluded.last_us, log = excluded.log
"""
_SET_LABEL: Final = "UPDATE counter SET label = ? WHERE id = ?"

AT_ONCE: Final = 2000
"""The most rows that are deleted in one transaction."""

_STEP: Final = 100
_UNUSE: Final = "UPDATE fragment SET uses = uses - ? WHERE id = ?"
_OLDEST: Final = """
    SELECT id, CASE WHEN typeof(time_us) = 'integer' AND time_us < 1 << 60 THEN time_us END, context, reported,
        coalesce(length(detail), 0) + coalesce(length(request_id), 0)
    FROM audit WHERE namespace = ? AND id < (SELECT max(id) FROM audit) ORDER BY id LIMIT ?
"""
_ALL: Final = -1
_PRAGMAS: Final = ("page_count", "freelist_count", "page_size")

JOURNAL_SHARE: Final = 16
"""This share of a namespace's bound is for the rollback journal. Outcomes have half of it: each may put a page into it."""


class Drain:
    """One batch of records on its way into the database.

    Args:
        db: The database.
        key: The store's key.
        pauses: Pauses for calls.
    """

    def __init__(self, db: sqlite3.Connection, key: bytes, pauses: Pauses) -> None:
        self._db = db
        self._key = key
        self._pauses = pauses
        self._rows: list[tuple[object, ...]] = []
        self._outcomes: dict[int, tuple[str, int]] = {}  # by row id; usually the row is in the same batch
        self._ids: dict[str, int] = {}  # of shared texts
        self._namespaces: dict[str, int] = {}  # by context
        self._uses: Counter[str] = Counter()
        self._bytes: Counter[int] = Counter()
        self._labels: dict[int, str] = {}
        self._changes: list[Sequence[str]] = []  # of counters: what `Memory.take` needs of their lines

    def write(self, first_row: int, batch: Sequence[str]) -> None:
        """Write records.

        Args:
            first_row: The id of the first audit row among them.
            batch: The records.
        """
        row, outcomes = first_row, [text for text in batch if text[0] == log_lines.OUTCOME]
        self._outcomes = log_lines.outcomes(self._pauses.between(outcomes))
        others = (text for text in batch if text[0] != log_lines.OUTCOME)
        for line in self._pauses.between(line for text in others for line in text.split("\n")):
            fields = line.split("\t")
            if fields[0] == log_lines.ROW:
                self._take_row(row, fields)
                row += 1
                if len(self._rows) == _ROWS_AT_ONCE:
                    self._insert_rows()
            else:
                self._take(fields)
        self._write_rows()
        self._write_counters()

    def _take_row(self, row_id: int, fields: list[str]) -> None:
        row = log_lines.read_row(fields)
        namespace = self._namespaces.get(row.context) or self._find_namespace(row.context)
        self._bytes[namespace] += row_bytes(len(row.detail or "") + len(row.request_id or ""))
        limit = self._use(row.reported) if row.reported else None
        if fields[-1]:
            self._changes.append((log_lines.ROW, *fields[-2:]))
        outcome = self._outcomes.pop(row_id, (None, None))
        self._rows.append((row_id, namespace, *row[:3], self._use(row.context), limit, *row[5:], *outcome))

    def _use(self, text: str) -> int:
        """Count a row with a shared text. Returns the text's id."""
        self._uses[text] += 1
        return self._ids.get(text) or self._ids.setdefault(text, number(text, self._key))

    def _find_namespace(self, context: str) -> int:
        name = (json.loads(context)["namespace"],)
        self._db.execute("INSERT OR IGNORE INTO namespace (name) VALUES (?)", name)
        (namespace,) = self._db.execute("SELECT id FROM namespace WHERE name = ?", name).fetchone()
        if not self._db.execute("SELECT 1 FROM fragment WHERE id = ?", (number(context, self._key),)).fetchone():
            self._bytes[namespace] += fragment_bytes(len(context))
        self._namespaces[context] = namespace
        return int(namespace)

    def _take(self, fields: list[str]) -> None:
        kind = fields[0]
        if kind == log_lines.COUNTER:
            self._labels[int(fields[1])] = fields[3]
        elif kind in {log_lines.CHARGED, log_lines.MERGED}:
            self._changes.append(fields)
        elif kind == log_lines.TAKEN:
            self._db.execute("INSERT OR REPLACE INTO in_flight VALUES (?, ?, ?, ?)", fields[1:])
        elif kind == log_lines.FREED:
            self._db.execute("DELETE FROM in_flight WHERE counter = ? AND call = ?", fields[1:])
        elif kind == log_lines.EMPTIED:
            self._db.execute("DELETE FROM in_flight WHERE counter = ?", fields[1:])
            self._changes.append(fields)
        elif kind == call_log.NOTED:
            namespace, note, noted_us = call_log.read_note(fields)
            if note.text:
                self._db.execute("INSERT OR REPLACE INTO agent_note VALUES (?, ?, ?, ?)", (namespace, *note, noted_us))
            else:
                self._db.execute("DELETE FROM agent_note WHERE namespace = ? AND tool_use_id = ?", (namespace, note.key))
        elif kind == log_lines.WRITTEN_BACK:
            self._db.execute("INSERT OR REPLACE INTO adopted VALUES (?, ?)", (fields[1], int(fields[2])))

    def _write_rows(self) -> None:
        self._write_all(_USE, [(self._ids[text], text, self._namespaces.get(text), n) for text, n in self._uses.items()])
        self._insert_rows()
        self._write_all(_SET_OUTCOME, [(*outcome, row_id) for row_id, outcome in self._outcomes.items()])
        self._write_all("UPDATE namespace SET bytes = bytes + ? WHERE id = ?", [(n, key) for key, n in self._bytes.items()])

    def _insert_rows(self) -> None:
        self._write_all(_INSERT_ROW, self._rows)
        self._rows.clear()

    def _write_counters(self) -> None:
        """Write the counters whose logs are changed."""
        charged = {fields[-1] for fields in self._changes if fields[0] in log_lines.CHARGING}
        ids = {key for text in charged for key, *_ in log_lines.read_charges(text)}
        ids |= {int(fields[1]) for fields in self._changes if fields[0] not in log_lines.CHARGING}
        memory = database.load_counters(self._db, list(ids))
        for fields in self._pauses.between(self._changes):
            memory.take(fields[0], fields)
        held = {key: log for key in ids if (log := memory.states.get(key))}
        self._write_all("DELETE FROM counter WHERE id = ?", ((key,) for key in ids if key not in held))
        values = (
            (key, memory.windows[key], self._labels.get(key, log_lines.NO_LABEL), log[-2], pack_log(log))
            for key, log in held.items()
        )
        self._write_all(_SET_COUNTER, values)
        self._write_all(_SET_LABEL, ((label, key) for key, label in self._labels.items() if key in held))

    def _write_all(self, statement: str, values: Iterable[Sequence[object]]) -> None:
        self._db.executemany(statement, self._pauses.between(values))


def prune_old(db: sqlite3.Connection, wall_us: int, pauses: Pauses) -> bool:
    """Delete some rows that are too old. Returns whether there may be more."""
    more = False
    for namespace, keep_us in db.execute("SELECT id, keep_us FROM namespace WHERE keep_us IS NOT NULL").fetchall():
        more |= prune_before(db, namespace, wall_us - keep_us, pauses, among=AT_ONCE) == AT_ONCE
    return more


def prune_before(db: sqlite3.Connection, namespace: int, before_us: int, pauses: Pauses, *, among: int = _ALL) -> int:
    """Delete some of a namespace's rows from before a time, among its oldest ones.

    Returns:
        How many. If they are less than `AT_ONCE`, there are no more.
    """
    found = []
    time_us = 0
    for one in pauses.between(db.execute(_OLDEST, (namespace, among))):
        time_us = time_us if one[1] is None else one[1]  # a damaged row is as old as the one before it
        if time_us < before_us:
            found.append(one)
        if len(found) == AT_ONCE or time_us >= before_us + DISORDER_US:
            break
    _drop_rows(db, namespace, found, pauses)
    return len(found)


def prune_surplus(db: sqlite3.Connection, most: int, log_bytes: int, pauses: Pauses) -> bool:
    """Delete the oldest rows of each namespace that is above its bound, at most `most`. Returns whether there may be more.

    The call log of `log_bytes` counts as part of each namespace.
    The size of a namespace is an estimate, never too low. If all estimates together exceed the file, they are scaled down.
    """
    pages, free, page_bytes = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in _PRAGMAS)
    (known,) = db.execute("SELECT total(bytes) FROM namespace").fetchone()
    scale = min(1.0, (pages - free) * page_bytes / max(known, 1.0))
    for namespace, max_bytes in db.execute("SELECT id, max_bytes FROM namespace WHERE max_bytes IS NOT NULL").fetchall():
        bound = _share(max_bytes, log_bytes) / scale
        while _size(db, namespace) > bound:
            if most <= 0:
                return True
            found = list(pauses.between(db.execute(_OLDEST, (namespace, _STEP))))
            if not found:
                break
            _drop_rows(db, namespace, found, pauses)
            most -= len(found)
    return False


def _share(max_bytes: int, log_bytes: int) -> int:
    """The part of a namespace's bound for its rows: the call log and a rollback journal take the rest."""
    return max(max_bytes - max_bytes // JOURNAL_SHARE - log_bytes, max_bytes // 2)


def _size(db: sqlite3.Connection, namespace: int) -> int:
    return int(db.execute("SELECT bytes FROM namespace WHERE id = ?", (namespace,)).fetchone()[0])


def _drop_rows(
    db: sqlite3.Connection, namespace: int, found: list[tuple[int, int | None, int, int | None, int]], pauses: Pauses
) -> None:
    """Delete rows, as `_OLDEST` returns them, and shared texts that no row uses."""
    unused = Counter(key for _, _, context, reported, _ in found for key in (context, reported) if key is not None)
    db.executemany("DELETE FROM audit WHERE id = ?", pauses.between(one[:1] for one in found))
    db.executemany(_UNUSE, pauses.between((count, key) for key, count in unused.items()))
    freed = sum(row_bytes(length) for *_, length in found) + _drop_unused(db, list(unused))
    db.execute("UPDATE namespace SET bytes = max(0, bytes - ?) WHERE id = ?", (freed, namespace))


def _drop_unused(db: sqlite3.Connection, ids: list[int]) -> int:
    """Delete those of these shared texts that no row uses. Returns the bytes that the contexts among them took."""
    freed = 0
    for some in database.batches(ids):
        which = f"WHERE uses <= 0 AND id IN ({database.marks(some)})"
        lengths = db.execute(f"SELECT length(json) FROM fragment {which} AND namespace IS NOT NULL", some)  # noqa: S608 - marks only
        freed += sum(fragment_bytes(length) for (length,) in lengths)
        db.execute(f"DELETE FROM fragment {which}", some)  # noqa: S608 - marks only
    return freed


def row_bytes(length: int) -> int:
    """About how many bytes of the file a row takes with `length` characters of its own. A long one fills pages of its own."""
    return _ROW_BYTES + (length if length < _LONG else length + PAGE_BYTES)


def fragment_bytes(length: int) -> int:
    """About how many bytes of the file a shared text takes. Their ids are hashes, so half of each page stays empty."""
    return _FRAGMENT_BYTES + 2 * length
