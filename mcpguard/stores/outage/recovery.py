"""Reads outage logs into a store that can be used again: this wrapper's own, and those of wrappers that have ended.

Theory of operation. A log is read in batches, and always from its start. Nothing is added to it meanwhile, so it has the same
batches for whoever reads it. The charges of a batch have an id, and the store counts each id once. A log tells whether a store
may have some of its rows: then they are looked for among the rows after those that the store had before. So reading a log may
be interrupted at any moment, and done again by anybody.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from mcpguard.errors import StoreUnavailable
from mcpguard.limiter import sliding
from mcpguard.limiter.plan import Counter
from mcpguard.limiter.sliding import EMPTY, State
from mcpguard.session.audit import Outcome, Row, session_of
from mcpguard.session.verdict import FORWARDED
from mcpguard.stores.api import AuditReader, Clock, Recoverable
from mcpguard.stores.outage.log import Bounds, OutageFolder, OutageLog, key_id
from mcpguard.stores.sqlite import log_lines
from mcpguard.text.printing import compact, plural

BATCH_CHARS: Final = 64 * 1024
"""How much text a batch may have, unless a single row has more."""

LOOK_EVERY_US: Final = 60_000_000
"""How often the folder is searched. It is also searched whenever a store can be used again."""

WORK_US: Final = 300_000
"""After this time `take_in` returns, so that the bookkeeper's other tasks get their turn."""

_ENTRIES: Final = 500
"""How many rows are read while a call waits."""

_Key = tuple[str, int, int]
"""The session, number and time of a row."""


def newest_row_id(store: AuditReader) -> int:
    """The id of a store's newest row; 0 if it has none."""
    newest = next(store.newest(), None)
    return newest.row_id if newest else 0


class _Batches:
    """The batches of a log.

    Args:
        log: The log.
        is_same: Whether the store that gets them is the one that failed. Else it has other rows, and another key.
        now_us: The time, by the clock of the wrapper that reads.

    Attributes:
        rows: The rows of the batch, by provisional row id.
        outcomes: Its outcomes, with provisional row ids.
        logs: What it has charged, by counter id.
        labelled: The counters that the log has named so far.
    """

    def __init__(self, log: OutageLog, *, is_same: bool, now_us: int) -> None:
        self.rows: dict[int, Row] = {}
        self.outcomes: list[Outcome] = []
        self.logs: dict[int, State] = {}
        self.labelled: dict[int, Counter] = {}
        self._log = log
        self._is_same = is_same
        self._now_us = now_us
        self._seen_rows = 0

    def __iter__(self) -> Iterator[str]:
        """Read the next batch into the attributes. Yields the id of its charges."""
        number = size = 0
        for text in self._log.texts():
            if size + len(text) > BATCH_CHARS or len(self.rows) + len(self.outcomes) >= self._log.bounds.batch:
                yield f"{self._log.id}-{number}"
                number, size = number + 1, 0
                self.rows, self.outcomes, self.logs = {}, [], {}
            size += len(text)
            for line in text.split("\n"):
                self._read(line)
        yield f"{self._log.id}-{number}"

    def _read(self, line: str) -> None:
        kind, *fields = line.split("\t")
        if kind == log_lines.COUNTER:
            self.labelled[int(fields[0])] = Counter(int(fields[0]), fields[2], int(fields[1]))
        elif kind == log_lines.OUTCOME:
            first, outcome, durations = log_lines.read_outcomes([kind, *fields])
            if first < 0 or self._is_same:
                self.outcomes += [Outcome(first + at, outcome, duration_us) for at, duration_us in enumerate(durations)]
        elif kind == log_lines.CHARGED:
            self._charge(*fields)
        elif kind == log_lines.ROW:
            row = log_lines.read_row([kind, *fields])
            if row.seq in self._log.too_long:
                row = _shortened(row)
            self.rows[self._log.row_id(self._seen_rows)] = row if self._is_same else row._replace(args_hash=None)
            self._seen_rows += 1
            self._charge(*fields[-2:])

    def _charge(self, charged_us: str, charged: str) -> None:
        for one in log_lines.charge_texts(charged) if charged else ():
            key, _, limit = one.partition(",")
            window_us, n, cost = log_lines.read_limit(limit)
            log = self.logs.get(int(key), EMPTY)
            at_us = min(int(charged_us) + self._log.shift_us, self._now_us)
            if log:
                at_us = max(at_us, log[-2])
            self.logs[int(key)] = sliding.charge(sliding.live(log, window_us, at_us), n, window_us, at_us, cost)

    def live(self, now_us: int) -> list[tuple[Counter, State]]:
        """What the batch has charged that counts at a time, in times relative to it."""
        logs = [(self.labelled[key], log) for key, log in self.logs.items()]
        alive = [(counter, sliding.live(log, counter.window_us, now_us)) for counter, log in logs]
        return [(counter, sliding.shift(log, -now_us)) for counter, log in alive if log]


