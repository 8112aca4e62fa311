"""A bad day for a store: what happens to calls while it does not answer, and how it is taken up again.

The first failure opens a breaker: no later call waits. The bookkeeper's thread probes every one to five seconds; when the
store answers again it gets what happened meanwhile, and decides again.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from mcpguard.core import limiter
from mcpguard.core.audit import Journal, Outcome, Row
from mcpguard.core.claude_code import AgentNote
from mcpguard.core.limiter import EMPTY, State
from mcpguard.core.policy import Counter, Plan
from mcpguard.core.verdict import Charge, Verdict, verdict
from mcpguard.errors import StoreUnavailable
from mcpguard.stores.base import Clock, Entry, Held, Store, decide_all, monotonic_us, wall_us

PROBE_US: Final = (1_000_000, 5_000_000)
"""The least and the most time between two probes; in between at random, so that many wrappers do not probe at once."""

MAX_SPOOLED: Final = 10_000
"""Audit rows kept for a store that does not answer. Beyond it the oldest are dropped."""


class FailoverStore:
    """A store that never raises on a call's path.

    Args:
        reopen: Opens the real store; raises `StoreUnavailable` if it cannot.
        mode: What becomes of calls meanwhile: `local` lets each wrapper admit what the limits allow by its own counting,
            starting from the counters it last saw; `deny` and `allow` do what they say.
        notify: Gets one line at each change of state.
        clock: A monotone clock, for the breaker and for local counting.
        wall: Wall-clock time, for the audit.
    """

    def __init__(
        self,
        reopen: Callable[[], Store],
        *,
        mode: str,
        notify: Callable[[str], None],
        clock: Clock = monotonic_us,
        wall: Clock = wall_us,
    ) -> None:
        self._reopen = reopen
        self._mode = mode
        self._notify = notify
        self._clock = clock
        self._wall = wall
        self._switching = threading.Lock()
        self._store: Store | None = None
        self._failure = ""
        self._probe_us = 0
        self._local: dict[int, State] = {}
        self._owed: dict[int, tuple[Counter, State]] = {}
        self._spool: deque[Row] = deque()
        self._dropped = 0
        self.warnings: tuple[str, ...] = ()
        self.args_key = os.urandom(32)
        try:
            self._store = reopen()
            self.args_key = self._store.args_key
            self.warnings = self._store.warnings
        except StoreUnavailable as error:
            self._fail(error)

    def decide(self, charges: Sequence[Charge], journal: Journal) -> list[Verdict]:
        """See `Store`; but it does not raise."""
        with self._switching:
            if self._store is not None:
                try:
                    return self._store.decide(charges, journal)
                except StoreUnavailable as error:
                    self._fail(error)
            return self._decide_without(charges, journal)

    def _decide_without(self, charges: Sequence[Charge], journal: Journal) -> list[Verdict]:
        now_us = self._clock()
        if self._mode == "local":
            verdicts = []
            for charge in charges:
                one, charged = decide_all([charge], self._local, now_us)
                verdicts += one
                self._owe(charged.values(), now_us)
        else:
            verdicts = [self._without_counters(charge, now_us) for charge in charges]
        for charge, one_of_them in zip(charges, verdicts, strict=True):
            if one_of_them.decision == "unavailable" and charge.decided is None:
                charge.detail = charge.detail | {"reason": "store_unavailable"}
                charge.why = f"the store of counters is unavailable ({self._failure}). Try again in some seconds."
        self._keep(journal.rows(charges, verdicts, self._wall()))
        return verdicts

    def _without_counters(self, charge: Charge, now_us: int) -> Verdict:
        """What can be said of a call without any counter: a closed tool is closed, and where nothing counts all is as ever."""
        if charge.decided:
            return Verdict(charge.decided)
        uncounted = [at for at, limit in enumerate(charge.plan.limits) if not limit.n]
        plan = Plan(tuple(charge.plan.limits[at] for at in uncounted), tuple(charge.plan.reported[at] for at in uncounted))
        found = verdict(plan, limiter.decide(plan.limits, (), now_us))
        if not found.forwards or not charge.plan.counters:
            return found
        return Verdict("unavailable" if self._mode == "deny" else "allowed_unavailable")

    def _owe(self, charged: Iterable[Counter], now_us: int) -> None:
        """Note an admission that the store does not know of yet, in grains of the window."""
        for counter in charged:
            log = self._owed.get(counter.id, (counter, EMPTY))[1]
            log = limiter.charge(limiter.live(log, counter.window_us, now_us), limiter.EXACT + 1, counter.window_us, now_us)
            self._owed[counter.id] = (counter, log)

    def _keep(self, rows: Sequence[Row]) -> None:
        self._spool.extend(rows)
        while len(self._spool) > MAX_SPOOLED:
            self._spool.popleft()
            self._dropped += 1

    def _fail(self, error: StoreUnavailable) -> None:
        """Open the breaker."""
        now_us = self._clock()
        if self._store is not None:
            self._local = {key: limiter.shift(state, by_us) for key, state, by_us in self._last_seen(self._store, now_us)}
            self._store.close()
            self._store = None
        self._failure = error.message
        self._probe_us = now_us + _between(*PROBE_US)
        what = {"local": "this wrapper counts on its own", "deny": "calls are denied", "allow": "calls are not limited"}
        hint = f" ({error.hint})" if error.hint else ""
        self._notify(f"store unavailable: {error.message}{hint}; until it is back {what[self._mode]}")

    def _last_seen(self, store: Store, now_us: int) -> Iterator[tuple[int, State, int]]:
        """The logs that the store last showed us, and what turns its time into ours."""
        seen, their_now_us = store.last_seen()
        for key, state in seen.items():
            yield key, state, now_us - their_now_us

    def tend(self) -> None:
        """See `Store`. While the store does not answer, probe it."""
        store = self._store
        if store is not None:
            try:
                store.tend()
            except StoreUnavailable as error:
                with self._switching:
                    if self._store is store:
                        self._fail(error)
        elif self._clock() >= self._probe_us:
            self._probe()

    @property
    def restless(self) -> bool:
        """Whether `tend` has to be called soon though nothing happens."""
        return self._store is None

    def _probe(self) -> None:
        try:
            store = self._reopen()
        except StoreUnavailable as error:
            self._failure = error.message
            self._probe_us = self._clock() + _between(*PROBE_US)
            return
        with self._switching:
            written = len(self._spool)
            try:
                now_us = self._clock()
                store.adopt([(counter, limiter.shift(log, -now_us)) for counter, log in self._owed.values()])
                store.append(list(self._spool))
            except StoreUnavailable as error:
                store.close()
                self._failure = error.message
                self._probe_us = self._clock() + _between(*PROBE_US)
                return
            dropped, self._dropped = self._dropped, 0
            self._owed.clear()
            self._spool.clear()
            self._local.clear()
            self._store = store
        lost = f", {dropped} older ones are lost" if dropped else ""
        self._notify(f"store is back: {written} audit rows of the meantime are written{lost}")

    def append(self, rows: Sequence[Row]) -> None:
        """See `Store`; but it does not raise."""
        with self._switching:
            if self._store is not None:
                try:
                    self._store.append(rows)
                except StoreUnavailable as error:
                    self._fail(error)
                else:
                    return
            self._keep(rows)

    def record(self, outcomes: Sequence[Outcome]) -> None:
        """See `Store`; but it does not raise: outcomes that the store does not take are lost."""
        with self._switching:
            if self._store is not None:
                try:
                    self._store.record(outcomes)
                except StoreUnavailable as error:
                    self._fail(error)

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

    def peek(self, counters: Sequence[Counter]) -> tuple[list[State], int]:
        """See `Store`."""
        return self._up().peek(counters)

    def note_agent(self, namespace: str, note: AgentNote) -> None:
        """See `Store`; but it does not raise: a note that the store does not take is lost."""
        with self._switching:
            if self._store is not None:
                try:
                    self._store.note_agent(namespace, note)
                except StoreUnavailable as error:
                    self._fail(error)

    def noted_agents(self, namespace: str, tool_use_ids: Sequence[str]) -> dict[str, str]:
        """See `Store`; but it does not raise: while the store does not answer, nothing is noted, and nobody waits."""
        with self._switching:
            if self._store is not None:
                try:
                    return self._store.noted_agents(namespace, tool_use_ids)
                except StoreUnavailable as error:
                    self._fail(error)
            return {}

    def close(self) -> None:
        """See `Store`."""
        with self._switching:
            if self._store is not None:
                self._store.close()

    def _up(self) -> Store:
        if self._store is None:
            raise StoreUnavailable(self._failure)
        return self._store


def _between(least_us: int, most_us: int) -> int:
    return least_us + int.from_bytes(os.urandom(4)) % (most_us - least_us)
