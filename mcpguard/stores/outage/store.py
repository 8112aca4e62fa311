"""Wraps a store for `run`, so that calls go on while the store cannot be used.

Calls use the store until it fails. Then they use the store in memory of `local`, which notes all that it does in an outage log
(`log`). The bookkeeper's thread calls `tend`, which probes the store now and then (`breaker`). A store that can be used again
first counts what this wrapper has charged, and gets its calls in flight. Then calls use it, and `recovery` reads the rows of
the outage into it, and the logs of wrappers that have ended.

Two locks: `_lock` is held for what a call needs, which is at most one operation of the store or one wait for it to open.
`_tending` is held while `tend` or `close` works, and taken before `_lock`.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from mcpguard.errors import StoreUnavailable
from mcpguard.session.audit import Outcome, Row
from mcpguard.session.journal import Journal
from mcpguard.session.verdict import DecisionRequest, Ending, Verdict
from mcpguard.stores.api import Clock, Recoverable
from mcpguard.stores.clock import boot_us, wall_us
from mcpguard.stores.outage.breaker import NOT_IN_TIME, Connector, probe_wait_us, unavailable
from mcpguard.stores.outage.local import LocalStore
from mcpguard.stores.outage.log import Bounds, Means, OutageFolder, OutageLog, key_id
from mcpguard.stores.outage.recovery import Recovery
from mcpguard.text.digest import number
from mcpguard.text.printing import plural

LAST_TRY_S: Final = 0.5
"""How long `close` may take to read the outage log into a store that can be used again."""

WORK_US: Final = 300_000
"""After this time `tend` stops to read logs, so that the bookkeeper's other tasks get their turn."""

