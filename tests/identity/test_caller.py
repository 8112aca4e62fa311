"""Who is calling."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpguard.errors import ConfigError, ExitStatus
from mcpguard.identity.agent import Agent
from mcpguard.identity.caller import Identity, known_client, parse_agent


@given(st.text("a:\\b", min_size=1, max_size=8))
def test_an_escaped_part_never_adds_a_part(text: str) -> None:
    agent, _ = Identity("u", "os", "s").agent(text)
    parsed = Agent.parse(agent)
    assert parsed is not None
    assert parsed[1:] == ("interactive", "default")


@given(st.text(max_size=8), st.text(max_size=8))
def test_clients_with_different_names_are_different_agents(one: str, other: str) -> None:
    who = Identity("u", "os", "s")
    known = {known_client(name) or "unknown" for name in (one, other)}
    assert len({who.agent(one)[0], who.agent(other)[0]}) == len(known)


@pytest.mark.parametrize(
    ("name", "agent"),
    [
        ("claude-ai", "Claude Desktop::interactive::default"),
        ("Visual Studio Code - Insiders", "VS Code::interactive::default"),
        ("gemini-cli-mcp-client-crm", "Gemini CLI::interactive::default"),
        ("local-agent-mode-crm", "Claude Desktop::interactive::default"),
        ("my-client", "my-client::interactive::default"),
        ("x::background::y", "x:\\:\\background:\\:\\y::interactive::default"),
        ("x:", "x:\\::interactive::default"),
        ("*", "*::interactive::default"),
        ("", "unknown::interactive::default"),
        (None, "unknown::interactive::default"),
    ],
)
def test_an_unset_client_is_filled_from_client_info(name: str | None, agent: str) -> None:
    source = "clientInfo" if name else "default"
    assert Identity("u", "os", "s").agent(name) == (agent, source)


def test_client_info_never_replaces_a_configured_client() -> None:
    who = Identity("u", "os", "s", Agent("Mine"), agent_source="config")
    assert who.agent("claude-ai") == ("Mine::interactive::default", "config")


def test_without_trust_in_client_info_the_client_is_unknown() -> None:
    who = Identity("u", "os", "s", Agent(tier="api", name="job"), agent_source="config", trust_client_info=False)
    assert who.agent("claude-ai") == ("unknown::api::job", "config")


def test_the_agent_in_a_calls_meta_is_used_only_if_meta_is_trusted() -> None:
    trusting = Identity("u", "os", "s", trust_meta=True)
    assert trusting.agent("claude-ai", "a::b::c") == ("a::b::c", "meta")
    for odd in ("a::b", "a::b::c::d", "a::::c", ""):
        assert trusting.agent("claude-ai", odd) == ("Claude Desktop::interactive::default", "clientInfo")
    assert Identity("u", "os", "s").agent(None, "a::b::c") == ("unknown::interactive::default", "default")


EXPLORE = "Claude Code::subagent::Explore"


def test_a_hooks_note_fills_the_parts_that_are_not_configured() -> None:
    assert Identity("u", "os", "s").agent("claude-code", noted=EXPLORE) == (EXPLORE, "hook")
    assert Identity("u", "os", "s").agent(None, noted=EXPLORE) == (EXPLORE, "hook")
    who = Identity("u", "os", "s", Agent("Mine"), agent_source="config")
    assert who.agent("claude-code", noted=EXPLORE) == ("Mine::subagent::Explore", "hook")
    who = Identity("u", "os", "s", Agent(tier="background"), agent_source="config")
    assert who.agent("claude-code", noted=EXPLORE) == ("Claude Code::background::Explore", "hook")


def test_a_hooks_note_is_used_without_trust_in_client_info() -> None:
    assert Identity("u", "os", "s", trust_client_info=False).agent("claude-code", noted=EXPLORE) == (EXPLORE, "hook")


def test_a_wholly_configured_agent_ignores_hooks_notes() -> None:
    who = Identity("u", "os", "s", Agent("a", "interactive", "default"), agent_source="config")
    assert who.agent("claude-code", noted=EXPLORE) == ("a::interactive::default", "config")


def test_the_agent_in_trusted_meta_takes_precedence_over_a_hooks_note() -> None:
    assert Identity("u", "os", "s", trust_meta=True).agent(None, "a::b::c", EXPLORE) == ("a::b::c", "meta")


def test_codexs_tier_fills_a_tier_that_is_neither_configured_nor_noted() -> None:
    who = Identity("u", "os", "s")
    assert who.agent("codex-mcp-client", codex_tier="subagent") == ("Codex::subagent::default", "meta")
    assert who.agent("codex-mcp-client", noted="Codex::subagent::explorer", codex_tier="subagent") == (
        "Codex::subagent::explorer",
        "hook",
    )
    who = Identity("u", "os", "s", Agent("Mine"), agent_source="config")
    assert who.agent("codex-mcp-client", codex_tier="subagent") == ("Mine::subagent::default", "meta")
    who = Identity("u", "os", "s", Agent(tier="api"), agent_source="config")
    assert who.agent("codex-mcp-client", codex_tier="subagent") == ("Codex::api::default", "clientInfo")


def test_only_the_tier_that_codex_reports_is_used_and_only_with_trust_in_client_info() -> None:
    for name in ("claude-code", "Codex::x", None):
        assert Identity("u", "os", "s").agent(name, codex_tier="subagent") == Identity("u", "os", "s").agent(name)
    assert Identity("u", "os", "s", trust_client_info=False).agent("codex-mcp-client", codex_tier="subagent") == (
        "unknown::interactive::default",
        "default",
    )


def test_without_a_person_the_main_agent_is_a_background_one_and_a_subagent_stays_a_subagent() -> None:
    who = Identity("u", "os", "s", claude_tier="background")
    assert who.agent("claude-code") == ("Claude Code::background::default", "clientInfo")
    assert who.agent("claude-code", noted="Claude Code::::reviewer") == ("Claude Code::background::reviewer", "hook")
    assert who.agent("claude-code", noted=EXPLORE) == (EXPLORE, "hook")
    for name in ("cursor-vscode", None):
        assert who.agent(name) == Identity("u", "os", "s").agent(name)
    assert who._replace(trust_client_info=False).agent("claude-code") == ("unknown::interactive::default", "default")
    configured = who._replace(agent_parts=Agent(tier="api"), agent_source="config")
    assert configured.agent("claude-code") == ("Claude Code::api::default", "clientInfo")


def test_a_named_main_agent_is_interactive_if_nothing_else_is_known() -> None:
    noted = "Claude Code::::reviewer"
    assert Identity("u", "os", "s").agent("claude-code", noted=noted) == ("Claude Code::interactive::reviewer", "hook")


@pytest.mark.parametrize("noted", ["", "a", "a::b", "a::b::", "::b::c", "a::b::c::d"])
def test_a_note_without_a_valid_agent_is_ignored(noted: str) -> None:
    assert Identity("u", "os", "s").agent("claude-code", noted=noted) == ("Claude Code::interactive::default", "clientInfo")


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ("a::b::c", Agent("a", "b", "c")),
        ("::subagent::Explore", Agent(tier="subagent", name="Explore")),
        ("a::::", Agent("a")),
        ("::::", Agent()),
    ],
)
def test_the_empty_parts_of_a_configured_agent_are_not_configured(text: str, given: Agent) -> None:
    assert parse_agent(text, where="--agent") == given


@pytest.mark.parametrize(
    ("text", "words"),
    [("a", "does not have three parts"), ("a::b::c::d", "does not have three parts"), ("a::*::c", "is a pattern")],
)
def test_an_invalid_configured_agent_is_an_error_that_names_its_place(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as raised:
        parse_agent(text, where="--agent")
    assert raised.value.message.startswith(f"--agent: '{text}' ")
    assert raised.value.hint
    assert raised.value.exit_status == ExitStatus.USAGE
    with pytest.raises(ConfigError, match=words) as raised:
        parse_agent(text, where="MCPGUARD_AGENT")
    assert raised.value.exit_status == ExitStatus.CONFIGURATION
