"""Subagents told apart from the main agent: a real wrapper, the real hook, one store between them."""

import contextlib
import json
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from mcpguard.stores.api import Options
from mcpguard.stores.redis.store import RedisStore
from mcpguard.stores.sqlite.store import SqliteStore
from tests.recorded_hooks import CODEX, COPILOT
from tests.redis_servers import Server, running

from .host import DEADLINE_S, PATIENT_MS, Host, Message, budget, environment, policy, program, request, rule, script

EXPLORE = "Claude Code::subagent::Explore"
MAIN = "Claude Code::interactive::default"


SESSION = {"CLAUDE_CODE_SESSION_ID": "abc123", "CLAUDE_CODE_ENTRYPOINT": "cli"}
"""What Claude Code tells the servers that it starts in a session."""


PATIENCE: Mapping[str, float] = {
    "mcpguard.hook.run.TIMEOUT_S": DEADLINE_S,
    "mcpguard.hook.run.MOST_TIMEOUT_MS": PATIENT_MS,
}
"""A hook's limits, with all the time that a busy machine may need."""


def hook(
    home: Path, client: str, told: Message | bytes, *options: str, tuned: Mapping[str, float] = PATIENCE, **env: str
) -> Message:
    """What a client does before a call. Returns what the hook prints: nothing, or one JSON object."""
    budget(home, PATIENT_MS)
    done = subprocess.run(
        program("hook", client, *options, tuned=tuned),
        input=told if isinstance(told, bytes) else json.dumps(told).encode(),
        env=environment(home, **env),
        capture_output=True,
        timeout=DEADLINE_S,
        check=True,
    )
    assert done.stderr == b""
    return dict(json.loads(done.stdout or b"{}"))


def note(
    home: Path, tool_use_id: str, *options: str, agent: str | None = "Explore", session: str = "abc123", **env: str
) -> None:
    """Claude Code tells its hook of a call of a subagent, or of the main agent."""
    told: Message = {
        "session_id": session,
        "hook_event_name": "PreToolUse",
        "tool_name": "mcp__crm__search",
        "tool_input": {"query": "x"},
        "tool_use_id": tool_use_id,
    }
    of = {"agent_id": "a315cca28b4992124", "agent_type": agent} if agent is not None else {}
    assert hook(home, "claude-code", told | of, *options, tuned=PATIENCE, **env) == {}


def create_store(home: Path) -> None:
    """Create the store. A hook leaves no note if it runs before the wrapper has created the store."""
    SqliteStore(home / "mcpguard.db").close()


def hello(host: Host, client: str = "claude-code") -> None:
    info = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": client, "version": "2"}}
    host.send(request("hello", "initialize", info))
    host.answer("hello")


def call(host: Host, tool_use_id: str) -> Message:
    return host.call(tool_use_id, "search", _meta={"claudecode/toolUseId": tool_use_id, "progressToken": 1})


def who(rows: list[Message]) -> list[tuple[str, str]]:
    return [(row["agent"], row["agent_source"]) for row in rows]


def test_a_rule_for_a_subagent_decides_its_calls_and_the_audit_names_it(tmp_path: Path) -> None:
    policy(tmp_path, rule("1/1h", user="*", agent=EXPLORE))
    create_store(tmp_path)
    with Host(tmp_path, *script("obedient"), options=["--user", "alice"], env=SESSION) as host:
        hello(host)
        note(tmp_path, "t1")
        note(tmp_path, "t2")
        note(tmp_path, "t3", agent=None)
        assert "result" in call(host, "t1")
        assert call(host, "t2")["error"]["data"]["agent"] == EXPLORE
        assert "result" in call(host, "t3")
        assert "result" in call(host, "t4")
        assert host.end() == 0
        assert who(host.audit()) == [(EXPLORE, "hook"), (EXPLORE, "hook"), (MAIN, "clientInfo"), (MAIN, "clientInfo")]


def test_a_note_is_no_later_calls_and_no_other_sessions(tmp_path: Path) -> None:
    create_store(tmp_path)
    with Host(tmp_path, *script("obedient"), env=SESSION) as host:
        hello(host)
        note(tmp_path, "t1")
        call(host, "t1")
        host.call("again", "search", _meta={"claudecode/toolUseId": "t1"})
        note(tmp_path, "t2", session="another")
        call(host, "t2")
        note(tmp_path, "t3")  # the user refuses this call, and the model's gateway counts from 3 again
        note(tmp_path, "t3", agent=None)
        call(host, "t3")
        assert host.end() == 0
        main = (MAIN, "clientInfo")
        assert who(host.audit()) == [(EXPLORE, "hook"), main, main, main]


