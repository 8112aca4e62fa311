"""Clients with a scripted model: their subagents are told apart, and hooks decide their calls.

`MCPGUARD_REAL_AGENTS=1` runs these tests.
"""

import contextlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from mcpguard.stores.sqlite.store import SqliteStore
from tests.end_to_end.host import DEADLINE_S, PATIENT_MS, ROOT, budget, policy, program, rule
from tests.end_to_end.test_hook import PATIENCE
from tests.missing import missing

from .model import MAIN_PROMPT, SEARCHES, SUBAGENT_PROMPT, Script, serving
from .parts import MissingError, Parts

pytestmark = pytest.mark.timeout(600)  # it may install them

SERVER = ["run", "--server", "crm", "--", sys.executable, "-m", "mcpguard.demo.crm"]


def client(parts: Parts, name: str, home: Path) -> str:
    """The program of a client. Its home gets a store, with time for it on a busy machine."""
    if os.environ.get("MCPGUARD_REAL_AGENTS") != "1":
        missing("MCPGUARD_REAL_AGENTS is not 1: Claude Code, Codex and Copilot CLI take 1 GB")
    try:
        modules = parts.npm(name)
    except MissingError as error:
        missing(str(error))
    (home / "work").mkdir()
    budget(home / "guard", PATIENT_MS)
    SqliteStore(home / "guard" / "mcpguard.db").close()
    return str(next(modules.glob("@anthropic-ai/claude-code-*/claude"), modules / ".bin" / name))


def hook(home: Path, name: str, *options: str) -> str:
    """The hook's command, for a shell."""
    guard = home / "guard"
    options += ("--config", str(guard / "config.toml"), "--store", f"sqlite://{guard}/mcpguard.db")
    options += ("--policy", str(guard / "policy.toml")) if (guard / "policy.toml").exists() else ()
    return shlex.join(program("hook", name, *options, tuned=PATIENCE))


def run(home: Path, *command: str, **env: str) -> list[tuple[object, object]]:
    """Run the client in an empty home. Returns agent and source of each call, in the order of the calls."""
    env = {"PATH": os.environ["PATH"], "HOME": str(home), **env}
    how: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "check": False}
    done = subprocess.run(command, cwd=home / "work", env=env, timeout=4 * DEADLINE_S, **how)
    assert done.returncode == 0, done.stdout + done.stderr
    return [(row["agent"], row["agent_source"]) for row in rows(home) if row["decision"] == "allowed"]


def rows(home: Path) -> list[dict[str, Any]]:
    with contextlib.closing(SqliteStore(home / "guard" / "mcpguard.db")) as store:
        return [entry.record for entry in store.entries() if entry.record["decision"] != "policy"]


def run_codex(home: Path, codex: str, *, hooked: Mapping[str, Sequence[str]], script: Script = SEARCHES) -> str:
    """Run Codex with a guarded server and mcpguard's hook, its options by matcher; all that its agents sent to the model."""
    settings = home / ".codex"
    settings.mkdir(exist_ok=True)
    command, *arguments = program(*SERVER)
    with serving(script) as model:
        (settings / "config.toml").write_text(
            f"""
            model = "scripted"
            model_provider = "scripted"
            [model_providers.scripted]
            name = "scripted"
            base_url = "{model.url}"
            wire_api = "responses"
            [mcp_servers.crm]
            command = {json.dumps(command)}
            args = {json.dumps(arguments)}
            env = {{ MCPGUARD_HOME = "{home}/guard" }}
            required = true
            startup_timeout_sec = 60
            default_tools_approval_mode = "approve"
            """
        )
        entries = [
            {"matcher": matcher, "hooks": [{"type": "command", "command": hook(home, "codex", *options), "timeout": 60}]}
            for matcher, options in hooked.items()
        ]
        (settings / "hooks.json").write_text(json.dumps({"hooks": {"PreToolUse": entries}}))
        options = ["--skip-git-repo-check", "--dangerously-bypass-hook-trust", "--sandbox", "read-only"]
        run(home, codex, "exec", *options, MAIN_PROMPT)
        return model.said


