"""Whether a call is held, and when its turn comes in a queue."""

from hypothesis import given
from hypothesis import strategies as st

from mcpguard.limiter.sliding import EMPTY, Limit, State, charge, decide, wait_in_queue_us

WINDOW_US = 1000


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
