"""Reads the database and the newer records of the call log as one store. It writes nothing and delays no call.

It works on a read-only file system. A process may be killed while it writes to the database. SQLite rolls that back when the
next connection that may write to the file opens it, even a reader's.
"""

import collections
import contextlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from mcpguard.core import limiter
from mcpguard.core.audit import Outcome, Row, members, record
from mcpguard.core.limiter import State
from mcpguard.core.policy.plan import Counter
from mcpguard.files import is_there
from mcpguard.stores import clock
from mcpguard.stores.api import Clock, Entry, Held, StoredRow, Tally, Wanted
from mcpguard.stores.groups import tally
from mcpguard.stores.sqlite import database, integrity, log_lines
from mcpguard.stores.sqlite.archive import PAGE_CHARS, Archive, Condition
from mcpguard.stores.sqlite.call_log import CallLog, Lost, beside, damaged, log_path
from mcpguard.stores.sqlite.in_flight import KINDS, InFlight
from mcpguard.stores.sqlite.log_records import Position
from mcpguard.stores.sqlite.memory import REMEMBERED, REMEMBERED_NOTES, Memory, replay, touched, unpack
from mcpguard.stores.sqlite.owners import Owners
from mcpguard.stores.sqlite.schema import require_schema

_TRIES: Final = 5
"""How often to start over if upkeep moves records into the database while they are read."""

_BATCH: Final = 500
_SELECT: Final = """
    SELECT a.id, a.time_us, a.seq, a.decision, c.json, r.json, a.request_id, a.args_hash, a.trace_id, a.counted,
        a.remaining, a.retry_after_ms, a.repeats, a.detail, a.outcome, a.duration_us
    FROM audit a JOIN fragment c ON c.id = a.context LEFT JOIN fragment r ON r.id = a.reported
"""
_AFTER: Final = f"{_SELECT} WHERE a.id > ? AND a.id < ? %s ORDER BY a.id LIMIT {_BATCH}"
_BEFORE: Final = f"{_SELECT} WHERE a.id < ? %s ORDER BY a.id DESC LIMIT {_BATCH}"
"""The next rows, oldest or newest first, in the form that `_entry` takes."""

_DETAIL: Final = 13
"""Where the detail is in it."""

_IDS: Final = "SELECT coalesce((SELECT min(id) FROM audit), 1), coalesce((SELECT max(id) FROM audit), 0) + 1"
_NEWEST_AMONG: Final = "SELECT max(time_us) FROM (SELECT time_us FROM audit WHERE id >= ? ORDER BY id LIMIT 256)"

_NAMED: Final = 10_000
"""The most contexts that a query names. SQLite limits the length of a query."""

_NOTES: Final = "SELECT namespace, tool_use_id, agent, noted_us FROM agent_note ORDER BY noted_us DESC LIMIT ?"
_NOTES_OF: Final = "SELECT tool_use_id, agent, noted_us FROM agent_note WHERE namespace = ? AND tool_use_id IN"

_Found = TypeVar("_Found")
_Outcomes = Mapping[int, tuple[str, int]]


class Pending(NamedTuple):
    """The records of the log that the database does not have yet.

    Attributes:
        first: The id of the first audit row among them; all earlier ones are in the database.
        texts: The records.
    """

    first: int
    texts: list[str]


