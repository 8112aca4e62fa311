"""Limits on calls, cost and errors, and caps on calls in flight, together: against a naive model with lists of all events."""

from collections.abc import Sequence

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from mcpguard.limiter.plan import Counter, Plan, Reported
from mcpguard.limiter.sliding import EMPTY, Counts, Limit, State, decide, fail
from mcpguard.policy.model import Call
from mcpguard.session.decision import decide_one
from mcpguard.session.verdict import DecisionRequest, Verdict
from mcpguard.stores.memory import release

WINDOW_US = 1000
KINDS: Sequence[Counts] = ("calls", "cost", "errors", "concurrent")
COUNTERS = tuple([Counter(at, counts, 0 if counts == "concurrent" else WINDOW_US) for at, counts in enumerate(KINDS)])
CALL = Call("alice", "a::b::c", "crm", "search")


class Model:
    """Everything that happened, in lists."""

    def __init__(self) -> None:
        self.now_us = 10_000
        self.counted: dict[str, list[tuple[int, int]]] = {counts: [] for counts in KINDS}
        self.in_flight: list[int] = []

    def held(self, counts: Counts, now_us: int) -> int:
        if counts == "concurrent":
            return len(self.in_flight)
        return sum(cost for at_us, cost in self.counted[counts] if now_us - WINDOW_US < at_us)

    def has_room(self, limit: Limit, now_us: int) -> bool:
        return self.held(limit.counts, now_us) + limit.cost <= limit.n


class AllThatIsCounted(RuleBasedStateMachine):
    """Calls with any selection of limits, which end or fail some time later."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.states: list[State] = [EMPTY] * len(KINDS)
        self.calls = 0
        self.plans: dict[int, Plan] = {}

    @rule(us=st.sampled_from([0, 1, 50, 499, 500, 501, 999, 1000, 1001]))
    def time_passes(self, us: int) -> None:
        self.model.now_us += us

    @rule(
        kinds=st.sets(st.integers(0, 3), min_size=1),
        ns=st.lists(st.integers(1, 6), min_size=4, max_size=4),
        cost=st.integers(1, 7),
        waits_us=st.lists(st.sampled_from([0, 0, 300, 2000]), min_size=4, max_size=4),
        waited_us=st.sampled_from([None, 0, 250, 1000]),
        is_behind=st.booleans(),
    )
    def call(
        self, kinds: set[int], ns: list[int], cost: int, waits_us: list[int], waited_us: int | None, is_behind: bool
    ) -> None:
        model, now_us = self.model, self.model.now_us
        limits = [
            Limit(ns[at], COUNTERS[at].window_us, at, at, False, KINDS[at], cost if KINDS[at] == "cost" else 1, waits_us[at])
            for at in range(len(KINDS))
        ]
        reported = [Reported("tool", f"rule {limit.counter}", limit.n, "1ms", limit.counts) for limit in limits]
        plan = Plan(tuple(limits), tuple(reported), COUNTERS).only(lambda limit: limit.rule in kinds)
        request = DecisionRequest(CALL, plan, "")
        request.waited_us, request.is_behind = waited_us, is_behind
        self.calls += 1
        before = [self.states[counter.id] for counter in plan.counters]
        verdict, decision = decide_one(request, before, now_us, self.calls)
        full = [limit for limit in plan.limits if not model.has_room(limit, now_us)]
        if full:
            self.refused(plan, verdict, full, waited_us)
        elif is_behind:
            assert (verdict.decision, verdict.exceeded) == ("held", ())
        else:
            assert verdict.decision == "allowed"
            self.set(plan, decision.states)
            self.admitted(plan, verdict)
        if full or verdict.decision == "held":
            assert decision.states in ((), tuple(before))
            assert not decision.charged

    def set(self, plan: Plan, states: Sequence[State]) -> None:
        for counter, state in zip(plan.counters, states, strict=True):
            self.states[counter.id] = state

    def admitted(self, plan: Plan, verdict: Verdict) -> None:
        for limit in plan.limits:
            if limit.counts in {"calls", "cost"}:
                self.model.counted[limit.counts].append((self.model.now_us, limit.cost))
        if plan.caps:
            self.model.in_flight.append(self.calls)
        self.plans[self.calls] = plan
        assert verdict.in_flight == (len(self.model.in_flight) if plan.caps else None)
        assert verdict.reported is not None
        counts = verdict.reported.counts
        assert counts is not None
        assert verdict.count == self.model.held(counts, self.model.now_us)

    def refused(self, plan: Plan, verdict: Verdict, full: list[Limit], waited_us: int | None) -> None:
        model, now_us = self.model, self.model.now_us
        assert len(verdict.exceeded) == len(full)
        waits = [wait for _, wait in verdict.exceeded]
        for limit, wait in zip(full, waits, strict=True):
            if wait is None:
                assert limit.counts == "concurrent" or limit.cost > limit.n
            else:
                assert model.has_room(limit, now_us + wait)
                assert not model.has_room(limit, now_us + wait - 1)
        lasting = [wait for wait in waits if wait is not None]
        assert verdict.retry_after_us == (max(lasting) if len(lasting) == len(waits) else None)
        can_wait = waited_us is not None and all(
            waited_us < limit.wait_us and (limit.counts == "concurrent" if wait is None else waited_us + wait <= limit.wait_us)
            for limit, wait in zip(full, waits, strict=True)
        )
        assert verdict.decision == ("held" if can_wait else "rate_limited")
        reasons = ["too_costly", "concurrent", "failing", "rate_limited"]
        assert verdict.reason in reasons
        if any(limit.cost > limit.n for limit in full):
            assert verdict.reason == "too_costly"
        elif any(limit.counts == "concurrent" for limit in full):
            assert verdict.reason == "concurrent"

    @precondition(lambda self: self.plans)
    @rule(which=st.integers(0, 20), failed=st.booleans(), again=st.booleans())
    def a_call_ends(self, which: int, failed: bool, again: bool) -> None:
        call_id = [*self.plans][which % len(self.plans)]
        plan = self.plans.pop(call_id)
        for _ in range(1 + again):  # to free a place twice does no harm
            self.states[3] = release(self.states[3], call_id)
        self.model.in_flight = [one for one in self.model.in_flight if one != call_id]
        if failed:
            after, charged = fail(plan.limits, [self.states[counter.id] for counter in plan.counters], self.model.now_us)
            self.set(plan, after)
            if any(limit.counts == "errors" for limit in plan.limits):
                self.model.counted["errors"].append((self.model.now_us, 1))
                assert [limit.counts for limit in charged] == ["errors"]
        assert len(self.states[3]) == len(self.model.in_flight)


def test_limits_of_all_kinds_decide_like_lists_of_all_that_happened() -> None:
    run_state_machine_as_test(AllThatIsCounted)


def test_a_limit_on_errors_counts_an_error_that_comes_while_the_clock_is_set_back() -> None:
    limit = Limit(2, WINDOW_US, 0, counts="errors")
    (state,), _ = fail([limit], [(500, 500, 1)], 400)
    assert state == (500, 500, 1, 500, 1)
    assert decide([limit], [state], 1499).exceeded[0].retry_after_us == 1
