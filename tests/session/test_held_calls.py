"""Held calls: calls that wait until their limits have room."""

import json
from collections.abc import Callable, Sequence

import pytest

from mcpguard.errors import Unauthenticated
from mcpguard.session.held_calls import LOOK_US, MAX_WAITING, MAX_WAITING_BYTES, HeldCall
from mcpguard.session.in_flight import MAX_IN_FLIGHT_CHARS
from mcpguard.session.journal import Journal
from mcpguard.session.verdict import DecisionRequest, Verdict
from mcpguard.wire.frames import read
from tests.build import Talk, call_line, cancel, request
from tests.callers import Caller

RATE = '[[rule]]\ntool = "search"\nlimit = "1/2s"\nwait = "5s"\n'
CAP_AT_ONCE = '[[rule]]\ntool = "browse"\nconcurrent = 1\n'
CAP = CAP_AT_ONCE + 'wait = "5s"\n'
BATCH = '[[rule]]\ntool = "search"\nlimit = "4/2s"\ncount = "cost"\nwait = "5s"\n[[cost]]\ntool = "search"\ncost = 2\n'


def decisions(talk: Talk) -> list[tuple[object, object]]:
    return [(record["request_id"], record["decision"]) for record in talk.records]


def waiting(*request_ids: int, policy: str = RATE, tool: str = "search") -> Talk:
    """A conversation in which call 1 of a tool was forwarded, and calls with these ids wait."""
    talk = Talk(policy)
    assert talk.client_calls(tool, 1, *request_ids) == ["forwarded 1"]
    return talk


def test_a_refused_call_is_held_and_forwarded_when_there_is_room() -> None:
    talk = Talk(RATE)
    assert talk.client_calls("search", 1) == ["forwarded 1"]
    talk.time.pass_ms(500)
    assert talk.client_calls("search", 2) == []
    assert talk.pass_ms(1499) == []
    assert talk.pass_ms(1) == ["forwarded 2"]
    assert decisions(talk) == [(1, "allowed"), (2, "allowed")]
    assert "waited_ms" not in talk.records[0]
    assert talk.records[1]["waited_ms"] == 1500


def test_held_calls_go_first_come_first_served_and_other_calls_pass_them() -> None:
    talk = waiting(2, 3)
    assert talk.client_calls("other", 9) == ["forwarded 9"]
    assert talk.pass_ms(2000) == ["forwarded 2"]
    talk.time.pass_ms(1999)
    assert talk.client_calls("search", 4) == []
    talk.time.pass_ms(1)
    assert talk.client_calls("search", 5) == ["forwarded 3"], "the new call must not take the room of the one that waits"
    assert talk.pass_ms(2000) == ["forwarded 4"]


@pytest.mark.parametrize(
    ("limit", "wait", "first", "after_2_s"),
    [("4/2s", "5s", "large", ["forwarded 2", "forwarded 3"]), ("3/2s", "3s", "small", ["forwarded 2", "answered 3: 429"])],
    ids=["there is room for it", "it will have no room in time after that"],
)
def test_a_small_call_does_not_overtake_a_large_one_that_waits(limit: str, wait: str, first: str, after_2_s: list[str]) -> None:
    costs = f'limit = "{limit}"\ncount = "cost"\nwait = "{wait}"\n[[cost]]\ntool = "large"\ncost = 3\n'
    talk = Talk(f'[[rule]]\nuser = "*"\n{costs}')
    assert talk.client(call_line(first, 1), call_line("large", 2), call_line("small", 3)) == ["forwarded 1"]
    assert talk.pass_ms(2000) == after_2_s


def test_a_wait_that_cannot_be_enough_is_not_begun() -> None:
    talk = Talk(RATE)
    assert talk.client_calls("search", 1, 2, 3, 4) == ["forwarded 1", "answered 4: 429"]
    assert talk.to_client[-1]["error"]["data"]["retry_after_ms"] == 2000
    assert talk.pass_ms(5000) == ["forwarded 2", "forwarded 3"]
    longer = Talk('[[rule]]\ntool = "search"\nlimit = "1/6s"\nwait = "5s"\n')
    assert longer.client_calls("search", 1, 2) == ["forwarded 1", "answered 2: 429"]
    longer.time.pass_ms(1000)
    assert longer.client_calls("search", 3) == []
    assert longer.pass_ms(5000) == ["forwarded 3"]


