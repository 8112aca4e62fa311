"""`mcpguard policy check`, and how each command shows the errors of a policy."""

import json
import re
import shlex
from pathlib import Path

import pytest
from rich.cells import cell_len

from mcpguard.policy.parse import STARTER
from tests.cli.command import calls, complaint, mcpguard, on_terminal, output
from tests.end_to_end.host import policy, rule


@pytest.mark.posix
def test_check_warns_of_files_that_other_accounts_may_change(tmp_path: Path, file: Path) -> None:
    assert "may change" not in output(tmp_path, "policy", "check")
    file.chmod(0o666)
    warning = f"warning: other accounts may change {file}: {file} may be written to by everybody\n"
    assert warning in output(tmp_path, "policy", "check")
    assert len(json.loads(output(tmp_path, "policy", "check", "--json"))["warnings"]) == 1
    (tmp_path / "config.toml").touch()
    (tmp_path / "config.toml").chmod(0o666)
    assert output(tmp_path, "policy", "check", str(file)).count("may change") == 2


BROKEN = """\
[[rule]]
tool  = "search"
limit = "5/100ms"

[[rule]]
tool  = "отчёт"  \t
per\t= ["usr"]
"""


def test_every_error_is_shown_with_its_line_and_a_mark(tmp_path: Path) -> None:
    file = policy(tmp_path, BROKEN)
    commands = "check, show, set --tool x 1/1h, unset --tool x, explain --tool x, mode observe, suggest".split(", ")
    for argv in ("usage", *(f"policy {command}" for command in commands)):
        assert (
            complaint(tmp_path, *argv.split(), status=78)
            == f"""\
mcpguard: {file}: line 3: rule 1: limit: '5/100ms' is not a limit
  3 | limit = "5/100ms"
    |         ^^^^^^^^^
hint: did you mean "50/1s"? the shortest window is 1s (s m h d w; m is minutes)

mcpguard: {file}: line 5: rule 2: no limit
  5 | [[rule]]
    | ^^^^^^^^
hint: add one: limit = "100/1h", "deny" or "unlimited"; or concurrent = 2

mcpguard: {file}: line 7: rule 2: per: unknown axis 'usr'
  7 | per    = ["usr"]
    |           ^^^^^
hint: did you mean 'user'?

{file}: 3 errors
"""
        )
    assert file.read_text("utf-8") == BROKEN


def test_of_a_long_line_only_the_part_around_the_error_is_shown(tmp_path: Path) -> None:
    wide = "検" * 100
    policy(tmp_path, f'rule = [{{tool = "{wide}", limt = "5/1m", user = "{wide}"}}]\n')
    lines = complaint(tmp_path, "policy", "check", status=78).splitlines()
    assert (lines[1][:7], lines[1][-1]) == ("  1 | …", "…")
    excerpt, mark = lines[6:8]
    assert cell_len(excerpt) <= 80
    assert mark == " " * 4 + "|" + " " * (cell_len(excerpt.partition("limt")[0]) - 5) + "^^^^"


@pytest.mark.parametrize("columns", [40, 80, 160])
def test_on_a_terminal_the_line_of_an_error_fits_its_width(tmp_path: Path, columns: int) -> None:
    names = ", ".join(f'"role_{at}"' for at in range(40))
    policy(tmp_path, f"[[rule]]\nlimit = 'deny'\nrole = [{names}, 7, {names}]\n")
    status, said = on_terminal(tmp_path, "policy", "check", columns=columns)
    excerpt, mark = [line for line in said.splitlines() if " | " in line]
    assert (status, len(excerpt) <= columns) == (78, True)
    assert excerpt[mark.index("^")] == "7"
    assert len(excerpt) > columns // 2


