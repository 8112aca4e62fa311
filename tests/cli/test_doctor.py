"""The output of `mcpguard doctor`. What the checks find is in `tests/doctor`."""

import json
from pathlib import Path

import pytest

from mcpguard import __version__
from tests.cli.command import mcpguard, on_terminal
from tests.end_to_end.host import policy


def test_each_check_is_one_line_and_each_failure_has_a_hint(tmp_path: Path) -> None:
    policy(tmp_path, 'mode = "enforce"\n')
    (tmp_path / "bin").mkdir()
    done = mcpguard(tmp_path, "doctor", "--agent", "a::b", PATH=str(tmp_path / "bin"), HOME=str(tmp_path))
    assert (done.returncode, done.stderr) == (1, "")
    lines = done.stdout.splitlines()
    assert lines[0] == f"note  PATH: mcpguard {__version__} is not on the PATH"
    assert lines[1].startswith("      hint: use its full path in clients: /")
    assert f"ok    config: no file at {tmp_path}/config.toml: the defaults apply; variables: MCPGUARD_HOME" in lines
    assert f"note  policy: {tmp_path}/policy.toml: no rules, so nothing is limited" in lines
    (failed,) = [at for at, line in enumerate(lines) if line.startswith("FAIL")]
    assert lines[failed].startswith("FAIL  identity: ")
    assert lines[failed + 1].startswith("      hint: ")
    assert lines[-1] == "1 of 6 checks failed"


def test_without_a_failure_the_status_is_0(tmp_path: Path) -> None:
    done = mcpguard(tmp_path, "doctor", PATH="", HOME=str(tmp_path))
    assert done.returncode == 0
    assert done.stdout.endswith("\n6 checks, none failed\n")


def test_json_is_a_list_of_objects(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[")
    done = mcpguard(tmp_path, "doctor", "--json", PATH="", HOME=str(tmp_path))
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert [set(one) for one in found] == [{"check", "ok", "detail", "hint"}] * 2
    assert [(one["check"], one["ok"]) for one in found] == [("PATH", True), ("config", False)]


@pytest.mark.parametrize("columns", [40, 80, 160])
def test_on_a_terminal_the_states_are_coloured_unless_no_color_is_set(tmp_path: Path, columns: int) -> None:
    (tmp_path / "config.toml").write_text("[")
    status, shown = on_terminal(tmp_path, "doctor", columns=columns, HOME=str(tmp_path))
    assert status == 1
    assert "\x1b[31mFAIL\x1b[0m" in shown
    _, plain = on_terminal(tmp_path, "doctor", columns=columns, HOME=str(tmp_path), NO_COLOR="1")
    assert "\x1b" not in plain
    assert f"FAIL  config: {tmp_path}/config.toml: not TOML" in plain


def test_control_characters_of_a_setting_do_not_reach_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('[identity]\nuser = "a\\u001b[2Jb"\n')
    done = mcpguard(tmp_path, "doctor", PATH="", HOME=str(tmp_path))
    assert "user a\\x1b[2Jb (config.toml)" in done.stdout
