"""A session as a conversation: what the client writes, what the server says, what reaches the other side."""

import json
from typing import Any

import pytest

from mcpguard.core import guard
from mcpguard.core.audit import Outcome
from mcpguard.core.frames import Refusal, read
from mcpguard.core.guard import Forward, Guard, Reply
from mcpguard.core.identity import Identity
from mcpguard.core.policy_parse import parse
from mcpguard.core.verdict import DecisionRequest, Verdict
from mcpguard.errors import PolicyError
from tests.core.build import Talk, call_line, identity, request

ONE_A_MINUTE = '[[rule]]\ntool = "*"\nlimit = "1/1m"\n'
ANYTHING = "mode = 'enforce'"
UNNAMED = Identity("alice", "os", "crm")
INFO = "io.modelcontextprotocol/clientInfo"


def ids(messages: list[Any]) -> list[object]:
    return [message["id"] for message in messages]


# Judging


def test_only_calls_are_limited() -> None:
    talk = Talk(ONE_A_MINUTE)
    for at in range(3):
        talk.client(request("tools/list", f"list{at}"), request("prompts/get", f"get{at}", name="x"))
        talk.client(b'{"jsonrpc":"2.0","method":"notifications/x"}', b'{"jsonrpc":"2.0","id":9,"result":{}}')
    assert (len(talk.to_server), talk.to_client, talk.records) == (12, [], [])
    talk.client(call_line("x", 1), call_line("x", 2), call_line("y", 3))
    assert ids(talk.to_server[12:]) == [1, 3]
    assert ids(talk.to_client) == [2]


def test_what_is_forwarded_is_what_came_on_one_line() -> None:
    line = '{"jsonrpc":"2.0", "id":1,\r"method":"tools/call","params":{"name":"x","arguments":{"a":"\u2028"}}}\r'.encode()
    (request,) = Guard(identity(), parse(ANYTHING), session="s").client_messages(read([line]), now_us=0)
    assert isinstance(request, DecisionRequest)
    forward = Guard(identity(), parse(ANYTHING), session="s").charged(request, Verdict("allowed"), now_us=0)
    assert isinstance(forward, Forward)
    assert forward.data == line.replace(b"\r", b" ").replace("\u2028".encode(), b"\\u2028") + b"\n"


def test_a_call_inside_what_a_lone_cr_would_split_reaches_the_server_as_one_line_or_not_at_all() -> None:
    talk = Talk(ONE_A_MINUTE)
    hidden = call_line("x").decode()
    talk.client(f'{{"jsonrpc":"2.0","method":"n","params":{{"x":"\r{hidden}\r"}}}}'.encode())
    talk.client(f'{{"jsonrpc":"2.0","method":"n"}}\r{hidden}'.encode())
    assert talk.to_server == []
    assert [reply["error"]["code"] for reply in talk.to_client] == [-32700, -32700]


def test_a_batch_is_judged_member_by_member() -> None:
    talk = Talk(ONE_A_MINUTE)
    members = [call_line("x", 1), call_line("x", 2), request("ping", 3), b"7", call_line("y", 4)]
    talk.client(b"[" + b",".join(members) + b"]")
    assert ids(talk.to_server) == [1, 3, 4]
    assert [(reply["id"], reply["error"]["code"]) for reply in talk.to_client] == [(2, 429), (None, -32600)]


def test_actions_come_in_the_order_of_the_lines() -> None:
    talk = Talk(ANYTHING)
    lines = [request("a", 1), call_line("x", 2), b"{", request("b", 3), call_line("y", 4)]
    talk.client(*lines)
    assert ids(talk.to_server) == [1, 2, 3, 4]


