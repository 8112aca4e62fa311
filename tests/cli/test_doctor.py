"""The output of `mcpguard doctor`. What the checks find is in `tests/doctor`."""

import json
import os
import sys
from pathlib import Path

from mcpguard import __version__
from tests.cli.account import listing
from tests.cli.command import mcpguard, output
from tests.clients.installations import written
from tests.end_to_end.host import policy


def unwrapped(shown: str) -> list[str]:
    """The lines of checks and hints, each on one line."""
    lines: list[str] = []
    for line in shown.splitlines():
        indent = len(line) - len(line.lstrip())
        is_continued = indent == 12 or (indent == 6 and not line.lstrip().startswith("hint: "))
        if is_continued:
            lines[-1] += f" {line.strip()}"
        else:
            lines.append(line)
    return lines


def test_each_check_is_one_line_and_each_failure_has_a_hint(tmp_path: Path) -> None:
    policy(tmp_path, 'mode = "enforce"\n')
    done = mcpguard(tmp_path, "doctor", "--agent", "a::b", PATH=str(tmp_path), HOME=str(tmp_path))
    assert (done.returncode, done.stderr) == (1, "")
    lines = unwrapped(done.stdout)
    assert lines[0] == f"note  PATH: mcpguard {__version__} is not on the PATH"
    assert lines[1].startswith(f"      hint: use its full path in clients: {Path(sys.executable).anchor}")
    assert f"ok    config: no file at {tmp_path / 'config.toml'}: the defaults apply; variables: MCPGUARD_HOME" in lines
    assert f"note  policy: {tmp_path / 'policy.toml'}: no rules, so nothing is limited" in lines
    (failed,) = [at for at, line in enumerate(lines) if line.startswith("FAIL")]
    assert lines[failed].startswith("FAIL  identity: ")
    assert lines[failed + 1].startswith("      hint: ")
    assert lines[-1] == "1 of 7 checks failed"


def test_without_a_failure_the_status_is_0(tmp_path: Path) -> None:
    assert output(tmp_path, "doctor", PATH="", HOME=str(tmp_path)).endswith("\n7 checks, none failed\n")


def test_json_is_a_list_of_objects(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[", "utf-8")
    done = mcpguard(tmp_path, "doctor", "--json", PATH="", HOME=str(tmp_path))
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert [set(one) for one in found] == [{"check", "ok", "detail", "hint"}] * 3
    assert [(one["check"], one["ok"]) for one in found] == [("PATH", True), ("clients", True), ("config", False)]


def test_a_line_of_more_than_80_columns_goes_on_below_its_text(tmp_path: Path) -> None:
    names = [f"customers-{number}" for number in range(9)]
    file = written(tmp_path / ".cursor/mcp.json", listing(**{name: {"command": "npx"} for name in names}))
    out = mcpguard(tmp_path, "doctor", PATH="", HOME=str(tmp_path)).stdout
    lines = out.splitlines()
    assert all(len(line) <= 80 for line in lines if os.sep not in line)
    (at,) = [at for at, line in enumerate(lines) if line.startswith("note  Cursor (user scope),")]
    (end,) = [at for at, line in enumerate(lines) if line == "      hint: mcpguard install cursor"]
    assert all(line.startswith("      ") and line[6] != " " for line in lines[at + 1 : end])
    told = f"Cursor (user scope), {file}: 0 of 9 servers guarded; unguarded: {', '.join(names)}"
    assert f"note  {told}" in unwrapped(out)
