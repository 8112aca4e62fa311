"""Reads outage logs into a store that can be used again: this wrapper's own, and those of wrappers that have ended.

Theory of operation. What a log has charged is counted first, before calls use the store. It is sent in parts with an id each,
and the store counts each id once. Its rows and outcomes follow in batches, while calls go on. A log tells whether a store may
have some of its rows: then they are looked for among the rows after those that the store had before. So reading a log may be
interrupted at any moment, and done again by anybody, from its start.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager
from itertools import islice
from typing import Final

from mcpguard.errors import StoreUnavailable
from mcpguard.session.audit import Row, session_of
from mcpguard.session.verdict import FORWARDED
from mcpguard.stores.api import AuditReader, Recoverable
from mcpguard.stores.outage.log import Means, OutageLog, key_id
from mcpguard.text.printing import plural

MAX_ROW_IDS: Final = 10_000
"""Of how many rows of an outage the store's ids are kept. Outcomes of older rows are lost."""

LOOK_EVERY_US: Final = 60_000_000
"""How often the folder is searched. It is also searched whenever a store can be used again."""

_ENTRIES: Final = 500
"""How many rows are read while a call waits."""

Using = Callable[[], AbstractContextManager[object]]
"""Entered for each operation of the store. Raises `StoreUnavailable` if it must not begin."""


