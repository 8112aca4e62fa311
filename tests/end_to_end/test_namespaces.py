"""Two namespaces on one store: one named in config.toml, the other by a variable. They share nothing."""

import json
from pathlib import Path

from tests.cli.command import objects, output

from .host import policy, rule, serving

TWO = {"MCPGUARD_NAMESPACE": "two"}
WHO = ("--user", "alice", "--server", "crm")


def calls(home: Path, env: dict[str, str], *tools: str) -> list[int]:
    """How calls in a namespace are answered: 200, or the error's code."""
    with serving(home, options=WHO, env=env) as host:
        answers = [host.call(at, tool) for at, tool in enumerate(tools)]
    return [answer.get("error", {}).get("code", 200) for answer in answers]


def test_each_has_counters_and_an_audit_of_its_own_for_calls_and_commands(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('[store]\nnamespace = "one"\n')
    policy(tmp_path, rule("1/1h", user="*", tool="*") + rule("deny", tool="never"))
    assert calls(tmp_path, {}, "search", "search", "never") == [200, 429, 403]
    assert calls(tmp_path, TWO, "search") == [200]
    for env, name, tools in (({}, "one", ["search", "search", "never"]), (TWO, "two", ["search"])):
        rows = objects(tmp_path, "audit", "tail", "--json", "-n", "100", **env)
        assert {row["namespace"] for row in rows} == {name}
        assert [row["tool"] for row in rows if "tool" in row] == tools
    assert "1 counter reset" in output(tmp_path, "reset", "--yes", **TWO)
    for env, count in (({}, 1), (TWO, 0)):
        found = json.loads(output(tmp_path, "policy", "explain", *WHO, "--tool", "search", "--json", **env))
        assert [left["count"] for one in found["rules"] for left in one["limits"]] == [count]
    assert calls(tmp_path, TWO, "search") == [200]
    assert calls(tmp_path, {}, "search") == [429]
    assert "has matched none" not in output(tmp_path, "policy", "check")
    assert "rule 2 (tool=never) has matched none" in output(tmp_path, "policy", "check", **TWO)
