"""Who is calling, and what a server is called."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpguard.core.identity import KNOWN_CLIENTS, Identity, escape_part, parse_agent, server_name
from mcpguard.errors import ConfigError, ExitStatus

parts = st.text("a:\\b", max_size=6)


@given(parts, parts)
def test_no_two_texts_have_one_escaped_form(one: str, other: str) -> None:
    assert (escape_part(one) == escape_part(other)) == (one == other)


@given(st.text("a:\\b", min_size=1, max_size=8))
def test_an_escaped_part_never_adds_a_part(text: str) -> None:
    agent, _ = Identity("u", "os", "s").agent(text)
    assert agent.split("::")[1:] == ["interactive", "default"]
    assert len(agent.split("::")) == 3


@given(st.text(max_size=8), st.text(max_size=8))
def test_clients_that_differ_in_name_are_different_agents(one: str, other: str) -> None:
    who = Identity("u", "os", "s")
    known = {KNOWN_CLIENTS.get(name, name) or "unknown" for name in (one, other)}
    assert len({who.agent(one)[0], who.agent(other)[0]}) == len(known)


@pytest.mark.parametrize(
    ("name", "agent"),
    [
        ("claude-ai", "Claude Desktop::interactive::default"),
        ("claude-code", "Claude Code::interactive::default"),
        ("cursor-vscode", "Cursor::interactive::default"),
        ("codex-mcp-client", "Codex::interactive::default"),
        ("my-client", "my-client::interactive::default"),
        ("x::background::y", "x:\\:\\background:\\:\\y::interactive::default"),
        ("x:", "x:\\::interactive::default"),
        ("*", "*::interactive::default"),
        ("", "unknown::interactive::default"),
        (None, "unknown::interactive::default"),
    ],
)
def test_an_unset_client_is_filled_from_what_the_client_calls_itself(name: str | None, agent: str) -> None:
    source = "clientInfo" if name else "default"
    assert Identity("u", "os", "s").agent(name) == (agent, source)


def test_what_a_client_says_of_itself_never_overrides_what_is_configured() -> None:
    who = Identity("u", "os", "s", client="Mine", agent_source="config")
    assert who.agent("claude-ai") == ("Mine::interactive::default", "config")


def test_a_client_that_is_not_trusted_is_unknown() -> None:
    who = Identity("u", "os", "s", tier="api", name="job", agent_source="config", trust_client_info=False)
    assert who.agent("claude-ai") == ("unknown::api::job", "config")


def test_a_call_names_its_agent_only_where_that_is_trusted() -> None:
    trusting = Identity("u", "os", "s", trust_meta=True)
    assert trusting.agent("claude-ai", "a::b::c") == ("a::b::c", "meta")
    for odd in ("a::b", "a::b::c::d", "a::::c", ""):
        assert trusting.agent("claude-ai", odd) == ("Claude Desktop::interactive::default", "clientInfo")
    assert Identity("u", "os", "s").agent(None, "a::b::c") == ("unknown::interactive::default", "default")


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ("a::b::c", {"client": "a", "tier": "b", "name": "c", "agent_source": "config"}),
        ("::subagent::Explore", {"tier": "subagent", "name": "Explore", "agent_source": "config"}),
        ("a::::", {"client": "a", "agent_source": "config"}),
        ("::::", {}),
    ],
)
def test_a_configured_agent_gives_the_parts_that_are_not_empty(text: str, given: dict[str, str]) -> None:
    assert parse_agent(text, where="--agent") == given


@pytest.mark.parametrize(
    ("text", "words"),
    [("a", "does not have three parts"), ("a::b::c::d", "does not have three parts"), ("a::*::c", "is a pattern")],
)
def test_a_configured_agent_that_cannot_be_is_an_error_that_names_its_place(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as raised:
        parse_agent(text, where="--agent")
    assert raised.value.message.startswith(f"--agent: '{text}' ")
    assert raised.value.hint
    assert raised.value.exit_status == ExitStatus.CONFIGURATION


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("crm-server", "crm-server"),
        ("./crm-server", "crm-server"),
        ("/usr/local/bin/crm", "crm"),
        ("C:\\tools\\crm.exe --stdio", "crm"),
        ("npx -y @modelcontextprotocol/server-everything", "server-everything"),
        ("npx @modelcontextprotocol/server-filesystem@2026.1.0 /home/alice", "server-filesystem"),
        ("npx.cmd -y mcp-git", "mcp-git"),
        ("npx -p some-package crm-server", "crm-server"),
        ("cmd /c npx -y mcp-git", "mcp-git"),
        ("pnpm dlx mcp-git", "mcp-git"),
        ("uvx mcp-server-git==1.2", "mcp-server-git"),
        ("uvx --from git+https://x mcp-server-git", "mcp-server-git"),
        ("uvx mcp[cli]", "mcp"),
        ("uv run --directory /srv/crm crm.py", "crm"),
        ("uv --directory /srv/crm run server.py", "server"),
        ("uv tool run mcp-git>=2", "mcp-git"),
        ("python server.py", "server"),
        ("python3.11 /srv/crm/server.py", "crm"),
        ("python -m crm.server", "crm.server"),
        ("/venv/bin/python -u -m crm", "crm"),
        ("python -c pass", "server"),
        ("sh -c 'exec crm'", "server"),
        ("bash -lc crm", "server"),
        ("java -jar /opt/crm/crm.jar", "crm"),
        ("node /srv/crm/dist/index.js", "crm"),
        ("node --import tsx src/index.ts", "index"),
        ("node", "node"),
        ("node --inspect", "node"),
        ("docker run -i --rm -e TOKEN mcp/git:latest", "git"),
        ("docker run -v /a:/b ghcr.io/acme/crm:1.2", "crm"),
        ("env TOKEN=x crm", "crm"),
        ("env A=1 B=2 npx -y mcp-git", "mcp-git"),
        ("sudo -u alice crm", "crm"),
        ("deno run -A /srv/crm/main.ts", "crm"),
        ("/", "server"),
        (".", "server"),
        ("python -m .", "server"),
        ("/srv/@acme/dist/index.js", "srv"),
    ],
)
def test_a_server_is_named_after_its_command_without_launchers_options_versions_and_folders(command: str, name: str) -> None:
    assert server_name(command.split()) == name


@given(st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=5))
def test_every_command_has_a_name_that_is_no_path(command: list[str]) -> None:
    name = server_name(command)
    assert name
    assert not {"/", "\\"} & set(name)
