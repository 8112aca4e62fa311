"""Wraps a store for `run`, so that calls go on while the store cannot be used.

While the circuit breaker (`breaker`) is closed, calls use the store. After a failure they use the store in memory of `local`,
which notes all that it does in an outage log (`log`). The bookkeeper's thread calls `tend`, which probes the store, reads the
outage log into it, gives it the calls in flight, and then does the same for the logs of wrappers that have ended (`recovery`).

Two locks: `_lock` is held for what a call needs, which is at most one operation of the store or one wait for it to open.
`_tending` is held while `tend` or `close` works, and taken before `_lock`.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

from mcpguard.errors import NOT_IN_TIME, StoreUnavailable
from mcpguard.light_typing import Final
from mcpguard.session.audit import Outcome, Row
from mcpguard.session.journal import Journal
from mcpguard.session.verdict import DecisionRequest, Ending, Verdict
from mcpguard.stores.api import Clock, Recoverable
from mcpguard.stores.clock import boot_us, wall_us
from mcpguard.stores.outage.breaker import CircuitBreaker, Connector, unavailable
from mcpguard.stores.outage.local import LocalStore
from mcpguard.stores.outage.log import Bounds, Means, OutageFolder
from mcpguard.stores.outage.recovery import LeftLogs, OwnLogs
from mcpguard.text.digest import number
from mcpguard.text.printing import plural

LAST_TRY_S: Final = 0.5
"""How long `close` may take to read the outage log into a store that can be used again."""

_ROW_ID_BITS: Final = 128
"""Row ids of all stores are below 2 to this power. The bits above it are the number of the store: 0 for the first one."""

_EFFECTS: Final = {"local": "this wrapper counts on its own", "deny": "calls are denied", "allow": "calls are not limited"}


class OutageStore:
    """A `CallStore` that never raises. A call waits for a failing store at most once.

    Args:
        reopen: Opens the store; raises `StoreUnavailable` if it cannot. It is called at once, in a thread of its own.
        mode: How calls are decided without the store: `local` admits what the limits allow by this wrapper's own counting, from
            the counters that it last saw; `deny` forwards nothing; `allow` forwards every call that no rule closes.
        notify: Gets one line for each change of state.
        outage: Gets the begin and the end of an outage: the members `decision`, which is `store_lost` or `store_back`, and
            `reason`, the line.
        folder: Where outage logs are; None for nowhere.
        timeout_ms: How long the first call waits for a store that is still being opened.
        clock: A monotonic clock.
        wall: Wall-clock time, for the audit log.
        bounds: How much is kept of an outage.
    """

    def __init__(
        self,
        reopen: Callable[[], Recoverable],
        *,
        mode: str,
        notify: Callable[[str], None],
        outage: Callable[[Mapping[str, str]], None] = lambda _: None,
        folder: OutageFolder | None = None,
        timeout_ms: int = 250,
        clock: Clock = boot_us,
        wall: Clock = wall_us,
        bounds: Bounds | None = None,
    ) -> None:
        self._reopen = reopen
        self._mode = mode
        self._notify = notify
        self._outage = outage
        self._timeout_s = timeout_ms / 1000
        self._patience_us = timeout_ms * 500
        self._clock = clock
        self._lock = threading.Lock()
        self._tending = threading.Lock()
        self._is_closed = False
        self._breaker = CircuitBreaker(clock)
        self._store: Recoverable | None = None  # the store that calls use; None unless the breaker is closed
        self._failed: Recoverable | None = None  # to be closed by `tend`: closing may take long
        self._connector: Connector | None = Connector(reopen)  # the attempt to open a store that is under way
        self._args_key = b""  # of the store that was used last, which was made at random with the store
        self._first_id = 0  # what is added to the row ids of this store, so that those of an earlier one are not taken for them
        self._warnings: tuple[str, ...] = ()  # what the user was told
        means = Means(folder, clock, wall, bounds or Bounds())
        self._local = LocalStore(mode, means)
        self._salt = os.urandom(16)
        self._own_logs = OwnLogs(clock)
        self._left_logs = LeftLogs(means, self._own_logs.row_ids, notify)

    # calls

    @property
    def args_key(self) -> bytes:
        """See `CallStore`. Waits for the store as the first call does. Empty until the key is known."""
        if self._store is None:
            with self._lock:
                self._end_opening(self._timeout_s)
        return self._args_key

    def decide(self, requests: Sequence[DecisionRequest], journal: Journal) -> list[Verdict]:
        """See `CallStore`."""
        with self._lock:
            if self._store is None:
                self._end_opening(self._timeout_s)
            if self._store is not None:
                try:
                    verdicts = self._store.decide(requests, journal)
                except Exception as error:
                    self._fail(error)
                else:
                    if self._store.args_key != self._args_key:
                        self._follow()
                    for verdict in verdicts:
                        if self._first_id and verdict.row_id is not None:
                            verdict.row_id += self._first_id
                        if verdict.plan.caps:
                            self._local.admitted(verdict)
                    return verdicts
            self._local.failure = self._breaker.failure
            return self._local.decide(requests, journal)

    def append(self, rows: Sequence[Row]) -> list[int]:
        """See `CallStore`."""
        row_ids: list[int] = []
        with self._lock:
            if self._works(lambda store: row_ids.extend(store.append(rows))):
                return row_ids
            return self._local.append(rows)

    def record(self, outcomes: Sequence[Outcome]) -> None:
        """See `CallStore`. Outcomes that the store does not take are kept. Those of an earlier store are lost with its data."""
        with self._lock:
            known = []
            for one in outcomes:
                row_id = one.row_id - self._first_id if one.row_id >= 0 else self._own_logs.row_ids.get(one.row_id, one.row_id)
                if row_id >= 0 or one.row_id < 0:
                    known.append(one._replace(row_id=row_id))
            if not self._works(lambda store: store.record([one for one in known if one.row_id >= 0])):
                self._local.record(known)

    def settle(self, endings: Sequence[Ending]) -> None:
        """See `CallStore`. What the store does not take is kept: places are freed, and errors counted, when it is back.

        With `allow`, calls that were forwarded without the store are not counted, even if they fail.
        """
        with self._lock:
            if self._mode == "allow":
                endings = [ending._replace(failed=ending.failed and ending.row_id >= 0) for ending in endings]
            told = [
                one._replace(row_id=self._place_id(one.row_id)) for one in endings if one.failed or self._local.has_place(one)
            ]
            if self._works(lambda store: store.settle(told) if told else None):
                self._local.free(endings)
                self._follow()
            else:
                self._local.settle(endings)

    def _place_id(self, row_id: int) -> int:
        """The id by which the store that calls use knows a call: of its row, or a negative one that no other call has."""
        if row_id < 0:
            return row_id
        if row_id >= self._first_id:
            return row_id - self._first_id
        return -1 - (number(f"{row_id}", self._salt) >> 10)

    def take_note(self, namespace: str, key: str) -> str:
        """See `CallStore`. While the store cannot be used there are no notes."""
        found: list[str] = []
        with self._lock:
            self._end_opening(self._timeout_s)
            self._works(lambda store: found.append(store.take_note(namespace, key)))
        return "".join(found)

    # opening and failing; the caller holds the lock

    def _end_opening(self, timeout_s: float) -> None:
        """Wait for the first attempt to open the store, if it is still under way, and use the store."""
        connector = self._connector
        if self._breaker.state != "connecting" or connector is None:
            return
        if not connector.wait(timeout_s):
            self._local.log.to_disk = True
            self._breaker.begin_probe()
            self._tell_failure(NOT_IN_TIME)
            return
        self._connector = None
        try:
            store = self._failed = connector.store()  # until it is used
            self._begin_store(store)
            self._use_if_read(store)
            self._failed = None
        except Exception as error:
            self._fail(error)

    def _works(self, use: Callable[[Recoverable], object]) -> bool:
        """Use the store, if there is one. Returns whether it worked."""
        if self._store is not None:
            try:
                use(self._store)
            except Exception as error:
                self._fail(error)
        return self._store is not None

    def _begin_store(self, store: Recoverable) -> None:
        """Note whether this is another store than the one before, and tell its warnings."""
        if store.args_key != self._args_key:
            if self._args_key:
                self._first_id += 1 << _ROW_ID_BITS
            self._args_key = store.args_key
            self._local.begin_store(self._args_key)
            self._own_logs.row_ids.clear()
        self._tell_warnings(store)

    def _follow(self) -> None:
        """If the server of the store that calls use came back without its data, give it what it needs."""
        if self._store is not None and self._store.args_key != self._args_key:
            self._begin_store(self._store)
            self._works(self._give_places)

    def _give_places(self, store: Recoverable) -> None:
        self._local.hand_over(store, self._place_id, self._own_logs.on_time)

    def _fail(self, error: Exception) -> None:
        """Let calls do without the store."""
        if self._store is not None:
            self._local.learn(self._store)
            self._failed, self._store = self._store, None
        self._local.log.to_disk = True
        failure = unavailable(error)
        if self._breaker.trip(failure):
            self._tell_failure(failure)

    def begin_after(self, store: Recoverable, error: Exception) -> None:
        """Go on from what a store knew that was used alone until it failed."""
        with self._lock:
            self._begin_store(store)
            self._store = store
            self._fail(error)

    def _tell_failure(self, failure: StoreUnavailable) -> None:
        hint = f" ({failure.hint})" if failure.hint else ""
        self._tell_outage("store_lost", f"store unavailable: {failure.message}{hint}; until it is back {_EFFECTS[self._mode]}")

    def _tell_outage(self, what: str, line: str) -> None:
        self._notify(line)
        self._outage({"decision": what, "reason": line})

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
        return store is None or bool(self._own_logs.read) or self._left_logs.has_work or store.needs_tending

    def tend(self) -> None:
        """See `CallStore`. While the store cannot be used, probe it when a probe is due."""
        with self._tending:
            if self._is_closed:
                return
            store = self._store
            self._tidy()
            if store is None:
                self._probe()
            else:
                try:
                    store.tend()
                except Exception as error:
                    with self._lock:
                        if self._store is store:
                            self._fail(error)
                with self._lock:
                    self._follow()
                self._tell_warnings(store)
                self._left_logs.take_in(store, lambda: self._while_used(store))
            self._tidy()

    @contextlib.contextmanager
    def _while_used(self, store: Recoverable) -> Iterator[None]:
        with self._lock:
            if self._store is not store:
                raise self._breaker.failure
            yield

    def keep_pace(self, hurry: Callable[[], None]) -> None:
        """See `CallStore`."""
        if store := self._store:
            store.keep_pace(hurry)

    def catch_up(self) -> bool:
        """See `CallStore`."""
        with self._lock, contextlib.suppress(StoreUnavailable):  # the next call reports it
            return self._store is not None and self._store.catch_up()
        return False

    def _probe(self, *, until_us: int | None = None) -> None:
        """Try to open the store, if a probe is due or under way, and hand it the outage.

        Args:
            until_us: When to stop; None for never. If it is given, a probe begins even if none is due.
        """
        timeout_s = self._timeout_s if until_us is None else min(self._timeout_s, LAST_TRY_S)
        with self._lock:  # the first call holds it while it waits for the store to open
            if self._store is not None:
                return
            self._local.log.flush(is_retry=True)
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
            self._recover(connector.store(), until_us)
        except Exception as error:
            connector.abandon()
            with self._lock:
                self._fail(error)

    def _recover(self, store: Recoverable, until_us: int | None) -> None:
        """Hand the outage to a store that can be used again, and let calls use the store.

        Until then calls are decided locally, and log rows. A log is read without the lock, so that calls do not wait. What they
        have logged meanwhile is read with the lock, if it is little, so that no row is missing when the first call uses the
        store. A call waits for the lock at most half of its budget and one operation of the store.
        """
        own = self._own_logs
        with self._lock:
            self._begin_store(store)
            own.begin()
        while self._store is not store:
            if until_us is not None and self._clock() > until_us:
                raise NOT_IN_TIME
            with self._lock:
                own.late_us = self._clock() + self._patience_us
                try:
                    self._use_if_read(store)
                finally:
                    own.late_us = 0
            if own.is_long:
                own.read_on()
        dropped = f"; {plural(own.dropped, 'row')} of denials dropped" if own.dropped else ""
        self._tell_outage("store_back", f"store is back: {plural(own.rows, 'audit row')} of the outage written{dropped}")

    def _use_if_read(self, store: Recoverable) -> None:
        """Let calls use a store, if it has all that this wrapper has logged, or gets it soon. The caller holds the lock."""
        if self._own_logs.read_short(store, self._local.take_log):
            self._give_places(store)
            self._store = store
            self._breaker.close()
            self._left_logs.look_soon()

    def _tidy(self) -> None:
        """Close the store that failed, and remove the logs that the store has. Both may take long, so no call may wait."""
        with self._lock:  # while the first call begins to use the store, it is no store that failed
            failed, self._failed = self._failed, None
        if failed is not None:
            failed.close()
        self._own_logs.remove_read()

    # the end

    def close(self) -> None:
        """See `CallStore`. Tries once more to reach the store, for `LAST_TRY_S` and one operation of the store at most."""
        until_us = self._clock() + round(LAST_TRY_S * 1_000_000)
        if self._tending.acquire(timeout=LAST_TRY_S):
            if self._store is None and not (self._own_logs.reading is None and self._local.log.is_empty):
                self._probe(until_us=until_us)
            self._left_logs.close()
            self._tidy()
            self._tending.release()
        with self._lock:
            self._is_closed = True
            self._leave_rest()
            store, self._store = self._store, None  # another thread may still be in `tend`: what it meets is no outage
            if store is not None:
                store.close()
            if self._connector is not None:
                self._connector.abandon()

    def _leave_rest(self) -> None:
        """Leave the outage logs to other wrappers, and tell the user how many rows they have."""
        rows = [log.leave() for log in (self._own_logs.reading, self._local.log) if log is not None and not log.is_empty]
        if kept := sum(left for left, _ in rows):
            self._notify(f"{plural(kept, 'audit row')} kept on disk for the next wrapper that reaches the store")
        if lost := sum(lost for _, lost in rows):
            self._notify(f"{plural(lost, 'audit row')} lost: no store and no file on disk could take all of them")
