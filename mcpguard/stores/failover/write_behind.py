"""What a store is owed that cannot be used: admissions, audit rows, and how calls ended.

Bounded, in memory, and mirrored in a spill file.
"""

import json
import os
from collections import OrderedDict, deque
from collections.abc import ItemsView, Iterable, Sequence
from typing import Any, Final, NamedTuple

from mcpguard.core import limiter
from mcpguard.core.audit import Outcome, Row, session_of
from mcpguard.core.digest import blake2b
from mcpguard.core.limiter import EMPTY, EXACT, State
from mcpguard.core.policy import Counter, counter_id, window_of
from mcpguard.core.text import compact, plural
from mcpguard.core.verdict import FORWARDED
from mcpguard.errors import StoreUnavailable
from mcpguard.stores.api import Clock, Store
from mcpguard.stores.failover.spill import SpillLog

MAX_ROWS: Final = 10_000
"""Rows of forwarded calls that are kept, and as many others. Beyond it no call is forwarded; of the others the oldest go."""

MAX_CHARS: Final = 16 * 1024 * 1024
"""The same for the rows' text, which holds calls' arguments if the audit keeps them in full."""

BATCH: Final = 100
"""What is written back in one transaction: some milliseconds, so that no decision waits long behind it."""

BATCH_CHARS: Final = 64 * 1024
"""As much text as rows that are written back together may have, but for one that has more by itself."""

_HASH_AT: Final = Row._fields.index("args_hash")


class TooSlow(StoreUnavailable):
    """A store has taken so long to count a batch's admissions that its rows were not begun with."""


class Batch(NamedTuple):
    """A part of what is owed. `once` is what its logs are called however often they are told."""

    logs: list[tuple[Counter, State]]
    rows: list[tuple[int, Row]]
    once: str


class _Rows:
    """Rows that wait, by provisional handle, oldest first."""

    def __init__(self) -> None:
        self._rows: OrderedDict[int, Row] = OrderedDict()
        self._chars = 0

    def __len__(self) -> int:
        return len(self._rows)

    def items(self) -> ItemsView[int, Row]:
        return self._rows.items()

    def oldest(self) -> tuple[int, Row]:
        return next(iter(self._rows.items()))

    def add(self, handle: int, row: Row, *, at_front: bool = False) -> None:
        self._rows[handle] = row
        self._chars += _chars(row)
        if at_front:
            self._rows.move_to_end(handle, last=False)

    def remove(self, handle: int) -> None:
        row = self._rows.pop(handle, None)
        if row is not None:
            self._chars -= _chars(row)

    def drop_hashes(self) -> None:
        for handle, row in self._rows.items():
            self._rows[handle] = row._replace(args_hash=None)

    @property
    def is_full(self) -> bool:
        return len(self._rows) >= MAX_ROWS or self._chars >= MAX_CHARS

    @property
    def is_too_full(self) -> bool:
        return len(self._rows) > MAX_ROWS or self._chars > MAX_CHARS


