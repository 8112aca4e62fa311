import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from stat import S_ISCHR
from threading import Event
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mcpguard.errors import PolicyError
from mcpguard.identity.caller import Identity
from mcpguard.policy.model import Policy
from mcpguard.policy.parse import parse
from mcpguard.relay import guard, upstream
from mcpguard.relay.console import Console
from mcpguard.relay.output import MAX_QUEUED_BYTES, ClientOutput
from mcpguard.relay.process import ServerProcess
from mcpguard.relay.readiness import ServerInput
from mcpguard.relay.traffic import Ended, Traffic
from mcpguard.relay.upstream import LOOP_TIMEOUTS, LoopTimeouts, Upstream
from mcpguard.session.decision_requests import DecisionRequests
from mcpguard.session.journal import Journal
from mcpguard.session.machine import Session
from mcpguard.session.verdict import DecisionRequest, Verdict
from mcpguard.stores.memory import MemoryStore
from mcpguard.wire.frames import Frame, MessageReader
from tests.build import raising
from tests.end_to_end.host import has_bytes, release, until
from tests.relay.conftest import made

ALICE = Identity("alice", "config", "crm")

LOOPS = ("mcpguard-upstream", "mcpguard-downstream", "mcpguard-bookkeeper")
"""The names of the threads of the traffic."""

TWO_AN_HOUR = parse('[[rule]]\ntool = "*"\nlimit = "2/1h"\n')
CLOSED = parse('[[rule]]\ntool = "*"\nlimit = "deny"\n')


class PolicyFile:
    """A policy file that changes when the test says so."""

    def __init__(self) -> None:
        self.changed: Policy | PolicyError | None = None

    def poll(self) -> Policy | PolicyError | None:
        changed, self.changed = self.changed, None
        return changed


class Store(MemoryStore):
    """A memory store that fails with its `failure`, and notes in `early` whether the server had bytes before each decision."""

    def __init__(self, server_reads: int) -> None:
        super().__init__()
        self.server_reads = server_reads
        self.failure: Exception | None = None
        self.early: list[bool] = []

    def decide(self, requests: Sequence[DecisionRequest], journal: Journal) -> list[Verdict]:
        self.early.append(has_bytes(self.server_reads))
        if self.failure:
            raise self.failure
        return super().decide(requests, journal)


class Output(ClientOutput):
    """The client's side. Clear `go_on` to hold the downstream loop after it has written to the client."""

    def __init__(self, fd: int, gone: Callable[[], None]) -> None:
        super().__init__(fd, gone)
        self.go_on = Event()
        self.go_on.set()

    def relay(self, chunk: bytes, observe: Callable[[bytes], None]) -> None:
        super().relay(chunk, observe)
        assert self.go_on.wait(30)


