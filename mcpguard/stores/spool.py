"""What a store is owed that does not answer: admissions, audit rows, and how calls ended. Bounded, in memory."""

import json
import os
from collections import deque
from collections.abc import Container, Iterable, Sequence
from typing import Final, NamedTuple

from mcpguard.core import limiter
from mcpguard.core.audit import Outcome, Row, compact
from mcpguard.core.limiter import EMPTY, EXACT, State
from mcpguard.core.policy import Counter
from mcpguard.core.verdict import FORWARDED, Charge
from mcpguard.errors import StoreUnavailable
from mcpguard.stores.base import Clock, Store

MAX_SPOOLED: Final = 10_000
"""Audit rows, and outcomes, kept for a store that does not answer. Beyond it the oldest are dropped."""

MAX_SPOOLED_CHARS: Final = 16 * 1024 * 1024
"""The same for the rows' text, which holds calls' arguments if the audit keeps them in full."""

BATCH: Final = 100
"""What is written back in one transaction: some milliseconds, so that no decision waits long behind it."""

BATCH_CHARS: Final = 64 * 1024
"""As much text as rows that are written back together may have, but for one that has more by itself."""


class TooSlow(StoreUnavailable):
    """A store has taken so long to count a batch's admissions that its rows were not begun with."""


class Batch(NamedTuple):
    """A part of what is owed. `once` is what its logs are called however often they are told."""

    logs: list[tuple[Counter, State]]
    rows: list[tuple[int, Row]]
    once: str


