"""What clients' hooks and calls tell of their agents, and how a call is joined with a note."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpguard.identity.caller import KNOWN_CLIENTS
from mcpguard.identity.client_agents import (
    HOOKS,
    NOTE_KEPT_US,
    AgentNote,
    agent_in,
    agent_note,
    claude_session,
    claude_tier,
    codex_tier,
    counted_by,
    hook_session,
    meta_with_id,
    note_key,
    session_in,
    told_session,
)
from mcpguard.wire import meta
from tests.build import TESTS
from tests.recorded_hooks import CODEX, COPILOT, ELSEWHERE

EXPLORE: dict[str, Any] = {
    "hook_event_name": "PreToolUse",
    "session_id": "abc123",
    "transcript_path": "/home/alice/.claude/projects/x/abc123.jsonl",
    "cwd": "/home/alice",
    "permission_mode": "default",
    "tool_name": "mcp__crm__search_customers",
    "tool_input": {"query": "x"},
    "tool_use_id": "toolu_01ABC",
    "agent_id": "a315cca28b4992124",
    "agent_type": "Explore",
}
"""An input of Claude Code's hook inside a subagent, with the members that are documented."""

ids = st.text("toolu_-09AZ", min_size=1, max_size=30)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def without(*names: str, **more: object) -> dict[str, Any]:
    return {key: value for key, value in EXPLORE.items() if key not in names} | more


KEY = "abc123 toolu_01ABC"
CODEX_SESSION = "01a21980-a1a1-7341-8cf2-a8366b38779c"


def note_of(agent: str, key: str = KEY) -> AgentNote:
    """The note of a call in the session that its key names."""
    return AgentNote.of(key, agent, key.partition(" ")[0])


def noted(hook_input: object, *, client: str = "claude-code", **environ: str) -> AgentNote | None:
    return agent_note(HOOKS[client], hook_input, environ)


NO_TYPES: list[object] = [None, "", 7, ["Explore"], {}]


@pytest.mark.parametrize(
    ("told", "agent"),
    [
        (EXPLORE, "Claude Code::subagent::Explore"),
        *((without(agent_type=kind), "Claude Code::subagent::default") for kind in NO_TYPES),
        (without(agent_type="plugin:reviewer"), "Claude Code::subagent::plugin:reviewer"),
        (without(agent_type="api::x"), "Claude Code::subagent::api:\\:\\x"),
        (without("agent_id"), "Claude Code::::Explore"),
        (without("agent_id", "agent_type"), ""),
    ],
    ids=["type", *["no type"] * 5, "type of a plugin", "type like a tier", "session of a named agent", "main agent"],
)
def test_a_call_of_claude_code_is_noted_with_what_its_hook_tells_of_the_agent(told: dict[str, Any], agent: str) -> None:
    note = noted(told)
    assert note == note_of(agent)
    assert agent_in(note.text) == agent


def test_a_main_agents_call_replaces_the_note_of_an_earlier_call_with_its_id() -> None:
    assert noted(CODEX["main"]["hook"], client="codex") == note_of("", f"{CODEX_SESSION} call_54_main")
    assert noted(COPILOT["main"]["hook"], client="copilot") is None  # its calls have no id


def test_a_note_is_kept_for_the_hour_that_the_manual_states() -> None:
    page = " ".join((TESTS.parent / "docs/identity-and-agents.md").read_text().split())  # however it is wrapped
    assert f"note is kept for {NOTE_KEPT_US // 60_000_000} minutes" in page


CALL = {"claudecode/toolUseId": "toolu_01ABC"}


def test_hook_and_server_of_a_process_of_claude_code_meet_in_whatever_session_it_is_now() -> None:
    begun = {"CLAUDE_CODE_MESSAGING_SOCKET": "/tmp/cc socks/\udcff7.sock", "CLAUDE_CODE_SESSION_ID": "first"}
    note = noted(without(session_id="second"), **begun)  # after /clear
    assert note is not None
    assert note_key(CALL, claude_session(begun)) == note.key
    other = begun | {"CLAUDE_CODE_MESSAGING_SOCKET": "/tmp/cc socks/8.sock"}
    assert note_key(CALL, claude_session(other)) not in {None, note.key}


def test_without_a_process_they_meet_in_the_session() -> None:
    keys = [
        note_key(CALL, claude_session(env))
        for env in ({"CLAUDE_CODE_SESSION_ID": "abc123"}, {"CLAUDE_CODE_SESSION_ID": "x"}, {})
    ]
    assert noted(EXPLORE) == note_of("Claude Code::subagent::Explore", keys[0] or "")
    assert keys == [KEY, "x toolu_01ABC", None]


