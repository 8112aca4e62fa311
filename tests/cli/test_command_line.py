"""Errors of command lines: messages, hints and exit statuses."""

import os
import signal
from pathlib import Path

import pytest

from tests.cli.command import mcpguard, process
from tests.end_to_end.host import ROOT, policy, rule


@pytest.mark.parametrize("argv", [[], ["policy"], ["audit"]])
def test_without_a_command_the_help_is_printed_to_stderr(tmp_path: Path, argv: list[str]) -> None:
    done = mcpguard(tmp_path, *argv)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == mcpguard(tmp_path, *argv, "--help").stdout


def test_a_hook_without_a_command_does_not_block_the_call(tmp_path: Path) -> None:
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
def test_an_option_with_one_value_may_not_be_given_twice(tmp_path: Path, argv: list[str]) -> None:
    done = mcpguard(tmp_path, *argv)
    assert (done.returncode, done.stdout) == (2, "")
    first, hint = done.stderr.splitlines()
    assert first.endswith("is given 2 times, but takes one value.")
    assert hint.startswith("hint: ")
    assert hint.endswith(" --help")
    assert list(tmp_path.iterdir()) == []


def test_role_and_scope_may_be_repeated(tmp_path: Path) -> None:
    argv = ["--role", "a", "--role", "b", "--scope", "c", "--scope", "d"]
    assert mcpguard(tmp_path, "policy", "set", *argv, "5/1m").returncode == 0
    assert mcpguard(tmp_path, "policy", "unset", *argv).returncode == 0


def test_line_ends_in_a_name_are_escaped_in_an_error(tmp_path: Path) -> None:
    policy(tmp_path, rule("5/1m", user="x\nhint: run me\u2028\x85", tool="\r") * 2)
    done = mcpguard(tmp_path, "policy", "check")
    assert done.returncode == 78
    first, hint = done.stderr.split("\n")[:-1]
    assert r"user=x\nhint: run me\u2028\x85 tool=\r" in first
    assert hint.startswith("hint: keep one")
    done = mcpguard(tmp_path, "polic\nhint: run me")
    assert done.stderr.split("\n")[0] == r"mcpguard: no such command: polic\nhint: run me"


@pytest.mark.parametrize(
    ("argv", "status"),
    [
        (["policy", "show"], 0),
        (["policy", "check", "nowhere.toml"], 78),
        (["policy", "explain", "--tool", "search"], 0),
        (["audit", "tail"], 0),
        (["reset"], 2),
        (["whoami", "--json"], 0),
    ],
)
def test_a_command_has_the_same_output_and_status_in_a_process_of_its_own(tmp_path: Path, argv: list[str], status: int) -> None:
    apart, here = process(tmp_path, *argv), mcpguard(tmp_path, *argv)
    assert apart.returncode == here.returncode == status
    assert (apart.stdout, apart.stderr) == (here.stdout, here.stderr)


INTERRUPTED = """\
import os, signal, sys

class Interrupted:
    def find_spec(name, path, target):
        if name == os.environ["INTERRUPTED_AT"]:
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Interrupted)
"""
"""A `sitecustomize` module that sends SIGINT just before a module is imported."""


def heed_ctrl_c() -> None:
    """Restore the default action, because a shell ignores SIGINT for background processes."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize(
    ("argv", "module"),
    [
        (["run", "--", "cat"], "mcpguard.cli"),
        (["run", "--", "cat"], "mcpguard.errors"),
        (["run", "--", "cat"], "mcpguard.relay.run"),
        (["policy", "show"], "mcpguard.cli"),
        (["policy", "show"], "mcpguard.run_options"),
        (["policy", "show"], "click"),
        (["policy", "show"], "mcpguard.cli.policy"),
        (["audit", "tail"], "mcpguard.cli.audit"),
    ],
)
def test_ctrl_c_while_modules_are_loaded_ends_the_process_without_output(tmp_path: Path, argv: list[str], module: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTED)
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = process(tmp_path, *argv, preexec=heed_ctrl_c, PYTHONPATH=path, INTERRUPTED_AT=module)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")