def test_codexs_subagent_has_its_tier_without_the_hook_and_its_name_with_it(tmp_path: Path) -> None:
    subagents, explorer = "Codex::subagent::*", "Codex::subagent::explorer"
    policy(tmp_path, rule("2/1h", user="*", agent=subagents) + rule("1/1h", user="*", agent=explorer))
    with Host(tmp_path, *script("obedient"), options=["--user", "alice"], env=SESSION) as host:
        hello(host, "codex-mcp-client")
        for caller in ("main", "subagent"):
            host.send(request(caller, "tools/call", CODEX[caller]["params"]))
            assert "result" in host.answer(caller)
        for caller in ("main", "subagent"):
            assert hook(tmp_path, "codex", CODEX[caller]["hook"]) == {}
            host.send(request(f"noted {caller}", "tools/call", CODEX[caller]["params"]))
            assert "result" in host.answer(f"noted {caller}")
        assert hook(tmp_path, "codex", CODEX["subagent"]["hook"]) == {}
        host.send(request("again", "tools/call", CODEX["subagent"]["params"]))
        assert host.answer("again")["result"]["_meta"]["mcpguard/denial"]["agent"] == explorer
        assert host.end() == 0
        main, unnamed = ("Codex::background::default", "meta"), ("Codex::subagent::default", "meta")
        noted = (explorer, "hook")
        assert who(host.audit()) == [main, unnamed, main, noted, noted]


def test_copilots_subagent_has_its_name_if_the_call_has_the_meta_that_the_hook_prints(tmp_path: Path) -> None:
    with Host(tmp_path, *script("obedient"), options=["--user", "alice"], env=SESSION) as host:
        for caller in ("main", "subagent"):
            params = json.loads(json.dumps(COPILOT[caller]["params"]))
            del params["_meta"]["mcpguard/toolCallId"]
            host.send(request(caller, "tools/call", params))  # before the hook
            assert "result" in host.answer(caller)
            printed = hook(tmp_path, "copilot", COPILOT[caller]["hook"])
            params["_meta"] |= printed.get("metaToUse", {})
            host.send(request(f"noted {caller}", "tools/call", params))
            assert "result" in host.answer(f"noted {caller}")
        assert host.end() == 0
        main = ("GitHub Copilot CLI::interactive::default", "clientInfo")
        assert who(host.audit()) == [main, main, main, ("GitHub Copilot CLI::subagent::general-purpose", "hook")]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with running(tmp_path / "redis") as one:
        yield one


def rows_in(server: Server, namespace: str = "default") -> list[Message]:
    store = RedisStore(server.address, Options(namespace=namespace, timeout_ms=10_000))
    with contextlib.closing(store):
        return [entry.record for entry in store.entries() if entry.record["decision"] != "policy"]


def test_with_redis_hook_and_wrapper_meet_on_the_server_in_their_namespace(tmp_path: Path, server: Server) -> None:
    policy(tmp_path, rule("1/1h", user="*", agent=EXPLORE))
    team = {"MCPGUARD_STORE": server.url, "MCPGUARD_NAMESPACE": "team"}
    with Host(tmp_path, *script("obedient"), options=["--user", "alice"], env=team | SESSION) as host:
        hello(host)
        note(tmp_path / "elsewhere", "t1", MCPGUARD_STORE=server.url, MCPGUARD_NAMESPACE="team")
        note(tmp_path, "t2", "--store", server.url, MCPGUARD_NAMESPACE="team")
        note(tmp_path, "t3", "--store", server.url)
        assert "result" in call(host, "t1")
        assert call(host, "t2")["error"]["data"]["agent"] == EXPLORE
        assert "result" in call(host, "t3")
        assert host.end() == 0
    assert who(rows_in(server, "team")) == [(EXPLORE, "hook"), (EXPLORE, "hook"), (MAIN, "clientInfo")]
    assert not list(tmp_path.glob("*.db*"))
