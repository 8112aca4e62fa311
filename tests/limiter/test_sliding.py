"""The limiter against a naive model: a list of all admissions; and whether a call is held, and for how long."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from mcpguard.limiter import sliding
from mcpguard.limiter.sliding import EMPTY, Decision, Limit, State, charge, decide, live, merge, shift, used, wait_in_queue_us

WINDOW_US = 1000


@pytest.fixture
def small_logs(monkeypatch: pytest.MonkeyPatch) -> int:
    """Logs of 4 exact entries instead of 64, so that few steps fill one."""
    monkeypatch.setattr(sliding, "EXACT", 4)
    monkeypatch.setattr(sliding, "MAX_ENTRIES", 6)
    return 4


class Model:
    """The admissions of one counter."""

    def __init__(self) -> None:
        self.admitted: list[tuple[int, int]] = []

    def held(self, now_us: int, window_us: int = WINDOW_US) -> int:
        return sum(cost for at, cost in self.admitted if now_us - window_us < at <= now_us)


def costing(limits: list[Limit], cost: int) -> list[Limit]:
    """The limits for a call of this cost."""
    return [limit._replace(cost=cost) for limit in limits]


class Counters(RuleBasedStateMachine):
    """Calls on two counters. The limits are edited, and time may run backwards."""

    ns: Any = st.sampled_from([1, 2, 3, 4, 5, 6, 8, 20])
    lag_in_grains = 3
    """How late an admission can be in grains: edits across the exact threshold can blur an entry more than once."""

    def __init__(self) -> None:
        super().__init__()
        self.now_us = 10_000
        self.states: list[State] = [EMPTY, EMPTY]
        self.models = [Model(), Model()]
        self.wait: tuple[int, list[Limit], int] | None = None
        self.fixed: list[int] | None = None

    def grain(self) -> int:
        return -(-WINDOW_US // sliding.EXACT)

    @rule(us=st.one_of(st.integers(0, 60), st.integers(0, 600), st.sampled_from([249, 250, 251, 999, 1000, 1001])))
    def time_passes(self, us: int) -> None:
        self.now_us += us

    @rule(us=st.integers(1, 2000))
    def the_clock_steps_back(self, us: int) -> None:
        self.now_us -= us

    @rule(data=st.data(), cost=st.sampled_from([1, 1, 1, 2, 5]), times=st.integers(1, 6))
    def calls(self, data: st.DataObject, cost: int, times: int) -> None:
        drawn = data.draw(st.lists(st.tuples(self.ns, st.integers(0, 1)), min_size=1, max_size=3))
        limits = [Limit(self.fixed[at] if self.fixed else n, WINDOW_US, at) for n, at in drawn]
        for _ in range(times):
            self.call(limits, cost)

    @precondition(lambda self: self.wait is not None)
    @rule()
    def the_client_waits_as_it_was_told(self) -> None:
        assert self.wait is not None
        until_us, limits, cost = self.wait
        self.now_us = max(self.now_us, until_us)
        assert self.call(limits, cost).admitted

    def call(self, limits: list[Limit], cost: int) -> Decision:
        now_us = max([self.now_us, *[state[-2] for state in self.states if state]])
        decision = decide(costing(limits, cost), self.states, self.now_us)
        named = {limit.counter for limit in limits}
        assert all(len(state) <= 2 * sliding.MAX_ENTRIES + 1 for state in decision.states)
        assert all(at in named or decision.states[at] is state for at, state in enumerate(self.states))
        if decision.admitted:
            assert not decision.exceeded
            for at in named:
                before = used(live(self.states[at], WINDOW_US, now_us))
                assert decision.used[at] == before
                assert used(live(decision.states[at], WINDOW_US, now_us)) == before + cost
                self.models[at].admitted.append((now_us, cost))
            for limit in limits:
                assert self.models[limit.counter].held(now_us) <= limit.n
            self.states = list(decision.states)
            self.wait = None
        else:
            self.denied(decision, limits, now_us, cost)
        return decision

    def denied(self, decision: Decision, limits: list[Limit], now_us: int, cost: int) -> None:
        assert all(new is old for new, old in zip(decision.states, self.states, strict=True))
        late_us = 0 if self.fixed and max(self.fixed) <= sliding.EXACT else self.lag_in_grains * self.grain()
        for at, limit in enumerate(limits):
            has_room = all(exceeded.limit != at for exceeded in decision.exceeded)
            model_held = self.models[limit.counter].held(now_us, WINDOW_US + late_us)
            assert has_room or model_held + cost > limit.n, "denied though there was room a little later"
            assert not has_room or self.models[limit.counter].held(now_us) + cost <= limit.n
        waits = [exceeded.retry_after_us for exceeded in decision.exceeded]
        never = [limits[exceeded.limit].n < cost for exceeded in decision.exceeded]
        assert [wait is None for wait in waits] == never
        if any(never):
            self.wait = None
            return
        wait_us = max(wait for wait in waits if wait is not None)
        assert 0 < wait_us <= WINDOW_US
        assert decide(costing(limits, cost), self.states, now_us + wait_us).admitted
        assert not decide(costing(limits, cost), self.states, now_us + wait_us - 1).admitted
        for exceeded in decision.exceeded:
            alone = [limits[exceeded.limit]]
            assert exceeded.retry_after_us is not None
            assert decide(costing(alone, cost), self.states, now_us + exceeded.retry_after_us).admitted
            assert not decide(costing(alone, cost), self.states, now_us + exceeded.retry_after_us - 1).admitted
        self.wait = (now_us + wait_us, limits, cost)


class SteadyCounters(Counters):
    """The same without edits: an admission is at most one grain late, and never late for limits up to the threshold.

    So a client that obeys every wait is at most a 64th of a window late.
    """

    lag_in_grains = 1

    @initialize(first=Counters.ns, second=Counters.ns)
    def limits_are_set(self, first: int, second: int) -> None:
        self.fixed = [first, second]


@pytest.mark.usefixtures("small_logs")
@pytest.mark.parametrize("machine", [Counters, SteadyCounters])
def test_a_log_decides_like_a_list_of_all_admissions(machine: type[RuleBasedStateMachine]) -> None:
    run_state_machine_as_test(machine, settings=settings(max_examples=100, stateful_step_count=40))


def admit(states: list[State], n: int, at_us: int, window_us: int = WINDOW_US) -> bool:
    decision = decide([Limit(n, window_us, 0)], states, at_us)
    states[:] = decision.states
    return decision.admitted


@pytest.mark.parametrize("n", [64, 65, 130, 1000])
def test_a_client_that_calls_at_the_rate_of_its_limit_is_admitted_nearly_always(n: int) -> None:
    window_us = 640_000
    states = [EMPTY]
    admitted = sum(admit(states, n, at * window_us // n, window_us) for at in range(20 * n))
    assert admitted == 20 * n if n <= 64 else admitted >= 20 * n * 64 // 65
    assert len(states[0]) <= 2 * 66 + 1


def test_limits_up_to_64_have_an_entry_for_each_admission_and_larger_ones_share_entries() -> None:
    for n, entries in ((64, 64), (65, 1)):
        states = [EMPTY]
        assert all(admit(states, n, 0) for _ in range(n))
        assert not admit(states, n, 0)
        assert len(states[0]) == 1 + 2 * entries


@pytest.mark.parametrize(
    ("window_us", "times", "log"),
    [
        (6400, (0, 99, 100, 199, 200), (200, 99, 2, 199, 2, 200, 1)),
        (65, (0, 1, 2), (2, 1, 2, 2, 1)),  # rounded up
    ],
)
def test_an_entry_covers_at_most_a_64th_of_the_window(window_us: int, times: tuple[int, ...], log: State) -> None:
    states = [EMPTY]
    assert [admit(states, 65, at_us, window_us) for at_us in times] == [True] * len(times)
    assert states == [log]


def test_raising_a_limit_on_errors_merges_a_full_log_of_one_grain_into_one_entry() -> None:
    log = EMPTY
    for _ in range(sliding.MAX_ENTRIES):
        log = charge(log, 2, 64_000, 0)
    assert charge(log, 1000, 64_000, 1_000) == (1_000, 0, sliding.MAX_ENTRIES, 1_000, 1)


@pytest.mark.parametrize("ns", [(2, 100), (100, 2)])
def test_the_smaller_of_two_limits_on_one_counter_sets_its_grain(ns: tuple[int, int]) -> None:
    limits = [Limit(n, 6400, 0, rule=at) for at, n in enumerate(ns)]
    states = decide(limits, decide(limits, [EMPTY], 0).states, 99).states
    assert states == ((99, 0, 1, 99, 1),)
    assert decide(limits, states, 6399).exceeded[0].retry_after_us == 1


def test_a_limit_of_zero_always_denies_and_no_limits_admit_everything() -> None:
    decision = decide([Limit(0, 0, -1)], [], 0)
    assert (decision.admitted, decision.exceeded) == (False, (sliding.Exceeded(0, None),))
    assert decide([], [], 0) == Decision(True, (), (), ())


def test_an_observed_rule_is_charged_only_if_all_its_limits_have_room() -> None:
    enforced = Limit(9, WINDOW_US, 0, rule=0)
    observed = [Limit(1, WINDOW_US, 1, rule=1, observe=True), Limit(9, WINDOW_US, 2, rule=1, observe=True)]
    other = Limit(9, WINDOW_US, 3, rule=2, observe=True)
    first = decide([enforced, *observed, other], [EMPTY] * 4, 0)
    assert [used(state) for state in first.states] == [1, 1, 1, 1]
    second = decide([enforced, *observed, other], first.states, 0)
    assert second.admitted
    assert [exceeded.limit for exceeded in second.exceeded] == [1]
    assert [used(state) for state in second.states] == [2, 1, 1, 2]


def test_a_call_that_is_denied_neither_charges_nor_reports_observed_rules() -> None:
    limits = [Limit(1, WINDOW_US, 0, rule=0), Limit(1, WINDOW_US, 1, rule=1, observe=True)]
    states = decide(limits, [EMPTY] * 2, 0).states
    decision = decide(limits, states, 0)
    assert (decision.admitted, [exceeded.limit for exceeded in decision.exceeded]) == (False, [0])
    assert decision.states == states


def test_an_observed_denial_admits() -> None:
    decision = decide([Limit(0, 0, -1, observe=True)], [], 0)
    assert (decision.admitted, decision.exceeded) == (True, (sliding.Exceeded(0, None),))


def test_a_log_whose_entries_have_all_left_the_window_is_empty() -> None:
    log = charge(charge(EMPTY, 5, WINDOW_US, 0), 5, WINDOW_US, 10)
    assert live(log, WINDOW_US, 9 + WINDOW_US) == (10, 10, 1)
    assert live(log, WINDOW_US, 10 + WINDOW_US) == EMPTY


# One log of two


logs = st.lists(st.tuples(st.integers(0, 1999), st.integers(1, 3)), max_size=30).map(
    lambda pairs: (max(pairs)[0], *[value for pair in sorted(pairs) for value in pair]) if pairs else EMPTY
)


@given(logs, st.integers(-5000, 5000))
def test_a_shifted_log_decides_the_same_by_the_other_clock(log: State, by_us: int) -> None:
    shifted = shift(log, by_us)
    assert shift(shifted, -by_us) == log
    for now_us in (0, 1500, 2500):
        assert used(live(shifted, WINDOW_US, now_us + by_us)) == used(live(log, WINDOW_US, now_us))
    newest_us = log[-2] if log else 0
    for now_us in (newest_us + 15, newest_us + 16):  # within the grain of the newest entry, and after it
        assert charge(shifted, 100, WINDOW_US, now_us + by_us) == shift(charge(log, 100, WINDOW_US, now_us), by_us)


@given(logs, logs)
def test_a_merged_log_never_counts_less_than_both_logs(one: State, other: State) -> None:
    merged = merge(one, other, WINDOW_US)
    assert used(merged) == used(one) + used(other)
    assert len(merged) <= 2 * 64 + 1
    for now_us in range(0, 3200, 97):
        both = used(live(one, WINDOW_US, now_us)) + used(live(other, WINDOW_US, now_us))
        late = used(live(one, WINDOW_US + 16, now_us)) + used(live(other, WINDOW_US + 16, now_us))
        assert both <= used(live(merged, WINDOW_US, now_us)) <= late


def test_a_merged_log_has_an_entry_for_each_of_up_to_64_admissions() -> None:
    one, other = EMPTY, EMPTY
    for at_us in range(0, 64, 2):
        one, other = charge(one, 64, WINDOW_US, at_us), charge(other, 64, WINDOW_US, at_us + 1)
    assert merge(one, other, WINDOW_US) == (63, *[value for at_us in range(64) for value in (at_us, 1)])


@pytest.mark.usefixtures("small_logs")
@given(logs, logs)
def test_a_merged_log_that_would_be_too_long_counts_each_admission_at_most_a_grain_longer(one: State, other: State) -> None:
    merged = merge(one, other, 2000)
    assert len(merged) <= 2 * sliding.MAX_ENTRIES + 1
    for now_us in range(1999, 4600, 97):
        both = used(live(one, 2000, now_us)) + used(live(other, 2000, now_us))
        late = used(live(one, 2500, now_us)) + used(live(other, 2500, now_us))
        assert both <= used(live(merged, 2000, now_us)) <= late


def log_of(times: list[int]) -> State:
    log = EMPTY
    for at_us in sorted(times):
        log = charge(log, 64, WINDOW_US, at_us)
    return log


@given(
    st.integers(1, 5), st.lists(st.integers(0, 1000), max_size=5), st.lists(st.integers(1, 6), max_size=6), st.integers(1, 6)
)
def test_the_wait_in_a_queue_is_when_a_call_is_admitted_if_those_before_it_go_as_soon_as_they_can(
    n: int, times: list[int], ahead: list[int], cost: int
) -> None:
    log, now_us, start_us = log_of(times), 1000, 1000
    limit = Limit(n, WINDOW_US, 0, counts="cost", cost=cost)
    found = wait_in_queue_us(limit, log, now_us, ahead)
    if cost > n:
        assert found is None
        return
    for one in [*(each for each in ahead if each <= n), cost]:
        while not (decision := decide([limit._replace(cost=one)], [log], now_us)).admitted:
            now_us += 1
        (log,) = decision.states
    assert found == now_us - start_us


def test_the_wait_in_a_queue_begins_with_the_newest_entry_of_a_log_that_is_ahead_of_the_clock() -> None:
    limit = Limit(1, WINDOW_US, 0)
    assert wait_in_queue_us(limit, (1500, 1500, 1), 1400, [1]) == 100 + 2 * WINDOW_US


def test_a_call_ahead_that_costs_more_than_the_whole_limit_is_not_waited_for() -> None:
    limit = Limit(2, WINDOW_US, 0, counts="cost")
    assert wait_in_queue_us(limit, (1000, 1000, 2), 1400, [3, 1]) == 600