class WriteBehindBuffer:
    """Keeps what a store is owed, and hands it over in batches.

    A row that waits here has a provisional handle, which is negative. When it is written the handle is mapped to the
    store's own, so that the outcome of a call that was admitted without the store finds its row whenever it comes.

    Rows of forwarded calls are never dropped: a call whose row has no room is not to be forwarded.

    Args:
        spill: Gets a record of each change, from which `replay` makes the same buffer.
    """

    def __init__(self, spill: SpillLog) -> None:
        self.spill = spill
        self.dropped = 0
        """Rows that were dropped since the last `all_written`."""
        self.written = 0
        """Rows that were written since then."""
        self.pending: dict[int, tuple[Counter, State]] = {}
        """The admissions that the store does not know of, by counter."""
        self.newest_before: int | None = None
        """The store's newest row before any of the rows here is written to it; None if none is yet."""
        self._unsure: tuple[list[tuple[Counter, State]], str] | None = None  # logs that the store may have counted
        self._forwarded, self._others = _Rows(), _Rows()
        self._outcomes: deque[Outcome] = deque(maxlen=2 * MAX_ROWS)
        self._handles: dict[int, int] = {}
        self._newest = 0
        self._key = ""  # a hash of the key that the rows' arguments are hashed with
        self._in_doubt: set[int] = set()  # of a buffer that was replayed: the rows that the store may have

    # what happens without a store

    @property
    def room_for_calls(self) -> int:
        """For how many calls that are forwarded there is room for a row."""
        return 0 if self._forwarded.is_full else MAX_ROWS - len(self._forwarded)

    def admit(self, counter: Counter, now_us: int, *, is_exact: bool) -> None:
        """Note that a call was charged.

        Args:
            counter: What on.
            now_us: When.
            is_exact: Whether each admission has an entry of its own, as with limits up to `EXACT`.
        """
        log = limiter.live(self.pending.get(counter.id, (counter, EMPTY))[1], counter.window_us, now_us)
        log = limiter.charge(log, EXACT if is_exact else EXACT + 1, counter.window_us, now_us)
        self.pending[counter.id] = (counter, log)
        self.spill.note(("log", counter.label, now_us))

    def forget_expired(self, now_us: int) -> None:
        """Let go of the admissions whose windows have passed."""
        for key in [key for key, (counter, log) in self.pending.items() if not limiter.live(log, counter.window_us, now_us)]:
            del self.pending[key]

    def keep(self, rows: Sequence[Row]) -> list[int]:
        """Keep rows for later, on disk too if that is possible; their provisional handles."""
        first = self._newest - 1
        for row in rows:
            self._newest -= 1
            self._add(self._newest, row)
            self.spill.note(("row", self._newest, *_to_json(row)))
        self.spill.flush()
        return list(range(first, self._newest - 1, -1))

    def _add(self, handle: int, row: Row) -> None:
        self._queue(row).add(handle, row)
        self._drop()

    def _queue(self, row: Row) -> _Rows:
        return self._forwarded if row.decision in FORWARDED else self._others

    def _drop(self) -> None:
        while self._others.is_too_full:
            self._others.remove(self._others.oldest()[0])
            self.dropped += 1

    def ended(self, outcomes: Iterable[Outcome]) -> None:
        """Keep outcomes for later."""
        for outcome in outcomes:
            self._outcomes.append(outcome)
            self.spill.note(("outcome", *outcome))
        self.spill.flush()

    # what the store gets

    def take(self) -> Batch:
        """The oldest of what is owed. It is not kept here any more.

        What is about to be written is noted first. If that is impossible there is no spill file any more: nobody is to write
        the same once more from it.
        """
        if self._unsure:
            (logs, once), self._unsure = self._unsure, None
        else:
            logs, once = [self.pending.pop(key) for key in list(self.pending)[:BATCH]], os.urandom(8).hex()
        rows: list[tuple[int, Row]] = []
        chars = 0
        while (queue := self._older()) and len(rows) < BATCH:
            handle, row = queue.oldest()
            chars += _chars(row)
            if rows and chars > BATCH_CHARS:
                break
            rows.append((handle, row))
            queue.remove(handle)
        self.spill.note(("sending", once, [counter.id for counter, _ in logs], [handle for handle, _ in rows]))
        if self.spill.active and not self.spill.flush():
            self.spill.drop()
        return Batch(logs, rows, once)

    def _older(self) -> _Rows | None:
        """The rows of which the oldest is the oldest of all; None if there are none."""
        queues = [one for one in (self._forwarded, self._others) if len(one)]
        return max(queues, key=lambda one: one.oldest()[0], default=None)

    def put_back(self, batch: Batch, why: Exception) -> None:
        """Keep again what could not be written."""
        rows = batch.rows
        if batch.logs:
            self._unsure = batch.logs, batch.once
        else:
            self.spill.note(("counted",))
            if not isinstance(why, TooSlow):  # the rows were too much, or may have been
                rows = [(handle, _shortened(row) if _chars(row) > BATCH_CHARS else row) for handle, row in batch.rows]
        for handle, row in reversed(rows):
            self._queue(row).add(handle, row, at_front=True)
        self._drop()
        self.spill.flush()

    def wrote(self, batch: Batch, handles: Sequence[int]) -> None:
        """Note the store's handles on a batch's rows."""
        self.written += len(handles)
        pairs = [(provisional, handle) for (provisional, _), handle in zip(batch.rows, handles, strict=True)]
        forwarded = {provisional for provisional, row in batch.rows if row.decision in FORWARDED}  # others have no outcome
        self._map((provisional, handle) for provisional, handle in pairs if provisional in forwarded)
        self.spill.note(("counted",), ("written", pairs))
        self.spill.flush()

    def _map(self, pairs: Iterable[tuple[int, int]]) -> None:
        self._handles.update(pairs)
        while len(self._handles) > MAX_ROWS:
            del self._handles[next(iter(self._handles))]

    @property
    def is_empty(self) -> bool:
        """Whether no admission and no row is owed."""
        return not (self.pending or self._unsure or self.rows)

    @property
    def rows(self) -> int:
        """How many rows wait."""
        return len(self._forwarded) + len(self._others)

    def all_written(self) -> str:
        """In words, for people, what was written and what was not."""
        dropped = f"; {plural(self.dropped, 'row')} of denials dropped" if self.dropped else ""
        text = f"{plural(self.written, 'audit row')} of the meantime written{dropped}"
        self.written = self.dropped = 0
        self.newest_before = None
        return text

    @property
    def has_outcomes(self) -> bool:
        """Whether outcomes are owed."""
        return bool(self._outcomes)

    def settle(self, outcomes: Iterable[Outcome]) -> list[Outcome]:
        """Outcomes with the store's own handles; without those whose rows were dropped."""
        settled: list[Outcome] = []
        for outcome in outcomes:
            if outcome.row_id >= 0:
                settled.append(outcome)
            elif (handle := self._handles.pop(outcome.row_id, None)) is not None:
                settled.append(outcome._replace(row_id=handle))
        return settled

    def outcomes(self) -> list[Outcome]:
        """The oldest outcomes that are owed, not settled. They are not kept here any more."""
        return [self._outcomes.popleft() for _ in range(min(BATCH, len(self._outcomes)))]

    def belongs_to(self, args_key: bytes) -> None:
        """Note whose store all of this is for, by its key.

        If it was for another's, nothing of the old one's is to reach this one, neither handles nor hashes by its key.
        """
        key = blake2b(b"mcpguard", key=args_key, digest_size=8).hexdigest()
        if key != self._key:
            self.spill.note(("key", key))
            self._set_key(key)

    def _set_key(self, key: str) -> None:
        if self._key and key != self._key:
            self._disown()
        self._key = key

    def _disown(self) -> None:
        self._handles.clear()
        self._in_doubt.clear()
        self.newest_before = None
        self._forwarded.drop_hashes()
        self._others.drop_hashes()
        waiting = {handle for handle, _ in self._forwarded.items()}
        self._outcomes = deque((one for one in self._outcomes if one.row_id in waiting), self._outcomes.maxlen)

    def begin_to_write(self, newest: int) -> None:
        """Note the store's newest row before any of the rows here is written to it: nobody has to look for them before that."""
        if self.newest_before is None:
            self.newest_before = newest
            self.spill.note(("newest", newest))

    def clear_spill(self) -> None:
        """Nothing is kept here any more: have no spill file until there is something again."""
        self.spill.clear()
        if self._key:
            self.spill.note(("key", self._key))

    def leave(self) -> int:
        """Leave to other wrappers what is kept here, for good; how many of the rows they get."""
        if self.is_empty and not self._outcomes:
            self.spill.clear()
            return 0
        return max(0, self.rows - self.spill.finish())

    # what another wrapper has left

    def replay(self, records: Iterable[Sequence[Any]], members: Sequence[str], *, now_us: int, shift_us: int) -> None:
        """Do again what was done to another buffer.

        Args:
            records: What its spill file has.
            members: Those of a row, in order.
            now_us: The clock's reading.
            shift_us: How far that is ahead of the clock of the records.

        Raises:
            ValueError, TypeError, LookupError: These are no such records.
        """
        for word, *rest in records:
            match word, rest:
                case "log", [str(label), int(then_us)]:
                    at_us = min(then_us + shift_us, now_us)
                    self._owe(Counter(counter_id(label), label, window_of(label)), (at_us, at_us, 1))
                case "row", [int(handle), *values]:
                    self._newest = min(self._newest, handle)
                    self._add(handle, _from_json(dict(zip(members, values, strict=True))))
                case "outcome", [int(handle), str(outcome), int(duration_us)]:
                    self._outcomes.append(Outcome(handle, outcome, duration_us))
                case "key", [str(key)]:
                    self._set_key(key)
                case "newest", [int(newest)]:
                    self.newest_before = newest
                case "sending", [str(once), list(ids), list(handles)]:
                    if not (self._unsure and self._unsure[1] == once):
                        logs = [self.pending.pop(key) for key in ids if key in self.pending]
                        self._unsure = (logs, once) if logs else None
                    self._in_doubt.update(handles)
                case "counted", []:
                    self._unsure = None
                case "written", [list(pairs)]:
                    written = dict(pairs)
                    self._remove(written)
                    self._map(written.items())
                    self._in_doubt.difference_update(written)

    def _owe(self, counter: Counter, log: State) -> None:
        before = limiter.live(self.pending.get(counter.id, (counter, EMPTY))[1], counter.window_us, log[-2])
        self.pending[counter.id] = (counter, limiter.merge(before, log, counter.window_us))

    @property
    def in_doubt(self) -> dict[tuple[str, int], int]:
        """The rows that the store may have already: their provisional handles by session and number."""
        rows = [*self._forwarded.items(), *self._others.items()] if self._in_doubt else []
        return {(session_of(row), row.seq): handle for handle, row in rows if handle in self._in_doubt}

    def are_there(self, handles: Iterable[int]) -> None:
        """These rows are in the store already, and no others of those in doubt."""
        self._remove(handles)
        self._in_doubt.clear()

    def _remove(self, handles: Iterable[int]) -> None:
        for handle in handles:
            self._forwarded.remove(handle)
            self._others.remove(handle)


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


def newest_row_id(store: Store) -> int:
    """The place of a store's newest row; 0 if it has none."""
    newest = next(store.newest(), None)
    return newest.row_id if newest else 0


def _shortened(row: Row) -> Row:
    """A row without the long text of its detail: the store may never take it whole in time, and none after it then."""
    detail = json.loads(row.detail or "{}")
    if "arguments" in detail:
        detail["arguments"] = f"not kept: {_chars(row)} characters are too long for the store's time"
    return row._replace(detail=compact(detail))


def _chars(row: Row) -> int:
    return len(row.detail or "") + len(row.request_id or "")


def _to_json(row: Row) -> list[Any]:
    values: list[Any] = list(row)
    values[_HASH_AT] = row.args_hash and row.args_hash.hex()
    return values


def _from_json(values: dict[str, Any]) -> Row:
    row = Row(**values)
    return row._replace(args_hash=row.args_hash and bytes.fromhex(str(row.args_hash)))
