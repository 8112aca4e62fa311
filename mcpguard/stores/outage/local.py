"""Local counting: decides calls while the store cannot be used, with a store in memory that begins with what was last seen.

Theory of operation. When the store fails, `learn` takes over the logs that it last read or wrote. Logs of other counters, of
an earlier outage, stay as they are: the store has not charged them since. An unknown counter is counted from zero, unless the
store has forgotten counters whose windows have not passed. So a counter that this wrapper has used is never counted from less
than it has seen. While the store works, this one knows only the calls in flight of this wrapper that have places.

Rows, charges and outcomes go to the outage log.
"""

from collections.abc import Callable, Sequence

from mcpguard.errors import NOT_IN_TIME
from mcpguard.light_typing import Final
from mcpguard.limiter import sliding
from mcpguard.limiter.plan import Counter, Plan
from mcpguard.limiter.sliding import Decision, Limit
from mcpguard.session.audit import Outcome, Row
from mcpguard.session.decision import verdict
from mcpguard.session.journal import Journal
from mcpguard.session.verdict import DecisionRequest, Ending, Verdict
from mcpguard.stores.api import Recoverable
from mcpguard.stores.memory import MemoryStore
from mcpguard.stores.outage.log import Means, OutageLog, key_id
from mcpguard.stores.outage.recovery import Using
from mcpguard.stores.sqlite import log_lines

MAX_STATES: Final = 100_000
"""How many logs a wrapper keeps that stores have told it, in about 30 MB."""

FORGET_EVERY_US: Final = 1_000_000
"""How often, at most, counters whose windows have passed are searched for."""

_NEVER_US: Final = 1 << 62
_NOTHING: Final = Decision(False, (), (), ())


