"""Decides calls while the store cannot be used."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from mcpguard.core import limiter
from mcpguard.core.journal import Journal
from mcpguard.core.limiter import EMPTY, EXACT, Limit, State
from mcpguard.core.policy import Plan
from mcpguard.core.verdict import FORWARDED, DecisionRequest, Verdict, verdict
from mcpguard.errors import StoreUnavailable
from mcpguard.stores.failover.write_behind import WriteBehindBuffer

MAX_COUNTERS: Final = 20_000
"""Counters whose logs a wrapper keeps in `local` mode. A call that needs one more is denied until there is room."""

MAX_SEEN: Final = 65_536
"""Counters that a wrapper remembers to have seen, 8 MB of them. While one of those beyond may hold something, a counter that is
not remembered is taken for one that was seen."""

FORGET_EVERY_US: Final = 1_000_000
"""How often counters whose windows have passed are looked for, at most."""


class LocalCounting:
    """Decides without a store.

    A counter that this wrapper has seen is never counted from less than what was seen: if its log is known, counting goes on
    from it; if not, calls on it are denied until its window has passed. A counter that it has never seen starts from what the
    store told of it, or from nothing.

    Args:
        mode: `local` admits what the limits allow by this wrapper's own counting; `deny` forwards nothing; `allow` all. A
            tool that is closed stays closed in every mode.
        buffer: Gets the admissions and the audit rows. A call is only forwarded if its row has room there.
    """

    def __init__(self, mode: str, buffer: WriteBehindBuffer) -> None:
        self._mode = mode
        self._buffer = buffer
        self._logs: dict[int, State] = {}  # of counters in `_expiry_us`
        self._others: dict[int, State] = {}  # logs of counters that the store knew, and this wrapper has not used
        self._expiry_us: dict[int, int] = {}  # when all that was seen in a counter has left its window
        self._unknown_expiry_us = 0  # the same for all the counters that are remembered no more
        self._forget_us = 0

    def saw(self, requests: Sequence[DecisionRequest], now_us: int) -> None:
        """Note which counters the store has just decided on. What was known of them is outdated."""
        if self._mode != "local":
            return
        for request in requests:
            if request.decided is None:
                for counter in request.plan.counters:
                    self._expiry_us[counter.id] = now_us + counter.window_us
                    if self._logs:
                        self._logs.pop(counter.id, None)
        if len(self._expiry_us) > MAX_SEEN:
            self._make_room_for_seen(now_us)

    def know(self, logs: Mapping[int, State]) -> None:
        """Take over the logs that a store showed last, by the clock of `decide`.

        The logs of other counters that this wrapper has used stay known. Of too many those that were charged last are kept.
        """
        self._others.clear()
        for key, log in logs.items():
            if not log:  # it holds nothing: as good as never seen
                self._expiry_us.pop(key, None)
                self._logs.pop(key, None)
            elif key in self._expiry_us:
                self._logs[key] = log
            else:
                self._others[key] = log
        self._logs, self._others = _newest(self._logs), _newest(self._others)

    def decide(
        self, requests: Sequence[DecisionRequest], journal: Journal, *, failure: StoreUnavailable, now_us: int, time_us: int
    ) -> list[Verdict]:
        """Decide requests in order.

        Args:
            requests: What is asked.
            journal: The session's.
            failure: What the store has, for those who are denied for it.
            now_us: A monotone clock's reading.
            time_us: Wall-clock time.
        """
        room = self._buffer.room_for_calls
        verdicts: list[Verdict] = []
        for request in requests:
            found = self._decide_one(request, now_us, has_room=room > 0)
            room -= found.forwards
            verdicts.append(found)
            if found.decision == "unavailable" and request.decided != "unavailable":
                request.detail = request.detail | {"reason": "store_unavailable"}
                hint = f" ({failure.hint})" if failure.hint else ""
                request.why = (
                    f"the store of counters is unavailable: {failure.message}{hint}. "
                    "Try again in some seconds; if that does not help, the store has to be mended."
                )
        handles = iter(self._buffer.keep(journal.rows(requests, verdicts, time_us)))
        for found in verdicts:
            if found.has_own_row:
                found.row_id = next(handles)
        return verdicts

    def _decide_one(self, request: DecisionRequest, now_us: int, *, has_room: bool) -> Verdict:
        plan = request.plan
        if request.decided and request.decided not in FORWARDED:
            return Verdict(request.decided)
        if self._mode == "deny" or not has_room:
            return _refused(plan)
        if request.decided:
            return Verdict(request.decided)
        if self._mode == "allow":
            found = _uncounted(plan)
            return Verdict("allowed_unavailable") if found.forwards and plan.counters else found
        countable = self._countable(plan, now_us)
        return _refused(plan) if countable is None else self._count(countable, now_us)

    def _count(self, plan: Plan, now_us: int) -> Verdict:
        decision = limiter.decide(plan.limits, [self._log(one.id) for one in plan.counters], now_us)
        for charged in decision.charged:
            counter, log = plan.counters[charged.counter], decision.states[charged.counter]
            self._logs[counter.id] = log
            self._expiry_us[counter.id] = log[-2] + counter.window_us
            is_exact = all(limit.n <= EXACT for limit in plan.limits if limit.counter == charged.counter)
            self._buffer.admit(counter, now_us, is_exact=is_exact)
        if len(self._expiry_us) > MAX_SEEN:
            self._make_room_for_seen(now_us)
        return verdict(plan, decision)

    def _log(self, key: int) -> State:
        return self._logs.get(key) or self._others.get(key, EMPTY)

    def _countable(self, plan: Plan, now_us: int) -> Plan | None:
        """What of a plan can be counted here: without observed limits that cannot; None if an enforced one cannot."""
        missing = [at for at, counter in enumerate(plan.counters) if counter.id not in self._logs]
        if not missing:
            return plan
        if len(self._logs) + len(missing) > MAX_COUNTERS and now_us >= self._forget_us:
            self._forget_us = now_us + FORGET_EVERY_US
            self._forget_expired(now_us)
        if len(self._logs) + len(missing) <= MAX_COUNTERS:
            missing = [at for at in missing if self._is_outdated(plan.counters[at].id, now_us)]
        if any(limit.counter in missing and not limit.observe for limit in plan.limits):
            return None
        return _part(plan, lambda limit: limit.counter not in missing) if missing else plan

    def _is_outdated(self, key: int, now_us: int) -> bool:
        """Whether more may have been seen in a counter, that has no log here, than is known of it."""
        return key not in self._others and self._expiry_us.get(key, self._unknown_expiry_us) > now_us

    def _forget_expired(self, now_us: int) -> None:
        """Forget the counters whose windows have passed: they hold nothing."""
        for key in [key for key, expiry_us in self._expiry_us.items() if expiry_us <= now_us]:
            del self._expiry_us[key]
            self._logs.pop(key, None)
        self._buffer.forget_expired(now_us)

    def _make_room_for_seen(self, now_us: int) -> None:
        """Remember fewer counters; until all that are dropped have expired, those that are not remembered may be among them."""
        self._forget_expired(now_us)
        too_many = len(self._expiry_us) - MAX_SEEN * 3 // 4
        if too_many > 0:
            for key in [key for key in self._expiry_us if key not in self._logs][:too_many]:
                self._unknown_expiry_us = max(self._unknown_expiry_us, self._expiry_us.pop(key))


def _newest(logs: dict[int, State]) -> dict[int, State]:
    if len(logs) <= MAX_COUNTERS:
        return logs
    return {key: logs[key] for key in sorted(logs, key=lambda key: logs[key][-2])[-MAX_COUNTERS:]}


def _uncounted(plan: Plan) -> Verdict:
    """What the limits decide that need no counter: those of closed tools."""
    closing = _part(plan, lambda limit: not limit.n)
    return verdict(closing, limiter.decide(closing.limits, (), 0))


def _refused(plan: Plan) -> Verdict:
    """The verdict on a call that cannot be put on record, or not be counted."""
    found = _uncounted(plan)
    return Verdict("unavailable") if found.forwards else found


def _part(plan: Plan, has: Callable[[Limit], bool]) -> Plan:
    """A plan with some of its limits only."""
    places = [at for at, limit in enumerate(plan.limits) if has(limit)]
    return Plan(tuple(plan.limits[at] for at in places), tuple(plan.reported[at] for at in places), plan.counters)
