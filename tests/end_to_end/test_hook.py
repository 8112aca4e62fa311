"""Subagents told apart from the main agent: a real wrapper, the real hook, one store between them."""

import contextlib
import json
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from mcpguard.stores.api import Options
from mcpguard.stores.redis.store import RedisStore
from mcpguard.stores.sqlite.store import SqliteStore
from tests.redis_servers import running

from .host import DEADLINE_S, PATIENT_MS, Host, Message, budget, environment, policy, program, request, rule, serving

EXPLORE = "Claude Code::subagent::Explore"
MAIN = "Claude Code::interactive::default"


SESSION = {"CLAUDE_CODE_SESSION_ID": "abc123", "CLAUDE_CODE_ENTRYPOINT": "cli"}
"""What Claude Code tells the servers that it starts in a session."""


PATIENCE: Mapping[str, float] = {
    "mcpguard.hook.run.TIMEOUT_S": DEADLINE_S,
    "mcpguard.hook.run.MOST_TIMEOUT_MS": PATIENT_MS,
    "mcpguard.hook.deciding.OPENING_S": DEADLINE_S,
}
"""A hook's limits, with all the time that a busy machine may need."""


def hook(
    home: Path, client: str, told: Message | bytes, *options: str, tuned: Mapping[str, float] = PATIENCE, **env: str
) -> Message:
    """What a client does before a call. Returns what the hook prints: nothing, or one JSON object."""
    budget(home, PATIENT_MS)
    command, env = program("hook", client, *options, tuned=tuned), environment(home, **env)
    data = told if isinstance(told, bytes) else json.dumps(told).encode()
    done = subprocess.run(command, input=data, env=env, capture_output=True, timeout=DEADLINE_S, check=True)
    assert done.stderr == b""
    return dict(json.loads(done.stdout or b"{}"))


def used(tool: str, call_id: str = "t1", **more: object) -> Message:
    """What Claude Code tells its hook before a call."""
    given = {"session_id": "abc123", "transcript_path": "/t", "cwd": "/p", "permission_mode": "default"}
    event = {"hook_event_name": "PreToolUse", "tool_name": tool, "tool_input": {"query": "x"}, "tool_use_id": call_id}
    return given | event | more


def note(home: Path, tool_use_id: str, *options: str, agent: str | None = "Explore", **env: str) -> None:
    """Claude Code tells its hook of a call of a subagent, or of the main agent."""
    of = {"agent_id": "a315cca28b4992124", "agent_type": agent} if agent is not None else {}
    assert hook(home, "claude-code", used("mcp__crm__search", tool_use_id, **of), *options, tuned=PATIENCE, **env) == {}


def create_store(home: Path) -> None:
    """Create the store. A hook leaves no note if it runs before the wrapper has created the store."""
    SqliteStore(home / "mcpguard.db").close()


@contextlib.contextmanager
def guarded(home: Path, *options: str, **env: str) -> Iterator[Host]:
    """A server that Claude Code has started, behind a wrapper that ends well."""
    with serving(home, options=options, env=env or SESSION) as host:
        info = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "claude-code", "version": "2"}}
        host.send(request("hello", "initialize", info))
        host.answer("hello")
        yield host


def call(host: Host, tool_use_id: str) -> Message:
    return host.call(tool_use_id, "search", _meta={"claudecode/toolUseId": tool_use_id, "progressToken": 1})


def who(rows: list[Message]) -> list[tuple[str, str]]:
    return [(row["agent"], row["agent_source"]) for row in rows]


def test_a_rule_for_a_subagent_decides_its_calls_and_the_audit_names_it(tmp_path: Path) -> None:
    policy(tmp_path, rule("1/1h", user="*", agent=EXPLORE))
    create_store(tmp_path)
    with guarded(tmp_path, "--user", "alice") as host:
        note(tmp_path, "t1")
        note(tmp_path, "t2")
        note(tmp_path, "t3", agent=None)
        assert "result" in call(host, "t1")
        assert call(host, "t2")["error"]["data"]["agent"] == EXPLORE
        assert "result" in call(host, "t3")
        assert "result" in call(host, "t1")  # whose note is used up
        assert who(host.audit()) == [(EXPLORE, "hook"), (EXPLORE, "hook"), (MAIN, "clientInfo"), (MAIN, "clientInfo")]


def test_with_redis_hook_and_wrapper_meet_on_the_server_in_their_namespace(tmp_path: Path) -> None:
    policy(tmp_path, rule("1/1h", user="*", agent=EXPLORE))
    with running(tmp_path / "redis") as server:
        team = {"MCPGUARD_STORE": server.url, "MCPGUARD_NAMESPACE": "team"}
        with guarded(tmp_path, "--user", "alice", **team, **SESSION) as host:
            note(tmp_path / "elsewhere", "t1", MCPGUARD_STORE=server.url, MCPGUARD_NAMESPACE="team")
            note(tmp_path, "t2", "--store", server.url, MCPGUARD_NAMESPACE="team")
            note(tmp_path, "t3", "--store", server.url)
            assert "result" in call(host, "t1")
            assert call(host, "t2")["error"]["data"]["agent"] == EXPLORE
            assert "result" in call(host, "t3")
        with contextlib.closing(RedisStore(server.address, Options(namespace="team", timeout_ms=10_000))) as store:
            rows = [entry.record for entry in store.entries() if entry.record["decision"] != "policy"]
    assert who(rows) == [(EXPLORE, "hook"), (EXPLORE, "hook"), (MAIN, "clientInfo")]
    assert not list(tmp_path.glob("*.db*"))
