"""A circuit breaker around a store.

The first failure opens it: no later call waits. The bookkeeper's thread probes every one to five seconds; when the store
answers again it gets what the write-behind buffer holds, and decides again.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeVar

from mcpguard.core import limiter
from mcpguard.core.audit import Outcome, Row
from mcpguard.core.claude_code import AgentNote
from mcpguard.core.journal import Journal
from mcpguard.core.limiter import State
from mcpguard.core.policy import Counter
from mcpguard.core.text import plural
from mcpguard.core.verdict import DecisionRequest, Verdict
from mcpguard.errors import StoreBusy, StoreUnavailable
from mcpguard.stores.api import Clock, Entry, Held, Store, Wanted
from mcpguard.stores.clock import boot_us, wall_us
from mcpguard.stores.failover.connector import NOT_IN_TIME, Connector, unavailable
from mcpguard.stores.failover.leftovers import Leftovers
from mcpguard.stores.failover.local_counting import LocalCounting
from mcpguard.stores.failover.spill import SpillFolder, SpillLog
from mcpguard.stores.failover.write_behind import Batch, WriteBehindBuffer, newest_row_id, write

PROBE_US: Final = (1_000_000, 5_000_000)
"""The least and the most time between two probes; in between at random, so that many wrappers do not probe at once."""

LAST_TRY_S: Final = 0.5
"""How long closing may take to hand over what a store is owed that answers again and was not probed yet."""

_SAID: Final = {"local": "this wrapper counts on its own", "deny": "calls are denied", "allow": "calls are not limited"}
_STORE_BITS: Final = 128
"""Handles of the second store and later ones carry its number above these bits."""

T = TypeVar("T")


class FailoverStore:
    """A store that never raises on a call's path.

    Opening, probing and writing back wait in threads of their own: a call waits for a failing store once at the most.

    Args:
        reopen: Opens the real store; raises `StoreUnavailable` if it cannot.
        mode: What becomes of calls without it: `local` lets each wrapper admit what the limits allow by its own counting,
            starting from the counters it last saw; `deny` forwards nothing; `allow` forwards all that no rule closes.
        notify: Gets one line at each change of state.
        spills: Where the write-behind buffer is mirrored on disk; None for nowhere.
        timeout_ms: The budget: how long the first call waits for a store that is still being opened. Opening begins at once.
        clock: A monotone clock, for the breaker and for local counting.
        wall: Wall-clock time, for the audit.
    """

    warnings: tuple[str, ...] = ()

    def __init__(
        self,
        reopen: Callable[[], Store],
        *,
        mode: str,
        notify: Callable[[str], None],
        spills: SpillFolder | None = None,
        timeout_ms: int = 250,
        clock: Clock = boot_us,
        wall: Clock = wall_us,
    ) -> None:
        self._reopen = reopen
        self._mode = mode
        self._notify = notify
        self._timeout_s = timeout_ms / 1000
        self._clock = clock
        self._wall = wall
        self._switching = threading.Lock()  # a call needs it: held for what is below, and one operation of the store
        self._store: Store | None = None
        self._failed: Store | None = None
        self._failure = NOT_IN_TIME
        self._buffer = WriteBehindBuffer(SpillLog(spills, clock, wall))
        self._local = LocalCounting(mode, self._buffer)
        self._leftovers = Leftovers(spills, clock, wall, notify)
        self._stores = 0  # how many stores came before this one, each with rows of its own
        self._args_key = b""
        self._tending = threading.Lock()
        self._probe_us = 0
        self._starting = True  # nobody has needed the store yet
        self._connector: Connector | None = Connector(reopen)

    @property
    def args_key(self) -> bytes:
        """The store's key, which is waited for as a call's first decision is; empty as long as it is not known."""
        self._started()
        return self._args_key

    def _started(self) -> None:
        """Wait for the store to open, if nobody has done that yet."""
        if self._starting:
            with self._switching:
                self._await(self._timeout_s)

    def _await(self, timeout_s: float) -> None:
        """Wait for the first attempt to open it. The caller holds `_switching`."""
        if not self._starting or self._connector is None:
            return
        self._starting = False
        if not self._connector.wait(timeout_s):
            self._fail(NOT_IN_TIME)
            return
        connector, self._connector = self._connector, None
        try:
            store = connector.store()
            self._check_generation(store)
            while not self._buffer.is_empty:
                self._write(store, self._buffer.take())
        except StoreUnavailable as error:
            connector.abandon()
            self._fail(error)
        else:
            self._store = store
            self._buffer.all_written()
            self._buffer.clear_spill()
            self._leftovers.look_soon()

    # calls

    def decide(self, requests: Sequence[DecisionRequest], journal: Journal) -> list[Verdict]:
        """See `Store`; but it does not raise."""
        with self._switching:
            if self._starting and any(request.frame is not None for request in requests):
                self._await(self._timeout_s)
            if self._store is not None:
                try:
                    verdicts = self._store.decide(requests, journal)
                except Exception as error:
                    self._fail(unavailable(error))
                else:
                    self._local.saw(requests, self._clock())
                    if self._store.args_key != self._args_key:  # its server came back without its data
                        self._check_generation(self._store)
                    if self._stores:
                        self._mark(verdicts)
                    return verdicts
            return self._local.decide(requests, journal, failure=self._failure, now_us=self._clock(), time_us=self._wall())

    def append(self, rows: Sequence[Row]) -> list[int]:
        """See `Store`; but it does not raise."""
        with self._switching:
            if self._store is not None:
                try:
                    return self._store.append(rows)
                except Exception as error:
                    self._fail(unavailable(error))
            return self._buffer.keep(rows)

    def record(self, outcomes: Sequence[Outcome]) -> None:
        """See `Store`; but it does not raise: what the store does not take is kept for later."""
        with self._switching:
            self._record(self._of_this_store(outcomes))

    def _record(self, outcomes: Sequence[Outcome]) -> None:
        if self._store is not None:
            outcomes = self._buffer.settle(outcomes)
            try:
                self._store.record(outcomes)
            except Exception as error:
                self._fail(unavailable(error))
            else:
                return
        self._buffer.ended(outcomes)

    def _mark(self, verdicts: Sequence[Verdict]) -> None:
        """Tell this store's handles from those of the one before: it may use the same numbers for other rows."""
        for found in verdicts:
            if found.row_id is not None:
                found.row_id += self._stores << _STORE_BITS

    def _of_this_store(self, outcomes: Sequence[Outcome]) -> Sequence[Outcome]:
        """The outcomes of rows that are in this store, or wait for it."""
        if not self._stores:
            return outcomes
        first = self._stores << _STORE_BITS
        ours = [one._replace(row_id=one.row_id - first) for one in outcomes if one.row_id >= first]
        return ours + [one for one in outcomes if one.row_id < 0]

    # the breaker

    def _fail(self, error: StoreUnavailable) -> None:
        """Open the breaker. What waits for a store, its close too, is left to `tend`."""
        now_us = self._clock()
        if self._store is not None:
            seen, their_now_us = self._store.last_seen()
            self._local.know({key: limiter.shift(state, now_us - their_now_us) for key, state in seen.items()})
            self._failed, self._store = self._store, None
        self._buffer.spill.active = True
        self._failure = error
        self._probe_us = now_us + _between(*PROBE_US)
        hint = f" ({error.hint})" if error.hint else ""
        self._notify(f"store unavailable: {error.message}{hint}; until it is back {_SAID[self._mode]}")

    def tend(self) -> None:
        """See `Store`. While the store does not answer, probe it."""
        with self._tending:
            store = self._store
            if store is None:
                self._probe(self._timeout_s)
                return
            try:
                store.tend()
            except StoreBusy:
                pass  # calls have their turns, and upkeep has another try
            except Exception as error:
                with self._switching:
                    if self._store is store:
                        self._fail(unavailable(error))
            self._pass_on_warnings(store)
            self._leftovers.work(self._with_store)
        self._join_outcomes()

    def keep_pace(self, hurry: Callable[[], None]) -> None:
        """See `Store`."""
        if store := self._store:
            store.keep_pace(hurry)

    def _join_outcomes(self) -> None:
        """Give a store that is back the next outcomes of the meantime."""
        with self._switching:
            if self._store is not None and (outcomes := self._buffer.outcomes()):
                self._record(outcomes)
            if self._store is not None and not self._buffer.has_outcomes:
                self._buffer.clear_spill()

    def _with_store(self, use: Callable[[Store], T]) -> T:
        """What a function returns that uses the store; no call uses it meanwhile.

        Raises:
            StoreUnavailable: There is none now, or it fails.
        """
        with self._switching:
            if self._store is None:
                raise self._failure
            return use(self._store)

    @property
    def needs_tending(self) -> bool:
        """Whether `tend` has to be called soon though nothing happens."""
        store = self._store
        return store is None or self._buffer.has_outcomes or self._leftovers.is_waited_for or store.needs_tending

    def _probe(self, timeout_s: float, *, until_us: int | None = None) -> None:
        """Look whether the store answers again, and take it up if it does.

        Args:
            timeout_s: How long to wait for it to open.
            until_us: For a last try, at once: until when it has to be taken up.
        """
        self._close_failed()
        if self._starting and self._connector is not None:
            if self._connector.wait(timeout_s):
                self._started()
            return
        with self._switching:  # a call may be taking the first one up
            if self._store is not None:
                return
            self._buffer.spill.retry()
            connector = self._connector
            if connector is None:
                if until_us is None and self._clock() < self._probe_us:
                    return
                connector = self._connector = Connector(self._reopen)
        if not connector.wait(timeout_s):
            return
        with self._switching:  # a call that waits for the first one takes it
            if self._connector is not connector:
                return
            self._connector = None
        try:
            self._take_up(connector.store(), until_us)
        except StoreUnavailable as error:
            connector.abandon()
            with self._switching:
                if self._failure is NOT_IN_TIME:  # now it is known why
                    self._fail(error)
                self._failure = error
                self._probe_us = self._clock() + _between(*PROBE_US)

    def _take_up(self, store: Store, until_us: int | None) -> None:
        """Write back what a store that answers again is owed, and let it decide."""
        try:
            newest = newest_row_id(store)
        except Exception as error:
            raise unavailable(error) from error
        with self._switching:
            self._check_generation(store)
            self._buffer.begin_to_write(newest)
            in_hand = self._buffer.rows
        while not self._write_some(store, hurries=self._buffer.written > in_hand):
            if until_us is not None and self._clock() > until_us:
                raise NOT_IN_TIME
        self._notify(f"store is back: {self._buffer.all_written()}")
        self._leftovers.look_soon()

    def _check_generation(self, store: Store) -> None:
        """Look whose store it is, and say what its owner should know."""
        if store.args_key != self._args_key:
            if self._args_key:
                self._stores += 1
            self._buffer.belongs_to(store.args_key)
            self._args_key = store.args_key
        self._pass_on_warnings(store)

    def _pass_on_warnings(self, store: Store) -> None:
        """Say what the store's owner should know, once."""
        for warning in store.warnings:
            if warning not in self.warnings:
                self._notify(warning)
        self.warnings = store.warnings

    def _write_some(self, store: Store, *, hurries: bool) -> bool:
        """Write a batch or more; whether that was all, so that the store decides again.

        Meanwhile calls are decided without the store. They wait for the last batch only; and for others where it hurries,
        because they make rows as quickly as these are written. Each wait is at most half a budget and one operation.
        """
        patience_us = round(self._timeout_s * 500_000)
        with self._switching:
            until_us = self._clock() + patience_us
            while True:
                batch = self._buffer.take()
                if self._buffer.is_empty:
                    self._write(store, batch, patience_us=patience_us)
                    self._store = store
                    return True
                self._write(store, batch, patience_us=patience_us if hurries else None, while_released=not hurries)
                if not hurries or self._clock() > until_us:
                    return False

    def _write(
        self,
        store: Store,
        batch: Batch,
        *,
        patience_us: int | None = None,
        while_released: bool = False,
    ) -> None:
        """Write a batch; what cannot be written is owed as before. The caller holds `_switching`."""
        try:
            with _released(self._switching) if while_released else contextlib.nullcontext():
                handles = write(store, batch, self._clock, patience_us=patience_us)
        except Exception as error:
            self._buffer.put_back(batch, error)
            raise unavailable(error) from error
        self._buffer.wrote(batch, handles)

    def close(self) -> None:
        """See `Store`. One more try to hand over what is owed, for at most `LAST_TRY_S` and an operation of the store."""
        until_us = self._clock() + round(LAST_TRY_S * 1_000_000)
        if self._tending.acquire(timeout=LAST_TRY_S):
            if self._store is None and not self._buffer.is_empty:
                left_s = max(0, until_us - self._clock()) / 1_000_000
                self._probe(min(self._timeout_s, left_s), until_us=until_us)
            while self._store is not None and self._buffer.has_outcomes and self._clock() < until_us:
                self._join_outcomes()
            self._leftovers.close()
            self._close_failed()
            self._tending.release()
        with self._switching:
            self._leave_rest()
            if self._store is not None:
                self._store.close()
            if self._connector is not None:
                self._connector.abandon()

    def _leave_rest(self) -> None:
        """Leave to other wrappers what could not be handed over, and say how much that is."""
        rows = self._buffer.rows + self._buffer.dropped
        kept = self._buffer.leave()
        if kept:
            self._notify(f"{plural(kept, 'audit row')} kept on disk for the next wrapper that reaches the store")
        if rows > kept:
            self._notify(f"{plural(rows - kept, 'audit row')} lost: there is no room for them in memory or on disk")

    def _close_failed(self) -> None:
        """Close a store that has failed: the last who closes an SQLite file copies its log back, which takes its time."""
        failed, self._failed = self._failed, None
        if failed is not None:
            failed.close()

    # reading, which may fail

    def entries(self, *, after: int = 0, wanted: Wanted | None = None) -> Iterator[Entry]:
        """See `Store`."""
        return self._up().entries(after=after, wanted=wanted)

    def newest(self, *, wanted: Wanted | None = None) -> Iterator[Entry]:
        """See `Store`."""
        return self._up().newest(wanted=wanted)

    def held(self) -> list[Held]:
        """See `Store`."""
        return self._up().held()

    def last_seen(self) -> tuple[dict[int, State], int]:
        """See `Store`."""
        return self._up().last_seen()

    def adopt(self, logs: Sequence[tuple[Counter, State]], once: str) -> None:
        """See `Store`."""
        self._up().adopt(logs, once)

    def reset(self, labels: Sequence[str]) -> int:
        """See `Store`."""
        return self._up().reset(labels)

    def peek(self, counters: Sequence[Counter]) -> tuple[list[State], int]:
        """See `Store`."""
        return self._up().peek(counters)

    def note_agent(self, namespace: str, note: AgentNote) -> None:
        """See `Store`; but it does not raise: a note that the store does not take is lost."""
        self._started()
        with self._switching:
            if self._store is not None:
                try:
                    self._store.note_agent(namespace, note)
                except Exception as error:
                    self._fail(unavailable(error))

    def noted_agents(self, namespace: str, tool_use_ids: Sequence[str]) -> dict[str, str]:
        """See `Store`; but it does not raise: while the store does not answer, nothing is noted, and nobody waits."""
        self._started()
        with self._switching:
            if self._store is not None:
                try:
                    return self._store.noted_agents(namespace, tool_use_ids)
                except Exception as error:
                    self._fail(unavailable(error))
            return {}

    def _up(self) -> Store:
        self._started()
        if self._store is None:
            raise self._failure
        return self._store


@contextlib.contextmanager
def _released(lock: threading.Lock) -> Iterator[None]:
    """Let go of a lock for a while."""
    lock.release()
    try:
        yield
    finally:
        lock.acquire()


def _between(least_us: int, most_us: int) -> int:
    return least_us + int.from_bytes(os.urandom(4)) % (most_us - least_us)
