"""When a store that failed is probed, and what the user is told."""

import pytest

from mcpguard.stores.outage import store
from mcpguard.stores.outage.breaker import PROBE_US, probe_wait_us
from tests.stores.outage.moody import Place


def test_the_time_between_two_probes_is_random_and_within_its_bounds() -> None:
    drawn = {probe_wait_us() for _ in range(1000)}
    assert len(drawn) > 900
    assert PROBE_US[0] <= min(drawn) <= max(drawn) < PROBE_US[1]


def test_a_probe_begins_when_its_time_has_come_and_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "probe_wait_us", lambda: 2_000_000)
    place = Place()
    place.break_down()
    place.call()
    place.failing = {}
    place.time.now_us += 2_000_000 - 1
    place.store.tend()
    assert len(place.opened) == 1
    place.time.now_us += 1
    place.store.tend()
    assert len(place.opened) == 2


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