class LocalStore(MemoryStore):
    """Decides requests without a store; see the module.

    Args:
        mode: `local` admits what the limits allow by this wrapper's own counting; `deny` forwards nothing; `allow` forwards
            everything. A tool that a rule closes stays closed in every mode.
        means: What outage logs are made with.

    Attributes:
        log: The outage log. A call is forwarded only if it has room for the call's row.
        failure: Why the store cannot be used, for the denials.
    """

    def __init__(self, mode: str, means: Means) -> None:
        super().__init__(clock=means.clock, wall=means.wall)
        self.log = OutageLog(means)
        self.failure = NOT_IN_TIME
        self._means = means
        self._mode = mode
        self._key = ""  # the `key_id` of the store that was used last
        self._unknown_until_us = 0  # until when a counter without a log here may hold something
        self._next_forget_us = 0
        self._given: set[int] = set()  # calls that a store was asked to give places
        self._left: list[Ending] = []  # calls that have ended, whose places the store may have

    # while the store works

    def begin_store(self, args_key: bytes) -> None:
        """Note that another store is used, which has this key."""
        self._key = key_id(args_key)
        if self.log.is_empty:
            self.log.key = self._key

    def admitted(self, found: Verdict) -> None:
        """Note the places of a call that the store has decided, if it was admitted."""
        if found.forwards and found.row_id is not None:
            self.give_places({found.row_id: found.taken_caps})

    def free(self, endings: Sequence[Ending]) -> None:
        """Note calls that have ended. The store has been told."""
        super().settle([ending._replace(failed=False) for ending in endings])

    def has_place(self, ending: Ending) -> bool:
        """Whether a call has a place."""
        caps = [counter for counter in ending.plan.counters if not counter.window_us]
        return any(ending.row_id in state for state in self._states_of(caps))

    # when it fails

    def learn(self, store: Recoverable) -> None:
        """Take over the logs that a store last read or wrote."""
        if self._mode != "local":
            return
        logs, store_now_us = store.last_seen()
        ahead_us = self._clock() - store_now_us
        memory = self._memory
        is_unsure = store.forgotten_until_us > store_now_us
        if is_unsure or len(memory.states) + len(logs) > MAX_STATES:  # what is known here may be less than the store had
            memory.counters = {key: counter for key, counter in memory.counters.items() if not counter.window_us}
            memory.states = {key: state for key, state in memory.states.items() if key in memory.counters}
            until_us = store.forgotten_until_us + ahead_us if is_unsure else _NEVER_US
            self._unknown_until_us = max(self._unknown_until_us, until_us)
        memory.states |= {key: sliding.shift(log, ahead_us) for key, log in logs.items()}

    def decide(self, requests: Sequence[DecisionRequest], journal: Journal) -> list[Verdict]:
        """See `Store`."""
        verdicts = super().decide(requests, journal)
        self.log.flush()
        return verdicts

    def _decide_one(self, request: DecisionRequest, call_id: int) -> tuple[Verdict, Sequence[Counter], Decision]:
        plan = request.plan
        if self._mode == "deny" or not self.log.has_room:
            return self._refused(request), (), _NOTHING
        if self._mode == "allow":
            found = _uncounted(plan)
            if found.forwards and (plan.counters or request.is_continued):
                found = Verdict("continued" if request.is_continued else "allowed_unavailable")
            return found, (), _NOTHING
        countable = self._countable(plan)
        if countable is None:
            return self._refused(request), (), _NOTHING
        return super()._decide_one(request if countable is plan else request.with_plan(countable), call_id)

    def _refused(self, request: DecisionRequest) -> Verdict:
        """The verdict on a call that cannot be recorded or counted."""
        found = _uncounted(request.plan)
        if not found.forwards:
            return found
        hint = f" ({self.failure.hint})" if self.failure.hint else ""
        request.explain(
            "store_unavailable",
            f"the store of counters is unavailable: {self.failure.message}{hint}. "
            "Try again in a few seconds. If that does not help, the store has to be repaired.",
        )
        return Verdict("unavailable")

    def _countable(self, plan: Plan) -> Plan | None:
        """The limits of a plan that can be counted here; None if an enforced limit cannot."""
        counters, now_us = self._memory.counters, self._clock()
        missing = [at for at, one in enumerate(plan.counters) if one.window_us and one.id not in counters]
        if not missing:
            return plan
        most = self.log.bounds.counters
        if len(counters) + len(missing) > most and now_us >= self._next_forget_us:
            self._next_forget_us = now_us + FORGET_EVERY_US
            self.tend()
        if len(counters) + len(missing) <= most:
            missing = [at for at in missing if self._is_unknown(plan.counters[at])]
        if any(limit.counter in missing and not limit.observe for limit in plan.limits):
            return None
        return plan.only(lambda limit: limit.counter not in missing) if missing else plan

    def _is_unknown(self, counter: Counter) -> bool:
        """Whether a counter may hold more than is known of it."""
        return counter.id not in self._memory.states and self._unknown_until_us > self._clock()

    def _next_row_id(self) -> int:
        return self.log.next_row_id

    def _write(self, row: Row, counters: Sequence[Counter], decision: Decision) -> None:
        charged = [limit for limit in decision.charged if limit.window_us]
        charged_us = decision.states[charged[0].counter][-2] if charged else None
        named = [counters[limit.counter] for limit in charged]
        self.log.row(row, named, charged_us, log_lines.charges(counters, decision.charged))

    def append(self, rows: Sequence[Row]) -> list[int]:
        """See `Store`."""
        row_ids = []
        for row in rows:
            row_ids.append(self.log.next_row_id)
            self.log.row(row)
        self.log.flush()
        return row_ids

    def record(self, outcomes: Sequence[Outcome]) -> None:
        """See `Store`."""
        self.log.outcomes(outcomes)
        self.log.flush()

    def settle(self, endings: Sequence[Ending]) -> None:
        """See `Store`. The next store is told, if it may have their places."""
        for one in endings:
            if self.has_place(one) and (one.row_id >= 0 or one.row_id in self._given):
                self._left.append(one._replace(failed=False))
        super().settle(endings)
        self.log.flush()

    def _count_failure(self, plan: Plan) -> Sequence[Limit]:
        """Count a call that failed, and log it. A counter whose log is unknown stays so."""
        unknown = {one.id for one in plan.counters if self._mode != "local" or self._is_unknown(one)}
        charged = super()._count_failure(plan)
        for limit in charged:
            counter = plan.counters[limit.counter]
            at_us = self._memory.states[counter.id][-2]
            self.log.failure(counter, at_us, log_lines.charges(plan.counters, (limit,)))
            if counter.id in unknown:
                del self._memory.states[counter.id], self._memory.counters[counter.id]
                self._unknown_until_us = max(self._unknown_until_us, at_us + counter.window_us)
        return charged

    # when it is back

    def take_log(self) -> OutageLog | None:
        """The outage log; None if it is empty. Whatever is logged from now on has a log of its own."""
        if self.log.is_empty:
            return None
        log, self.log = self.log, OutageLog(self._means, self._key)
        self.log.to_disk = log.to_disk
        return log

    def hand_over(self, store: Recoverable, place_id: Callable[[int], int], using: Using) -> None:
        """Let a store give places to the calls in flight, and free those of calls that have ended.

        After a failure it may be done again, even with another store: a call has its place once, whenever the store is told.

        Args:
            store: The store.
            place_id: Returns the id by which the store knows a call.
            using: See `Using`.

        Raises:
            StoreUnavailable: It was not done, or not all of it, or it is too late.
        """
        calls: dict[int, list[Counter]] = {}
        for counter in self._memory.counters.values():
            for row_id in () if counter.window_us else self._memory.states[counter.id]:
                calls.setdefault(row_id, []).append(counter)
        if calls:
            with using():
                self._given = set(calls)
                store.give_places({place_id(row_id): counters for row_id, counters in calls.items()})
        if self._left:
            with using():
                store.settle([ending._replace(row_id=place_id(ending.row_id)) for ending in self._left])
            self._left = []


def _uncounted(plan: Plan) -> Verdict:
    """The verdict of the limits that need no counter: a closed tool is denied, every other call is allowed."""
    closing = plan.only(lambda limit: not limit.n)
    return verdict(closing, sliding.decide(closing.limits, (), 0))
