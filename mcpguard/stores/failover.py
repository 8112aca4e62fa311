"""A bad day for a store: what happens to calls while it does not answer, and how it is taken up again.

The first failure opens a breaker: no later call waits. The bookkeeper's thread probes every one to five seconds; when the
store answers again it gets what it is owed, and decides again.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from mcpguard.core import limiter
from mcpguard.core.audit import Journal, Outcome, Row
from mcpguard.core.limiter import State
from mcpguard.core.policy import Counter, Plan
from mcpguard.core.verdict import Charge, Verdict, verdict
from mcpguard.errors import StoreUnavailable
from mcpguard.stores.base import Clock, Entry, Held, Store, decide_all, monotonic_us, wall_us
from mcpguard.stores.opening import NOT_IN_TIME, Opening, unavailable
from mcpguard.stores.spool import Spool, write

PROBE_US: Final = (1_000_000, 5_000_000)
"""The least and the most time between two probes; in between at random, so that many wrappers do not probe at once."""

MAX_COUNTERS: Final = 20_000
"""Counters that a wrapper keeps by itself in `local` mode. A call that needs one more is denied until there is room."""

LAST_TRY_S: Final = 0.5
"""How long closing may take to hand over what a store is owed that answers again and was not probed yet."""

_MEANWHILE: Final = {"local": "this wrapper counts on its own", "deny": "calls are denied", "allow": "calls are not limited"}
_STORE_BITS: Final = 128
"""Handles of the second store and later ones carry its number above these bits."""


class FailoverStore:
    """A store that never raises on a call's path.

    Opening, probing and writing back wait in other threads than a call's, which loses its budget to a store at most once.

    Args:
        reopen: Opens the real store; raises `StoreUnavailable` if it cannot.
        mode: What becomes of calls meanwhile: `local` lets each wrapper admit what the limits allow by its own counting,
            starting from the counters it last saw; `deny` and `allow` do what they say.
        notify: Gets one line at each change of state.
        timeout_ms: The budget: how long the first call waits for a store that is still being opened.
        clock: A monotone clock, for the breaker and for local counting.
        wall: Wall-clock time, for the audit.
    """

    def __init__(
        self,
        reopen: Callable[[], Store],
        *,
        mode: str,
        notify: Callable[[str], None],
        timeout_ms: int = 250,
        clock: Clock = monotonic_us,
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
        self._failure = StoreUnavailable("")
        self._local: dict[int, State] = {}
        self._forget_us = 0
        self._spool = Spool()
        self._stores = 0
        self._tending = threading.Lock()
        self._probe_us = 0
        self._opening: Opening | None = Opening(reopen)
        self.args_key = b""
        """The store's key; empty as long as it is not known."""
        self.warnings: tuple[str, ...] = ()
        self._opening.wait(self._timeout_s)
        try:
            self._store = self._opening.store()
        except StoreUnavailable as error:
            self._fail(error)
        else:
            self.args_key = self._store.args_key
            self.warnings = self._store.warnings
        if self._opening.wait(0):
            self._opening = None

    # calls

    def decide(self, charges: Sequence[Charge], journal: Journal) -> list[Verdict]:
        """See `Store`; but it does not raise."""
        with self._switching:
            if self._store is not None:
                try:
                    verdicts = self._store.decide(charges, journal)
                except Exception as error:
                    self._fail(unavailable(error))
                else:
                    if self._stores:
                        self._mark(verdicts)
                    return verdicts
            return self._decide_without(charges, journal)

    def _decide_without(self, charges: Sequence[Charge], journal: Journal) -> list[Verdict]:
        now_us = self._clock()
        one = self._decide_locally if self._mode == "local" else self._without_counters
        verdicts = [one(charge, now_us) for charge in charges]
        for charge, found in zip(charges, verdicts, strict=True):
            if found.decision == "unavailable" and charge.decided is None:
                charge.detail = charge.detail | {"reason": "store_unavailable"}
                hint = f" ({self._failure.hint})" if self._failure.hint else ""
                charge.why = (
                    f"the store of counters is unavailable: {self._failure.message}{hint}. "
                    "Try again in some seconds; if that does not help, the store has to be mended."
                )
        handles = iter(self._spool.keep(journal.rows(charges, verdicts, self._wall())))
        for found in verdicts:
            if found.news:
                found.row = next(handles)
        return verdicts

    def _decide_locally(self, charge: Charge, now_us: int) -> Verdict:
        if not self._has_room(charge, now_us):
            return self._without_counters(charge, now_us)
        (found,), charged = decide_all([charge], self._local, now_us)
        self._spool.admit(charge, charged, now_us)
        return found

    def _has_room(self, charge: Charge, now_us: int) -> bool:
        """Whether the call's counters can be kept here."""
        if len(self._local) < MAX_COUNTERS or all(counter.id in self._local for counter in charge.plan.counters):
            return True
        if now_us >= self._forget_us:
            self._forget_us = now_us + PROBE_US[0]
            for key in self._spool.forget(now_us):
                self._local.pop(key, None)
        return len(self._local) < MAX_COUNTERS

    def _without_counters(self, charge: Charge, now_us: int) -> Verdict:
        """What can be said of a call without any counter: a closed tool is closed, and where nothing counts all is as ever."""
        if charge.decided:
            return Verdict(charge.decided)
        uncounted = [at for at, limit in enumerate(charge.plan.limits) if not limit.n]
        plan = Plan(tuple(charge.plan.limits[at] for at in uncounted), tuple(charge.plan.reported[at] for at in uncounted))
        found = verdict(plan, limiter.decide(plan.limits, (), now_us))
        if not found.forwards or not charge.plan.counters:
            return found
        return Verdict("allowed_unavailable" if self._mode == "allow" else "unavailable")

    def append(self, rows: Sequence[Row]) -> list[int]:
        """See `Store`; but it does not raise."""
        with self._switching:
            if self._store is not None:
                try:
                    return self._store.append(rows)
                except Exception as error:
                    self._fail(unavailable(error))
            return self._spool.keep(rows)

    def record(self, outcomes: Sequence[Outcome]) -> None:
        """See `Store`; but it does not raise: what the store does not take is kept for later."""
        with self._switching:
            self._record(self._of_this_store(outcomes))

    def _record(self, outcomes: Sequence[Outcome]) -> None:
        if self._store is not None:
            outcomes = self._spool.settle(outcomes)
            try:
                self._store.record(outcomes)
            except Exception as error:
                self._fail(unavailable(error))
            else:
                return
        self._spool.ended(outcomes)

    def _mark(self, verdicts: Sequence[Verdict]) -> None:
        """Tell this store's handles from those of the one before: it may use the same numbers for other rows."""
        for found in verdicts:
            if found.row is not None:
                found.row += self._stores << _STORE_BITS

    def _of_this_store(self, outcomes: Sequence[Outcome]) -> Sequence[Outcome]:
        """The outcomes of rows that are in this store, or wait for it."""
        if not self._stores:
            return outcomes
        first = self._stores << _STORE_BITS
        ours = [one._replace(row=one.row - first) for one in outcomes if one.row >= first]
        return ours + [one for one in outcomes if one.row < 0]

    # the breaker

    def _fail(self, error: StoreUnavailable) -> None:
        """Open the breaker. What waits for a store, its close too, is left to `tend`."""
        now_us = self._clock()
        if self._store is not None:
            seen, their_now_us = self._store.last_seen()
            if len(self._local) + len(seen) > MAX_COUNTERS:
                self._local.clear()
            self._local |= {key: limiter.shift(state, now_us - their_now_us) for key, state in seen.items()}
            self._failed, self._store = self._store, None
        self._failure = error
        self._probe_us = now_us + _between(*PROBE_US)
        hint = f" ({error.hint})" if error.hint else ""
        self._notify(f"store unavailable: {error.message}{hint}; until it is back {_MEANWHILE[self._mode]}")

    def tend(self) -> None:
        """See `Store`. While the store does not answer, probe it."""
        with self._tending:
            store = self._store
            if store is None:
                self._probe(self._timeout_s)
                return
            try:
                store.tend()
            except Exception as error:
                with self._switching:
                    if self._store is store:
                        self._fail(unavailable(error))
        self._join_outcomes()

    def _join_outcomes(self) -> None:
        """Give a store that is back the next outcomes of the meantime."""
        with self._switching:
            if self._store is not None and (outcomes := self._spool.outcomes()):
                self._record(outcomes)

    @property
    def restless(self) -> bool:
        """Whether `tend` has to be called soon though nothing happens."""
        return self._store is None or self._spool.has_outcomes

    def _probe(self, timeout_s: float, *, until_us: int | None = None) -> None:
        """Look whether the store answers again, and take it up if it does.

        Args:
            timeout_s: How long to wait for it to open.
            until_us: For a last try, at once: until when it has to be taken up.
        """
        self._close_failed()
        if self._opening is None:
            if until_us is None and self._clock() < self._probe_us:
                return
            self._opening = Opening(self._reopen)
        if not self._opening.wait(timeout_s):
            return
        opening, self._opening = self._opening, None
        try:
            self._take_up(opening.store(), until_us)
        except StoreUnavailable as error:
            opening.abandon()
            with self._switching:
                if self._failure is NOT_IN_TIME:  # now it is known why
                    self._fail(error)
                self._failure = error
                self._probe_us = self._clock() + _between(*PROBE_US)

    def _take_up(self, store: Store, until_us: int | None) -> None:
        """Write back what a store that answers again is owed, and let it decide."""
        with self._switching:
            if store.args_key != self.args_key:
                if self.args_key:
                    self._stores += 1
                    self._spool.disown()
                self.args_key = store.args_key
        while not self._write_a_batch(store):
            if until_us is not None and self._clock() > until_us:
                raise NOT_IN_TIME
        self._notify(f"store is back: {self._spool.all_written()}")
        for warning in store.warnings:
            if warning not in self.warnings:
                self._notify(warning)
        self.warnings = store.warnings

    def _write_a_batch(self, store: Store) -> bool:
        """Write one batch; whether it was the last, so that the store decides again.

        Meanwhile calls are decided without the store. They wait for the last batch only, and that for half a budget and
        one operation.
        """
        with self._switching:
            batch = self._spool.take()
            is_last = self._spool.is_empty
            try:
                if is_last:
                    handles = write(store, batch, self._clock, patience_us=round(self._timeout_s * 500_000))
                else:
                    with _released(self._switching):
                        handles = write(store, batch, self._clock)
            except Exception as error:
                self._spool.put_back(batch)
                raise unavailable(error) from error
            self._spool.wrote(batch, handles)
            if is_last:
                self._store = store
            return is_last

    def close(self) -> None:
        """See `Store`. One more try to hand over what is owed, for at most `LAST_TRY_S` and an operation of the store."""
        until_us = self._clock() + round(LAST_TRY_S * 1_000_000)
        if self._tending.acquire(timeout=LAST_TRY_S):
            if self._store is None and not self._spool.is_empty:
                self._probe(min(self._timeout_s, LAST_TRY_S), until_us=until_us)
            while self._store is not None and self._spool.has_outcomes and self._clock() < until_us:
                self._join_outcomes()
            self._close_failed()
            self._tending.release()
        with self._switching:
            if self._store is not None:
                self._store.close()
            if self._opening is not None:
                self._opening.abandon()

    def _close_failed(self) -> None:
        """Close a store that has failed: the last who closes an SQLite file copies its log back, which takes its time."""
        failed, self._failed = self._failed, None
        if failed is not None:
            failed.close()

    # reading, which may fail

    def entries(self, *, after: int = 0) -> Iterator[Entry]:
        """See `Store`."""
        return self._up().entries(after=after)

    def newest(self) -> Iterator[Entry]:
        """See `Store`."""
        return self._up().newest()

    def held(self) -> list[Held]:
        """See `Store`."""
        return self._up().held()

    def last_seen(self) -> tuple[dict[int, State], int]:
        """See `Store`."""
        return self._up().last_seen()

    def adopt(self, logs: Sequence[tuple[Counter, State]]) -> None:
        """See `Store`."""
        self._up().adopt(logs)

    def reset(self, labels: Sequence[str]) -> int:
        """See `Store`."""
        return self._up().reset(labels)

    def _up(self) -> Store:
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