def test_what_is_refused_is_audited_and_answered_and_not_forwarded() -> None:
    talk = Talk(ANYTHING)
    talk.client(b"not json", b'{"id":5,"method":"tools/call","params":{"name":"x","Name":"y"}}', Refusal(-32700, "too long"))
    assert talk.to_server == []
    assert [(reply["id"], reply["error"]["code"]) for reply in talk.to_client] == [(None, -32700), (5, -32602), (None, -32700)]
    assert talk.to_client[0]["error"]["message"] == "Refused: not valid JSON"
    told = [(one["decision"], one.get("request_id"), one.get("tool"), one["reason"]) for one in talk.records]
    assert told == [
        ("invalid", None, None, "not valid JSON"),
        ("invalid", 5, "x", "two keys that differ in case alone in params"),
    ]
    assert [verdict.has_own_row for verdict in talk.verdicts] == [True, True, False]


def test_what_asks_for_no_answer_is_refused_in_silence() -> None:
    talk = Talk(ANYTHING)
    talk.client(b'{"method":"tools/call","params":{"name":"x"}}', b'{"id":1,"result":1,"result":2}')
    assert (talk.to_server, talk.to_client) == ([], [])
    assert [one["decision"] for one in talk.records] == ["invalid", "invalid"]


def test_a_denial_is_answered_under_the_id_the_client_wrote() -> None:
    talk = Talk('[[rule]]\ntool = "x"\nlimit = "deny"\n')
    talk.client(call_line("x", "é\ud800"), call_line("x", -5), call_line("x", 10**30))
    assert ids(talk.to_client) == ["é\ud800", -5, 10**30]


# Who is calling


def test_the_handshake_names_the_client_from_then_on() -> None:
    talk = Talk(ANYTHING, who=UNNAMED)
    talk.client(call_line("x", 1))
    talk.client(request("initialize", 2, clientInfo={"name": "claude-ai", "version": "1"}), call_line("x", 3))
    told = [(one["agent"], one["agent_source"]) for one in talk.records]
    assert told == [("unknown::interactive::default", "default"), ("Claude Desktop::interactive::default", "clientInfo")]
    assert talk.guard.agent == "Claude Desktop::interactive::default"


def test_without_a_handshake_each_call_names_its_client() -> None:
    talk = Talk(ANYTHING, who=UNNAMED)
    talk.client(call_line("x", 1, _meta={INFO: {"name": "codex-mcp-client"}}), call_line("x", 2))
    assert [one["agent"] for one in talk.records] == ["Codex::interactive::default", "unknown::interactive::default"]
    talk.client(request("initialize", 3, clientInfo={"name": "claude-ai"}))
    talk.client(call_line("x", 4, _meta={INFO: {"name": "codex-mcp-client"}}))
    assert talk.records[-1]["agent"] == "Codex::interactive::default"


@pytest.mark.parametrize("info", [None, 7, [], {}, {"name": 7}, {"name": ""}, {"name": None}])
def test_a_client_info_that_is_none_names_nobody(info: object) -> None:
    talk = Talk(ANYTHING, who=UNNAMED)
    talk.client(request("initialize", 1, clientInfo=info), call_line("x", 2, _meta={INFO: info}), call_line("x", 3, _meta=7))
    talk.client(b'{"jsonrpc":"2.0","id":4,"method":"initialize","params":[]}')
    assert {one["agent"] for one in talk.records} == {"unknown::interactive::default"}
    assert len(talk.to_server) == 4


def test_a_client_that_names_itself_gets_the_counter_of_that_agent_and_no_other() -> None:
    talk = Talk('[[rule]]\nagent = "*::*::*"\nlimit = "1/1m"\n', who=UNNAMED)
    for at, name in enumerate(["a", "b", "a", "x::background::y", "a:", ":a", "a:"]):
        talk.client(call_line("x", at, _meta={INFO: {"name": name}}))
    assert ids(talk.to_client) == [2, 6]


