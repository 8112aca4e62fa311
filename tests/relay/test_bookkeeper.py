"""The bookkeeper works in handfuls, and while there are no calls."""

import threading
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest

from mcpguard.errors import StoreUnavailable
from mcpguard.relay import bookkeeper
from mcpguard.relay.bookkeeper import HANDFUL_BYTES, MOST_S, Bookkeeper
from mcpguard.session.machine import MAX_OUTCOMES
from mcpguard.stores.pauses import QUIET_S
from tests.build import call_line
from tests.end_to_end.host import has_bytes
from tests.relay.conftest import Scene


class Time:
    """A clock that stands still unless somebody waits. It is the event `hurry`, too."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.hurries_at_s = 1e9

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, s: float) -> None:
        self.now_s += s

    def is_set(self) -> bool:
        return self.now_s >= self.hurries_at_s

    def clear(self) -> None:
        self.hurries_at_s = 1e9

    def wait(self, timeout: float) -> bool:
        self.now_s += timeout
        return self.is_set()


class Books(Scene):
    """The same, with a bookkeeper."""

    def __init__(self, time: Time) -> None:
        super().__init__()
        self.bookkeeper = Bookkeeper(self.session, self.store, self.dispatcher, self.console, threading.Event())
        self.bookkeeper._hurry = time  # type: ignore[assignment]

    def answered_calls(self, number: int) -> None:
        self.client(*(call_line("x", at) for at in range(number)))
        for at in range(number):
            self.unread.add(
                b'{"jsonrpc":"2.0","id":%d,"result":{"content":[{"type":"text","text":"ok"}]}}\n' % at, awaits_answers=True
            )

    def run(self, patch: pytest.MonkeyPatch, tend: Callable[[], None], catch_up: Callable[[], bool] = lambda: False) -> None:
        """Run the bookkeeper until one of these has it shut down."""
        patch.setattr(bookkeeper, "CATCH_UP_S", 0.0)
        patch.setattr(self.store, "catch_up", catch_up)
        patch.setattr(self.store, "tend", tend)
        self.bookkeeper.run()


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    time = Time()
    monkeypatch.setattr(bookkeeper, "time", time)
    return time


@pytest.fixture
def scene(time: Time) -> Iterator[Books]:
    one = Books(time)
    yield one
    one.close()


def test_outcomes_are_recorded_many_at_a_time_but_not_all_at_once(scene: Books) -> None:
    scene.answered_calls(300)
    scene.bookkeeper._record()
    assert scene.store.handfuls == [64, 64, 64, 64, 44]
    assert not scene.session.has_outcomes
    assert not scene.unread.size_bytes


def test_no_more_than_a_handful_of_answers_is_read_between_two_pauses(
    scene: Books, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.answered_calls(300)
    unread = [scene.unread.size_bytes]
    monkeypatch.setattr(time, "sleep", lambda _: unread.append(scene.unread.size_bytes))
    scene.bookkeeper._record()
    assert max(before - after for before, after in pairwise(unread)) <= HANDFUL_BYTES + 100


def test_handfuls_grow_with_what_there_is_to_read(scene: Books) -> None:
    scene.answered_calls(5000)
    scene.bookkeeper._record()
    assert sum(scene.store.handfuls) == 5000
    assert max(scene.store.handfuls) > MAX_OUTCOMES
    assert len(scene.store.handfuls) < 100


def test_outcomes_do_not_wait_until_a_server_writes_nothing(scene: Books, time: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server may write notifications without a pause. Outcomes, and the rows that sum up denials, are recorded meanwhile."""
    scene.answered_calls(5)
    scene.dispatcher.read_answers()

    def read_answers(_: int) -> bool:
        assert time.now_s < 3 * MOST_S
        return bool(scene.store.handfuls)

    monkeypatch.setattr(scene.dispatcher, "read_answers", read_answers)
    scene.bookkeeper._record()
    assert scene.store.handfuls == [5]


def test_the_store_is_tended_while_there_is_more_to_record(scene: Books, time: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the log would fill up, and the client would have to wait."""
    tended_s: list[float] = []
    monkeypatch.setattr(scene.store, "tend", lambda: tended_s.append(time.now_s))
    monkeypatch.setattr(bookkeeper, "PAUSE_S", MOST_S / 4)
    scene.answered_calls(300)
    scene.bookkeeper._record()
    assert sum(scene.store.handfuls) == 300
    assert len(tended_s) >= 2
    assert all(MOST_S < later - at < 2 * MOST_S for at, later in pairwise([0.0, *tended_s]))


def test_all_outcomes_are_recorded_at_the_end(scene: Books) -> None:
    scene.answered_calls(100)
    scene.bookkeeper.finish(30)
    assert sum(scene.store.handfuls) == 100


def test_if_the_log_must_be_drained_the_rest_of_the_outcomes_waits(scene: Books, time: Time) -> None:
    scene.answered_calls(300)
    time.hurries_at_s = 0.0
    scene.bookkeeper._record()
    assert sum(scene.store.handfuls) <= 32


@pytest.mark.parametrize(
    ("called_s", "hurries_at_s", "least_s", "most_s"),
    [(0.0, 1e9, QUIET_S, 3 * QUIET_S), (1e9, 1e9, MOST_S, MOST_S + QUIET_S), (1e9, 0.0, 0.0, QUIET_S)],
    ids=["when there was no call for a moment", "although there are calls all the time", "at once if somebody waits for it"],
)
def test_work_begins(scene: Books, time: Time, called_s: float, hurries_at_s: float, least_s: float, most_s: float) -> None:
    scene.bookkeeper._called_s, time.hurries_at_s = called_s, hurries_at_s
    scene.bookkeeper._give_way(MOST_S)
    assert least_s <= time.now_s <= most_s


def test_a_wrapper_without_calls_takes_in_what_others_have_written(scene: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    left = [True, True, False, True, False]

    def catch_up() -> bool:
        if len(left) == 1:
            scene.bookkeeper._shut_down.set()
        return left.pop(0)

    scene.run(monkeypatch, lambda: pytest.fail("there is no call"), catch_up)
    assert left == []


def test_a_call_ends_the_catching_up(scene: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    tended: list[None] = []

    def catch_up() -> bool:
        scene.bookkeeper.wake()
        return True

    def tend() -> None:
        tended.append(None)
        scene.bookkeeper._shut_down.set()

    scene.run(monkeypatch, tend, catch_up)
    assert tended == [None]


@pytest.mark.parametrize("error", [StoreUnavailable("it is gone"), ZeroDivisionError("a bug")])
def test_upkeep_goes_on_after_a_failure_and_a_bug_is_reported(
    scene: Books, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    tended: list[None] = []

    def tend() -> None:
        tended.append(None)
        if len(tended) == 1:
            raise error
        scene.bookkeeper._shut_down.set()

    monkeypatch.setattr(scene.store, "needs_tending", True)
    scene.bookkeeper.wake()
    scene.run(monkeypatch, tend)
    assert len(tended) == 2
    assert has_bytes(scene.stderr) == isinstance(error, ZeroDivisionError)
