import json
import os
import resource
import shlex
import stat
import subprocess
from pathlib import Path

import pytest

from mcpguard.cli import _errors
from mcpguard.core.policy.parse import STARTER, parse
from mcpguard.errors import PolicyError
from tests.cli.command import ALICE, BOUND, OBEDIENT, calls, command, mcpguard, on_terminal, process
from tests.end_to_end.host import DEADLINE_S, Host, environment
from tests.test_policy_editing import BY_HAND


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "policy.toml"
    file.write_text(BY_HAND)
    return file


def test_the_first_set_writes_the_starter_rules_and_then_its_own(tmp_path: Path) -> None:
    done = mcpguard(tmp_path / "new", "policy", "set", "--user", "*", "--tool", "search", "20/1m", "100/1h")
    file = tmp_path / "new" / "policy.toml"
    assert (done.returncode, done.stderr) == (0, "")
    made = f"{file}: new file with the 4 starter rules, which were in force without a file\n"
    assert done.stdout == (f"{made}{file}: added rule 5\nEach user may call search 20 times a minute and 100 times an hour.\n")
    assert file.read_text() == STARTER + '\n[[rule]]\nuser = "*"\ntool = "search"\nlimit = ["20/1m", "100/1h"]\n'
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_set_replaces_the_limit_of_the_rule_with_the_same_selectors_and_keeps_all_else(tmp_path: Path, file: Path) -> None:
    done = mcpguard(tmp_path, "policy", "set", "--user", "*", "--tool", "search", "50/1h")
    assert "changed rule 1 (it was 100/1h)" in done.stdout
    assert file.read_text() == BY_HAND.replace('"100/1h"', '"50/1h"')


LATE = (
    "Calls made before this edit may count up to {} longer than {}: a limit above 64 has counted them in groups,"
    " without the time of each call.\n"
)


@pytest.mark.parametrize(
    ("selectors", "limits", "told"),
    [
        (["--user", "*"], ["64/1h", "20/1d"], LATE.format("57s", "1h")),  # 1d is a new window
        (["--user", "*"], ["65/1h"], ""),
        (["--user", "bob"], ["10/60m"], LATE.format("57s", "60m")),  # an override counts in the same counter
        (["--user", "bob", "--per", "none"], ["10/1h"], ""),
        (["--user", "bob", "--role", "dev"], ["10/1h"], ""),
    ],
)
def test_set_says_how_much_longer_the_calls_of_a_limit_above_64_count(
    tmp_path: Path, file: Path, selectors: list[str], limits: list[str], told: str
) -> None:
    done = mcpguard(tmp_path, "policy", "set", "--tool", "search", *selectors, *limits)
    assert "".join(done.stdout.splitlines(keepends=True)[2:]) == told


def test_unset_says_so_too_if_a_lower_limit_now_applies(tmp_path: Path) -> None:
    mcpguard(tmp_path, "policy", "set", "--user", "*", "60/1d")
    mcpguard(tmp_path, "policy", "set", "--user", "bob", "100/1d")
    done = mcpguard(tmp_path, "policy", "unset", "--user", "bob")
    assert done.stdout.endswith("removed the rule for user=bob (it was 100/1d)\n" + LATE.format("22m 30s", "1d"))
    done = mcpguard(tmp_path, "policy", "unset", "--user", "*")
    assert "longer" not in done.stdout


def test_unset_removes_the_rule_with_the_comment_right_above_it_and_keeps_all_else(tmp_path: Path, file: Path) -> None:
    done = mcpguard(tmp_path, "policy", "unset", "--user", "*", "--tool", "search")
    assert done.stdout == f"{file}: removed the rule for user=* tool=search (it was 100/1h)\n"
    begin, end = BY_HAND.index("# Searches"), BY_HAND.index("# Reports")
    assert file.read_text() == BY_HAND[:begin] + BY_HAND[end:]


def test_unset_of_a_missing_rule_names_similar_rules(tmp_path: Path, file: Path) -> None:
    done = mcpguard(tmp_path, "policy", "unset", "--tool", "search")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[0] == f"mcpguard: {file}: no rule for tool=search"
    assert "hint: similar rules:" in done.stderr
    assert "user=* tool=search" in done.stderr
    assert file.read_text() == BY_HAND


@pytest.mark.parametrize(
    ("argv", "message", "hint"),
    [
        (["--tool", "x", "5"], "'5' is not a limit", "5/1m"),
        (["--tool", "x", "5/min"], "'5/min' is not a limit", 'did you mean "5/1m"?'),
        (["--tool", "x", "0/1m"], "admits nothing", "deny"),
        (["--tool", "x", "deny", "5/1m"], "stands alone", "deny"),
        (["--tool", "x", "5/1m", "6/60s"], "two limits for one window", "keep"),
        (["--agent", "subagent", "5/1m"], "does not have three parts", "client::tier::name"),
        (["--tool", "", "5/1m"], "empty text", "*"),
        (["--per", "users", "5/1m"], "unknown axis 'users'", "user,agent,tool,server"),
        (["--per", "", "5/1m"], "unknown axis ''", "none"),
    ],
)
def test_an_invalid_limit_or_pattern_is_reported_in_one_line_and_a_hint(
    tmp_path: Path, argv: list[str], message: str, hint: str
) -> None:
    done = mcpguard(tmp_path, "policy", "set", *argv)
    assert (done.returncode, done.stdout) == (2, "")
    first, second = done.stderr.splitlines()
    assert message in first
    assert "command line" not in first
    assert second.startswith("hint: ")
    assert hint in second
    assert list(tmp_path.iterdir()) == []


def test_set_without_a_limit_is_a_usage_error(tmp_path: Path) -> None:
    assert mcpguard(tmp_path, "policy", "set", "--tool", "x").returncode == 2