def test_a_call_that_is_about_to_be_denied_takes_no_room_of_the_calls_before_it() -> None:
    talk = waiting(2, policy='[[rule]]\ntool = "search"\nlimit = "1/5s"\nwait = "5s"\n')
    talk.time.pass_ms(4999)
    decide = talk.store.decide

    def decide_slowly(requests: Sequence[DecisionRequest], journal: Journal) -> list[Verdict]:
        verdicts = decide(requests, journal)
        talk.time.pass_ms(1)  # so room comes between the first decision on call 3 and the second
        return verdicts

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(talk.store, "decide", decide_slowly)
        assert talk.client_calls("search", 3) == []
    assert talk.attend() == ["forwarded 2", "answered 3: 429"]


def test_a_call_is_held_only_if_every_limit_that_refuses_it_lets_it_wait() -> None:
    talk = Talk(RATE + '[[rule]]\nuser = "*"\nlimit = "1/2s"\n')
    assert talk.client_calls("search", 1, 2) == ["forwarded 1", "answered 2: 429"]


def test_a_call_that_found_no_room_in_its_time_is_denied_as_ever() -> None:
    talk, other = Talk(RATE), Talk(RATE, session="00000000000000bb")
    other.store, other.time = talk.store, talk.time
    talk.client_calls("search", 1)
    assert talk.client_calls("search", 2) == []
    for at in range(1, 3):
        talk.time.pass_ms(2000)
        assert other.client_calls("search", at) == [f"forwarded {at}"]
        assert talk.attend() == ([] if at == 1 else ["answered 2: 429"])
    assert talk.to_client[-1]["error"]["data"]["retry_after_ms"] == 2000
    (denial,) = [record for record in talk.records if record["decision"] == "rate_limited"]
    assert (denial["waited_ms"], denial["retry_after_ms"]) == (4000, 2000)


@pytest.mark.parametrize("same_read", [True, False])
def test_a_cancelled_call_is_dropped_without_an_answer_and_the_next_one_takes_its_turn(same_read: bool) -> None:
    talk = Talk(RATE)
    talk.client_calls("search", 1)
    lines = [call_line("search", 2), cancel(2), call_line("search", 3)]
    came_out = talk.client(*lines) if same_read else [one for line in lines for one in talk.client(line)]
    assert came_out == [], "the server does not know the call"
    assert talk.pass_ms(5000) == ["forwarded 3"]


def test_a_dropped_call_shares_no_row_with_denials() -> None:
    talk = Talk(RATE)
    talk.client_calls("search", 1, 2, 3, 4, 5)  # two wait, and two would have to wait too long
    talk.client(cancel(2), cancel(3))
    talk.record()
    talk.client_calls("search", 6, 7, 8)  # the same
    talk.client(cancel(6))
    talk.record()
    talk.wall.pass_s(1)
    talk.record()
    found = [(one["request_id"], one.get("reason"), one.get("repeats")) for one in talk.records]
    dropped = "cancelled while it waited"
    assert found == [(1, None, None), (4, None, None), (2, dropped, None), (8, None, 2), (6, dropped, 2)]


@pytest.mark.parametrize(
    ("drop", "why"),
    [
        (lambda talk: talk.client(cancel(2)), "cancelled while it waited"),
        (lambda talk: talk.client_leaves(), "the client left while it waited"),
        (lambda talk: talk.server_exits("server exited with status 1"), "the server ended while it waited"),
    ],
    ids=["cancelled", "client", "server"],
)
def test_the_row_of_a_dropped_call_tells_how_long_it_waited_and_would_wait(drop: Callable[[Talk], object], why: str) -> None:
    talk = waiting(2)
    talk.pass_ms(1500)
    drop(talk)
    talk.record()
    (record,) = [one for one in talk.records if one["request_id"] == 2]
    assert (record["reason"], record["waited_ms"]) == (why, 1500)
    assert record["retry_after_ms"] == 500


