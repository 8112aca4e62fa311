"""Limits on calls, cost and errors, and caps on calls in flight, together: against a naive model with lists of all events."""

from collections.abc import Sequence

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from mcpguard.limiter.sliding import EMPTY, Counts, Limit, State, decide, fail
from mcpguard.policy.model import Call
from mcpguard.session.decision import decide_one
from mcpguard.session.verdict import DecisionRequest, Verdict
from mcpguard.stores.memory import release
from tests.policy.rules import policy

WINDOW_US = 1000
KINDS: Sequence[Counts] = ("calls", "cost", "errors", "concurrent")
CALL = Call("alice", "a::b::c", "crm", "search")


class AllThatIsCounted(RuleBasedStateMachine):
    """Calls with any selection of limits, which end or fail some time later."""

    def __init__(self) -> None:
        super().__init__()
        self.now_us = 10_000
        self.states: dict[Counts, State] = dict.fromkeys(KINDS, EMPTY)
        self.counted: dict[str, list[tuple[int, int]]] = {counts: [] for counts in KINDS}  # everything that happened
        self.in_flight: list[int] = []
        self.calls: dict[int, list[Limit]] = {}  # those that have not ended
        self.last_call = 0

    def held(self, counts: Counts, now_us: int) -> int:
        if counts == "concurrent":
            return len(self.in_flight)
        return sum(cost for at_us, cost in self.counted[counts] if now_us - WINDOW_US < at_us)

    def has_room(self, limit: Limit, now_us: int) -> bool:
        return self.held(limit.counts, now_us) + limit.cost <= limit.n

    @rule(us=st.sampled_from([0, 1, 50, 499, 500, 501, 999, 1000, 1001]))
    def time_passes(self, us: int) -> None:
        self.now_us += us

    @rule(ns=st.dictionaries(st.sampled_from(KINDS), st.integers(1, 6), min_size=1), cost=st.integers(1, 7))
    def call(self, ns: dict[Counts, int], cost: int) -> None:
        limits = [
            Limit(n, 0 if one == "concurrent" else WINDOW_US, at, at, counts=one, cost=cost if one == "cost" else 1)
            for at, (one, n) in enumerate(ns.items())
        ]
        self.last_call += 1
        before = tuple([self.states[one] for one in ns])
        decision = decide(limits, before, self.now_us, self.last_call)
        full = [at for at, limit in enumerate(limits) if not self.has_room(limit, self.now_us)]
        assert (decision.admitted, [one.limit for one in decision.exceeded]) == (not full, full)
        self.states |= zip(ns, decision.states, strict=True)
        if full:
            assert (decision.states, decision.charged) == (before, ())
            for at, wait_us in decision.exceeded:
                if wait_us is None:
                    assert limits[at].counts == "concurrent" or limits[at].cost > limits[at].n
                else:
                    assert self.has_room(limits[at], self.now_us + wait_us)
                    assert not self.has_room(limits[at], self.now_us + wait_us - 1)
            return
        for limit in limits:
            if limit.counts in {"calls", "cost"}:
                self.counted[limit.counts].append((self.now_us, limit.cost))
        self.in_flight += [self.last_call] * ("concurrent" in ns)
        self.calls[self.last_call] = limits

    @precondition(lambda self: self.calls)
    @rule(which=st.integers(0, 20), failed=st.booleans(), again=st.booleans())
    def a_call_ends(self, which: int, failed: bool, again: bool) -> None:
        call_id = [*self.calls][which % len(self.calls)]
        limits = self.calls.pop(call_id)
        for _ in range(1 + again):  # to free a place twice does no harm
            self.states["concurrent"] = release(self.states["concurrent"], call_id)
        self.in_flight = [one for one in self.in_flight if one != call_id]
        if failed:
            counters = [limit.counts for limit in limits]
            after, charged = fail(limits, [self.states[one] for one in counters], self.now_us)
            self.states |= zip(counters, after, strict=True)
            assert [limit.counts for limit in charged] == [one for one in counters if one == "errors"]
            self.counted["errors"] += [(self.now_us, 1) for _ in charged]
        assert len(self.states["concurrent"]) == len(self.in_flight)


def test_limits_of_all_kinds_decide_like_lists_of_all_that_happened() -> None:
    run_state_machine_as_test(AllThatIsCounted)


def test_a_limit_on_errors_counts_an_error_that_comes_while_the_clock_is_set_back() -> None:
    limit = Limit(2, WINDOW_US, 0, counts="errors")
    (state,), _ = fail([limit], [(500, 500, 1)], 400)
    assert state == (500, 500, 1, 500, 1)
    assert decide([limit], [state], 1499).exceeded[0].retry_after_us == 1


def decided(rule: str, *states: State, cost: int = 1) -> Verdict:
    plan = policy(rule, costs=[f"cost={cost}"]).plan(CALL)
    return decide_one(DecisionRequest(CALL, plan, ""), states, 0)[0]


def test_a_call_that_costs_more_than_a_whole_limit_is_told_so_although_it_finds_no_place_either() -> None:
    assert decided("limit='5/1m' count='cost' concurrent=1", (), (7,), cost=5).reason == "concurrent"
    assert decided("limit='5/1m' count='cost' concurrent=1", (), (7,), cost=6).reason == "too_costly"


def test_an_admitted_call_is_told_the_errors_before_it() -> None:
    verdict = decided("limit='5/1m' count='errors'", (0, 0, 2), cost=3)
    assert (verdict.decision, verdict.count, verdict.remaining) == ("allowed", 2, 3)
