"""Reads outage logs into a store that can be used again: this wrapper's own, and those of wrappers that have ended.

Theory of operation. A log is read in batches, and always from its start. Nothing is added to it meanwhile, so it has the same
batches for whoever reads it. The charges of a batch have an id, which names its part of the log, and the store counts each id
once. A later version that reads other batches counts some charges twice, but leaves none out. A log tells whether a store may
have some of its rows: then they are looked for among the rows after those that the store had before. So reading a log may be
interrupted at any moment, and done again by anybody.
"""

import contextlib
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from itertools import islice

from mcpguard.errors import StoreUnavailable
from mcpguard.light_typing import Final, NamedTuple
from mcpguard.limiter import sliding
from mcpguard.limiter.plan import Counter
from mcpguard.limiter.sliding import EMPTY, State
from mcpguard.session.audit import Outcome, Row, session_of
from mcpguard.session.verdict import FORWARDED
from mcpguard.stores.api import Clock, Recoverable
from mcpguard.stores.outage.log import Means, OutageFolder, OutageLog, key_id
from mcpguard.stores.sqlite import log_lines
from mcpguard.text.printing import plural

BATCH_CHARS: Final = 64 * 1024
"""How much text a batch may have, unless a single row has more."""

UNLOCKED_ROUNDS: Final = 2
"""How many outage logs are read into the store while calls go on. If there is one more, calls log as much as is read."""

MAX_ROW_IDS: Final = 10_000
"""Of how many rows of an outage the store's ids are kept. Outcomes of older rows are lost."""

TOO_SLOW: Final = StoreUnavailable("it answers too slowly")
"""The failure of a store that would let a call wait too long while it is handed an outage."""

LOOK_EVERY_US: Final = 60_000_000
"""How often the folder is searched. It is also searched whenever a store can be used again."""

WORK_US: Final = 300_000
"""After this time `take_in` returns, so that the bookkeeper's other tasks get their turn."""

_ENTRIES: Final = 500
"""How many rows are read while a call waits."""

Using = Callable[[], AbstractContextManager[object]]
"""Entered for each operation of the store. Raises `StoreUnavailable` if it must not begin."""


class _Batch(NamedTuple):
    """What some lines of a log say: rows by provisional id, outcomes, and what was charged, by counter id."""

    rows: dict[int, Row]
    outcomes: list[Outcome]
    logs: dict[int, State]


def _batches(log: OutageLog) -> Iterator[str]:
    """The text of each batch."""
    some: list[str] = []
    size = 0
    for text in log.texts():
        if size + len(text) > BATCH_CHARS or len(some) >= log.bounds.batch:
            yield "\n".join(some)
            some, size = [], 0
        some.append(text)
        size += len(text)
    yield "\n".join(some)


def _read(text: str, log: OutageLog, labelled: dict[int, Counter], now_us: int) -> _Batch:
    """Read a batch. `labelled` gets the counters that it names, and `log.read_rows` grows by its rows."""
    batch = _Batch({}, [], {})
    for line in text.split("\n") if text else ():
        kind, *fields = line.split("\t")
        if kind == log_lines.COUNTER:
            labelled[int(fields[0])] = Counter(int(fields[0]), fields[2], int(fields[1]))
        elif kind == log_lines.OUTCOME:
            row_id, outcome, duration_us = fields
            batch.outcomes.append(Outcome(int(row_id), outcome, int(duration_us)))
        else:
            if kind == log_lines.ROW:
                batch.rows[log.row_id(log.read_rows)] = log_lines.read_row([kind, *fields])
                log.read_rows += 1
            *_, charged_us, charged = fields
            if charged:
                _charge(batch.logs, charged, min(int(charged_us) + log.shift_us, now_us))
    return batch


def _charge(logs: dict[int, State], charged: str, at_us: int) -> None:
    for key, window_us, n, cost in log_lines.read_charges(charged):
        log = logs.get(key, EMPTY)
        now_us = max(at_us, log[-2]) if log else at_us
        logs[key] = sliding.charge(sliding.live(log, window_us, now_us), n, window_us, now_us, cost)


