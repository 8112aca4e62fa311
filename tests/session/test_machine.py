"""A session as a conversation: what the client and the server write, and what comes out, in order."""

from typing import Any

import pytest

from mcpguard.errors import PolicyError
from mcpguard.identity.caller import Identity
from mcpguard.policy.parse import parse
from mcpguard.session import decision_requests
from mcpguard.session.audit import Outcome
from mcpguard.session.decision_requests import DecisionRequests
from mcpguard.session.machine import MAX_OUTCOMES, MAX_PORTION, MAX_PORTION_BYTES
from mcpguard.wire import frames
from mcpguard.wire.arguments import args_hash
from mcpguard.wire.frames import Refusal
from tests.build import Talk, call_line, request

ONE_A_MINUTE = '[[rule]]\ntool = "*"\nlimit = "1/1m"\n'
CLOSED = '[[rule]]\ntool = "x"\nlimit = "deny"\n'
UNNAMED = Identity("alice", "os", "crm")
INFO = "io.modelcontextprotocol/clientInfo"
NOTIFICATION = b'{"jsonrpc":"2.0","method":"notifications/x"}'
RESPONSE = b'{"jsonrpc":"2.0","id":9,"result":{}}'


# Judging


def test_only_calls_are_limited() -> None:
    talk = Talk(ONE_A_MINUTE)
    for at in range(3):
        came_out = talk.client(request("tools/list", f"list{at}"), request("prompts/get", f"get{at}", name="x"))
        assert came_out == [f"forwarded list{at}", f"forwarded get{at}"]
        assert talk.client(NOTIFICATION, RESPONSE) == ["forwarded notifications/x", "forwarded answer 9"]
    assert (len(talk.to_server), talk.to_client, talk.records) == (12, [], [])
    came_out = talk.client(call_line("x", 1), call_line("x", 2), call_line("y", 3))
    assert came_out == ["forwarded 1", "forwarded 3", "answered 2: 429"]


def test_a_message_is_forwarded_as_it_came() -> None:
    line = '{"jsonrpc":"2.0", "id":1,\r"method":"tools/call","params":{"name":"x","arguments":{"a":"\u2028"}}}\r'.encode()
    talk = Talk()
    assert talk.client(line) == ["forwarded 1"]
    assert talk.forwarded_bytes == [line.replace(b"\r", b" ").replace("\u2028".encode(), b"\\u2028") + b"\n"]


def test_the_members_of_a_batch_are_decided_separately() -> None:
    talk = Talk(ONE_A_MINUTE)
    members = [call_line("x", 1), call_line("x", 2), request("ping", 3), b"7", call_line("y", 4)]
    came_out = talk.client(b"[" + b",".join(members) + b"]")
    assert came_out == ["forwarded 1", "forwarded 3", "forwarded 4", "answered 2: 429", "answered None: -32600"]


def test_frames_are_in_the_order_of_the_messages() -> None:
    talk = Talk(CLOSED)
    came_out = talk.client(request("a", 1), call_line("y", 2), b"{", request("b", 3), call_line("x", 4), call_line("y", 5))
    assert came_out == ["forwarded 1", "forwarded 2", "forwarded 3", "forwarded 5", "answered None: -32700", "answered 4: 403"]


def test_no_message_of_a_read_is_forwarded_before_all_are_decided() -> None:
    talk = Talk()
    messages = frames.read([request("ping", 1), call_line("x", 2), NOTIFICATION])
    assert [one.request_id for one in talk.machine.judge(messages, 0)] == ["2"]


