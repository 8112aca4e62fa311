"""Reads the database and the newer records of the call log as one store. It writes nothing and delays no call.

It works on a read-only file system. A process may be killed while it writes to the database. SQLite rolls that back when the
next connection that may write to the file opens it, even a reader's.
"""

import _sqlite3 as sqlite3
import collections
import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence

from mcpguard.files import StrPath, is_there
from mcpguard.light_typing import Final, NamedTuple, TypeVar
from mcpguard.limiter import sliding
from mcpguard.limiter.plan import Counter
from mcpguard.limiter.sliding import State
from mcpguard.session.audit import Outcome
from mcpguard.stores import clock
from mcpguard.stores.api import Clock, CounterUse, Entry, StoredRow, Tally, Wanted
from mcpguard.stores.losses import Losses
from mcpguard.stores.sqlite import call_log, database, log_lines
from mcpguard.stores.sqlite.archive import Archive
from mcpguard.stores.sqlite.call_log import CallLog, Lost, beside, damaged, log_path
from mcpguard.stores.sqlite.in_flight import InFlight, Owners
from mcpguard.stores.sqlite.log_records import START, Position
from mcpguard.stores.sqlite.memory import Memory
from mcpguard.stores.sqlite.schema import migrate, require_schema

_TRIES: Final = 5
"""How often to start over if upkeep moves records into the database while they are read."""

_Found = TypeVar("_Found")


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
                require_schema(self._db, path)
            undo.pop_all()
        self._archive = Archive(self._db, self._losses.skip)
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
            if is_there(self._journal) and database.identity(self.path) != self._identity:
                raise database.replaced(self.path)
            yield

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

    def held(self) -> list[CounterUse]:
        """See `Readable`."""
        now_us = self.clock()
        question = "SELECT id, label FROM counter WHERE label != ?"
        (memory, labels), (_, texts) = self._with_log(
            lambda db: (database.load(db), dict(db.execute(question, (log_lines.NO_LABEL,)).fetchall()))
        )
        labels |= {int(key): label for _, key, _, label in _lines(texts, log_lines.COUNTER)}
        memory.apply(texts)
        logs = [
            (labels[key], sliding.live(log, memory.windows[key], now_us)) for key, log in memory.states.items() if key in labels
        ]
        in_flight = collections.Counter(place.label for place in self._in_flight(memory))
        return [CounterUse(label, sliding.used(log), log) for label, log in logs if log] + [
            CounterUse(label, calls, sliding.EMPTY) for label, calls in in_flight.items()
        ]

    def peek(self, counters: Sequence[Counter]) -> tuple[list[State], int]:
        """See `Readable`."""
        memory = self._memory_now()
        memory.in_flight = self._in_flight(memory)
        return memory.states_of(counters), self.clock()

    def _memory_now(self) -> Memory:
        """The counters and places at the end of the log."""
        memory, (_, texts) = self._with_log(database.load)
        memory.apply(texts)
        return memory

    def _in_flight(self, memory: Memory) -> InFlight:
        """The calls in flight, of processes that still run."""
        calls = memory.in_flight
        return calls.without(Owners(self.path).dead({place.owner for place in calls}))

    def memory(self) -> tuple[Memory, Position]:
        """The database's counters and places, and the position from which a process then follows the call log."""
        with self._asking(), database.reading(self._db):
            return database.load(self._db), database.position(self._db)

    # audit

    def entries(self, *, after: int = 0, wanted: Wanted | None = None) -> Iterator[Entry]:
        """See `Readable`."""
        return (one.entry for page, _ in self._pages(after, wanted) for one in page)

    def newest(self, *, wanted: Wanted | None = None) -> Iterator[Entry]:
        """See `Readable`."""
        return (one.entry for page, _ in self._pages(0, wanted, newest_first=True) for one in page)

    def rows(self, *, after: int = 0, wanted: Wanted | None = None) -> Iterator[list[StoredRow]]:
        """See `Readable`."""
        return (page for page, _ in self._pages(after, wanted))

    def tally(self, *, after: int = 0, wanted: Wanted | None = None) -> Iterator[Tally]:
        """See `Readable`."""
        from mcpguard.stores.tally import tally  # only commands need it

        return (tally(page, last_id) for page, last_id in self._pages(after, wanted))

    def _pages(self, after: int, wanted: Wanted | None, *, newest_first: bool = False) -> Iterator[tuple[list[StoredRow], int]]:
        """The wanted rows of database and log, page by page; and the last id of each page, if they ascend."""
        _, pending = self._with_log(lambda _: None)
        outcomes = _outcomes(pending.texts)
        of_log = list(_of_log(pending, outcomes, after, wanted))
        if newest_first:
            yield of_log[::-1], 0
        at, before = after, pending.first
        if at < before - 1:
            condition, first = self._ask_for_texts(lambda: self._archive.condition(wanted))
            at = max(at, first - 1)
            ask = functools.partial(
                self._archive.page, condition=condition, wanted=wanted, outcomes=outcomes, newest_first=newest_first
            )
            while at < before - 1:
                page, at, before = self._ask_for_texts(functools.partial(ask, at, before))
                yield page, at
        if not newest_first:
            yield of_log, max(after, pending.first - 1 + sum(map(log_lines.rows_in, pending.texts)))

    def outcomes_of(self, row_ids: Sequence[int]) -> list[Outcome]:
        """See `Readable`."""
        known, (_, texts) = self._with_log(lambda db: database.outcomes(db, row_ids))
        known = _outcomes(texts) | known
        return [Outcome(row_id, *known[row_id]) for row_id in row_ids if row_id in known]

    # both

    def _with_log(self, question: Callable[[sqlite3.Connection], _Found], tries: int = _TRIES) -> tuple[_Found, Pending]:
        """The result of a query, and the log's records since then."""
        with self._asking(), database.reading(self._db):
            at = database.position(self._db)
            found = question(self._db)
        log = self._call_log()
        if log is None:
            if at.end > START.end:  # else another process is creating the store
                self._losses.tell(call_log.removed(log_path(self.path)))
            return found, Pending(at.row, [])
        with contextlib.suppress(Lost), database.reported(log.path):
            return found, Pending(at.row, [text for text, _ in log.records(at)])
        if tries > 1:  # upkeep may have moved them since, and calls overwritten them
            return self._with_log(question, tries - 1)
        if log is not self._own_log:
            raise damaged(log.path, "it does not continue where the database is")
        return found, self._repaired(log, at)

    def _repaired(self, log: CallLog, at: Position) -> Pending:
        """What a wrapper would take in of a log that does not continue at the database's position."""
        with database.reported(log.path):
            log.check()
            since, lost = log.resumed(at, self.path)
            self._losses.tell(lost)
            return Pending(at.row, []) if since is None else Pending(since.row, [text for text, _ in log.records(since)])

    def close(self) -> None:
        """Close the files."""
        self._db.close()
        if self._own_log is not None:
            self._own_log.close()