@pytest.mark.parametrize(("passed_ms", "left_ms"), [(20, 1980), (2500, 0)])
def test_the_row_of_a_dropped_call_tells_the_wait_for_each_limit_but_not_for_a_cap(passed_ms: int, left_ms: int) -> None:
    talk = waiting(2, policy=RATE + "concurrent = 1\n")
    talk.time.pass_ms(passed_ms)
    talk.client(cancel(2))
    talk.record()
    record = talk.records[-1]
    assert record["exceeded"] == [
        {"axis": "tool", "rule": "tool=search", "limit": 1, "window": "2s", "retry_after_ms": left_ms},
        {"axis": "tool", "rule": "tool=search", "limit": 1, "counts": "concurrent"},
    ]
    assert "retry_after_ms" not in record


@pytest.mark.parametrize(
    ("later", "code"),
    [
        (call_line("other", 2), -32600),
        (request("ping", 2), -32600),
        (request("ping", "2"), -32600),
        (b'{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":1}}', -32602),
    ],
    ids=["call", "ping", "ping with a text", "refused anyway"],
)
@pytest.mark.parametrize("same_read", [True, False])
def test_a_request_with_the_id_of_a_held_call_is_refused_and_it_waits_on(later: bytes, code: int, *, same_read: bool) -> None:
    talk = Talk(RATE)
    lines = [call_line("search", 1), call_line("search", 2)]
    came_out = talk.client(*lines, later) if same_read else [*talk.client(*lines), *talk.client(later)]
    assert came_out == ["forwarded 1", f"answered {json.loads(later)['id']}: {code}"]
    assert talk.pass_ms(2000) == ["forwarded 2"]


def test_after_the_client_has_left_no_call_is_held() -> None:
    talk = Talk(RATE)
    assert talk.client_leaves() == []
    assert talk.client_calls("search", 3, 4) == ["forwarded 3", "answered 4: 429"]


def test_held_calls_go_on_as_soon_as_calls_are_forwarded_without_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    talk = waiting(2, 3)
    monkeypatch.setattr(talk.store, "decide", lambda requests, _: [Verdict("allowed_unavailable") for _ in requests])
    assert talk.client_calls("search", 4) == ["forwarded 4"]
    assert talk.attend() == ["forwarded 2", "forwarded 3"]


@pytest.mark.parametrize("exits", [True, False])
def test_held_calls_end_with_their_server(exits: bool) -> None:
    talk = waiting(2)
    assert talk.input_closes("the server has closed its input") == []
    came_out = talk.server_exits("server exited with status 1") if exits else talk.attend()
    assert "answered 2: -32000" in came_out
    why = "server exited with status 1" if exits else "the server has closed its input"
    assert talk.to_client[-1]["error"]["message"] == why
    assert talk.pass_ms(5000) == []


def test_held_calls_end_with_a_policy_that_closes_the_tool_and_go_with_one_that_raises_the_limit() -> None:
    talk = waiting(2, 3)
    talk.take_up('[[rule]]\ntool = "search"\nlimit = "deny"\n')
    assert talk.attend() == ["answered 2: 403", "answered 3: 403"]
    talk.take_up(RATE)
    assert talk.client_calls("search", 4) == []
    talk.take_up(RATE.replace("1/2s", "2/2s"))
    assert talk.attend() == ["forwarded 4"]


def test_at_most_64_calls_are_held_and_one_that_is_decided_anew_keeps_its_place_among_them() -> None:
    talk = Talk(CAP)
    assert talk.client_calls("browse", *range(MAX_WAITING + 2)) == ["forwarded 0", f"answered {MAX_WAITING + 1}: 429"]
    assert talk.pass_ms(1000) == []
    talk.answer(0)
    assert talk.attend() == ["forwarded 1"]


