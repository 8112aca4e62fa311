"""The servers of `examples/policies` as their makers publish them. `python -m tests.real_parts.ready` records their tools.

GitHub's server is neither on PyPI nor on npm. Its list is from its source, at the tag of the version: the tools that its README
names as those of the local server, with their annotations from `pkg/github/__toolsnaps__`.
"""

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from mcpguard.doctor.server import listed
from tests.ready_policies import RECORDED

from .parts import PREFIXES, VENVS, Parts

_START_S: Final = 60.0


class Ready(NamedTuple):
    package: str  # on npm; on PyPI if the name of its program is equal
    program: str
    arguments: tuple[str, ...] = ()  # `.` is an empty folder
    env: Mapping[str, str] = MappingProxyType({})  # variables without which it lists no tools, with which it reaches no service


READY: Final = {
    "fetch": Ready("mcp-server-fetch", "mcp-server-fetch"),
    "filesystem": Ready("@modelcontextprotocol/server-filesystem", "mcp-server-filesystem", (".",)),
    "git": Ready("mcp-server-git", "mcp-server-git"),
    "memory": Ready("@modelcontextprotocol/server-memory", "mcp-server-memory"),
    "notion": Ready("@notionhq/notion-mcp-server", "notion-mcp-server", env={"NOTION_TOKEN": "ntn_none"}),
    "playwright": Ready("@playwright/mcp", "playwright-mcp"),
    "postgres": Ready("@modelcontextprotocol/server-postgres", "mcp-server-postgres", ("postgresql://localhost/none",)),
    "puppeteer": Ready("@modelcontextprotocol/server-puppeteer", "mcp-server-puppeteer"),
    "sentry": Ready("@sentry/mcp-server", "sentry-mcp", ("--access-token=none",)),
    "slack": Ready(
        "@modelcontextprotocol/server-slack", "mcp-server-slack", env={"SLACK_BOT_TOKEN": "xoxb-none", "SLACK_TEAM_ID": "T0"}
    ),
    "time": Ready("mcp-server-time", "mcp-server-time"),
}
"""The servers that start here, by their usual names."""


def record(name: str, parts: Parts, folder: Path) -> dict[str, Any]:
    """Start a server behind mcpguard in an empty folder, and record its tools."""
    server = READY[name]
    if server.package == server.program:
        words = [str(Path(parts.python("ready-python")).parent / server.program)]
        pins = dict(pin.split("==") for pin in VENVS["ready-python"].split())
    else:
        words = [parts.node(), str((parts.npm("ready-npm") / ".bin" / server.program).resolve())]
        pins = dict(pin.rsplit("@", 1) for pin in PREFIXES["ready-npm"])
    set_here = [f"{key}={value}" for key, value in server.env.items()]
    command = ["env", *set_here, *words, *server.arguments]
    found = listed(name, command, options=["--server", name], folder=str(folder), answer_s=_START_S)
    tools = []
    for tool in sorted(found.tools):
        hints = zip(("readOnlyHint", "destructiveHint", "idempotentHint", "openWorldHint"), tool[1:], strict=True)
        said = {key: value for key, value in hints if value is not None}
        tools.append({"name": tool.name} | ({"annotations": said} if said else {}))
    return {"package": server.package, "version": pins[server.package], "tools": tools}


def text(recorded: Mapping[str, Any]) -> str:
    """A recorded list as its file has it: a line for each tool."""
    head = json.dumps({**recorded, "tools": []}, indent=2)
    lines = ",\n".join(f"    {json.dumps(tool)}" for tool in recorded["tools"])
    return head.replace('"tools": []', f'"tools": [\n{lines}\n  ]') + "\n"


def main() -> None:
    """Record the tools of all servers that start here, or of those that are named."""
    with tempfile.TemporaryDirectory() as place:
        os.environ["MCPGUARD_HOME"] = f"{place}/home"
        folder = Path(place, "empty")
        folder.mkdir()
        parts = Parts(Path(".pytest_cache/d/real-parts").resolve())
        for name in sys.argv[1:] or READY:
            (RECORDED / f"{name}.json").write_text(text(record(name, parts, folder)), "utf-8")


if __name__ == "__main__":
    main()