class Spool:
    """Keeps what a store is owed, and hands it over in batches.

    A row that waits here has a provisional handle, which is negative. When it is written the handle is mapped to the
    store's own, so that the outcome of a call that was admitted meanwhile finds its row whenever it comes.
    """

    def __init__(self) -> None:
        self.dropped = 0
        """Rows that were dropped since the last `all_written`."""
        self.written = 0
        """Rows that were written since then."""
        self.owed: dict[int, tuple[Counter, State]] = {}
        """The admissions that the store does not know of, by counter."""
        self._unsure: tuple[list[tuple[Counter, State]], str] | None = None  # logs that the store may have counted
        self._rows: deque[tuple[int, Row]] = deque()
        self._chars = 0
        self._outcomes: deque[Outcome] = deque(maxlen=MAX_SPOOLED)
        self._handles: dict[int, int] = {}
        self._newest = 0

    def admit(self, charge: Charge, charged: Container[int], now_us: int) -> None:
        """Note that a call was charged on the counters with these ids."""
        for at, counter in enumerate(charge.plan.counters):
            if counter.id in charged:
                most = max(limit.n for limit in charge.plan.limits if limit.counter == at)
                log = limiter.live(self.owed.get(counter.id, (counter, EMPTY))[1], counter.window_us, now_us)
                # Of the limit it matters only whether admissions have entries of their own
                log = limiter.charge(log, EXACT if most <= EXACT else EXACT + 1, counter.window_us, now_us)
                self.owed[counter.id] = (counter, log)

    def forget(self, now_us: int) -> list[int]:
        """Let go of the admissions whose windows have passed; the ids of the counters that have none left."""
        gone = [key for key, (counter, log) in self.owed.items() if not limiter.live(log, counter.window_us, now_us)]
        for key in gone:
            del self.owed[key]
        return gone

    def keep(self, rows: Sequence[Row]) -> list[int]:
        """Keep rows for later; their provisional handles."""
        first = self._newest
        for row in rows:
            self._newest -= 1
            self._rows.append((self._newest, row))
            self._chars += _chars(row)
        self._drop()
        return list(range(first - 1, self._newest - 1, -1))

    def _drop(self) -> None:
        while len(self._rows) > MAX_SPOOLED or self._chars > MAX_SPOOLED_CHARS:
            self._chars -= _chars(self._rows.popleft()[1])
            self.dropped += 1

    def ended(self, outcomes: Iterable[Outcome]) -> None:
        """Keep outcomes for later."""
        self._outcomes.extend(outcomes)

    def take(self) -> Batch:
        """The oldest of what is owed. It is not kept here any more."""
        if self._unsure:
            (logs, once), self._unsure = self._unsure, None
        else:
            logs, once = [self.owed.pop(key) for key in list(self.owed)[:BATCH]], os.urandom(8).hex()
        rows: list[tuple[int, Row]] = []
        chars = 0
        while self._rows and len(rows) < BATCH and (not rows or chars + _chars(self._rows[0][1]) <= BATCH_CHARS):
            rows.append(self._rows.popleft())
            chars += _chars(rows[-1][1])
        self._chars -= chars
        return Batch(logs, rows, once)

    def put_back(self, batch: Batch, why: Exception) -> None:
        """Keep again what could not be written."""
        rows = batch.rows
        if batch.logs:
            self._unsure = batch.logs, batch.once
        elif not isinstance(why, TooSlow):  # the rows were too much, or may have been
            rows = [(handle, _shortened(row) if _chars(row) > BATCH_CHARS else row) for handle, row in batch.rows]
        self._rows.extendleft(reversed(rows))
        self._chars += sum(_chars(row) for _, row in rows)
        self._drop()

    def wrote(self, batch: Batch, handles: Sequence[int]) -> None:
        """Note the store's handles on a batch's rows."""
        self.written += len(handles)
        for (provisional, row), handle in zip(batch.rows, handles, strict=True):
            if row.decision in FORWARDED:  # others have no outcome
                self._handles[provisional] = handle
        while len(self._handles) > MAX_SPOOLED:
            del self._handles[next(iter(self._handles))]

    @property
    def is_empty(self) -> bool:
        """Whether no admission and no row is owed."""
        return not (self.owed or self._unsure or self._rows)

    @property
    def rows(self) -> int:
        """How many rows wait."""
        return len(self._rows)

    def all_written(self) -> str:
        """In words, for people, what was written and what was not."""
        lost = f", {self.dropped} older ones are lost" if self.dropped else ""
        text = f"{self.written} audit rows of the meantime are written{lost}"
        self.written = self.dropped = 0
        return text

    @property
    def has_outcomes(self) -> bool:
        """Whether outcomes are owed."""
        return bool(self._outcomes)

    def settle(self, outcomes: Iterable[Outcome]) -> list[Outcome]:
        """Outcomes with the store's own handles; without those whose rows were dropped."""
        settled: list[Outcome] = []
        for outcome in outcomes:
            if outcome.row >= 0:
                settled.append(outcome)
            elif (handle := self._handles.pop(outcome.row, None)) is not None:
                settled.append(outcome._replace(row=handle))
        return settled

    def outcomes(self) -> list[Outcome]:
        """The oldest outcomes that are owed, not settled. They are not kept here any more."""
        return [self._outcomes.popleft() for _ in range(min(BATCH, len(self._outcomes)))]

    def disown(self) -> None:
        """The store is another one: nothing of the old one's is to reach it, neither handles nor hashes by its key."""
        self._handles.clear()
        self._rows = deque((provisional, row._replace(args_hash=None)) for provisional, row in self._rows)
        waiting = {provisional for provisional, _ in self._rows}
        self._outcomes = deque((one for one in self._outcomes if one.row in waiting), MAX_SPOOLED)


def write(store: Store, batch: Batch, clock: Clock, *, patience_us: int | None = None) -> list[int]:
    """Write a batch to a store, admissions first; the store's handles on the rows.

    Args:
        store: Where to.
        batch: What is written is taken out of it as far as it must not be written twice.
        clock: The clock of the admissions.
        patience_us: After how long the second of two operations is not begun any more.

    Raises:
        StoreUnavailable: What is left in the batch was not written, or may not have been.
    """
    now_us = clock()
    logs = [(counter, limiter.live(log, counter.window_us, now_us)) for counter, log in batch.logs]
    if owed := [(counter, limiter.shift(log, -now_us)) for counter, log in logs if log]:
        store.adopt(owed, batch.once)
    batch.logs.clear()
    if patience_us is not None and clock() - now_us > patience_us:
        raise TooSlow("it answers too slowly")
    return store.append([row for _, row in batch.rows]) if batch.rows else []


def _shortened(row: Row) -> Row:
    """A row without the long text of its detail: the store may never take it whole in time, and none after it then."""
    detail = json.loads(row.detail or "{}")
    if "arguments" in detail:
        detail["arguments"] = f"not kept: {_chars(row)} characters are too long for the store's time"
    return row._replace(detail=compact(detail))


def _chars(row: Row) -> int:
    return len(row.detail or "") + len(row.request_id or "")
