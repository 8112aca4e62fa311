import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Thread, current_thread

import pytest

from mcpguard.errors import PolicyError, StoreUnavailable
from mcpguard.policy.parse import parse
from mcpguard.relay.console import Console
from mcpguard.relay.dispatch import MAX_EARLY_BYTES, AnswersQueue, Dispatcher
from mcpguard.session.machine import Session
from mcpguard.wire import answers
from mcpguard.wire.answers import AnswerLines, Line
from mcpguard.wire.frames import read
from tests.build import call_line, request
from tests.relay.conftest import Scene

CALL = call_line("x", 1)
ANSWER = b'{"jsonrpc":"2.0","id":1,"result":{}}\n'


@pytest.fixture
def scene() -> Iterator[Scene]:
    one = Scene()
    yield one
    one.close()


def test_all_frames_of_a_read_are_written_at_once_each_way(scene: Scene) -> None:
    lines = [CALL, request("ping", 2), b"not json", b"[]"]
    assert scene.client(*lines) == CALL + b"\n" + lines[1] + b"\n"
    assert [reply.count(b"\n") for reply in scene.replies] == [2]


PING = request("ping", 2)


def test_messages_pass_before_there_is_a_session_which_is_told_of_them(scene: Scene) -> None:
    early = Dispatcher(scene.replies.append, Console(scene.write))
    notification = b'{"jsonrpc":"2.0","method":"notifications/initialized"}'
    assert early.pass_early(read([PING, notification]), 0) == PING + b"\n" + notification + b"\n"
    early.begin(scene.session, scene.store)
    assert [*scene.session.in_flight.by_id] == ["2"]
    assert early.pass_early(read([request("ping", 3)]), 0) is None


@pytest.mark.parametrize(
    "lines",
    [[CALL], [request("ping", 3), CALL], [b"not json"], [PING], [request("ping", 3), request("ping", "3")]],
    ids=["call", "call behind a ping", "refused", "id of an earlier one", "id twice"],
)
def test_messages_that_need_the_session_wait_for_it(scene: Scene, lines: list[bytes]) -> None:
    early = Dispatcher(scene.replies.append, Console(scene.write))
    assert early.pass_early(read([PING]), 0)
    assert early.pass_early(read(lines), 0) is None


def test_messages_pass_before_there_is_a_session_in_bounded_memory_and_not_after_an_event(scene: Scene) -> None:
    early = Dispatcher(scene.replies.append, Console(scene.write))
    assert early.pass_early(read([request("ping", 3, text="x" * MAX_EARLY_BYTES)]), 0) is None
    early.post(lambda session: session.close_input("the server has closed its input"))
    assert early.pass_early(read([PING]), 0) is None