@pytest.mark.parametrize("name", ["x:", "x::", ":", "::", "x\\", "x\\:", "::subagent::y", "*"])
def test_no_name_that_a_client_gives_itself_gets_it_out_of_a_rule_on_its_tier(name: str) -> None:
    talk = Talk('[[rule]]\nagent = "*::interactive::*"\nlimit = "deny"\n', who=UNNAMED)
    talk.client(call_line("x", 1, _meta={INFO: {"name": name}}))
    assert talk.to_server == []


def test_an_agent_that_a_call_names_counts_only_where_that_is_trusted() -> None:
    meta = {"mcpguard/agent": "a::b::c"}
    trusting = Talk(ANYTHING, who=Identity("alice", "os", "crm", trust_meta=True))
    wary = Talk(ANYTHING, who=UNNAMED)
    for talk in (trusting, wary):
        talk.client(call_line("x", 1, _meta=meta), call_line("x", 2, _meta={"mcpguard/agent": 7}))
    assert next((one["agent"], one["agent_source"]) for one in trusting.records) == ("a::b::c", "meta")
    assert {one["agent"] for one in wary.records} == {"unknown::interactive::default"}


def test_roles_and_the_users_source_are_in_the_audit() -> None:
    talk = Talk(ANYTHING, who=identity(roles=("dev", "ops")))
    talk.client(call_line("x"))
    assert (talk.records[0]["roles"], talk.records[0]["user_source"]) == (["dev", "ops"], "config")


def test_memory_for_callers_is_bounded() -> None:
    talk = Talk(ANYTHING)
    talk.client(*[call_line(f"tool{at}", at) for at in range(3000)])
    assert len(talk.guard._callers) <= 1024
    assert len(talk.to_server) == 3000


def test_a_trace_parent_is_taken_up_if_it_is_one() -> None:
    talk = Talk(ANYTHING)
    trace = "0af7651916cd43dd8448eb211c80319c"
    parents: list[object] = [f"00-{trace}-b7ad6b7169203331-01", f"00-{trace}-b7ad6b7169203331", 7, "x" * 100]
    talk.client(*[call_line("x", at, _meta={"traceparent": parent}) for at, parent in enumerate(parents)])
    assert [one["trace_id"] == trace for one in talk.records] == [True, False, False, False]


# Outcomes


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        ({"result": {"content": []}}, "ok"),
        ({"result": {"isError": True}}, "tool_error"),
        ({"error": {"code": 1, "message": "m"}}, "rpc_error"),
    ],
)
def test_an_outcome_and_its_duration_are_read_off_the_answer(answer: dict[str, object], outcome: str) -> None:
    talk = Talk(ANYTHING)
    talk.client(call_line("x", 7), call_line("x", 8))
    assert talk.guard.awaits_answers
    talk.time.pass_ms(3)
    talk.server(
        {"jsonrpc": "2.0", "method": "notifications/progress", "params": {"id": 8}}, {"jsonrpc": "2.0", "id": 7} | answer
    )
    talk.server({"jsonrpc": "2.0", "id": 8, "result": {}}, {"jsonrpc": "2.0", "id": 7} | answer)
    assert talk.outcomes == [Outcome(0, outcome, 3000), Outcome(1, "ok", 3000)]
    assert not talk.guard.awaits_answers


def test_answers_to_what_is_no_call_have_no_outcome_and_leave_nothing_behind() -> None:
    talk = Talk(ANYTHING)
    talk.client(request("tools/list", 1))
    assert talk.guard.awaits_answers
    talk.answer(1, tools=[])
    assert (talk.outcomes, talk.guard.awaits_answers) == ([], False)


def test_a_denied_call_awaits_nothing() -> None:
    talk = Talk('[[rule]]\ntool = "x"\nlimit = "deny"\n')
    talk.client(call_line("x", 1))
    assert not talk.guard.awaits_answers


def test_ids_of_different_types_are_different_requests() -> None:
    talk = Talk(ANYTHING)
    talk.client(call_line("x", 1), call_line("x", "1"))
    talk.answer("1")
    assert [outcome.row_id for outcome in talk.outcomes] == [1]