def _session(log: OutageLog) -> str:
    """The session that a log is of, if it has a row."""
    lines = (line for text in log.texts() for line in text.split("\n") if line[0] == log_lines.ROW)
    return next((session_of(log_lines.read_row(line.split("\t"))) for line in lines), "")


def read_into(store: Recoverable, log: OutageLog, row_ids: dict[int, int], *, clock: Clock, using: Using) -> Iterator[None]:
    """Read a log into a store. It can be interrupted, and done again, after each step.

    Args:
        store: The store.
        log: The log, to which nothing is added meanwhile.
        row_ids: Gets the store's ids of rows of forwarded calls, by provisional row id.
        clock: The clock of the wrapper that reads.
        using: See `Using`.

    Raises:
        StoreUnavailable: The rest could not be written, or its success is unknown.
        ValueError, LookupError: The log is malformed.
    """
    key, found = store.args_key, {}
    log.read_rows = 0
    if log.to_disk:
        with using():
            after = log.begin_reading(store)
        entries = store.entries(after=after) if after is not None else iter(())
        session = _session(log)
        while True:
            with using():
                some = [*islice(entries, _ENTRIES)]
            if not some:
                break
            for row_id, record in some:
                if record.get("session") == session:
                    found[record["seq"], record["time_us"]] = row_id
    labelled: dict[int, Counter] = {}
    is_same = log.key == key_id(key)
    end = 0
    for text in _batches(log):
        begin, end = end, end + len(text)
        if store.args_key != key:  # its server came back without its data
            raise StoreUnavailable("another store has taken its place")
        now_us = clock()
        rows, outcomes, logs = _read(text, log, labelled, now_us)
        alive = [(labelled[at], sliding.live(one, labelled[at].window_us, now_us)) for at, one in logs.items()]
        if charged := [(counter, sliding.shift(one, -now_us)) for counter, one in alive if one]:
            with using():
                store.adopt(charged, f"{log.id}-{begin}-{end}")
        ids = {at: found.get((row.seq, row.time_us)) for at, row in rows.items()}
        if new := {at: row for at, row in rows.items() if ids.get(at) is None}:
            with using():
                kept = [row if is_same else row._replace(args_hash=None) for row in new.values()]
                ids |= zip(new, store.append(kept), strict=True)
        row_ids.update((at, row_id) for at, row_id in ids.items() if row_id and rows[at].decision in FORWARDED)
        told = [one._replace(row_id=row_ids.get(one.row_id, one.row_id)) for one in outcomes if one.row_id < 0 or is_same]
        if told := [one for one in told if one.row_id >= 0]:
            with using():
                store.record(told)
        yield


