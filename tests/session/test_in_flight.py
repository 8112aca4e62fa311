"""Requests in flight and free retries, as conversations: which outcome a call has, and that nothing of it stays behind."""

import pickle
from typing import Any

import pytest

from mcpguard.limiter.plan import Counter, Plan, Reported
from mcpguard.limiter.sliding import Limit
from mcpguard.policy.model import Call
from mcpguard.session.audit import Outcome
from mcpguard.session.in_flight import MAX_IN_FLIGHT_CHARS, FreeRetries, RequestsInFlight
from mcpguard.session.verdict import DecisionRequest, Verdict
from mcpguard.wire.answers import RetryInput
from tests.build import Talk, call_line, cancel, identity, request


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [({"result": {}}, "ok"), ({"result": {"isError": True}}, "tool_error"), ({"error": {"code": 1}}, "rpc_error")],
)
def test_an_answer_gives_the_outcome_and_the_duration(answer: dict[str, object], outcome: str) -> None:
    talk = Talk()
    assert talk.client_calls("x", 7, 8) == ["forwarded 7", "forwarded 8"]
    assert talk.awaits_answers
    talk.time.pass_ms(3)
    progress = {"jsonrpc": "2.0", "method": "notifications/progress", "params": {"id": 8}}
    assert talk.server(progress, {"jsonrpc": "2.0", "id": 7} | answer) == []
    assert talk.server({"jsonrpc": "2.0", "id": 8, "result": {}}, {"jsonrpc": "2.0", "id": 7} | answer) == []
    assert talk.outcomes == [Outcome(1, outcome, 3000), Outcome(2, "ok", 3000)]
    assert not talk.awaits_answers


BIG = 2**53

PAIRS = [
    (1, 1),
    ("a", "a"),
    (1, "1"),  # some servers answer both with "1"
    ("-8", -8),
    (BIG, BIG + 1),  # parsers that read numbers as doubles answer both with the first
    (BIG + 1, str(BIG)),
    ("é" * 1000, "é" * 1000),
]


@pytest.mark.parametrize(("one", "other"), PAIRS)
@pytest.mark.parametrize("methods", [("tools/call", "ping"), ("ping", "tools/call"), ("tools/call",) * 2, ("ping",) * 2])
@pytest.mark.parametrize("same_read", [True, False])
def test_an_id_that_is_in_flight_is_refused(one: object, other: object, methods: tuple[str, str], *, same_read: bool) -> None:
    talk = Talk()
    first, second = [request(method, at, name="x") for method, at in zip(methods, (one, other), strict=True)]
    came_out = talk.client(first, second) if same_read else [*talk.client(first), *talk.client(second)]
    assert came_out == [f"forwarded {one}", f"answered {other}: -32600"]
    (refused,) = [record for record in talk.records if record["decision"] == "invalid"]
    assert refused.get("tool") == ("x" if methods[1] == "tools/call" else None)
    talk.answer(one)
    assert [outcome.outcome for outcome in talk.outcomes] == ["ok"] * (methods[0] == "tools/call")
    assert talk.client(second) == [f"forwarded {other}"], "the id is free again"


@pytest.mark.parametrize("other", [request("ping", 1), call_line("x", 1)])
@pytest.mark.parametrize("again", [request("ping", 1), call_line("x", 1), call_line("x", "1")])
def test_the_late_answer_to_a_cancelled_request_is_not_taken_for_that_of_another(other: bytes, again: bytes) -> None:
    talk = Talk('[[rule]]\ntool = "x"\nconcurrent = 1\n')
    assert talk.client(other, cancel(1), again)[-1].endswith(": -32600")
    talk.answer(1)
    assert talk.client_calls("x", 1) == ["forwarded 1"]
    assert talk.client_calls("x", 2) == ["answered 2: 429"]


@pytest.mark.parametrize("spare", ["1", 1])
def test_the_answer_to_a_cancelled_ping_frees_no_place(spare: object) -> None:
    talk = Talk('[[rule]]\ntool = "x"\nconcurrent = 1\n')
    talk.client(call_line("x", 1), request("ping", spare), cancel(spare), call_line("x", 2))
    talk.answer(spare)
    talk.client_calls("x", 3, 4)
    assert sum(isinstance(one.get("id"), int) and one["method"] == "tools/call" for one in talk.to_server) == 2, "1 and 3"


