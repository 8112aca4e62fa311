"""The calls that are held until their limits have room: who is next, and when."""

from collections.abc import Iterable, Iterator

from mcpguard.light_typing import Final
from mcpguard.limiter import sliding
from mcpguard.limiter.plan import Plan
from mcpguard.limiter.sliding import wait_in_queue_us
from mcpguard.session.in_flight import FreeRetries
from mcpguard.session.verdict import DecisionRequest, Verdict
from mcpguard.text.printing import compact
from mcpguard.wire import meta
from mcpguard.wire.frames import id_text

MAX_WAITING: Final = 64
"""How many calls a wrapper holds. Further calls are denied at once."""

MAX_WAITING_BYTES: Final = 16 * 1024 * 1024
"""If the calls that a wrapper holds are longer together, further calls are denied at once, too: they are kept in memory."""

LOOK_US: Final = 50_000
"""How often a call that waits for calls in flight is decided anew: a place that another process frees is not announced."""

PROGRESS_US: Final = 1_000_000
"""How often the client is told that a call waits."""

_PROGRESS_STEP: Final = 0.001
"""How much the progress grows with each notification. Progress must grow, and the server's own begins at 0 or 1."""


class HeldCall:
    """A call that is held.

    Attributes:
        key: The `id_key` of its id.
        request: The request of the last decision.
        verdict: The verdict of the last decision.
        decided_us: When that was.
        arrived_us: When it arrived, by a monotone clock.
        due_us: When it is decided anew.
        waits_for: What it will take of each counter that it waits for, by counter id.
        needs_only_places: Whether all of them count calls in flight.
    """

    def __init__(self, request: DecisionRequest, arrived_us: int) -> None:
        self.key = request.key
        self.request = request
        self.verdict = Verdict("held")
        self.decided_us = self.arrived_us = arrived_us
        self.due_us = arrived_us
        self.waits_for: dict[int, int] = {}
        self.needs_only_places = False
        call_meta = request.frame.params.get("_meta")
        self._progress_token = id_text(call_meta.get(meta.PROGRESS_TOKEN)) if isinstance(call_meta, dict) else None
        self._told = 0  # how many times the client was told

    def waited_us(self, now_us: int) -> int:
        """How long the call has been held."""
        return max(0, now_us - self.arrived_us)

    def progress(self, now_us: int) -> bytes:
        """The notification that tells the client that the call waits; empty if it is not due."""
        seconds = (now_us - self.arrived_us) // PROGRESS_US
        if self._progress_token is None or seconds <= self._told:
            return b""
        self._told = seconds
        what = "another call to end" if self.needs_only_places else "a rate limit"
        params = f'"progressToken":{self._progress_token},"progress":{seconds * _PROGRESS_STEP:.3f}'
        message = compact(f"waiting for {what}, {seconds} s")
        return f'{{"jsonrpc":"2.0","method":"notifications/progress","params":{{{params},"message":{message}}}}}\n'.encode()

    @property
    def next_us(self) -> int:
        """When there is something to do for the call."""
        if self._progress_token is None:
            return self.due_us
        return min(self.due_us, self.arrived_us + (self._told + 1) * PROGRESS_US)