def test_control_characters_and_tokens_in_a_broken_line_are_not_shown(tmp_path: Path) -> None:
    token = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJl"
    policy(tmp_path, f'rule = [{{user = "\u009b2J", limt = 5}}, {{tol = "{token}", limit = "{token}"}}]\n')
    said = complaint(tmp_path, "policy", "check", status=78) + mcpguard(tmp_path, "policy", "check", "--json").stdout
    assert "\u009b" not in said
    assert "eyJ" not in said


def test_check_as_json_has_every_error(tmp_path: Path) -> None:
    file = policy(tmp_path, BROKEN)
    done = mcpguard(tmp_path, "policy", "check", "--json")
    assert (done.returncode, done.stderr) == (78, "")
    found = json.loads(done.stdout)
    assert found["problems"] == found["errors"]
    place = {"level": "error", "file": str(file), "line": 3, "column": 9, "width": 9, "rule": 1}
    hint = 'did you mean "50/1s"? the shortest window is 1s (s m h d w; m is minutes)'
    assert found.pop("problems")[0] == place | {"message": "rule 1: limit: '5/100ms' is not a limit", "hint": hint}
    assert [one["line"] for one in found.pop("errors")] == [3, 5, 7]
    assert found == {"file": str(file), "starter": False, "rules": None, "warnings": [], "notes": []}
    done = mcpguard(tmp_path, "policy", "check", "--json", "nowhere.toml")
    (error,) = json.loads(done.stdout)["errors"]
    assert (done.returncode, error["line"]) == (78, None)
    assert error["message"] == f"{Path('nowhere.toml').absolute()}: no such file"


def test_check_finds_the_same_in_a_file_that_is_named_by_argument_option_or_variable(tmp_path: Path) -> None:
    file = tmp_path / "team.toml"
    file.write_text(rule(["5/1m", "9000/1h"], tool="never") + rule("1/1m", agent="*::subagnt::*"), "utf-8")
    calls(tmp_path, "echo", 1)
    env = {"MCPGUARD_AGENT": "::nightly::"}
    by_argument = output(tmp_path, "policy", "check", str(file), **env)
    assert by_argument.count("warning: ") == 4
    assert output(tmp_path, "policy", "check", "--policy", str(file), **env) == by_argument
    assert output(tmp_path, "policy", "check", **env, MCPGUARD_POLICY=str(file)) == by_argument
    both = complaint(tmp_path, "policy", "check", str(file), "--policy", str(file))
    assert both.splitlines()[1] == "hint: give only one of them"


