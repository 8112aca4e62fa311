"""Threads of a session, also on a system that has none left."""

import threading

import pytest

from mcpguard.errors import McpguardError
from mcpguard.relay import threads


@pytest.fixture
def no_thread_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)


@pytest.mark.usefixtures("no_thread_left")
def test_without_a_thread_a_session_does_not_begin_and_the_error_is_one_line_and_a_hint() -> None:
    with pytest.raises(McpguardError) as caught:
        threads.start(lambda: None, "upstream")
    assert caught.value.message == "cannot serve: can't start new thread"
    assert "ulimit -a" in caught.value.hint


@pytest.mark.usefixtures("no_thread_left")
def test_without_a_thread_the_last_work_of_a_session_is_done_at_once() -> None:
    done: list[str] = []
    threads.start_last(lambda: done.append(threading.current_thread().name), "close")
    assert done == [threading.current_thread().name]


def test_the_last_work_of_a_session_is_awaited_only_for_a_time() -> None:
    may_end, has_ended = threading.Event(), threading.Event()

    def work() -> None:
        may_end.wait()
        has_ended.set()

    threads.start_last(work, "close", 0.01)
    assert not has_ended.is_set()
    may_end.set()
    assert has_ended.wait(30)
