"""Reads the database and the newer records of the call log as one store. It writes nothing and delays no call.

It works on a read-only file system. A process may be killed while it writes to the database. SQLite rolls that back when the
next connection that may write to the file opens it, even a reader's.

Each query for audit rows reads a few and ends before they are used, so that upkeep does not wait long.
"""

import _sqlite3 as sqlite3
import collections
import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from mcpguard.files import StrPath, is_there
from mcpguard.light_typing import Any, Final, TypeVar
from mcpguard.limiter import sliding
from mcpguard.limiter.plan import Counter
from mcpguard.limiter.sliding import State
from mcpguard.session.audit import Outcome, Row, is_whole, whole_members
from mcpguard.stores import clock
from mcpguard.stores.api import Clock, CounterUse, StoredRow, Wanted
from mcpguard.stores.rows import Losses, Pages
from mcpguard.stores.sqlite import call_log, database, log_lines
from mcpguard.stores.sqlite.call_log import START, CallLog, Lost, Position, beside, log_path
from mcpguard.stores.sqlite.memory import Memory
from mcpguard.stores.sqlite.places import alive

_TRIES: Final = 5
"""How often to start over if upkeep moves records into the database while they are read."""

_PAGE_ROWS: Final = 500
_PAGE_CHARS: Final = 4 * 1024 * 1024
"""A page ends before it has more rows, or more characters of detail. A call of this process may wait for it."""

_NAMED: Final = 10_000
"""The most contexts that a query names. SQLite limits the length of a query."""

_ROWS: Final = """
    SELECT a.id, a.time_us, a.seq, a.decision, a.context, a.reported, a.request_id, a.args_hash, a.trace_id, a.counted,
        a.remaining, a.retry_after_ms, a.repeats, a.detail, a.outcome, a.duration_us
    FROM audit a WHERE a.id > ? AND a.id < ? %s ORDER BY a.id %s
"""
_IDS: Final = "SELECT coalesce((SELECT min(id) FROM audit), 1), coalesce((SELECT max(id) FROM audit), 0) + 1"
_NEWEST_AMONG: Final = """
    SELECT max(time_us) FROM (SELECT time_us FROM audit WHERE id >= ? ORDER BY id LIMIT 256) WHERE typeof(time_us) = 'integer'
"""

_Found = TypeVar("_Found")
_Outcomes = Mapping[int, tuple[str, int]]
"""Outcomes and durations in µs, by row id."""

_Records = tuple[list[str], int, int]
"""Texts of records, the id of the first row among them, and that of the next row after them."""


