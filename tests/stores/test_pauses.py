"""Upkeep pauses often, and gives way to calls, but not for ever."""

from collections.abc import Callable, Iterator

import pytest

from mcpguard.stores.clock import GIVE_WAY_S, LOOK_EVERY_S, PAUSE_S, WORK_S, Pauses
from tests.stores.conftest import FakeClock


def work(clock: FakeClock) -> Iterator[int]:
    """Twelve items of work, a third of `WORK_S` each."""
    for item in range(12):
        clock.now_s += WORK_S / 3
        yield item


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    clock = FakeClock()
    monkeypatch.setattr("mcpguard.stores.clock.time", clock)
    return clock


def done(clock: FakeClock, *, busy: Callable[[], bool] = lambda: False, awaited: Callable[[], bool] = lambda: False) -> None:
    assert list(Pauses(busy, awaited).between(work(clock))) == list(range(12))


def test_work_pauses_each_time_that_it_has_lasted_as_long_as_a_call_may_wait(clock: FakeClock) -> None:
    done(clock)
    assert clock.slept == [PAUSE_S] * 3


def test_work_waits_until_there_was_no_call_for_a_moment(clock: FakeClock) -> None:
    done(clock, busy=lambda: clock.now_s < 0.01)
    assert clock.slept[0] == PAUSE_S
    assert clock.slept.count(LOOK_EVERY_S) == 10
    assert clock.slept[11:] == [PAUSE_S] * 2


def test_work_goes_on_with_short_pauses_if_the_calls_do_not_end(clock: FakeClock) -> None:
    done(clock, busy=lambda: True)
    assert GIVE_WAY_S <= sum(clock.slept) < GIVE_WAY_S + 2 * LOOK_EVERY_S
    assert clock.slept[-2:] == [PAUSE_S] * 2


def test_work_that_calls_wait_for_makes_no_pauses(clock: FakeClock) -> None:
    done(clock, busy=lambda: True, awaited=lambda: True)
    assert clock.slept == []
