"""The bookkeeper works in handfuls, and while there are no calls."""

import threading
import time
from collections.abc import Callable, Iterator
from itertools import count, pairwise

import pytest

from mcpguard.errors import StoreUnavailable
from mcpguard.relay.bookkeeper import HANDFUL_BYTES, Bookkeeper, Rhythm
from mcpguard.session.machine import MAX_OUTCOMES
from tests.build import call_line
from tests.end_to_end.host import has_bytes
from tests.relay.conftest import Scene, made

NEVER_S = 10_000.0
AT_ONCE = Rhythm(tick_s=0.0, most_s=NEVER_S, quiet_s=0.0, catch_up_s=0.0)


class Books(Scene):
    """The same, with a bookkeeper."""

    def __init__(self, patch: pytest.MonkeyPatch, rhythm: Rhythm = AT_ONCE) -> None:
        super().__init__()
        self.patch = patch
        self.shut_down = threading.Event()
        self.bookkeeper = Bookkeeper(self.session, self.store, self.dispatcher, self.console, self.shut_down, rhythm)

    def answered_calls(self, number: int) -> None:
        self.client(*(call_line("x", at) for at in range(number)))
        for at in range(number):
            self.unread.add(
                b'{"jsonrpc":"2.0","id":%d,"result":{"content":[{"type":"text","text":"ok"}]}}\n' % at, awaits_answers=True
            )

    def run(self, tend: Callable[[], None], catch_up: Callable[[], bool] = lambda: False) -> None:
        """Run the bookkeeper until one of these has it shut down."""
        self.patch.setattr(self.store, "catch_up", catch_up)
        self.patch.setattr(self.store, "tend", tend)
        self.bookkeeper.run()

    def work_once(self, meanwhile: Callable[[], None] = lambda: None) -> int:
        """Let the bookkeeper work once; returns how often it has tended the store."""
        tended = count()

        def tend() -> None:
            next(tended)
            meanwhile()
            self.shut_down.set()

        self.bookkeeper.wake()
        self.run(tend)
        return next(tended)


@pytest.fixture
def scene(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Books]:
    one = Books(monkeypatch, **getattr(request, "param", {}))
    yield one
    one.close()


def test_outcomes_are_recorded_many_at_a_time_but_not_all_at_once(scene: Books) -> None:
    scene.answered_calls(300)
    assert scene.work_once() == 1
    assert scene.store.handfuls == [64, 64, 64, 64, 44]
    assert not scene.session.has_outcomes
    assert not scene.unread.size_bytes


def test_no_more_than_a_handful_of_answers_is_read_between_two_pauses(scene: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.answered_calls(300)
    unread = [scene.unread.size_bytes]
    monkeypatch.setattr(time, "sleep", lambda _: unread.append(scene.unread.size_bytes))
    scene.work_once()
    assert max(before - after for before, after in pairwise(unread)) <= HANDFUL_BYTES + 100


def test_handfuls_grow_with_what_there_is_to_read(scene: Books) -> None:
    scene.answered_calls(5000)
    scene.work_once()
    assert sum(scene.store.handfuls) == 5000
    assert max(scene.store.handfuls) > MAX_OUTCOMES
    assert len(scene.store.handfuls) < 100


@made("scene", rhythm=AT_ONCE._replace(most_s=0.0))
def test_outcomes_do_not_wait_until_a_server_writes_nothing(scene: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server may write notifications without a pause. Outcomes, and the rows that sum up denials, are recorded meanwhile."""
    scene.answered_calls(5)
    scene.dispatcher.read_answers()
    reads = count()

    def read_answers(_: int) -> bool:
        assert next(reads) < 1000
        return bool(scene.store.handfuls)

    monkeypatch.setattr(scene.dispatcher, "read_answers", read_answers)
    scene.work_once()
    assert scene.store.handfuls == [5]


@made("scene", rhythm=AT_ONCE._replace(most_s=0.0))
def test_the_store_is_tended_while_there_is_more_to_record(scene: Books) -> None:
    """Else the log would fill up, and the client would have to wait."""
    scene.answered_calls(300)
    assert scene.work_once() > 2
    assert sum(scene.store.handfuls) == 300


def test_all_outcomes_are_recorded_at_the_end(scene: Books) -> None:
    scene.answered_calls(100)
    scene.bookkeeper.finish(30)
    assert sum(scene.store.handfuls) == 100


def test_if_the_log_must_be_drained_the_rest_of_the_outcomes_waits(scene: Books) -> None:
    scene.answered_calls(300)
    scene.work_once(meanwhile=scene.bookkeeper.hurry)
    assert sum(scene.store.handfuls) <= 32


@made("scene", rhythm=AT_ONCE._replace(quiet_s=0.05))
def test_work_begins_when_there_was_no_call_for_a_moment(scene: Books) -> None:
    called_s = time.monotonic()
    scene.work_once()
    assert time.monotonic() - called_s >= 0.05


@made("scene", rhythm=AT_ONCE._replace(quiet_s=NEVER_S, most_s=0.05))
def test_work_begins_although_there_are_calls_all_the_time(scene: Books) -> None:
    scene.work_once()


@made("scene", rhythm=Rhythm(tick_s=NEVER_S, most_s=2 * NEVER_S, quiet_s=NEVER_S))
def test_work_begins_at_once_if_somebody_waits_for_it(scene: Books) -> None:
    scene.bookkeeper.hurry()
    scene.work_once()


def test_a_wrapper_without_calls_takes_in_what_others_have_written(scene: Books) -> None:
    left = [True, True, False, True, False]

    def catch_up() -> bool:
        if len(left) == 1:
            scene.shut_down.set()
        return left.pop(0)

    scene.run(lambda: pytest.fail("there is no call"), catch_up)
    assert left == []


def test_a_call_ends_the_catching_up(scene: Books) -> None:
    tended: list[None] = []

    def catch_up() -> bool:
        scene.bookkeeper.wake()
        return True

    def tend() -> None:
        tended.append(None)
        scene.shut_down.set()

    scene.run(tend, catch_up)
    assert tended == [None]


@pytest.mark.parametrize("error", [StoreUnavailable("it is gone"), ZeroDivisionError("a bug")])
def test_upkeep_goes_on_after_a_failure_and_a_bug_is_reported(scene: Books, error: Exception) -> None:
    tended: list[None] = []

    def tend() -> None:
        tended.append(None)
        if len(tended) == 1:
            raise error
        scene.shut_down.set()

    scene.patch.setattr(scene.store, "needs_tending", True)
    scene.bookkeeper.wake()
    scene.run(tend)
    assert len(tended) == 2
    assert has_bytes(scene.stderr) == isinstance(error, ZeroDivisionError)