@pytest.mark.parametrize(
    ("with_hook", "subagent"),
    [(False, ("Codex::subagent::default", "meta")), (True, ("Codex::subagent::explorer", "hook"))],
    ids=["without the hook", "with the hook"],
)
def test_codexs_subagent_is_told_apart(tmp_path: Path, parts: Parts, with_hook: bool, subagent: tuple[str, str]) -> None:
    codex = client(parts, "codex", tmp_path)
    run_codex(tmp_path, codex, hooked={"mcp__.*": ()} if with_hook else {})
    agents = [(row["agent"], row["agent_source"]) for row in rows(tmp_path)]
    assert agents == [("Codex::background::default", "meta"), subagent]  # `codex exec` runs without a person


def test_copilots_subagent_is_told_apart_with_the_hook(tmp_path: Path, parts: Parts) -> None:
    copilot = client(parts, "copilot", tmp_path)
    settings = tmp_path / ".copilot"
    (settings / "hooks").mkdir(parents=True)
    command, *arguments = program(*SERVER)
    env = {"MCPGUARD_HOME": f"{tmp_path}/guard"}
    server = {"type": "local", "tools": ["*"], "command": command, "args": arguments, "env": env}
    (settings / "mcp-config.json").write_text(json.dumps({"mcpServers": {"crm": server}}))
    entry = {"type": "command", "bash": hook(tmp_path, "copilot"), "timeoutSec": 60}
    (settings / "hooks" / "mcpguard.json").write_text(json.dumps({"version": 1, "hooks": {"preMcpToolCall": [entry]}}))
    with serving() as model:
        agents = run(
            tmp_path,
            *(copilot, "--allow-all-tools", "-p", MAIN_PROMPT),
            COPILOT_OFFLINE="true",
            COPILOT_PROVIDER_BASE_URL=model.url,
            COPILOT_PROVIDER_API_KEY="none",
            COPILOT_PROVIDER_WIRE_MODEL="scripted",
            COPILOT_MODEL="gpt-5",
            COPILOT_AUTO_UPDATE="false",
        )
    main, subagent = "GitHub Copilot CLI::interactive::default", "GitHub Copilot CLI::subagent::general-purpose"
    assert agents == [(main, "clientInfo"), (subagent, "hook")]


SEARCH = ("search_customers", {"query": "acme"})
WEB = ("WebSearch", {"query": "rate limits"})
SUBAGENT = (
    "Agent",
    {"description": "search", "prompt": SUBAGENT_PROMPT, "subagent_type": "general-purpose", "run_in_background": False},
)


def run_claude(home: Path, claude: str, script: Script, *, enforce: bool = True, plugin: Path | None = None) -> str:
    """Run Claude Code with a plugin's server, or else a guarded one; all that its agents have sent to the model."""
    settings = home / ".claude"
    settings.mkdir(exist_ok=True)
    entry = {"type": "command", "command": hook(home, "claude-code", "--enforce"), "timeout": 60}
    hooks = {"PreToolUse": [{"matcher": "*", "hooks": [entry]}]} if enforce else {}
    allowed = {"allow": ["WebSearch", "Agent", "mcp__crm__search_customers", "mcp__plugin_acme_crm__search_customers"]}
    (settings / "settings.json").write_text(json.dumps({"hooks": hooks, "permissions": allowed}))
    command, *arguments = program(*SERVER)
    server = {"command": command, "args": arguments, "env": {"MCPGUARD_HOME": f"{home}/guard"}}
    (home / "mcp.json").write_text(json.dumps({"mcpServers": {"crm": server}}))
    servers = ("--plugin-dir", str(plugin)) if plugin else ("--mcp-config", str(home / "mcp.json"))
    with serving(script) as model:
        run(
            home,
            *(claude, *servers, "-p", MAIN_PROMPT),
            ANTHROPIC_BASE_URL=model.root,
            ANTHROPIC_API_KEY="none",
            ENABLE_TOOL_SEARCH="false",
            MCP_CONNECTION_NONBLOCKING="false",
            CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC="1",
            DISABLE_AUTOUPDATER="1",
        )
        return model.said