def test_a_call_that_was_read_together_with_one_that_cannot_be_held_is_charged_once() -> None:
    talk = waiting(2, 3, policy=RATE + '[[rule]]\ntool = "other"\nlimit = "9/1h"\n')
    assert talk.client(call_line("search", 4), call_line("other", 5)) == ["forwarded 5", "answered 4: 429"]
    assert [one.used for one in talk.store.counters()] == [1, 1]


def test_a_held_call_is_answered_once_if_the_store_fails() -> None:
    talk = waiting(2)
    talk.store_failure = "it is away"
    assert talk.pass_ms(2000) == ["answered 2: 503"]
    talk.store_failure = ""
    assert talk.pass_ms(5000) == []


def test_calls_that_are_long_together_are_not_all_held() -> None:
    talk = Talk('[[rule]]\ntool = "search"\nlimit = "1/1s"\nwait = "1h"\n')
    lines = [call_line("search", at, arguments={"q": "x" * (MAX_WAITING_BYTES // 3)}) for at in range(5)]
    assert talk.client(*lines) == ["forwarded 0", "answered 4: 429"]


def test_a_batch_of_answers_frees_the_place_of_each_call() -> None:
    talk = Talk(CAP.replace("concurrent = 1", "concurrent = 2"))
    assert talk.client_calls("browse", 1, 2, 3, 4) == ["forwarded 1", "forwarded 2"]
    talk.server([{"jsonrpc": "2.0", "id": 1, "result": {}}, {"jsonrpc": "2.0", "id": 2, "result": {"isError": True}}])
    assert talk.attend() == ["forwarded 3", "forwarded 4"]
    assert [outcome.outcome for outcome in talk.outcomes] == ["ok", "tool_error"]


def test_a_client_that_asked_for_progress_is_told_each_second_that_its_call_waits() -> None:
    talk = Talk(RATE)
    talk.client_calls("search", 1)
    assert talk.client(call_line("search", 2, _meta={"progressToken": "t"}), call_line("search", 3)) == []
    assert talk.pass_ms(999) == []
    assert talk.pass_ms(1) == ["told t: waiting for a rate limit, 1 s"]
    assert talk.pass_ms(999) == []
    assert talk.pass_ms(1) == ["forwarded 2"]


def test_a_client_is_told_once_a_second_that_its_call_waits_however_much_it_writes_meanwhile() -> None:
    talk = Talk(RATE.replace("2s", "3s"))
    assert talk.client_calls("search", 1) == ["forwarded 1"]
    talk.pass_ms(500)
    assert talk.client(call_line("search", 2, _meta={"progressToken": 7})) == []
    for at, told in enumerate([[], ["told 7: waiting for a rate limit, 1 s"], ["told 7: waiting for a rate limit, 2 s"]]):
        assert talk.client(request("ping", 3 * at + 3)) == [f"forwarded {3 * at + 3}", *told]
        assert talk.client(request("ping", 3 * at + 4)) == [f"forwarded {3 * at + 4}"]
        assert talk.pass_ms(999 if at < 2 else 499) == []
        talk.time.pass_ms(1)
    first, second = [message["params"]["progress"] for message in talk.to_client]
    assert first < second
    assert talk.attend() == ["forwarded 2"]


def test_of_the_calls_that_wait_for_a_place_only_the_first_is_decided_anew_all_the_time() -> None:
    talk = waiting(2, 3, 4, policy=CAP, tool="browse")
    talk.together.clear()
    talk.pass_ms(1000)
    assert len(talk.together) == 1_000_000 // LOOK_US


def test_a_call_that_waits_for_a_place_soon_finds_one_that_another_session_has_freed() -> None:
    talk, other = Talk(CAP), Talk(CAP, session="00000000000000bb")
    other.store, other.time = talk.store, talk.time
    other.client_calls("browse", 1)
    assert talk.client_calls("browse", 1) == []
    assert talk.pass_ms(1000) == []
    other.answer(1)
    assert talk.pass_ms(LOOK_US // 1000) == ["forwarded 1"]


@pytest.mark.parametrize(
    "end",
    [
        lambda talk: talk.answer(1),
        lambda talk: talk.server({"jsonrpc": "2.0", "id": 1, "error": {"code": 1, "message": "no"}}),
        lambda talk: talk.client(cancel(1)),
    ],
    ids=["result", "error", "cancelled"],
)
def test_a_place_is_free_when_its_call_is_answered_or_cancelled(end: Callable[[Talk], object]) -> None:
    talk = Talk(CAP_AT_ONCE)
    assert talk.client_calls("browse", 1, 2) == ["forwarded 1", "answered 2: 429"]
    end(talk)
    assert talk.client_calls("browse", 3) == ["forwarded 3"]


def test_a_request_with_a_very_long_id_frees_no_places() -> None:
    talk = Talk(CAP_AT_ONCE)
    assert talk.client_calls("browse", 1) == ["forwarded 1"]
    talk.client(request("ping", "a" * MAX_IN_FLIGHT_CHARS))
    assert talk.client_calls("browse", 2) == ["answered 2: 429"], "the server may still work for the first call"
    talk.server_exits("server exited with status 1")
    assert talk.store.counters() == []


def test_a_free_retry_takes_a_place_and_waits_for_one_but_is_not_charged() -> None:
    talk = Talk(CAP + '[[rule]]\ntool = "browse"\nper = []\nlimit = "2/1h"\n')
    talk.client_calls("browse", 1)
    talk.ask_for_input(1, "s")
    assert talk.client_calls("browse", 2) == ["forwarded 2"]
    assert talk.client(call_line("browse", 3, requestState="s")) == []
    talk.answer(2)
    assert talk.attend() == ["forwarded 3"]
    assert [record["decision"] for record in talk.records] == ["allowed", "allowed", "continued"]
    assert talk.client_calls("browse", 4) == ["answered 4: 429"], "the retry holds the place"


def test_a_free_retry_that_is_cancelled_while_it_waits_can_be_made_again() -> None:
    talk = Talk(CAP + 'limit = "2/1h"\n')
    talk.client_calls("browse", 1)
    talk.ask_for_input(1, "s")
    assert talk.client(call_line("browse", 2), call_line("browse", 3, requestState="s")) == ["forwarded 2"]
    assert talk.client(cancel(3)) == []
    talk.answer(2)
    assert talk.client(call_line("browse", 4, requestState="s")) == ["forwarded 4"]


def test_a_free_retry_that_waits_is_denied_when_the_tool_is_closed_and_can_be_made_again() -> None:
    talk = Talk(CAP)
    talk.client_calls("browse", 1)
    talk.ask_for_input(1, "s")
    assert talk.client(call_line("browse", 2), call_line("browse", 3, requestState="s")) == ["forwarded 2"]
    talk.take_up('[[rule]]\ntool = "browse"\nlimit = "deny"\n')
    assert talk.attend() == ["answered 3: 403"]
    talk.take_up('[[rule]]\ntool = "browse"\nlimit = "1/1h"\n')
    assert talk.client(call_line("browse", 4, requestState="s"), call_line("browse", 5)) == ["forwarded 4", "forwarded 5"]
    assert [record["decision"] for record in talk.records[-2:]] == ["continued", "allowed"]


def test_calls_that_wait_for_errors_to_leave_the_window_take_no_room_from_each_other() -> None:
    talk = Talk('[[rule]]\ntool = "flaky"\ncount = "errors"\nlimit = "1/2s"\nwait = "3s"\n')
    talk.client_calls("flaky", 1)
    talk.server({"jsonrpc": "2.0", "id": 1, "error": {"code": 1, "message": "no"}})
    assert talk.client_calls("flaky", 2, 3) == []
    assert talk.pass_ms(2000) == ["forwarded 2", "forwarded 3"]


def test_a_free_retry_that_fails_is_counted_as_an_error() -> None:
    talk = Talk('[[rule]]\ntool = "flaky"\ncount = "errors"\nlimit = "1/1m"\n')
    talk.client_calls("flaky", 1, 2)
    for at in (1, 2):
        talk.ask_for_input(at, f"s{at}")
    assert talk.client(call_line("flaky", 3, requestState="s1")) == ["forwarded 3"]
    talk.answer(3, isError=True)
    assert talk.client_calls("flaky", 4) == ["answered 4: 429"]
    assert talk.client(call_line("flaky", 5, requestState="s2")) == ["forwarded 5"], "its call was in flight already"


def test_an_observed_limit_on_errors_counts_only_calls_for_which_it_had_room() -> None:
    talk = Talk('[[rule]]\ntool = "flaky"\ncount = "errors"\nlimit = "2/1m"\nmode = "observe"\n')
    for at in range(4):
        talk.client_calls("flaky", at)
        talk.answer(at, isError=True)
        talk.time.pass_ms(10_000)
    assert [record["decision"] for record in talk.records] == ["allowed", "allowed", "would_deny", "would_deny"]
    assert [one.used for one in talk.store.counters()] == [2]
    talk.time.pass_ms(20_000)
    talk.client_calls("flaky", 5)
    assert talk.records[-1]["decision"] == "allowed", "an enforced limit has room then, too"


def test_an_enforced_limit_on_errors_counts_a_call_that_an_observed_rule_would_deny() -> None:
    talk = Talk(
        '[[rule]]\ntool = "flaky"\ncount = "errors"\nlimit = "9/1m"\n'
        '[[rule]]\nuser = "*"\ncount = "errors"\nlimit = "1/1m"\nmode = "observe"\n'
    )
    for at in range(3):
        talk.client_calls("flaky", at)
        talk.answer(at, isError=True)
    assert decisions(talk) == [(0, "allowed"), (1, "would_deny"), (2, "would_deny")]
    assert sorted(one.used for one in talk.store.counters()) == [1, 3]


def test_a_costly_call_is_charged_its_cost_and_one_that_costs_more_than_the_limit_is_never_admitted() -> None:
    talk = Talk(BATCH + '[[cost]]\ntool = "search"\nserver = "crm"\ncost = 3\n')
    assert talk.client_calls("search", 1) == ["forwarded 1"]
    assert talk.records[0]["cost"] == 3
    assert (talk.records[0]["count"], talk.records[0]["remaining"]) == (3, 1)
    never = Talk(BATCH.replace("cost = 2", "cost = 5"))
    assert never.client_calls("search", 1) == ["answered 1: 429"]
    data = never.to_client[-1]["error"]["data"]
    assert (data["reason"], data["cost"], "retry_after_ms" in data) == ("too_costly", 5, False)


def test_a_call_behind_one_that_was_cancelled_for_another_counter_stays_where_it_is() -> None:
    talk = Talk(RATE + CAP)
    talk.client(call_line("search", 1), call_line("browse", 2), call_line("search", 3), call_line("browse", 4))
    assert talk.client(cancel(3)) == []
    assert talk.attend() == []
    assert talk.client(cancel(3), cancel("nobody")) == ["forwarded notifications/cancelled"]
    talk.answer(2)
    assert talk.attend() == ["forwarded 4"]


def test_a_call_waits_behind_another_only_for_limits_that_let_it_wait() -> None:
    talk = Talk('[[rule]]\nuser = "*"\nlimit = "1/2s"\nwait = "5s"\n[[rule]]\ntool = "b"\nper = ["user"]\nlimit = "9/2s"\n')
    assert talk.client(call_line("a", 1), call_line("b", 2), call_line("b", 3)) == ["forwarded 1"]
    assert talk.pass_ms(4000) == ["forwarded 2", "forwarded 3"]


def test_a_call_that_waits_for_its_turn_waits_for_no_observed_rule() -> None:
    talk = Talk(
        '[[rule]]\nuser = "*"\nlimit = "4/2s"\ncount = "cost"\nwait = "5s"\n[[cost]]\ntool = "a"\ncost = 4\n'
        '[[rule]]\ntool = "b"\nlimit = "1/1h"\nmode = "observe"\n'
    )
    assert talk.client(call_line("b", 1), call_line("a", 2), call_line("b", 3)) == ["forwarded 1"]
    assert talk.pass_ms(4000) == ["forwarded 2", "forwarded 3"]
    assert decisions(talk) == [(1, "allowed"), (2, "allowed"), (3, "would_deny")]


def test_a_call_that_waits_for_a_place_too_is_denied_at_once_if_its_turn_under_a_limit_comes_too_late() -> None:
    talk = Talk(CAP + '[[rule]]\nuser = "*"\nlimit = "1/3s"\nwait = "5s"\n')
    assert talk.client_calls("browse", 1, 2, 3) == ["forwarded 1", "answered 3: 429"]
    assert talk.to_client[-1]["error"]["data"]["reason"] == "concurrent"


def test_a_call_passes_one_that_waits_for_another_counter_as_soon_as_their_common_counter_has_room() -> None:
    policy = 'wait = "30s"\n[[rule]]\nuser = "*"\nlimit = "2/2s"\n[[rule]]\ntool = "report"\nlimit = "1/10s"\n'
    talk = Talk(policy)
    assert talk.client(call_line("report", 1), call_line("search", 2)) == ["forwarded 1", "forwarded 2"]
    assert talk.client(call_line("report", 3), call_line("search", 4)) == []
    assert talk.pass_ms(1999) == []
    talk.time.pass_ms(1)
    assert talk.decide_held() == ["forwarded 4"]
    assert talk.machine.held.next_us == talk.time() + 8_000_000, "call 3 is decided anew only when there is room for it"
    assert talk.pass_ms(8000) == ["forwarded 3"]


def test_a_wait_is_begun_that_is_enough_if_the_call_passes_one_that_waits_for_another_counter() -> None:
    policy = '[[rule]]\nuser = "*"\nlimit = "1/2s"\nwait = "3s"\n[[rule]]\ntool = "report"\nlimit = "1/9s"\nwait = "20s"\n'
    talk = waiting(2, policy=policy, tool="report")
    assert talk.client_calls("search", 3, 4) == ["answered 4: 429"]
    assert talk.pass_ms(2000) == ["forwarded 3"]
    assert talk.pass_ms(7000) == ["forwarded 2"]


def test_a_freed_place_goes_to_the_next_call_if_the_first_waits_for_another_place_as_well() -> None:
    talk = Talk('wait = "30s"\n[[rule]]\nuser = "*"\nconcurrent = 2\n[[rule]]\ntool = "browse"\nconcurrent = 1\n')
    assert talk.client(call_line("browse", 1), call_line("search", 2)) == ["forwarded 1", "forwarded 2"]
    assert talk.client(call_line("browse", 3), call_line("search", 4)) == []
    talk.answer(2)
    assert talk.attend() == ["forwarded 4"]
    talk.answer(1)
    assert talk.attend() == ["forwarded 3"]


def test_a_place_that_another_session_frees_is_seen_although_the_first_call_waits_longer_for_another_limit() -> None:
    caps = 'wait = "30s"\n[[rule]]\nuser = "*"\nconcurrent = 1\n'
    talk = Talk(caps + '[[rule]]\ntool = "report"\nlimit = "1/10s"\n')
    other = Caller(talk.store, caps, session="b" * 16)
    assert talk.client_calls("report", 1) == ["forwarded 1"]
    talk.answer(1)
    assert other.words("search") == ["allowed"]
    assert talk.client(call_line("report", 2), call_line("search", 3)) == []
    other.end()
    assert talk.pass_ms(LOOK_US // 1000) == ["forwarded 3"]


@pytest.mark.parametrize(("n", "at_once", "in_time"), [(2, ["forwarded 4"], []), (1, [], ["forwarded 3"])])
def test_after_a_reset_a_new_call_lets_the_first_go_and_goes_if_it_can(n: int, at_once: list[str], in_time: list[str]) -> None:
    talk = Talk(RATE.replace("1/2s", f"{n}/2s"))
    assert talk.client_calls("search", *range(1, n + 2)) == [f"forwarded {at}" for at in range(1, n + 1)]
    talk.store.reset([one.label for one in talk.store.counters()])
    assert talk.client_calls("search", n + 2) == []
    assert talk.decide_held() == [f"forwarded {n + 1}"]
    assert talk.decide_held() == at_once
    assert talk.pass_ms(2000) == in_time


def test_a_call_behind_others_does_not_wait_for_a_limit_beyond_the_wait_of_its_rule() -> None:
    talk = Talk('[[rule]]\ntool = "a_*"\nconcurrent = 1\nwait = "20s"\n[[rule]]\ntool = "*_b"\nconcurrent = 3\nwait = "5s"\n')
    assert talk.client_calls("a_b", 1, 2, 3) == ["forwarded 1"]
    assert talk.pass_ms(4999) == []
    talk.time.pass_ms(1)
    assert talk.decide_held() == []
    assert (talk.machine.held.next_us or 0) > talk.time()
    talk.answer(1)
    assert talk.attend() == ["forwarded 2"]


def test_a_held_call_that_a_bug_keeps_from_being_judged_is_dropped_and_answered() -> None:
    talk = Talk('[[rule]]\ntool = "search"\nlimit = "1/1s"\nwait = "5s"\n')
    assert talk.client_calls("search", 1) == ["forwarded 1"]
    assert talk.client_calls("search", 2) == []
    talk.time.pass_s(1)
    assert talk.machine.judge((), talk.time())  # and here is the bug
    assert talk.unjudged() == ["answered 2: 503"]
    assert talk.machine.held.next_us is None
    assert talk.records[-1]["reason"] == "mcpguard failed to judge it"


def test_a_bug_in_judging_later_lines_concerns_no_held_call_that_was_judged_before() -> None:
    talk = waiting(2, 3, policy='[[rule]]\ntool = "search"\nconcurrent = 1\nwait = "60s"\n')
    talk.answer(1)
    assert talk.attend() == ["forwarded 2"]
    assert talk.unjudged(request("ping", 4)) == ["answered 4: 503"]  # the bug is in the parser
    talk.answer(2)
    assert talk.attend() == ["forwarded 3"]


def test_a_held_call_that_is_judged_again_after_a_bug_is_denied_once(monkeypatch: pytest.MonkeyPatch) -> None:
    talk = waiting(2, policy='[[rule]]\ntool = "search"\nlimit = "1/1h"\nwait = "1h"\n')
    talk.machine.change_identity(Unauthenticated("there is no token", "write one"))
    with monkeypatch.context() as patched:
        patched.setattr(HeldCall, "waited_us", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            talk.machine.judge((), talk.time())
    talk.machine.unjudged(None, talk.time())
    assert talk.decide_held() == ["answered 2: 401"]
    assert decisions(talk) == [(1, "allowed"), (2, "unauthenticated")]
    assert talk.machine.held.next_us is None


def test_a_call_that_began_to_wait_before_a_bug_is_judged_again_with_the_other_lines_and_is_held() -> None:
    talk = Talk('[[rule]]\ntool = "search"\nconcurrent = 1\nwait = "60s"\n')
    lines = [call_line("search", 1), call_line("search", 2), call_line("other", 3)]
    asked = talk.machine.judge(read(lines), talk.time())
    for _ in range(2):
        asked = talk.machine.decided(talk.store.decide(asked, talk.journal))
    assert [one.request_id for one in asked] == ["3"]  # and here is the bug
    talk.machine.unjudged(None, talk.time())
    assert talk.carry_out() == []
    assert [talk.client(line) for line in lines] == [["forwarded 1"], [], ["forwarded 3"]]
    talk.answer(1)
    assert talk.attend() == ["forwarded 2"]


def test_a_line_that_is_judged_alone_is_judged_without_the_held_calls_that_are_due() -> None:
    talk = waiting(2, policy='[[rule]]\ntool = "search"\nconcurrent = 1\nwait = "60s"\n')
    talk.answer(1)
    assert talk.machine.judge(read([request("ping", 3)]), talk.time(), alone=True) == ()  # and here is the bug
    assert talk.unjudged(request("ping", 3)) == ["answered 3: 503"]
    assert talk.attend() == ["forwarded 2"]