def test_only_one_thread_at_a_time_can_use_the_session_or_the_store(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[tuple[str, bool]] = []
    others: list[Thread] = []

    def watch(owner: object, name: str) -> None:
        use = getattr(owner, name)

        def watched(*args: object, **options: object) -> object:
            if current_thread() not in others:
                other = Thread(target=scene.dispatcher.dispatch, args=(lambda _: None,))
                others.append(other)
                other.start()
                other.join(0.01)
                used.append((name, other.is_alive()))
            return use(*args, **options)

        monkeypatch.setattr(owner, name, watched)

    for name in ("judge", "decided", "output", "server_wrote", "take_outcomes", "server_exited"):
        watch(scene.session, name)
    watch(scene.store, "decide")
    scene.client(CALL)
    scene.client(PING, request("ping", 3))
    scene.unread.add(ANSWER, awaits_answers=True)
    scene.dispatcher.read_answers()
    scene.dispatcher.record(0)
    scene.dispatcher.last_answers("server exited with status 1")
    assert len({name for name, _ in used}) == 7
    assert all(other_waits for _, other_waits in used)
    for other in others:
        other.join()


def test_answers_are_read_as_soon_as_there_is_a_session(scene: Scene) -> None:
    early = Dispatcher(scene.replies.append, Console(scene.write))
    early.unread.add(ANSWER, awaits_answers=True)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(early.read_answers)
        with pytest.raises(TimeoutError):
            reading.result(0.05)
        early.begin(scene.session, scene.store)
        assert reading.result(30)


def test_posting_does_not_wait_and_posted_events_are_dispatched_before_the_next_event(scene: Scene) -> None:
    def change(_: Session) -> None:
        scene.dispatcher.post(lambda session: session.change_policy(parse('[[rule]]\ntool = "x"\nlimit = "deny"\n')))
        scene.dispatcher.post(lambda session: session.change_policy(PolicyError("broken")))

    scene.dispatcher.dispatch(change)  # while no other thread can use the session
    assert [entry.record["decision"] for entry in scene.store.entries()] == []
    assert scene.client(CALL) == b""
    assert [entry.record["decision"] for entry in scene.store.entries()] == ["policy", "policy", "denied"]


def test_a_quiet_console_has_only_errors(scene: Scene) -> None:
    scene.dispatcher.post(lambda session: session.change_policy(parse("mode = 'observe'")))
    scene.dispatcher.post(lambda session: session.change_policy(PolicyError("broken")))
    scene.client(CALL)
    assert os.read(scene.stderr, 4096) == b"mcpguard: policy not applied: broken\n"


def test_the_servers_output_is_read_before_it_is_checked_for_missing_answers(scene: Scene) -> None:
    assert not scene.dispatcher.awaits_answers()
    scene.client(CALL)
    assert scene.dispatcher.awaits_answers()
    scene.unread.add(ANSWER, awaits_answers=True)
    assert not scene.dispatcher.awaits_answers()


def test_a_shutdown_does_not_wait_for_a_store_that_hangs(scene: Scene) -> None:
    hangs, goes_on = Event(), Event()

    def hang(_: Session) -> None:
        hangs.set()
        assert goes_on.wait(30)

    with ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(scene.dispatcher.dispatch, hang)
        assert hangs.wait(30)
        assert scene.dispatcher.awaits_answers()
        goes_on.set()
        hanging.result()


def test_requests_answered_by_the_servers_last_bytes_are_not_answered_again(scene: Scene) -> None:
    scene.client(CALL, request("ping", 2), request("ping", 3))
    scene.unread.add(ANSWER, awaits_answers=True)
    scene.unread.add(b'{"jsonrpc":"2.0","id":2,"result":{}}', awaits_answers=True)  # unterminated
    last = scene.dispatcher.last_answers("server exited with status 1")
    assert (last.count(b"\n"), b'"id":3,' in last) == (1, True)
    assert scene.dispatcher.last_answers("again") == b""


def test_a_client_that_has_left_gets_no_last_answers(scene: Scene) -> None:
    scene.client(CALL)
    scene.dispatcher.client_left()
    assert scene.dispatcher.last_answers("server exited with status 1") == b""


def test_a_request_that_uses_the_id_of_an_answered_one_again_is_in_flight_until_its_own_answer(scene: Scene) -> None:
    for line in (CALL, request("ping", 1), CALL):
        scene.client(line)
        scene.unread.add(ANSWER, awaits_answers=True)
    scene.client(CALL)
    scene.dispatcher.record(0)
    assert [entry.record.get("outcome") for entry in scene.store.entries()] == ["ok", "ok", None]
    assert scene.dispatcher.last_answers("server exited with status 1").count(b"\n") == 1


def test_a_bug_in_reading_an_answer_is_reported_and_later_ones_are_read(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.client(CALL, call_line("x", 2))
    with monkeypatch.context() as patched:
        patched.setattr(answers, "read", lambda *_: 1 / 0)
        scene.unread.add(ANSWER, awaits_answers=True)
        scene.dispatcher.read_answers()
    assert b"internal error, please report it: ZeroDivisionError" in os.read(scene.stderr, 4096)
    scene.unread.add(ANSWER.replace(b'"id":1', b'"id":2'), awaits_answers=True)
    scene.dispatcher.read_answers()
    assert scene.dispatcher.last_answers("server exited with status 1").count(b"\n") == 1


def test_a_call_is_judged_without_its_note_if_the_store_fails(scene: Scene) -> None:
    scene.store.failure = StoreUnavailable("it is away")
    assert scene.client(call_line("x", 1, _meta={"callId": "t1", "sessionId": "s"}))
    assert [entry.record["agent"] for entry in scene.store.entries()] == ["unknown::interactive::default"]


def test_outcomes_that_cannot_be_recorded_are_dropped_silently(scene: Scene) -> None:
    scene.client(CALL)
    scene.unread.add(ANSWER, awaits_answers=True)
    scene.dispatcher.read_answers()
    scene.store.failure = StoreUnavailable("it is away")
    scene.dispatcher.record(0)
    assert not scene.session.has_outcomes


def test_calls_and_refused_lines_are_answered_if_the_store_fails(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise StoreUnavailable("it is away")

    monkeypatch.setattr(scene.store, "decide", fail)
    monkeypatch.setattr(scene.store, "append", fail)
    assert scene.client(CALL, b"not json") == b""
    assert b'"code":503' in scene.replies[0]
    assert b"-32700" in scene.replies[0]


# The queue of answers


FRAME = b'{"id":1,"result":{}}\n'


def lines(unread: AnswersQueue) -> list[bytes]:
    return [line.frame.rstrip(b"\n") for found, _ in unread.take() for line in found]


def test_a_chunk_is_kept_until_it_is_taken_unless_it_has_whole_frames_and_no_request_is_in_flight() -> None:
    unread = AnswersQueue()
    assert not unread.add(FRAME, awaits_answers=False)
    assert unread.size_bytes == 0
    assert unread.add(FRAME, awaits_answers=True)
    assert unread.size_bytes == len(FRAME)
    assert lines(unread) == [FRAME[:-1]]
    assert (unread.size_bytes, lines(unread)) == (0, [])


@pytest.mark.parametrize("cut", range(1, len(FRAME) - 1))
def test_all_parts_of_a_frame_are_kept(cut: int) -> None:
    unread = AnswersQueue()
    assert unread.add(FRAME[:cut], awaits_answers=False)
    assert unread.add(FRAME[cut:], awaits_answers=False)
    assert lines(unread) == [FRAME[:-1]]
    assert unread.add(FRAME[:cut], awaits_answers=False)
    assert lines(unread) == []
    assert unread.add(FRAME[cut:], awaits_answers=False)
    assert lines(unread) == [FRAME[:-1]]


def test_the_end_of_a_frame_is_kept_even_if_it_comes_while_the_start_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    unread = AnswersQueue()
    unread.add(FRAME[:5], awaits_answers=True)
    feed = AnswerLines.feed

    def feed_slowly(answer_lines: AnswerLines, chunk: bytes) -> list[Line]:
        if chunk == FRAME[:5]:
            assert unread.add(FRAME[5:], awaits_answers=False)
        return feed(answer_lines, chunk)

    monkeypatch.setattr(AnswerLines, "feed", feed_slowly)
    assert lines(unread) == [FRAME[:-1]]


class InterruptedChunk(bytes):
    """A chunk that is taken, as by another thread, when its length is first asked for."""

    unread: AnswersQueue | None = None

    def __len__(self) -> int:
        unread, self.unread = self.unread, None
        if unread:
            list(unread.take())
        return super().__len__()


def test_the_bytes_held_are_exact_although_a_chunk_is_taken_while_it_is_added() -> None:
    chunk = InterruptedChunk(FRAME)
    chunk.unread = unread = AnswersQueue()
    unread.add(chunk, awaits_answers=True)
    assert unread.size_bytes == 0


def test_an_unterminated_answer_at_the_end_of_the_stream_is_the_last_one() -> None:
    unread = AnswersQueue()
    unread.add(FRAME[:-1], awaits_answers=True)
    assert lines(unread) == []
    assert unread.last() == [Line(FRAME[:-1], True)]


def test_about_as_many_bytes_are_taken_as_asked_for() -> None:
    unread = AnswersQueue()
    for _ in range(5):
        unread.add(FRAME, awaits_answers=True)
    assert len(list(unread.take(len(FRAME) + 1))) == 2
    assert unread.size_bytes == 3 * len(FRAME)
    assert len(list(unread.take())) == 3
