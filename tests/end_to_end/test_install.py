"""A server that `mcpguard install` has guarded, started by a real MCP client with the command in the client's file."""

import json
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client, StdioServerParameters

from tests.cli.account import Account

from .host import ROOT, SERVERS, audit, policy, rule

COMMAND = [sys.executable, str(SERVERS / "on_the_sdk.py")]
ENTRY = {"command": COMMAND[0], "args": COMMAND[1:], "env": {"PYTHONPATH": str(ROOT)}}
JSON = json.dumps({"mcpServers": {"crm": ENTRY}}, indent="\t")
TOML = f"""\
model = "gpt-7"

[mcp_servers.crm]   # the customers
command = {json.dumps(COMMAND[0])}
args = [
  {json.dumps(COMMAND[1])},  # the server
]
"""


@pytest.mark.parametrize(
    ("name", "content"), [(".cursor/mcp.json", JSON), (".codex/config.toml", TOML.replace("\n", "\r\n"))], ids=["JSON", "TOML"]
)
def test_an_installed_server_is_limited_and_uninstall_gives_every_byte_back(tmp_path: Path, name: str, content: str) -> None:
    account = Account(tmp_path)
    file = account.write(f"home/{name}", content)
    before = account.files()
    account.install(MCPGUARD_USER="alice")
    policy(account.state, rule("1/1h", user="alice", tool="search_customers"))
    installed = file.read_text(encoding="utf-8")
    entry: Mapping[str, Any] = (
        json.loads(installed)["mcpServers"]["crm"] if content == JSON else tomllib.loads(installed)["mcp_servers"]["crm"]
    )
    assert Path(entry["command"]).stem == "mcpguard"

    async def use() -> tuple[str, bool]:
        env = {"MCPGUARD_HOME": str(account.state), "PYTHONPATH": str(ROOT)}
        async with Client(StdioServerParameters(command=entry["command"], args=entry["args"], env=env)) as client:
            first: Any = await client.call_tool("search_customers", {"query": "oslo"})
            second: Any = await client.call_tool("search_customers", {"query": "oslo"})
            return first.content[0].text, second.is_error

    assert anyio.run(use) == ("customers in oslo", True)
    calls = [(row["server"], row["user"], row["decision"]) for row in audit(account.state)]
    assert calls == [("crm", "alice", "allowed"), ("crm", "alice", "rate_limited")]
    account.undo(before)
