"""What is said of a command line that cannot be, and how."""

from pathlib import Path

import pytest

from tests.cli.command import mcpguard
from tests.end_to_end.host import policy, rule


@pytest.mark.parametrize("argv", [[], ["policy"], ["audit"]])
def test_without_a_command_there_is_the_help_and_nothing_in_front_of_it(tmp_path: Path, argv: list[str]) -> None:
    done = mcpguard(tmp_path, *argv)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == mcpguard(tmp_path, *argv, "--help").stdout


def test_a_hook_without_a_command_forbids_no_call(tmp_path: Path) -> None:
    done = mcpguard(tmp_path, "hook")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == mcpguard(tmp_path, "hook", "--help").stdout


@pytest.mark.parametrize(
    ("argv", "path"),
    [
        (["policy", "set", "--tool"], "policy set"),
        (["policy", "set", "--tool", "x"], "policy set"),
        (["policy", "sett"], "policy"),
        (["audit", "tail", "--since"], "audit tail"),
        (["audit", "tail", "-n"], "audit tail"),
        (["run", "--server"], "run"),
        (["run", "--denials", "none", "cat"], "run"),
        (["whoami", "--user"], "whoami"),
        (["reset", "--tool"], "reset"),
        (["demo", "--quick"], "demo"),
        (["--quick"], ""),
    ],
)
def test_a_usage_error_hints_at_the_help_of_its_own_command(tmp_path: Path, argv: list[str], path: str) -> None:
    done = mcpguard(tmp_path, *argv)
    assert (done.returncode, done.stdout) == (2, "")
    first, hint = done.stderr.splitlines()
    assert first.startswith("mcpguard: ")
    assert hint.endswith(f"mcpguard {path} --help" if path else "mcpguard --help")


@pytest.mark.parametrize(
    "argv",
    [
        ["policy", "set", "--user", "bob", "--user", "al", "5/1m"],
        ["policy", "set", "--name", "a", "--name", "a", "5/1m"],
        ["policy", "unset", "--tool=a", "--tool", "b"],
        ["policy", "explain", "--tool", "a", "--tool", "b"],
        ["policy", "explain", "--tool", "a", "--token", "--token"],
        ["policy", "show", "--policy", "a", "--policy", "b"],
        ["audit", "tail", "-n", "1", "--lines", "2"],
        ["reset", "--user", "a", "--user", "b", "--yes"],
        ["whoami", "--user", "a", "--user", "b"],
        ["run", "--user", "a", "--user=b", "cat"],
    ],
)
def test_an_option_with_one_value_is_not_given_two(tmp_path: Path, argv: list[str]) -> None:
    done = mcpguard(tmp_path, *argv)
    assert (done.returncode, done.stdout) == (2, "")
    first, hint = done.stderr.splitlines()
    assert first.endswith("is given 2 times, and has one value.")
    assert hint.startswith("hint: ")
    assert hint.endswith(" --help")
    assert list(tmp_path.iterdir()) == []


def test_an_option_that_may_be_repeated_may_be(tmp_path: Path) -> None:
    argv = ["--role", "a", "--role", "b", "--scope", "c", "--scope", "d"]
    assert mcpguard(tmp_path, "policy", "set", *argv, "5/1m").returncode == 0
    assert mcpguard(tmp_path, "policy", "unset", *argv).returncode == 0


def test_a_name_with_line_ends_makes_no_line_of_an_error(tmp_path: Path) -> None:
    policy(tmp_path, rule("5/1m", user="x\nhint: run me\u2028\x85", tool="\r") * 2)
    done = mcpguard(tmp_path, "policy", "check")
    assert done.returncode == 78
    first, hint = done.stderr.split("\n")[:-1]
    assert r"user=x\nhint: run me\u2028\x85 tool=\r" in first
    assert hint.startswith("hint: keep one")
    done = mcpguard(tmp_path, "polic\nhint: run me")
    assert done.stderr.split("\n")[0] == r"mcpguard: no such command: polic\nhint: run me"
