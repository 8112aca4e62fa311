"""Who is calling, and the three parts of an agent."""

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mcpguard.errors import ConfigError, ExitStatus
from mcpguard.identity.caller import Agent, Identity, agent_matches, escape_part, known_client, nearest, parse_agent


def agent(client: str | None = None, parts: Agent | None = None, **more: Any) -> tuple[str, str]:
    """The agent of a call, and its source: by the name in `clientInfo`, the configured agent, and what else is known."""
    told = {key: more.pop(key) for key in ("meta_agent", "noted", "codex_tier") if key in more}
    configured = {"agent_parts": parts, "agent_source": "config"} if parts else {}
    return Identity("u", "os", "s", **configured | more).agent(client, **told)


CLIENTS = {
    "claude-ai": "Claude Desktop",
    "local-agent-mode-crm": "Claude Desktop",
    "Visual Studio Code - Insiders": "VS Code",
    "gemini-cli-mcp-client-crm": "Gemini CLI",
    "my-client": "my-client",
    "x::background::y": "x:\\:\\background:\\:\\y",
    "x:": "x:\\",
    "*": "*",
    "": "unknown",
    None: "unknown",
}


@pytest.mark.parametrize(("name", "client"), CLIENTS.items())
def test_an_unset_client_is_filled_from_client_info(name: str | None, client: str) -> None:
    assert agent(name) == (f"{client}::interactive::default", "clientInfo" if name else "default")


EXPLORE = "Claude Code::subagent::Explore"
MINE = Agent("Mine")


BY_CLIENT_INFO = ("Claude Code::interactive::default", "clientInfo")
SOURCES: dict[str, tuple[dict[str, Any], tuple[str, str]]] = {
    "configured before clientInfo": ({"parts": MINE}, ("Mine::interactive::default", "config")),
    "wholly configured": ({"parts": Agent("a", "b", "c"), "noted": EXPLORE}, ("a::b::c", "config")),
    "no trust in clientInfo": (
        {"parts": Agent(tier="api", name="job"), "trust_client_info": False},
        ("unknown::api::job", "config"),
    ),
    "noted": ({"noted": EXPLORE}, (EXPLORE, "hook")),
    "noted without trust in clientInfo": ({"noted": EXPLORE, "trust_client_info": False}, (EXPLORE, "hook")),
    "configured client before the note": ({"noted": EXPLORE, "parts": MINE}, ("Mine::subagent::Explore", "hook")),
    "configured tier before the note": ({"noted": EXPLORE, "parts": Agent(tier="api")}, ("Claude Code::api::Explore", "hook")),
    "noted without a tier": ({"noted": "Claude Code::::reviewer"}, ("Claude Code::interactive::reviewer", "hook")),
    "trusted meta": ({"meta_agent": "a::b::c", "trust_meta": True}, ("a::b::c", "meta")),
    "trusted meta before the note": ({"meta_agent": "a::b::c", "trust_meta": True, "noted": EXPLORE}, ("a::b::c", "meta")),
    "untrusted meta": ({"meta_agent": "a::b::c"}, BY_CLIENT_INFO),
}


@pytest.mark.parametrize(("known", "expected"), SOURCES.values(), ids=SOURCES)
def test_each_part_of_an_agent_has_the_first_source_that_knows_it(known: dict[str, Any], expected: tuple[str, str]) -> None:
    assert agent("claude-code", **known) == expected


@pytest.mark.parametrize("odd", ["", "a", "a::b", "a::b::", "::b::c", "a::b::c::d"])
def test_a_note_or_a_meta_without_a_valid_agent_is_ignored(odd: str) -> None:
    assert agent("claude-code", noted=odd) == agent("claude-code", meta_agent=odd, trust_meta=True) == BY_CLIENT_INFO