def read_into(
    store: Recoverable, log: OutageLog, row_ids: dict[int, int], *, clock: Clock, check: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Read a log into a store. It can be interrupted, and done again, after each step.

    Args:
        store: The store.
        log: The log, to which nothing is added meanwhile.
        row_ids: Gets the store's ids of the rows of forwarded calls, by provisional row id.
        clock: The clock of the wrapper that reads.
        check: Called before each operation of the store; raises if it must not begin.

    Raises:
        StoreUnavailable: The rest could not be written, or its success is unknown.
        ValueError, LookupError: The log is malformed.
    """
    key = key_id(store.args_key)
    found: dict[_Key, int] = {}
    after = log.begin_reading(key, lambda: newest_row_id(store)) if log.to_disk else None
    if after is not None:
        for at, (row_id, record) in enumerate(store.entries(after=after), 1):
            found[str(record.get("session")), int(str(record["seq"])), int(str(record["time_us"]))] = row_id
            if at % _ENTRIES == 0:
                yield
    log.read_rows = 0
    batches = _Batches(log, is_same=log.key == key, now_us=clock())
    for write_back_id in batches:
        if logs := batches.live(clock()):
            check()
            store.adopt(logs, write_back_id)
        written = {
            at: found.get((session_of(row), row.seq, row.time_us)) if found else None for at, row in batches.rows.items()
        }
        if new := [at for at, row_id in written.items() if row_id is None]:
            check()
            written |= zip(new, _append(store, log, [batches.rows[at] for at in new]), strict=True)
        row_ids |= {at: row_id for at, row_id in written.items() if row_id and batches.rows[at].decision in FORWARDED}
        log.read_rows += len(written)
        outcomes = [one._replace(row_id=row_ids.get(one.row_id, one.row_id)) for one in batches.outcomes]
        if known := [one for one in outcomes if one.row_id >= 0]:
            check()
            store.record(known)
        yield


def _append(store: Recoverable, log: OutageLog, rows: Sequence[Row]) -> list[int]:
    """Write rows. If that fails, a row that may be too long for the store's time loses its arguments next time."""
    try:
        return store.append(rows)
    except Exception:
        log.too_long.update(row.seq for row in rows if len(row.detail or "") > BATCH_CHARS)
        raise


def _shortened(row: Row) -> Row:
    """A row without its arguments: the store may never take it whole in time, and no later row would be written then."""
    detail = json.loads(row.detail or "{}")
    if "arguments" in detail:
        detail["arguments"] = f"not kept: {len(row.detail or '')} characters are too long for the store's time"
    return row._replace(detail=compact(detail))


class LeftLogs:
    """The outage logs that other wrappers of the same store and namespace left.

    Args:
        folder: Where they are; None for nowhere.
        clock: The clock of this wrapper.
        wall: Wall-clock time.
        notify: Gets a line for each log that was read into the store, that was damaged, or that cannot be read.
        bounds: See `Bounds`.

    Attributes:
        has_work: Whether `take_in` should be called soon.
    """

    def __init__(
        self, folder: OutageFolder | None, *, clock: Clock, wall: Clock, notify: Callable[[str], None], bounds: Bounds
    ) -> None:
        self.has_work = folder is not None
        self._folder = folder
        self._clock = clock
        self._wall = wall
        self._notify = notify
        self._bounds = bounds
        self._files: Iterator[tuple[int, str]] = iter(())
        self._log: OutageLog | None = None
        self._store: Recoverable | None = None  # what `_steps` use
        self._steps: Iterator[None] | None = None
        self._refused: set[str] = set()  # files that cannot be read
        self._next_us: int | None = None  # when to search the folder again; None for at once

    def look_soon(self) -> None:
        """Let the next `take_in` search the folder, because a store can be used again."""
        self._next_us = None
        self.has_work = self._folder is not None

    def take_in(self, store: Recoverable, step: Callable[[Callable[[], bool]], bool]) -> None:
        """Read some of the logs into the store. Does not raise: a failure is tried again after `LOOK_EVERY_US`.

        Args:
            store: The store that calls use.
            step: Calls a function while no call uses the store, and returns its result. Raises `StoreUnavailable` if the store
                is no longer used.
        """
        now_us = self._clock()
        if self._folder is None or not (self.has_work or self._next_us is None or now_us >= self._next_us):
            return
        if self._store is not store:
            self._store, self._steps = store, None
        try:
            while log := self._log or self._next_log(self._folder, now_us):
                self._log = log
                self._steps = self._steps or read_into(store, log, {}, clock=self._clock)
                while step(self._goes_on):
                    if self._clock() > now_us + WORK_US:
                        self.has_work = True
                        return
                self._end(log)
            self._next_us = now_us + LOOK_EVERY_US
        except StoreUnavailable:
            self._next_us, self._steps = now_us + LOOK_EVERY_US, None
        except Exception as error:
            if self._log:
                self._refuse(self._log, repr(error))
        self.has_work = False

    def _goes_on(self) -> bool:
        """Do the next step. Returns whether there was one."""
        return self._steps is not None and next(self._steps, self._steps) is None

    def _end(self, log: OutageLog) -> None:
        log.remove()
        self._log = self._steps = None
        if log.read_rows:
            rows = plural(log.read_rows, "audit row")
            self._notify(f"a wrapper ended while the store was unavailable: {rows} of the outage written")
        if log.damaged:
            self._notify(f"{log.path} was damaged: calls or audit rows are lost")

    def close(self) -> None:
        """Release the log that is not finished to other wrappers."""
        self._files = iter(())
        if self._log:
            self._log.close()
            self._log = None

    def _next_log(self, folder: OutageFolder, now_us: int) -> OutageLog | None:
        """Lock and open the next file whose wrapper has ended; None if there is none."""
        if self._next_us is None or now_us >= self._next_us:
            self._files, self._next_us = folder.left_behind(), now_us + LOOK_EVERY_US
        for fd, path in self._files:
            if path not in self._refused:
                try:
                    return OutageLog.of_file(folder, fd, path, clock=self._clock, wall=self._wall, bounds=self._bounds)
                except (OSError, ValueError) as error:
                    self._refuse_file(path, repr(error))
            os.close(fd)
        return None

    def _refuse(self, log: OutageLog, why: str) -> None:
        log.close()
        self._log = self._steps = None
        self._refuse_file(log.path, why)

    def _refuse_file(self, path: str, why: str) -> None:
        self._refused.add(path)
        self._notify(f"{path} cannot be taken in and is left as it is: {why}")
