"""The three parts of an agent and their text."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mcpguard.identity.caller import Agent, agent_matches, escape_part, nearest

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