class Line:
    """The traffic of a session, with the test at all ends: the client's, the server's and the console's."""

    def __init__(self, *, guards: bool = True, timeouts: LoopTimeouts = LOOP_TIMEOUTS) -> None:
        source, self.to_guard = os.pipe()
        self.source = source
        self.from_guard, client_write = os.pipe()
        self.server_reads, server_stdin = os.pipe()
        server_stdout, self.server_writes = os.pipe()
        self.console, console = os.pipe()
        events: dict[Ended, Event] = {"input": Event(), "server": Event(), "answers": Event()}
        self.client_ended, self.server_ended, self.answered = events.values()
        self.store = Store(self.server_reads)
        self.session: Session
        self.policy = PolicyFile()
        self.is_guarded = False
        self._fds = [
            source, self.to_guard, self.from_guard, client_write, self.server_reads, server_stdout, self.server_writes,
            self.console, console,
        ]  # fmt: skip
        self.output = Output(client_write, self.client_ended.set)
        self.server = SimpleNamespace(stdin=ServerInput(server_stdin), stdout=server_stdout)
        self.traffic = Traffic(
            cast(ServerProcess, self.server),
            self.output,
            Console(console),
            lambda what: events[what].set(),
            source=source,
            timeouts=timeouts,
        )
        self.traffic.start()
        if guards:
            self.guard()

    def guard(self, policy: Policy = TWO_AN_HOUR, token: Any = None) -> None:
        self.is_guarded = True
        self.session = Session(ALICE, policy, Journal("0" * 16))
        self.session.start()
        self.traffic.guard(self.session, self.store, cast(Any, self.policy), token)

    def rows(self) -> dict[object, object]:
        """The decisions in the audit, by request id."""
        found = [entry.record for entry in self.store.entries()]
        return {one["request_id"]: one["decision"] for one in found if "request_id" in one}

    def answer(self, request_id: int) -> None:
        """Let the server answer a request."""
        os.write(self.server_writes, json.dumps({"jsonrpc": "2.0", "id": request_id, "result": {}}).encode() + b"\n")

    def send(self, *messages: dict[str, Any]) -> None:
        os.write(self.to_guard, b"".join(json.dumps(message).encode() + b"\n" for message in messages))

    def server_has(self, messages: int = 1) -> list[dict[str, Any]]:
        """The server's next messages: at least so many."""
        return _read(self.server_reads, messages)

    def client_has(self, messages: int = 1) -> list[dict[str, Any]]:
        """The client's next messages: at least so many."""
        return _read(self.from_guard, messages)

    def codes(self, messages: int = 1) -> list[tuple[object, int | None]]:
        """The same, as ids and the codes of errors."""
        return [(one["id"], one.get("error", {}).get("code")) for one in self.client_has(messages)]

    def errors(self, messages: int = 1) -> list[tuple[object, int, str]]:
        """The same, which are errors, as ids, codes and texts."""
        return [(one["id"], one["error"]["code"], one["error"]["message"]) for one in self.client_has(messages)]

    def decisions(self) -> list[object]:
        """The decisions in the audit, oldest first."""
        return [entry.record["decision"] for entry in self.store.entries()]

    def close_server_input(self) -> None:
        os.close(self.server_reads)
        self._fds.remove(self.server_reads)
        self.store.server_reads = self.console  # instead of a closed descriptor

    def close_client(self, *, reads: bool = True) -> None:
        """End the client's input; unless it `reads` on, it is gone."""
        for fd in [self.to_guard] if reads else [self.to_guard, self.from_guard]:
            os.close(fd)
            self._fds.remove(fd)

    def notices_the_end(self) -> None:
        """Wait until it is noticed that the client has ended its input. By threads, that takes a moment."""
        until(lambda: bool(self.traffic.client_input.has_ended), "the end of the client's input is noticed")

    def notices_closed_input(self) -> None:
        """Wait until the server has been found to take nothing: then its input is the null device."""
        until(lambda: S_ISCHR(os.fstat(self.server.stdin.fd).st_mode), "the server has been found to take nothing")

    def close(self) -> None:
        loops = [thread for thread in threading.enumerate() if thread.name in LOOPS]
        self.output.go_on.set()
        if self.to_guard in self._fds:
            self.close_client()
        os.close(self.server_writes)
        self._fds.remove(self.server_writes)
        assert self.client_ended.wait(30)
        assert self.server_ended.wait(30)
        self.traffic.answer_rest("over")
        assert self.answered.wait(30)
        self.traffic.bookkeeper.finish(30)
        for thread in loops:  # one that still has to close a descriptor would close the next test's
            thread.join()
        for fd in self._fds:
            os.close(fd)
        release(self.server.stdin)


def _read(fd: int, messages: int) -> list[dict[str, Any]]:
    data = b""
    while data.count(b"\n") < messages or not data.endswith(b"\n"):
        assert has_bytes(fd, 30), f"no more comes after {data!r}"
        data += os.read(fd, 1 << 16)
    return [json.loads(line) for line in data.splitlines()]


@pytest.fixture
def line(request: pytest.FixtureRequest) -> Iterator[Line]:
    one = Line(**getattr(request, "param", {}))
    yield one
    one.close()