def problems(home: Path, *argv: str, **env: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(mcpguard(home, "policy", "check", "--json", *argv, **env).stdout)["problems"]
    return found


def test_a_policy_without_errors_and_warnings_has_no_problems(tmp_path: Path, file: Path) -> None:
    found = json.loads(output(tmp_path, "policy", "check", "--json"))
    none = {kind: list[object]() for kind in ("problems", "errors", "warnings", "notes")}
    assert found == {"file": str(file), "starter": False, "rules": 2, **none}
    file.unlink()
    assert problems(tmp_path) == []
    assert output(tmp_path, "policy", "check").startswith(f"starter policy (no file at {file}")


def test_each_warning_and_note_is_a_problem_at_the_header_of_its_table(tmp_path: Path, file: Path) -> None:
    hard = rule(["5/1m", "9000/1h"], tool="mcp__crm__search").replace("[[rule]]", "  [[ rule ]] # a hard one")
    policy(tmp_path, STARTER + hard + rule("100/1h", user="alice", tool="a") + "[[cost]]\ncost = 5\n")
    found = problems(tmp_path, MCPGUARD_AGENT="::nightly::")
    places = [tuple(one[key] for key in ("level", "line", "column", "width", "rule")) for one in found]
    superfluous, cost, by_name = ("warning", 24, 3, 10, 5), ("warning", 33, 1, 8, None), ("warning", 24, 3, 10, 5)
    notes = [("note", line, 1, 8, number) for line, number in ((10, 2), (15, 3), (20, 4))]
    assert places == [superfluous, cost, by_name, *notes]
    assert {one["file"] for one in found} == {str(file)}
    assert [one["hint"] for one in found] == [""] * len(found)


def test_a_rule_without_a_header_of_its_own_has_only_a_number(tmp_path: Path, file: Path) -> None:
    file.write_text('rule = [{tool = "mcp__crm__search", limit = "5/1m"}]\n', "utf-8")
    (found,) = problems(tmp_path)
    place = {"level": "warning", "line": None, "column": None, "width": None, "rule": 1}
    assert found.items() >= place.items()


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('denials = "x"', (1, 11, 3)),
        ("[store]\n  timeout_ms = 0", (2, 16, 1)),
        ("[store]\nurll = 'x'", (2, 1, 4)),
        ("store = 5", (1, 9, 1)),
        ("[identity.jwt]\nissuer = 'a'", (1, 1, 14)),
        ("[store]\nurl = 'http://x'", (2, 7, 10)),
        ("'a b' = 1", (1, 1, None)),
        ("a = = 1", (1, 5, 1)),
    ],
)
def test_an_error_in_config_toml_has_its_place(tmp_path: Path, file: Path, text: str, place: tuple[int, ...]) -> None:
    config = tmp_path / "config.toml"
    config.write_text(text, "utf-8")
    done = mcpguard(tmp_path, "policy", "check", "--json")
    assert (done.returncode, done.stderr) == (78, "")
    found = json.loads(done.stdout)
    (error,) = found["problems"]
    assert (error["level"], error["file"], error["rule"]) == ("error", str(config), None)
    assert (error["line"], error["column"], error["width"]) == place
    plain = complaint(tmp_path, "policy", "check", status=78).splitlines()
    assert plain[:2] == [f"mcpguard: {config}: {error['message']}", f"hint: {error['hint']}"]


def test_an_error_in_a_variable_is_a_problem_without_a_place(tmp_path: Path, file: Path) -> None:
    done = mcpguard(tmp_path, "policy", "check", "--json", MCPGUARD_DENIALS="x")
    (error,) = json.loads(done.stdout)["problems"]
    assert (done.returncode, error["file"], error["line"]) == (78, None, None)
    assert error["message"].startswith("MCPGUARD_DENIALS: ")


def test_check_warns_of_rules_that_matched_no_call_but_for_untouched_starter_rules(tmp_path: Path) -> None:
    file = policy(tmp_path, STARTER + rule("20/1m", user="*", tool="search"))
    assert output(tmp_path, "policy", "check") == f"{file}: OK, 5 rules\n"
    calls(tmp_path, "search", 1)
    assert output(tmp_path, "policy", "check") == f"{file}: OK, 5 rules\n"
    output(tmp_path, "policy", "set", "--user", "*", "--agent", "*::api::*", "31/1m")
    _, warning = output(tmp_path, "policy", "check").splitlines()
    assert "rule 4 (user=* agent=*::api::*) has matched none of the calls in the audit log" in warning


def test_check_warns_of_a_limit_that_another_rule_defeats_and_notes_starter_rules_that_cap_bursts(tmp_path: Path) -> None:
    all_jobs = rule("10000/1h", user="*", agent="*::background::*", per=["user"])
    file = policy(tmp_path, STARTER + all_jobs + rule("50/1h", user="alice", tool="search"))
    _, warning, note = output(tmp_path, "policy", "check", str(file)).splitlines()
    drop = f"mcpguard policy unset --policy {shlex.quote(str(file))} --user '*' --agent '*::background::*'"
    assert warning.endswith(f" still caps calls of rule 5 more tightly, at 30/1m; to drop it: {drop}")
    assert re.match(r"note: line \d+: rule 4 \(user=\* agent=\*::api::\*\) still caps calls of rule 6 more tightly", note)
    found = json.loads(output(tmp_path, "policy", "check", str(file), "--json"))
    assert ([warning], [note]) == ([f"warning: {one}" for one in found["warnings"]], [f"note: {one}" for one in found["notes"]])
