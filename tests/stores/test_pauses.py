"""Upkeep pauses often, and gives way to calls, but not for ever."""

from collections.abc import Callable, Iterator

import pytest

from mcpguard.stores import pauses
from mcpguard.stores.pauses import GIVE_WAY_S, LOOK_EVERY_S, PAUSE_S, WORK_S, Pauses


class Clock:
    """A clock that stands still unless somebody works or sleeps."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.slept: list[float] = []

    def perf_counter(self) -> float:
        return self.now_s

    def sleep(self, s: float) -> None:
        self.slept.append(s)
        self.now_s += s

    def work(self, items: int, *, each_s: float) -> Iterator[int]:
        for item in range(items):
            self.now_s += each_s
            yield item


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pauses, "time", clock)
    return clock


def done(clock: Clock, *, busy: Callable[[], bool] = lambda: False, awaited: Callable[[], bool] = lambda: False) -> None:
    """Twelve items of work, a third of `WORK_S` each."""
    assert list(Pauses(busy, awaited).between(clock.work(12, each_s=WORK_S / 3))) == list(range(12))


def test_work_pauses_each_time_that_it_has_lasted_as_long_as_a_call_may_wait(clock: Clock) -> None:
    done(clock)
    assert clock.slept == [PAUSE_S] * 3


def test_work_waits_until_there_was_no_call_for_a_moment(clock: Clock) -> None:
    done(clock, busy=lambda: clock.now_s < 0.01)
    assert clock.slept[0] == PAUSE_S
    assert clock.slept.count(LOOK_EVERY_S) == 10
    assert clock.slept[11:] == [PAUSE_S] * 2


def test_work_goes_on_with_short_pauses_if_the_calls_do_not_end(clock: Clock) -> None:
    done(clock, busy=lambda: True)
    assert GIVE_WAY_S <= sum(clock.slept) < GIVE_WAY_S + 2 * LOOK_EVERY_S
    assert clock.slept[-2:] == [PAUSE_S] * 2


def test_work_that_calls_wait_for_makes_no_pauses(clock: Clock) -> None:
    done(clock, busy=lambda: True, awaited=lambda: True)
    assert clock.slept == []