def call(request_id: int, name: str = "search", **params: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": request_id, "method": "tools/call", "params": {"name": name, **params}}


PING = {"jsonrpc": "2.0", "id": "ping", "method": "ping"}


def test_the_store_decides_before_the_server_gets_a_byte(line: Line) -> None:
    line.send(PING, call(1), call(2), call(3))
    assert line.server_has(3) == [PING, call(1), call(2)]
    assert line.store.early == [False]
    assert line.codes() == [(3, 429)]


def test_a_last_line_without_an_end_is_judged(line: Line) -> None:
    line.send(call(1), call(2))
    os.write(line.to_guard, json.dumps(call(3)).encode())
    line.close_client()
    assert line.server_has(2) == [call(1), call(2)]
    assert line.codes() == [(3, 429)]


@pytest.fixture
def unguarded() -> Iterator[Line]:
    one = Line(guards=False)
    yield one
    if not one.is_guarded:
        one.guard()  # else the traffic would not end
    one.close()


def test_the_session_is_told_what_passed_before_it_was_loaded(unguarded: Line) -> None:
    unguarded.send({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {"clientInfo": {"name": "zed"}}})
    unguarded.send(PING)
    assert [message["id"] for message in unguarded.server_has(2)] == [0, "ping"]
    unguarded.answer(0)
    assert [message["id"] for message in unguarded.client_has()] == [0]
    assert not list(unguarded.store.entries())
    unguarded.guard()
    assert unguarded.session.requests.client_name == "zed"
    unguarded.close_client()
    assert unguarded.client_ended.wait(30)
    unguarded.traffic.dispatcher.read_answers()
    assert [*unguarded.session.in_flight.by_id] == ["ping"]


def test_what_the_server_did_not_take_before_the_policy_is_answered(unguarded: Line) -> None:
    unguarded.close_server_input()
    unguarded.send(PING)
    unguarded.notices_closed_input()
    unguarded.send({**PING, "id": 2})
    unguarded.guard()
    assert unguarded.errors(2) == [(request_id, -32000, "the server has closed its input") for request_id in ("ping", 2)]


def test_the_exit_of_a_server_that_takes_nothing_is_awaited_once_the_policy_is_loaded() -> None:
    """An exit is noticed only after that."""
    told: list[str] = []
    chunks = [b'{"jsonrpc":"2.0","id":1,"method":"ping"}\n', b""]
    server: Any = SimpleNamespace(stdin=SimpleNamespace(write=raising(BrokenPipeError()), close=lambda: None))
    dispatcher: Any = SimpleNamespace(
        session=None,
        is_guarding=SimpleNamespace(is_set=lambda: False, wait=lambda: told.append("guarded")),
        pass_early=lambda messages, _: messages[0].raw + b"\n",
        dispatch=lambda _: told.append("answered"),
        post=lambda _: None,
        client_left=lambda: None,
    )
    shut_down: Any = SimpleNamespace(wait=lambda _: told.append("has not exited"))
    output: Any = SimpleNamespace(queued_bytes=0)
    client: Any = SimpleNamespace(read=lambda: chunks.pop(0), has_ended=False)
    others = {"read_ahead": lambda: False, "shut_down": shut_down, "client_input": client, "timeouts": LOOP_TIMEOUTS}
    Upstream(server, dispatcher, output, Console(), **others).run(lambda: None)
    assert told == ["guarded", "has not exited", "answered"]


def test_after_a_bug_messages_are_answered_once_the_policy_is_loaded(unguarded: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(unguarded.traffic.dispatcher, "pass_early", fail)
    unguarded.send(PING)
    assert b"ZeroDivisionError" in os.read(unguarded.console, 4096)
    unguarded.guard()
    assert unguarded.codes() == [("ping", 503)]


def test_a_call_waits_until_the_policy_is_loaded(unguarded: Line) -> None:
    unguarded.send(PING)
    unguarded.server_has()
    unguarded.send(call(1))
    assert not has_bytes(unguarded.server_reads)
    unguarded.guard()
    assert unguarded.server_has() == [call(1)]
    assert unguarded.decisions() == ["policy", "allowed"]


def test_a_message_that_comes_while_the_guard_is_set_waits_for_it(unguarded: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    dispatcher, taken = unguarded.traffic.dispatcher, Event()
    pass_early, judge, begin = dispatcher.pass_early, dispatcher.judge, dispatcher.begin

    def noted(take: Callable[..., Any], *args: Any, **more: Any) -> Any:
        try:
            return take(*args, **more)
        finally:
            taken.set()

    def begin_late(*args: Any) -> None:
        unguarded.send(PING)
        assert taken.wait(30)
        begin(*args)

    monkeypatch.setattr(dispatcher, "pass_early", partial(noted, pass_early))
    monkeypatch.setattr(dispatcher, "judge", partial(noted, judge))
    monkeypatch.setattr(dispatcher, "begin", begin_late)
    unguarded.guard()
    assert unguarded.server_has() == [PING]


def test_the_first_refusal_waits_and_has_the_row_of_the_policy_before_it(unguarded: Line) -> None:
    unguarded.send({"jsonrpc": "2.0", "id": 1, "method": 7})
    unguarded.guard()
    until(lambda: unguarded.decisions() == ["policy", "invalid"], "both rows")


def test_a_new_policy_is_in_force_and_recorded_before_the_next_call(line: Line) -> None:
    line.policy.changed = CLOSED
    line.send(call(1))
    assert line.codes() == [(1, 403)]
    line.policy.changed = PolicyError("line 3: broken")
    line.send(call(2))
    assert line.codes() == [(2, 403)]
    told = [(entry.record["decision"], entry.record.get("reason")) for entry in line.store.entries()]
    assert told[:3] == [("policy", "in force at the start"), ("policy", "applied"), ("denied", None)]
    assert ("policy", "not applied: line 3: broken") in told[3:]  # the second denial shares the first one's row
    lines = os.read(line.console, 4096).decode().splitlines()
    assert lines[0] == "mcpguard: policy applied"
    assert "mcpguard: policy not applied: line 3: broken" in lines


def test_after_a_bug_the_calls_are_answered_the_bug_is_reported_and_everything_else_passes(line: Line) -> None:
    line.store.failure = ZeroDivisionError("a bug")
    notification = {"jsonrpc": "2.0", "method": "notifications/x"}
    line.send(PING, call(1), notification, call(2))
    assert line.codes(2) == [(1, 503), (2, 503)]
    assert line.server_has(2) == [PING, notification]
    assert b"internal error, please report it: ZeroDivisionError('a bug')" in os.read(line.console, 4096)
    line.store.failure = None
    line.send(call(1))
    assert line.server_has() == [call(1)]


def fails_on(name: str, make: Callable[..., DecisionRequest]) -> Callable[..., DecisionRequest]:
    """Like the function that makes the request for a call, but with a bug in it for one tool."""

    def made(requests: DecisionRequests, frame: Frame, *rest: Any) -> DecisionRequest:
        if frame.tool == name:
            raise RecursionError("a bug")
        return make(requests, frame, *rest)

    return made


def test_a_bug_in_judging_one_call_concerns_no_other_and_no_held_call(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    line.policy.changed = parse('[[rule]]\ntool = "search"\nconcurrent = 1\nwait = "60s"\n')
    line.send(call(1), call(2))  # the second waits
    assert line.server_has() == [call(1)]
    with monkeypatch.context() as patched:
        patched.setattr(DecisionRequests, "of_call", fails_on("odd", DecisionRequests.of_call))
        other = call(4, "other")
        line.send(PING, call(3, "odd"), other, call(5))
        assert line.codes() == [(3, 503)]
        assert line.server_has(2) == [PING, other]
    for ended, following in ((1, 2), (2, 5)):
        line.answer(ended)
        assert line.server_has() == [call(following)]
    until(lambda: 3 in line.rows(), "the call that was not judged has a row")
    assert line.rows() == {1: "allowed", 2: "allowed", 3: "unavailable", 4: "allowed", 5: "allowed"}


def test_a_bug_in_deciding_one_of_many_held_calls_drops_that_call_only(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    line.policy.changed = parse('[[rule]]\ntool = "*"\nconcurrent = 1\nwait = "60s"\n')
    line.send(call(3), call(1, "odd"), call(4), call(2, "odd"), call(5))
    assert line.server_has(2) == [call(3), call(1, "odd")]
    monkeypatch.setattr(DecisionRequests, "of_call", fails_on("odd", DecisionRequests.of_call))
    line.policy.changed = parse('mode = "enforce"')  # now all of them are due
    line.send(call(6, "other"))
    assert line.codes() == [(2, 503)]
    assert line.server_has(3) == [call(4), call(5), call(6, "other")]
    until(lambda: 2 in line.rows(), "the dropped call has a row")
    assert line.rows() == {at: "rate_limited" if at == 2 else "allowed" for at in range(1, 7)}


def ask_for_input(line: Line) -> None:
    """Let the server answer a call by asking for more input. The client receives that before the session reads it."""
    line.output.go_on.clear()
    line.send(call(1))
    line.server_has()
    asks = {"jsonrpc": "2.0", "id": 1, "result": {"resultType": "input_required", "requestState": "s"}}
    os.write(line.server_writes, json.dumps(asks).encode() + b"\n")
    assert line.client_has() == [asks]


def test_a_retry_that_the_server_asked_for_is_free_however_soon_it_follows(line: Line) -> None:
    ask_for_input(line)
    retry = call(2, requestState="s")
    line.send(retry)
    assert line.server_has() == [retry]
    line.output.go_on.set()
    line.send(call(3), call(4))
    assert line.server_has() == [call(3)]
    assert line.codes() == [(4, 429)]


def test_the_note_of_each_call_with_an_id_is_looked_up(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def take_note(_: str, key: str) -> str:
        asked.append(key)
        return ""

    monkeypatch.setattr(line.store, "take_note", take_note)
    line.send(call(1), call(2, arguments={"_meta": {"claudecode/toolUseId": "t0"}}), PING)
    line.server_has()
    assert asked == []
    line.send(*(call(at, _meta={"callId": f"t{at}", "sessionId": "s"}) for at in (3, 4)))
    line.client_has()
    assert asked == ["s t3", "s t4"]


class Token:
    """A source of the identity that notes whether it is polled for a call."""

    def __init__(self) -> None:
        self.asked: list[bool] = []

    def poll(self, *, for_call: bool) -> Identity | None:
        self.asked.append(for_call)
        return None


def test_the_identity_is_polled_for_a_call_in_any_spelling(unguarded: Line) -> None:
    token = Token()
    unguarded.guard(token=token)
    for message in (b'{"id":1,"method":"tools\\/call","params":{"name":"x"}}', b'[{"id":2,"method":"ping"}]'):
        os.write(unguarded.to_guard, message + b"\n")
        unguarded.server_has()
    assert token.asked == [True, False]


def test_the_end_of_the_clients_input_does_not_wait_for_keys(unguarded: Line) -> None:
    token = Token()
    unguarded.guard(token=token)
    unguarded.close_client()
    assert unguarded.client_ended.wait(30)
    assert token.asked == []


def test_a_call_that_is_answered_before_it_is_cancelled_has_the_outcome_of_its_answer(line: Line) -> None:
    line.send(call(1))
    line.server_has()
    line.answer(1)
    line.client_has()
    line.send({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}})
    until(lambda: [entry.record.get("outcome") for entry in line.store.entries()] == [None, "ok"], "the outcome")


@pytest.mark.posix
def test_the_clients_messages_are_read_from_a_non_blocking_descriptor(line: Line) -> None:
    os.set_blocking(line.source, False)
    for request_id in (1, 2):
        line.send(call(request_id))
        assert [one["id"] for one in line.server_has()] == [request_id]


@pytest.mark.posix
def test_a_long_frame_is_not_copied_whenever_the_server_takes_a_piece(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[int] = []
    write = os.write

    def written(fd: int, data: bytes) -> int:
        if fd == line.server.stdin.fd and isinstance(data, bytes):
            copied.append(len(data))
        return write(fd, data)

    monkeypatch.setattr(os, "write", written)
    note = {"jsonrpc": "2.0", "method": "note", "params": {"text": "x" * 1_000_000}}
    line.send(note)
    assert line.server_has() == [note]
    assert sum(copied) < 2_000_000


def test_a_client_that_has_left_gets_no_answer_in_the_servers_place_though_its_messages_are_read_later(unguarded: Line) -> None:
    unguarded.traffic.upstream.close_input("the server has closed its output")
    unguarded.send(call(1))
    unguarded.close_client()
    unguarded.notices_the_end()
    unguarded.guard()
    assert unguarded.client_ended.wait(30)
    assert not has_bytes(unguarded.from_guard)


def test_a_client_that_is_gone_is_noticed_during_backpressure(line: Line) -> None:
    os.write(line.server_writes, b"an open frame")
    assert os.read(line.from_guard, 100) == b"an open frame"
    line.output.reply(b"r" * (MAX_QUEUED_BYTES + 1))
    line.send(PING)
    line.server_has()
    line.close_client(reads=False)
    assert line.client_ended.wait(30)


@made("line", timeouts=LoopTimeouts(exit_s=0.0))
def test_requests_that_the_server_does_not_take_and_later_requests_are_answered(line: Line) -> None:
    line.close_server_input()
    line.send(call(1), PING)
    line.send(call(2))
    assert line.errors(3) == [(request_id, -32000, "the server has closed its input") for request_id in (1, "ping", 2)]


@made("line", timeouts=LoopTimeouts(exit_s=1000.0))
def test_requests_that_an_exiting_server_does_not_take_get_its_status(line: Line) -> None:
    line.close_server_input()
    line.send(call(1))
    line.notices_closed_input()
    line.traffic.answer_rest("server exited with status 3")
    assert line.errors() == [(1, -32000, "server exited with status 3")]


@made("line", guards=False, timeouts=LoopTimeouts(judged_s=1000.0))
@pytest.mark.parametrize("messages", [[call(1)], [call(1), PING]])
def test_what_came_while_the_policy_was_loaded_is_answered_if_the_server_has_exited_since(
    line: Line, monkeypatch: pytest.MonkeyPatch, messages: list[dict[str, Any]]
) -> None:
    looked = Event()  # the end of the session looks whether everything is judged

    def look(wait_s: float) -> None:
        looked.set()
        time.sleep(wait_s)

    monkeypatch.setattr(upstream, "time", SimpleNamespace(monotonic=time.monotonic, sleep=look))
    monkeypatch.setattr(line.policy, "poll", lambda: None if looked.wait(30) else pytest.fail("it does not look"))
    for message in messages:
        line.send(message)
    line.guard()
    line.traffic.upstream.close_input("server exited with status 3")
    line.traffic.answer_rest("server exited with status 3")
    told = [(message["id"], -32000, "server exited with status 3") for message in messages]
    assert line.errors(len(messages)) == told
    assert line.decisions() == ["policy", "unavailable"]


@made("line", timeouts=LoopTimeouts(judged_s=0.0))
def test_the_end_of_a_session_does_not_wait_long_for_what_cannot_be_judged(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    judging = Event()

    def poll() -> None:
        judging.set()
        line.answered.wait(30)

    monkeypatch.setattr(line.policy, "poll", poll)
    line.send(call(1))
    assert judging.wait(30)
    line.traffic.answer_rest("server exited with status 3")
    assert line.answered.wait(30)


@made("line", timeouts=LoopTimeouts(judged_s=1000.0))
def test_the_end_of_a_session_does_not_wait_for_a_client_that_has_left(line: Line) -> None:
    line.close_client()
    assert line.client_ended.wait(30)
    line.traffic.answer_rest("server exited with status 3")
    assert line.answered.wait(30)


ONE_AT_ONCE = parse('[[rule]]\ntool = "*"\nconcurrent = 1\nwait = "1h"\n')


@pytest.fixture
def one_at_once() -> Iterator[Line]:
    """A line on which one call is in flight, and another waits for its end."""
    one = Line(guards=False, timeouts=LoopTimeouts(stuck_s=0.3))
    one.guard(ONE_AT_ONCE)
    one.send(call(1))
    assert one.server_has() == [call(1)]
    one.send(call(2))
    until(lambda: one.session.held.next_us is not None, "the second call is held")
    yield one
    one.close()


def test_a_held_call_is_forwarded_when_its_place_is_free_though_the_client_writes_nothing(one_at_once: Line) -> None:
    one_at_once.answer(1)
    assert one_at_once.server_has() == [call(2)]
    one_at_once.answer(2)
    assert one_at_once.codes(2) == [(1, None), (2, None)]


def test_a_place_is_free_before_the_client_gets_the_answer(one_at_once: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    early: list[bool] = []
    monkeypatch.setattr(one_at_once.store, "settle", lambda _: early.append(has_bytes(one_at_once.from_guard)))
    one_at_once.answer(1)
    assert [message["id"] for message in one_at_once.client_has()] == [1]
    assert early == [False]


def test_a_new_policy_ends_a_held_call_though_the_client_writes_nothing(one_at_once: Line) -> None:
    one_at_once.policy.changed = CLOSED
    assert one_at_once.codes() == [(2, 403)]


LONG: dict[str, Any] = {**PING, "params": {"padding": "x" * 200_000}}
"""More than a pipe holds."""


@pytest.fixture
def full(one_at_once: Line) -> Line:
    """The same line, whose server takes no input."""
    one_at_once.send(LONG)
    until(lambda: has_bytes(one_at_once.server_reads), "the server's input is full")
    return one_at_once


def test_a_held_call_is_decided_though_the_server_takes_no_input(full: Line) -> None:
    full.policy.changed = CLOSED
    assert full.codes() == [(2, 403)]
    assert full.server_has() == [LONG]


@pytest.fixture
def two_to_come(full: Line) -> Line:
    """The same line, whose server has a long message and the call that was held to come."""
    full.policy.changed = parse('mode = "enforce"')
    until(lambda: full.session.held.next_us is None, "the second call is admitted")
    return full


def test_a_held_call_that_is_admitted_while_the_server_takes_no_input_comes_next(two_to_come: Line) -> None:
    assert two_to_come.server_has(2) == [LONG, call(2)]


def test_a_held_call_that_was_admitted_while_the_server_took_no_input_is_answered_if_it_never_does(two_to_come: Line) -> None:
    two_to_come.close_server_input()
    assert two_to_come.codes(2) == [("ping", -32000), (2, -32000)]


def test_a_held_call_whose_client_has_left_is_not_decided_while_the_server_takes_no_input(full: Line) -> None:
    full.close_client(reads=False)
    full.notices_the_end()
    full.policy.changed = parse('mode = "enforce"')
    assert full.client_ended.wait(30)
    assert full.policy.changed is not None
    assert [*full.session.in_flight.by_id] == ["1", "ping"]


def test_a_held_call_is_answered_when_the_server_has_closed_its_input(one_at_once: Line) -> None:
    one_at_once.close_server_input()
    one_at_once.answer(1)
    assert sorted(one_at_once.codes(2)) == [(1, None), (2, -32000)]


def test_after_a_bug_in_judging_held_calls_they_are_answered(one_at_once: Line) -> None:
    one_at_once.store.failure = ZeroDivisionError("a bug")
    assert one_at_once.codes() == [(2, 503)]
    assert b"internal error, please report it: ZeroDivisionError('a bug')" in os.read(one_at_once.console, 4096)


def test_a_held_call_ends_with_its_client_and_is_not_forwarded(one_at_once: Line) -> None:
    one_at_once.close_client()
    assert one_at_once.client_ended.wait(30)
    one_at_once.answer(1)
    assert os.read(one_at_once.server_reads, 100) == b"", "the server's input has ended"


CALL = b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"search","arguments":{"query":"x"}}}'


def test_after_the_rehearsal_the_first_call_compiles_no_pattern(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = parse('[[rule]]\ntool = "se*"\nlimit = "1/1h"\n')
    re.purge()
    guard.rehearse(ALICE, policy)
    session, compiled = Session(ALICE, policy, Journal("")), []
    monkeypatch.setattr("re._compiler.compile", lambda *pattern: compiled.append(pattern))
    assert session.judge(MessageReader().read([CALL]), 0)
    assert not compiled


def test_a_rehearsal_without_a_policy_judges_nothing() -> None:
    guard.rehearse(ALICE, PolicyError("broken"))
