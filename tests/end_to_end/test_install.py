"""A server that `mcpguard install` has guarded, started by a real MCP client with the command in the client's file."""

import json
import shlex
import sys
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client, StdioServerParameters

from mcpguard import __version__
from mcpguard.documents.document import Dialect, read
from mcpguard.documents.model import plain
from tests.cli.account import Account

from .host import ROOT, SERVERS, audit, policy, rule
from .test_sdk import text

COMMAND = [sys.executable, str(SERVERS / "on_the_sdk.py")]
TEXT = json.dumps(COMMAND[1])

JSON = f"""\
{{"mcpServers":  {{
\t"crm": {{ "command": {json.dumps(COMMAND[0])},
\t\t"args": [ {TEXT} ] , "env": {{"PYTHONPATH": {json.dumps(str(ROOT))}}} }}
}} }}"""

JSONC = f"""\
// our servers
{{
  "mcp": {{
    "crm": {{
      "type": "local",
      "command": [
        {json.dumps(COMMAND[0])}, // this Python
        {TEXT},
      ],
    }},
  }},
}}
"""

TOML = f"""\
model = "gpt-7"

[mcp_servers.crm]   # the customers
command = {json.dumps(COMMAND[0])}
args = [
  {TEXT},  # the server
]
"""

YAML = f"""\
# Goose
extensions:
    crm:
        type: stdio
        cmd: {COMMAND[0]}
        args:
        - {TEXT}
        timeout: 300   # seconds
"""


def _yaml(data: bytes) -> Any:
    from ruamel.yaml import YAML

    return YAML(typ="safe", pure=True).load(data)


Read = Callable[[bytes], list[str]]

FILES: Mapping[str, tuple[str, str, Read]] = {
    "JSON": (".cursor/mcp.json", JSON, lambda data: _words(json.loads(data)["mcpServers"]["crm"])),
    "JSONC": (
        ".config/opencode/opencode.jsonc",
        JSONC,
        lambda data: plain(read(data, Dialect.JSONC).root)["mcp"]["crm"]["command"],
    ),
    "TOML": (".codex/config.toml", TOML, lambda data: _words(tomllib.loads(data.decode())["mcp_servers"]["crm"])),
    "YAML": (".config/goose/config.yaml", YAML, lambda data: _words(_yaml(data)["extensions"]["crm"])),
}


def _words(entry: Mapping[str, Any]) -> list[str]:
    return [entry.get("command") or entry["cmd"], *entry["args"]]


@pytest.fixture
def account(tmp_path: Path) -> Account:
    return Account(tmp_path)


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("dialect", FILES)
def test_a_client_uses_an_installed_server_within_its_limits_and_uninstall_gives_every_byte_back(
    account: Account, dialect: str, end: str
) -> None:
    name, content, read = FILES[dialect]
    content = content.replace("\n", end)
    file = account.write(f"home/{name}", content)
    done = account.run("install", "--yes", MCPGUARD_USER="alice")
    assert done.returncode == 0, done.stderr
    policy(account.state, rule("1/1h", user="alice", tool="search_customers"))
    command, *args = read(file.read_bytes())
    assert Path(command).name == "mcpguard"

    async def use() -> tuple[str, bool]:
        env = {"MCPGUARD_HOME": str(account.state), "PYTHONPATH": str(ROOT)}
        async with Client(StdioServerParameters(command=command, args=args, env=env)) as client:
            first = await client.call_tool("search_customers", {"query": "oslo"})
            second: Any = await client.call_tool("search_customers", {"query": "oslo"})
            return text(first), second.is_error

    assert anyio.run(use) == ("customers in oslo", True)
    calls = [(row["server"], row["user"], row["decision"]) for row in audit(account.state)]
    assert calls == [("crm", "alice", "allowed"), ("crm", "alice", "rate_limited")]
    listed = account.run("clients").stdout.replace("\n    ", " ")  # long lines are folded
    assert f"crm: guarded by mcpguard {__version__}, 1 rule: {shlex.quote(COMMAND[0])}" in listed
    assert account.run("uninstall", "--yes").returncode == 0
    assert file.read_bytes() == content.encode()
