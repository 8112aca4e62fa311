"""`mcpguard policy show`."""

import json
from pathlib import Path

from tests.cli.command import on_terminal, output, process
from tests.cli.test_policy_set import BEYOND
from tests.end_to_end.host import policy, rule
from tests.policy.test_editing import BY_HAND


def test_show_says_that_the_starter_policy_is_in_force(tmp_path: Path) -> None:
    out = output(tmp_path, "policy", "show")
    assert out.startswith(f"starter policy: no file at {tmp_path / 'policy.toml'}\n")
    assert "Each user may call tools 60 times a minute through each agent" in out
    shown = json.loads(output(tmp_path, "policy", "show", "--json"))
    assert (shown["starter"], shown["file"], len(shown["rules"])) == (True, None, 4)


def test_show_has_each_rule_in_a_sentence_with_its_limit_and_text(tmp_path: Path, file: Path) -> None:
    assert output(tmp_path, "policy", "show") == (
        f"policy: {file}\n\n"
        "1. 100/1h  user=* tool=search\n    Each user may call search 100 times an hour.\n"
        "2. 5/1m  tool=report\n    All users together may call report 5 times a minute.\n"
    )


def test_show_as_json_has_every_member(tmp_path: Path, file: Path) -> None:
    file.write_text(BY_HAND.replace("enforce", "observe"), "utf-8")
    shown = json.loads(output(tmp_path, "policy", "show", "--json"))
    assert (shown["file"], shown["starter"], shown["mode"]) == (str(file), False, "observe")
    rule = {"number": 2, "rule": "tool=report", "limit": ["5/1m"], "count": "calls", "mode": "enforce", "line": 12}
    rule |= {"axis": "tool", "per": ["tool", "server"], "overridden_by": []}
    rule |= dict.fromkeys(("concurrent", "wait", "warn", "name"))
    assert shown["rules"][1] == rule | {"sentence": "All users together may call report 5 times a minute."}


def test_characters_that_stdout_cannot_encode_are_escaped(tmp_path: Path, file: Path) -> None:
    file.write_text('[[rule]]\ntool = "поиск"\nlimit = "5/1m"\n', "utf-8")
    done = process(tmp_path, "policy", "show", PYTHONIOENCODING="latin-1")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\u043f" in done.stdout


def test_for_a_policy_without_rules_it_says_that_nothing_is_limited(tmp_path: Path, file: Path) -> None:
    said = "no rules: nothing is limited"
    file.write_text('mode = "enforce"\n', "utf-8")
    assert output(tmp_path, "policy", "show") == f"policy: {file}\n\n{said}\n"
    assert on_terminal(tmp_path, "policy", "show") == (0, f"policy: {file}\n\n{said}\n")
    assert output(tmp_path, "policy", "check") == f"{file}: OK, {said}\n"
    policy(tmp_path, rule("5/1m", tool="a") + rule("5/1m", tool="b"))
    assert said not in output(tmp_path, "policy", "unset", "--tool", "a")
    assert output(tmp_path, "policy", "unset", "--tool", "b").splitlines()[1:] == [said]


def test_show_describes_caps_cost_errors_and_waits(tmp_path: Path, file: Path) -> None:
    file.write_text(BEYOND, "utf-8")
    shown = output(tmp_path, "policy", "show")
    for line in (
        "wait: 5s (a refused call waits at most this long, if its rule has no wait)\n",
        "1. 5/1m 2-in-flight  user=* tool=report\n",
        "2. 100-units/1h  user=*\n",
        "a call of report costs 20; a refused call never waits.\n",
        "3. 3-errors/1m  tool=sync\n",
        "4. unlimited-in-flight  tool=poll per=user,arguments\n",
        "\nCosts:\n    A call of report takes 20 units of each limit that counts cost.\n",
    ):
        assert line in shown
    found = json.loads(output(tmp_path, "policy", "show", "--json"))
    assert (found["wait"], found["costs"]) == ("5s", [{"tool": "report", "server": None, "cost": 20, "line": 4}])
    assert [(one["limit"], one["count"], one["concurrent"], one["wait"]) for one in found["rules"]] == [
        (["5/1m"], "calls", 2, None),
        (["100/1h"], "cost", None, "0s"),
        (["3/1m"], "errors", None, None),
        ([], None, "unlimited", None),
    ]
    assert found["rules"][3]["per"] == ["user", "tool", "server", "arguments"]
