"""Wraps a store for `run`, so that calls go on while the store cannot be used.

While the circuit breaker (`breaker`) is closed, calls use the store. After a failure they are decided by `local_counting`, and
the write-behind buffer (`write_behind`) keeps their charges, rows and outcomes. The bookkeeper's thread calls `tend`, which
probes the store, writes the buffer back (`write_back`), lets the store hold the calls in flight (`in_flight`), and takes in
what wrappers that ended have left on disk (`leftovers`).

Two locks: `_lock` is held for what a call needs, which is at most one operation of the store or one wait for it to open.
`_tending` is held while `tend` or `close` works, and taken before `_lock`.
"""

import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from mcpguard.errors import StoreUnavailable
from mcpguard.limiter import sliding
from mcpguard.session.audit import Outcome, Row
from mcpguard.session.journal import Journal
from mcpguard.session.verdict import DecisionRequest, Ending, Verdict
from mcpguard.stores.api import Clock, Recoverable
from mcpguard.stores.clock import boot_us, wall_us
from mcpguard.stores.failover.breaker import NOT_IN_TIME, CircuitBreaker
from mcpguard.stores.failover.connector import Connector, unavailable
from mcpguard.stores.failover.generations import Generations
from mcpguard.stores.failover.in_flight import CallsInFlight
from mcpguard.stores.failover.leftovers import Leftovers
from mcpguard.stores.failover.local_counting import LocalCounting
from mcpguard.stores.failover.spill import SpillFolder, SpillLog
from mcpguard.stores.failover.write_back import WriteBack, newest_row_id
from mcpguard.stores.failover.write_behind import WriteBehindBuffer
from mcpguard.text.printing import plural

LAST_TRY_S: Final = 0.5
"""How long `close` may take to write the buffer to a store that can be used again."""

_EFFECTS: Final = {"local": "this wrapper counts on its own", "deny": "calls are denied", "allow": "calls are not limited"}

T = TypeVar("T")