def test_requests_are_decided_in_portions() -> None:
    talk = Talk(f'[[rule]]\ntool = "*"\nlimit = "{MAX_PORTION + 2}/1m"\n')
    came_out = talk.client_calls("x", *range(MAX_PORTION + 4))
    assert came_out[MAX_PORTION:-2] == [f"forwarded {MAX_PORTION}", f"forwarded {MAX_PORTION + 1}"]
    assert came_out[-2:] == [f"answered {MAX_PORTION + 2}: 429", f"answered {MAX_PORTION + 3}: 429"]
    assert talk.together == [MAX_PORTION, 4]
    long = [call_line("y", f"long {at}", more="x" * (MAX_PORTION_BYTES * 2 // 3)) for at in range(3)]
    talk.client(*long, call_line("y", "short"))
    assert talk.together[2:] == [1, 1, 2]


def test_a_refused_request_is_audited_answered_and_not_forwarded() -> None:
    talk = Talk()
    two_names = b'{"id":5,"method":"tools/call","params":{"name":"x","Name":"y"}}'
    came_out = talk.client(b"not json", two_names, Refusal(-32700, "too long"))
    assert came_out == ["answered None: -32700", "answered 5: -32602", "answered None: -32700"]
    assert talk.to_client[0]["error"]["message"] == "Refused: not valid JSON"
    assert [one["decision"] for one in talk.records] == ["invalid"] * 3
    told = [(one.get("request_id"), one.get("tool"), one["reason"]) for one in talk.records]
    two_names_differ = "two keys that differ only by case in params"
    assert told == [(None, None, "not valid JSON"), (5, "x", two_names_differ), (None, None, "too long")]


def test_a_refused_notification_is_not_answered() -> None:
    talk = Talk()
    assert talk.client(b'{"method":"tools/call","params":{"name":"x"}}', b'{"id":1,"result":1,"result":2}') == []
    assert [one["decision"] for one in talk.records] == ["invalid", "invalid"]


def test_refused_frames_share_a_row_only_if_their_reason_is_the_same() -> None:
    talk = Talk()
    talk.client(b"not json", b"nor this", b"[]", b'{"id":1,"result":1,"result":2}', b"[]")
    assert [one["reason"] for one in talk.records] == [
        "not valid JSON",
        "a batch must have 1 to 1024 messages",
        "a key that occurs twice",
    ]


def test_a_denial_has_the_id_as_the_client_wrote_it() -> None:
    talk = Talk(CLOSED)
    talk.client_calls("x", "é\ud800", -5, 10**30)
    assert [one["id"] for one in talk.to_client] == ["é\ud800", -5, 10**30]


def test_each_denial_and_refusal_with_a_row_of_its_own_is_logged() -> None:
    talk = Talk(ONE_A_MINUTE)
    talk.client(call_line("x", 1), call_line("x", 2), call_line("x", 3), b"not json")
    assert [line.split()[0] for line in talk.logged] == ["invalid", "rate_limited"]
    assert talk.log_kinds == ["invalid ", "rate_limited tool"]


# Who is calling


def test_a_client_counts_in_the_counter_of_its_agent() -> None:
    talk = Talk('[[rule]]\nagent = "*::*::*"\nlimit = "1/1m"\n', who=UNNAMED)
    came_out = []
    for at, name in enumerate(["a", "b", "a", "x::background::y", "a:", ":a", "a:"]):
        came_out += talk.client(call_line("x", at, _meta={INFO: {"name": name}}))
    assert [line for line in came_out if line.startswith("answered")] == ["answered 2: 429", "answered 6: 429"]


def test_the_agent_in_a_calls_meta_counts_only_if_meta_is_trusted() -> None:
    for trusted, agent in ((True, "a::b::c"), (False, "unknown::interactive::default")):
        talk = Talk(who=UNNAMED._replace(trust_meta=trusted))
        talk.client(call_line("x", 1, _meta={"mcpguard/agent": "a::b::c"}), call_line("x", 2, _meta={"mcpguard/agent": 7}))
        assert [one["agent"] for one in talk.records] == [agent, "unknown::interactive::default"]


def test_equal_calls_share_a_plan_and_the_number_of_plans_is_bounded() -> None:
    talk = Talk('[[rule]]\nuser = "*"\nlimit = "1/1s"\n')
    first, second = talk.charges("search", 2)
    assert first.plan is second.plan
    for number in range(3000):
        talk.charges(f"tool {number}")
    assert len(talk.machine.requests.callers) <= decision_requests.MAX_CALLERS


def test_a_long_name_is_not_remembered_and_is_cut_in_its_counter() -> None:
    talk = Talk('[[rule]]\ntool = "*"\nlimit = "1/1h"\n')
    name = "x" * 5000
    came_out = talk.client(call_line(name, 1), call_line(name, 2), call_line(name + "y", 3))
    assert came_out == ["forwarded 1", "forwarded 3", "answered 2: 429"]
    assert [verdict.decision for verdict in talk.verdicts] == ["allowed", "rate_limited", "allowed"]
    assert not talk.machine.requests.callers
    assert all(len(held.label) < 600 for held in talk.store.counters())


def test_a_valid_traceparent_gives_the_trace_id_but_not_one_with_zeroes_or_a_forbidden_version() -> None:
    """W3C Trace Context has those ignored, and a collector drops spans whose trace id is zero."""
    talk = Talk(session="00000000000000aa")
    trace, span = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    zeroes = [f"00-{'0' * 32}-{span}-01", f"00-{trace}-{'0' * 16}-01"]
    parents = [f"00-{trace}-{span}-01", *zeroes, f"ff-{trace}-{span}-01", f"00-{trace}-{span}", 7, "x" * 100]
    talk.client(*[call_line("x", at, _meta={"traceparent": parent}) for at, parent in enumerate(parents)])
    assert [one["trace_id"] for one in talk.records] == [trace, *(f"00000000000000aa{seq:016x}" for seq in range(2, 8))]


def test_each_row_has_the_hash_of_its_calls_own_arguments() -> None:
    talk = Talk(args_key=lambda: b"k")
    values = [1, 2, 2, 1]
    talk.client(*(call_line("x", at, arguments={"q": value}) for at, value in enumerate(values)))
    assert [one["args_hash"] for one in talk.records] == [args_hash({"q": value}, b"k").hex() for value in values]


def test_plans_for_other_arguments_are_bounded() -> None:
    talk = Talk('[[rule]]\nuser = "*"\nper = ["user", "arguments"]\nlimit = "2/10m"\n')
    talk.client(*(call_line("x", at, arguments={"q": at}) for at in range(200)))
    (caller,) = talk.machine.requests.callers.values()
    assert len(caller.of_arguments) <= decision_requests.MAX_ARGUMENTS
    came_out = talk.client(call_line("x", 200, arguments={"q": 0}), call_line("x", 201, arguments={"q": 0}))
    assert came_out == ["forwarded 200", "answered 201: 429"]


def test_arguments_with_a_number_beyond_the_range_of_doubles_are_kept_as_text() -> None:
    talk = Talk(arguments="full")
    talk.client(b'{"id":1,"method":"tools/call","params":{"name":"t","arguments":{"n":1e400}}}')
    assert talk.records[0]["arguments"] == '{"n": Infinity}'


# The policy


def test_a_session_begins_with_the_row_of_its_policy() -> None:
    talk = Talk(ONE_A_MINUTE)
    assert talk.start() == []
    (row,) = talk.policy_records
    assert (row["policy"], row["reason"]) == (parse(ONE_A_MINUTE).digest, "in force at the start")
    assert talk.logged == []


def test_an_invalid_policy_at_the_start_closes_every_tool_until_it_is_mended_and_a_later_one_changes_nothing() -> None:
    talk = Talk(PolicyError("policy.toml: line 1: broken"))
    assert talk.client(call_line("x", 1), request("tools/list", 2)) == ["forwarded 2", "answered 1: 503"]
    assert talk.take_up(PolicyError("policy.toml: line 2: broken still", "a hint")) == []
    assert talk.client_calls("x", 3) == ["answered 3: 503"]
    message = talk.to_client[-1]["error"]["message"]
    assert ("policy.toml: line 2: broken still" in message, "a hint" in message) == (True, False)
    assert talk.take_up(ONE_A_MINUTE) == []
    assert talk.client_calls("x", 4, 5) == ["forwarded 4", "answered 5: 429"]
    assert [one["decision"] for one in talk.records] == ["unavailable", "allowed", "rate_limited"]
    talk.take_up(PolicyError("broken"))
    assert talk.client(call_line("x", 6), call_line("y", 7)) == ["forwarded 7", "answered 6: 429"]


def test_each_change_of_the_policy_has_a_row_that_names_the_one_in_force_and_a_line_that_names_a_new_mode() -> None:
    observed = f'mode = "observe"\n{ONE_A_MINUTE}'
    looser = observed.replace("1/1m", "2/1m")
    enforced, observing, later = (parse(text).digest for text in (ONE_A_MINUTE, observed, looser))
    changes: list[tuple[str | PolicyError, str, str | None]] = [
        (PolicyError("y"), "policy not applied: y", None),
        (ONE_A_MINUTE, "policy applied: mode=enforce", enforced),
        (observed, "policy applied: mode=observe (nothing is denied)", observing),
        (looser, "policy applied", later),
        (PolicyError("z"), "policy not applied: z", later),
        (ONE_A_MINUTE, "policy applied: mode=enforce", enforced),
    ]
    talk = Talk(PolicyError("x"))
    for found, _, _ in changes:
        assert talk.take_up(found) == []
    assert talk.logged == [said for _, said, _ in changes]
    assert talk.errors == ["policy not applied: y", "policy not applied: z"]
    rows = [(one.get("policy"), f"policy {one['reason']}") for one in talk.policy_records]
    assert rows == [(digest, said.partition(": mode")[0]) for _, said, digest in changes]


# The store


def test_if_the_store_fails_calls_are_denied_and_everything_else_passes() -> None:
    talk = Talk()
    talk.store_failure = "the disk is full"
    came_out = talk.client(call_line("x", 1), request("ping", 2), b"not json")
    assert came_out == ["forwarded 2", "answered 1: 503", "answered None: -32700"]
    error = talk.to_client[0]["error"]
    assert error["data"]["reason"] == "store_unavailable"
    assert error["message"] == "Tool x was not called: the store of counters is unavailable (the disk is full)."
    assert (talk.errors, talk.log_kinds) == (["store unavailable: the disk is full"], ["invalid ", "store unavailable"])
    talk.store_failure = ""
    assert talk.client_calls("x", 3) == ["forwarded 3"]


def test_if_the_store_fails_for_a_portion_only_its_calls_are_denied() -> None:
    talk = Talk()
    talk.fails_after = 1
    came_out = talk.client_calls("x", *range(2 * MAX_PORTION + 1))
    assert came_out[:MAX_PORTION] == [f"forwarded {at}" for at in range(MAX_PORTION)]
    assert came_out[MAX_PORTION:] == [f"answered {at}: 503" for at in range(MAX_PORTION, 2 * MAX_PORTION + 1)]


def test_many_outcomes_are_recorded_in_portions() -> None:
    talk, calls = Talk(), range(2 * MAX_OUTCOMES + 1)
    talk.client_calls("x", *calls)
    talk.server(*[{"id": at, "result": {}} for at in calls])
    assert talk.outcomes == [Outcome(at + 1, "ok", 0) for at in calls]
    assert talk.recorded == [MAX_OUTCOMES, MAX_OUTCOMES, 1]


def test_rows_that_sum_up_denials_are_recorded_and_logged_and_at_the_end_none_is_left() -> None:
    talk = Talk(ONE_A_MINUTE)
    talk.client_calls("x", 0, 1, 2, 3, 4)
    assert (talk.record(), len(talk.logged)) == ([], 1)
    talk.wall.pass_s(1)
    assert talk.record() == []
    assert (talk.records[-1]["decision"], talk.records[-1]["repeats"]) == ("rate_limited", 3)
    assert "repeats=3" in talk.logged[1]
    assert talk.log_kinds == ["rate_limited tool"] * 2
    talk.client_calls("x", 5)
    assert talk.record(everything=True) == []
    assert talk.records[-1]["repeats"] == 1


# A bug


def test_after_a_bug_every_request_is_answered_and_none_is_forwarded() -> None:
    talk = Talk()
    answered: list[bytes | Refusal] = [request("ping", 1), call_line("x", 2), b'{"id":4,"method":7}', b"not json"]
    lines = [*answered, NOTIFICATION, b'{"id":5,"result":{},"ID":5}', Refusal(-32700, "too long")]
    talk.machine.judge(frames.read(lines), 0)  # the store breaks down here
    refused = ["answered 4: -32600", "answered None: -32700", "answered None: -32700"]
    assert talk.unjudged(*lines) == ["answered 1: 503", "answered 2: 503", *refused]
    assert {one["error"]["data"]["reason"] for one in talk.to_client[:2]} == {"internal_error"}
    assert talk.client_calls("x", 3) == ["forwarded 3"]
    assert talk.server_exits("over") == ["answered 3: -32000"]


def test_a_refused_line_that_is_judged_again_after_a_bug_has_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    talk = Talk()
    with monkeypatch.context() as patched:
        patched.setattr(DecisionRequests, "of_call", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            talk.machine.judge(frames.read([b"not json", call_line("x", 1)]), 0)
    talk.machine.unjudged(None, 0)
    assert talk.client(b"not json", call_line("x", 1)) == ["forwarded 1", "answered None: -32700"]
    assert [one["decision"] for one in talk.records] == ["invalid", "allowed"]


def test_a_call_that_a_bug_stops_after_its_decision_frees_its_place() -> None:
    talk = Talk('[[rule]]\ntool = "x"\nconcurrent = 1\n')
    lines = [call_line("x", 1), call_line("x", 3)]
    asked = talk.machine.judge(frames.read(lines), 0)
    talk.machine.decided(talk.store.decide(asked, talk.journal))  # and here is the bug
    assert talk.unjudged(*lines) == ["answered 1: 503", "answered 3: 503"]
    talk.settle()
    assert talk.client_calls("x", 2) == ["forwarded 2"]


def test_after_a_bug_in_the_parser_the_other_lines_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    talk = Talk()
    parse_line = frames.parse

    def broken(line: bytes) -> Any:
        assert b"poison" not in line
        return parse_line(line)

    monkeypatch.setattr(frames, "parse", broken)
    lines = [b'{"id":1,"method":"poison"}', request("ping", 2)]
    assert talk.unjudged(*lines) == ["answered None: 503", "answered 2: 503"]


# The end


def test_before_the_id_of_a_request_in_flight_is_used_again_answers_are_read() -> None:
    talk = Talk()
    talk.client(request("ping", 1), call_line("x", 2))
    talk.unread = [{"id": 1, "result": {}}]
    talk.client(request("ping", "a"), call_line("x", 3))
    assert talk.unread  # reading takes time
    assert talk.client_calls("x", 1, 2) == ["forwarded 1", "answered 2: -32600"]


def test_before_a_request_in_flight_is_cancelled_answers_are_read() -> None:
    talk = Talk()
    talk.client(b'{"method":"notifications/cancelled","params":{"requestId":1}}', call_line("x", 1))
    talk.unread = [{"id": 1, "result": {}}]
    talk.client(b'{"method":"notifications/cancelled","params":[1]}')
    assert talk.unread
    talk.client(b'{"method":"notifications/cancelled","params":{"requestId":1}}')
    talk.record()
    assert [one.outcome for one in talk.outcomes] == ["ok"]


def test_when_the_server_exits_every_request_in_flight_is_answered() -> None:
    talk = Talk()
    for line in (call_line("x", 1), request("ping", "two"), call_line("x", 3), call_line("x", 4)):
        talk.client(line)
    talk.answer(3)
    talk.client(b'{"method":"notifications/cancelled","params":{"requestId":4}}')
    talk.time.pass_ms(2)
    assert talk.server_exits("server exited with status 7") == ["answered 1: -32000", "answered two: -32000"]
    error = {"code": -32000, "message": "server exited with status 7"}
    assert talk.to_client == [{"jsonrpc": "2.0", "id": one, "error": error} for one in (1, "two")]
    assert talk.outcomes[1:] == [Outcome(3, "cancelled", 0), Outcome(1, "no_answer", 2000)]
    assert talk.server_exits("again") == []
    assert len(talk.outcomes) == 3
    assert not talk.awaits_answers


def test_messages_after_the_servers_exit_are_discarded() -> None:
    talk = Talk()
    assert talk.server_exits("over") == []
    assert talk.client(call_line("x", 1), request("ping", 2), b"not json") == []
    assert talk.records == []


@pytest.mark.parametrize("denials", ["error", "result"])
def test_messages_after_the_end_of_the_servers_input_are_answered_and_audited_but_not_charged(denials: str) -> None:
    talk = Talk(ONE_A_MINUTE, denials=denials)
    assert talk.input_closes("the server has closed its input") == []
    assert talk.input_closes("server exited with status 1") == []  # the first reason counts
    came_out = talk.client(call_line("x", 1), request("tools/list", 2), NOTIFICATION, b"not json")
    assert came_out == ["answered 1: -32000", "answered 2: -32000", "answered None: -32700"]
    assert talk.to_client[0]["error"]["message"] == "the server has closed its input"
    rows = [(one["decision"], one["reason"]) for one in talk.records]
    assert rows == [("unavailable", "server_gone"), ("invalid", "not valid JSON")]
    assert not talk.store.counters()


def test_requests_that_the_server_did_not_take_are_answered() -> None:
    talk = Talk()
    lines = [call_line("x", 1), request("ping", 2), b'{"method":"n"}', RESPONSE]
    assert talk.client(*lines) == ["forwarded 1", "forwarded 2", "forwarded n", "forwarded answer 9"]
    assert talk.server_does_not_take(*lines, b"", call_line("x", 77)) == ["answered 1: -32000", "answered 2: -32000"]
    assert talk.record() == []
    assert talk.outcomes == [Outcome(1, "no_answer", 0)]
    assert not talk.awaits_answers


def test_after_the_client_has_left_only_denials_and_refusals_are_answered() -> None:
    talk = Talk(ONE_A_MINUTE)
    lines = [call_line("x", 1), request("ping", 2)]
    assert talk.client(*lines) == ["forwarded 1", "forwarded 2"]
    assert talk.client_leaves() == []
    assert talk.client(call_line("x", 3), b"not json") == ["answered 3: 429", "answered None: -32700"]
    assert talk.server_does_not_take(lines[1]) == []
    talk.input_closes("the server has closed its input")
    assert talk.client(call_line("x", 4), request("ping", 5)) == []
    assert talk.server_exits("over") == []
    assert talk.outcomes == [Outcome(1, "no_answer", 0)]
    assert [one["decision"] for one in talk.records] == ["allowed", "invalid", "rate_limited", "unavailable"]
