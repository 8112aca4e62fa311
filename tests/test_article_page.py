"""The limits, the denial and the loop on `docs/article.md` are those of the program."""

import json
import shlex
from pathlib import Path

import pytest

from mcpguard.policy.model import Call
from mcpguard.policy.parse import parse
from tests.cli.command import output
from tests.pages import DOCS, README, blocks

PAGE = DOCS["article.md"]


def test_the_six_commands_make_the_shown_policy(tmp_path: Path) -> None:
    commands = blocks("console", PAGE)[0].splitlines()
    for line in commands:
        output(tmp_path, *shlex.split(line.removeprefix("$ mcpguard ")))
    assert len(commands) == 6
    _, shown = output(tmp_path, "policy", "show").split("\n\n", 1)
    assert shown == blocks("text", PAGE)[0]


def test_the_denial_and_the_loop_are_those_of_pages_that_are_tested() -> None:
    # tests/test_readme.py compares both with what mcpguard answers and what the demo prints
    assert blocks("json", PAGE)[0] in DOCS["policy.md"]
    assert blocks("text", PAGE)[1] in README
    assert json.loads(blocks("json", PAGE)[0])["error"]["data"]["retry_after_seconds"] == 14 * 60 + 7


@pytest.mark.parametrize(
    ("agent", "tool", "limits"),
    [
        ("Claude Code::interactive::default", "search", ["100/1m"]),
        ("Claude Code::interactive::default", "create_issue", ["100/1m", "10/1m"]),
        ("Claude Code::subagent::Explore", "create_issue", ["60/1m"]),
        ("app::api::default", "search", ["30/1m"]),
        ("cron::background::nightly", "search", ["deny"]),
    ],
)
def test_the_translated_policy_says_what_the_page_says(agent: str, tool: str, limits: list[str]) -> None:
    policy = parse(blocks("toml", PAGE)[1])
    plan = policy.plan(Call("alice", agent, "github", tool))
    assert [one.limit_text for one in plan.reported] == limits
