"""Two namespaces on one store: one named in config.toml, the other by a variable. They share nothing."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import line_of, mcpguard, start

from .host import Host, policy, rule, script
from .test_hook import EXPLORE, SESSION, call, hook

ONE: dict[str, str] = {}
TWO = {"MCPGUARD_NAMESPACE": "two"}
WHO = ("--user", "alice", "--server", "crm")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "config.toml").write_text('[store]\nnamespace = "one"\n')
    policy(tmp_path, rule("1/1h", user="*", tool="*") + rule("deny", tool="never"))
    return tmp_path


def decisions(home: Path, env: dict[str, str], *tools: str) -> list[str]:
    """What becomes of calls in a namespace."""
    with Host(home, *script("obedient"), options=WHO, env=env) as host:
        answers = [host.call(at, tool) for at, tool in enumerate(tools)]
        assert host.end() == 0
    return ["allowed" if "result" in answer else str(answer["error"]["code"]) for answer in answers]


def said(home: Path, env: dict[str, str], *argv: str) -> str:
    done = mcpguard(home, *argv, **env)
    assert (done.returncode, done.stderr.removeprefix("mcpguard: no rows\n")) == (0, "")
    return done.stdout


def tail(home: Path, env: dict[str, str], *argv: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in said(home, env, "audit", "tail", "--json", "-n", "100", *argv).splitlines()]


def test_each_has_an_audit_of_its_own(home: Path) -> None:
    decisions(home, ONE, "search")
    decisions(home, TWO, "echo", "never")
    for env, name, tools in ((ONE, "one", ["search"]), (TWO, "two", ["echo", "never"])):
        rows = tail(home, env)
        assert {row["namespace"] for row in rows} == {name}
        assert [row["tool"] for row in rows if "tool" in row] == tools
        assert len([row for row in rows if row["decision"] == "policy"]) == 1
    assert tail(home, {"MCPGUARD_NAMESPACE": "three"}) == []


def test_who_follows_the_audit_of_one_sees_nothing_of_the_other(home: Path) -> None:
    decisions(home, ONE, "search")
    follower = start(home, "audit", "tail", "-f", "--json", "-n", "1")
    try:
        assert json.loads(line_of(follower))["tool"] == "search"
        decisions(home, TWO, "echo")
        decisions(home, ONE, "sum")
        rows = [json.loads(line_of(follower)) for _ in range(2)]
    finally:
        follower.kill()
        follower.communicate()
    assert [(row["namespace"], row["decision"], row.get("tool")) for row in rows] == [
        ("one", "policy", None),
        ("one", "allowed", "sum"),
    ]


def test_a_reset_in_one_leaves_the_counters_of_the_other(home: Path) -> None:
    decisions(home, ONE, "search")
    decisions(home, TWO, "search")
    assert "1 counter reset" in said(home, TWO, "reset", "--yes")
    assert said(home, TWO, "reset", "--yes") == "no counter in use matches\n"
    assert decisions(home, ONE, "search") == ["429"]
    assert decisions(home, TWO, "search") == ["allowed"]


def test_explaining_and_checking_see_the_calls_of_their_own(home: Path) -> None:
    decisions(home, ONE, "search", "never")
    for env, count in ((ONE, 1), (TWO, 0)):
        found = json.loads(said(home, env, "policy", "explain", *WHO, "--tool", "search", "--json"))
        assert [left["count"] for one in found["rules"] for left in one["limits"]] == [count]
    assert "has matched none" not in said(home, ONE, "policy", "check")
    decisions(home, TWO, "search")
    assert "rule 2 (tool=never) has matched none" in said(home, TWO, "policy", "check")


def test_a_hook_notes_for_its_own(home: Path) -> None:
    for noted, seen, agent in ((ONE, TWO, "unknown::interactive::default"), (TWO, TWO, EXPLORE)):
        with Host(home, *script("obedient"), options=WHO, env=SESSION | seen) as host:
            hook(home, "t1", agent="Explore", options=(), **noted)
            call(host, "t1")
            assert host.end() == 0
            assert host.audit()[-1]["agent"] == agent