@pytest.mark.parametrize(("sent", "answered"), [(7, "7"), (-8, "-8"), ("9", 9), (BIG + 1, BIG), (10**21 + 1, 1e21), (7, 7.0)])
def test_an_id_that_the_server_sends_back_in_another_form_is_that_of_the_request(sent: object, answered: object) -> None:
    talk = Talk()
    talk.client_calls("x", sent, 5, "a")
    talk.answer(answered)
    assert [(outcome.row_id, outcome.outcome) for outcome in talk.outcomes] == [(1, "ok")]


def test_an_answer_that_the_server_makes_up_changes_nothing() -> None:
    talk = Talk('[[rule]]\ntool = "x"\nconcurrent = 1\n')
    talk.client_calls("x", 1)
    for made_up in (2, "2", '"1"', "a", None, 1.5):
        talk.answer(made_up)
    talk.answer(1)
    talk.answer(1)
    assert [outcome.outcome for outcome in talk.outcomes] == ["ok"]
    assert talk.client_calls("x", 2, 3) == ["forwarded 2", "answered 3: 429"]


@pytest.mark.parametrize("request_id", [7, "a", "é", int("9" * 4000)])
def test_a_cancelled_call_ends_as_cancelled_even_if_it_is_answered_later(request_id: object) -> None:
    talk = Talk()
    talk.client_calls("x", request_id)
    talk.time.pass_ms(5)
    assert talk.client(cancel(request_id)) == ["forwarded notifications/cancelled"]
    assert not talk.awaits_answers
    assert talk.machine.has_outcomes
    talk.answer(request_id)
    assert talk.outcomes == [Outcome(1, "cancelled", 5000)]
    assert not talk.awaits_answers
    assert [message["method"] for message in talk.to_server] == ["tools/call", "notifications/cancelled"]


def test_a_call_can_be_cancelled_in_the_read_that_made_it() -> None:
    talk = Talk()
    assert talk.client(call_line("slow", 1), cancel(1)) == ["forwarded 1", "forwarded notifications/cancelled"]
    talk.server({"id": 9, "result": {}})
    assert talk.outcomes == [Outcome(1, "cancelled", 0)]
    assert talk.server_exits("gone") == []


def test_a_cancellation_does_not_cancel_a_later_call() -> None:
    talk = Talk()
    talk.client(cancel(1), call_line("x", 1))
    talk.answer(1)
    talk.client(call_line("x", 1), cancel(1))
    talk.answer(1)
    talk.client_calls("x", 1)
    talk.answer(1)
    assert [outcome.outcome for outcome in talk.outcomes] == ["ok", "cancelled", "ok"]


CANCELLATION = "forwarded notifications/cancelled"


@pytest.mark.parametrize("same_read", [True, False])
@pytest.mark.parametrize(
    "unseen", [call_line("closed", 2), b'{"id":2,"method":"tools/call","params":{"name":7}}'], ids=["denied", "refused"]
)
def test_the_server_gets_no_cancellation_of_a_request_that_it_did_not_get(unseen: bytes, *, same_read: bool) -> None:
    talk = Talk('[[rule]]\ntool = "closed"\nlimit = "deny"\n')
    lines = [unseen, cancel(2), cancel("2")]
    came_out = talk.client(*lines) if same_read else [one for line in lines for one in talk.client(line)]
    assert len(came_out) == 1
    assert came_out[0].startswith("answered 2: ")
    assert talk.client(call_line("x", 2), cancel(2)) == ["forwarded 2", CANCELLATION], "the id is used by another call now"


def test_the_server_gets_the_cancellation_of_every_request_that_it_got_or_may_have_got() -> None:
    talk = Talk()
    talk.client(call_line("x", 1), request("ping", "b"), call_line("x", 3))
    assert talk.client_calls("x", 3) == ["answered 3: -32600"]
    talk.answer(3)
    assert talk.client(cancel(1), cancel("b"), cancel(3), cancel(1), cancel("unknown")) == [CANCELLATION] * 5
    assert talk.client(b'{"method":"notifications/cancelled","params":{}}') == [CANCELLATION]


def test_requests_that_the_server_did_not_get_take_bounded_memory() -> None:
    talk = Talk('[[rule]]\ntool = "closed"\nlimit = "deny"\n')
    talk.client_calls("closed", *range(1025))
    assert talk.client(*(cancel(at) for at in range(1025))) == [CANCELLATION]


