"""What the counters of an SQLite store hold: a snapshot of their logs, and the audit rows after it.

A decision writes its audit row and nothing else; the row tells what was charged, and when. Replayed in order on the snapshot,
the rows give the very logs that the deciders had. Folding moves the snapshot on to the newest row. A barrier is a row after
which nothing may be remembered: something else than charges changed the snapshot, or texts that rows refer to are gone.
"""

import json
import sqlite3
import struct
from collections.abc import Collection, Iterable, Mapping, MutableMapping, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from mcpguard.core import limiter
from mcpguard.core.audit import compact
from mcpguard.core.limiter import EMPTY, Limit, State
from mcpguard.core.policy import Counter
from mcpguard.stores.sqlite_audit import intern

FOLD_EVERY: Final = 256
"""Rows after the snapshot that upkeep folds. A counter that a process does not know yet costs it a replay of about so many."""

FOLD_AT_MOST: Final = 2048
"""Rows after the snapshot at which a decision folds them itself, some milliseconds, because no upkeep has."""

REMEMBERED: Final = 4096
"""Counters that a process remembers, and texts. Above it, it forgets all and begins anew."""

_BATCH: Final = 500
_NONE_KNOWN: Final[Mapping[int, State]] = {}
_CATCH_UP_AT_MOST: Final = 512
"""Rows of others that are replayed on what is remembered; beyond it is quicker to begin anew."""

_CHARGED_ROWS: Final = """
    SELECT a.charged_us, f.json FROM audit a LEFT JOIN fragment f ON f.id = a.charged
    WHERE a.id > ? AND a.charged IS NOT NULL ORDER BY a.id
"""
_CHARGES: Final = """
    SELECT json FROM fragment WHERE id IN (SELECT charged FROM audit WHERE id > ?)
"""
"""What the rows after a place were charged on, as `charges` has it, each text once."""

_BARRIER: Final = "INSERT INTO audit (time_us, seq, decision, context, charged) VALUES (?, 0, 'barrier', 0, 0)"

ChargedRow = tuple[int | None, str | None]
"""When, in the store's time, and what, as `charges` has it. Both are None for a barrier."""


@lru_cache(maxsize=512)
def charges(counters: Sequence[Counter], charged: Sequence[Limit]) -> str:
    """What a call was charged on, as the audit keeps it: `[[counter id, window_us, n], …]`, n being what it was charged by."""
    return compact([(counters[limit.counter].id, limit.window_us, limit.n) for limit in charged])


@lru_cache(maxsize=512)
def _parsed(text: str) -> list[tuple[int, int, int]]:
    return [(key, window_us, n) for key, window_us, n in json.loads(text)]


def replay(states: MutableMapping[int, State], rows: Iterable[ChargedRow]) -> None:
    """Charge the counters that are in `states` once more with what rows tell, oldest first."""
    for now_us, text in rows:
        if now_us is None or text is None:
            continue
        for key, window_us, n in _parsed(text):
            log = states.get(key)
            if log is not None:
                states[key] = limiter.charge(limiter.live(log, window_us, now_us), n, window_us, now_us)


def newest(db: sqlite3.Connection) -> int:
    """The place of the newest audit row, 0 if there is none. It only grows: the newest row is never deleted."""
    return db.execute("SELECT max(id) FROM audit").fetchone()[0] or 0


def set_barrier(db: sqlite3.Connection, wall_us: int) -> int:
    """Let everybody forget what they remember, from the next decision on; where the barrier is. No reader is shown it."""
    return db.execute(_BARRIER, (wall_us,)).lastrowid or 0


def labelled(db: sqlite3.Connection) -> list[tuple[str, int, State]]:
    """Each counter's label, window and log. The caller has begun a transaction; reading is enough."""
    found = db.execute("SELECT label, window_us, log, id FROM counter LEFT JOIN snapshot USING (id)").fetchall()
    later = unfolded(db).states
    return [(label, window_us, later.get(key) or (unpack(log) if log else EMPTY)) for label, window_us, log, key in found]


def current(db: sqlite3.Connection, ids: Collection[int]) -> dict[int, State]:
    """The logs of some counters. The caller has begun a transaction; reading is enough."""
    return read(db, ids) | {key: log for key, log in unfolded(db).states.items() if key in set(ids)}


class Fold(NamedTuple):
    """What the snapshot becomes when the rows after it are folded.

    Attributes:
        since: The row that the snapshot is at.
        upto: The row that it will be at.
        states: The logs that change.
    """

    since: int
    upto: int
    states: dict[int, State]


def folded(db: sqlite3.Connection) -> int:
    """The row that the snapshot is at."""
    return int(db.execute("SELECT value FROM meta WHERE key = 'folded'").fetchone()[0])


def unfolded(db: sqlite3.Connection, known: Mapping[int, State] = _NONE_KNOWN) -> Fold:
    """What folding would write. The caller has begun a transaction; reading is enough.

    Args:
        db: The file.
        known: Logs as they are after the newest row. If all that change are among them nothing is replayed.
    """
    since = folded(db)
    touched = {key for (text,) in db.execute(_CHARGES, (since,)) for key, _, _ in _parsed(text)}
    if touched <= known.keys():
        states = {key: known[key] for key in touched}
    else:
        states = read(db, touched)
        replay(states, db.execute(_CHARGED_ROWS, (since,)))
    return Fold(since, newest(db), states)


