"""To which session a call belongs: the client's where it tells one, else the wrapper's run."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpguard.identity.caller import Identity
from mcpguard.identity.client_agents import AgentNote
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