class Recovery:
    """Reads this wrapper's logs into the store, and then those that other wrappers of the same store and namespace left.

    Args:
        means: The folder, and the clocks of this wrapper.
        notify: Gets a line for each log of another wrapper that was read, that was damaged, or that cannot be read.

    Attributes:
        own: This wrapper's logs that the store has not read yet, or not removed.
        row_ids: The store's ids of rows of forwarded calls, by provisional row id.
        rows: How many rows of this wrapper's logs the store has got since the last `begin`.
        dropped: How many rows had no room in these logs.
    """

    def __init__(self, means: Means, notify: Callable[[str], None]) -> None:
        self.own: list[OutageLog] = []
        self.row_ids: dict[int, int] = {}
        self.rows = self.dropped = 0
        self._means = means
        self._notify = notify
        self._steps: Generator[None] | None = None
        self._using: Using
        self._refused: set[str] = set()  # files that cannot be read
        self._looks = means.folder is not None  # whether to search the folder soon
        self._next_us = 0  # when to search it again

    @property
    def has_work(self) -> bool:
        """Whether `take_in` should be called soon, even if there are no own logs."""
        return self._looks or self._steps is not None

    def begin(self, store: Recoverable, using: Using) -> None:
        """Begin anew, with a store that can be used again: count what this wrapper has charged.

        Raises:
            StoreUnavailable: Not all of it was counted, or it is unknown.
        """
        self.close()
        self.rows = self.dropped = 0
        self._looks = self._means.folder is not None
        for log in self.own:
            _count(log, store, using)

    def take_in(self, store: Recoverable, using: Using, until_us: int) -> None:
        """Read some of the logs into the store. A failure with a log of another wrapper is tried again after `LOOK_EVERY_US`.

        Args:
            store: The store that calls use.
            using: See `Using`. No call may use the store meanwhile.
            until_us: No step begins after this time.

        Raises:
            Exception: A log of this wrapper could not be read, or not written.
        """
        now_us = self._means.clock()
        if not (self.own or self.has_work or (self._means.folder is not None and now_us >= self._next_us)):
            return
        self._using = using
        self._steps = self._steps or self._read_all(store)
        try:
            for _ in self._steps:
                if self._means.clock() > until_us:
                    return
        except BaseException:
            self.close()
            raise
        self._steps, self._looks, self._next_us = None, False, now_us + LOOK_EVERY_US

    def close(self) -> None:
        """Stop, and release the log that is not finished to other wrappers."""
        if self._steps:
            self._steps.close()
            self._steps = None

    def _read_all(self, store: Recoverable) -> Generator[None]:
        """Read all logs, a step for each batch, and one before a log is removed: that may take long, so no call may wait."""
        while self.own:
            log = self.own[0]
            yield from self._read(store, log)
            self.rows, self.dropped = self.rows + log.read_rows, self.dropped + log.dropped
            yield
            log.remove()
            del self.own[0]
        for file in self._means.folder.left_behind() if self._means.folder else ():
            try:
                if file.path not in self._refused:
                    log = OutageLog.of_file(self._means, file)
                    yield from self._read(store, log)
                    log.remove()
                    self._tell(log, file.path)
            except StoreUnavailable:
                return
            except Exception as error:
                self._refused.add(file.path)
                self._notify(f"{file.path} cannot be taken in and is left as it is: {error!r}")
            finally:
                file.close()

    def _tell(self, log: OutageLog, path: str) -> None:
        if log.read_rows:
            rows = plural(log.read_rows, "audit row")
            self._notify(f"a wrapper ended while the store was unavailable: {rows} of the outage written")
        if log.damaged:
            self._notify(f"{path} was damaged: calls or audit rows are lost")

    def _read(self, store: Recoverable, log: OutageLog) -> Iterator[None]:
        """Read a log into a store, a step for each batch.

        Raises:
            StoreUnavailable: The rest could not be written, or its success is unknown.
            ValueError, LookupError: The log is malformed.
        """
        key, row_ids = store.args_key, self.row_ids
        is_same, log.read_rows = log.key == key_id(key), 0
        _count(log, store, self._use)
        found = self._found(store, log)
        for rows, outcomes in log.batches():
            if store.args_key != key:  # its server came back without its data
                raise StoreUnavailable("another store has taken its place")
            ids = {at: found.get((row.seq, row.time_us)) for at, row in rows.items()}
            if new := {at: row for at, row in rows.items() if ids[at] is None}:
                kept = [row if is_same else row._replace(args_hash=None) for row in new.values()]
                with self._use():
                    ids |= zip(new, store.append(kept), strict=True)
            row_ids.update((at, row_id) for at, row_id in ids.items() if row_id and rows[at].decision in FORWARDED)
            log.read_rows += len(rows)
            told = [one._replace(row_id=row_ids.get(one.row_id, one.row_id)) for one in outcomes if one.row_id < 0 or is_same]
            if told := [one for one in told if one.row_id >= 0]:
                with self._use():
                    store.record(told)
            yield
        for at in list(row_ids)[:-MAX_ROW_IDS]:
            del row_ids[at]

    def _use(self) -> AbstractContextManager[object]:
        """See `Using`."""
        return self._using()

    def _found(self, store: Recoverable, log: OutageLog) -> dict[tuple[object, object], int]:
        """The ids of the rows of a log that the store has already, by number and time."""
        with self._use():
            after = log.begin_reading(key_id(store.args_key), lambda: newest_row_id(store))
        if after is None:
            return {}
        session = _session(log)
        found: dict[tuple[object, object], int] = {}
        entries = store.entries(after=after)
        while True:
            with self._use():
                some = [*islice(entries, _ENTRIES)]
            if not some:
                return found
            for row_id, record in some:
                if record.get("session") == session:
                    found[record["seq"], record["time_us"]] = row_id


def _count(log: OutageLog, store: Recoverable, using: Using) -> None:
    """Count what a log has charged, as far as the store has not counted it."""
    if log.counted_by != store.args_key:
        log.counted_by, log.counted_parts = store.args_key, 0
    for number, charged in enumerate(log.charges()):
        if charged and number >= log.counted_parts:
            with using():
                store.adopt(charged, f"{log.id}-{number}")
        log.counted_parts = max(log.counted_parts, number + 1)


def newest_row_id(store: AuditReader) -> int:
    """The id of a store's newest row; 0 if it has none."""
    newest = next(store.newest(), None)
    return newest.row_id if newest else 0


def _session(log: OutageLog) -> str:
    """The session that a log is of, if it has a row."""
    rows: Iterator[Row] = (row for batch, _ in log.batches() for row in batch.values())
    return next(map(session_of, rows), "")
