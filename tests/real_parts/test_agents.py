"""Codex and Copilot CLI with a scripted model: their subagents are told apart. `MCPGUARD_REAL_AGENTS=1` runs these tests."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mcpguard.stores.sqlite.store import SqliteStore
from tests.end_to_end.host import DEADLINE_S, PATIENT_MS, budget, program
from tests.missing import missing

from .model import MAIN_PROMPT, Model
from .parts import MissingError, Parts

pytestmark = pytest.mark.timeout(600)  # it may install them

SERVER = ["run", "--server", "crm", "--", sys.executable, "-m", "mcpguard.demo.crm"]


def client(parts: Parts, name: str) -> str:
    """The client's command."""
    if os.environ.get("MCPGUARD_REAL_AGENTS") != "1":
        missing("MCPGUARD_REAL_AGENTS is not 1: Codex and Copilot CLI take 600 MB")
    try:
        return str(parts.npm(name) / ".bin" / name)
    except MissingError as error:
        missing(str(error))


def prepare(home: Path) -> None:
    """Create the store, and give it time on a busy machine."""
    (home / "work").mkdir()
    budget(home / "guard", PATIENT_MS)
    SqliteStore(home / "guard" / "mcpguard.db").close()


def hook(home: Path, name: str) -> str:
    """The hook's command, for a shell."""
    guard = home / "guard"
    options = ("--config", str(guard / "config.toml"), "--store", f"sqlite://{guard}/mcpguard.db")
    return shlex.join(program("hook", name, *options, tuned={"mcpguard.hook.run.TIMEOUT_S": DEADLINE_S}))


def run(home: Path, *command: str, **env: str) -> list[tuple[object, object]]:
    """Run the client in an empty home. Returns agent and source of each call, in the order of the calls."""
    done = subprocess.run(
        command,
        cwd=home / "work",
        env={"PATH": os.environ["PATH"], "HOME": str(home), **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=4 * DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    store = SqliteStore(home / "guard" / "mcpguard.db")
    try:
        rows = [entry.record for entry in store.entries() if entry.record["decision"] == "allowed"]
    finally:
        store.close()
    return [(row["agent"], row["agent_source"]) for row in rows]


@pytest.mark.parametrize(
    ("with_hook", "subagent"),
    [(False, ("Codex::subagent::default", "meta")), (True, ("Codex::subagent::explorer", "hook"))],
    ids=["without the hook", "with the hook"],
)
def test_codexs_subagent_is_told_apart(tmp_path: Path, parts: Parts, with_hook: bool, subagent: tuple[str, str]) -> None:
    codex = client(parts, "codex")
    prepare(tmp_path)
    settings = tmp_path / ".codex"
    settings.mkdir()
    command, *arguments = program(*SERVER)
    with Model() as model:
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
            env = {{ MCPGUARD_HOME = "{tmp_path}/guard" }}
            required = true
            startup_timeout_sec = 60
            default_tools_approval_mode = "approve"
            """
        )
        if with_hook:
            entry = {"type": "command", "command": hook(tmp_path, "codex"), "timeout": 60}
            hooks = {"PreToolUse": [{"matcher": "mcp__.*", "hooks": [entry]}]}
            (settings / "hooks.json").write_text(json.dumps({"hooks": hooks}))
        options = ["--skip-git-repo-check", "--dangerously-bypass-hook-trust", "--sandbox", "read-only"]
        agents = run(tmp_path, codex, "exec", *options, MAIN_PROMPT)
    assert agents == [("Codex::background::default", "meta"), subagent]  # `codex exec` runs without a person


def test_copilots_subagent_is_told_apart_with_the_hook(tmp_path: Path, parts: Parts) -> None:
    copilot = client(parts, "copilot")
    prepare(tmp_path)
    settings = tmp_path / ".copilot"
    (settings / "hooks").mkdir(parents=True)
    command, *arguments = program(*SERVER)
    env = {"MCPGUARD_HOME": f"{tmp_path}/guard"}
    server = {"type": "local", "tools": ["*"], "command": command, "args": arguments, "env": env}
    (settings / "mcp-config.json").write_text(json.dumps({"mcpServers": {"crm": server}}))
    entry = {"type": "command", "bash": hook(tmp_path, "copilot"), "timeoutSec": 60}
    (settings / "hooks" / "mcpguard.json").write_text(json.dumps({"version": 1, "hooks": {"preMcpToolCall": [entry]}}))
    with Model() as model:
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
