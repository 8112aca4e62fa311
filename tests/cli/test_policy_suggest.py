"""`mcpguard policy suggest`. `test_looking_on_redis` has a suggestion from calls on a server."""

import json
import shutil
import subprocess
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mcpguard.policy.parse import SCHEMA_LINE, STARTER, parse
from mcpguard.session.audit import Row
from mcpguard.stores.sqlite.store import SqliteStore
from mcpguard.text.printing import compact
from tests.cli.command import complaint, mcpguard, on_terminal, output
from tests.end_to_end.host import rule

MINUTE_US, HOUR_US, DAY_US = 60_000_000, 3_600_000_000, 86_400_000_000


def rows(times: int, every_us: int, *, days_ago: float = 3, decision: str = "allowed", **names: str) -> list[Row]:
    begin_us = time.time_ns() // 1000 - round(days_ago * DAY_US)
    context = {"session": f"{len(names):x}" * 16, "namespace": "default", "server": "crm"}
    context |= {"user": "alice", "agent": "Cursor::subagent::Explore", "tool": "search"} | names
    return [Row(begin_us + at * every_us, at + 1, decision, compact(context)) for at in range(times)]


def fill(home: Path, *some: Sequence[Row]) -> None:
    store = SqliteStore(home / "mcpguard.db")
    for rows in some:
        store.append(rows)
    store.close()


def written(home: Path, text: str) -> Path:
    """Write the policy with these line ends."""
    file = home / "policy.toml"
    file.write_text(text, "utf-8", newline="")
    return file


WEEK = rows(41, MINUTE_US) + rows(70, 4 * MINUTE_US, days_ago=1, user="bob")


def suggestion(home: Path, *options: str) -> Any:
    return json.loads(output(home, "policy", "suggest", "--json", *options))


def test_limits_come_from_the_busiest_windows_with_the_reason_beside_each(tmp_path: Path) -> None:
    fill(tmp_path, WEEK, rows(500, 1000, decision="rate_limited"), rows(99, 1000, namespace="other", tool="elsewhere"))
    file = written(tmp_path, "# ours\n[[rule]]\nuser = '*'\ntool = 'search'\nlimit = ['9000/1h'] # agreed\n\n# end\n")
    done = mcpguard(tmp_path, "policy", "suggest")
    assert done.returncode == 0
    assert done.stderr.startswith("111 calls in the last 7d, from 20")
    new = """\
# ours
[[rule]]
user = '*'
tool = 'search'
limit = [
  "100/1h", # busiest hour of 41 calls by alice; x2, rounded up
] # agreed

# end

[[rule]]
user = "*"
agent = "*::subagent::*"
per = ["user"]
limit = [
  "5/1m", # busiest minute of 1 call by bob; x2, and at least 5
  "100/1h", # busiest hour of 41 calls by alice; x2, rounded up
]
"""
    assert done.stdout.startswith(new + f"\n--- {file}\n+++ {file} (suggested)\n@@ ")
    assert mcpguard(tmp_path, "policy", "suggest", "--toml").stdout == new
    diff = mcpguard(tmp_path, "policy", "suggest", "--diff").stdout
    assert diff == done.stdout.removeprefix(new + "\n")
    written(tmp_path, new)
    again = mcpguard(tmp_path, "policy", "suggest")
    assert (again.returncode, again.stdout) == (0, "")
    assert again.stderr.endswith("nothing to suggest: no limit needs a change\n")
    assert "rule 1 (user=* tool=search): stays, it fits: busiest hour of 41 calls by alice" in again.stderr


def test_as_json_it_has_the_suggestions_their_reasons_and_both_texts(tmp_path: Path) -> None:
    fill(tmp_path, WEEK)
    found = suggestion(tmp_path)
    assert (found["calls"], found["enough"], found["headroom"], found["file"], found["starter"]) == (111, True, 2, None, True)
    subagent = found["rules"][1]
    assert (subagent["suggestion"], subagent["number"], subagent["calls"]) == ("change", 2, 111)
    (limit,) = subagent["limits"]
    assert limit.items() >= {"limit": "5/1m", "was": "60/1m", "peak": 1, "peak_by": "bob Cursor::subagent::Explore"}.items()
    assert found["rules"][-1]["rule"] == {"user": "*", "tool": "search"}
    assert parse(found["toml"]).rules[1].limit_text == "5/1m"
    assert found["diff"].startswith(f"--- {tmp_path / 'policy.toml'}\n")
    assert found["toml"].startswith(SCHEMA_LINE)
    assert tomllib.loads(found["toml"])["rule"][0] == tomllib.loads(STARTER)["rule"][0]


def test_limits_of_several_rules_in_a_named_file_are_each_suggested_in_their_own_rule(tmp_path: Path) -> None:
    reported = '{"axis":"user","rule":"user=* tool=search","limit":9000,"window":"1h"}'
    denied = [row._replace(reported=reported) for row in rows(3, 1000, decision="rate_limited")]
    fill(tmp_path, WEEK, rows(41, MINUTE_US, tool="report"), denied)
    file = tmp_path / "team.toml"
    file.write_text(rule("9000/1h", user="*", tool="search") + rule("8000/1h", user="*", tool="report") + "# end\n", "utf-8")
    found = suggestion(tmp_path, "--policy", str(file))
    assert [one["number"] for one in found["rules"] if one["suggestion"] == "change"] == [1, 2]
    assert [one["denied"] for one in found["rules"][:2]] == [3, 0]
    suggested = [(one.selectors["tool"], one.limit_text) for one in parse(found["toml"]).rules[:2]]
    assert suggested == [(("search",), "100/1h"), (("report",), "100/1h")]