TOO_SLOW: Final = StoreUnavailable("it answers too slowly")
"""The failure of a store that would let a call wait too long while it is handed an outage."""

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
        folder: OutageFolder | None = None,
        timeout_ms: int = 250,
        clock: Clock = boot_us,
        wall: Clock = wall_us,
        bounds: Bounds | None = None,
    ) -> None:
        self._reopen = reopen
        self._mode = mode
        self._notify = notify
        self._timeout_s = timeout_ms / 1000
        self._patience_us = timeout_ms * 500
        self._clock = clock
        self._lock = threading.Lock()
        self._tending = threading.Lock()
        self._is_closed = False
        self._failure = NOT_IN_TIME  # why the store cannot be used
        self._probe_us = 0  # when to probe it next
        self._store: Recoverable | None = None  # the store that calls use
        self._failed: Recoverable | None = None  # to be closed by `tend`: closing may take long
        self._connector: Connector | None = Connector(reopen)  # the attempt to open a store that is under way
        self._may_wait = True  # whether a call may wait for that attempt: for the first one, and only once
        self._is_told = False  # whether the user was told that the store cannot be used
        self._args_key = b""  # of the store that was used last, which was made at random with the store
        self._first_id = 0  # what is added to the row ids of this store, so that those of an earlier one are not taken for them
        self._warnings: tuple[str, ...] = ()  # what the user was told
        means = Means(folder, clock, wall, bounds or Bounds())
        self._local = LocalStore(mode, means, lambda: OutageLog(means, key_id(self._args_key)))
        self._salt = os.urandom(16)
        self._recovery = Recovery(means, notify)

    # calls

    @property
    def args_key(self) -> bytes:
        """See `CallStore`. Waits for the store as the first call does. Empty until the key is known."""
        if self._store is None:
            with self._lock:
                self._end_opening()
        return self._args_key

    def decide(self, requests: Sequence[DecisionRequest], journal: Journal) -> list[Verdict]:
        """See `CallStore`."""
        with self._lock:
            if self._store is None:
                self._end_opening()
            if self._store is not None:
                try:
                    verdicts = self._store.decide(requests, journal)
                except Exception as error:
                    self._fail(error)
                else:
                    self._note(requests, verdicts)
                    return verdicts
            self._local.failure = self._failure
            self._local.has_room = len(self._recovery.own) <= self._local.log.bounds.logs
            return self._local.decide(requests, journal)

    def _note(self, requests: Sequence[DecisionRequest], verdicts: Sequence[Verdict]) -> None:
        """Note what an outage needs of a decision. It is on every call's path."""
        if self._store is not None and self._store.args_key != self._args_key:
            self._follow()
        for request, verdict in zip(requests, verdicts, strict=True):
            if self._first_id and verdict.row_id is not None:
                verdict.row_id += self._first_id
            if request.plan.caps and verdict.forwards and verdict.row_id is not None:
                self._local.give_places({verdict.row_id: verdict.taken_caps})

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
            known, later = [], []
            for one in outcomes:
                row_id = self._recovery.row_ids.get(one.row_id, one.row_id)
                row_id -= self._first_id if one.row_id >= 0 else 0
                if row_id >= 0:
                    known.append(one._replace(row_id=row_id))
                elif one.row_id < 0 and (self._store is None or self._recovery.own):
                    later.append(one)  # the store does not have its row yet
            if not self._works(lambda store: store.record(known)):
                later += known
            if later:
                self._local.record(later)

    def settle(self, endings: Sequence[Ending]) -> None:
        """See `CallStore`. What the store does not take is kept: places are freed, and errors counted, when it is back.

        With `allow`, calls that were forwarded without the store are not counted, even if they fail.
        """
        with self._lock:
            if self._mode == "allow":
                endings = [ending._replace(failed=ending.failed and ending.row_id >= 0) for ending in endings]
            told = [one._replace(row_id=self._place_id(one.row_id)) for one in endings if one.failed or one.plan.caps]
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

    def take_notes(self, namespace: str, keys: Sequence[str]) -> dict[str, str]:
        """See `CallStore`. While the store cannot be used there are no notes."""
        found: dict[str, str] = {}
        with self._lock:
            self._end_opening()
            self._works(lambda store: found.update(store.take_notes(namespace, keys)))
        return found

    # opening and failing; the caller holds the lock

    def _end_opening(self) -> None:
        """Wait for the first attempt to open the store, if no call has waited for it, and use the store."""
        connector = self._connector
        if connector is None or not self._may_wait:
            return
        self._may_wait = False
        if connector.wait(self._timeout_s):
            self._use_opened(connector)
        else:
            self._local.log.to_disk = True
            self._tell_failure(NOT_IN_TIME)

    def _use_opened(self, connector: Connector) -> None:
        """Use the store that an attempt has opened, unless a call has done so meanwhile."""
        if self._connector is not connector:
            return
        self._connector, self._may_wait = None, False
        try:
            self._failed = connector.store()  # until it is used
            self._use(self._failed)
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
            if self._local.log.is_empty:
                self._local.log.key = key_id(self._args_key)
            self._recovery.row_ids.clear()
            self._local.left.clear()
        self._tell_warnings(store)

    def _follow(self) -> None:
        """If the server of the store that calls use came back without its data, give it what it needs."""
        if self._store is not None and self._store.args_key != self._args_key:
            self._begin_store(self._store)
            self._works(lambda store: self._local.hand_over(store, self._place_id, contextlib.nullcontext))

    def _fail(self, error: Exception) -> None:
        """Let calls do without the store."""
        failure = unavailable(error)
        is_news = self._store is not None or self._failure is NOT_IN_TIME
        if self._store is not None:
            self._local.learn(self._store)
            self._failed, self._store = self._store, None
        self._local.log.to_disk = True
        self._failure = failure
        self._probe_us = self._clock() + probe_wait_us()
        if is_news:
            self._tell_failure(failure)

    def _tell_failure(self, failure: StoreUnavailable) -> None:
        self._is_told = True
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
        return store is None or self._has_logs or self._recovery.has_work or store.needs_tending

    @property
    def _has_logs(self) -> bool:
        """Whether there is something that the store does not have yet."""
        return bool(self._recovery.own) or not self._local.log.is_empty

    def tend(self) -> None:
        """See `CallStore`. While the store cannot be used, probe it when a probe is due."""
        with self._tending:
            if self._is_closed:
                return
            self._close_failed()
            if is_probe := self._store is None:
                self._probe()
            if (store := self._store) is not None:
                try:
                    if not is_probe:
                        store.tend()
                    self._take_in(store, self._clock() + WORK_US)
                except Exception as error:
                    with self._lock:
                        if self._store is store:
                            self._fail(error)
                with self._lock:
                    self._follow()
                self._tell_warnings(store)
            self._close_failed()

    def _take_in(self, store: Recoverable, until_us: int) -> None:
        """Read logs into the store that calls use. Tell the user when it has all that this wrapper did without it."""
        with self._lock:
            if self._store is not store:  # it has failed meanwhile: what was noted since goes on in one log
                return
            self._local.hand_log_to(self._recovery.own)
        recovery = self._recovery
        recovery.take_in(store, lambda: self._while_used(store), until_us)
        if self._is_told and not recovery.own:
            self._is_told = False
            dropped = f"; {plural(recovery.dropped, 'row')} of denials dropped" if recovery.dropped else ""
            self._notify(f"store is back: {plural(recovery.rows, 'audit row')} of the outage written{dropped}")

    @contextlib.contextmanager
    def _while_used(self, store: Recoverable) -> Iterator[None]:
        with self._lock:
            if self._store is not store:
                raise self._failure
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

    def _probe(self, *, is_last: bool = False) -> None:
        """Try to open the store, if a probe is due or under way, or if this is the last try, and let calls use it."""
        timeout_s = min(self._timeout_s, LAST_TRY_S) if is_last else self._timeout_s
        with self._lock:  # the first call holds it while it waits for the store to open
            if self._store is not None:
                return
            self._local.log.flush(is_retry=True)
            if self._connector is None:
                if not is_last and self._clock() < self._probe_us:
                    return
                self._connector = Connector(self._reopen)
            connector = self._connector
        if connector.wait(timeout_s, is_patient=not is_last):
            with self._lock:
                self._use_opened(connector)

    def _use(self, store: Recoverable) -> None:
        """Let calls use a store that can be used, once it has their charges and places. The caller holds the lock.

        Of the rows that wait it gets a few at once, so that those of a short outage, or from before the first call, come first.
        A call waits for the lock at most half of its budget and one operation of the store. What was not counted in that time
        is counted at the next probe.
        """
        until_us = self._clock() + self._patience_us

        @contextlib.contextmanager
        def using() -> Iterator[None]:
            if self._clock() > until_us:
                raise TOO_SLOW
            yield

        self._begin_store(store)
        self._local.hand_log_to(self._recovery.own)
        self._recovery.begin(store, using)
        self._local.hand_over(store, self._place_id, using)
        if self._recovery.own:
            self._recovery.take_in(store, using, 0)
        self._store = store

    def _close_failed(self) -> None:
        """Close the store that failed. That may take long, so no call may wait."""
        failed, self._failed = self._failed, None
        if failed is not None:
            failed.close()

    # the end

    def close(self) -> None:
        """See `CallStore`. Tries once more to reach the store, for `LAST_TRY_S` and one operation of the store at most."""
        until_us = self._clock() + round(LAST_TRY_S * 1_000_000)
        if self._tending.acquire(timeout=LAST_TRY_S):
            if self._store is None and self._has_logs:
                self._probe(is_last=True)
            if self._store is not None and self._has_logs and self._clock() <= until_us:
                with contextlib.suppress(Exception):  # what is left is told
                    self._take_in(self._store, until_us)
            self._recovery.close()
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

    def _leave_rest(self) -> None:
        """Leave the outage logs to other wrappers, and tell the user how many rows they have."""
        rows = [log.leave() for log in (*self._recovery.own, self._local.log) if not log.is_empty]
        if kept := sum(left for left, _ in rows):
            self._notify(f"{plural(kept, 'audit row')} kept on disk for the next wrapper that reaches the store")
        if lost := sum(lost for _, lost in rows):
            self._notify(f"{plural(lost, 'audit row')} lost: no store and no file on disk could take all of them")