def test_neither_a_request_with_the_method_of_a_cancellation_nor_another_notification_cancels_a_call() -> None:
    talk = Talk('[[rule]]\ntool = "x"\nconcurrent = 1\nwait = "9s"\n')
    talk.client_calls("x", 1, 2)
    for request_id in (1, 2):
        talk.client(request("notifications/cancelled", "odd", requestId=request_id))
        talk.client(b'{"method":"notifications/x","params":{"requestId":%d}}' % request_id)
    assert talk.client_calls("x", 3) == []  # the place of the first is not free
    talk.answer(1)
    assert talk.attend() == ["forwarded 2"]


def test_a_call_with_a_very_long_integer_as_id_can_be_cancelled() -> None:
    talk = Talk()
    number = b"9" * 5000
    talk.requests(b'{"id":' + number + b',"method":"tools/call","params":{"name":"x"}}')
    talk.machine.decided([Verdict("allowed", row_id=1)])
    talk.machine.output()
    talk.requests(b'{"method":"notifications/cancelled","params":{"requestId":' + number + b"}}")
    talk.machine.output()
    assert talk.record() == []
    assert [outcome.outcome for outcome in talk.outcomes] == ["cancelled"]


@pytest.mark.parametrize("request_id", [8, "8", True, None, 7.0, [7], {}])
def test_cancelling_a_request_that_is_not_in_flight_changes_nothing(request_id: object) -> None:
    talk = Talk()
    talk.client(call_line("x", 7), request("ping", 1))
    talk.client(cancel(request_id))
    talk.client(b'{"method":"notifications/cancelled"}')
    talk.answer(7)
    assert [outcome.outcome for outcome in talk.outcomes] == ["ok"]


@pytest.mark.parametrize("answered", [False, True])
def test_a_call_has_the_place_of_one_that_is_cancelled_in_the_same_read(*, answered: bool) -> None:
    talk = Talk('[[rule]]\ntool = "x"\nconcurrent = 1\n')
    talk.client_calls("x", 1)
    talk.unread += [{"id": 1, "result": {}}] if answered else []
    assert talk.client(cancel(1), call_line("x", 2)) == [CANCELLATION, "forwarded 2"]
    assert talk.client_calls("x", 3) == ["answered 3: 429"]
    assert talk.client(call_line("x", 4), cancel(2)) == [CANCELLATION, "answered 4: 429"], "2 is still in flight"


@pytest.fixture
def three() -> RequestsInFlight:
    """Remembers three requests."""
    return RequestsInFlight(FreeRetries(), most=3)


def decided(plan: Plan, row_id: int) -> DecisionRequest:
    call = DecisionRequest(Call("alice", "a::b::c", "crm", "x"), plan, "{}")
    call.verdict = Verdict("allowed", plan, row_id=row_id)
    return call


def test_requests_that_are_never_answered_take_bounded_memory(three: RequestsInFlight) -> None:
    for at in range(5):
        three.add(str(at), str(at), 0, decided(Plan(), at))
    assert [*three.by_id] == ["2", "3", "4"]
    assert three.outcomes == [Outcome(0, "no_answer", 0), Outcome(1, "no_answer", 0)]


def test_requests_with_long_ids_or_names_take_bounded_memory() -> None:
    long = MAX_IN_FLIGHT_CHARS * 3 // 10
    talk = Talk()
    for _ in range(2):  # the second time it is the same, because all requests of the first time have ended
        talk.outcomes.clear()
        talk.client(call_line("x", "a" * long), call_line("y" * long, 1))
        talk.client(request("ping", "b" * long))
        talk.answer(1)
        talk.client(call_line("z" * long, 2), call_line("z" * long, 2))  # the second is refused
        assert [one.outcome for one in talk.outcomes] == ["ok"]
        talk.client_calls("x", "c" * long)
        assert talk.record() == []
        assert [one.outcome for one in talk.outcomes] == ["ok", "no_answer"]
        for request_id in ("a" * long, "c" * long, "b" * long, 2):
            talk.answer(request_id)
        assert [one.outcome for one in talk.outcomes] == ["ok", "no_answer", "ok", "ok"], "the first had no answer in time"
        assert not talk.awaits_answers


