"""`mcpguard policy set` and `unset`."""

import os
import re
import shlex
from pathlib import Path

import pytest

from mcpguard.policy.parse import STARTER, parse
from tests.cli.command import calls, complaint, mcpguard, output
from tests.end_to_end.host import rule
from tests.policy.test_editing import BY_HAND


def test_the_first_set_writes_the_starter_rules_and_then_its_own(tmp_path: Path) -> None:
    said = output(tmp_path / "new", "policy", "set", "--user", "*", "--tool", "search", "20/1m", "100/1h")
    file = tmp_path / "new" / "policy.toml"
    made = f"{file}: new file with the 4 starter rules, which were in force without a file\n"
    assert said == f"{made}{file}: added rule 5\nEach user may call search 20 times a minute and 100 times an hour.\n"
    assert file.read_text("utf-8") == STARTER + '\n[[rule]]\nuser = "*"\ntool = "search"\nlimit = ["20/1m", "100/1h"]\n'


def test_set_warns_of_a_rule_that_can_never_admit(tmp_path: Path) -> None:
    output(tmp_path, "policy", "set", "--tool", "x", "deny")
    done = mcpguard(tmp_path, "policy", "set", "--user", "*", "--tool", "x", "5/1m")
    assert done.returncode == 0
    assert re.match(r"warning: line 29: rule 6 \(user=\* tool=x\) can never admit", done.stderr)


def test_the_commands_that_drop_a_tighter_rule_name_the_file(tmp_path: Path) -> None:
    file = tmp_path / "our team.toml"
    said = mcpguard(tmp_path, "policy", "set", "--policy", str(file), "--user", "*", "200/1m").stdout
    assert "\nRules 1, 2, 3 and 4 still cap some of these calls more tightly. To drop them:\n" in said
    drop = said.splitlines()[-1].partition("30/1m: mcpguard ")[2]
    assert drop == f"policy unset --policy '{file}' --user '*' --agent '*::api::*'"
    assert "removed the rule" in mcpguard(tmp_path, *shlex.split(drop)).stdout


def test_set_names_the_starter_rules_that_apply_in_place_of_the_new_rule(tmp_path: Path) -> None:
    said = output(tmp_path, "policy", "set", "--user", "*", "--agent", "*", "deny").splitlines()
    assert said[-5] == "Rules 1, 2, 3 and 4 apply in its place to calls of their agents. To drop them:"
    assert said[-1] == "  30/1m: mcpguard policy unset --user '*' --agent '*::api::*'"


@pytest.mark.parametrize(
    "argv",
    ["--agent '*::interactive::*' 50/1h", "--agent '*::api::*' --tool x --count errors 5/1h", "--agent a::b::c --concurrent 2"],
)
def test_a_limit_for_the_agents_of_all_users_is_warned_of_with_the_command_for_each_user(tmp_path: Path, argv: str) -> None:
    done = mcpguard(tmp_path, "policy", "set", *shlex.split(argv))
    first = done.stderr.splitlines()[0]
    assert first.startswith("warning: rule 5 counts all users together; to count each user separately: mcpguard policy set ")
    assert f" mcpguard policy set --user '*' {argv}; then drop this rule: mcpguard policy unset --agent" in first
    for advised in re.findall(r": mcpguard ([^;]*)", first):
        assert mcpguard(tmp_path, *shlex.split(advised)).returncode == 0
    assert parse((tmp_path / "policy.toml").read_text("utf-8")).rules[-1].selectors["user"] == ("*",)


@pytest.mark.parametrize(
    "argv", ["5/1h --user *", "5/1h --per agent", "5/1h --per none", "5/1h --per session", "5/session", "deny"]
)
def test_a_limit_for_agents_is_not_warned_of_if_its_author_says_what_it_counts(tmp_path: Path, argv: str) -> None:
    output(tmp_path, "policy", "set", "--agent", "*::interactive::*", *argv.split())


