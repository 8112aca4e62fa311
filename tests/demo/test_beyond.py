"""The demo's second part, under a policy that does more than count calls."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from mcpguard.demo import beyond
from mcpguard.demo.stage import ALICE, BOB, Stage
from mcpguard.errors import McpguardError
from mcpguard.policy.parse import parse
from tests.demo.conftest import ROOT, SHORT_DEMO, Run, environment


def part(run: Run, label: str) -> str:
    """What the demo says beside a label, in one line."""
    lines = run.out.partition("Bob's night job starts")[2].splitlines()
    first = next(at for at, line in enumerate(lines) if line.split()[:1] == [label])
    more = next(at for at in range(first + 1, len(lines)) if not lines[at].startswith(" " * 14))
    return " ".join(" ".join(lines[first:more]).split())


def test_it_shows_the_policy_that_replaces_the_first_one(run: Run) -> None:
    assert "".join(f"  {line}\n" if line else "\n" for line in beyond.POLICY.splitlines()) in run.out


def test_the_policy_has_each_kind_of_rule() -> None:
    policy = parse(beyond.POLICY)
    assert {part.counts for part, _ in policy.parts} == {"calls", "cost", "errors", "concurrent"}
    assert any("arguments" in rule.per for rule in policy.rules)
    assert any(rule.wait_us for rule in policy.rules)


def test_all_calls_of_the_night_job_are_answered_though_it_starts_them_at_once(run: Run) -> None:
    found = re.fullmatch(r"wait Bob's night job is through: 12 answered, 0 denied, in (\d+\.\d) s\.", part(run, "wait"))
    assert found
    assert float(found[1]) >= 5, "two searches a second"


def test_six_pages_are_opened_two_at_a_time_by_two_wrappers(run: Run) -> None:
    assert re.fullmatch(
        r"concurrent Alice and Bob open 3 pages each, all at once: 6 answered, 0 denied\. "
        r"Their servers had at most [12] pages open at a time\.",
        part(run, "concurrent"),
    )


def test_a_failing_tool_is_closed_after_three_errors(run: Run) -> None:
    said = part(run, "errors")
    assert "calls a failing tool 6 times: 3 failed, 3 denied." in said
    assert "Tool sync_orders keeps failing for all users together: 3 errors per 1m. Retry in 60 seconds." in said


def test_a_repeated_search_is_stopped_after_five_and_another_one_is_not(run: Run) -> None:
    said = part(run, "arguments")
    assert "repeats a search 8 times: 5 answered, 3 denied. Another search: 1 answered, 0 denied." in said
    assert "for user alice@acme.com: 5 calls with these arguments per 10m." in said


def test_a_budget_of_a_hundred_units_is_five_reports(run: Run) -> None:
    said = part(run, "cost")
    assert "asks for 6 reports of 20 units: 5 answered, 1 denied." in said
    assert "100 units per 1h. This call costs 20 units." in said


def test_it_ends_quietly_when_the_reader_goes_away_while_calls_wait(tmp_path: Path) -> None:
    process = subprocess.Popen(
        SHORT_DEMO, env=environment(tmp_path), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert any("night job starts" in line for line in process.stdout)
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_more_pages_at_a_time_than_the_policy_allows_fail_the_demo(tmp_path: Path) -> None:
    def log(name: str, *spans: tuple[int, int]) -> None:
        (tmp_path / f"calls-{name}.jsonl").write_text("".join(json.dumps({"page_us": span}) + "\n" for span in spans))

    stage = Stage(tmp_path)
    log("alice", (0, 10), (10, 20))
    log("bob", (5, 15))
    assert beyond._most_at_once(stage, (ALICE, BOB)) == 2
    log("bob", (5, 15), (8, 9))
    with pytest.raises(McpguardError, match=r"^the demo failed: 3 pages were open at a time, more than 2$"):
        beyond._most_at_once(stage, (ALICE, BOB))


def test_a_call_that_did_not_reach_the_server_but_was_answered_fails_the_demo(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    (tmp_path / "calls-alice.jsonl").write_text('{"tool": "open_page"}\n' * 3)
    tally = stage.tally(ALICE, "open_page")
    (tmp_path / "calls-alice.jsonl").write_text('{"tool": "open_page"}\n' * 5)
    tally.answered, tally.failed = 1, 1
    stage.check([tally])
    tally.answered = 2
    with pytest.raises(McpguardError, match="3 calls of open_page by alice were answered, but 2 reached the server"):
        stage.check([tally])
