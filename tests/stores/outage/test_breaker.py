"""When a store that failed is probed, with an injected clock and injected random numbers."""

import pytest

from mcpguard.errors import StoreUnavailable
from mcpguard.stores.outage.breaker import NOT_IN_TIME, PROBE_US, CircuitBreaker
from tests.build import Time
from tests.stores.outage.moody import Place

GONE = StoreUnavailable("it is gone")


@pytest.mark.parametrize(
    ("drawn", "wait_us"),
    [(0, PROBE_US[0]), ((PROBE_US[1] - PROBE_US[0]) // 4, 2_000_000), (PROBE_US[1] - PROBE_US[0] - 1, PROBE_US[1] - 1)],
)
def test_a_probe_is_due_when_its_random_time_has_come_and_not_before(drawn: int, wait_us: int) -> None:
    time = Time()
    breaker = CircuitBreaker(time, lambda bound: min(drawn, bound - 1))
    assert breaker.failure is NOT_IN_TIME
    breaker.trip(GONE)
    assert breaker.failure is GONE
    time.now_us += wait_us - 1
    assert not breaker.is_probe_due
    time.now_us += 1
    assert breaker.is_probe_due


def test_every_outage_is_told_and_a_probe_that_fails_is_not() -> None:
    place = Place()
    for _ in range(3):
        place.break_down()
        place.call()
        told = len(place.said)
        place.probe()
        assert len(place.said) == told
        place.mend()
    assert [line.split(":")[0] for line in place.said] == ["store unavailable", "store is back"] * 3