@pytest.mark.parametrize(
    "content", [b"", b"# nothing\n", b'[[rule]]\ntool = "a\n', b"\xff\xfe", b"[[rule]]\ntool = 'a'\nlimt = '5/1m'\n"]
)
@pytest.mark.parametrize("argv", [["set", "--tool", "x", "5/1m"], ["unset", "--tool", "x"], ["check"], ["show"]])
def test_a_file_that_is_not_a_policy_is_reported_and_not_changed(tmp_path: Path, content: bytes, argv: list[str]) -> None:
    file = tmp_path / "policy.toml"
    file.write_bytes(content)
    done = mcpguard(tmp_path, "policy", *argv)
    assert (done.returncode, done.stdout) == (78, "")
    first, *_, last = done.stderr.splitlines()
    assert first.startswith(f"mcpguard: {file}: line ")
    assert last.startswith("hint: ") or last == f"{file}: 2 errors"
    assert file.read_bytes() == content


@pytest.mark.parametrize("argv", [["set", "--tool", "x", "5/1m"], ["unset", "--tool", "x"], ["check"], ["show"], ["edit"]])
def test_a_folder_in_place_of_the_file_is_reported(tmp_path: Path, argv: list[str]) -> None:
    (tmp_path / "policy.toml").mkdir()
    done = mcpguard(tmp_path, "policy", *argv, EDITOR="true")
    assert (done.returncode, done.stdout) == (78, "")
    assert "cannot be read: Is a directory\nhint: a policy is a file in TOML that this account may read\n" in done.stderr
    assert len(done.stderr.splitlines()) == 2


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
    assert file.read_text() == BY_HAND


def test_a_file_in_place_of_the_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = mcpguard(tmp_path, "policy", "set", "--policy", str(tmp_path / "file" / "policy.toml"), "--tool", "x", "5/1m")
    assert done.returncode in {1, 78}
    assert len(done.stderr.splitlines()) == 2
    assert "Traceback" not in done.stderr