class SqliteReader(Pages):
    """A store that is read.

    Args:
        path: The database.
        log: The call log, which `close` does not close; None to open it as soon as it exists. Then a store is read as it would
            be after its repair by a wrapper.
        timeout_s: How long to wait for upkeep.
        notify: Is told what is lost, once each. Without it a damaged row is an error.

    Attributes:
        clock: The store's time.

    Raises:
        StoreUnavailable: The store cannot be read.
    """

    def __init__(
        self,
        path: StrPath,
        log: CallLog | None = None,
        *,
        timeout_s: float = database.BUSY_S,
        notify: Callable[[str], None] | None = None,
    ) -> None:
        self.path = os.fspath(path)
        self._losses = Losses(self.path, notify)
        self._own_log: CallLog | None = None
        self._journal = beside(path, "-journal")
        with contextlib.ExitStack() as undo, database.reported(path):
            self._identity = database.identity(path)
            found = database.connect(path, timeout_s=timeout_s) if is_there(path) else _lost_database(path)
            self._db = undo.enter_context(contextlib.closing(found))
            self._db.execute("PRAGMA query_only = ON")
            if log is None:  # else whoever opened it has asked, and the database may be locked
                database.await_schema(self._db, path)
            undo.pop_all()
        self._log = log
        self.clock: Clock = self._shared_clock

    def _ask_for_texts(self, ask: Callable[[], _Found]) -> _Found:
        """The result of a query for texts. Those that are damaged so that they are not UTF-8 are bytes."""
        with self._asking():
            try:
                return ask()
            except sqlite3.OperationalError as error:
                if "UTF-8" not in str(error):
                    raise
            self._db.text_factory = _text_or_bytes  # not always: it takes half as long again
            return ask()

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        """Query the database, and report errors.

        SQLite finds the journal of an unfinished transaction by the database's name, and rolls the transaction back. If the
        database was replaced, the journal is its successor's, and would be destroyed.
        """
        with database.reported(self.path):
            if is_there(self._journal):
                self.check()
            yield

    def check(self) -> None:
        """Check that the path still names the database.

        Raises:
            StoreUnavailable: It was removed or replaced.
        """
        if database.identity(self.path) != self._identity:
            raise database.replaced(self.path)

    def _call_log(self) -> CallLog | None:
        """The call log; None while another process creates the store."""
        with database.reported(self.path):
            if self._log is None and is_there(log_path(self.path)):
                self._log = self._own_log = CallLog(log_path(self.path), writable=False)
        return self._log

    def _shared_clock(self) -> int:
        """The store's time. On another machine, or after a restart of the machine, what a wrapper would begin with."""
        log = self._call_log()
        header = log.header if log else {}
        with database.reported(self.path):
            is_of_this_boot = header.get("time_base") == clock.base_id()
        if is_of_this_boot:
            return clock.boot_us() + int(str(header["time_offset_us"]))
        return max(clock.wall_us(), self._memory_now().latest_us())

    @property
    def args_key(self) -> bytes:
        """See `Readable`."""
        log = self._call_log()
        if log is not None:
            return log.key
        with self._asking():  # the call log was removed, or another process is about to create it
            return database.key(self._db) or b""

    # counters

    def counters(self) -> list[CounterUse]:
        """See `Readable`."""
        now_us = self.clock()
        question = "SELECT id, label FROM counter WHERE label != ?"
        (memory, labels), (texts, *_) = self._with_log(
            lambda db: (database.load(db), dict(db.execute(question, (log_lines.NO_LABEL,)).fetchall()))
        )
        labels |= {int(key): label for _, key, _, label in _lines(texts, log_lines.COUNTER)}
        memory.apply(texts)
        logs = [
            (labels[key], sliding.live(log, memory.windows[key], now_us)) for key, log in memory.states.items() if key in labels
        ]
        in_flight = collections.Counter(place.label for place in alive(memory.places, self.path).values())
        return [CounterUse(label, sliding.used(log), log) for label, log in logs if log] + [
            CounterUse(label, calls, sliding.EMPTY) for label, calls in in_flight.items()
        ]

    def peek(self, counters: Sequence[Counter]) -> tuple[list[State], int]:
        """See `Readable`."""
        memory = self._memory_now()
        memory.places = alive(memory.places, self.path)
        return memory.states_of(counters), self.clock()

    def _memory_now(self) -> Memory:
        """The counters and places at the end of the log."""
        memory, (texts, *_) = self._with_log(database.load)
        memory.apply(texts)
        return memory

    def memory(self) -> tuple[Memory, Position]:
        """The database's counters and places, and the position from which a process then follows the call log."""
        with self._asking(), database.reading(self._db):
            return database.load(self._db), database.position(self._db)

    # audit

    def _pages(self, after: int, wanted: Wanted | None, *, newest_first: bool = False) -> Iterator[tuple[list[StoredRow], int]]:
        """See `Pages`: the rows of database and log."""
        _, (texts, first, next_row) = self._with_log(lambda _: None)
        outcomes = log_lines.outcomes(texts)
        of_log = list(_of_log(first, texts, outcomes, after, wanted))
        if newest_first:
            yield of_log[::-1], 0
        at, before = after, first
        if at < before - 1:
            condition, least = self._ask_for_texts(functools.partial(self._condition, wanted))
            at = max(at, least - 1)
            ask = functools.partial(self._page, condition=condition, outcomes=outcomes, newest_first=newest_first)
            while at < before - 1:
                page, at, before = self._ask_for_texts(functools.partial(ask, at, before))
                yield [one for one in page if wanted is None or wanted.admits_row(one.row, one.outcome)], at
        if not newest_first:
            yield of_log, max(after, next_row - 1)

    def _condition(self, wanted: Wanted | None) -> tuple[str, int]:
        """A condition in SQL that the wanted rows meet, and others may, too; and an id that no wanted row is below.

        Rows share their texts, so few texts have to be examined.
        """
        if wanted is None:
            return "", 0
        conditions = []
        if wanted.context is not None:
            every = self._db.execute("SELECT id, json FROM fragment WHERE namespace IS NOT NULL")
            known = ((key, whole_members(text, "namespace")) for key, text in every)
            contexts = [key for key, one in known if one is None or wanted.context(one)]  # or a damaged row is not named
            if len(contexts) <= _NAMED:
                conditions.append(f"a.context IN ({','.join(map(str, contexts))})")
        if wanted.decisions is not None:
            conditions.append(f"a.decision IN ({','.join(map(repr, sorted(wanted.decisions)))})")
        if wanted.axis is not None:
            conditions.append("(a.reported IS NOT NULL OR a.detail IS NOT NULL)")
        if wanted.outcomes is not None:  # the outcome may be in the call log
            conditions.append(f"(a.outcome IS NULL OR a.outcome IN ({','.join(map(repr, sorted(wanted.outcomes)))}))")
        if wanted.since_us is not None:
            conditions.append(f"a.time_us >= {wanted.since_us}")
        if wanted.until_us is not None:
            conditions.append(f"a.time_us < {wanted.until_us}")
        return "".join(f"AND {one} " for one in conditions), self._first_since(wanted.written_since_us)

    def _first_since(self, written_us: int) -> int:
        """An id that no row of this time or later is below; for 0 the first id.

        Found by bisection, because ids grow with the time of writing.

        Rows that waited for the store during an outage are older than those before them. So each step looks at several rows.
        """
        low, end = self._db.execute(_IDS).fetchone()
        while low < end and written_us:
            middle = (low + end) // 2
            (newest_us,) = self._db.execute(_NEWEST_AMONG, (middle,)).fetchone()
            if newest_us is None or newest_us >= written_us:
                end = middle
            else:
                low = middle + 1
        return int(low)

    def _page(
        self, after: int, before: int, *, condition: str, outcomes: _Outcomes, newest_first: bool
    ) -> tuple[list[StoredRow], int, int]:
        """The next rows of the database.

        Args:
            after: The largest id that is too small.
            before: The smallest id that is too large.
            condition: See `_condition`.
            outcomes: The outcomes that are not in the database yet, by row id.
            newest_first: Whether to begin with the largest id.

        Returns:
            The rows; and the bounds `after` and `before` of those that were not looked at.
        """
        found: list[tuple[Any, ...]] = []
        chars = 0
        last = after if newest_first else before - 1
        with database.reading(self._db):
            cursor = self._db.execute(_ROWS % (condition, "DESC" if newest_first else ""), (after, before))
            for one in cursor:
                found.append(one)
                chars += len(str(one[13] or ""))
                if len(found) == _PAGE_ROWS or chars > _PAGE_CHARS:
                    last = one[0]
                    break
            cursor.close()
            texts = self._texts(key for one in found for key in one[4:6])
        rows = []
        for row_id, *values, outcome, duration_us in found:
            if outcome is None and row_id in outcomes:
                outcome, duration_us = outcomes[row_id]
            values[3:5] = texts.get(values[3], ""), texts.get(values[4], values[4])
            row = Row(*values)
            if is_whole(row, outcome, duration_us):
                rows.append(StoredRow(row_id, row, outcome, duration_us))
            else:
                self._losses.skip(row_id)
        return (rows, after, last) if newest_first else (rows, last, before)

    def _texts(self, keys: Iterable[int | None]) -> dict[int | None, str]:
        """The shared texts of rows, by id."""
        found: dict[int | None, str] = {}
        for some in database.batches(list({key for key in keys if key is not None})):
            found.update(self._db.execute(f"SELECT id, json FROM fragment WHERE id IN ({database.marks(some)})", some))  # noqa: S608 - marks only
        return found

    def outcomes_of(self, row_ids: Sequence[int]) -> list[Outcome]:
        """See `Readable`."""
        known, (texts, *_) = self._with_log(lambda db: database.outcomes(db, row_ids))
        known = log_lines.outcomes(texts) | known
        return [Outcome(row_id, *known[row_id]) for row_id in row_ids if row_id in known]

    # both

    def _with_log(self, question: Callable[[sqlite3.Connection], _Found], tries: int = _TRIES) -> tuple[_Found, _Records]:
        """The result of a query, and the log's records that the database did not have then."""
        with self._asking(), database.reading(self._db):
            at = database.position(self._db)
            found = question(self._db)
        log = self._call_log()
        if log is None:
            if at.end > START.end:  # else another process is creating the store
                self._losses.tell(call_log.removed(log_path(self.path)))
            return found, ([], at.row, at.row)
        with contextlib.suppress(Lost), database.reported(log.path):
            return found, _records(log, at)
        if tries > 1:  # upkeep may have moved them since, and calls overwritten them
            return self._with_log(question, tries - 1)
        if log is not self._own_log:
            raise Lost(log.path)
        with database.reported(log.path):  # what a wrapper would take in of it when it repairs the store
            log.check()
            since, lost = log.resumed(at, self.path)
            self._losses.tell(lost)
            return found, _records(log, since) if since else ([], at.row, at.row)

    def close(self) -> None:
        """Close the files."""
        self._db.close()
        if self._own_log is not None:
            self._own_log.close()


