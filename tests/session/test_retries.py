"""Free retries of a multi-round-trip request, as conversations."""

import pickle
from typing import Any

import pytest

from mcpguard.session.in_flight import FreeRetries
from mcpguard.wire.answers import RetryInput
from tests.build import Talk, call_line, identity, request

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