def test_the_process_of_claude_code_is_not_that_of_a_codex_inside_it() -> None:
    inside = {"CLAUDE_CODE_MESSAGING_SOCKET": "/tmp/cc-socks/7.sock", "CLAUDE_CODE_SESSION_ID": "first"}
    assert noted(CODEX["subagent"]["hook"], client="codex", **inside) == CLIENTS["codex"][1]


@pytest.mark.parametrize(("entrypoint", "tier"), [("sdk-cli", "background"), ("cli", ""), ("", ""), ("sdk-py", "")])
def test_claude_code_without_a_person_is_in_the_background(entrypoint: str, tier: str) -> None:
    assert claude_tier({"CLAUDE_CODE_ENTRYPOINT": entrypoint}) == tier


BAD_IDS = [None, 7, "", "x" * 257, "a b", 'a"b', "a\\b", "a\0b", "a\x1b", "ü", "\ud800", {"x": 1}, ["x"]]


@pytest.mark.parametrize(
    "odd",
    [
        *map(without, ("tool_name", "hook_event_name", "tool_use_id", "session_id")),
        *(*(without(tool_name=one) for one in ("Bash", "mcp_crm", None)), without(hook_event_name="PostToolUse")),
        *(without(**{member: one}) for member in ("session_id", "tool_use_id") for one in BAD_IDS),
        *(None, [], "mcp__", {}),
    ],
)
def test_only_mcp_calls_with_an_id_are_noted(odd: object) -> None:
    assert noted(odd) is None


@given(st.text() | st.text().map("\ud800".__add__))
def test_a_note_of_any_type_has_three_parts_of_bounded_length_and_can_be_stored(kind: str) -> None:
    note = noted(without(agent_type=kind))
    assert note is not None
    assert note.text.encode()
    agent = agent_in(note.text)
    assert agent.split("::")[:2] == ["Claude Code", "subagent"]
    assert len(agent.split("::")) == 3
    assert len(agent.encode(errors="surrogatepass")) < 300


@given(st.dictionaries(st.sampled_from([*EXPLORE]), json_values))
def test_any_input_gives_a_note_or_none(members: dict[str, object]) -> None:
    note = noted(EXPLORE | members)
    assert note is None or agent_in(note.text).startswith("Claude Code::") or not agent_in(note.text)


CLIENTS = {"codex": (CODEX, note_of("Codex::subagent::explorer", f"{CODEX_SESSION} call_58_sub"))}
CLIENTS["copilot"] = (COPILOT, AgentNote("call_68_sub", "GitHub Copilot CLI::subagent::general-purpose"))


@pytest.mark.parametrize("client", CLIENTS)
def test_a_recorded_subagents_call_is_joined_with_the_note_of_its_hook(client: str) -> None:
    recorded, note = CLIENTS[client]
    assert noted(recorded["subagent"]["hook"], client=client) == note
    assert note_key(recorded["subagent"]["params"]["_meta"], "") == note.key


@pytest.mark.parametrize("member", ["serverName", "toolName", "toolCallId"])
@pytest.mark.parametrize("odd", [None, 7, [], {}])
def test_an_input_of_copilot_with_an_odd_member_gives_no_note(member: str, odd: object) -> None:
    assert noted(COPILOT["subagent"]["hook"] | {member: odd}, client="copilot") is None


@pytest.mark.parametrize(("program", "told"), ELSEWHERE, ids=[program for program, _ in ELSEWHERE])
def test_claude_codes_hook_notes_nothing_in_another_program(program: str, told: dict[str, Any]) -> None:
    assert noted(told) is None


def test_each_clients_name_is_the_one_that_its_client_info_gives() -> None:
    assert {hook.client for hook in HOOKS.values()} <= {*KNOWN_CLIENTS.values()}


# The id of a call


@given(ids)
def test_the_key_of_a_calls_note_has_the_session_and_the_id(one: str) -> None:
    assert note_key({"progressToken": 2, meta.CLAUDE_CALL_ID: one}, "s") == f"s {one}"
    assert note_key({"callId": one, "sessionId": "of Codex".replace(" ", "-")}, "s") == f"of-Codex {one}"
    assert note_key({meta.COPILOT_CALL_ID: one}, "s") == one