def _lost_database(path: StrPath) -> sqlite3.Connection:
    """In place of a database that was removed, the one that a wrapper would make, with the key and the position of the log."""
    with contextlib.closing(CallLog(log_path(path), writable=False)) as log:
        db = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        migrate(db, path)
        database.begin(db, log.key, log.drained())
        return db


def _text_or_bytes(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _lines(texts: Sequence[str], kind: str) -> Iterator[list[str]]:
    """The fields of the lines of a kind."""
    return (line.split("\t") for text in texts for line in text.split("\n") if line[0] == kind)


def _outcomes(texts: Sequence[str]) -> dict[int, tuple[str, int]]:
    """The outcomes that records tell, by row; the first of each stands."""
    found: dict[int, tuple[str, int]] = {}
    for _, row_id, outcome, duration_us in _lines(texts, log_lines.OUTCOME):
        found.setdefault(int(row_id), (outcome, int(duration_us)))
    return found


def _of_log(
    pending: Pending, outcomes: Mapping[int, tuple[str, int]], after: int, wanted: Wanted | None
) -> Iterator[StoredRow]:
    """The wanted audit rows of the log after a row, oldest first."""
    for row_id, fields in enumerate(_lines(pending.texts, log_lines.ROW), pending.first):
        if row_id > after:  # others are not parsed: somebody who follows the log reads it again and again
            row, outcome = log_lines.read_row(fields), outcomes.get(row_id, (None, None))
            if wanted is None or wanted.admits_row(row, outcome[0]):
                yield StoredRow(row_id, row, *outcome)