class OwnLogs:
    """Reads this wrapper's outage logs into a store, one after another.

    Args:
        clock: The clock of this wrapper.

    Attributes:
        reading: The log that is read into the store; None if there is none.
        read: The logs that the store has, and that are not removed yet.
        row_ids: See `read_into`.
        rows: How many rows the store has got since `begin`.
        dropped: How many rows had no room in these logs.
        late_us: After this time no operation of the store may begin, since a call may wait for it; 0 if none waits.
    """

    def __init__(self, clock: Clock) -> None:
        self.reading: OutageLog | None = None
        self.read: list[OutageLog] = []
        self.row_ids: dict[int, int] = {}
        self.rows = self.dropped = self.late_us = 0
        self._clock = clock
        self._steps: Iterator[None] | None = None
        self._rounds = UNLOCKED_ROUNDS  # the first store that opens gets all while the first call waits

    def begin(self) -> None:
        """Begin anew, because another store is to get them."""
        self._steps = None
        self._rounds = self.rows = self.dropped = 0

    def read_short(self, store: Recoverable, take: Callable[[], OutageLog | None]) -> bool:
        """Read short logs until it is late. The caller holds the lock that calls need. Returns whether all logs are read.

        Args:
            store: The store.
            take: Returns the next log, if anything was logged since the last one.
        """
        while not self._is_late:
            if self._steps is None:
                self.reading = self.reading or take()
                if self.reading is None:
                    return True
                self._steps = read_into(store, self.reading, self.row_ids, clock=self._clock, using=self.on_time)
                self._rounds += 1
            if self.is_long:
                break
            self.read_on()
        return False

    @property
    def is_long(self) -> bool:
        """Whether the log that is read is so long that it has to be read while calls go on."""
        log = self.reading
        return log is not None and log.rows > log.bounds.batch and self._rounds <= UNLOCKED_ROUNDS

    @property
    def _is_late(self) -> bool:
        return bool(self.late_us) and self._clock() > self.late_us

    @contextlib.contextmanager
    def on_time(self) -> Iterator[None]:
        """See `Using`."""
        if self._is_late:
            raise TOO_SLOW
        yield

    def read_on(self) -> None:
        """Read a batch."""
        if self._steps is None or next(self._steps, self._steps) is None:
            return
        log, self.reading, self._steps = self.reading, None, None
        assert log is not None  # noqa: S101 - it is what the steps read
        self.rows += log.read_rows
        self.dropped += log.dropped
        if log.path:
            self.read.append(log)
        for row_id in list(self.row_ids)[:-MAX_ROW_IDS]:
            del self.row_ids[row_id]

    def remove_read(self) -> None:
        """Remove the logs that the store has. If this process ends before that, another one finds that the store has them."""
        while self.read:
            self.read[0].remove()
            del self.read[0]


class LeftLogs:
    """The outage logs that other wrappers of the same store and namespace left.

    Args:
        means: The folder, and the clocks of this wrapper.
        row_ids: See `read_into`.
        notify: Gets a line for each log that was read into the store, that was damaged, or that cannot be read.

    Attributes:
        has_work: Whether `take_in` should be called soon.
    """

    def __init__(self, means: Means, row_ids: dict[int, int], notify: Callable[[str], None]) -> None:
        self.has_work = means.folder is not None
        self._means = means
        self._row_ids = row_ids
        self._notify = notify
        self._steps: Generator[None] | None = None
        self._refused: set[str] = set()  # files that cannot be read
        self._next_us = 0  # when to search the folder again

    def look_soon(self) -> None:
        """Let the next `take_in` search the folder, because a store can be used again."""
        self.close()
        self.has_work = self._means.folder is not None

    def take_in(self, store: Recoverable, using: Using) -> None:
        """Read some of the logs into the store. Does not raise: a failure is tried again after `LOOK_EVERY_US`.

        Args:
            store: The store that calls use.
            using: See `Using`. No call may use the store meanwhile.
        """
        now_us = self._means.clock()
        if self._means.folder is None or not (self.has_work or now_us >= self._next_us):
            return
        self._steps = self._steps or self._read_all(self._means.folder, store, using)
        with contextlib.suppress(StoreUnavailable):
            for _ in self._steps:
                if self._means.clock() > now_us + WORK_US:
                    self.has_work = True
                    return
        self._steps, self.has_work, self._next_us = None, False, now_us + LOOK_EVERY_US

    def close(self) -> None:
        """Release the log that is not finished to other wrappers."""
        if self._steps:
            self._steps.close()
            self._steps = None

    def _read_all(self, folder: OutageFolder, store: Recoverable, using: Using) -> Generator[None]:
        for file in folder.left_behind():
            if file.path in self._refused:
                file.close()
                continue
            try:
                log = OutageLog.of_file(self._means, folder, file)
                yield from read_into(store, log, self._row_ids, clock=self._means.clock, using=using)
            except StoreUnavailable:
                raise
            except Exception as error:
                self._refused.add(file.path)
                self._notify(f"{file.path} cannot be taken in and is left as it is: {error!r}")
            else:
                log.remove()
                if log.read_rows:
                    rows = plural(log.read_rows, "audit row")
                    self._notify(f"a wrapper ended while the store was unavailable: {rows} of the outage written")
                if log.damaged:
                    self._notify(f"{file.path} was damaged: calls or audit rows are lost")
            finally:
                file.close()
