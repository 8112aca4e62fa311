"""The policies in `examples/policies`, their page in the manual, and the recorded tools of the servers that they are for.

`python -m tests.ready_policies` writes the page; `python -m tests.real_parts.ready` records the tools.
"""

import json
from pathlib import Path
from typing import Any

from mcpguard.policy.model import Rule
from mcpguard.policy.parse import parse
from mcpguard.text.patterns import glob
from mcpguard.text.printing import plural

ROOT = Path(__file__).parents[1]
RECORDED = ROOT / "tests/recorded_tools"
PAGE = ROOT / "docs/ready-policies.md"
POLICIES = {path.stem: path for path in sorted((ROOT / "examples/policies").glob("*.toml"))}
"""The policies by the server that each is for."""


def recorded(name: str) -> dict[str, Any]:
    """The `package`, `version` and `tools` of a server."""
    found: dict[str, Any] = json.loads((RECORDED / f"{name}.json").read_text("utf-8"))
    return found


def recorded_names(name: str) -> list[str]:
    return [tool["name"] for tool in recorded(name)["tools"]]


def text(name: str) -> str:
    """A ready policy, without the line for editors that may begin it."""
    lines = POLICIES[name].read_text("utf-8").splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("#:")).lstrip()


def rules(name: str) -> tuple[Rule, ...]:
    """The rules of a ready policy."""
    return parse(text(name)).rules


def without_a_tool(name: str, tools: list[str]) -> list[str]:
    """The rules of a ready policy that match none of these tools, or as a pattern only one."""
    found = [(rule.text, rule.selectors.get("tool", ("*",))[0]) for rule in rules(name)]
    least = {pattern: 2 if pattern.strip("*") != pattern and pattern != "*" else 1 for _, pattern in found}
    return [text for text, pattern in found if sum(glob(pattern, tool) for tool in tools) < least[pattern]]


HEAD = """# Ready policies

Policies for servers that many people have, to copy into [`policy.toml`](policy.md), alone or together. Each limit has its
reason above it. They are a start: they should let usual work pass, and stop a loop. Try them
[in observe mode](policy.md#try-it-in-observe-mode) first.

- The name of the server in a rule must be its name in your client's file: `mcpguard clients` shows the names.
- The tools are those that the server listed in the version named here; GitHub's are from its source. `mcpguard doctor
  --server NAME` lists those of your server, with the rules that apply.
- For any other server, `mcpguard policy suggest --server NAME` [suggests a policy](policy.md#for-the-tools-of-a-server).

This page is generated from `examples/policies/`, where each policy is a file.
"""


def page() -> str:
    """The page of the manual with all policies."""
    lines = ["", "| server | package and version | it has |", "|---|---|---|"]
    sections = []
    for name in POLICIES:
        found = recorded(name)
        tools = plural(len(found["tools"]), "tool")
        lines.append(f"| [{name}](#{name}) | `{found['package']}` {found['version']} | {tools} |")
        sections.append(f"\n## {name}\n\n```toml\n{text(name)}```\n")
    return HEAD + "\n".join(lines) + "\n" + "".join(sections)


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8", newline="\n")
