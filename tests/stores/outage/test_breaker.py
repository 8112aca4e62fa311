"""The state machine of the circuit breaker, with an injected clock and injected random numbers."""

import pytest

from mcpguard.errors import StoreUnavailable
from mcpguard.stores.outage.breaker import PROBE_US, CircuitBreaker
from tests.build import Time

GONE = StoreUnavailable("it is gone")
FULL = StoreUnavailable("the disk is full")


@pytest.mark.parametrize("drawn", [0, 1_000_000, PROBE_US[1] - PROBE_US[0] - 1])
def test_a_probe_is_due_when_its_random_time_has_come_and_not_before(drawn: int) -> None:
    time = Time()
    breaker = CircuitBreaker(time, lambda bound: min(drawn, bound - 1))
    breaker.trip(GONE)
    time.now_us += PROBE_US[0] + drawn - 1
    assert not breaker.is_probe_due
    time.now_us += 1
    assert breaker.is_probe_due
    assert PROBE_US[0] + drawn < PROBE_US[1]


def test_only_the_first_failure_of_each_outage_is_told() -> None:
    breaker = CircuitBreaker(Time(), lambda bound: bound // 4)
    for _ in range(3):
        breaker.close()
        assert breaker.trip(GONE)
        breaker.begin_probe()
        assert breaker.state == "half-open"
        assert not breaker.trip(FULL)
        assert (breaker.state, breaker.failure, breaker.is_probe_due) == ("open", FULL, False)
        breaker.begin_probe()