def _lost_database(path: StrPath) -> sqlite3.Connection:
    """In place of a database that was removed, the one that a wrapper would make, with the key and the position of the log."""
    with contextlib.closing(CallLog(log_path(path), writable=False)) as log:
        db = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        database.migrate(db, path)
        database.begin(db, log.key, log.drained())
        return db


def _records(log: CallLog, at: Position) -> _Records:
    found = [*log.records(at)]
    return [text for text, _ in found], at.row, (found[-1][1] if found else at).row


def _text_or_bytes(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _lines(texts: Sequence[str], kind: str) -> Iterator[list[str]]:
    """The fields of the lines of a kind."""
    return (line.split("\t") for text in texts for line in text.split("\n") if line[0] == kind)


def _of_log(first: int, texts: Sequence[str], outcomes: _Outcomes, after: int, wanted: Wanted | None) -> Iterator[StoredRow]:
    """The wanted audit rows of the log after a row, oldest first."""
    for row_id, fields in enumerate(_lines(texts, log_lines.ROW), first):
        if row_id > after:  # others are not parsed: somebody who follows the log reads it again and again
            row, outcome = log_lines.read_row(fields), outcomes.get(row_id, (None, None))
            if wanted is None or wanted.admits_row(row, outcome[0]):
                yield StoredRow(row_id, row, *outcome)
