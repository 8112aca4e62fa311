"""Local counting: decides calls while the store cannot be used.

Theory of operation. A counter is in one of four states:

- It has a log here: the store's, as it was last seen, with the calls that this wrapper has admitted since. It is counted from
  there.
- This wrapper has used it, but its log is unknown. Calls on it are denied until everything that was seen in it has left its
  window.
- This wrapper has not used it, but the store knew its log. It is counted from there.
- It is unknown. It is counted from zero, unless counters were forgotten (`MAX_SEEN`) whose windows have not passed.

So a counter that this wrapper has used is never counted from less than it has seen. A counter of errors is used by calls that
failed, and by calls that it refused. Others tell nothing about it: it is empty unless the tool fails.

A counter of calls in flight has no log. It is counted from this wrapper's own calls in flight, see `in_flight`.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from mcpguard.errors import StoreUnavailable
from mcpguard.limiter import sliding
from mcpguard.limiter.plan import Counter, Plan
from mcpguard.limiter.sliding import EMPTY, EXACT, Limit, State
from mcpguard.session.journal import Journal
from mcpguard.session.verdict import FORWARDED, DecisionRequest, Ending, Verdict, decide_one, verdict
from mcpguard.stores.failover.in_flight import CallsInFlight, new_id
from mcpguard.stores.failover.write_behind import WriteBehindBuffer

MAX_COUNTERS: Final = 20_000
"""How many counters a wrapper keeps logs of. A call that needs one more is denied until windows have passed."""

MAX_SEEN: Final = 65_536
"""How many used counters a wrapper remembers, in 8 MB. Beyond it some are forgotten. Until their windows have passed, every
unknown counter is treated as one of them."""

MAX_PLANS_SEEN: Final = 128
"""How many plans of calls that the store has decided wait until their counters are noted, which takes about 0.1 ms."""

FORGET_EVERY_US: Final = 1_000_000
"""How often, at most, counters whose windows have passed are searched for."""


class LocalCounting:
    """Decides requests without a store; see the module.

    Args:
        mode: `local` admits what the limits allow by this wrapper's own counting; `deny` forwards nothing; `allow` forwards
            everything. A tool that a rule closes stays closed in every mode.
        buffer: Gets the charges and the audit rows. A call is forwarded only if the buffer has room for its row.
        in_flight: This wrapper's calls in flight. Gets those that are admitted here.

    """

    def __init__(self, mode: str, buffer: WriteBehindBuffer, in_flight: CallsInFlight) -> None:
        self._mode = mode
        self._buffer = buffer
        self._in_flight = in_flight
        self._logs: dict[int, State] = {}  # logs of counters that this wrapper has used
        self._unused: dict[int, State] = {}  # logs of counters that it has not used, as the store last read them
        self._expiry_us: dict[int, int] = {}  # of used counters: when all that was seen in them has left the window
        self._unknown_expiry_us = 0  # the latest expiry of a used counter that was forgotten
        self._next_forget_us = 0
        self._seen: dict[int, tuple[Plan, int]] = {}  # by `id`: plans that the store has decided by, and when by each last

    def saw(self, requests: Sequence[DecisionRequest], now_us: int) -> None:
        """Note which counters the store has just decided on, but for plans that settle. Their logs here are outdated."""
        if self._mode != "local":
            return
        for request in requests:
            plan = request.plan
            if request.decided is None and not plan.settles:
                self._seen[id(plan)] = plan, now_us
        if len(self._seen) > MAX_PLANS_SEEN:
            self._note_seen()
            if len(self._expiry_us) > MAX_SEEN:
                self._make_room_for_seen(now_us)

    def _note_seen(self) -> None:
        """Note the counters of the plans that the store has decided by: at once for many calls, since each has to be quick."""
        for plan, seen_us in self._seen.values():
            for counter in plan.counters:
                self._expiry_us[counter.id] = max(seen_us + counter.window_us, self._expiry_us.get(counter.id, 0))
                self._logs.pop(counter.id, None)
        self._seen.clear()

    def saw_settling(self, requests: Sequence[DecisionRequest], verdicts: Sequence[Verdict], now_us: int) -> None:
        """The same for plans that settle. Note which calls have places, too."""
        for request, found in zip(requests, verdicts, strict=True):
            plan = request.plan
            if request.decided is None and plan.settles:
                self._in_flight.decided(plan, found)
                exceeded = [reported for reported, _ in found.exceeded]
                for limit, reported in zip(plan.limits, plan.reported, strict=True):
                    if limit.window_us and (limit.counts != "errors" or reported in exceeded):
                        self._outdate(plan.counters[limit.counter], now_us)

    def saw_failures(self, endings: Sequence[Ending], now_us: int) -> None:
        """Note that the store has just counted the calls that failed."""
        for ending in endings:
            for limit in ending.plan.limits:
                if ending.failed and limit.counts == "errors":
                    self._outdate(ending.plan.counters[limit.counter], now_us)

    def _outdate(self, counter: Counter, now_us: int) -> None:
        """Note that the store knows more of a counter than is known here."""
        if self._mode == "local":
            self._expiry_us[counter.id] = now_us + counter.window_us
            self._logs.pop(counter.id, None)
            if len(self._expiry_us) > MAX_SEEN:
                self._make_room_for_seen(now_us)

    def learn(self, logs: Mapping[int, State], *, absent_are_empty: bool) -> None:
        """Take over the logs that the store last read or wrote.

        Logs of other counters that this wrapper has used are kept. Beyond `MAX_COUNTERS` the logs that were charged last are
        kept.

        Args:
            logs: The logs, with times by the clock of `decide`.
            absent_are_empty: Whether the counters without one were empty.
        """
        self._note_seen()
        if absent_are_empty:
            known = logs.keys() | self._logs.keys()
            self._expiry_us = {key: expiry_us for key, expiry_us in self._expiry_us.items() if key in known}
        self._unused.clear()
        for key, log in logs.items():
            if not log:  # an empty counter is counted from zero, as an unknown one is
                self._expiry_us.pop(key, None)
                self._logs.pop(key, None)
            elif key in self._expiry_us:
                self._logs[key] = log
            else:
                self._unused[key] = log
        self._logs, self._unused = _most_recent(self._logs), _most_recent(self._unused)

    def decide(
        self, requests: Sequence[DecisionRequest], journal: Journal, *, failure: StoreUnavailable, now_us: int, time_us: int
    ) -> list[Verdict]:
        """Decide requests in order.

        Args:
            requests: The requests.
            journal: The session's journal.
            failure: Why the store cannot be used, for the denials.
            now_us: The reading of a monotone clock.
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
                    "Try again in a few seconds. If that does not help, the store has to be repaired."
                )
        row_ids = iter(self._buffer.keep(journal.rows(requests, verdicts, time_us)))
        for found in verdicts:
            if found.has_own_row:
                place_id, found.row_id = found.row_id, next(row_ids)
                if place_id is not None:
                    self._in_flight.name(place_id, found.row_id)
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
            if not found.forwards or not plan.counters:
                return found
            return Verdict("continued" if request.rounds else "allowed_unavailable")
        countable = self._countable(plan, now_us)
        if countable is None:
            return _refused(plan)
        if countable is not plan:
            request = request.with_plan(countable)
        return self._count(request, now_us)

    def _count(self, request: DecisionRequest, now_us: int) -> Verdict:
        """Decide a request by its plan. Until the verdict's row has an id, `row_id` is the id of the call's place."""
        plan = request.plan
        place_id = new_id() if plan.caps else 0
        states = [self._log_of(one.id) if one.window_us else self._in_flight.on(one) for one in plan.counters]
        found, decision = decide_one(request, states, now_us, place_id)
        caps: list[Counter] = []
        for limit in decision.charged:
            if limit.counts == "concurrent":
                caps.append(plan.counters[limit.counter])
            else:
                self._note_log(plan.counters[limit.counter], decision.states[limit.counter])
                self._write_behind(plan, limit, now_us)
        if caps:
            self._in_flight.take(place_id, plan, caps)
            found.row_id = place_id
        if len(self._expiry_us) > MAX_SEEN:
            self._make_room_for_seen(now_us)
        return found

    def _note_log(self, counter: Counter, log: State) -> None:
        """Note the log of a counter that was charged."""
        self._logs[counter.id] = log
        self._expiry_us[counter.id] = log[-2] + counter.window_us

    def _write_behind(self, plan: Plan, limit: Limit, now_us: int) -> None:
        """Let the store count a charge when it is back."""
        is_exact = all(one.n <= EXACT for one in plan.limits if one.counter == limit.counter)
        self._buffer.charge(plan.counters[limit.counter], now_us, limit.cost, is_exact=is_exact)

    def count_failures(self, endings: Sequence[Ending], now_us: int) -> None:
        """Count the calls that failed on their counters of errors, and let the store count them when it is back."""
        for ending in endings:
            if ending.failed:
                self._count_failure(ending.plan, now_us)
        self._buffer.spill.flush()

    def _count_failure(self, plan: Plan, now_us: int) -> None:
        after, charged = sliding.fail(plan.limits, [self._log_of(one.id) for one in plan.counters], now_us)
        for limit in charged:
            self._write_behind(plan, limit, now_us)
            counter = plan.counters[limit.counter]
            if self._mode == "local":
                if counter.id in self._logs or not self._may_hold_more(counter.id, now_us):
                    self._note_log(counter, after[limit.counter])
                else:  # its log stays unknown
                    self._expiry_us[counter.id] = now_us + counter.window_us

    def _log_of(self, key: int) -> State:
        return self._logs.get(key) or self._unused.get(key, EMPTY)

    def _countable(self, plan: Plan, now_us: int) -> Plan | None:
        """The limits of a plan that can be counted here; None if an enforced limit cannot."""
        missing = [at for at, one in enumerate(plan.counters) if one.window_us and one.id not in self._logs]
        if not missing:
            return plan
        if len(self._logs) + len(missing) > MAX_COUNTERS and now_us >= self._next_forget_us:
            self._next_forget_us = now_us + FORGET_EVERY_US
            self._forget_expired(now_us)
        if len(self._logs) + len(missing) <= MAX_COUNTERS:
            missing = [at for at in missing if self._may_hold_more(plan.counters[at].id, now_us)]
        if any(limit.counter in missing and not limit.observe for limit in plan.limits):
            return None
        return plan.only(lambda limit: limit.counter not in missing) if missing else plan

    def _may_hold_more(self, key: int, now_us: int) -> bool:
        """Whether a counter without a log here may hold more than is known of it."""
        return key not in self._unused and self._expiry_us.get(key, self._unknown_expiry_us) > now_us

    def _forget_expired(self, now_us: int) -> None:
        """Forget the counters whose windows have passed, since they are empty."""
        for key in [key for key, expiry_us in self._expiry_us.items() if expiry_us <= now_us]:
            del self._expiry_us[key]
            self._logs.pop(key, None)
        self._buffer.forget_expired(now_us)

    def _make_room_for_seen(self, now_us: int) -> None:
        """Forget some used counters, see `MAX_SEEN`."""
        self._forget_expired(now_us)
        too_many = len(self._expiry_us) - MAX_SEEN * 3 // 4
        if too_many > 0:
            for key in [key for key in self._expiry_us if key not in self._logs][:too_many]:
                self._unknown_expiry_us = max(self._unknown_expiry_us, self._expiry_us.pop(key))


def _most_recent(logs: dict[int, State]) -> dict[int, State]:
    if len(logs) <= MAX_COUNTERS:
        return logs
    return {key: logs[key] for key in sorted(logs, key=lambda key: logs[key][-2])[-MAX_COUNTERS:]}


def _uncounted(plan: Plan) -> Verdict:
    """The verdict of the limits that need no counter: a closed tool is denied, every other call is allowed."""
    closing = plan.only(lambda limit: not limit.n)
    return verdict(closing, sliding.decide(closing.limits, (), 0))


def _refused(plan: Plan) -> Verdict:
    """The verdict on a call that cannot be recorded or counted."""
    found = _uncounted(plan)
    return Verdict("unavailable") if found.forwards else found