def test_claude_codes_web_searches_are_limited_over_sessions_and_subagents_by_its_hook(tmp_path: Path, parts: Parts) -> None:
    claude = client(parts, "claude", tmp_path)
    policy(tmp_path / "guard", rule("10/1h", user="*", tool="WebSearch"))
    script: Script = {MAIN_PROMPT: [*[WEB] * 3, SUBAGENT, *[WEB] * 2], SUBAGENT_PROMPT: [WEB] * 3}
    assert "rate limit exceeded" not in run_claude(tmp_path, claude, script)
    assert "Tool WebSearch rate limit exceeded for user " in run_claude(tmp_path, claude, script)
    searches = [(row["decision"], row["agent"]) for row in rows(tmp_path) if row["tool"] == "WebSearch"]
    assert [decision for decision, _ in searches] == ["allowed"] * 10 + ["rate_limited"] * 6
    main, subagent = "Claude Code::background::default", "Claude Code::subagent::general-purpose"
    assert [agent for _, agent in searches] == [*[main] * 3, *[subagent] * 3, *[main] * 2] * 2


@pytest.mark.parametrize("enforce", [False, True], ids=["without the hook", "with the hook"])
def test_claude_codes_guarded_call_counts_once(tmp_path: Path, parts: Parts, enforce: bool) -> None:
    claude = client(parts, "claude", tmp_path)
    policy(tmp_path / "guard", rule("2/1h", user="*", tool="search_customers"))
    said = run_claude(tmp_path, claude, {MAIN_PROMPT: [SEARCH] * 3}, enforce=enforce)
    assert "Tool search_customers rate limit exceeded for user " in said
    decisions = [row["decision"] for row in rows(tmp_path)]
    assert decisions == (["allowed", "continued"] * 2 if enforce else ["allowed"] * 2) + ["rate_limited"]


def plugin(home: Path, version: str) -> Path:
    """A plugin of Claude Code with a server that nothing guards."""
    folder = home / f"acme-{version}"
    (folder / ".claude-plugin").mkdir(parents=True)
    (folder / ".claude-plugin/plugin.json").write_text(json.dumps({"name": "acme", "version": version}))
    server = {"command": sys.executable, "args": ["-m", "mcpguard.demo.crm"], "env": {"PYTHONPATH": str(ROOT)}}
    (folder / ".mcp.json").write_text(json.dumps({"mcpServers": {"crm": server}}))
    return folder


def test_the_server_of_claude_codes_plugin_is_limited_by_the_hook_also_after_an_update(tmp_path: Path, parts: Parts) -> None:
    claude = client(parts, "claude", tmp_path)
    policy(tmp_path / "guard", rule("3/1h", user="*", server="plugin:acme:*"))
    script: Script = {MAIN_PROMPT: [SEARCH] * 2}
    assert "rate limit exceeded" not in run_claude(tmp_path, claude, script, plugin=plugin(tmp_path, "1.0.0"))
    assert "rate limit exceeded" in run_claude(tmp_path, claude, script, plugin=plugin(tmp_path, "2.0.0"))
    told = [(row["server"], row["tool"], row["decision"]) for row in rows(tmp_path)]
    assert told == [("plugin:acme:crm", "search_customers", word) for word in ["allowed"] * 3 + ["rate_limited"]]


def test_codexs_commands_and_guarded_calls_are_limited_once_by_its_hook(tmp_path: Path, parts: Parts) -> None:
    codex = client(parts, "codex", tmp_path)
    policy(tmp_path / "guard", rule("1/1h", user="*", tool="Bash") + rule("1/1h", user="*", tool="search_customers"))
    script: Script = {MAIN_PROMPT: [("exec_command", {"cmd": "true"}), SEARCH] * 2}
    said = run_codex(tmp_path, codex, hooked={"*": ("--enforce",)}, script=script)
    assert "Tool Bash rate limit exceeded for user " in said
    assert "Tool search_customers rate limit exceeded for user " in said
    told = [f"{row['tool']} {row['decision']}" for row in rows(tmp_path)]
    calls = ["Bash allowed", "search_customers allowed", "search_customers continued"]
    assert told == [*calls, "Bash rate_limited", "search_customers rate_limited"]