def test_of_two_calls_under_one_id_the_first_counts_as_never_answered() -> None:
    talk = Talk(ANYTHING)
    talk.client(call_line("x", 7), call_line("x", 7))
    talk.answer(7)
    assert [(outcome.row_id, outcome.outcome) for outcome in talk.outcomes] == [(0, "no_answer"), (1, "ok")]


@pytest.mark.parametrize("request_id", [7, "a", "é", int("9" * 4000)])
def test_a_cancelled_call_ends_as_cancelled_and_its_late_answer_counts_for_nothing(request_id: object) -> None:
    talk = Talk(ANYTHING)
    talk.client(call_line("x", request_id))
    talk.time.pass_ms(5)
    talk.client(
        json.dumps({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": request_id}}).encode()
    )
    assert talk.guard.awaits_answers
    talk.answer(request_id)
    assert talk.outcomes == [Outcome(0, "cancelled", 5000)]
    assert not talk.guard.awaits_answers
    assert [message["method"] for message in talk.to_server] == ["tools/call", "notifications/cancelled"]


def test_a_call_with_an_id_of_very_many_digits_can_be_cancelled() -> None:
    talk = Talk(ANYTHING)
    number = b"9" * 5000
    requests = talk.guard.client_messages(
        read([b'{"id":' + number + b',"method":"tools/call","params":{"name":"x"}}']), now_us=0
    )
    assert isinstance(requests[0], DecisionRequest)
    (verdict,) = talk.store.decide([requests[0]], talk.journal)
    talk.guard.charged(requests[0], verdict, now_us=0)
    talk.guard.client_messages(read([b'{"method":"notifications/cancelled","params":{"requestId":' + number + b"}}"]), now_us=0)
    assert [outcome.outcome for outcome in talk.guard.server_lines([], now_us=0)] == ["cancelled"]


@pytest.mark.parametrize("request_id", [8, "7", True, None, 7.0, [7], {}])
def test_cancelling_what_is_not_in_flight_changes_nothing(request_id: object) -> None:
    talk = Talk(ANYTHING)
    talk.client(call_line("x", 7), request("ping", 1))
    talk.client(json.dumps({"method": "notifications/cancelled", "params": {"requestId": request_id}}).encode())
    talk.client(b'{"method":"notifications/cancelled"}')
    talk.answer(7)
    assert [outcome.outcome for outcome in talk.outcomes] == ["ok"]


def test_cancelling_what_is_no_call_has_no_outcome() -> None:
    talk = Talk(ANYTHING)
    talk.client(request("ping", 1), b'{"method":"notifications/cancelled","params":{"requestId":1}}')
    talk.answer(1)
    assert (talk.outcomes, talk.guard.awaits_answers) == ([], False)


def test_requests_that_are_never_answered_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MAX_IN_FLIGHT", 3)
    talk = Talk(ANYTHING)
    for at in range(5):
        talk.client(call_line("x", at))
    talk.client(request("ping", 5))
    talk.answer(4)
    assert talk.outcomes == [*(Outcome(at, "no_answer", 0) for at in range(3)), Outcome(4, "ok", 0)]


def test_requests_with_long_ids_or_names_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MAX_IN_FLIGHT_CHARS", 300)
    talk = Talk(ANYTHING)
    talk.client(call_line("x", "a" * 90), call_line("y" * 90, 1))
    talk.client(request("ping", "b" * 90))
    talk.answer(1)
    talk.client(call_line("z" * 90, 2), call_line("z" * 90, 2))  # an id that is used twice is one request
    assert talk.outcomes == [Outcome(1, "ok", 0)]
    talk.client(call_line("x", "c" * 90))
    talk.answer("c" * 90)
    assert talk.outcomes[1:] == [Outcome(2, "no_answer", 0), Outcome(0, "no_answer", 0), Outcome(4, "ok", 0)]
    talk.answer("b" * 90)
    talk.answer(2)
    assert talk.outcomes[4:] == [Outcome(3, "ok", 0)]
    assert (talk.guard.awaits_answers, talk.guard._in_flight_chars) == (False, 0)


def test_free_retries_with_long_states_and_names_take_little_memory() -> None:
    talk = Talk(ANYTHING)
    talk.client(call_line("x" * 100_000, 1))
    asks(talk, 1, "s" * 100_000)
    assert len(repr(talk.guard._retries._waiting)) < 1000
    talk.client(call_line("x" * 100_000, 2, requestState="s" * 100_000))
    assert talk.records[-1]["decision"] == "continued"


# Retries of a multi-round-trip request


def asks(talk: Talk, request_id: object, state: str | None = None, *inputs: str) -> None:
    carried = {} if state is None else {"requestState": state}
    talk.answer(request_id, resultType="input_required", inputRequests={key: {} for key in inputs}, **carried)


def test_a_retry_that_the_server_asked_for_is_free_once() -> None:
    talk = Talk(ONE_A_MINUTE)
    talk.client(call_line("x", 1))
    asks(talk, 1, "s1", "who")
    talk.client(call_line("x", 2, requestState="s1", inputResponses={"who": 1}))
    talk.client(call_line("x", 3, requestState="s1", inputResponses={"who": 1}))
    assert (ids(talk.to_server), ids(talk.to_client)) == ([1, 2], [3])
    assert [one["decision"] for one in talk.records] == ["allowed", "continued", "rate_limited"]
    assert sum(held.used for held in talk.store.held()) == 1


def test_a_retry_that_was_not_forwarded_since_the_store_was_unavailable_stays_free() -> None:
    talk = Talk(ONE_A_MINUTE)
    talk.client(call_line("x", 1))
    asks(talk, 1, "s1", "who")
    (request,) = talk.charges("x", requestState="s1", inputResponses={"who": 1})
    assert request.decided == "continued"
    assert isinstance(talk.guard.charged(request, Verdict("unavailable"), now_us=0), Reply)
    talk.client(call_line("x", 3, requestState="s1", inputResponses={"who": 1}))
    talk.client(call_line("x", 4, requestState="s1", inputResponses={"who": 1}))
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
def test_what_only_claims_to_be_a_retry_pays(forged: dict[str, Any]) -> None:
    talk = Talk('[[rule]]\nuser = "*"\nlimit = "1/1m"\n')
    talk.client(call_line("x", 1))
    asks(talk, 1, "s1", "who")
    talk.client(call_line(forged.pop("tool", "x"), 2, **forged))
    assert ids(talk.to_client) == [2]
    talk.client(call_line("x", 3, requestState="s1"))
    assert ids(talk.to_server) == [1, 3]


def test_no_retry_goes_through_what_a_policy_has_closed_since() -> None:
    talk = Talk(ONE_A_MINUTE)
    talk.client(call_line("x", 1))
    asks(talk, 1, "s1")
    talk.guard.take_up(parse('[[rule]]\ntool = "x"\nlimit = "deny"\n'))
    talk.client(call_line("x", 2, requestState="s1"))
    assert ids(talk.to_client) == [2]
    talk.guard.take_up(parse('[[rule]]\ntool = "x"\nlimit = "deny"\nmode = "observe"\n'))
    talk.client(call_line("x", 3, requestState="s1"))
    assert [one["decision"] for one in talk.records] == ["allowed", "denied", "continued"]


def test_a_retry_of_what_another_user_called_pays() -> None:
    talk = Talk(ONE_A_MINUTE)
    talk.client(call_line("x", 1))
    asks(talk, 1, "s1")
    talk.guard.identify(identity("bob@acme.com"))
    talk.client(call_line("x", 2, requestState="s1"))
    assert ids(talk.to_client) == [2]
    talk.guard.identify(identity())
    talk.client(call_line("x", 3, requestState="s1"))
    assert [one["decision"] for one in talk.records] == ["allowed", "rate_limited", "continued"]


@pytest.mark.parametrize("inputs", [{"who": 1}, {}, {"who": 1, "why": 2, "more": 3}, ["who", "why"], None])
def test_a_retry_without_state_has_to_give_just_the_inputs_that_were_asked_for(inputs: object) -> None:
    talk = Talk(ONE_A_MINUTE)
    talk.client(call_line("x", 1))
    asks(talk, 1, None, "who", "why")
    talk.client(call_line("x", 2, inputResponses=inputs))
    assert ids(talk.to_client) == [2]
    talk.client(call_line("x", 3, inputResponses={"why": 1, "who": 2}))
    assert ids(talk.to_server) == [1, 3]


def test_ten_retries_are_free_and_the_eleventh_pays() -> None:
    talk = Talk('[[rule]]\ntool = "x"\nlimit = "2/1m"\n')
    talk.client(call_line("x", 0))
    for at in range(1, 12):
        asks(talk, at - 1, f"s{at}")
        talk.client(call_line("x", at, requestState=f"s{at}"))
    decisions = [one["decision"] for one in talk.records]
    assert decisions == ["allowed", *["continued"] * 10, "allowed"]
    asks(talk, 11, "again")
    talk.client(call_line("x", 12, requestState="again"), call_line("x", 13))
    assert [one["decision"] for one in talk.records][12:] == ["continued", "rate_limited"]


def test_a_result_to_what_is_no_call_issues_no_free_retry() -> None:
    talk = Talk(ONE_A_MINUTE)
    talk.client(call_line("x", 1), request("resources/read", 2, name="x"))
    asks(talk, 2, "s")
    talk.client(call_line("x", 3, requestState="s"))
    assert ids(talk.to_client) == [3]


def test_free_retries_that_nobody_takes_are_bounded_and_the_oldest_is_forgotten() -> None:
    talk = Talk('[[rule]]\ntool = "x"\nlimit = "1100/1m"\n')
    for at in range(1100):
        talk.client(call_line("x", at))
        asks(talk, at, f"s{at}")
    assert len(talk.guard._retries._waiting) == 1024
    talk.client(call_line("x", 2000, requestState="s0"), call_line("x", 2001, requestState="s1099"))
    assert ids(talk.to_client) == [2000]


def test_outcomes_of_retries_are_joined_to_rows_of_their_own() -> None:
    talk = Talk(ONE_A_MINUTE)
    talk.client(call_line("x", 1))
    asks(talk, 1, "s")
    talk.client(call_line("x", 2, requestState="s"))
    talk.answer(2, content=[])
    assert talk.outcomes == [Outcome(0, "ok", 0), Outcome(1, "ok", 0)]


# The policy


@pytest.mark.parametrize("denials", ["error", "result"])
def test_what_comes_when_the_server_takes_no_more_is_answered_and_audited_and_neither_charged_nor_forwarded(
    denials: str,
) -> None:
    talk = Talk(ONE_A_MINUTE, denials=denials)
    talk.guard.server_gone("the server has closed its input")
    talk.client(
        call_line("x", 1), request("tools/list", 2), b'{"jsonrpc":"2.0","method":"notifications/progress"}', b"not json"
    )
    assert talk.to_server == []
    assert [(one["id"], one["error"]["code"]) for one in talk.to_client] == [(1, -32000), (2, -32000), (None, -32700)]
    assert talk.to_client[0]["error"]["message"] == "the server has closed its input"
    assert [(one["decision"], one["reason"]) for one in talk.records] == [
        ("unavailable", "server_gone"),
        ("invalid", "not valid JSON"),
    ]
    assert not talk.store.held()


def test_a_broken_policy_at_the_start_closes_every_tool_until_it_is_mended() -> None:
    talk = Talk(PolicyError("policy.toml: line 1: broken"))
    talk.client(call_line("x", 1), request("tools/list", 2))
    assert (ids(talk.to_server), ids(talk.to_client)) == ([2], [1])
    talk.guard.take_up(PolicyError("policy.toml: line 2: broken still"))
    talk.client(call_line("x", 3))
    assert "line 2: broken still" in talk.to_client[-1]["error"]["message"]
    talk.guard.take_up(parse(ONE_A_MINUTE))
    talk.client(call_line("x", 4), call_line("x", 5))
    assert (ids(talk.to_server), ids(talk.to_client)) == ([2, 4], [1, 3, 5])
    assert [one["decision"] for one in talk.records] == ["unavailable", "allowed", "rate_limited"]


def test_a_broken_edit_leaves_the_last_good_policy_in_force() -> None:
    talk = Talk(ONE_A_MINUTE)
    talk.client(call_line("x", 1))
    talk.guard.take_up(PolicyError("broken"))
    talk.client(call_line("x", 2), call_line("y", 3))
    assert (ids(talk.to_server), ids(talk.to_client)) == ([1, 3], [2])


def test_an_edit_is_obeyed_from_the_next_call_on_and_keeps_the_counters() -> None:
    talk = Talk(ONE_A_MINUTE)
    talk.client(call_line("x", 1), call_line("x", 2))
    talk.guard.take_up(parse(ONE_A_MINUTE.replace("1/1m", "2/1m")))
    talk.client(call_line("x", 3), call_line("x", 4))
    assert (ids(talk.to_server), ids(talk.to_client)) == ([1, 3], [2, 4])


def test_a_broken_policy_lets_no_retry_through() -> None:
    talk = Talk(PolicyError("broken"))
    talk.client(call_line("x", 1, requestState="s"))
    assert ids(talk.to_client) == [1]


def test_taking_up_a_policy_is_a_row_that_leads_to_nothing() -> None:
    talk = Talk(ONE_A_MINUTE)
    note = talk.guard.policy_note(reason="taken up")
    (verdict,) = talk.store.decide([note], talk.journal)
    assert talk.guard.charged(note, verdict, now_us=0) is None
    assert talk.records[0]["policy"] == parse(ONE_A_MINUTE).digest
    broken = Talk(PolicyError("x")).guard.policy_note(reason="not taken up: x")
    assert broken.detail == {"reason": "not taken up: x"}


# The end


def test_when_the_server_exits_every_request_in_flight_is_answered() -> None:
    talk = Talk(ANYTHING)
    for line in (call_line("x", 1), request("ping", "two"), call_line("x", 3), call_line("x", 4)):
        talk.client(line)
    talk.answer(3)
    talk.client(b'{"method":"notifications/cancelled","params":{"requestId":4}}')
    talk.time.pass_ms(2)
    replies, outcomes = talk.guard.server_exited("server exited with status 7", now_us=talk.time())
    told = [json.loads(reply.data) for reply in replies]
    assert told == [
        {"jsonrpc": "2.0", "id": 1, "error": {"code": -32000, "message": "server exited with status 7"}},
        {"jsonrpc": "2.0", "id": "two", "error": {"code": -32000, "message": "server exited with status 7"}},
    ]
    assert outcomes == [Outcome(2, "cancelled", 0), Outcome(0, "no_answer", 2000)]
    assert talk.guard.server_exited("again", now_us=0) == ([], [])
    assert not talk.guard.awaits_answers


def test_what_the_server_did_not_take_is_answered() -> None:
    talk = Talk(ANYTHING)
    lines = [call_line("x", 1), request("ping", 2), b'{"method":"n"}', b'{"id":9,"result":{}}']
    talk.client(*lines)
    replies = talk.guard.undelivered([*lines, b"", call_line("x", 77)], now_us=talk.time())
    assert ids([json.loads(reply.data) for reply in replies]) == [1, 2]
    assert {json.loads(reply.data)["error"]["code"] for reply in replies} == {-32000}
    assert talk.guard.server_lines([], now_us=talk.time()) == [Outcome(0, "no_answer", 0)]
    assert not talk.guard.awaits_answers


def test_once_the_client_has_left_nothing_is_answered_in_the_servers_place_but_what_the_guard_denies_or_refuses_is() -> None:
    talk = Talk(ONE_A_MINUTE)
    lines = [call_line("x", 1), request("ping", 2)]
    talk.client(*lines)
    talk.guard.client_left()
    talk.client(call_line("x", 3), b"not json")
    assert talk.guard.undelivered(lines[1:], now_us=talk.time()) == []
    talk.guard.server_gone("the server has closed its input")
    talk.client(call_line("x", 4), request("ping", 5))
    assert talk.guard.server_exited("over", now_us=talk.time()) == ([], [Outcome(0, "no_answer", 0)])
    assert [(one["id"], one["error"]["code"]) for one in talk.to_client] == [(3, 429), (None, -32700)]
    assert [one["decision"] for one in talk.records] == ["allowed", "rate_limited", "invalid", "unavailable"]


def test_two_calls_that_are_asked_for_the_same_have_a_free_retry_each() -> None:
    talk = Talk()
    talk.client(call_line("greet", 1), call_line("greet", 2))
    for request_id in (1, 2):
        talk.answer(request_id, resultType="input_required", inputRequests={"who": {}})
    for request_id in (3, 4, 5):
        talk.client(call_line("greet", request_id, inputResponses={"who": {}}))
    assert [verdict.decision for verdict in talk.verdicts[2:]] == ["continued", "continued", "allowed"]


def test_a_call_that_is_cancelled_in_the_same_reading_is_cancelled() -> None:
    talk = Talk(ANYTHING)
    cancel = json.dumps({"method": "notifications/cancelled", "params": {"requestId": 1}}).encode()
    talk.client(call_line("slow", 1), cancel)
    talk.server({"id": 9, "result": {}})
    replies, _ = talk.guard.server_exited("gone", now_us=0)
    assert replies == []


def test_a_long_name_is_not_remembered_and_its_counter_has_it_cut() -> None:
    talk = Talk('[[rule]]\ntool = "*"\nlimit = "1/1h"\n')
    name = "x" * 5000
    talk.client(call_line(name, 1), call_line(name, 2), call_line(name + "y", 3))
    assert [verdict.decision for verdict in talk.verdicts] == ["allowed", "rate_limited", "allowed"]
    assert talk.guard._callers == {}
    assert all(len(held.label) < 600 for held in talk.store.held())


def test_a_call_that_no_store_has_a_row_of_is_answered_and_may_be_retried() -> None:
    talk = Talk(ANYTHING)
    (request,) = talk.charges("greet")
    talk.guard.charged(request, Verdict("allowed"), now_us=0)
    talk.answer(1, resultType="input_required", inputRequests={"who": {}})
    assert talk.outcomes == []
    talk.client(call_line("greet", 2, inputResponses={"who": {}}))
    assert talk.verdicts[-1].decision == "continued"


def test_arguments_with_a_number_beyond_the_usual_are_kept_in_full_as_text() -> None:
    talk = Talk(ANYTHING, arguments="full")
    talk.client(b'{"id":1,"method":"tools/call","params":{"name":"t","arguments":{"n":1e400}}}')
    assert talk.records[0]["arguments"] == '{"n": Infinity}'


def test_calls_alike_have_one_plan_and_memory_for_them_is_bounded() -> None:
    talk = Talk('[[rule]]\nuser = "*"\nlimit = "1/1s"\n')
    first, second = talk.charges("search", 2)
    assert first.plan is second.plan
    for number in range(3000):
        talk.charges(f"tool {number}")
    assert len(talk.guard._callers) <= guard._MAX_CALLERS