def test_a_name_that_no_call_has_is_warned_of_and_set_all_the_same(tmp_path: Path) -> None:
    who = ("--user", "alice@acme.example", "--server", "crm", "--agent", "Claude::subagent::Explore")
    calls(tmp_path, "search_customers", 1, *who)
    none = "warning: none of the newest calls in the audit log has the "
    for argv, warning in (
        ("--tool searh_customers", "tool searh_customers; did you mean search_customers?"),
        ("--tool Search_Customers", "tool Search_Customers; did you mean search_customers?"),
        ("--tool delete_user", "tool delete_user; compare the name with mcpguard audit tail"),
        ("--server cmr", "server cmr; compare the name with mcpguard audit tail"),
        ("--user alic@acme.example", "user alic@acme.example; did you mean alice@acme.example?"),
        ("--user alice@acme.org", "user alice@acme.org; did you mean alice@acme.example?"),
        ("--user * --agent *::*::Explor", "agent Explor; did you mean Explore?"),
        ("--user * --agent Claud::*::*", "client Claud; did you mean Claude?"),
        # Other users, other agents, patterns, and names that calls have
        ("--user bob@acme.example", ""),
        ("--user * --agent Cursor::background::nightly", ""),
        ("--tool searh_*", ""),
        ("--user alice@acme.example --agent Claude::subagent::Explore --tool search_customers", ""),
    ):
        done = mcpguard(tmp_path, "policy", "set", *argv.split(), "1/1h")
        assert done.stderr == (f"{none}{warning}\n" if warning else "")
        assert "added rule" in done.stdout
    of_cost = mcpguard(tmp_path, "policy", "set", "--tool", "searh_customers", "--cost", "2")
    assert "did you mean search_customers?" in of_cost.stderr


def test_set_observe_makes_one_rule_report_only_and_set_enforce_ends_that(tmp_path: Path, file: Path) -> None:
    def put(*argv: str) -> str:
        return mcpguard(tmp_path, "policy", "set", *argv, "9/1m").stdout

    said = f"{file}: changed rule 2 (it was 5/1m and enforced)\nAll users together may call report 9 times a minute"
    assert put("--observe", "--tool", "report") == f"{said} (reported only, not denied).\n"
    assert "rule 2 is unchanged" in put("--tool", "report")  # without an option the mode stays
    assert "changed rule 2 (it was in observe mode)" in put("--enforce", "--tool", "report")


def test_set_does_not_say_that_rules_were_in_force_where_a_named_file_was_missing(tmp_path: Path) -> None:
    file = tmp_path / "team.toml"
    for argv, done in ((["5/1m"], "added rule 5"), (["--cost", "5"], "the cost of tool=a: added")):
        said = mcpguard(tmp_path, "policy", "set", "--policy", str(file), "--tool", "a", *argv).stdout
        assert said.startswith(f"{file}: new file with the 4 starter rules\n{file}: {done}\n")
        file.unlink()


@pytest.mark.posix
@pytest.mark.parametrize("option", ["--tool", "--user", "--role", "--name"])
def test_set_refuses_text_that_is_not_utf_8(tmp_path: Path, file: Path, option: str) -> None:
    first, _ = complaint(tmp_path, "policy", "set", option, os.fsdecode(b"caf\xe9"), "1/1h").splitlines()
    assert first.startswith(f"mcpguard: {option}: 'caf\\udce9' is not UTF-8")
    assert file.read_text("utf-8") == BY_HAND


# Caps, cost, errors and waits

BEYOND = (
    'wait = "5s"\n\n# How dear reports are\n[[cost]]\ntool = "report"\ncost = 20\n\n'
    + rule("5/1m", user="*", tool="report", concurrent=2)
    + rule("100/1h", user="*", count="cost", wait="0s")
    + rule("3/1m", tool="sync", count="errors")
    + rule(tool="poll", per=["user", "arguments"], concurrent="unlimited")
)


OF_REPORT = "of rule 1 for user=* tool=report (it was"


