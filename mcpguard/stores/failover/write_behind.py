"""The write-behind buffer: charges, audit rows and outcomes that wait for a store that cannot be used.

Theory of operation. The buffer is bounded, in memory, and mirrored in a spill file. `take` moves the oldest charges and rows
into a batch. After the batch was written, or could not be written, `wrote` or `put_back` is called.

- A row waits under a provisional row id, which is negative. When it is written, the provisional id is mapped to the store's
  own. So the outcome of the call finds its row, whenever it comes.
- Charges, of calls that were admitted and of calls that failed, wait as one log for each counter. After a failure it is unknown
  whether the store counted the logs of the batch. They are then sent again under the same write-back id, which the store counts
  once. Newer charges wait for a batch of their own.
- Each change is a record in the spill file. `replay` makes the same buffer from the records, for another wrapper.
- A batch is noted in the file before it is written ("sending"), and again afterwards ("counted", "written"). After a crash in
  between, the rows of the batch are in doubt: the store may have them.
"""

import json
import os
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from mcpguard.limiter import sliding
from mcpguard.limiter.plan import Counter, counter_id, label_parts
from mcpguard.limiter.sliding import EMPTY, EXACT, State
from mcpguard.session.audit import Outcome, Row, session_of
from mcpguard.session.verdict import FORWARDED
from mcpguard.stores.failover.buffered_rows import BufferedRows, chars
from mcpguard.stores.failover.spill import SpillLog, row_of, row_values
from mcpguard.text.digest import blake2b
from mcpguard.text.printing import compact, plural

BATCH: Final = 100
"""The most counters, rows and outcomes of one batch. It takes a store a few milliseconds, for which a decision may have
to wait."""

BATCH_CHARS: Final = 64 * 1024
"""How much text the rows of a batch may have together, unless a single row has more."""

MAX_OUTCOMES: Final = 20_000
"""How many outcomes are kept. Beyond it the oldest are dropped."""

MAX_ROW_IDS: Final = 10_000
"""For how many written rows the store's row ids are kept. Outcomes of older rows are lost."""


class Batch:
    """A part of the buffer that is being written to a store.

    Attributes:
        logs: The charges by counter.
        rows: The rows by provisional row id.
        write_back_id: The id of the logs, see `Recoverable.adopt`.
        logs_counted: Whether the store has counted the logs.
        rows_sent: Whether the rows were sent, so that the store may have some of them.
    """

    __slots__ = ("logs", "logs_counted", "rows", "rows_sent", "write_back_id")

    def __init__(self, logs: list[tuple[Counter, State]], rows: list[tuple[int, Row]], write_back_id: str) -> None:
        self.logs = logs
        self.rows = rows
        self.write_back_id = write_back_id
        self.logs_counted = not logs
        self.rows_sent = False