def write_fold(db: sqlite3.Connection, fold: Fold) -> None:
    """Move the snapshot on. The caller is in the transaction that `fold` was read in, or knows that nobody folded since."""
    if fold.upto != fold.since:  # it is less if somebody has emptied the audit, and numbers begin anew
        write(db, fold.states)
        db.execute("UPDATE meta SET value = ? WHERE key = 'folded'", (fold.upto,))


def fold(db: sqlite3.Connection, known: Mapping[int, State] = _NONE_KNOWN) -> int:
    """Move the snapshot on to the newest row, which is returned. The caller has begun a transaction that writes."""
    found = unfolded(db, known)
    write_fold(db, found)
    return found.upto


def read(db: sqlite3.Connection, ids: Collection[int]) -> dict[int, State]:
    """Logs as the snapshot has them; one that it does not have is empty."""
    states = dict.fromkeys(ids, EMPTY)
    wanted = list(states)
    for at in range(0, len(wanted), _BATCH):
        some = wanted[at : at + _BATCH]
        marks = ",".join("?" * len(some))
        for key, log in db.execute(f"SELECT id, log FROM snapshot WHERE id IN ({marks})", some):  # noqa: S608 - marks only
            states[key] = unpack(log)
    return states


def write(db: sqlite3.Connection, states: dict[int, State]) -> None:
    """Put logs into the snapshot. None of them is empty."""
    values = [(key, state[-2], pack(state)) for key, state in states.items()]
    db.executemany("INSERT OR REPLACE INTO snapshot VALUES (?, ?, ?)", values)


class Remembered:
    """What one process remembers of a store. It holds what was committed, and nothing else.

    Args:
        key: The store's secret.

    Attributes:
        states: Counters' logs, up to the row `seen`.
        seen: The newest row when they were read or written last.
        numbers: What rows have in place of texts that are in the file; None in place of None.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self.states: dict[int, State] = {}
        self.seen = 0
        self.numbers: dict[str | None, int | None] = {None: None}
        self._before: dict[int, State] = {}

    def catch_up(self, db: sqlite3.Connection) -> bool:
        """Take in what others have written; whether there was anything. The caller has begun a transaction."""
        place = newest(db)
        if place == self.seen:
            return False
        if self.states or len(self.numbers) > 1:
            rows = db.execute(_CHARGED_ROWS, (self.seen,)).fetchall() if 0 < place - self.seen <= _CATCH_UP_AT_MOST else None
            if rows is None or any(text is None for _, text in rows) or not self._follows(db):
                self.forget()
            else:
                replay(self.states, rows)
        self.seen = place
        return True

    def _follows(self, db: sqlite3.Connection) -> bool:
        """Whether the row after `seen` is there and so, since the oldest are pruned first, every row after it."""
        return db.execute("SELECT 1 FROM audit WHERE id = ?", (self.seen + 1,)).fetchone() is not None

    def learn(self, db: sqlite3.Connection, ids: Collection[int]) -> int:
        """Read the counters that are not known, after `catch_up`. The caller has begun a transaction that writes.

        Returns:
            The row that was folded up to; 0 if that was not necessary.
        """
        if len(self.states) > REMEMBERED:
            self.forget()
        unknown = [key for key in ids if key not in self.states]
        if not unknown:
            return 0
        place = fold(db, self.states)
        self.states |= read(db, unknown)
        return place

    def number(self, db: sqlite3.Connection, text: str | None) -> int | None:
        """What a row has in place of a text, which is written if it may not be there. The caller is in a transaction."""
        if text is not None and text not in self.numbers:
            if len(self.numbers) > REMEMBERED:
                self.numbers = {None: None}
            self.numbers[text] = intern(db, text, self._key)
        return self.numbers[text]

    def forget(self) -> None:
        """Remember nothing, but for what `last_seen` tells."""
        self.begin_anew({}, self.seen)

    def begin_anew(self, states: dict[int, State], seen: int) -> None:
        """Remember these logs and nothing else, but for what `last_seen` tells."""
        self._before = self.last_seen() if len(self._before) <= REMEMBERED else self.states
        self.states = dict(states)
        self.seen = seen
        self.numbers = {None: None}

    def last_seen(self) -> dict[int, State]:
        """The logs as this process last saw them, also those that it relies on no more."""
        return self._before | self.states


def pack(state: State) -> bytes:
    """A log as it is stored: little-endian, 8 bytes for when its newest entry was opened, 12 for each entry."""
    return _layout(len(state) // 2).pack(*state)


def unpack(log: bytes) -> State:
    """A log from its stored form.

    >>> unpack(pack((5, 1, 2, 5, 9)))
    (5, 1, 2, 5, 9)
    """
    return _layout((len(log) - 8) // 12).unpack(log)


@lru_cache(maxsize=256)
def _layout(entries: int) -> struct.Struct:
    return struct.Struct("<q" + "qI" * entries)
