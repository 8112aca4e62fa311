"""`mcpguard policy suggest -- COMMAND`: limits for the tools of a server."""

import json
from pathlib import Path
from typing import Any

import pytest

from mcpguard.policy.lint import still_capped, warnings
from mcpguard.policy.model import Call
from mcpguard.policy.parse import STARTER, parse
from mcpguard.policy.suggest_by_tools import CHANGES, DELETES, DESTROYS, LOOKS, READS, SENDS, Kind
from tests.cli.command import mcpguard
from tests.end_to_end.host import script
from tests.ready_policies import POLICIES, RECORDED, recorded

Tool = dict[str, Any]


def serving(folder: Path, *tools: Tool | str) -> list[str]:
    """The command of a server with these tools."""
    file = folder / "tools.json"
    listed = [{"name": tool} if isinstance(tool, str) else tool for tool in tools]
    file.write_text(json.dumps({"tools": listed}), "utf-8")
    return script("recorded", file)


def possible(hints: dict[str, bool]) -> tuple[Kind, ...]:
    """The kinds that the annotations of a tool allow, with the defaults of the protocol, if it has any of the first two."""
    if not hints.keys() & {"readOnlyHint", "destructiveHint"}:
        return (LOOKS, CHANGES, DESTROYS, SENDS, DELETES)
    is_outside = hints.get("openWorldHint", True)
    if hints.get("readOnlyHint"):
        return (LOOKS if is_outside else READS,)
    if hints.get("destructiveHint", True):
        return (DESTROYS, DELETES)
    return (SENDS if is_outside and not hints.get("idempotentHint") else CHANGES,)


@pytest.mark.parametrize("name", POLICIES)
def test_each_tool_of_a_real_server_gets_the_limit_that_its_annotations_ask_for(tmp_path: Path, name: str) -> None:
    done = mcpguard(
        tmp_path, "policy", "suggest", "--toml", "--server", name, "--", *script("recorded", RECORDED / f"{name}.json")
    )
    tools = recorded(name)["tools"]
    assert (done.returncode, done.stderr.splitlines()[0]) == (
        0,
        f"{name}: recorded 1, {len(tools)} tool{'s' if len(tools) > 1 else ''}; annotations are hints that nobody has checked",
    )
    assert done.stdout.startswith(STARTER)
    policy = parse(done.stdout)
    assert [*warnings(policy), *still_capped(policy).warnings] == []
    used: set[int] = set()
    for tool in tools:
        applying = policy.applying(Call("alice", "a::b::c", name, tool["name"]))
        limits = {part.limit_text for part, _ in applying}
        assert len(limits) == 1
        assert limits <= {" ".join(kind.limits) for kind in possible(tool.get("annotations", {}))}
        used.update(at for _, at in applying)
    starter = len(parse(STARTER).rules)
    assert used == {*range(starter, len(policy.rules))}, "each rule has an effect"