@pytest.mark.parametrize("value", BAD_IDS)
def test_an_invalid_id_is_ignored(value: object) -> None:
    for member in meta.CALL_IDS:
        assert note_key({member: value, "sessionId": "s"}, "s") is None
    assert note_key({"callId": "c", "sessionId": value}, "s") is None
    assert note_key({"callId": "c"}, "s") is note_key({}, "s") is None


def test_a_call_with_two_ids_is_joined_with_no_note() -> None:
    assert note_key({"claudecode/toolUseId": "a", "callId": "b", "sessionId": "s"}, "s") is None


def test_the_id_is_added_to_the_meta_that_the_hook_is_given_if_that_is_an_object() -> None:
    given_meta = {"progressToken": 7, "vendor/x": {"y": [1.5, None]}}
    assert meta_with_id({"_meta": given_meta}, "c1") == {**given_meta, "mcpguard/toolCallId": "c1"}
    assert meta_with_id({"_meta": {"mcpguard/toolCallId": "old"}}, "c1") == {"mcpguard/toolCallId": "c1"}
    assert meta_with_id({"_meta": None}, "c1") == meta_with_id({}, "c1") == {"mcpguard/toolCallId": "c1"}
    odd: tuple[object, ...] = (7, "x", [], False)
    assert [meta_with_id({"_meta": one}, "c1") for one in odd] == [None] * 4


# Codex's tier


def test_codex_reports_the_tier_of_a_subagents_call_and_of_codex_exec() -> None:
    assert codex_tier(CODEX["subagent"]["params"]["_meta"]) == "subagent"  # of `codex exec`, too
    assert codex_tier(CODEX["main"]["params"]["_meta"]) == "background"
    assert codex_tier({"x-codex-turn-metadata": {"thread_source": "user", "turn_trigger": "user"}}) is None


@pytest.mark.parametrize(
    "odd",
    [
        *(None, 7, "subagent", '{"thread_source":"subagent"}', [], ["subagent"], {}),
        *({"thread_source": None}, {"thread_source": "api"}, {"turn_trigger": ["exec"]}),
    ],
)
def test_an_odd_report_of_a_tier_is_ignored(odd: object) -> None:
    assert codex_tier({"x-codex-turn-metadata": odd}) is None
    assert codex_tier({}) is None


# Sessions


def test_a_note_tells_the_session_of_its_call_whether_the_hook_has_decided_it_or_not() -> None:
    note = note_of("Claude Code::subagent::Explore")
    decided = note.after_decision([(17, 5), (18, 200)]).text
    for text in (note.text, decided):
        assert (agent_in(text), session_in(text)) == ("Claude Code::subagent::Explore", "abc123")
    assert counted_by(note.text) is None
    assert counted_by(decided) == frozenset({"session=abc123", "17/5", "18/200"})
    assert session_in(note.after_decision([]).text) == "abc123"


def test_a_note_without_a_session_tells_none() -> None:
    note = AgentNote.of(KEY, "a::b::c", "")
    assert note == AgentNote(KEY, "a::b::c")
    assert session_in(note.text) == session_in(note.after_decision([(17, 5)]).text) == session_in("") == ""
    assert counted_by(note.after_decision([]).text) == frozenset()


def test_a_subagent_is_in_its_parents_session() -> None:
    for client in ("main", "subagent"):
        assert hook_session(CODEX[client]["hook"]) == CODEX[client]["params"]["_meta"]["sessionId"] == CODEX_SESSION
    main, subagent = (hook_session(COPILOT[client]["hook"]) for client in ("main", "subagent"))
    assert COPILOT["subagent"]["hook"]["parentAgentId"] == subagent
    assert main == subagent == "bf92f7b4-1c3d-4dcb-838c-fcf83f5d7f94"
    assert hook_session(EXPLORE) == "abc123"


def test_cursors_conversation_is_its_session() -> None:
    assert hook_session({"cursor_version": "3", "conversation_id": "c1"}) == "c1"
    assert hook_session({}) == ""


@pytest.mark.parametrize("value", BAD_IDS)
def test_an_invalid_session_is_none(value: Any) -> None:
    assert hook_session({"session_id": value}) == ""
    assert not isinstance(value, str) or told_session({"CLAUDE_CODE_SESSION_ID": value}) == ""


def test_a_server_knows_the_session_in_which_claude_code_started_it_and_not_its_process() -> None:
    inside = {"CLAUDE_CODE_MESSAGING_SOCKET": "/tmp/cc-socks/7.sock", "CLAUDE_CODE_SESSION_ID": "first"}
    assert told_session(inside) == "first"
    assert told_session({}) == ""
