"""The six limits of `docs/limits-by-example.md`, each set by a command where there was nothing before."""

import shlex
from pathlib import Path

import pytest

from tests.cli.command import process
from tests.test_limits_by_example_page import ALICE, BACKGROUND, BOB, EXPLORE, INTERACTIVE, REPORT

from .host import Host, call, lines, script


@pytest.mark.parametrize(
    ("command", "user", "agent", "tool", "limit"),
    [
        (ALICE, "alice", "Claude Code::interactive::default", "search_customers", 100),
        (BOB, "bob", "Claude Code::interactive::default", "search_customers", 10),
        (REPORT, "alice", "Claude Code::interactive::default", "generate_report", 5),
        (EXPLORE, "alice", "Claude Code::subagent::Explore", "search_customers", 500),
        (INTERACTIVE, "alice", "Claude Code::interactive::default", "search_customers", 50),
        (BACKGROUND, "alice", "Cursor::background::nightly", "search_customers", 10_000),
    ],
)
def test_a_limit_that_is_set_from_nothing_lets_exactly_so_many_calls_through(
    tmp_path: Path, command: str, user: str, agent: str, tool: str, limit: int
) -> None:
    assert process(tmp_path, *shlex.split(command)).returncode == 0
    log, calls = tmp_path / "calls", limit + 40
    with Host(tmp_path, *script("obedient", log), options=["--user", user, "--agent", agent]) as host:
        with host.sending(lines([call(number, tool) for number in range(calls)])):
            answers = [host.message() for _ in range(calls)]
        assert host.end() == 0
    assert len(log.read_text().splitlines()) == sum("result" in answer for answer in answers) == limit