class Reader:
    """A store that is read.

    Args:
        path: The database.
        log: The call log, which `close` does not close; None to open it as soon as it exists.
        timeout_s: How long to wait for upkeep.

    Attributes:
        clock: The store's time.

    Raises:
        StoreUnavailable: The store cannot be read.
    """

    def __init__(self, path: Path, log: CallLog | None = None, *, timeout_s: float = database.BUSY_S) -> None:
        self.path = path
        self._own_log: CallLog | None = None
        self._journal = beside(path, "-journal")
        with contextlib.ExitStack() as undo, database.reported(path):
            self._identity = integrity.identity(path)
            self._db = undo.enter_context(contextlib.closing(database.connect(path, mode="rw", timeout_s=timeout_s)))
            self._db.execute("PRAGMA query_only = ON")
            require_schema(self._db, path)
            undo.pop_all()
        self._archive = Archive(self._db)
        self._log = log
        self.clock: Clock = self._shared_clock

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        """Query the database, and report errors.

        SQLite finds the journal of an unfinished transaction by the database's name, and rolls the transaction back. If the
        database was replaced, the journal is its successor's, and would be destroyed.
        """
        with database.reported(self.path):
            if is_there(self._journal) and integrity.identity(self.path) != self._identity:
                raise integrity.replaced(self.path)
            yield

    def _call_log(self) -> CallLog | None:
        """The call log; None while another process creates the store."""
        with database.reported(self.path):
            if self._log is None and is_there(log_path(self.path)):
                self._log = self._own_log = CallLog(log_path(self.path), writable=False)
        return self._log

    def _shared_clock(self) -> int:
        """The store's time. On another machine, or after a restart of the machine, the time of the newest charge."""
        log = self._call_log()
        header = log.header if log else {}
        if header.get("time_base") == clock.base_id():
            return clock.boot_us() + int(str(header["time_offset_us"]))
        return max((log[-2] for _, _, log in self.counters() if log), default=0)

    @property
    def args_key(self) -> bytes:
        """See `Readable`."""
        log = self._call_log()
        if log is not None:
            return log.key
        with self._asking():  # the call log was removed, or another process is about to create it
            return database.key(self._db) or b""

    # counters

    def counters(self) -> list[tuple[str, int, State]]:
        """Each counter's label, window in µs and log."""
        question = "SELECT id, label, window_us, log FROM counter WHERE label != ?"
        found, texts = self._with_log(lambda db: db.execute(question, (log_lines.NO_LABEL,)).fetchall())
        states = {key: unpack(log) for key, _, _, log in found}
        names = {key: (label, window_us) for key, label, window_us, _ in found}
        for text in texts:
            for line in text.split("\n"):
                if line[0] == log_lines.COUNTER:
                    _, key, window_us, label = line.split("\t")
                    names[int(key)] = (label, int(window_us))
            states |= dict.fromkeys(touched(text) - states.keys(), limiter.EMPTY)
            replay(states, text)
        return [(*names[key], log) for key, log in states.items() if key in names]

    def held(self) -> list[Held]:
        """See `Readable`."""
        now_us = self.clock()
        logs = [(label, limiter.live(log, window_us, now_us)) for label, window_us, log in self.counters()]
        in_flight = collections.Counter(place.label for place in self.in_flight())
        return [Held(label, limiter.used(log), log) for label, log in logs if log] + [
            Held(label, calls, limiter.EMPTY) for label, calls in in_flight.items()
        ]

    def peek(self, counters: Sequence[Counter]) -> tuple[list[State], int]:
        """See `Readable`."""
        states = self.logs([counter.id for counter in counters])
        if any(not counter.window_us for counter in counters):
            calls = self.in_flight()
            pairs = zip(counters, states, strict=True)
            states = [log if counter.window_us else calls.state(counter.id) for counter, log in pairs]
        return states, self.clock()

    def in_flight(self) -> InFlight:
        """The calls in flight, of processes that still run."""
        found, texts = self._with_log(database.places)
        calls = InFlight(found)
        for text in texts:
            for line in text.split("\n"):
                if line[0] in KINDS:
                    calls.follow(line.split("\t"))
        return calls.without(Owners(self.path).dead({place.owner for place in calls}))

    def logs(self, ids: Sequence[int], upto: Position | None = None) -> list[State]:
        """The logs of these counters, in order, as they are at a position of the call log, or now.

        Raises:
            Lost: The database is beyond that position.
        """
        names = [str(key).encode() for key in ids]
        states, texts = self._with_log(lambda db: database.logs(db, ids), upto, naming=names)
        for text in texts:
            replay(states, text)
        return [states[key] for key in ids]

    def memory(self) -> tuple[Memory, Position]:
        """The database's counters and notes, and the position from which a process then follows the call log."""
        with self._asking(), database.reading(self._db):
            complete = database.count_counters(self._db, REMEMBERED + 1) <= REMEMBERED
            memory = Memory(database.all_logs(self._db) if complete else (), complete=complete)
            memory.in_flight = InFlight(database.places(self._db))
            notes = self._db.execute(_NOTES, (REMEMBERED_NOTES + 1,)).fetchall()
            memory.has_all_notes = len(notes) <= REMEMBERED_NOTES
            memory.notes = {(namespace, call): (agent, noted_us) for namespace, call, agent, noted_us in reversed(notes)}
            memory.write_back_ids = {one for (one,) in self._db.execute("SELECT once FROM adopted")}
            return memory, database.position(self._db)

    def latest_us(self) -> int:
        """The store time of the newest charge in the database; 0 if there is none."""
        with self._asking():
            return int(self._db.execute("SELECT max(last_us) FROM counter").fetchone()[0] or 0)

    def notes(self, namespace: str, call_ids: Sequence[str]) -> dict[str, tuple[str, int]]:
        """Agent and wall-clock time of these calls' notes in the database, by call id."""
        found: dict[str, tuple[str, int]] = {}
        with self._asking():
            for some in database.batches(call_ids):
                question = f"{_NOTES_OF} ({database.marks(some)})"
                found |= {call: (agent, us) for call, agent, us in self._db.execute(question, (namespace, *some))}
        return found

    # audit

    def entries(self, *, after: int = 0, wanted: Wanted | None = None) -> Iterator[Entry]:
        """See `Readable`."""
        pending = self._pending()
        if after < pending.first - 1:
            yield from self._archived(_AFTER, lambda last: (last, pending.first), after, wanted, _outcomes(pending.texts))
        yield from (entry for entry in _rows(pending, wanted) if entry.row_id > after)

    def newest(self, *, wanted: Wanted | None = None) -> Iterator[Entry]:
        """See `Readable`."""
        pending = self._pending()
        yield from reversed(list(_rows(pending, wanted)))
        yield from self._archived(_BEFORE, lambda last: (last,), pending.first, wanted, _outcomes(pending.texts))

    def rows(self, *, after: int = 0, wanted: Wanted | None = None) -> Iterator[list[StoredRow]]:
        """See `Readable`."""
        pending = self._pending()
        yield from (page for page, _ in self._pages(self._archive.page, pending, after, wanted))
        yield [one for one in _stored(pending, after) if wanted is None or wanted.admits_row(one.row, one.outcome)]

    def tally(self, *, after: int = 0, wanted: Wanted | None = None) -> Iterator[Tally]:
        """See `Readable`."""
        pending = self._pending()
        for calls, last in self._pages(self._archive.counts, pending, after, wanted):
            yield Tally(last, calls)
        rows = list(_stored(pending, after))
        last = rows[-1].row_id if rows else max(after, pending.first - 1)
        yield tally([one for one in rows if wanted is None or wanted.admits_row(one.row, one.outcome)], last)

    def _pages(
        self,
        read: Callable[[int, int, Condition, _Outcomes], tuple[_Found, int]],
        pending: Pending,
        after: int,
        wanted: Wanted | None,
    ) -> Iterator[tuple[_Found, int]]:
        """What a method of `Archive` reads of the database's rows, page by page."""
        with self._asking():
            condition = self._condition(wanted)
            first = self._first_since(wanted.written_since_us if wanted else 0)
        if condition is None:
            return
        outcomes = _outcomes(pending.texts)
        last = max(after, first - 1)
        while last < pending.first - 1:
            with self._asking():
                found, last = read(last, pending.first, condition, outcomes)
            yield found, last

    def outcomes_of(self, row_ids: Sequence[int]) -> list[Outcome]:
        """See `Readable`."""
        known, texts = self._with_log(lambda db: database.outcomes(db, row_ids))
        known = _outcomes(texts) | known
        return [Outcome(row_id, *known[row_id]) for row_id in row_ids if row_id in known]

    def _archived(
        self,
        question: str,
        bounds: Callable[[int], tuple[int, ...]],
        last: int,
        wanted: Wanted | None,
        outcomes: _Outcomes,
    ) -> Iterator[Entry]:
        """Rows of the database. Each query reads a few, so that upkeep does not wait long."""
        with self._asking():
            condition = self._condition(wanted)
        if condition is None:
            return
        while True:
            found: list[tuple[Any, ...]] = []
            chars = 0
            with self._asking(), contextlib.closing(self._db.execute(question % condition.sql, bounds(last))) as cursor:
                while chars <= PAGE_CHARS and (one := cursor.fetchone()):
                    found.append(one)
                    chars += len(one[_DETAIL] or "")
            for one in found:
                entry = _entry(one, outcomes)
                if not condition.unsure or condition.unsure.admits(entry.record):
                    yield entry
            if len(found) < _BATCH and chars <= PAGE_CHARS:
                return
            last = found[-1][0]

    def _condition(self, wanted: Wanted | None) -> Condition | None:
        """A filter for rows; None if no row can pass it. Rows share their texts, so few texts have to be examined."""
        if wanted is None:
            return Condition("", None)
        conditions = []
        is_exact = wanted.axis is None and wanted.outcomes is None
        every: list[tuple[int, str, int | None]] = []
        if wanted.context is not None or wanted.axis is not None:
            every = self._db.execute("SELECT id, json, namespace FROM fragment").fetchall()
        if wanted.context is not None:
            contexts = {key: at for key, text, at in every if at is not None and wanted.context(members(text))}
            if not contexts:
                return None
            is_few = len(contexts) <= _NAMED
            is_exact = is_exact and is_few
            of = f"a.context IN ({_numbers(contexts)})" if is_few else f"a.namespace IN ({_numbers(set(contexts.values()))})"
            conditions.append(of)
        if wanted.decisions is not None:
            conditions.append(f"a.decision IN ({','.join(map(repr, sorted(wanted.decisions)))})")
        if wanted.axis is not None:
            limits = [key for key, text, namespace in every if namespace is None and wanted.axis(str(members(text)["axis"]))]
            # a denial that no limit made tells its axis itself
            conditions.append(f"(a.reported IN ({_numbers(limits)}) OR (a.reported IS NULL AND a.detail IS NOT NULL))")
        if wanted.outcomes is not None:  # the outcome may be in the call log
            conditions.append(f"(a.outcome IS NULL OR a.outcome IN ({','.join(map(repr, sorted(wanted.outcomes)))}))")
        if wanted.since_us is not None:
            conditions.append(f"a.id >= {self._first_since(wanted.written_since_us)} AND a.time_us >= {wanted.since_us}")
        if wanted.until_us is not None:
            conditions.append(f"a.time_us < {wanted.until_us}")
        return Condition("".join(f"AND {one} " for one in conditions), None if is_exact else wanted)

    def _first_since(self, written_us: int) -> int:
        """An id that no row of this time or later is below. Found by bisection, because ids grow with the time of writing.

        Rows that waited for the store during an outage are older than those before them. So each step looks at several rows.
        """
        low, end = self._db.execute(_IDS).fetchone()
        while low < end:
            middle = (low + end) // 2
            (newest_us,) = self._db.execute(_NEWEST_AMONG, (middle,)).fetchone()
            if newest_us >= written_us:
                end = middle
            else:
                low = middle + 1
        return int(low)

    # both

    def _pending(self) -> Pending:
        at, texts = self._with_log(database.position)
        return Pending(at.row, texts)

    def _with_log(
        self,
        question: Callable[[sqlite3.Connection], _Found],
        upto: Position | None = None,
        *,
        naming: Sequence[bytes] = (),
    ) -> tuple[_Found, list[str]]:
        """The result of a query, and the log's records since then.

        Args:
            question: The query.
            upto: The position up to which to read the log; None for all of it.
            naming: With `upto`: leave the records out if none has one of these words.
        """
        for _ in range(_TRIES):
            with self._asking(), database.reading(self._db):
                at = database.position(self._db)
                found = question(self._db)
            if upto is not None and at.end > upto.end:
                raise Lost
            log = self._call_log()
            if log is None:
                return found, []
            try:
                if naming and upto and not log.has_any(naming, at, upto.end):
                    return found, []
                records = log.records(at)
                return found, [text for text, after in records if upto is None or after.end <= upto.end]
            except Lost:
                continue  # upkeep has moved them, and they were overwritten
        raise damaged(log_path(self.path), "it does not continue where the database is")

    def close(self) -> None:
        """Close the files."""
        self._db.close()
        if self._own_log is not None:
            self._own_log.close()


