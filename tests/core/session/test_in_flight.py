"""Requests in flight, as conversations: which outcome a call has, and that nothing of it stays behind."""

import pytest

from mcpguard.core.audit import Outcome
from mcpguard.core.session import in_flight
from mcpguard.core.session.events import Decided
from mcpguard.core.verdict import Verdict
from tests.core.build import Talk, call_line, cancel, request

ANYTHING = "mode = 'enforce'"


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        ({"result": {"content": []}}, "ok"),
        ({"result": {"isError": True}}, "tool_error"),
        ({"error": {"code": 1, "message": "m"}}, "rpc_error"),
    ],
)
def test_an_answer_gives_the_outcome_and_the_duration(answer: dict[str, object], outcome: str) -> None:
    talk = Talk(ANYTHING)
    assert talk.client(call_line("x", 7), call_line("x", 8)) == ["forwarded 7", "forwarded 8"]
    assert talk.awaits_answers
    talk.time.pass_ms(3)
    progress = {"jsonrpc": "2.0", "method": "notifications/progress", "params": {"id": 8}}
    assert talk.server(progress, {"jsonrpc": "2.0", "id": 7} | answer) == []
    assert talk.server({"jsonrpc": "2.0", "id": 8, "result": {}}, {"jsonrpc": "2.0", "id": 7} | answer) == []
    assert talk.outcomes == [Outcome(1, outcome, 3000), Outcome(2, "ok", 3000)]
    assert not talk.awaits_answers


def test_answers_to_other_requests_have_no_outcome() -> None:
    talk = Talk(ANYTHING)
    assert talk.client(request("tools/list", 1)) == ["forwarded 1"]
    assert talk.awaits_answers
    talk.answer(1, tools=[])
    assert (talk.outcomes, talk.awaits_answers) == ([], False)


def test_a_denied_call_is_not_in_flight() -> None:
    talk = Talk('[[rule]]\ntool = "x"\nlimit = "deny"\n')
    assert talk.client(call_line("x", 1)) == ["answered 1: 403"]
    assert not talk.awaits_answers


def test_ids_of_different_types_are_different_requests() -> None:
    talk = Talk(ANYTHING)
    talk.client(call_line("x", 1), call_line("x", "1"))
    talk.answer("1")
    assert [outcome.row_id for outcome in talk.outcomes] == [2]


def test_a_number_that_the_server_sends_back_as_a_string_is_the_id_of_the_request() -> None:
    talk = Talk(ANYTHING)
    talk.client(call_line("x", 7), call_line("x", -8), call_line("x", "9"), request("ping", 10))
    for request_id in ("7", "-8", 9, '"9"', "10"):
        talk.answer(request_id)
    assert [outcome.row_id for outcome in talk.outcomes] == [1, 2]
    assert talk.server_exits("over") == ["answered 9: -32000"]


def test_the_first_of_two_calls_with_one_id_ends_as_no_answer() -> None:
    talk = Talk(ANYTHING)
    assert talk.client(call_line("x", 7), call_line("x", 7)) == ["forwarded 7", "forwarded 7"]
    talk.answer(7)
    assert [(outcome.row_id, outcome.outcome) for outcome in talk.outcomes] == [(1, "no_answer"), (2, "ok")]


@pytest.mark.parametrize("request_id", [7, "a", "é", int("9" * 4000)])
def test_a_cancelled_call_ends_as_cancelled_even_if_it_is_answered_later(request_id: object) -> None:
    talk = Talk(ANYTHING)
    talk.client(call_line("x", request_id))
    talk.time.pass_ms(5)
    assert talk.client(cancel(request_id)) == ["forwarded notifications/cancelled"]
    assert not talk.awaits_answers
    assert talk.machine.has_outcomes
    talk.answer(request_id)
    assert talk.outcomes == [Outcome(1, "cancelled", 5000)]
    assert not talk.awaits_answers
    assert [message["method"] for message in talk.to_server] == ["tools/call", "notifications/cancelled"]


def test_the_outcome_of_a_cancelled_call_is_recorded_without_an_answer() -> None:
    talk = Talk(ANYTHING)
    talk.client(call_line("x", 1))
    talk.client(cancel(1))
    assert talk.record() == []
    assert talk.outcomes == [Outcome(1, "cancelled", 0)]


def test_a_call_can_be_cancelled_in_the_read_that_made_it() -> None:
    talk = Talk(ANYTHING)
    assert talk.client(call_line("slow", 1), cancel(1)) == ["forwarded 1", "forwarded notifications/cancelled"]
    talk.server({"id": 9, "result": {}})
    assert talk.outcomes == [Outcome(1, "cancelled", 0)]
    assert talk.server_exits("gone") == []