class HeldCalls:
    """The held calls by the key of their id, in the order of their arrival.

    A call is dropped if nobody still waits for it. It is charged nothing, and has an audit row.

    Args:
        retries: The free retries. One that is dropped can be made again.
        unwritten: Gets the calls that are dropped, since they have rows that no decision of the store writes.

    Attributes:
        calls: The calls, by `id_key`; do not change them.
    """

    def __init__(self, retries: FreeRetries, unwritten: list[tuple[DecisionRequest, Verdict]]) -> None:
        self.calls: dict[str, HeldCall] = {}
        self._retries = retries
        self._unwritten = unwritten

    def __iter__(self) -> Iterator[HeldCall]:
        return iter(self.calls.values())

    @property
    def has_room(self) -> bool:
        """Whether another call may be held."""
        return len(self.calls) < MAX_WAITING and sum(len(call.request.frame.raw) for call in self) < MAX_WAITING_BYTES

    @property
    def next_us(self) -> int | None:
        """When there is something to do; None if no call is held."""
        return min((call.next_us for call in self), default=None)

    def due(self, now_us: int) -> list[HeldCall]:
        """The calls that have to be decided anew."""
        return [call for call in self if call.due_us <= now_us]

    def is_behind(self, request: DecisionRequest) -> bool:
        """Whether an earlier call waits for a counter of this one that the call may wait for, too."""
        return any(True for _ in self._contested(request))

    def hold(self, request: DecisionRequest, verdict: Verdict, now_us: int) -> bool:
        """Hold a call, or hold it on.

        Args:
            request: The request of the last decision.
            verdict: The verdict: `held`.
            now_us: When it was decided.

        Returns:
            Whether it is held. It is not if a limit that refuses it will have no room in time, because of the calls before it.
        """
        plan, key = request.plan, request.key
        call = self.calls.get(key) or HeldCall(request, now_us)
        waited_us = request.waited_us = call.waited_us(now_us)
        decision = sliding.decide(plan.limits, verdict.states, verdict.now_us)
        refusing = set() if decision.admitted else {one.limit for one in decision.exceeded}
        found = refusing | set(self._contested(request))
        limits = [plan.limits[at] for at in found]
        waits_for = {plan.counters[one.counter].id: 0 if one.counts == "errors" else one.cost for one in limits}
        due_us = min(one.wait_us for one in limits) - waited_us
        for at in found:
            limit = plan.limits[at]
            counter = plan.counters[limit.counter].id
            ahead = [one.waits_for for one in self._before(request) if counter in one.waits_for]
            if limit.counts == "concurrent":
                if not ahead:
                    due_us = min(due_us, LOOK_US)
                continue
            taken = [one[counter] for one in ahead if one.keys() <= waits_for.keys()]  # it may pass the others
            wait_us = wait_in_queue_us(limit, verdict.states[limit.counter], verdict.now_us, taken)
            if at in refusing and (wait_us is None or wait_us > limit.wait_us - waited_us):
                return False
            if wait_us:
                due_us = min(due_us, wait_us)
            if at not in refusing:  # there is room, as after a reset: the first call that waits for it is decided anew
                self._hurry_next([counter])
        call.request, call.verdict, call.decided_us = request, verdict, now_us
        call.due_us = now_us + due_us
        call.needs_only_places = all(one.counts == "concurrent" for one in limits)
        lost = call.waits_for.keys() - waits_for.keys()
        call.waits_for = waits_for
        self.calls[key] = call
        self._hurry_next(lost)
        return True

    def decided(self, request: DecisionRequest) -> None:
        """Note that a request was decided and is not held, or not any more."""
        if request.key in self.calls:
            self._remove(request.key)

    def drop(self, key: str, why: str, now_us: int) -> None:
        """Drop a call that is held, by its `id_key`."""
        call = self._remove(key)
        request = call.request
        request.detail = {**request.detail, "waited_ms": call.waited_us(now_us) // 1000, "reason": why}
        self._unwritten.append((request, call.verdict.dropped(now_us - call.decided_us)))
        self._retries.give_back(request)

    def _remove(self, key: str) -> HeldCall:
        """Forget a call and return it. The next call for each of its counters is due."""
        call = self.calls.pop(key)
        self._hurry_next(call.waits_for)
        return call

    def drop_all(self, why: str, now_us: int) -> list[str]:
        """Drop all calls; returns their ids as JSON text."""
        request_ids = [call.request.request_id for call in self]
        for key in list(self.calls):
            self.drop(key, why, now_us)
        return request_ids

    def hurry(self) -> None:
        """Let all calls be decided anew at once."""
        for call in self:
            call.due_us = call.arrived_us

    def freed(self, plan: Plan) -> None:
        """Note that a call has freed its places: the next call for each of them is due."""
        if self.calls:
            self._hurry_next([plan.counters[limit.counter].id for limit in plan.limits if limit.counts == "concurrent"])

    def _hurry_next(self, counters: Iterable[int]) -> None:
        for counter in counters:
            following = next((call for call in self if counter in call.waits_for), None)
            if following is not None:
                following.due_us = following.arrived_us

    def _before(self, request: DecisionRequest) -> Iterator[HeldCall]:
        """The held calls before a request's."""
        for call in self:
            if call.key == request.key:
                return
            yield call

    def _contested(self, request: DecisionRequest) -> Iterator[int]:
        """The indexes of the limits that the call may wait for, and an earlier call waits for."""
        waited_for = {counter for call in self._before(request) for counter in call.waits_for}
        waited_us = request.waited_us or 0
        for at, limit in enumerate(request.plan.limits if waited_for else ()):
            may_wait = limit.wait_us > waited_us and not limit.observe and limit.n
            if may_wait and request.plan.counters[limit.counter].id in waited_for:
                yield at