def test_since_leaves_out_older_calls_even_if_they_were_written_later(tmp_path: Path) -> None:
    fill(tmp_path, rows(100, 1000, days_ago=9, user="carol"), WEEK, rows(100, 1000, days_ago=9.5, user="dave"))
    assert suggestion(tmp_path)["calls"] == 111
    assert suggestion(tmp_path, "--since", "2d")["calls"] == 70
    assert suggestion(tmp_path, "--since", "2w")["calls"] == 311


def test_comments_beside_limits_are_kept_and_old_reasons_are_not(tmp_path: Path) -> None:
    fill(tmp_path, WEEK)
    rule = '[[rule]]\nuser = "*"\ntool = "search"\nlimit = [\n  # Ines wants two\n'
    written(tmp_path, f'{rule}  "900/1m", # busiest minute of 3 calls\n  "900/1h", # per contract\n]\n')
    minute = '  "5/1m", # busiest minute of 1 call by bob; x2, and at least 5\n'
    hour = '  "100/1h", # busiest hour of 41 calls by alice; x2, rounded up\n'
    new = mcpguard(tmp_path, "policy", "suggest", "--toml").stdout
    assert new.startswith(f"{rule}  # per contract\n{minute}{hour}]\n")


def test_crlf_is_kept_and_rules_in_a_list_in_brackets_are_left_to_the_user(tmp_path: Path) -> None:
    fill(tmp_path, WEEK)
    written(tmp_path, "# ours\r\n[[rule]]\r\ntool = 'search'\r\nlimit = '900/1h'\r\n")
    new = suggestion(tmp_path)["toml"]
    assert [rule.limit_text for rule in parse(new).rules] == ["100/1h", "5/1m 100/1h"]
    assert new.count("\n") == new.count("\r\n")
    written(tmp_path, "rule = [{tool = 'search', limit = '900/1h'}]\n")
    assert "mcpguard: the file has rule = […]" in mcpguard(tmp_path, "policy", "suggest").stderr


def test_little_history_is_said_plainly(tmp_path: Path) -> None:
    fill(tmp_path, rows(40, MINUTE_US))
    done = mcpguard(tmp_path, "policy", "suggest")
    assert done.returncode == 0
    assert "warning: too little history: these limits may be too low" in done.stderr
    assert suggestion(tmp_path)["enough"] is False


def test_a_limit_that_comes_from_a_single_burst_is_warned_of(tmp_path: Path) -> None:
    fill(tmp_path, rows(100, HOUR_US, days_ago=6), rows(250, 1_000_000, user="bob"))
    done = mcpguard(tmp_path, "policy", "suggest")
    warnings = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 3  # a minute for the subagents, a minute and an hour for the tool
    assert "rule 2 (user=* agent=*::subagent::*): 120/1m is too high if the 60 calls from 20" in warnings[0]
    assert warnings[0].endswith(" UTC on were a loop: a single burst, at other times no minute has more than 1 call")
    assert "x2, rounded up; a single burst, at other times no hour has more than 1 call\n" in done.stdout
    found = suggestion(tmp_path)
    assert [limit["burst"] for rule in found["rules"] for limit in rule["limits"] if limit["peak"]] == [True, True, True]


@pytest.mark.parametrize("filled", [False, True], ids=["no store", "no calls"])
def test_without_calls_it_suggests_nothing_and_says_so(tmp_path: Path, filled: bool) -> None:
    if filled:
        fill(tmp_path, rows(3, MINUTE_US, decision="denied"))
    said = complaint(tmp_path, "policy", "suggest", status=1)
    assert said.startswith("mcpguard: too little history: no calls in the last 7d\nhint: ")
    done = mcpguard(tmp_path, "policy", "suggest", "--json")
    assert (done.returncode, json.loads(done.stdout)["calls"], json.loads(done.stdout)["diff"]) == (1, 0, "")
    assert (tmp_path / "mcpguard.db").exists() is filled


def test_names_do_not_reach_the_terminal_with_control_characters_and_colours_do(tmp_path: Path) -> None:
    fill(tmp_path, rows(120, 20 * MINUTE_US, user="\x1b]0;owned\x07\u009b2J"))
    written(tmp_path, "# \u009b2J\n" + STARTER)
    _, said = on_terminal(tmp_path, "policy", "suggest", NO_COLOR="1")
    assert "owned" in said
    assert not {"\x1b", "\x07", "\u009b"} & set(said)
    assert parse(mcpguard(tmp_path, "policy", "suggest", "--toml").stdout).rules
    assert "\x1b[32m+" in on_terminal(tmp_path, "policy", "suggest")[1]
    assert "\x1b" not in mcpguard(tmp_path, "policy", "suggest").stdout


@pytest.mark.parametrize("end", ["", "# a\u2028b", "\r\n", "# a\x85b\n"])
def test_the_difference_can_be_applied_whatever_ends_the_lines_of_the_file(tmp_path: Path, end: str) -> None:
    patch = shutil.which("patch") or pytest.skip("patch is not installed")
    fill(tmp_path, WEEK)
    file = written(tmp_path, f'[[rule]]\nuser = "*"\ntool = "search"\nlimit = "9000/1h"{end}')
    new = mcpguard(tmp_path, "policy", "suggest", "--toml").stdout
    diff = mcpguard(tmp_path, "policy", "suggest", "--diff").stdout
    done = subprocess.run([patch, "--binary", file], input=diff.encode(), capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert file.read_bytes().decode() == new
