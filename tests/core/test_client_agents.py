"""What Claude Code's hooks tell of its agents, and how a call is joined with it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpguard.core.client_agents import NOTE_KEPT_US, AgentNote, agent_note, tool_use_id
from tests.core.build import TESTS

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
"""A hook's input inside a subagent, with the members that are documented."""

ids = st.text("toolu_-09AZ", min_size=1, max_size=30)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def without(*names: str, **more: object) -> dict[str, Any]:
    return {key: value for key, value in EXPLORE.items() if key not in names} | more


def test_a_subagents_call_is_noted_with_its_type() -> None:
    assert agent_note(EXPLORE) == AgentNote("toolu_01ABC", "Claude Code::subagent::Explore")


def test_a_note_is_kept_for_the_hour_that_the_manual_states() -> None:
    page = " ".join((TESTS.parent / "docs/identity-and-agents.md").read_text().split())  # however it is wrapped
    assert f"note is kept for {NOTE_KEPT_US // 60_000_000} minutes" in page


def test_a_main_agents_call_is_not_noted() -> None:
    assert agent_note(without("agent_id", "agent_type")) is None


def test_a_session_started_as_a_named_agent_is_interactive() -> None:
    assert agent_note(without("agent_id")) == AgentNote("toolu_01ABC", "Claude Code::interactive::Explore")


@pytest.mark.parametrize("kind", [None, "", 7, ["Explore"], {}])
def test_a_subagent_without_a_type_is_still_a_subagent(kind: object) -> None:
    assert agent_note(without(agent_type=kind)) == AgentNote("toolu_01ABC", "Claude Code::subagent::default")


@pytest.mark.parametrize(
    "odd",
    [
        without("tool_name"),
        without(tool_name="Bash"),
        without(tool_name="mcp_crm"),
        without(tool_name=None),
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
    assert agent_note(odd) is None


def test_the_name_of_an_agent_type_cannot_change_the_tier() -> None:
    assert agent_note(without(agent_type="api::x")) == AgentNote("toolu_01ABC", "Claude Code::subagent::api:\\:\\x")
    assert agent_note(without(agent_type="plugin:reviewer")) == AgentNote(
        "toolu_01ABC", "Claude Code::subagent::plugin:reviewer"
    )


@given(st.text())
def test_a_note_has_three_parts_of_bounded_length_for_any_type(kind: str) -> None:
    note = agent_note(without(agent_type=kind))
    assert note is not None
    assert note.agent.split("::")[:2] == ["Claude Code", "subagent"]
    assert len(note.agent.split("::")) == 3
    assert len(note.agent.encode(errors="surrogatepass")) < 300


def test_types_with_long_names_that_differ_only_at_the_end_stay_different() -> None:
    notes = {agent_note(without(agent_type="x" * 10_000 + end)) for end in ("a", "b", "::c")}
    assert len(notes) == 3


@given(st.dictionaries(st.sampled_from([*EXPLORE]), json_values))
def test_any_input_gives_a_note_or_none(members: dict[str, object]) -> None:
    note = agent_note(EXPLORE | members)
    assert note is None or note.agent.startswith("Claude Code::")


@given(ids)
def test_the_id_of_a_call_is_read_from_its_meta(one: str) -> None:
    assert tool_use_id({"progressToken": 2, "claudecode/toolUseId": one}) == one


@pytest.mark.parametrize("value", [None, 7, "", "x" * 257, "a b", {"x": 1}, ["x"]])
def test_an_invalid_id_is_ignored(value: object) -> None:
    assert tool_use_id({"claudecode/toolUseId": value}) is None
    assert tool_use_id({}) is None