class FailoverStore:
    """A `CallStore` that never raises. A call waits for a failing store at most once.

    Args:
        reopen: Opens the store; raises `StoreUnavailable` if it cannot. It is called at once, in a thread of its own.
        mode: How calls are decided without the store: `local` admits what the limits allow by this wrapper's own counting, from
            the counters that it last saw; `deny` forwards nothing; `allow` forwards every call that no rule closes.
        notify: Gets one line for each change of state.
        spills: Where the write-behind buffer is mirrored on disk; None for nowhere.
        timeout_ms: How long the first call waits for a store that is still being opened.
        clock: A monotonic clock.
        wall: Wall-clock time, for the audit log.
    """

    def __init__(
        self,
        reopen: Callable[[], Recoverable],
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
        self._lock = threading.Lock()
        self._tending = threading.Lock()
        self._is_closed = False
        self._breaker = CircuitBreaker(clock)
        self._store: Recoverable | None = None  # the store that calls use; None unless the breaker is closed
        self._failed: Recoverable | None = None  # to be closed by `tend`: closing may take long
        self._connector: Connector | None = Connector(reopen)  # the attempt to open a store that is under way
        self._generations = Generations()
        self._warnings: tuple[str, ...] = ()  # what the user was told
        self._buffer = WriteBehindBuffer(SpillLog(spills, clock, wall))
        self._in_flight = CallsInFlight(self._generations)
        self._local = LocalCounting(mode, self._buffer, self._in_flight)
        self._write_back = WriteBack(self._buffer, self._lock, clock, patience_us=timeout_ms * 500)
        self._leftovers = Leftovers(spills, clock, wall, notify)

    # calls

    @property
    def args_key(self) -> bytes:
        """See `CallStore`. Waits for the store as the first call does. Empty until the key is known."""
        if self._store is None:
            self._await_opening()
        return self._generations.args_key

    def decide(self, requests: Sequence[DecisionRequest], journal: Journal) -> list[Verdict]:
        """See `CallStore`."""
        with self._lock:
            if self._store is None and any(request.frame is not None for request in requests):
                self._end_opening(self._timeout_s)
            store = self._store
            if store is not None:
                try:
                    verdicts = store.decide(requests, journal)
                except Exception as error:
                    self._fail(error)
                else:
                    self._local.saw(requests, self._clock())
                    is_other = store.args_key != self._generations.args_key  # its server came back without its data
                    if is_other:
                        self._check_generation(store)
                    if self._generations.first_id:
                        self._generations.number_rows(verdicts)
                    for request in requests:  # a usual call pays for this loop only
                        if request.plan.settles:
                            self._local.saw_settling(requests, verdicts, self._clock())
                            break
                    if is_other:
                        self._give_calls(store)
                    return verdicts
            failure = self._breaker.failure
            return self._local.decide(requests, journal, failure=failure, now_us=self._clock(), time_us=self._wall())

    def append(self, rows: Sequence[Row]) -> list[int]:
        """See `CallStore`."""
        with self._lock:
            if self._store is not None:
                try:
                    return self._store.append(rows)
                except Exception as error:
                    self._fail(error)
            return self._buffer.keep(rows)

    def record(self, outcomes: Sequence[Outcome]) -> None:
        """See `CallStore`. Outcomes that the store does not take are kept."""
        with self._lock:
            self._record(self._generations.of_this_store(outcomes))

    def _record(self, outcomes: Sequence[Outcome]) -> None:
        if self._store is not None:
            outcomes = self._buffer.settle(outcomes)
            try:
                self._store.record(outcomes)
            except Exception as error:
                self._fail(error)
            else:
                return
        self._buffer.keep_outcomes(outcomes)

    def settle(self, endings: Sequence[Ending]) -> None:
        """See `CallStore`. What the store does not take is kept: places are freed, and errors counted, when it is back.

        With `allow`, calls that were forwarded without the store are not counted, even if they fail.
        """
        with self._lock:
            if self._mode == "allow":
                endings = [ending._replace(failed=ending.failed and ending.row_id >= 0) for ending in endings]
            store = self._store
            if store is not None:
                try:
                    if told := self._in_flight.in_store(endings):
                        store.settle(told)
                except Exception as error:
                    self._fail(error)
                else:
                    self._in_flight.end(endings)
                    self._local.saw_failures(endings, self._clock())
                    self._follow_generation(store)
                    return
            self._in_flight.end_without_store(endings)
            self._local.count_failures(endings, self._clock())

    def take_notes(self, namespace: str, keys: Sequence[str]) -> dict[str, str]:
        """See `CallStore`. While the store cannot be used there are no notes."""
        self._await_opening()
        with self._lock:
            if self._store is not None:
                try:
                    return self._store.take_notes(namespace, keys)
                except Exception as error:
                    self._fail(error)
            return {}

    # opening and failing; unless a docstring says otherwise, the caller holds the lock

    def _await_opening(self) -> None:
        """Wait for the first attempt to open the store. The caller does not hold the lock."""
        if self._breaker.state == "connecting":
            with self._lock:
                self._end_opening(self._timeout_s)

    def _end_opening(self, timeout_s: float) -> None:
        """Wait for the first attempt to open the store, if it is still under way, and use the store."""
        connector = self._connector
        if self._breaker.state != "connecting" or connector is None:
            return
        if not connector.wait(timeout_s):
            self._buffer.spill.active = True
            self._breaker.begin_probe()
            self._tell_failure(NOT_IN_TIME)
            return
        self._connector = None
        opened: Recoverable | None = None
        try:
            opened = connector.store()
            self._check_generation(opened)
            self._write_back.write_all(opened)
            self._use(opened)
        except Exception as error:
            self._failed = opened
            self._fail(error)
        else:
            self._buffer.end_write_back()
            self._buffer.clear_spill()
            self._leftovers.look_soon()

    def _check_generation(self, store: Recoverable) -> None:
        """Note whether this is another store than the one before, and tell its warnings."""
        if store.args_key != self._generations.args_key:
            self._generations.begin(store.args_key)
            self._buffer.assign_to(store.args_key)
            self._in_flight.lose_data()
        self._tell_warnings(store)

    def _follow_generation(self, store: Recoverable) -> None:
        """If the server of the store that calls use came back without its data, give it what it needs."""
        if store.args_key != self._generations.args_key:
            self._check_generation(store)
            self._give_calls(store)

    def _give_calls(self, store: Recoverable) -> None:
        """Let the store that calls use hold the calls in flight that it does not know."""
        try:
            self._in_flight.give(store, self._clock)
        except Exception as error:
            self._fail(error)

    def _use(self, store: Recoverable, until_us: int | None = None) -> None:
        """Let calls use a store, once it holds the calls in flight; see `CallsInFlight.give`."""
        self._in_flight.give(store, self._clock, until_us=until_us)
        self._store = store
        self._breaker.close()

    def _fail(self, error: Exception) -> None:
        """Let calls do without the store."""
        if self._store is not None:
            logs, store_now_us = self._store.last_seen()
            ahead_us = self._clock() - store_now_us
            shifted = {key: sliding.shift(log, ahead_us) for key, log in logs.items()}
            self._local.learn(shifted, absent_are_empty=self._store.absent_are_empty)
            self._in_flight.lose_store()
            self._failed, self._store = self._store, None
        self._buffer.spill.active = True
        failure = unavailable(error)
        if self._breaker.trip(failure):
            self._tell_failure(failure)

    def _tell_failure(self, failure: StoreUnavailable) -> None:
        hint = f" ({failure.hint})" if failure.hint else ""
        self._notify(f"store unavailable: {failure.message}{hint}; until it is back {_EFFECTS[self._mode]}")

    def _tell_warnings(self, store: Recoverable) -> None:
        for warning in store.warnings:
            if warning not in self._warnings:
                self._notify(warning)
        self._warnings = store.warnings

    # upkeep and recovery

    @property
    def needs_tending(self) -> bool:
        """See `CallStore`."""
        store = self._store
        return store is None or self._buffer.has_outcomes or self._leftovers.has_work or store.needs_tending

    def tend(self) -> None:
        """See `CallStore`. While the store cannot be used, probe it when a probe is due."""
        with self._tending:
            if self._is_closed:
                return
            store = self._store
            if store is None:
                self._probe(self._timeout_s)
                self._buffer.spill.sweep()
                return
            try:
                store.tend()
            except Exception as error:
                with self._lock:
                    if self._store is store:
                        self._fail(error)
            with self._lock:
                if self._store is store:
                    self._follow_generation(store)
            self._tell_warnings(store)
            self._leftovers.work(self._with_store)
            self._join_outcomes()
            self._buffer.spill.sweep()

    def keep_pace(self, hurry: Callable[[], None]) -> None:
        """See `CallStore`."""
        if store := self._store:
            store.keep_pace(hurry)

    def catch_up(self) -> bool:
        """See `CallStore`."""
        with self._lock, contextlib.suppress(StoreUnavailable):  # the next call reports it
            return self._store is not None and self._store.catch_up()
        return False

    def _join_outcomes(self) -> None:
        """Write some of the outcomes in the buffer."""
        with self._lock:
            if self._store is not None and (outcomes := self._buffer.take_outcomes()):
                self._record(outcomes)
            if self._store is not None and not self._buffer.has_outcomes:
                self._buffer.clear_spill()

    def _with_store(self, use: Callable[[Recoverable], T]) -> T:
        """See `WithStore`."""
        with self._lock:
            if self._store is None:
                raise self._breaker.failure
            return use(self._store)

    def _probe(self, timeout_s: float, *, until_us: int | None = None) -> None:
        """Try to open the store, if a probe is due or under way, and hand it the buffer and the calls.

        Args:
            timeout_s: How long to wait for it to open.
            until_us: When to stop writing the buffer; None for never. If it is given, a probe begins even if none is due.
        """
        self._close_failed()
        with self._lock:  # the first call holds it while it waits for the store to open
            if self._store is not None:
                return
            self._buffer.spill.retry()
            if self._breaker.state == "open":
                if until_us is None and not self._breaker.is_probe_due:
                    return
                self._breaker.begin_probe()
                self._connector = Connector(self._reopen)
            connector = self._connector
        if connector is None or not connector.wait(timeout_s, is_patient=until_us is None):
            return
        with self._lock:
            self._end_opening(0)
            if self._connector is not connector:  # the store was used, or has failed, with the first attempt
                return
            self._connector = None
        try:
            self._switch_back(connector.store(), until_us)
        except Exception as error:
            connector.abandon()
            with self._lock:
                self._fail(error)

    def _switch_back(self, store: Recoverable, until_us: int | None) -> None:
        """Write the buffer to a store that can be used again, and let calls use the store."""
        newest = newest_row_id(store)
        with self._lock:
            self._check_generation(store)
            self._buffer.begin_write_back(newest)
        self._write_back.run(store, lambda late_us: self._use(store, late_us), until_us=until_us)
        self._notify(f"store is back: {self._buffer.end_write_back()}")
        self._leftovers.look_soon()

    # the end

    def close(self) -> None:
        """See `CallStore`. Tries once more to write the buffer, for `LAST_TRY_S` and one operation of the store at most."""
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
        with self._lock:
            self._is_closed = True
            self._leave_rest()
            store, self._store = self._store, None  # another thread may still be in `tend`: what it meets is no outage
            if store is not None:
                store.close()
            if self._connector is not None:
                self._connector.abandon()

    def _close_failed(self) -> None:
        failed, self._failed = self._failed, None
        if failed is not None:
            failed.close()

    def _leave_rest(self) -> None:
        """Leave the rest of the buffer to other wrappers, and tell the user how many rows that is."""
        rows = self._buffer.row_count + self._buffer.dropped
        kept = self._buffer.leave()
        if kept:
            self._notify(f"{plural(kept, 'audit row')} kept on disk for the next wrapper that reaches the store")
        if rows > kept:
            self._notify(f"{plural(rows - kept, 'audit row')} lost: no store and no file on disk could take all of them")
