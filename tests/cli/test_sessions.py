"""What commands show of sessions, and how they name one."""

import csv
import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import ALICE, OBEDIENT, objects, output, unfolded
from tests.end_to_end.host import Host, policy, rule


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Alice has called a tool four times in one session of Claude Code, over a limit of three, and once in another."""
    home = tmp_path_factory.mktemp("home")
    policy(home, rule("3/session", user="*"))
    for session, times in (("abc123", 4), ("def456", 1)):
        with Host(home, *OBEDIENT, options=ALICE, env={"CLAUDE_CODE_SESSION_ID": session}) as host:
            for number in range(times):
                host.call(number, "echo")
            host.end()
    return home


def lines(home: Path, *argv: str) -> list[dict[str, Any]]:
    return objects(home, *argv, "--json")


def test_usage_shows_the_counter_of_each_session_by_its_limit(home: Path) -> None:
    first, second = lines(home, "usage")
    assert first["counter"] == {"user": "alice@acme.com", "session": "abc123"}
    assert first.items() >= {"rule": "user=*", "limit": 3, "window": "session", "used": 3, "left": 0}.items()
    assert (second["counter"]["session"], second["left"]) == ("def456", 2)
    assert lines(home, "usage", "--session", "def*") == [second]
    out = output(home, "usage", "--session", "abc123")
    assert " limit=3/session " in out
    assert "user=alice@acme.com session=abc123 rule=" in out


def test_rows_have_the_session_and_are_filtered_by_it_or_by_that_of_the_wrapper(home: Path) -> None:
    rows = lines(home, "audit", "tail", "--session", "abc123")
    assert [row["decision"] for row in rows] == ["allowed"] * 3 + ["rate_limited"]
    assert {row["client_session"] for row in rows} == {"abc123"}
    (run,) = {row["session"] for row in rows}
    assert lines(home, "audit", "tail", "--session", run)[-4:] == rows
    (stats,) = lines(home, "audit", "stats", "--session", "def456")
    assert [row["calls"] for row in stats["rows"]] == [1]
    (exported,) = csv.DictReader(StringIO(output(home, "audit", "export", "--format", "csv", "--session", "def456")))
    assert exported["client_session"] == "def456"


def test_explain_shows_what_is_left_in_a_session_or_in_a_new_one(home: Path) -> None:
    argv = ("policy", "explain", "--user", "alice@acme.com", "--tool", "echo", "--server", "crm")
    assert json.loads(output(home, *argv, "--session", "abc123", "--json"))["call"]["session"] == "abc123"
    out = unfolded(output(home, *argv, "--session", "abc123"))
    assert "session: abc123" in out
    assert "3/session: 3 used, 0 left for user=alice@acme.com session=abc123" in out
    assert "Next call: rate_limited by 3/session (rule user=*); retry in 2,59" in out
    assert unfolded(output(home, *argv, CLAUDE_CODE_SESSION_ID="abc123"))[:-5] == out[:-5], "but for the seconds"
    out = unfolded(output(home, *argv))
    assert "3/session: 0 used, 3 left for user=alice@acme.com session=? " in out
    assert "Next call: allowed; then 2 left of 3/session (rule user=*)" in out
    assert "session" not in json.loads(output(home, *argv, "--json"))["call"]


def test_reset_empties_the_counter_of_one_session(home: Path) -> None:
    said = output(home, "reset", "--session", "abc123", "--yes")
    assert said == "user=alice@acme.com session=abc123: 3 calls in the last 30 days\n1 counter reset\n"
    assert [one["counter"]["session"] for one in lines(home, "usage")] == ["def456"]