def test_a_cancellation_does_not_cancel_a_later_call() -> None:
    talk = Talk(ANYTHING)
    talk.client(cancel(1), call_line("x", 1))
    talk.answer(1)
    talk.client(call_line("x", 2), cancel(2), call_line("x", 2))
    talk.answer(2)
    assert [outcome.outcome for outcome in talk.outcomes] == ["ok", "cancelled", "ok"]


def test_a_cancellation_cancels_the_call_that_was_written_last_with_its_id() -> None:
    talk = Talk(ANYTHING)
    talk.client(call_line("x", 1))
    talk.client(call_line("x", 1), cancel(1))
    assert not talk.awaits_answers
    talk.record()
    assert [(outcome.row_id, outcome.outcome) for outcome in talk.outcomes] == [(1, "no_answer"), (2, "cancelled")]


def test_neither_a_request_with_the_method_of_a_cancellation_nor_another_notification_cancels_a_call() -> None:
    talk = Talk('[[rule]]\ntool = "x"\nconcurrent = 1\nwait = "9s"\n')
    talk.client(call_line("x", 1), call_line("x", 2))
    for request_id in (1, 2):
        talk.client(request("notifications/cancelled", "odd", requestId=request_id))
        talk.client(b'{"method":"notifications/x","params":{"requestId":%d}}' % request_id)
    assert talk.client(call_line("x", 3)) == []  # the place of the first is not free
    talk.answer(1)
    assert talk.attend() == ["forwarded 2"]


def test_a_call_with_a_very_long_integer_as_id_can_be_cancelled() -> None:
    talk = Talk(ANYTHING)
    number = b"9" * 5000
    (charge,) = talk.requests(b'{"id":' + number + b',"method":"tools/call","params":{"name":"x"}}')
    talk.machine.handle(Decided(talk.store.decide([charge], talk.journal)))
    talk.requests(b'{"method":"notifications/cancelled","params":{"requestId":' + number + b"}}")
    assert talk.record() == []
    assert [outcome.outcome for outcome in talk.outcomes] == ["cancelled"]


@pytest.mark.parametrize("request_id", [8, "7", True, None, 7.0, [7], {}])
def test_cancelling_a_request_that_is_not_in_flight_changes_nothing(request_id: object) -> None:
    talk = Talk(ANYTHING)
    talk.client(call_line("x", 7), request("ping", 1))
    talk.client(cancel(request_id))
    talk.client(b'{"method":"notifications/cancelled"}')
    talk.answer(7)
    assert [outcome.outcome for outcome in talk.outcomes] == ["ok"]


def test_cancelling_another_request_has_no_outcome() -> None:
    talk = Talk(ANYTHING)
    assert talk.client(request("ping", 1), cancel(1)) == ["forwarded 1", "forwarded notifications/cancelled"]
    talk.answer(1)
    assert (talk.outcomes, talk.awaits_answers) == ([], False)


def test_requests_that_are_never_answered_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_flight, "MAX_IN_FLIGHT", 3)
    talk = Talk(ANYTHING)
    for at in range(5):
        talk.client(call_line("x", at))
    talk.client(request("ping", 5))
    talk.answer(4)
    assert talk.outcomes == [*(Outcome(at, "no_answer", 0) for at in range(1, 4)), Outcome(5, "ok", 0)]


def test_requests_with_long_ids_or_names_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_flight, "MAX_IN_FLIGHT_CHARS", 300)
    talk = Talk(ANYTHING)
    talk.client(call_line("x", "a" * 90), call_line("y" * 90, 1))
    talk.client(request("ping", "b" * 90))
    talk.answer(1)
    talk.client(call_line("z" * 90, 2), call_line("z" * 90, 2))  # an id that is used twice is one request
    assert talk.outcomes == [Outcome(2, "ok", 0)]
    talk.client(call_line("x", "c" * 90))
    talk.answer("c" * 90)
    assert talk.outcomes[1:] == [Outcome(3, "no_answer", 0), Outcome(1, "no_answer", 0), Outcome(5, "ok", 0)]
    talk.answer("b" * 90)
    talk.answer(2)
    assert talk.outcomes[4:] == [Outcome(4, "ok", 0)]
    assert (talk.awaits_answers, talk.machine.in_flight._chars) == (False, 0)


def test_a_call_without_a_row_can_be_answered_and_retried() -> None:
    talk = Talk(ANYTHING)
    talk.charges("greet")
    talk.machine.handle(Decided([Verdict("allowed")]))
    talk.answer(1, resultType="input_required", inputRequests={"who": {}})
    assert talk.outcomes == []
    talk.client(call_line("greet", 2, inputResponses={"who": {}}))
    assert talk.verdicts[-1].decision == "continued"
