"""`mcpguard policy`: what all of its commands have in common, and those that are not in a file of their own."""

import shlex
from pathlib import Path

import pytest

from mcpguard.policy.parse import STARTER, parse
from tests.cli.command import ALICE, BOUND, OBEDIENT, mcpguard, process
from tests.end_to_end.host import Host
from tests.policy.test_editing import BY_HAND


@pytest.mark.posix
@pytest.mark.parametrize("argv", [["set", "--tool", "x", "5/1m"], ["unset", "--tool", "x"], ["check"], ["show"], ["edit"]])
def test_a_folder_in_place_of_the_file_is_reported(tmp_path: Path, argv: list[str]) -> None:
    (tmp_path / "policy.toml").mkdir()
    done = mcpguard(tmp_path, "policy", *argv, EDITOR="true")
    assert (done.returncode, done.stdout) == (78, "")
    assert "cannot be read: Is a directory\nhint: name a TOML file that this account may read\n" in done.stderr
    assert len(done.stderr.splitlines()) == 2


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


def test_mode_changes_the_mode_and_keeps_every_comment(tmp_path: Path, file: Path) -> None:
    done = mcpguard(tmp_path, "policy", "mode", "observe")
    assert done.returncode == 0
    assert done.stdout.splitlines()[0] == f"{file}: mode: observe (it was enforce)"
    assert file.read_text("utf-8") == BY_HAND.replace('mode = "enforce"', 'mode = "observe"')
    assert mcpguard(tmp_path, "policy", "mode", "observe").stdout.splitlines()[0] == f"{file}: mode: observe (unchanged)"
    assert "observe mode, so nothing is denied" in mcpguard(tmp_path, "policy", "set", "--tool", "report", "5/1m").stdout
    assert mcpguard(tmp_path, "policy", "mode", "enforce").stdout == f"{file}: mode: enforce (it was observe)\n"
    assert file.read_text("utf-8") == BY_HAND


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
    assert parse(file.read_text("utf-8")).rules == tuple(rule._replace(line=rule.line + 2) for rule in parse(STARTER).rules)
    assert file.read_text("utf-8").splitlines()[:5] == [*STARTER.splitlines()[:4], 'mode = "observe"']


@pytest.mark.parametrize("mode", ["observe", "enforce"])
def test_the_mode_of_a_missing_file_that_is_named_cannot_be_set(tmp_path: Path, mode: str) -> None:
    file = tmp_path / "typo.toml"
    for named in (
        mcpguard(tmp_path, "policy", "mode", mode, MCPGUARD_POLICY=str(file)),
        mcpguard(tmp_path, "policy", "mode", mode, "--policy", str(file)),
    ):
        assert (named.returncode, named.stdout) == (78, "")
        assert named.stderr.startswith(f"mcpguard: {file}: no such file\nhint: correct the name, or make that file:")
    assert not file.exists()


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
    assert file.read_text("utf-8") == STARTER


def test_init_writes_the_starter_policy_once(tmp_path: Path) -> None:
    file = tmp_path / "a" / "policy.toml"
    done = mcpguard(tmp_path, "policy", "init", "--policy", str(file))
    assert (done.returncode, done.stdout) == (0, f"{file}: wrote 4 starter rules\n")
    assert file.read_text("utf-8") == STARTER
    file.write_text(BY_HAND, "utf-8")
    done = mcpguard(tmp_path, "policy", "init", MCPGUARD_POLICY=str(file))
    assert (done.returncode, done.stdout) == (1, "")
    assert "already exists" in done.stderr
    assert file.read_text("utf-8") == BY_HAND


def test_path_prints_the_path(tmp_path: Path) -> None:
    assert mcpguard(tmp_path, "policy", "path").stdout == f"{tmp_path / 'policy.toml'}\n"
    assert mcpguard(tmp_path, "policy", "path", MCPGUARD_POLICY="/a/b.toml").stdout == f"{Path('/a/b.toml').absolute()}\n"


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
