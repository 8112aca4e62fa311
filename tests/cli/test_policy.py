"""`mcpguard policy`: what all of its commands have in common, and those that are not in a file of their own."""

import shlex
from pathlib import Path

import pytest

from mcpguard.policy.parse import STARTER, parse
from tests.cli.command import ALICE, BOUND, OBEDIENT, complaint, mcpguard, output, process
from tests.end_to_end.host import Host
from tests.policy.test_editing import BY_HAND


@pytest.mark.posix
@pytest.mark.parametrize("argv", [["set", "--tool", "x", "5/1m"], ["unset", "--tool", "x"], ["check"], ["show"], ["edit"]])
def test_a_folder_in_place_of_the_file_is_reported(tmp_path: Path, argv: list[str]) -> None:
    (tmp_path / "policy.toml").mkdir()
    first, hint = complaint(tmp_path, "policy", *argv, status=78, EDITOR="true").splitlines()
    assert first.endswith("cannot be read: Is a directory")
    assert hint == "hint: name a TOML file that this account may read"


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


@pytest.mark.parametrize("mode", ["observe", "enforce"])
def test_the_mode_of_a_missing_file_that_is_named_cannot_be_set(tmp_path: Path, mode: str) -> None:
    file = tmp_path / "typo.toml"
    by_variable = complaint(tmp_path, "policy", "mode", mode, status=78, MCPGUARD_POLICY=str(file))
    assert by_variable.startswith(f"mcpguard: {file}: no such file\nhint: correct the name, or make that file:")
    assert complaint(tmp_path, "policy", "mode", mode, "--policy", str(file), status=78) == by_variable
    assert not file.exists()


@pytest.mark.parametrize("argv", [["check"], ["show"], ["explain", "--tool", "x"], ["unset", "--tool", "x"]])
def test_the_hint_for_a_missing_policy_file_creates_it(tmp_path: Path, argv: list[str]) -> None:
    file = tmp_path / "our team" / "policy.toml"
    first, hint = complaint(tmp_path, "policy", *argv, "--policy", str(file), status=78).splitlines()
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
    assert mcpguard(tmp_path, "policy", "path").stdout == f"{tmp_path / 'policy.toml'}\n"
    assert mcpguard(tmp_path, "policy", "path", MCPGUARD_POLICY="/a/b.toml").stdout == f"{Path('/a/b.toml').absolute()}\n"


def test_a_running_wrapper_obeys_from_its_next_call(tmp_path: Path) -> None:
    with Host(tmp_path, *OBEDIENT, options=ALICE) as host:
        assert "result" in host.call(1, "echo")
        output(tmp_path, "policy", "set", "--tool", "echo", "deny")
        assert host.call(2, "echo")["error"]["code"] == 403
        output(tmp_path, "policy", "unset", "--tool", "echo")
        assert "result" in host.call(3, "echo")
        host.end()