class WriteBehindBuffer:
    """Keeps what a store has to receive, and hands it over in batches.

    Args:
        spill: Gets a record of each change.

    Attributes:
        written: How many rows were written since the last `end_write_back`.
        newest_before: The id of the store's newest row before it received any row of this buffer; None before that.
    """

    def __init__(self, spill: SpillLog) -> None:
        self.spill = spill
        self.written = 0
        self.newest_before: int | None = None
        self._pending: dict[int, tuple[Counter, State]] = {}  # charges that were sent to no store, by counter id
        # Logs that the store may have counted, and their write-back id
        self._maybe_counted: tuple[list[tuple[Counter, State]], str] | None = None
        self._rows = BufferedRows()
        self._outcomes: deque[Outcome] = deque(maxlen=MAX_OUTCOMES)
        self._row_ids: dict[int, int] = {}  # the store's row ids, by provisional row id
        self._newest = 0  # the newest provisional row id
        self._key = ""  # a hash of the key that the arguments' hashes were made with
        self._in_doubt: set[int] = set()  # rows that the store may have; a wrapper does not look for its own

    # without a store

    @property
    def room_for_calls(self) -> int:
        """How many calls may be forwarded: a call whose row has no room must not be."""
        return self._rows.room_for_calls

    @property
    def row_count(self) -> int:
        """How many rows wait."""
        return len(self._rows)

    @property
    def dropped(self) -> int:
        """How many rows were dropped since the last `end_write_back`."""
        return self._rows.dropped

    @property
    def is_empty(self) -> bool:
        """Whether no charge and no row waits."""
        return not (self._pending or self._maybe_counted or len(self._rows))

    @property
    def has_outcomes(self) -> bool:
        """Whether outcomes wait."""
        return bool(self._outcomes)

    def charge(self, counter: Counter, now_us: int, cost: int = 1, *, is_exact: bool) -> None:
        """Note that a call, or an error, was charged on a counter.

        Args:
            counter: The counter.
            now_us: The time of the charge.
            cost: What was charged.
            is_exact: Whether each charge has an entry of its own in the log, as it has for limits up to `EXACT`.
        """
        log = sliding.live(self._log(counter), counter.window_us, now_us)
        log = sliding.charge(log, EXACT if is_exact else EXACT + 1, counter.window_us, now_us, cost)
        self._pending[counter.id] = (counter, log)
        self.spill.note(("log", counter.label, now_us) if cost == 1 else ("log", counter.label, now_us, cost))

    def _log(self, counter: Counter) -> State:
        return self._pending.get(counter.id, (counter, EMPTY))[1]

    def forget_expired(self, now_us: int) -> None:
        """Forget charges whose windows have passed."""
        for key in [key for key, (counter, log) in self._pending.items() if not sliding.live(log, counter.window_us, now_us)]:
            del self._pending[key]

    def keep(self, rows: Sequence[Row]) -> list[int]:
        """Keep rows, on disk too if that is possible. Returns their provisional row ids."""
        first = self._newest - 1
        for row in rows:
            self._newest -= 1
            self._rows.add(self._newest, row)
            self.spill.note(("row", self._newest, *row_values(row)))
        self.spill.flush()
        return list(range(first, self._newest - 1, -1))

    def keep_outcomes(self, outcomes: Iterable[Outcome]) -> None:
        """Keep outcomes, on disk too if that is possible."""
        for outcome in outcomes:
            row_id = self._row_ids.pop(outcome.row_id, outcome.row_id)  # the spill file may no longer have the mapping
            self._outcomes.append(outcome._replace(row_id=row_id))
            self.spill.note(("outcome", row_id, *outcome[1:]))
        self.spill.flush()

    # to the store

    def begin_write_back(self, newest: int) -> None:
        """Note the store's newest row, so that rows in doubt are looked for only among later ones."""
        if self.newest_before is None:
            self.newest_before = newest
            self.spill.note(("newest", newest))

    def take(self) -> Batch:
        """Remove and return the oldest charges and rows.

        The spill file notes the batch first. If it cannot, the file is removed, because another wrapper would write the batch
        again.
        """
        if self._maybe_counted:
            (logs, write_back_id), self._maybe_counted = self._maybe_counted, None
        else:
            logs = [self._pending.pop(key) for key in list(self._pending)[:BATCH]]
            write_back_id = os.urandom(8).hex()
        rows = self._rows.take(BATCH, BATCH_CHARS)
        self.spill.note(("sending", write_back_id, [counter.id for counter, _ in logs], [row_id for row_id, _ in rows]))
        if self.spill.active and not self.spill.flush():
            self.spill.drop()
        return Batch(logs, rows, write_back_id)

    def put_back(self, batch: Batch) -> None:
        """Keep a batch again that could not be written. A row that may be too long for the store loses its arguments."""
        rows = batch.rows
        if not batch.logs_counted:
            self._maybe_counted = batch.logs, batch.write_back_id
        else:
            self.spill.note(("counted",))
        if batch.rows_sent:
            self._in_doubt.update(row_id for row_id, _ in rows)
            rows = [(row_id, _shortened(row) if chars(row) > BATCH_CHARS else row) for row_id, row in rows]
        self._rows.put_back(rows)
        self.spill.flush()

    def wrote(self, batch: Batch, row_ids: Sequence[int]) -> None:
        """Note the store's row ids of a batch that was written."""
        self.written += len(row_ids)
        pairs = [(provisional, row_id) for (provisional, _), row_id in zip(batch.rows, row_ids, strict=True)]
        forwarded = {provisional for provisional, row in batch.rows if row.decision in FORWARDED}  # others have no outcome
        self._map((provisional, row_id) for provisional, row_id in pairs if provisional in forwarded)
        self._in_doubt.difference_update(provisional for provisional, _ in batch.rows)
        self.spill.note(("counted",), ("written", pairs))
        self.spill.flush()

    def _map(self, pairs: Iterable[tuple[int, int]]) -> None:
        self._row_ids.update(pairs)
        while len(self._row_ids) > MAX_ROW_IDS:
            del self._row_ids[next(iter(self._row_ids))]

    def end_write_back(self) -> str:
        """Set the numbers of written and dropped rows back to zero. Returns both as a text for the user."""
        dropped = f"; {plural(self.dropped, 'row')} of denials dropped" if self.dropped else ""
        text = f"{plural(self.written, 'audit row')} of the outage written{dropped}"
        self.written = self._rows.dropped = 0
        self.newest_before = None
        return text

    def take_outcomes(self) -> list[Outcome]:
        """Remove and return the oldest outcomes, with row ids as they were kept."""
        return [self._outcomes.popleft() for _ in range(min(BATCH, len(self._outcomes)))]

    def settle(self, outcomes: Iterable[Outcome]) -> list[Outcome]:
        """Outcomes with the store's row ids. Those of rows that were dropped are left out."""
        settled: list[Outcome] = []
        for outcome in outcomes:
            if outcome.row_id >= 0:
                settled.append(outcome)
            elif (row_id := self._row_ids.pop(outcome.row_id, None)) is not None:
                settled.append(outcome._replace(row_id=row_id))
        return settled

    def assign_to(self, args_key: bytes) -> None:
        """Note which store the buffer is for, by the store's key.

        If it was for another store, it loses that store's row ids and the hashes that were made with that store's key.
        """
        key = blake2b(b"mcpguard", key=args_key, digest_size=8).hexdigest()
        if key != self._key:
            self.spill.note(("key", key))
            self._set_key(key)

    def _set_key(self, key: str) -> None:
        if self._key and key != self._key:
            self._row_ids.clear()
            self._in_doubt.clear()
            self.newest_before = None
            self._rows.drop_hashes()
            self._outcomes = deque((one for one in self._outcomes if self._rows.has_call(one.row_id)), MAX_OUTCOMES)
        self._key = key

    def clear_spill(self) -> None:
        """Give up the spill file, because nothing waits. `spill.sweep` removes it; the next outage makes a new one."""
        self.spill.clear()
        if self._key:
            self.spill.note(("key", self._key))

    def leave(self) -> int:
        """Leave the spill file to other wrappers; the buffer is no longer used. Returns how many rows the file has."""
        if self.is_empty and not self._outcomes:
            self.spill.clear()
            self.spill.sweep()
            return 0
        return max(0, self.row_count - self.spill.finish())

    # from another wrapper

    def replay(self, records: Iterable[Sequence[Any]], members: Sequence[str], *, now_us: int, shift_us: int) -> None:
        """Apply the records of another buffer.

        Args:
            records: The records of its spill file.
            members: The members of a row, in the order of the records.
            now_us: The clock's reading.
            shift_us: How far this clock is ahead of the clock of the records.

        Raises:
            ValueError, TypeError, LookupError: A record is malformed.
        """
        for word, *rest in records:
            match word, rest:
                case "log", [str(label), int(then_us), *more]:  # the cost, if it is not 1
                    at_us = min(then_us + shift_us, now_us)
                    counter = Counter(counter_id(label), label, label_parts(label).window_us)
                    self._merge(counter, (at_us, at_us, int(more[0]) if more else 1))
                case "row", [int(row_id), *values]:
                    self._newest = min(self._newest, row_id)
                    self._rows.add(row_id, row_of(members, values))
                case "outcome", [int(row_id), str(outcome), int(duration_us)]:
                    self._outcomes.append(Outcome(row_id, outcome, duration_us))
                case "key", [str(key)]:
                    self._set_key(key)
                case "newest", [int(newest)]:
                    self.newest_before = newest
                case "sending", [str(write_back_id), list(ids), list(row_ids)]:
                    if not (self._maybe_counted and self._maybe_counted[1] == write_back_id):
                        logs = [self._pending.pop(key) for key in ids if key in self._pending]
                        self._maybe_counted = (logs, write_back_id) if logs else None
                    self._in_doubt.update(row_ids)
                case "counted", []:
                    self._maybe_counted = None
                case "written", [list(pairs)]:
                    written = dict(pairs)
                    self._rows.remove(written)
                    self._map(written.items())
                    self._in_doubt.difference_update(written)

    def _merge(self, counter: Counter, log: State) -> None:
        before = sliding.live(self._log(counter), counter.window_us, log[-2])
        self._pending[counter.id] = (counter, sliding.merge(before, log, counter.window_us))

    @property
    def in_doubt(self) -> dict[tuple[str, int], int]:
        """The provisional row ids of the rows that the store may have, by session and number."""
        if not self._in_doubt:
            return {}
        return {(session_of(row), row.seq): row_id for row_id, row in self._rows.items() if row_id in self._in_doubt}

    def settle_doubts(self, found: Mapping[int, int]) -> None:
        """Remove the rows in doubt that the store has. It does not have the others.

        Args:
            found: The store's row ids, by provisional row id.
        """
        self._rows.remove(found)
        self._map(found.items())
        self._in_doubt.clear()


def _shortened(row: Row) -> Row:
    """A row without its arguments: the store may never take it whole in time, and no later row would be written then."""
    detail = json.loads(row.detail or "{}")
    if "arguments" in detail:
        detail["arguments"] = f"not kept: {chars(row)} characters are too long for the store's time"
    return row._replace(detail=compact(detail))