@pytest.mark.parametrize(
    ("part", "line", "said", "missing"),
    [
        ("--concurrent", "concurrent = 2\n", f"cap {OF_REPORT} 2-in-flight)\nEach user may call report 5 ", "rule with a cap"),
        ("--count calls", 'limit = "5/1m"\n', f"limit {OF_REPORT} 5/1m)\nEach user may have ", "limit that counts calls"),
    ],
    ids=["cap", "limit"],
)
def test_a_part_of_a_rule_can_be_removed(tmp_path: Path, file: Path, part: str, line: str, said: str, missing: str) -> None:
    file.write_text(BEYOND, "utf-8")
    unset = ("policy", "unset", "--user", "*", "--tool", "report", *part.split())
    assert output(tmp_path, *unset).startswith(f"{file}: removed the {said}")
    assert file.read_text("utf-8") == BEYOND.replace(line, "")
    assert f"no {missing} for user=* tool=report" in complaint(tmp_path, *unset, status=1)


def test_unset_removes_only_a_rule_that_is_there_and_in_the_mode_that_is_given(tmp_path: Path, file: Path) -> None:
    unset, of = ("policy", "unset", "--tool", "slow"), f"{file}: no rule"
    hint = "hint: see the rules with mcpguard policy show\n"
    assert complaint(tmp_path, *unset, status=1) == f"mcpguard: {of} for tool=slow\n{hint}"
    assert f"{of} in observe mode for tool=slow" in complaint(tmp_path, *unset, "--observe", status=1)
    output(tmp_path, "policy", "set", "--observe", "--tool", "slow", "5/1m")
    assert f"{of} that is enforced for tool=slow" in complaint(tmp_path, *unset, "--enforce", status=1)
    assert output(tmp_path, *unset, "--observe").startswith(f"{file}: removed the rule for tool=slow")
    assert file.read_text("utf-8") == BY_HAND


def test_a_cost_is_set_changed_and_removed(tmp_path: Path, file: Path) -> None:
    of = ("--tool", "report", "--server", "crm", "--cost")
    done = mcpguard(tmp_path, "policy", "set", *of, "20")
    assert done.stdout == (
        f"{file}: the cost of tool=report server=crm: added\n"
        "A call of report of crm takes 20 units of each limit that counts cost.\n"
    )
    assert "has no effect, because no rule that counts cost applies to its calls" in done.stderr
    assert file.read_text("utf-8") == BY_HAND + '\n[[cost]]\ntool = "report"\nserver = "crm"\ncost = 20\n'
    assert "the cost of tool=report server=crm: unchanged" in mcpguard(tmp_path, "policy", "set", *of, "20").stdout
    assert "changed (it was 20)\n" in mcpguard(tmp_path, "policy", "set", *of, "30").stdout
    assert output(tmp_path, "policy", "unset", *of) == f"{file}: removed the cost of tool=report server=crm (it was 30)\n"
    assert file.read_text("utf-8") == BY_HAND
    assert "no cost for tool=report server=crm" in complaint(tmp_path, "policy", "unset", *of, status=1)


@pytest.mark.parametrize(
    ("argv", "error", "hint"),
    [
        ("set --tool x 5/min", "'5/min' is not a limit", 'did you mean "5/1m"?'),
        ("set --agent subagent 5/1m", "does not have three parts", "client::tier::name"),
        ("set --tool x --wait 5s", "missing argument LIMIT..., or --concurrent", "--help"),
        ("set --cost 2 5/1m", "--cost and a LIMIT exclude each other", "only --tool and --server"),
        ("set --cost 2 --observe", "--cost and --observe or --enforce exclude each other", "only --tool and --server"),
        ("unset --cost --role a", "--cost and --role exclude each other", "only --tool and --server"),
        ("unset --cost --concurrent", "exclude each other", "only one"),
        ("unset --cost --tool x --observe", "--cost and --observe or --enforce exclude each other", "only --tool and --server"),
    ],
)
def test_wrong_values_and_options_that_do_not_fit_are_refused_with_a_hint(
    tmp_path: Path, argv: str, error: str, hint: str
) -> None:
    first, second = complaint(tmp_path, "policy", *shlex.split(argv)).splitlines()
    assert error in first
    assert "command line" not in first
    assert second.startswith("hint: ")
    assert hint in second
    assert list(tmp_path.iterdir()) == []
