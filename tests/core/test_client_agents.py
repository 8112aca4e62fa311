"""What clients' hooks and calls tell of their agents, and how a call is joined with a note."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpguard.core import meta
from mcpguard.core.client_agents import HOOKS, NOTE_KEPT_US, AgentNote, agent_note, call_id, codex_tier, meta_with_id
from mcpguard.core.identity import KNOWN_CLIENTS
from tests.core.build import TESTS
from tests.recorded_hooks import CODEX, COPILOT, ELSEWHERE

EXPLORE: dict[str, Any] = {
    "session_id": "abc123",
    "transcript_path": "/home/alice/.claude/projects/x/abc123.jsonl",
    "cwd": "/home/alice",
    "permission_mode": "default",
    "hook_event_name": "PreToolUse",
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


def noted(hook_input: object, *, client: str = "claude-code") -> AgentNote | None:
    return agent_note(HOOKS[client], hook_input)


def test_a_subagents_call_is_noted_with_its_type() -> None:
    assert noted(EXPLORE) == AgentNote("toolu_01ABC", "Claude Code::subagent::Explore")


def test_a_note_is_kept_for_the_hour_that_the_manual_states() -> None:
    page = " ".join((TESTS.parent / "docs/identity-and-agents.md").read_text().split())  # however it is wrapped
    assert f"note is kept for {NOTE_KEPT_US // 60_000_000} minutes" in page


def test_a_main_agents_call_is_not_noted() -> None:
    assert noted(without("agent_id", "agent_type")) is None


def test_a_session_started_as_a_named_agent_is_interactive() -> None:
    assert noted(without("agent_id")) == AgentNote("toolu_01ABC", "Claude Code::interactive::Explore")


@pytest.mark.parametrize("kind", [None, "", 7, ["Explore"], {}])
def test_a_subagent_without_a_type_is_still_a_subagent(kind: object) -> None:
    assert noted(without(agent_type=kind)) == AgentNote("toolu_01ABC", "Claude Code::subagent::default")


@pytest.mark.parametrize(
    "odd",
    [
        without("tool_name"),
        without(tool_name="Bash"),
        without(tool_name="mcp_crm"),
        without(tool_name=None),
        without("hook_event_name"),
        without(hook_event_name="PostToolUse"),
        without("tool_use_id"),
        without(tool_use_id=""),
        without(tool_use_id=7),
        without(tool_use_id="x" * 257),
        without(tool_use_id='a"b'),
        without(tool_use_id="a\\b"),
        without(tool_use_id="a\x1b"),
        without(tool_use_id="ü"),
        without(tool_use_id="\ud800"),
        None,
        [],
        "mcp__",
        {},
    ],
)
def test_only_mcp_calls_with_an_id_are_noted(odd: object) -> None:
    assert noted(odd) is None


def test_the_name_of_an_agent_type_cannot_change_the_tier() -> None:
    assert noted(without(agent_type="api::x")) == AgentNote("toolu_01ABC", "Claude Code::subagent::api:\\:\\x")
    assert noted(without(agent_type="plugin:reviewer")) == AgentNote("toolu_01ABC", "Claude Code::subagent::plugin:reviewer")


@given(st.text())
def test_a_note_of_any_type_can_be_stored_as_utf_8(kind: str) -> None:
    note = noted(without(agent_type="\ud800" + kind))
    assert note is not None
    assert note.agent.encode()


@given(st.text())
def test_a_note_has_three_parts_of_bounded_length_for_any_type(kind: str) -> None:
    note = noted(without(agent_type=kind))
    assert note is not None
    assert note.agent.split("::")[:2] == ["Claude Code", "subagent"]
    assert len(note.agent.split("::")) == 3
    assert len(note.agent.encode(errors="surrogatepass")) < 300


def test_types_with_long_names_that_differ_only_at_the_end_stay_different() -> None:
    notes = {noted(without(agent_type="x" * 10_000 + end)) for end in ("a", "b", "::c")}
    assert len(notes) == 3


@given(st.dictionaries(st.sampled_from([*EXPLORE]), json_values))
def test_any_input_gives_a_note_or_none(members: dict[str, object]) -> None:
    note = noted(EXPLORE | members)
    assert note is None or note.agent.startswith("Claude Code::")


CLIENTS = {"codex": (CODEX, AgentNote("call_58_sub", "Codex::subagent::explorer"))}
CLIENTS["copilot"] = (COPILOT, AgentNote("call_68_sub", "GitHub Copilot CLI::subagent::general-purpose"))


@pytest.mark.parametrize("client", CLIENTS)
def test_a_recorded_subagents_call_is_joined_with_the_note_of_its_hook(client: str) -> None:
    recorded, note = CLIENTS[client]
    assert noted(recorded["subagent"]["hook"], client=client) == note
    assert call_id(recorded["subagent"]["params"]["_meta"]) == note.call_id
    assert noted(recorded["main"]["hook"], client=client) is None


@pytest.mark.parametrize("member", ["hook_event_name", "tool_name", "tool_use_id"])
def test_an_input_of_codex_without_a_member_gives_no_note(member: str) -> None:
    assert noted({key: value for key, value in CODEX["subagent"]["hook"].items() if key != member}, client="codex") is None


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


@pytest.mark.parametrize("member", sorted(meta.CALL_IDS))
@given(ids)
def test_the_id_of_a_call_is_read_from_its_meta(member: str, one: str) -> None:
    assert call_id({"progressToken": 2, member: one}) == one


@pytest.mark.parametrize("value", [None, 7, "", "x" * 257, "a b", {"x": 1}, ["x"]])
def test_an_invalid_id_is_ignored(value: object) -> None:
    assert call_id({"claudecode/toolUseId": value}) is None
    assert call_id({"callId": value}) is None
    assert call_id({}) is None


def test_a_call_of_codexs_main_agent_is_joined_with_no_note() -> None:
    call_meta = CODEX["main"]["params"]["_meta"]
    assert call_id(call_meta) is None
    assert call_id({"callId": call_meta["callId"]}) == call_meta["callId"]


def test_a_call_with_two_ids_is_joined_with_no_note() -> None:
    assert call_id({"claudecode/toolUseId": "a", "callId": "b"}) is None


def test_the_id_is_added_to_the_meta_that_the_hook_is_given() -> None:
    given_meta = {"progressToken": 7, "vendor/x": {"y": [1.5, None]}}
    assert meta_with_id({"_meta": given_meta}, "c1") == {**given_meta, "mcpguard/toolCallId": "c1"}
    assert meta_with_id({"_meta": {"mcpguard/toolCallId": "old"}}, "c1") == {"mcpguard/toolCallId": "c1"}
    assert meta_with_id({"_meta": None}, "c1") == meta_with_id({}, "c1") == {"mcpguard/toolCallId": "c1"}


@pytest.mark.parametrize("odd", [7, "x", [], False])
def test_a_meta_that_is_not_an_object_stays_as_it_is(odd: object) -> None:
    assert meta_with_id({"_meta": odd}, "c1") is None


# Codex's tier


def test_codex_reports_the_tier_of_a_subagents_call_and_none_for_the_main_agents() -> None:
    assert codex_tier(CODEX["subagent"]["params"]["_meta"]) == "subagent"
    assert codex_tier(CODEX["main"]["params"]["_meta"]) is None


@pytest.mark.parametrize(
    "odd",
    [
        None,
        7,
        "subagent",
        '{"thread_source":"subagent"}',
        [],
        ["subagent"],
        {},
        {"thread_source": None},
        {"thread_source": "api"},
    ],
)
def test_an_odd_report_of_a_tier_is_ignored(odd: object) -> None:
    assert codex_tier({"x-codex-turn-metadata": odd}) is None
    assert codex_tier({}) is None
