"""The examples run as they are, with `mcpguard` and `python` found on the PATH as a client would find them."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client, StdioServerParameters

from mcpguard.policy.parse import SCHEMA_FILE

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
NEEDED = os.environ if sys.platform == "win32" else {}
"""Variables without which no program starts."""

ENTRIES = [
    pytest.param(entry, id=f"{path.stem}-{name}")
    for path in sorted(EXAMPLES.glob("*.json"))
    if path.name != SCHEMA_FILE
    for name, entry in json.loads(path.read_text("utf-8"))["mcpServers"].items()
]


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, str]:
    """The environment of an account of its own, with this checkout's mcpguard installed."""
    account = {"HOME": str(tmp_path), "MCPGUARD_HOME": str(tmp_path / "mcpguard")}
    if sys.platform == "win32":
        python = Path(sys.executable).parent
        return {**NEEDED, "PATH": f"{python};{python / 'Scripts'};{os.environ['PATH']}", **account}
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, arguments in (("python", ""), ("mcpguard", " -m mcpguard")):
        script = f"#!/bin/sh\nPYTHONPATH='{ROOT}' exec '{sys.executable}'{arguments} \"$@\"\n"
        (programs / name).write_text(script)
        (programs / name).chmod(0o700)
    return {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", **account}


def found(program: str, env: dict[str, str]) -> str:
    """A program's path, since this process's PATH is another one."""
    path = shutil.which(program, path=env["PATH"])
    assert path
    return path


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_clients_entry_starts_a_server_that_works(entry: dict[str, Any], installed: dict[str, str], tmp_path: Path) -> None:
    assert entry["command"] == "mcpguard"
    program, env = found(entry["command"], installed), installed | entry.get("env", {})
    command = StdioServerParameters(command=program, args=entry["args"], env=env, cwd=tmp_path)

    async def run() -> Any:
        async with Client(command) as client:
            return await client.call_tool("search_customers", {"query": "oslo"})

    assert anyio.run(run).structured_content["result"][0]["company"] == "Halden Freight"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.name)
def test_a_policy_is_valid_toml_and_passes_the_check(path: Path, installed: dict[str, str], tmp_path: Path) -> None:
    assert tomllib.loads(path.read_text("utf-8"))["rule"]
    assert run(found("mcpguard", installed), "policy", "check", path, env=installed, cwd=tmp_path).stderr == ""


def run(*command: object, env: dict[str, str], cwd: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*map(str, command)], env=env, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


def test_the_client_is_never_denied_twice_for_one_call_if_it_obeys_a_denial(installed: dict[str, str], tmp_path: Path) -> None:
    lines = run(found("python", installed), EXAMPLES / "client.py", 12, env=installed, cwd=tmp_path).stdout.splitlines()
    assert lines[-1] in {f"12 calls answered; at most {worst} denial(s) for one call." for worst in (0, 1)}
    assert sum(line.startswith("call ") for line in lines) == 12


def test_the_client_runs_if_mcpguard_is_not_on_the_path(tmp_path: Path) -> None:
    env = {**NEEDED, "PATH": os.defpath, "HOME": str(tmp_path), "MCPGUARD_HOME": str(tmp_path)}
    lines = run(sys.executable, EXAMPLES / "client.py", 1, env=env, cwd=tmp_path).stdout.splitlines()
    assert lines[-1] == "1 calls answered; at most 0 denial(s) for one call."