def test_codexs_tier_fills_a_tier_that_is_neither_configured_nor_noted() -> None:
    noted = "Codex::subagent::explorer"
    for expected, more in (
        (("Codex::subagent::default", "meta"), {}),
        ((noted, "hook"), {"noted": noted}),
        (("Mine::subagent::default", "meta"), {"parts": MINE}),
        (("Codex::api::default", "clientInfo"), {"parts": Agent(tier="api")}),
        (("unknown::interactive::default", "default"), {"trust_client_info": False}),
    ):
        assert agent("codex-mcp-client", codex_tier="subagent", **more) == expected
    for name in ("claude-code", "Codex::x", None):
        assert agent(name, codex_tier="subagent") == agent(name)


def test_without_a_person_the_main_agent_is_a_background_one_and_a_subagent_stays_a_subagent() -> None:
    for expected, more in (
        (("Claude Code::background::default", "clientInfo"), {}),
        (("Claude Code::background::reviewer", "hook"), {"noted": "Claude Code::::reviewer"}),
        ((EXPLORE, "hook"), {"noted": EXPLORE}),
        (("unknown::interactive::default", "default"), {"trust_client_info": False}),
        (("Claude Code::api::default", "clientInfo"), {"parts": Agent(tier="api")}),
    ):
        assert agent("claude-code", claude_tier="background", **more) == expected
    for name in ("cursor-vscode", None):
        assert agent(name, claude_tier="background") == agent(name)


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


@given(st.text("a:\\b", min_size=1, max_size=8))
def test_an_escaped_part_never_adds_a_part(text: str) -> None:
    parsed = Agent.parse(agent(text)[0])
    assert parsed is not None
    assert parsed[1:] == ("interactive", "default")


@given(st.text(max_size=8), st.text(max_size=8))
def test_clients_with_different_names_are_different_agents(one: str, other: str) -> None:
    known = {known_client(name) or "unknown" for name in (one, other)}
    assert len({agent(one)[0], agent(other)[0]}) == len(known)


texts = st.text("a:\\b", max_size=6)


@given(texts, texts)
@example("a::b", "a:\\:\\b")
def test_no_two_texts_have_one_escaped_form(one: str, other: str) -> None:
    assert (escape_part(one) == escape_part(other)) == (one == other)


@given(texts, texts, texts)
def test_an_agent_of_escaped_parts_is_parsed_from_its_text(client: str, tier: str, name: str) -> None:
    agent = Agent(escape_part(client), escape_part(tier), escape_part(name))
    assert Agent.split(str(agent)) == agent
    assert Agent.parse(str(agent)) == (agent if client and tier and name else None)


@pytest.mark.parametrize("text", ["", "a", "a::b", "a::b::c::d", "::::", "::b::c", "a::::c", "a::b::"])
def test_an_agent_has_three_parts_of_which_those_that_are_not_known_are_empty(text: str) -> None:
    assert Agent.parse(text) is None
    parts = tuple(text.split("::"))
    assert Agent.split(text) == (parts if len(parts) == 3 else None)


@pytest.mark.parametrize(
    ("pattern", "agent", "matches"),
    [
        *((pattern, "a::b::c", True) for pattern in ("*::*::*", "*::b::*")),
        *((pattern, "a::b::c", False) for pattern in ("*::c", "*", "a::*")),
        ("a*::b::c", "abc::b::c", True),
        ("*::b::c", "a:\\:\\b::b::c", True),
        ("a::b::*", "a::b::c::d", False),
        ("*::*::*", "a", False),
    ],
)
def test_a_star_in_a_pattern_does_not_cross_parts(pattern: str, agent: str, matches: bool) -> None:
    assert agent_matches(pattern, agent) is matches


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("", "*::*::*"),
        ("Explore", "*::*::Explore"),
        ("Cursor::Explore", "Cursor::*::Explore"),
        ("Cursor::", "Cursor::*::*"),
        ("subagent", "*::subagent::*"),
        ("subagent::Explore", "*::subagent::Explore"),
        ("Cursor::api", "Cursor::api::*"),
        ("a::::c", "a::*::c"),
        ("a::b::c::d", "a::b::c"),
    ],
)
def test_the_nearest_pattern_has_three_parts_none_of_them_empty(text: str, meant: str) -> None:
    assert str(nearest(text)) == meant