def test_a_full_disk_leaves_the_file_unchanged_and_no_temporary_file(tmp_path: Path, file: Path) -> None:
    def full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))

    done = process(tmp_path, "policy", "set", "--tool", "x", "5/1m", preexec=full, PYTHONDONTWRITEBYTECODE="1")
    assert (done.returncode, done.stdout) == (1, "")
    assert "cannot be written: File too large" in done.stderr
    assert file.read_text() == BY_HAND
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("umask", [0, 0o077, 0o277, 0o777])
def test_a_new_file_is_private_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    def masked() -> None:
        os.umask(umask)

    home = tmp_path / "home"
    assert process(home, "policy", "init", preexec=masked, PYTHONDONTWRITEBYTECODE="1").returncode == 0
    assert stat.S_IMODE((home / "policy.toml").stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == 0o700


@pytest.mark.parametrize("argv", [["init"], ["set", "--tool", "x", "5/1m"], ["edit"]])
def test_a_dangling_link_in_a_folder_that_others_may_write_to_is_not_followed(tmp_path: Path, argv: list[str]) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    link = shared / "policy.toml"
    link.symlink_to(tmp_path / "target")
    done = mcpguard(tmp_path, "policy", *argv, "--policy", str(link), EDITOR="true")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{link}: cannot be written: a link to a missing file, in a folder that others may write to" in done.stderr
    assert list(tmp_path.iterdir()) == [shared]


def test_check_warns_of_files_that_other_accounts_may_change(tmp_path: Path, file: Path) -> None:
    assert "may change" not in mcpguard(tmp_path, "policy", "check").stdout
    file.chmod(0o666)
    done = mcpguard(tmp_path, "policy", "check")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"warning: other accounts may change {file}: {file} may be written to by everybody\n" in done.stdout
    assert len(json.loads(mcpguard(tmp_path, "policy", "check", "--json").stdout)["warnings"]) == 1
    (tmp_path / "config.toml").touch()
    (tmp_path / "config.toml").chmod(0o666)
    assert mcpguard(tmp_path, "policy", "check").stdout.count("may change") == 2
    assert mcpguard(tmp_path, "policy", "check", str(file)).stdout.count("may change") == 2


def test_concurrent_edits_are_all_kept(tmp_path: Path) -> None:
    tools = [f"tool_{number}" for number in range(8)]
    argv = [command("policy", "set", "--tool", tool, "5/1m") for tool in tools]
    running = [subprocess.Popen(one, env=environment(tmp_path), stdout=subprocess.DEVNULL) for one in argv]
    assert [process.wait(DEADLINE_S) for process in running] == [0] * len(tools)
    texts = {rule.text for rule in parse((tmp_path / "policy.toml").read_text()).rules}
    assert {f"tool={tool}" for tool in tools} <= texts
    assert len(texts) == 4 + len(tools)


def test_set_warns_of_a_rule_that_can_never_admit(tmp_path: Path) -> None:
    assert mcpguard(tmp_path, "policy", "set", "--tool", "x", "deny").stderr == ""
    done = mcpguard(tmp_path, "policy", "set", "--user", "*", "--tool", "x", "5/1m")
    assert done.returncode == 0
    assert done.stderr.startswith("warning: ")
    assert "rule 6 (user=* tool=x) can never admit" in done.stderr


def test_set_of_an_equal_rule_says_unchanged_and_writes_nothing(tmp_path: Path, file: Path) -> None:
    stamp = file.stat().st_mtime_ns
    done = mcpguard(tmp_path, "policy", "set", "--user", "*", "--tool", "search", "100/1h")
    assert done.stdout.splitlines()[0] == f"{file}: rule 1 is unchanged"
    assert (file.read_text(), file.stat().st_mtime_ns) == (BY_HAND, stamp)


def test_set_observe_makes_one_rule_report_only_and_set_enforce_ends_that(tmp_path: Path, file: Path) -> None:
    done = mcpguard(tmp_path, "policy", "set", "--observe", "--tool", "report", "9/1m")
    assert done.stdout.splitlines() == [
        f"{file}: changed rule 2 (it was 5/1m and enforced)",
        "All users together may call report 9 times a minute (reported only, not denied).",
    ]
    assert file.read_text() == BY_HAND.replace('[ "5/1m" ]', '"9/1m"').replace(
        "# Reports\n[[rule]]\n", '# Reports\n[[rule]]\nmode = "observe"\n'
    )
    done = mcpguard(tmp_path, "policy", "set", "--tool", "report", "9/1m")  # without an option the mode stays
    assert "rule 2 is unchanged" in done.stdout
    done = mcpguard(tmp_path, "policy", "set", "--enforce", "--tool", "report", "9/1m")
    assert "changed rule 2 (it was in observe mode)" in done.stdout
    assert [rule.observe for rule in parse(file.read_text()).rules] == [False, False]
    mcpguard(tmp_path, "policy", "set", "--enforce", "--tool", "new", "9/1m")
    mcpguard(tmp_path, "policy", "set", "--observe", "--tool", "newer", "9/1m")
    assert file.read_text().endswith(
        'tool = "new"\nlimit = "9/1m"\n\n[[rule]]\ntool = "newer"\nlimit = "9/1m"\nmode = "observe"\n'
    )


def test_mode_changes_the_mode_and_keeps_every_comment(tmp_path: Path, file: Path) -> None:
    done = mcpguard(tmp_path, "policy", "mode", "observe")
    assert done.returncode == 0
    assert done.stdout.splitlines()[0] == f"{file}: mode: observe (it was enforce)"
    assert file.read_text() == BY_HAND.replace('mode = "enforce"', 'mode = "observe"')
    assert mcpguard(tmp_path, "policy", "mode", "observe").stdout.splitlines()[0] == f"{file}: mode: observe (unchanged)"
    assert "observe mode, so nothing is denied" in mcpguard(tmp_path, "policy", "set", "--tool", "report", "5/1m").stdout
    assert mcpguard(tmp_path, "policy", "mode", "enforce").stdout == f"{file}: mode: enforce (it was observe)\n"
    assert file.read_text() == BY_HAND


def test_mode_enforce_names_rules_that_still_deny_nothing(tmp_path: Path, file: Path) -> None:
    mcpguard(tmp_path, "policy", "set", "--observe", "--tool", "report", "5/1m")
    said = mcpguard(tmp_path, "policy", "mode", "enforce").stdout.splitlines()
    assert said[1] == "rule 2 (tool=report) has a mode of its own and still denies nothing"


def test_without_a_file_mode_observe_makes_one_with_the_starter_rules(tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    assert mcpguard(tmp_path, "policy", "mode", "enforce").stdout == f"{file}: mode: enforce (unchanged)\n"
    assert not file.exists()
    said = mcpguard(tmp_path, "policy", "mode", "observe").stdout.splitlines()
    assert said[:2] == [
        f"{file}: new file with the 4 starter rules, which were in force without a file",
        f"{file}: mode: observe (it was enforce)",
    ]
    assert parse(file.read_text()).rules == tuple(rule._replace(line=rule.line + 2) for rule in parse(STARTER).rules)
    assert file.read_text().splitlines()[:4] == [*STARTER.splitlines()[:3], 'mode = "observe"']


@pytest.mark.parametrize("mode", ["observe", "enforce"])
def test_the_mode_of_a_missing_file_that_is_named_cannot_be_set(tmp_path: Path, mode: str) -> None:
    file = tmp_path / "typo.toml"
    for named in (
        mcpguard(tmp_path, "policy", "mode", mode, MCPGUARD_POLICY=str(file)),
        mcpguard(tmp_path, "policy", "mode", mode, "--policy", str(file)),
    ):
        assert (named.returncode, named.stdout) == (78, "")
        assert named.stderr.startswith(f"mcpguard: {file}: no such file\nhint: is the name right?")
    assert not file.exists()


def test_set_does_not_say_that_rules_were_in_force_where_a_named_file_was_missing(tmp_path: Path) -> None:
    file = tmp_path / "team.toml"
    done = mcpguard(tmp_path, "policy", "set", "--policy", str(file), "--tool", "a", "5/1m")
    assert done.stdout.startswith(f"{file}: new file with the 4 starter rules\n{file}: added rule 5\n")
    file.unlink()
    done = mcpguard(tmp_path, "policy", "set", "--policy", str(file), "--tool", "a", "--cost", "5")
    assert done.stdout.startswith(f"{file}: new file with the 4 starter rules\n{file}: the cost of tool=a: added\n")


def test_a_star_as_the_agent_is_any_agent(tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    file.write_text('[[rule]]\nagent = "*"\nlimit = "5/1m"\n')
    assert "rule 1 is unchanged" in mcpguard(tmp_path, "policy", "set", "--agent", "*", "5/1m").stdout
    assert "changed rule 1" in mcpguard(tmp_path, "policy", "set", "--agent", "*::*::*", "6/1m").stdout
    said = mcpguard(tmp_path, "policy", "explain", "--agent", "Cursor::background::nightly", "--tool", "search").stdout
    assert "Next call: allowed; then 5 left of 6/1m (rule agent=*::*::*)" in said
    assert mcpguard(tmp_path, "policy", "check").stdout == f"{file}: OK, 1 rule\n"
    assert "removed the rule for agent=*::*::*" in mcpguard(tmp_path, "policy", "unset", "--agent", "*").stdout


BROKEN = """\
[[rule]]
tool  = "search"
limit = "5/100ms"

[[rule]]
tool  = "отчёт"  \t
per\t= ["usr"]
"""


def test_every_error_is_shown_with_its_line_and_a_mark(tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(BROKEN)
    for argv in (["check"], ["show"], ["set", "--tool", "x", "1/1h"], ["mode", "observe"]):
        done = mcpguard(tmp_path, "policy", *argv)
        assert (done.returncode, done.stdout) == (78, "")
        assert (
            done.stderr
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


def test_of_a_long_line_only_the_part_around_the_error_is_shown(tmp_path: Path) -> None:
    wide = "検" * 100
    (tmp_path / "policy.toml").write_text(f'rule = [{{tool = "{wide}", limt = "5/1m", user = "{wide}"}}]\n')
    lines = mcpguard(tmp_path, "policy", "check").stderr.splitlines()
    assert lines[1].startswith("  1 | …")
    assert lines[1].endswith("…")
    columns = sum(2 if char == "検" else 1 for char in lines[6])
    assert columns <= 80
    before = lines[6][: lines[6].index("limt")]
    assert len(lines[7]) - len("limt") == sum(2 if char == "検" else 1 for char in before)
    assert lines[7].endswith(" ^^^^")


def test_the_effort_to_show_an_error_grows_with_its_line_and_not_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = 0

    def counted(cells: list[str]) -> int:
        nonlocal measured
        measured += len(cells)
        return columns(cells)

    columns = _errors._columns
    monkeypatch.setattr(_errors, "_columns", counted)
    rules = "".join([f'{{tool = "a{at}", limit = "5/1m"}}, ' for at in range(1000)])
    line = f'rule = [{rules}{{tool = "b", limit = "x"}}]{" " * 10_000}'
    with pytest.raises(PolicyError) as raised:
        parse(line)
    shown = _errors.lines(raised.value)[1]
    assert shown.endswith('limit = "x"…')
    assert len(shown) <= 80
    assert measured < 2 * len(line)


@pytest.mark.parametrize("columns", [40, 80, 160])
def test_on_a_terminal_the_line_of_an_error_fits_its_width(tmp_path: Path, columns: int) -> None:
    names = ", ".join(f'"role_{at}"' for at in range(40))
    (tmp_path / "policy.toml").write_text(f"[[rule]]\nlimit = 'deny'\nrole = [{names}, 7, {names}]\n")
    status, said = on_terminal(tmp_path, "policy", "check", columns=columns)
    excerpt, mark = [line for line in said.splitlines() if " | " in line]
    assert (status, len(excerpt) <= columns) == (78, True)
    assert excerpt[mark.index("^")] == "7"
    assert len(excerpt) > columns // 2


def test_control_characters_and_tokens_in_a_broken_line_are_not_shown(tmp_path: Path) -> None:
    token = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJl"
    (tmp_path / "policy.toml").write_text(f'rule = [{{user = "\u009b2J", limt = 5}}, {{tol = "{token}"}}]\n')
    said = mcpguard(tmp_path, "policy", "check").stderr
    assert "\u009b" not in said
    assert "eyJ" not in said


def test_check_as_json_has_every_error(tmp_path: Path) -> None:
    file = tmp_path / "policy.toml"
    file.write_text(BROKEN)
    done = mcpguard(tmp_path, "policy", "check", "--json")
    assert (done.returncode, done.stderr) == (78, "")
    found = json.loads(done.stdout)
    assert found["errors"][0] == {
        "line": 3,
        "column": 9,
        "rule": 1,
        "message": "rule 1: limit: '5/100ms' is not a limit",
        "hint": 'did you mean "50/1s"? the shortest window is 1s (s m h d w; m is minutes)',
    }
    assert [one["line"] for one in found.pop("errors")] == [3, 5, 7]
    assert found == {"file": str(file), "starter": False, "rules": None, "warnings": []}
    done = mcpguard(tmp_path, "policy", "check", "--json", "nowhere.toml")
    (error,) = json.loads(done.stdout)["errors"]
    assert (done.returncode, error["line"]) == (78, None)
    assert error["message"].endswith("nowhere.toml: no such file")


def test_check_finds_the_same_in_a_file_that_is_named_by_argument_option_or_variable(tmp_path: Path) -> None:
    file = tmp_path / "team.toml"
    file.write_text(
        '[[rule]]\ntool = "never"\nlimit = ["5/1m", "9000/1h"]\n[[rule]]\nagent = "*::subagnt::*"\nlimit = "1/1m"\n'
    )
    calls(tmp_path, "echo", 1)
    by_argument = mcpguard(tmp_path, "policy", "check", str(file), MCPGUARD_AGENT="::nightly::")
    assert by_argument.stdout.count("warning: ") == 4
    assert (
        by_argument.stdout == mcpguard(tmp_path, "policy", "check", "--policy", str(file), MCPGUARD_AGENT="::nightly::").stdout
    )
    variables = {"MCPGUARD_POLICY": str(file), "MCPGUARD_AGENT": "::nightly::"}
    assert by_argument.stdout == mcpguard(tmp_path, "policy", "check", **variables).stdout
    both = mcpguard(tmp_path, "policy", "check", str(file), "--policy", str(file))
    assert (both.returncode, both.stderr.splitlines()[1]) == (2, "hint: give only one of them")


def test_show_says_that_the_starter_policy_is_in_force(tmp_path: Path) -> None:
    done = mcpguard(tmp_path, "policy", "show")
    assert done.stdout.splitlines()[0] == f"starter policy: no file at {tmp_path / 'policy.toml'}"
    assert "Each user may make 60 calls a minute" in done.stdout
    shown = json.loads(mcpguard(tmp_path, "policy", "show", "--json").stdout)
    assert (shown["starter"], shown["file"], len(shown["rules"])) == (True, None, 4)


def test_show_has_each_rule_in_a_sentence_with_its_limit_and_text(tmp_path: Path, file: Path) -> None:
    done = mcpguard(tmp_path, "policy", "show")
    assert done.stdout == (
        f"policy: {file}\n\n"
        "1. 100/1h  user=* tool=search\n    Each user may call search 100 times an hour.\n"
        "2. 5/1m  tool=report\n    All users together may call report 5 times a minute.\n"
    )


def test_show_as_json_has_every_member(tmp_path: Path, file: Path) -> None:
    file.write_text(BY_HAND.replace("enforce", "observe"))
    shown = json.loads(mcpguard(tmp_path, "policy", "show", "--json").stdout)
    assert (shown["file"], shown["starter"], shown["mode"]) == (str(file), False, "observe")
    assert shown["rules"][1] == {
        "number": 2,
        "overridden_by": [],
        "rule": "tool=report",
        "limit": ["5/1m"],
        "count": "calls",
        "concurrent": None,
        "wait": None,
        "mode": "enforce",
        "axis": "tool",
        "per": ["tool", "server"],
        "line": 12,
        "name": None,
        "sentence": "All users together may call report 5 times a minute.",
    }


def test_show_fits_eighty_columns_and_obeys_no_color(tmp_path: Path, file: Path) -> None:
    mcpguard(tmp_path, "policy", "set", "--user", "*@a-company.example", "--agent", "Claude Code::subagent::Explore", "7/1h")
    mcpguard(tmp_path, "policy", "set", "--tool", "a_name_without_any_place_to_break_" * 4, "10000/1d")
    status, plain = on_terminal(tmp_path, "policy", "show", NO_COLOR="1")
    assert status == 0
    assert "\x1b" not in plain
    assert [line for line in plain.splitlines()[1:] if len(line) > 80] == []
    assert "MEANING" in plain
    assert "\x1b[" in on_terminal(tmp_path, "policy", "show")[1]
    assert "\x1b" not in mcpguard(tmp_path, "policy", "show").stdout


def test_control_characters_in_a_rule_do_not_reach_the_terminal(tmp_path: Path, file: Path) -> None:
    file.write_text('[[rule]]\ntool = "\\u001b]0;owned\\u0007"\nuser = "\\u009b2J"\nname = "\\r"\nlimit = "5/1m"\n')
    _, shown = on_terminal(tmp_path, "policy", "show", NO_COLOR="1")
    assert "\\x1b]0;owned" in shown.replace("\n", "")
    for text in (shown, mcpguard(tmp_path, "policy", "show").stdout, mcpguard(tmp_path, "policy", "show", "--json").stdout):
        assert not {"\x1b", "\x07", "\x9b", "\r"} & set(text)


def test_characters_that_stdout_cannot_encode_are_escaped(tmp_path: Path, file: Path) -> None:
    file.write_text('[[rule]]\ntool = "поиск"\nlimit = "5/1m"\n')
    done = process(tmp_path, "policy", "show", PYTHONIOENCODING="latin-1")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\u043f" in done.stdout


def test_check_says_ok_and_how_many_rules(tmp_path: Path, file: Path) -> None:
    assert mcpguard(tmp_path, "policy", "check").stdout == f"{file}: OK, 2 rules\n"
    other = tmp_path / "other.toml"
    other.write_text('[[rule]]\ntool = "mcp__crm__search"\nlimit = "5/1m"\n')
    done = mcpguard(tmp_path, "policy", "check", str(other))
    assert done.returncode == 0
    first, second = done.stdout.splitlines()
    assert first == f"{other}: OK, 1 rule"
    assert second.startswith("warning: line 1: rule 1 ")
    assert second.endswith('did you mean tool = "search", server = "crm"?')


def test_check_as_json_has_the_rules_and_the_warnings(tmp_path: Path, file: Path) -> None:
    file.write_text('[[rule]]\ntool = "mcp__crm__search"\nlimit = "1/1m"\n')
    found = json.loads(mcpguard(tmp_path, "policy", "check", "--json").stdout)
    (warning,) = found.pop("warnings")
    assert found == {"file": str(file), "starter": False, "rules": 1, "errors": []}
    assert "mcp__crm__search" in warning


def test_check_of_a_missing_file_fails(tmp_path: Path) -> None:
    done = mcpguard(tmp_path, "policy", "check", "nowhere.toml")
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr.startswith(f"mcpguard: {Path('nowhere.toml').absolute()}: no such file\nhint: ")
    assert mcpguard(tmp_path, "policy", "check").stdout.startswith("starter policy (no file at ")


@pytest.mark.parametrize("argv", [["check"], ["show"], ["explain", "--tool", "x"], ["unset", "--tool", "x"]])
def test_the_hint_for_a_missing_policy_file_creates_it(tmp_path: Path, argv: list[str]) -> None:
    file = tmp_path / "our team" / "policy.toml"
    done = mcpguard(tmp_path, "policy", *argv, "--policy", str(file))
    assert (done.returncode, done.stdout) == (78, "")
    first, hint = done.stderr.splitlines()
    assert first == f"mcpguard: {file}: no such file"
    program, *advised = shlex.split(hint.rpartition(": ")[2])
    assert program == "mcpguard"
    assert mcpguard(tmp_path, *advised).returncode == 0
    assert file.read_text() == STARTER


def test_for_a_policy_without_rules_it_says_that_nothing_is_limited(tmp_path: Path, file: Path) -> None:
    said = "no rules: nothing is limited"
    file.write_text("rule = []\n")
    assert mcpguard(tmp_path, "policy", "show").stdout == f"policy: {file}\n\n{said}\n"
    assert on_terminal(tmp_path, "policy", "show") == (0, f"policy: {file}\n\n{said}\n")
    assert mcpguard(tmp_path, "policy", "check").stdout == f"{file}: OK, {said}\n"
    mcpguard(tmp_path, "policy", "set", "--tool", "a", "5/1m")
    mcpguard(tmp_path, "policy", "set", "--tool", "b", "5/1m")
    assert said not in mcpguard(tmp_path, "policy", "unset", "--tool", "a").stdout
    assert mcpguard(tmp_path, "policy", "unset", "--tool", "b").stdout.splitlines()[1:] == [said]


def test_check_warns_of_rules_that_matched_no_call(tmp_path: Path, file: Path) -> None:
    assert "has matched none" not in mcpguard(tmp_path, "policy", "check").stdout
    calls(tmp_path, "report", 1)
    done = mcpguard(tmp_path, "policy", "check")
    assert "rule 1 (user=* tool=search) has matched none of the calls in the audit log" in done.stdout
    assert "rule 2" not in done.stdout


def test_init_writes_the_starter_policy_once(tmp_path: Path) -> None:
    file = tmp_path / "a" / "policy.toml"
    done = mcpguard(tmp_path, "policy", "init", "--policy", str(file))
    assert (done.returncode, done.stdout) == (0, f"{file}: wrote 4 starter rules\n")
    assert file.read_text() == STARTER
    file.write_text(BY_HAND)
    done = mcpguard(tmp_path, "policy", "init", MCPGUARD_POLICY=str(file))
    assert (done.returncode, done.stdout) == (1, "")
    assert "already exists" in done.stderr
    assert file.read_text() == BY_HAND


@pytest.mark.parametrize("option", ["--tool", "--user", "--role", "--name"])
def test_set_refuses_text_that_is_not_utf_8(tmp_path: Path, file: Path, option: str) -> None:
    done = mcpguard(tmp_path, "policy", "set", option, os.fsdecode(b"caf\xe9"), "1/1h")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 2)
    assert done.stderr.startswith(f"mcpguard: {option}: 'caf\\udce9' is not UTF-8")
    assert file.read_text() == BY_HAND


def test_path_prints_the_path(tmp_path: Path) -> None:
    assert mcpguard(tmp_path, "policy", "path").stdout == f"{tmp_path / 'policy.toml'}\n"
    assert mcpguard(tmp_path, "policy", "path", MCPGUARD_POLICY="/a/b.toml").stdout == "/a/b.toml\n"


def test_edit_checks_the_file_after_the_editor(tmp_path: Path, file: Path) -> None:
    done = mcpguard(tmp_path, "policy", "edit", VISUAL="sed -i s/100/200/")
    assert (done.returncode, done.stdout) == (0, f"{file}: OK, 2 rules\n")
    assert file.read_text() == BY_HAND.replace("100", "200")
    assert list(tmp_path.iterdir()) == [file]


SPOIL = 'sed -i s/report\\"/report/'
MEND = 'sed -i s/report$/report\\"/'


def test_without_a_terminal_edit_does_not_save_a_broken_text(tmp_path: Path, file: Path) -> None:
    done = mcpguard(tmp_path, "policy", "edit", VISUAL=SPOIL)
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr.startswith(f"{file}: not saved, because the text has errors\nmcpguard: {file}: line 13: not TOML")
    assert file.read_text() == BY_HAND


@pytest.mark.parametrize(("typed", "saved"), [(b"d\n", False), (b"\x04", False), (b"x\nd\n", False), (b"s\n", True)])
def test_edit_asks_what_to_do_with_a_broken_text(tmp_path: Path, file: Path, typed: bytes, saved: bool) -> None:
    status, said = on_terminal(tmp_path, "policy", "edit", typed=typed, VISUAL=SPOIL)
    assert status == 78
    assert "line 13: not TOML" in said
    assert "Edit again (e), discard the changes (d), or save anyway (s)?" in said
    assert f"{file}: " + ("saved with errors" if saved else "the changes were discarded") in said.replace("\n", "")
    assert (file.read_text() != BY_HAND) is saved
    assert list(tmp_path.iterdir()) == [file]


def test_edit_again_opens_the_same_text(tmp_path: Path, file: Path) -> None:
    editor = tmp_path / "editor"
    editor.write_text(
        f'#!/bin/sh\nif grep -q report\\" "$1"; then {SPOIL} "$1"; else {MEND} "$1"; sed -i s/100/200/ "$1"; fi\n'
    )
    editor.chmod(0o700)
    status, said = on_terminal(tmp_path, "policy", "edit", typed=b"\n", VISUAL=str(editor))
    assert status == 0
    assert said.endswith(f"{file}: OK, 2 rules\n")
    assert file.read_text() == BY_HAND.replace("100", "200")


def test_edit_mends_a_file_that_is_broken(tmp_path: Path, file: Path) -> None:
    file.write_text(BY_HAND.replace('report"', "report"))
    assert mcpguard(tmp_path, "policy", "edit", VISUAL="true").returncode == 78
    assert mcpguard(tmp_path, "policy", "edit", VISUAL=MEND).stdout == f"{file}: OK, 2 rules\n"
    assert file.read_text() == BY_HAND


def test_edit_does_not_overwrite_what_another_process_has_written(tmp_path: Path, file: Path) -> None:
    editor = tmp_path / "editor"
    editor.write_text(f'#!/bin/sh\nsed -i s/100/200/ "$1"\necho "# other" >> {file}\n')
    editor.chmod(0o700)
    done = mcpguard(tmp_path, "policy", "edit", VISUAL=str(editor))
    assert (done.returncode, done.stdout) == (1, "")
    assert "another process has changed it while you edited" in done.stderr
    assert file.read_text() == BY_HAND + "# other\n"
    kept = tmp_path / "policy.toml.edited"
    assert f"your text is in {kept}" in done.stderr
    assert kept.read_text() == BY_HAND.replace("100", "200")


def test_edit_keeps_each_text_that_it_could_not_save(tmp_path: Path, file: Path) -> None:
    editor = tmp_path / "editor"
    editor.write_text(f'#!/bin/sh\ncat {file} > "$1"\necho "# mine" >> "$1"\necho "# other" >> {file}\n')
    editor.chmod(0o700)
    first, second = tmp_path / "policy.toml.edited", tmp_path / "policy.toml.edited.2"
    assert f"your text is in {first}\n" in mcpguard(tmp_path, "policy", "edit", VISUAL=str(editor)).stderr
    text = first.read_text()
    assert f"your text is in {second}\n" in mcpguard(tmp_path, "policy", "edit", VISUAL=str(editor)).stderr
    assert first.read_text() == text
    assert second.read_text() != text


def test_edit_keeps_the_text_if_another_process_removes_the_file(tmp_path: Path, file: Path) -> None:
    editor = tmp_path / "editor"
    editor.write_text(f'#!/bin/sh\nsed -i s/100/200/ "$1"\nrm {file}\n')
    editor.chmod(0o700)
    done = mcpguard(tmp_path, "policy", "edit", VISUAL=str(editor))
    kept = tmp_path / "policy.toml.edited"
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == [
        f"mcpguard: {file}: another process has changed it while you edited",
        f"hint: your text is in {kept}",
    ]
    assert kept.read_text() == BY_HAND.replace("100", "200")
    assert not file.exists()


def test_edit_keeps_the_text_if_the_file_cannot_be_written(tmp_path: Path, file: Path) -> None:
    editor, drafts = tmp_path / "editor", tmp_path / "drafts"
    editor.write_text(f'#!/bin/sh\nsed -i s/100/200/ "$1"\nchmod 500 {tmp_path}\n')
    editor.chmod(0o700)
    drafts.mkdir()
    done = process(tmp_path, "policy", "edit", under=BOUND, VISUAL=str(editor), TMPDIR=str(drafts))
    tmp_path.chmod(0o700)
    assert (done.returncode, done.stdout) == (1, "")
    (kept,) = drafts.glob("*/policy.toml")
    assert done.stderr.splitlines() == [
        f"mcpguard: {file}: cannot be written: Permission denied",
        f"hint: the file is unchanged, and your text is in {kept}",
    ]
    assert (file.read_text(), kept.read_text()) == (BY_HAND, BY_HAND.replace("100", "200"))


def test_edit_opens_no_editor_for_a_file_that_it_could_not_save(tmp_path: Path, file: Path) -> None:
    file.chmod(0o444)
    done = process(tmp_path, "policy", "edit", under=BOUND, VISUAL=f"touch {tmp_path}/opened")
    assert (done.returncode, done.stdout) == (1, "")
    assert "cannot be written: Permission denied" in done.stderr
    assert list(tmp_path.iterdir()) == [file]


def test_edit_says_if_nothing_was_changed(tmp_path: Path, file: Path) -> None:
    assert mcpguard(tmp_path, "policy", "edit", VISUAL="true").stdout == f"{file}: OK, 2 rules (unchanged)\n"


def test_edit_begins_with_the_starter_policy(tmp_path: Path) -> None:
    assert mcpguard(tmp_path, "policy", "edit", VISUAL="", EDITOR="true").returncode == 0
    assert (tmp_path / "policy.toml").read_text() == STARTER


def test_edit_without_an_editor_says_how_to_name_one(tmp_path: Path, file: Path) -> None:
    done = mcpguard(tmp_path, "policy", "edit", VISUAL="no-such-editor")
    assert done.returncode == 1
    assert done.stderr.splitlines()[1] == "hint: set VISUAL or EDITOR to the editor's command"


def test_an_editor_command_that_cannot_be_parsed_is_reported(tmp_path: Path, file: Path) -> None:
    done = mcpguard(tmp_path, "policy", "edit", VISUAL="", EDITOR='"')
    assert (done.returncode, done.stdout) == (1, "")
    first, hint = done.stderr.splitlines()
    assert first == "mcpguard: VISUAL or EDITOR is not a command: No closing quotation"
    assert hint == "hint: close each quotation mark"


def test_a_running_wrapper_obeys_from_its_next_call(tmp_path: Path) -> None:
    with Host(tmp_path, *OBEDIENT, options=ALICE) as host:
        assert "result" in host.call(1, "echo")
        mcpguard(tmp_path, "policy", "set", "--tool", "echo", "deny")
        assert host.call(2, "echo")["error"]["code"] == 403
        mcpguard(tmp_path, "policy", "set", "--tool", "echo", "1/1h")
        assert "result" in host.call(3, "echo")
        assert host.call(4, "echo")["error"]["code"] == 429
        mcpguard(tmp_path, "policy", "unset", "--tool", "echo")
        assert "result" in host.call(5, "echo")
        host.end()


# Caps, cost, errors and waits

BEYOND = """\
wait = "5s"

# How dear reports are
[[cost]]
tool = "report"
cost = 20

[[rule]]
user       = "*"
tool       = "report"
limit      = "5/1m"
concurrent = 2

[[rule]]
user  = "*"
limit = "100/1h"
count = "cost"
wait  = "0s"

[[rule]]
tool  = "sync"
limit = "3/1m"
count = "errors"

[[rule]]
tool  = "poll"
per   = ["user", "arguments"]
concurrent = "unlimited"
"""


def test_show_describes_caps_cost_errors_and_waits(tmp_path: Path, file: Path) -> None:
    file.write_text(BEYOND)
    shown = mcpguard(tmp_path, "policy", "show").stdout
    for line in (
        "wait: 5s (a refused call waits at most this long, if its rule has no wait)\n",
        "1. 5/1m 2-in-flight  user=* tool=report\n",
        "2. 100-units/1h  user=*\n",
        "report costs 20; a refused call never waits.\n",
        "3. 3-errors/1m  tool=sync\n",
        "4. unlimited-in-flight  tool=poll per=user,arguments\n",
        "\nCosts:\n    A call of report takes 20 units of each limit that counts cost.\n",
    ):
        assert line in shown
    found = json.loads(mcpguard(tmp_path, "policy", "show", "--json").stdout)
    assert (found["wait"], found["costs"]) == ("5s", [{"tool": "report", "server": None, "cost": 20, "line": 4}])
    assert [(one["limit"], one["count"], one["concurrent"], one["wait"]) for one in found["rules"]] == [
        (["5/1m"], "calls", 2, None),
        (["100/1h"], "cost", None, "0s"),
        (["3/1m"], "errors", None, None),
        ([], None, "unlimited", None),
    ]
    assert found["rules"][3]["per"] == ["user", "tool", "server", "arguments"]


def test_a_cap_joins_the_limit_of_its_rule_and_each_is_changed_by_itself(tmp_path: Path, file: Path) -> None:
    begin = "Each user may call search"
    for argv, limits, words in (
        (["--concurrent", "2"], "100/1h 2-in-flight", f"changed rule 1 (it was 100/1h)\n{begin} 100 times an hour; at most 2"),
        (["50/1h"], "50/1h 2-in-flight", "changed rule 1 (it was 100/1h 2-in-flight)"),
        (["--concurrent", "3", "--wait", "5s"], "50/1h 3-in-flight", "2-in-flight and without a wait)"),
        (["--wait", "1m", "--concurrent", "3"], "50/1h 3-in-flight", "(it was with a wait of 5s)"),
        (["--concurrent", "3"], "50/1h 3-in-flight", "rule 1 is unchanged"),
        (["60/1h", "--concurrent", "unlimited"], "60/1h unlimited-in-flight", "any number of calls may be in flight"),
    ):
        done = mcpguard(tmp_path, "policy", "set", "--user", "*", "--tool", "search", *argv)
        assert (done.returncode, done.stderr) == (0, "")
        assert words in done.stdout
        assert [rule.limits_text for rule in parse(file.read_text()).rules] == [limits, "5/1m"]


def test_a_limit_that_counts_something_else_is_another_rule(tmp_path: Path, file: Path) -> None:
    for count in ("errors", "cost"):
        done = mcpguard(tmp_path, "policy", "set", "--tool", "report", "--count", count, "3/1m")
        assert f"added rule {len(parse(file.read_text()).rules)}" in done.stdout
    assert [rule.limits_text for rule in parse(file.read_text()).rules] == ["100/1h", "5/1m", "3-errors/1m", "3-units/1m"]
    mcpguard(tmp_path, "policy", "set", "--tool", "report", "--count", "errors", "4/1m")
    assert [rule.limits_text for rule in parse(file.read_text()).rules] == ["100/1h", "5/1m", "4-errors/1m", "3-units/1m"]
    done = mcpguard(tmp_path, "policy", "unset", "--tool", "report")
    assert (done.returncode, done.stdout) == (1, "")
    assert "several rules are for tool=report: 2 (5/1m), 3 (4-errors/1m), 4 (3-units/1m)\nhint: add --count" in done.stderr
    done = mcpguard(tmp_path, "policy", "unset", "--tool", "report", "--count", "errors")
    assert "removed the rule for tool=report (it was 4-errors/1m)" in done.stdout
    assert [rule.limits_text for rule in parse(file.read_text()).rules] == ["100/1h", "5/1m", "3-units/1m"]


def test_arguments_can_be_counted_apart(tmp_path: Path, file: Path) -> None:
    done = mcpguard(tmp_path, "policy", "set", "--user", "*", "--per", "user,arguments", "5/10m")
    assert "calls with different arguments are counted separately." in done.stdout
    assert parse(file.read_text()).rules[2].per_text == "user,arguments"


def test_a_part_of_a_rule_can_be_removed(tmp_path: Path, file: Path) -> None:
    file.write_text(BEYOND)
    unset = ("policy", "unset", "--user", "*", "--tool", "report")
    done = mcpguard(tmp_path, *unset, "--count", "errors")
    assert (done.returncode, "no limit that counts errors for user=* tool=report" in done.stderr) == (1, True)
    done = mcpguard(tmp_path, *unset, "--concurrent")
    assert done.stdout == (
        f"{file}: removed the cap of rule 1 for user=* tool=report (it was 2-in-flight)\n"
        "Each user may call report 5 times a minute.\n"
    )
    assert file.read_text() == BEYOND.replace("concurrent = 2\n", "")
    done = mcpguard(tmp_path, *unset, "--concurrent")
    assert (done.returncode, "no rule with a cap for" in done.stderr) == (1, True)
    file.write_text(BEYOND)
    done = mcpguard(tmp_path, *unset, "--count", "calls")
    assert "removed the limit of rule 1 for user=* tool=report (it was 5/1m)" in done.stdout
    assert file.read_text() == BEYOND.replace('limit      = "5/1m"\n', "")
    done = mcpguard(tmp_path, *unset)
    assert "removed the rule for user=* tool=report (it was 2-in-flight)" in done.stdout


def test_a_cost_is_set_changed_and_removed(tmp_path: Path, file: Path) -> None:
    of = ("--tool", "report", "--server", "crm", "--cost")
    done = mcpguard(tmp_path, "policy", "set", *of, "20")
    assert done.stdout == (
        f"{file}: the cost of tool=report server=crm: added\n"
        "A call of report of crm takes 20 units of each limit that counts cost.\n"
    )
    assert "has no effect, because no rule that counts cost applies to its calls" in done.stderr
    assert file.read_text() == BY_HAND + '\n[[cost]]\ntool = "report"\nserver = "crm"\ncost = 20\n'
    assert "the cost of tool=report server=crm: unchanged" in mcpguard(tmp_path, "policy", "set", *of, "20").stdout
    assert "changed (it was 20)\n" in mcpguard(tmp_path, "policy", "set", *of, "30").stdout
    done = mcpguard(tmp_path, "policy", "set", "--count", "cost", "29/1h")
    assert "never admits such a call, because it costs 30 and the whole limit is 29/1h" in done.stderr
    mcpguard(tmp_path, "policy", "unset", "--count", "cost")
    done = mcpguard(tmp_path, "policy", "unset", *of)
    assert done.stdout == f"{file}: removed the cost of tool=report server=crm (it was 30)\n"
    assert file.read_text() == BY_HAND
    done = mcpguard(tmp_path, "policy", "unset", *of)
    assert (done.returncode, "no cost for tool=report server=crm" in done.stderr) == (1, True)


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        (["set", "--tool", "x"], "missing argument LIMIT..., or --concurrent"),
        (["set", "--tool", "x", "--wait", "5s"], "missing argument LIMIT..., or --concurrent"),
        (["set", "--tool", "x", "--count", "errors", "--concurrent", "2"], "count: no limit that counts errors"),
        (["set", "--concurrent", "0"], "concurrent: 0 is not a number of calls in flight"),
        (["set", "--concurrent", "two"], "concurrent: 'two' is not a number of calls in flight"),
        (["set", "--wait", "5", "5/1m"], "wait: '5' is not a time to wait"),
        (["set", "--wait", "2h", "5/1m"], "wait: '2h' is too long"),
        (["set", "--concurrent", "2", "deny"], "concurrent: this rule denies every call"),
        (["set", "--cost", "0"], "cost: 0 is not a number of units"),
        (["set", "--cost", "x"], "cost: 'x' is not a number of units"),
        (["set", "--cost", "2", "5/1m"], "--cost and a LIMIT exclude each other"),
        (["set", "--cost", "2", "--user", "bob"], "--cost and --user exclude each other"),
        (["set", "--cost", "2", "--observe"], "--cost and --observe or --enforce exclude each other"),
        (["unset", "--cost", "--role", "a"], "--cost and --role exclude each other"),
        (["unset", "--cost", "--concurrent"], "exclude each other"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path: Path, file: Path, argv: list[str], error: str) -> None:
    done = mcpguard(tmp_path, "policy", *argv)
    assert (done.returncode, done.stdout) == (2, "")
    assert error in done.stderr
    assert file.read_text() == BY_HAND
