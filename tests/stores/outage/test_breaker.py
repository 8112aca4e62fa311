"""The state machine of the circuit breaker, with an injected clock and injected random numbers."""

import pytest

from mcpguard.errors import StoreUnavailable
from mcpguard.stores.outage.breaker import NOT_IN_TIME, PROBE_US, CircuitBreaker
from tests.build import Time

GONE = StoreUnavailable("it is gone")
FULL = StoreUnavailable("the disk is full")


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def breaker(time: Time) -> CircuitBreaker:
    return CircuitBreaker(time, lambda bound: bound // 4)


def test_it_begins_with_the_attempt_to_connect_and_closes_when_that_succeeds(breaker: CircuitBreaker) -> None:
    assert (breaker.state, breaker.failure) == ("connecting", NOT_IN_TIME)
    breaker.close()
    assert breaker.state == "closed"


def test_the_first_failure_opens_it_and_is_told(breaker: CircuitBreaker) -> None:
    breaker.close()
    assert breaker.trip(GONE)
    assert (breaker.state, breaker.failure) == ("open", GONE)


def test_a_failure_to_connect_opens_it_and_is_told(breaker: CircuitBreaker) -> None:
    assert breaker.trip(GONE)
    assert (breaker.state, breaker.failure) == ("open", GONE)


def test_a_probe_is_due_when_its_random_time_has_come_and_not_before(breaker: CircuitBreaker, time: Time) -> None:
    breaker.close()
    breaker.trip(GONE)
    wait_us = PROBE_US[0] + (PROBE_US[1] - PROBE_US[0]) // 4
    time.now_us += wait_us - 1
    assert not breaker.is_probe_due
    time.now_us += 1
    assert breaker.is_probe_due


@pytest.mark.parametrize(("drawn", "wait_us"), [(0, PROBE_US[0]), (PROBE_US[1] - PROBE_US[0] - 1, PROBE_US[1] - 1)])
def test_probes_keep_within_their_bounds(time: Time, drawn: int, wait_us: int) -> None:
    breaker = CircuitBreaker(time, lambda bound: min(drawn, bound - 1))
    breaker.trip(GONE)
    time.now_us += wait_us - 1
    assert not breaker.is_probe_due
    time.now_us += 1
    assert breaker.is_probe_due


def test_a_probe_that_succeeds_closes_it(breaker: CircuitBreaker) -> None:
    states = []
    breaker.trip(GONE)
    for report in (breaker.begin_probe, breaker.close):
        report()
        states.append(breaker.state)
    assert states == ["half-open", "closed"]


def test_a_probe_that_fails_opens_it_schedules_the_next_one_and_is_not_told(breaker: CircuitBreaker, time: Time) -> None:
    breaker.trip(GONE)
    time.now_us += PROBE_US[1]
    breaker.begin_probe()
    assert not breaker.trip(FULL)
    assert (breaker.state, breaker.failure) == ("open", FULL)
    assert not breaker.is_probe_due


def test_an_attempt_to_connect_that_takes_too_long_goes_on_as_a_probe_and_its_failure_is_told_once(
    breaker: CircuitBreaker,
) -> None:
    breaker.begin_probe()
    assert (breaker.state, breaker.failure) == ("half-open", NOT_IN_TIME)
    assert breaker.trip(GONE)
    breaker.begin_probe()
    assert not breaker.trip(GONE)


def test_every_outage_is_told(breaker: CircuitBreaker) -> None:
    for _ in range(3):
        breaker.close()
        assert breaker.trip(GONE)
        breaker.begin_probe()
