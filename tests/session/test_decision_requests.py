"""Whose call it is, to which session it belongs, and what of it a hook has decided."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpguard.errors import PolicyError, Unauthenticated
from mcpguard.identity.caller import Agent, Identity
from mcpguard.identity.client_agents import AgentNote
from mcpguard.policy.model import Call
from mcpguard.policy.parse import parse
from mcpguard.text.digest import cut
from tests.build import Talk, call_line, request

WHO = Identity("alice", "os", "crm", claude_session="s")
ONCE = '[[rule]]\nper = ["session"]\nlimit = "1/1h"\n'
RUN = "00000000000000aa"


def begun(who: Identity = WHO, client: str = "codex-mcp-client", policy: str = ONCE) -> Talk:
    talk = Talk(policy, who=who, denials="error")
    talk.client(request("initialize", "hello", clientInfo={"name": client, "version": "1"}))
    return talk


def called(name: str, **call_meta: Any) -> bytes:
    return call_line("search", name, _meta=call_meta)


def sessions(talk: Talk) -> list[object]:
    """The session that each call was counted in, as the rows have it."""
    return [record.get("client_session", record["session"]) for record in talk.records]


def test_codex_tells_the_session_of_each_call() -> None:
    talk = begun()
    assert talk.client(called("a", sessionId="s1")) == ["forwarded a"]
    assert talk.client(called("b", sessionId="s1")) == ["answered b: 429"]
    assert talk.client(called("c", sessionId="s2")) == ["forwarded c"]
    assert talk.client(called("d")) == ["forwarded d"]
    assert talk.client(called("e", sessionId="a b")) == ["answered e: 429"]  # no valid id
    assert sessions(talk) == ["s1", "s1", "s2", RUN, RUN]
    assert "client_session" not in talk.records[-1]


@pytest.mark.parametrize(("who", "client"), [(WHO, "my-own"), (WHO._replace(trust_client_info=False), "codex-mcp-client")])
def test_what_another_client_calls_a_session_or_one_that_is_not_trusted_is_none(who: Identity, client: str) -> None:
    talk = begun(who, client)
    talk.client(called("a", sessionId="s1"), called("b", sessionId="s2"))
    assert sessions(talk) == [RUN, RUN]


def test_a_server_that_claude_code_has_started_counts_in_its_session() -> None:
    talk = begun(WHO._replace(session="abc123"), "claude-code")
    talk.client(called("a", **{"claudecode/toolUseId": "t1", "sessionId": "forged"}))
    assert sessions(talk) == ["abc123"]


def test_a_note_tells_the_session_that_its_call_belongs_to() -> None:
    talk = begun(WHO._replace(session="first"), "claude-code")
    for name, session in (("a", "second"), ("b", "second"), ("c", "")):  # after /clear; the last call has no note
        note = AgentNote.of("s t1", "Claude Code::subagent::Explore", session)
        talk.client(called(name, **{"claudecode/toolUseId": "t1"}), noted=dict([note]) if session else None)
    assert sessions(talk) == ["second", "second", "first"]
    assert [record["decision"] for record in talk.records] == ["allowed", "rate_limited", "allowed"]
    assert {str(record["agent"]) for record in talk.records[:2]} == {"Claude Code::subagent::Explore"}


def test_the_note_of_a_main_agents_call_tells_the_session_alone() -> None:
    talk = begun(client="claude-code")
    talk.client(called("a", **{"claudecode/toolUseId": "t1"}), noted=dict([AgentNote.of("s t1", "", "abc123")]))
    found = [(one["agent"], one["agent_source"], one["client_session"]) for one in talk.records]
    assert found == [("Claude Code::interactive::default", "clientInfo", "abc123")]


def test_a_note_counts_though_codexs_word_is_not_trusted() -> None:
    talk = begun(WHO._replace(trust_client_info=False))
    noted = dict([AgentNote.of("s1 c1", "", "s1")])
    talk.client(called("a", callId="c1", sessionId="s1"), noted=noted)
    assert sessions(talk) == ["s1"]


@settings(max_examples=25)
@given(st.one_of(st.none(), st.integers(), st.text(), st.text("a ", min_size=257), st.lists(st.text(max_size=3), max_size=2)))
def test_whatever_a_client_calls_its_session_no_other_limit_is_escaped(session: Any) -> None:
    talk = begun(policy=ONCE + '[[rule]]\nuser = "*"\nlimit = "2/1h"\n')
    talk.client(called("a", sessionId="s1"), called("b", sessionId="s2"))
    assert talk.client(called("c", sessionId=session)) == ["answered c: 429"]
    assert talk.records[-1]["axis"] == "user"
    assert len(str(talk.records[-1].get("client_session", ""))) <= 256


def test_a_denial_names_the_session_and_how_to_go_on() -> None:
    hour, session = "Retry in 3600 seconds.", "1 call per session. Retry in a new session, or in 2592000 seconds."
    for policy, words in (
        ('user = "*"\nlimit = "1/session"', f"user alice: {session}"),
        ('tool = "search"\nlimit = "1/session"', f"this session: {session}"),
        ('user = "*"\nper = ["user", "session"]\nlimit = "1/1h"', f"user alice in this session: 1 call per 1h. {hour}"),
        ('per = ["session", "arguments"]\nlimit = "1/1h"', f"this session: 1 call with these arguments per 1h. {hour}"),
    ):
        talk = begun(policy=f"[[rule]]\n{policy}\n", client="claude-code")
        talk.client(called("a"), called("b"))
        error = talk.to_client[-1]["error"]
        assert error["message"] == f"Tool search rate limit exceeded for {words}"
    talk = begun(policy='[[rule]]\ntool = "search"\nper = ["session"]\nconcurrent = 1\n', client="claude-code")
    talk.client(called("a"), called("b"))
    assert "too many calls in flight for this session: at most 1 at once." in talk.to_client[-1]["error"]["message"]


def test_a_denials_data_has_the_form_of_every_other() -> None:
    talk = begun(policy='[[rule]]\nuser = "*"\nlimit = "1/session"\n', client="claude-code")
    talk.client(called("a"), called("b"))
    data = talk.to_client[-1]["error"]["data"]
    members = ("reason", "axis", "limit", "window", "rule", "retry_after_ms", "retry_after_seconds")
    assert [data[key] for key in members] == ["rate_limited", "user", 1, "session", "user=*", 2_592_000_000, 2_592_000]
    assert talk.logged[-1].startswith("rate_limited axis=user user=alice ")
    assert "limit=1/session count=2 " in talk.logged[-1]


VERIFIED = Identity("", "jwt", "crm")
EXPIRED = Unauthenticated("the token in /t expired at 2026-01-01T00:00:00Z", "get a new one")


def test_without_a_verified_user_calls_are_denied_and_everything_else_passes() -> None:
    talk = Talk(PolicyError("broken"), who=VERIFIED)
    talk.identify(EXPIRED)
    came_out = talk.client(call_line("x", 1, requestState="s"), request("tools/list", 2), b"not json")
    assert came_out == ["forwarded 2", "answered 1: 401", "answered None: -32700"]
    error = talk.to_client[0]["error"]
    assert error["code"] == 401
    assert error["message"] == "Tool x was not called: the token in /t expired at 2026-01-01T00:00:00Z. Get a new one."
    members = ("reason", "axis", "tool", "user")
    assert [error["data"].get(key) for key in members] == ["unauthenticated", "user", "x", None]
    assert talk.machine.tally["unauthenticated", "user"] == 1
    told = [(one["decision"], one.get("axis"), one.get("reason")) for one in talk.records]
    assert told == [("unauthenticated", "user", EXPIRED.message), ("invalid", None, "not valid JSON")]
    assert not any({"user", "user_source"} & one.keys() for one in talk.records)


def test_a_retry_that_was_denied_as_unauthenticated_stays_free() -> None:
    talk = Talk('[[rule]]\ntool = "*"\nlimit = "1/1m"\n', who=VERIFIED)
    alice = Identity("alice", "jwt", "crm")
    talk.identify(alice)
    assert talk.client_calls("x", 1) == ["forwarded 1"]
    talk.ask_for_input(1, "s")
    talk.identify(EXPIRED)
    assert talk.client(call_line("x", 2, requestState="s")) == ["answered 2: 401"]
    talk.identify(alice)
    assert talk.client(call_line("x", 3, requestState="s")) == ["forwarded 3"]
    assert [one["decision"] for one in talk.records] == ["allowed", "unauthenticated", "continued"]


def test_a_new_identity_replaces_the_previous_one_completely() -> None:
    talk = Talk('[[rule]]\nuser = "*"\nrole = "dev"\nlimit = "1/1m"\n', who=VERIFIED)
    alice = Identity("alice", "jwt", "crm", Agent(name="job"), "jwt", roles=("dev",), email="a@acme.com", act=("p", "q"))
    everybody: list[Identity | Unauthenticated] = [alice, EXPIRED, Identity("bob", "jwt", "crm"), alice]
    for at, found in enumerate(everybody):
        talk.identify(found)
        talk.client_calls("x", at)
    members = ("decision", "user", "user_source", "email", "roles", "act", "agent", "agent_source")
    shown = [[one.get(key) for key in members] for one in talk.records]
    nobody = "unknown::interactive::default"
    assert shown == [
        ["allowed", "alice", "jwt", "a@acme.com", ["dev"], ["p", "q"], "unknown::interactive::job", "jwt"],
        ["unauthenticated", None, None, None, None, None, nobody, "default"],
        ["allowed", "bob", "jwt", None, None, None, nobody, "default"],
        ["rate_limited", "alice", "jwt", "a@acme.com", ["dev"], ["p", "q"], "unknown::interactive::job", "jwt"],
    ]


def test_long_names_are_cut_in_the_audit() -> None:
    user, server, tool, role, email, actor = (letter * 999 for letter in "abcdef")
    talk = Talk(who=Identity(user, "jwt", server, Agent("g" * 999), roles=(role,), email=email, act=(actor,)))
    talk.client(call_line(tool))
    (one,) = talk.records
    assert one["agent"] == cut(f"{'g' * 999}::interactive::default")
    assert [one[name] for name in ("user", "server", "tool", "email")] == [*map(cut, (user, server, tool, email))]
    assert (one["roles"], one["act"]) == ([cut(role)], [cut(actor)])


LIMITED = '[[rule]]\nuser = "*"\nlimit = "1/1m"\n'
EXPLORE = "Claude Code::subagent::Explore"


def decided(policy: str, *, agent: str = "", user: str = "alice") -> dict[str, str]:
    """The note of a hook that has decided a call `t1` by a policy."""
    plan = parse(policy).plan(Call(user, agent, "crm", "search"))
    note = AgentNote("s t1", agent).after_decision([(plan.counters[one.counter].id, one.n) for one in plan.limits])
    return {note.key: note.text}


def decided_call(name: str, **params: Any) -> bytes:
    return call_line("search", name, _meta={"claudecode/toolUseId": "t1"}, **params)


def test_a_decided_call_is_forwarded_though_its_limit_is_full_and_charges_nothing() -> None:
    talk = Talk(LIMITED, who=WHO)
    assert talk.client_calls("search", "a") == ["forwarded a"]
    assert talk.client(decided_call("b"), noted=decided(LIMITED)) == ["forwarded b"]
    assert talk.client(decided_call("c")) == ["answered c: 429"]
    assert [record["decision"] for record in talk.records] == ["allowed", "continued", "rate_limited"]


def test_a_limit_that_the_hook_did_not_decide_by_counts_the_call() -> None:
    policy = LIMITED + '[[rule]]\ntool = "search"\nlimit = "1/1m"\n'
    talk = Talk(policy, who=WHO)
    assert talk.client(decided_call("a"), noted=decided(LIMITED)) == ["forwarded a"]
    assert talk.client(decided_call("b"), noted=decided(LIMITED)) == ["answered b: 429"]
    assert [(record["decision"], record["axis"]) for record in talk.records] == [("allowed", "tool"), ("rate_limited", "tool")]


def test_the_limits_of_another_user_than_the_hooks_count_the_call() -> None:
    talk = Talk(LIMITED, who=WHO)
    assert talk.client(decided_call("a"), noted=decided(LIMITED, user="bob")) == ["forwarded a"]
    assert talk.client(decided_call("b"), noted=decided(LIMITED, user="bob")) == ["answered b: 429"]


@pytest.mark.parametrize("closed", ['limit = "deny"', 'limit = "deny"\nmode = "observe"'])
def test_a_closed_tool_stays_closed(closed: str) -> None:
    talk = Talk(f'[[rule]]\ntool = "search"\n{closed}\n', who=WHO)
    is_open = "observe" in closed
    assert talk.client(decided_call("a"), noted=decided(LIMITED)) == ["forwarded a" if is_open else "answered a: 403"]


def test_a_decided_call_takes_a_place_in_flight_and_its_failure_counts() -> None:
    policy = LIMITED + '[[rule]]\ntool = "*"\nconcurrent = 1\n[[rule]]\nuser = "*"\ncount = "errors"\nlimit = "9/1m"\n'
    talk = Talk(policy, who=WHO)
    assert talk.client(decided_call("a"), noted=decided(LIMITED)) == ["forwarded a"]
    assert talk.client(decided_call("b"), noted=decided(LIMITED)) == ["answered b: 429"]
    assert [record["decision"] for record in talk.records] == ["continued", "rate_limited"]


def test_a_call_that_the_hook_has_counted_warns_of_no_limit_that_it_has_passed() -> None:
    policy = LIMITED + 'warn = "100%"\n[[rule]]\ntool = "search"\nlimit = "1/1m"\nwarn = "100%"\n'
    talk = Talk(policy, who=WHO)
    assert talk.client(decided_call("b"), noted=decided(LIMITED)) == ["forwarded b"]
    limit = {"axis": "tool", "rule": "tool=search", "limit": 1, "window": "1m", "count": 1}
    assert [record["warned"] for record in talk.records] == [[limit]]
    found = [log.text for log in talk.logs if log.text.startswith("warned")]
    assert found == ["warned axis=tool user=alice agent=unknown::interactive::default tool=search limit=1/1m count=1"]


def test_a_row_says_that_a_hook_decided_its_call() -> None:
    talk = Talk(LIMITED, who=WHO._replace(via="hook"))
    talk.client_calls("search", "a")
    assert [record["via"] for record in talk.records] == ["hook"]


def test_what_charged_a_call_is_known_by_counter_and_n_without_observed_limits_that_had_no_room() -> None:
    watched = '[[rule]]\ntool = "search"\nlimit = "1/1h"\nmode = "observe"\n'
    talk = Talk('[[rule]]\nuser = "*"\nlimit = "5/1m"\n' + watched, who=WHO)
    for name in ("a", "b"):
        talk.client_calls("search", name)
    first, second = talk.verdicts
    assert [n for _, n in first.charged] == [5, 1]
    assert second.charged == first.charged[:1]
    assert first.charged[0][0] == first.plan.counters[0].id
