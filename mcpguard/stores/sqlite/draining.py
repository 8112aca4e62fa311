"""Writes records of the call log into the database: one pass over their lines, in the caller's transaction."""

import _sqlite3 as sqlite3
import json
from collections import Counter
from collections.abc import Iterable, Sequence

from mcpguard.light_typing import Final
from mcpguard.stores.pauses import Pauses
from mcpguard.stores.sqlite import database, log_lines, notes
from mcpguard.stores.sqlite.memory import LineChange, Memory, changed, line_changes, pack
from mcpguard.stores.sqlite.schema import PAGE_BYTES
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
        self._outcomes: list[tuple[str, int, int]] = []
        self._ids: dict[str, int] = {}  # of shared texts
        self._namespaces: dict[str, int] = {}  # by context
        self._uses: Counter[str] = Counter()
        self._bytes: Counter[int] = Counter()
        self._labels: dict[int, str] = {}

    def write(self, first_row: int, batch: Sequence[str]) -> None:
        """Write records.

        Args:
            first_row: The id of the first audit row among them.
            batch: The records.
        """
        row = first_row
        for line in self._pauses.between(line for text in batch for line in text.split("\n")):
            fields = line.split("\t")
            if fields[0] == log_lines.ROW:
                self._take_row(row, fields)
                row += 1
                if len(self._rows) == _ROWS_AT_ONCE:
                    self._insert_rows()
            else:
                self._take(fields)
        self._write_rows()
        self._write_counters([one for text in batch for one in line_changes(text)])

    def _take_row(self, row_id: int, fields: list[str]) -> None:
        row = log_lines.read_row(fields)
        namespace = self._namespaces.get(row.context) or self._find_namespace(row.context)
        self._bytes[namespace] += row_bytes(len(row.detail or "") + len(row.request_id or ""))
        limit = self._use(row.reported) if row.reported else None
        self._rows.append((row_id, namespace, *row[:3], self._use(row.context), limit, *row[5:], None, None))

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
        if kind == log_lines.OUTCOME:
            self._outcomes.append((fields[2], int(fields[3]), int(fields[1])))
        elif kind == log_lines.COUNTER:
            self._labels[int(fields[1])] = fields[3]
        elif kind == log_lines.TAKEN:
            self._db.execute("INSERT OR REPLACE INTO in_flight VALUES (?, ?, ?, ?)", fields[1:])
        elif kind == log_lines.FREED:
            self._db.execute("DELETE FROM in_flight WHERE counter = ? AND call = ?", fields[1:])
        elif kind == log_lines.EMPTIED:
            self._db.execute("DELETE FROM in_flight WHERE counter = ?", fields[1:])
        elif kind == notes.NOTED:
            namespace, note, noted_us = notes.read_note(fields)
            if note.text:
                self._db.execute("INSERT OR REPLACE INTO agent_note VALUES (?, ?, ?, ?)", (namespace, *note, noted_us))
            else:
                self._db.execute("DELETE FROM agent_note WHERE namespace = ? AND tool_use_id = ?", (namespace, note.key))
        elif kind == log_lines.WRITTEN_BACK:
            self._db.execute("INSERT OR REPLACE INTO adopted VALUES (?, ?)", (fields[1], int(fields[2])))

    def _write_rows(self) -> None:
        self._write_all(_USE, [(self._ids[text], text, self._namespaces.get(text), n) for text, n in self._uses.items()])
        self._insert_rows()
        self._write_all(_SET_OUTCOME, self._outcomes)
        self._write_all("UPDATE namespace SET bytes = bytes + ? WHERE id = ?", [(n, key) for key, n in self._bytes.items()])

    def _insert_rows(self) -> None:
        self._write_all(_INSERT_ROW, self._rows)
        self._rows.clear()

    def _write_counters(self, changes: Sequence[LineChange]) -> None:
        """Write the counters whose logs are changed."""
        ids = changed(changes)
        memory = Memory(database.logs(self._db, list(ids)))
        for one in self._pauses.between(changes):
            memory.take(one)
        held = [(key, log) for key in ids if (log := memory.states.get(key))]
        self._write_all("DELETE FROM counter WHERE id = ?", ((key,) for key in ids if not memory.states.get(key)))
        values = (
            (key, memory.windows[key], self._labels.get(key, log_lines.NO_LABEL), log[-2], pack(log)) for key, log in held
        )
        self._write_all(_SET_COUNTER, values)
        self._write_all(_SET_LABEL, ((label, key) for key, label in self._labels.items() if memory.states.get(key)))

    def _write_all(self, statement: str, values: Iterable[Sequence[object]]) -> None:
        self._db.executemany(statement, self._pauses.between(values))


def row_bytes(length: int) -> int:
    """About how many bytes of the file a row takes with `length` characters of its own. A long one fills pages of its own."""
    return _ROW_BYTES + (length if length < _LONG else length + PAGE_BYTES)


def fragment_bytes(length: int) -> int:
    """About how many bytes of the file a shared text takes. Their ids are hashes, so half of each page stays empty."""
    return _FRAGMENT_BYTES + 2 * length