def test_no_long_id_makes_a_call_that_fails_count_less() -> None:
    talk = Talk('[[rule]]\ntool = "x"\ncount = "errors"\nlimit = "1/1h"\n')
    talk.client_calls("x", 1)
    talk.client(request("ping", "a" * MAX_IN_FLIGHT_CHARS))
    assert talk.client(request("ping", 1)) == ["answered 1: -32600"], "the answer to the call may still come"
    talk.server({"id": 1, "result": {"isError": True}})
    assert talk.client_calls("x", 2) == ["answered 2: 429"]


def test_cancelled_requests_that_are_never_answered_take_bounded_memory(three: RequestsInFlight) -> None:
    for at in range(5):
        three.add(str(at), str(at), 0)
        three.cancel(str(at), 0)
    assert [at for at in range(5) if three.has_id(str(at))] == [2, 3, 4]


def test_places_of_calls_that_are_never_answered_take_bounded_memory(three: RequestsInFlight) -> None:
    plan = Plan((Limit(100, 0, 0, counts="concurrent"),), (Reported("tool", "tool=*", 100, None),), (Counter(1, "", 0),))
    for at in range(20):
        three.add(str(at), str(at), 0, decided(plan, at))
    assert [one.row_id for one in three.endings] == [*range(14)], "three are in flight, and three were forgotten"
    three.end_all("no_answer", 0)
    assert sorted(one.row_id for one in three.endings) == [*range(20)]


def test_a_call_without_a_row_can_be_answered_and_retried() -> None:
    talk = Talk()
    talk.charges("greet")
    talk.machine.decided([Verdict("allowed")])
    talk.machine.output()
    talk.ask_for_input(1, None, "who")
    assert talk.outcomes == []
    talk.client(call_line("greet", 2, inputResponses={"who": {}}))
    assert talk.verdicts[-1].decision == "continued"


ONE_A_MINUTE = '[[rule]]\ntool = "*"\nlimit = "1/1m"\n'


def asked(state: object, *inputs: str, policy: str = ONE_A_MINUTE) -> Talk:
    """A conversation in which the server asks for input before it answers the first call of the tool `x`."""
    talk = Talk(policy)
    assert talk.client_calls("x", 1) == ["forwarded 1"]
    talk.ask_for_input(1, state, *inputs)
    return talk


def decisions(talk: Talk) -> list[object]:
    return [one["decision"] for one in talk.records]


def test_a_retry_that_the_server_asked_for_is_free_once_only() -> None:
    talk = asked("s1", "who")
    assert talk.client(call_line("x", 2, requestState="s1", inputResponses={"who": 1})) == ["forwarded 2"]
    assert talk.client(call_line("x", 3, requestState="s1", inputResponses={"who": 1})) == ["answered 3: 429"]
    assert decisions(talk) == ["allowed", "continued", "rate_limited"]
    assert sum(one.used for one in talk.store.counters()) == 1


def test_the_servers_answers_are_read_before_a_retry_is_judged() -> None:
    talk = Talk(ONE_A_MINUTE)
    talk.client_calls("x", 1)
    talk.unread = [{"id": 1, "result": {"resultType": "input_required", "requestState": "s1"}}]
    assert talk.client(request("ping", 2), call_line("x", 3, requestState="s1")) == ["forwarded 2", "forwarded 3"]
    assert decisions(talk) == ["allowed", "continued"]


def test_a_retry_that_was_denied_as_unavailable_stays_free() -> None:
    talk = asked("s1", "who")
    talk.store_failure = "it is away"
    assert talk.client(call_line("x", 2, requestState="s1", inputResponses={"who": 1})) == ["answered 2: 503"]
    talk.store_failure = ""
    assert talk.client(call_line("x", 3, requestState="s1", inputResponses={"who": 1})) == ["forwarded 3"]
    assert talk.client(call_line("x", 4, requestState="s1", inputResponses={"who": 1})) == ["answered 4: 429"]
    assert [verdict.decision for verdict in talk.verdicts] == ["allowed", "continued", "rate_limited"]


@pytest.mark.parametrize(
    "forged",
    [
        {"tool": "y", "requestState": "s1"},
        {"requestState": "s2"},
        {"requestState": None},
        {"requestState": ["s1"]},
        {"inputResponses": {"who": 1}},
        {"inputResponses": {}},
    ],
)
def test_a_forged_retry_is_charged(forged: dict[str, Any]) -> None:
    talk = asked("s1", "who", policy='[[rule]]\nuser = "*"\nlimit = "1/1m"\n')
    assert talk.client(call_line(forged.pop("tool", "x"), 2, **forged)) == ["answered 2: 429"]
    assert talk.client(call_line("x", 3, requestState="s1")) == ["forwarded 3"]