def _numbers(ids: Iterable[int]) -> str:
    return ",".join(map(str, ids))


def _outcomes(texts: Sequence[str]) -> dict[int, tuple[str, int]]:
    """The outcomes that records tell, by row; the first of each stands."""
    found: dict[int, tuple[str, int]] = {}
    for text in texts:
        for line in text.split("\n"):
            if line[0] == log_lines.OUTCOME:
                first, outcome, durations = log_lines.read_outcomes(line.split("\t"))
                for row_id, duration_us in enumerate(durations, first):
                    found.setdefault(row_id, (outcome, duration_us))
    return found


def _rows(pending: Pending, wanted: Wanted | None) -> Iterator[Entry]:
    """The audit rows of the log, oldest first."""
    for row_id, row, outcome, duration_us in _stored(pending, 0):
        found = record(row, outcome=outcome, duration_us=duration_us)
        if wanted is None or wanted.admits(found):
            yield Entry(row_id, found)


def _stored(pending: Pending, after: int) -> Iterator[StoredRow]:
    """The audit rows of the log after a row, oldest first."""
    outcomes = _outcomes(pending.texts)
    number = pending.first
    for text in pending.texts:
        for line in text.split("\n"):
            if line[0] == log_lines.ROW:
                if number > after:
                    yield StoredRow(number, log_lines.read_row(line.split("\t")), *outcomes.get(number, (None, None)))
                number += 1
            elif line[0] == log_lines.RUN:
                rows = log_lines.read_run(line.split("\t")).rows()
                found = [(number + at, row) for at, row in enumerate(rows) if number + at > after]
                yield from (StoredRow(row_id, row, *outcomes.get(row_id, (None, None))) for row_id, row in found)
                number += len(rows)


def _entry(found: Sequence[object], outcomes: _Outcomes) -> Entry:
    """A row as it is read from the database."""
    row_id, *row, outcome, duration_us = found
    if outcome is None:
        outcome, duration_us = outcomes.get(row_id, (None, None))  # type: ignore[call-overload]
    return Entry(row_id, record(Row(*row), outcome=outcome, duration_us=duration_us))  # type: ignore[arg-type]
