"""The policies in `examples/policies`, and the recorded tools of the servers that they are for.

`python -m tests.real_parts.ready` records them anew. GitHub's server cannot be installed from PyPI or npm: its list is from its
source.
"""

import json
from pathlib import Path
from typing import Any

from mcpguard.policy.model import Rule
from mcpguard.policy.parse import parse
from mcpguard.text.patterns import glob

ROOT = Path(__file__).parents[1]
RECORDED = ROOT / "tests/recorded_tools"
POLICIES = {path.stem: path for path in sorted((ROOT / "examples/policies").glob("*.toml"))}
"""The policies by the server that each is for."""


def recorded(name: str) -> dict[str, Any]:
    """The `package`, `version` and `tools` of a server."""
    found: dict[str, Any] = json.loads((RECORDED / f"{name}.json").read_text("utf-8"))
    return found


def recorded_names(name: str) -> list[str]:
    return [tool["name"] for tool in recorded(name)["tools"]]


def rules(name: str) -> tuple[Rule, ...]:
    """The rules of a ready policy."""
    return parse(POLICIES[name].read_text("utf-8")).rules


def without_a_tool(name: str, tools: list[str]) -> list[str]:
    """The rules of a ready policy that match none of these tools, or as a pattern only one."""
    found = [(rule.text, rule.selectors.get("tool", ("*",))[0]) for rule in rules(name)]
    least = {pattern: 2 if pattern.strip("*") != pattern and pattern != "*" else 1 for _, pattern in found}
    return [text for text, pattern in found if sum(glob(pattern, tool) for tool in tools) < least[pattern]]
