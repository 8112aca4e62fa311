"""`mcpguard policy`: what all of its commands have in common, and those that are not in a file of their own."""

import json
import shlex
from pathlib import Path

import pytest

from mcpguard.policy.parse import STARTER, parse
from tests.cli.command import BOUND, complaint, on_terminal, output, process
from tests.cli.test_policy_set import BEYOND
from tests.end_to_end.host import policy, rule
from tests.policy.test_editing import BY_HAND


@pytest.mark.posix
@pytest.mark.parametrize(("mode", "folder_mode", "status"), [(0, 0o700, 78), (0o444, 0o700, 1), (0o600, 0o500, 1)])
def test_missing_permissions_are_reported_and_the_file_is_not_changed(
    tmp_path: Path, file: Path, mode: int, folder_mode: int, status: int
) -> None:
    file.chmod(mode)
    tmp_path.chmod(folder_mode)
    done = process(tmp_path, "policy", "set", "--tool", "x", "5/1m", under=BOUND)
    tmp_path.chmod(0o700)
    file.chmod(0o600)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (status, "", 2)
    assert "Permission denied" in done.stderr
    assert ("hint: name a TOML file that this account may read" in done.stderr) == (status == 78)
    assert file.read_text("utf-8") == BY_HAND


def mode(home: Path, mode: str) -> list[str]:
    """The lines of `mcpguard policy mode`."""
    return output(home, "policy", "mode", mode).splitlines()


def test_mode_changes_the_mode_and_keeps_every_comment(tmp_path: Path, file: Path) -> None:
    assert mode(tmp_path, "observe")[0] == f"{file}: mode: observe (it was enforce)"
    assert file.read_text("utf-8") == BY_HAND.replace('mode = "enforce"', 'mode = "observe"')
    assert mode(tmp_path, "observe")[0] == f"{file}: mode: observe (unchanged)"
    assert "observe mode, so nothing is denied" in output(tmp_path, "policy", "set", "--tool", "report", "5/1m")
    assert mode(tmp_path, "enforce") == [f"{file}: mode: enforce (it was observe)"]
    assert file.read_text("utf-8") == BY_HAND


def test_mode_enforce_names_rules_that_still_deny_nothing(tmp_path: Path, file: Path) -> None:
    output(tmp_path, "policy", "set", "--observe", "--tool", "report", "5/1m")
    assert mode(tmp_path, "enforce")[1] == "rule 2 (tool=report) has a mode of its own and still denies nothing"


def test_without_a_file_mode_observe_makes_one_with_the_starter_rules(tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    assert mode(tmp_path, "enforce") == [f"{file}: mode: enforce (unchanged)"]
    assert not file.exists()
    assert mode(tmp_path, "observe")[:2] == [
        f"{file}: new file with the 4 starter rules, which were in force without a file",
        f"{file}: mode: observe (it was enforce)",
    ]
    assert parse(file.read_text("utf-8")).rules == tuple(rule._replace(line=rule.line + 2) for rule in parse(STARTER).rules)
    assert file.read_text("utf-8").splitlines()[:5] == [*STARTER.splitlines()[:4], 'mode = "observe"']


@pytest.mark.parametrize("argv", ["check", "show", "suggest", "explain --tool x", "unset --tool x", "mode observe"])
def test_the_hint_for_a_missing_policy_file_creates_it(tmp_path: Path, argv: str) -> None:
    file = tmp_path / "our team" / "policy.toml"
    said = complaint(tmp_path, "policy", *argv.split(), "--policy", str(file), status=78)
    assert complaint(tmp_path, "policy", *argv.split(), status=78, MCPGUARD_POLICY=str(file)) == said
    first, hint = said.splitlines()
    assert first == f"mcpguard: {file}: no such file"
    program, *advised = shlex.split(hint.rpartition(": ")[2])
    assert program == "mcpguard"
    output(tmp_path, *advised)
    assert file.read_text("utf-8") == STARTER


def test_init_writes_the_starter_policy_once(tmp_path: Path) -> None:
    file = tmp_path / "a" / "policy.toml"
    assert output(tmp_path, "policy", "init", "--policy", str(file)) == f"{file}: wrote 4 starter rules\n"
    assert file.read_text("utf-8") == STARTER
    file.write_text(BY_HAND, "utf-8")
    assert "already exists" in complaint(tmp_path, "policy", "init", status=1, MCPGUARD_POLICY=str(file))
    assert file.read_text("utf-8") == BY_HAND


def test_path_prints_the_path(tmp_path: Path) -> None:
    assert output(tmp_path, "policy", "path") == f"{tmp_path / 'policy.toml'}\n"
    assert output(tmp_path, "policy", "path", MCPGUARD_POLICY="/a/b.toml") == f"{Path('/a/b.toml').absolute()}\n"


# show


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
