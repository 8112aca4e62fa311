"""Each command in `docs/limits-by-example.md` works as typed where there is no policy file, and says what the page says."""

import itertools
import re
import shlex
from pathlib import Path

import pytest

from tests.build import Talk, call_line, identity
from tests.cli.command import mcpguard, output
from tests.pages import DOCS

EXAMPLES = re.findall(
    r"^```console\n\$ mcpguard (.*)\n```\n\n```text\n((?:.*\n)*?)```$", DOCS["limits-by-example.md"], re.MULTILINE
)
COMMANDS = [command for command, _ in EXAMPLES]
(ALICE, BOB, REPORT, EXPLORE, INTERACTIVE, BACKGROUND, SESSION, PER_USER) = COMMANDS
IDS = itertools.count()


@pytest.mark.parametrize(("command", "said"), EXAMPLES, ids=COMMANDS)
def test_each_command_says_what_the_page_says(tmp_path: Path, command: str, said: str) -> None:
    told = output(tmp_path, *shlex.split(command)).splitlines()
    assert [line for line in told if not line.startswith(str(tmp_path))] == said.splitlines()


def talks(home: Path, command: str, *callers: tuple[str, str]) -> list[Talk]:
    """Conversations of users and agents that share a store, under the policy that a command makes from nothing."""
    mcpguard(home, *shlex.split(command))
    policy = (home / "policy.toml").read_text("utf-8")
    found = [Talk(policy, who=identity(user, agent)) for user, agent in callers]
    for one in found:
        one.store, one.time = found[0].store, found[0].time
    return found


def admitted(talk: Talk, tool: str, calls: int) -> int:
    """How many of some calls at once go through."""
    return sum("forwarded" in one for one in talk.client(*(call_line(tool, next(IDS)) for _ in range(calls))))


@pytest.mark.parametrize(
    ("command", "user", "agent", "tool", "limit"),
    [
        (ALICE, "alice", "Claude Code::interactive::default", "search_customers", 100),
        (BOB, "bob", "Claude Code::interactive::default", "search_customers", 10),
        (BOB, "bob", "Cursor::background::nightly", "search_customers", 10),
        (BOB, "bob", "app::api::default", "search_customers", 10),
        *(
            (REPORT, "alice", f"a::{tier}::b", "generate_report", 5)
            for tier in ("interactive", "subagent", "background", "api")
        ),
        (EXPLORE, "alice", "Claude Code::subagent::Explore", "search_customers", 500),
        (EXPLORE, "alice", "Claude Code::subagent::Plan", "search_customers", 60),
        (INTERACTIVE, "alice", "Claude Code::interactive::default", "search_customers", 50),
        (BACKGROUND, "alice", "Cursor::background::nightly", "search_customers", 10_000),
        (SESSION, "alice", "a::batch::b", "search_customers", 200),
        (PER_USER, "alice", "Cursor::background::nightly", "search_customers", 30),
    ],
)
def test_exactly_as_many_calls_go_through_as_the_command_says(
    tmp_path: Path, command: str, user: str, agent: str, tool: str, limit: int
) -> None:
    (talk,) = talks(tmp_path, command, (user, agent))
    assert admitted(talk, tool, limit + 40) == limit


def test_interactive_calls_are_counted_for_each_user_in_each_client(tmp_path: Path) -> None:
    callers = [
        ("alice", "Cursor::interactive::default"),
        ("alice", "Zed::interactive::default"),
        ("bob", "Zed::interactive::x"),
    ]
    assert [admitted(talk, "search", 60) for talk in talks(tmp_path, INTERACTIVE, *callers)] == [50, 50, 50]
    together = talks(tmp_path / "together", f"{INTERACTIVE} --per user", *callers)
    assert [admitted(talk, "search", 60) for talk in together] == [50, 0, 50]


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_that_drops_a_tighter_rule_works_and_then_no_rule_is_tighter(tmp_path: Path, command: str) -> None:
    said = mcpguard(tmp_path, *shlex.split(command)).stdout
    for drop in re.findall(r"  [0-9]+/1m: mcpguard (policy unset .*)", said):
        output(tmp_path, *shlex.split(drop))
    assert "more tightly" not in mcpguard(tmp_path, *shlex.split(command)).stdout
    assert mcpguard(tmp_path, "policy", "check").stdout.count("\n") == 1