def test_a_retry_of_a_tool_that_a_policy_has_closed_since_is_denied() -> None:
    talk = asked("s1")
    talk.take_up('[[rule]]\ntool = "x"\nlimit = "deny"\n')
    assert talk.client(call_line("x", 2, requestState="s1")) == ["answered 2: 403"]
    talk.take_up('[[rule]]\ntool = "x"\nlimit = "deny"\nmode = "observe"\n')
    assert talk.client(call_line("x", 3, requestState="s1")) == ["forwarded 3"]
    assert decisions(talk) == ["allowed", "denied", "continued"]


def test_a_retry_by_another_user_is_charged() -> None:
    talk = asked("s1")
    talk.identify(identity("bob@acme.com"))
    assert talk.client(call_line("x", 2, requestState="s1")) == ["answered 2: 429"]
    talk.identify(identity())
    assert talk.client(call_line("x", 3, requestState="s1")) == ["forwarded 3"]
    assert decisions(talk) == ["allowed", "rate_limited", "continued"]


@pytest.mark.parametrize("inputs", [{"who": 1}, {}, {"who": 1, "why": 2, "more": 3}, ["who", "why"], None])
def test_a_retry_without_state_must_have_exactly_the_requested_inputs(inputs: object) -> None:
    talk = asked(None, "who", "why")
    assert talk.client(call_line("x", 2, inputResponses=inputs)) == ["answered 2: 429"]
    assert talk.client(call_line("x", 3, inputResponses={"why": 1, "who": 2})) == ["forwarded 3"]


def test_two_calls_with_equal_requests_for_input_have_a_free_retry_each() -> None:
    talk = Talk()
    talk.client_calls("greet", 1, 2)
    for request_id in (1, 2):
        talk.ask_for_input(request_id, None, "who")
    for request_id in (3, 4, 5):
        talk.client(call_line("greet", request_id, inputResponses={"who": {}}))
    assert [verdict.decision for verdict in talk.verdicts[2:]] == ["continued", "continued", "allowed"]


def test_ten_retries_are_free_and_the_eleventh_is_charged() -> None:
    talk = Talk('[[rule]]\ntool = "x"\nlimit = "2/1m"\n')
    talk.client_calls("x", 0)
    for at in range(1, 12):
        talk.ask_for_input(at - 1, f"s{at}")
        talk.client(call_line("x", at, requestState=f"s{at}"))
    assert decisions(talk) == ["allowed", *["continued"] * 10, "allowed"]
    talk.ask_for_input(11, "again")
    talk.client(call_line("x", 12, requestState="again"), call_line("x", 13))
    assert decisions(talk)[12:] == ["continued", "rate_limited"]


def test_an_input_required_result_of_another_request_makes_no_retry_free() -> None:
    talk = Talk(ONE_A_MINUTE)
    talk.client(call_line("x", 1), request("resources/read", 2, name="x"))
    talk.ask_for_input(2, "s")
    assert talk.client(call_line("x", 3, requestState="s")) == ["answered 3: 429"]


def test_free_retries_are_bounded_and_the_oldest_is_forgotten() -> None:
    talk = Talk('[[rule]]\ntool = "x"\nlimit = "1100/1m"\n')
    for at in range(1100):
        talk.client_calls("x", at)
        talk.ask_for_input(at, f"s{at}")
    came_out = talk.client(call_line("x", 2000, requestState="s75"), call_line("x", 2001, requestState="s76"))
    assert came_out == ["forwarded 2001", "answered 2000: 429"]


def test_a_second_free_retry_for_equal_input_does_not_replace_another_one() -> None:
    retries = FreeRetries()
    for at in (*range(1024), 1023):
        retries.grant("alice", "x", RetryInput(f"s{at}", frozenset()), 1)
    assert retries.redeem("alice", "x", {"requestState": "s0"})


def test_free_retries_with_long_states_and_names_take_little_memory() -> None:
    retries, tool, state = FreeRetries(), "x" * 100_000, "s" * 100_000
    retries.grant("alice", tool, RetryInput(state, frozenset()), 1)
    assert len(pickle.dumps(retries)) < 1000
    assert retries.redeem("alice", tool, {"requestState": state})
