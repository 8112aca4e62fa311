"""Checks of clients' files for `mcpguard doctor`."""

import json
import re
import sys
import sysconfig
from pathlib import Path

import pytest

from mcpguard import __version__
from mcpguard.clients.discovery import Machine
from mcpguard.doctor import client_files
from mcpguard.doctor.check import Check
from mcpguard.errors import installing

PROGRAM = str(Path(sysconfig.get_path("scripts")) / "mcpguard")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path, {"PATH": "/usr/bin"}, "linux")


def cursor(machine: Machine, **commands: str) -> Path:
    file = machine.home / ".cursor/mcp.json"
    file.parent.mkdir(exist_ok=True)
    entries = {name: {"command": one, "args": ["run", "--", "npx"]} for name, one in commands.items()}
    file.write_text(json.dumps({"mcpServers": entries}))
    return file


def program(path: Path, version: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho mcpguard {version}\n")
    path.chmod(0o755)
    return str(path)


def checks(machine: Machine, project: Path | None = None) -> list[Check]:
    return list(client_files.checks(machine, project))


def test_a_client_that_is_not_found_has_no_check(machine: Machine) -> None:
    assert checks(machine) == []


def test_a_file_whose_servers_start_through_this_mcpguard_is_ok(machine: Machine) -> None:
    file = cursor(machine, a=PROGRAM, b="npx")
    assert checks(machine) == [Check(f"Cursor (user scope), {file}", True, "1 of 2 servers guarded")]


def test_a_file_that_does_not_parse_is_not_ok(machine: Machine) -> None:
    file = cursor(machine)
    file.write_text("{,")
    (check,) = checks(machine)
    assert (check.ok, check.hint) == (False, "fix the file, then run this again")
    assert check.detail.startswith(f"{file}:1:2: ")
    file.write_text("[" * 100_000)
    (check,) = checks(machine)
    assert (check.ok, check.detail, check.hint) == (False, f"{file}: the file is nested too deeply", "correct the file")


def test_a_yaml_file_that_needs_an_extra_has_a_hint_that_installs_it(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ruamel.yaml", None)
    file = machine.home / ".config/goose/config.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("extensions: {}\n")
    (check,) = checks(machine)
    assert (check.ok, check.hint) == (False, installing("yaml"))


def test_a_mcpguard_that_is_missing_is_not_ok(machine: Machine) -> None:
    file = cursor(machine, a="/gone/mcpguard", b="/gone/mcpguard", c=PROGRAM)
    assert checks(machine) == [
        Check(f"Cursor (user scope), {file}", False, "a, b: its mcpguard is missing: /gone/mcpguard", "mcpguard install cursor")
    ]


def test_a_mcpguard_in_a_container_need_not_exist_outside_it(machine: Machine) -> None:
    file = machine.home / "project/.devcontainer.json"
    file.parent.mkdir()
    servers = {"a": {"command": "/in/container/mcpguard", "args": ["run", "--", "npx"]}}
    file.write_text(json.dumps({"customizations": {"vscode": {"mcp": {"servers": servers}}}}))
    assert checks(machine, file.parent) == [Check(f"VS Code (project scope), {file}", True, "1 of 1 server guarded")]


def test_an_entry_whose_options_mcpguard_run_does_not_accept_is_not_ok(machine: Machine) -> None:
    file = machine.home / ".cursor/mcp.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"mcpServers": {"crm": {"command": PROGRAM, "args": ["run", "--agnt", "x", "--", "npx"]}}}))
    (check,) = checks(machine)
    assert (check.ok, check.detail) == (False, "crm: mcpguard run does not accept its options")


def test_a_mcpguard_of_another_version_is_not_ok_and_one_of_the_same_is(machine: Machine) -> None:
    other, same = program(machine.home / "x/mcpguard", "0.0.1"), program(machine.home / "y/mcpguard", __version__)
    mute = program(machine.home / "z/mcpguard", "")
    cursor(machine, a=other, b=same, c=mute)
    first, second = checks(machine)
    assert first.detail == f"a: {other} is mcpguard 0.0.1; this is {__version__}"
    assert first.hint == f"upgrade it, or write {PROGRAM} in its place in the file"
    assert second.detail == f"c: {mute} does not say its version"
    assert second.hint == f"write {PROGRAM} in its place in the file"


def test_who_follows_the_hint_for_another_version_keeps_the_entrys_options(machine: Machine) -> None:
    other = program(machine.home / "x/mcpguard", "0.0.1")
    file = cursor(machine, a=other)
    file.write_text(file.read_text().replace('"run", ', '"run", "--store", "redis://h/0", '))
    (found,) = checks(machine)
    (instead,) = re.findall(r"write (\S+) in its place", found.hint)
    file.write_text(file.read_text().replace(other, instead))
    (found,) = checks(machine)
    assert (found.ok, found.detail) == (True, "1 of 1 server guarded")


def test_a_program_that_came_with_a_project_is_not_run_and_not_ok(machine: Machine) -> None:
    project = machine.home / "project"
    path = program(project / "bin/mcpguard", f"{__version__}; touch {project}/touched")
    (project / ".mcp.json").write_text(json.dumps({"mcpServers": {"a": {"command": path, "args": ["run", "--", "npx"]}}}))
    found = checks(machine, project)
    assert {check.detail for check in found} == {f"a: its mcpguard is a file of the project: {path}"}
    assert not (project / "touched").exists()


def test_the_mcpguard_that_checks_is_ok_though_it_is_in_the_project(machine: Machine) -> None:
    project = machine.home / "work"
    own = project / ".venv/bin/mcpguard"
    own.parent.mkdir(parents=True)
    own.symlink_to(PROGRAM)
    file = cursor(Machine(project, {}, "linux"), a=str(own))
    assert checks(machine, project) == [Check(f"Cursor (project scope), {file}", True, "1 of 1 server guarded")]


def test_a_hook_is_ok_if_its_program_exists(machine: Machine) -> None:
    (machine.home / ".codex").mkdir()
    (machine.home / ".codex/config.toml").write_text("")
    hooks = machine.home / ".codex/hooks.json"
    assert checks(machine) == []

    def hook(command: str) -> Check:
        entry = {"matcher": "mcp__.*", "hooks": [{"type": "command", "command": command}]}
        hooks.write_text(json.dumps({"hooks": {"PreToolUse": [entry]}}))
        (check,) = checks(machine)
        return check

    name = f"Codex (hook), {hooks}"
    assert hook(f"{PROGRAM} hook codex") == Check(name, True, f"{PROGRAM} hook codex")
    gone = "/gone/mcpguard hook codex"
    assert hook(gone) == Check(name, False, f"its mcpguard is missing: {gone}", "mcpguard install codex --hook")
    for command in (f"MCPGUARD_STORE=redis://h/0 {PROGRAM} hook codex", "$TOOLS/mcpguard hook codex"):
        assert hook(command) == Check(name, True, command)
    gone = f"MCPGUARD_STORE=redis://h/0 {gone}"
    assert hook(gone).detail == f"its mcpguard is missing: {gone}"
    hooks.write_text("{")
    (check,) = checks(machine)
    assert (check.check, check.ok) == (name, False)


def test_a_hook_of_a_project_is_mended_in_the_project(machine: Machine) -> None:
    project = machine.home / "my project"
    entry = {"matcher": "mcp__.*", "hooks": [{"type": "command", "command": "/gone/mcpguard hook claude-code"}]}
    (project / ".claude").mkdir(parents=True)
    (project / ".claude/settings.local.json").write_text(json.dumps({"hooks": {"PreToolUse": [entry]}}))
    (project / ".mcp.json").write_text("{}")
    (check,) = checks(machine, project)
    assert check.hint == f"mcpguard install claude-code --project '{project}' --hook"


def test_a_relative_path_of_mcpguard_begins_in_the_project(machine: Machine) -> None:
    project = machine.home / "project"
    brought = program(project / "tools/mcpguard", __version__)
    entry = {"command": "./tools/mcpguard", "args": ["run", "--", "npx"]}
    (project / ".cursor").mkdir()
    (project / ".cursor/mcp.json").write_text(json.dumps({"mcpServers": {"a": entry}}))
    (check,) = checks(machine, project)
    assert check.detail == f"a: its mcpguard is a file of the project: {brought}"
