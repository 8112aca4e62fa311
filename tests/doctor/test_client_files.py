"""Checks of clients' files for `mcpguard doctor`."""

import json
import re
import sys
import sysconfig
from pathlib import Path

import pytest

from mcpguard import __version__
from mcpguard.clients import launcher
from mcpguard.clients.discovery import Machine
from mcpguard.doctor.check import Check
from mcpguard.doctor.client_files import Files
from mcpguard.errors import installing
from tests.clients.installations import impostor, installed
from tests.links import follows_links

GONE = Path("/gone/mcpguard").absolute().as_posix()
PROGRAM = str(Path(sysconfig.get_path("scripts")) / launcher.PROGRAM)
MEANT = "; or add --allow-unguarded if that is meant"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path, {"PATH": "/usr/bin"}, "linux")


def written(file: Path, **servers: object) -> Path:
    """Write a client's file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"mcpServers": servers}), "utf-8")
    return file


def through(program: str) -> dict[str, object]:
    """An entry that starts a server through a mcpguard."""
    return {"command": program, "args": ["run", "--", "npx"]}


def cursor(machine: Machine, **commands: str) -> Path:
    return written(machine.home / ".cursor/mcp.json", **{name: through(one) for name, one in commands.items()})


def checks(machine: Machine, project: Path | None = None) -> list[Check]:
    return list(Files(machine).checks(project))


def total(machine: Machine, *projects: Path) -> Check:
    files = Files(machine)
    for project in (None, *projects):
        list(files.checks(project))
    return files.total()


def test_a_client_that_is_not_found_has_no_check(machine: Machine) -> None:
    assert checks(machine) == []


def test_a_file_whose_servers_start_through_this_mcpguard_is_ok(machine: Machine) -> None:
    file = cursor(machine, a=PROGRAM, b=PROGRAM)
    assert checks(machine) == [Check(f"Cursor (user scope), {file}", True, "2 of 2 servers guarded")]


def test_servers_that_are_not_guarded_are_named_with_the_command_that_guards_them(machine: Machine) -> None:
    file = cursor(machine, a=PROGRAM, b="npx", c="uvx")
    told = "1 of 3 servers guarded; unguarded: b, c"
    assert checks(machine) == [Check(f"Cursor (user scope), {file}", True, told, "mcpguard install cursor")]


def test_a_file_that_does_not_parse_is_not_ok(machine: Machine) -> None:
    file = cursor(machine)
    file.write_text("{,", "utf-8")
    (check,) = checks(machine)
    assert (check.ok, check.hint) == (False, "fix the file, then run this again")
    assert check.detail.startswith(f"{file}:1:2: ")
    file.write_text("[" * 100_000, "utf-8")
    (check,) = checks(machine)
    assert (check.ok, check.detail, check.hint) == (False, f"{file}: the file is nested too deeply", "correct the file")


def test_a_yaml_file_that_needs_an_extra_has_a_hint_that_installs_it(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ruamel.yaml", None)
    file = machine.home / ".config/goose/config.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("extensions: {}\n", "utf-8")
    (check,) = checks(machine)
    assert (check.ok, check.hint) == (False, installing("yaml"))


def test_a_mcpguard_that_is_missing_is_not_ok(machine: Machine) -> None:
    file = cursor(machine, a=GONE, b=GONE, c=PROGRAM)
    assert checks(machine) == [
        Check(f"Cursor (user scope), {file}", False, f"a, b: its mcpguard is missing: {GONE}", "mcpguard install cursor")
    ]


def test_a_mcpguard_in_a_container_is_neither_missing_nor_believed(machine: Machine) -> None:
    file = machine.home / "project/.devcontainer.json"
    file.parent.mkdir()
    servers = {"a": through("/in/container/mcpguard")}
    file.write_text(json.dumps({"customizations": {"vscode": {"mcp": {"servers": servers}}}}), "utf-8")
    name = f"VS Code (project scope), {file}"
    told = "a: its mcpguard is in the container, so it is not checked from here"
    assert checks(machine, file.parent) == [
        Check(name, True, told, "run mcpguard doctor in the container"),
        Check(name, True, "0 of 1 server guarded; not checked: 1"),
    ]
    assert total(machine, file.parent) == Check("servers guarded", True, "0 of 1 server guarded; not checked: 1")


def test_an_entry_whose_options_mcpguard_run_does_not_accept_is_not_ok(machine: Machine) -> None:
    written(machine.home / ".cursor/mcp.json", crm={"command": PROGRAM, "args": ["run", "--agnt", "x", "--", "npx"]})
    (check,) = checks(machine)
    assert (check.ok, check.detail) == (False, "crm: mcpguard run does not accept its options")


def test_a_mcpguard_of_another_version_is_not_ok_and_one_of_the_same_is(machine: Machine) -> None:
    other, same = installed(machine.home / "x", "0.0.1"), installed(machine.home / "y", __version__)
    cursor(machine, a=other, b=same)
    (found,) = checks(machine)
    assert (found.ok, found.detail) == (False, f"a: {other} is mcpguard 0.0.1; this is {__version__}")
    assert found.hint == f"upgrade it, or write {PROGRAM} in its place in the file"


def test_a_mcpguard_whose_version_is_unknown_is_noted_and_not_run(machine: Machine) -> None:
    mute = impostor(machine.home / "z/mcpguard", machine.home / "touched")
    cursor(machine, c=mute)
    found, _ = checks(machine)
    assert (found.is_advice, found.detail) == (True, f"c: {mute}, version unknown")
    assert found.hint == f"if it is not {__version__}, write {PROGRAM} in its place in the file"
    assert not (machine.home / "touched").exists()


@pytest.mark.posix
def test_a_program_that_others_may_change_is_not_run_and_guards_nothing(machine: Machine) -> None:
    public = machine.home / "public"
    path = impostor(public / "mcpguard", machine.home / "touched", __version__)
    public.chmod(0o777)
    file = cursor(machine, a=path)
    reason = f"{public} may be written to by everybody"
    found = Check(
        f"Cursor (user scope), {file}",
        False,
        f"a: other accounts may change its mcpguard {path}: {reason}",
        f"write {PROGRAM} in its place in the file",
    )
    assert checks(machine) == [found]
    hint = f"correct the entries that failed a check{MEANT}"
    assert total(machine) == Check("servers guarded", False, "0 of 1 server guarded", hint)
    cursor(machine, a=path, b="npx")
    note = Check(f"Cursor (user scope), {file}", True, "0 of 2 servers guarded; unguarded: a, b", "mcpguard install cursor")
    assert checks(machine) == [found, note]
    assert total(machine) == Check("servers guarded", False, "0 of 2 servers guarded", f"mcpguard install{MEANT}")
    assert not (machine.home / "touched").exists()


def test_who_follows_the_hint_for_another_version_keeps_the_entrys_options(machine: Machine) -> None:
    other = installed(machine.home / "x", "0.0.1")
    file = cursor(machine, a=other)
    file.write_text(file.read_text("utf-8").replace('"run", ', '"run", "--store", "redis://h/0", '))
    (found,) = checks(machine)
    (instead,) = re.findall(r"write (\S+) in its place", found.hint)
    file.write_text(file.read_text("utf-8").replace(json.dumps(other), json.dumps(instead)))
    (found,) = checks(machine)
    assert (found.ok, found.detail) == (True, "1 of 1 server guarded")


def test_a_program_that_came_with_a_project_is_not_run_and_not_ok(machine: Machine) -> None:
    project = machine.home / "project"
    path = impostor(project / "bin/mcpguard", project / "touched", __version__)
    written(project / ".mcp.json", a=through(path))
    found = checks(machine, project)
    told = f"a: its mcpguard is neither this one nor on your PATH, so it may be the project's: {path}"
    assert {(check.ok, check.detail) for check in found} == {(False, told)}
    assert total(machine, project).detail == "0 of 1 server guarded"  # though four clients read the file
    assert not (project / "touched").exists()


def test_a_variable_of_the_client_in_a_projects_file_makes_no_server_guarded(machine: Machine) -> None:
    project = machine.home / "project"
    written(project / ".cursor/mcp.json", a=through("${workspaceFolder}/mcpguard"))
    found, counted = checks(machine, project)
    assert (found.is_advice, found.detail) == (
        True,
        "a: only the client knows where its mcpguard is: ${workspaceFolder}/mcpguard",
    )
    assert counted.detail == "0 of 1 server guarded; not checked: 1"


@follows_links
def test_the_mcpguard_that_checks_is_ok_though_it_is_in_the_project(machine: Machine) -> None:
    project = machine.home / "work"
    own = project / ".venv/bin/mcpguard"
    own.parent.mkdir(parents=True)
    own.symlink_to(PROGRAM)
    file = cursor(Machine(project, {}, "linux"), a=str(own))
    assert checks(machine, project) == [Check(f"Cursor (project scope), {file}", True, "1 of 1 server guarded")]


def test_a_hook_is_ok_if_its_program_exists(machine: Machine) -> None:
    (machine.home / ".codex").mkdir()
    (machine.home / ".codex/config.toml").write_text("", "utf-8")
    hooks = machine.home / ".codex/hooks.json"
    assert checks(machine) == []

    def hook(command: str) -> Check:
        entry = {"matcher": "mcp__.*", "hooks": [{"type": "command", "command": command}]}
        hooks.write_text(json.dumps({"hooks": {"PreToolUse": [entry]}}), "utf-8")
        (check,) = checks(machine)
        return check

    name = f"Codex (hook), {hooks}"
    own = Path(PROGRAM).as_posix()  # as `install` writes it
    assert hook(f"{own} hook codex") == Check(name, True, f"{own} hook codex")
    gone = f"{GONE} hook codex"
    told = f"its mcpguard is missing: {GONE}"
    assert hook(gone) == Check(name, False, f"{gone}: {told}", "mcpguard install codex --hook")
    for command in (f"MCPGUARD_STORE=redis://h/0 {own} hook codex", "$TOOLS/mcpguard hook codex"):
        assert hook(command) == Check(name, True, command)
    gone = f"MCPGUARD_STORE=redis://h/0 {gone}"
    assert hook(gone).detail == f"{gone}: {told}"
    old = f"{installed(machine.home / 'x', '0.0.1')} hook codex"
    assert not hook(old).ok
    hooks.write_text("{", "utf-8")
    (check,) = checks(machine)
    assert (check.check, check.ok) == (name, False)


def test_a_hook_of_a_project_is_mended_in_the_project(machine: Machine) -> None:
    project = machine.home / "my project"
    entry = {"matcher": "mcp__.*", "hooks": [{"type": "command", "command": "/gone/mcpguard hook claude-code"}]}
    (project / ".claude").mkdir(parents=True)
    (project / ".claude/settings.local.json").write_text(json.dumps({"hooks": {"PreToolUse": [entry]}}), "utf-8")
    (project / ".mcp.json").write_text("{}", "utf-8")
    (check,) = checks(machine, project)
    assert check.hint == f"mcpguard install claude-code --project '{project}' --hook"


def test_a_relative_path_of_mcpguard_begins_in_the_project(machine: Machine) -> None:
    project = machine.home / "project"
    brought = impostor(project / "tools/mcpguard")
    written(project / ".cursor/mcp.json", a=through("./tools/mcpguard"))
    (check,) = checks(machine, project)
    assert check.detail == f"a: its mcpguard is neither this one nor on your PATH, so it may be the project's: {brought}"


@pytest.mark.posix
def test_a_hook_whose_mcpguard_may_be_somebody_elses_is_not_ok(machine: Machine) -> None:
    project, public = machine.home / "project", machine.home / "public"
    shared = impostor(public / "mcpguard", machine.home / "touched")
    public.chmod(0o777)
    brought = impostor(project / "mcpguard", machine.home / "touched")
    (project / ".claude").mkdir()
    (project / ".mcp.json").write_text("{}", "utf-8")
    hooks = project / ".claude/settings.local.json"

    def hook(command: str) -> Check:
        entry = {"matcher": "mcp__.*", "hooks": [{"type": "command", "command": f"{command} hook claude-code"}]}
        hooks.write_text(json.dumps({"hooks": {"PreToolUse": [entry]}}), "utf-8")
        (check,) = checks(machine, project)
        return check

    for program in (shared, brought, f"{public}/gone/mcpguard"):
        assert not hook(program).ok
    for program in ("$PWD/mcpguard", "uvx mcpguard", f"sh {brought}; {PROGRAM}", f"A=$(sh {brought}) {PROGRAM}"):
        assert hook(program).is_advice
        assert hook(program).detail.startswith(f"{program} hook claude-code: ")
    assert hook(PROGRAM) == Check(f"Claude Code (hook), {hooks}", True, f"{PROGRAM} hook claude-code")
    assert not (machine.home / "touched").exists()


def test_without_a_client_the_check_says_so(machine: Machine) -> None:
    found = total(machine)
    assert (found.check, found.is_advice) == ("clients", True)
    assert found.detail == "no client with servers is found on this machine"
    assert "mcpguard install" in found.hint


def test_the_check_of_all_servers_fails_if_none_is_guarded(machine: Machine) -> None:
    cursor(machine, a="npx", b="uvx", c="node")
    assert total(machine) == Check("servers guarded", False, "0 of 3 servers guarded", f"mcpguard install{MEANT}")
    project = machine.home / "my project"
    project.mkdir()
    cursor(Machine(project, {}), d="npx")
    hint = f"mcpguard install; mcpguard install --project '{project}'{MEANT}"
    assert total(machine, project) == Check("servers guarded", False, "0 of 4 servers guarded", hint)


def test_the_check_of_all_servers_fails_if_one_is_unguarded_unless_that_is_meant_and_is_ok_if_none_is(machine: Machine) -> None:
    cursor(machine, a=PROGRAM, b="npx")
    assert total(machine) == Check("servers guarded", False, "1 of 2 servers guarded", f"mcpguard install{MEANT}")
    files = Files(machine)
    list(files.checks())
    assert files.total(allow_unguarded=True) == Check("servers guarded", True, "1 of 2 servers guarded", "mcpguard install")
    cursor(machine, a=PROGRAM, b=PROGRAM)
    assert total(machine) == Check("servers guarded", True, "2 of 2 servers guarded")


def test_disabled_servers_are_told_and_not_counted_and_remote_ones_are_unguarded(machine: Machine) -> None:
    off = {"command": "old", "disabled": True}
    far = {"url": "https://acme.com"}
    file = written(machine.home / ".cursor/mcp.json", a=through(PROGRAM), far=far, away=far, off=off)
    told = "1 of 3 servers guarded; unguarded: far, away; not counted: 1 disabled"
    command = "mcpguard install cursor --enforce"
    assert checks(machine) == [Check(f"Cursor (user scope), {file}", True, told, command)]
    told = "1 of 3 servers guarded; not counted: 1 disabled"
    assert total(machine) == Check("servers guarded", False, told, f"mcpguard install --enforce{MEANT}")
    written(file, off=off)
    assert total(machine) == Check("servers guarded", True, "no server to guard; not counted: 1 disabled")


def test_a_server_that_starts_mcpguard_through_another_program_is_not_checked(machine: Machine) -> None:
    written(machine.home / ".cursor/mcp.json", a={"command": "uvx", "args": ["mcpguard-cli", "run", "--", "npx"]})
    assert total(machine) == Check("servers guarded", True, "0 of 1 server guarded; not checked: 1")


def test_a_server_that_its_client_can_start_and_mcpguard_cannot_edit_is_not_guarded(machine: Machine) -> None:
    written(machine.home / ".cursor/mcp.json", a={"command": "npx", "args": ["-p", 80]})
    assert not total(machine).ok


def test_a_deciding_hook_that_its_client_skips_is_not_ok_and_a_client_needs_no_server_for_it(machine: Machine) -> None:
    hooks = machine.home / ".codex/hooks.json"
    hooks.parent.mkdir()
    program = Path(PROGRAM).as_posix()
    command = f"{program} hook codex --enforce"
    entry = {"matcher": "*", "hooks": [{"type": "command", "command": command, "timeout": 5}]}
    hooks.write_text(json.dumps({"hooks": {"PreToolUse": [entry]}}))
    name = f"Codex (hook), {hooks}"
    told = "Codex skips it, because you have not trusted it, or not since it changed"
    assert checks(machine) == [Check(name, False, told, "start a new session, enter /hooks, and trust the hook")]
    (machine.home / ".codex/config.toml").write_text("features = { hooks = false }\n")
    told = f"Codex skips it, because {machine.home / '.codex/config.toml'} has features.hooks = false"
    assert [check.detail for check in checks(machine) if check.check == name] == [told]
    hooks.write_text(hooks.read_text().replace(program, GONE))
    (found,) = [check for check in checks(machine) if check.check == name]
    assert (found.ok, found.hint) == (False, "mcpguard install codex --enforce")


def test_servers_of_plugins_are_checked_and_a_damaged_file_of_one_is_not_ok(machine: Machine) -> None:
    file = machine.home / ".claude/plugins/cache/market/crm/1.0/.mcp.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"mcpServers": {"crm": {"command": "npx"}}}))
    name, command = f"Claude Code (plugin crm@market), {file}", "mcpguard install claude-code --enforce"
    assert checks(machine) == [Check(name, True, "0 of 1 server guarded; unguarded: plugin:crm:crm", command)]
    assert not total(machine).ok
    file.write_text("{")
    (check,) = checks(machine)
    assert (check.check, check.ok) == (name, False)


def deciding(machine: Machine, name: str, options: str = "", **more: object) -> Path:
    """A file of Claude Code with the deciding hook."""
    file = machine.home / name
    file.parent.mkdir(parents=True, exist_ok=True)
    hook = {"type": "command", "command": f"{Path(PROGRAM).as_posix()} hook claude-code --enforce{options}"} | more
    file.write_text(json.dumps({"hooks": {"PreToolUse": [{"matcher": "*", "hooks": [hook]}]}}), "utf-8")
    return file


@pytest.mark.parametrize(
    ("options", "more", "told"),
    [
        (" --observe", {}, "it denies nothing, because its command says to observe"),
        ("", {"async": True}, "it does not decide each call, because it has async"),
    ],
)
def test_a_deciding_hook_that_lets_calls_pass_is_not_ok(
    machine: Machine, options: str, more: dict[str, object], told: str
) -> None:
    deciding(machine, ".claude/settings.json", options, **more)
    (check,) = checks(machine)
    assert (check.ok, check.detail) == (False, told)
    assert check.hint.startswith("remove ")


def test_in_a_project_that_switches_hooks_off_or_has_another_deciding_one_the_hook_of_the_account_is_not_ok(
    machine: Machine,
) -> None:
    own, project = deciding(machine, ".claude/settings.json"), machine.home / "project"
    assert [check.ok for check in checks(machine, project)] == []
    second = deciding(machine, "project/.claude/settings.local.json")
    _, check = checks(machine, project)
    assert (check.ok, check.check) == (False, f"Claude Code (hook), {own}")
    assert check.detail == f"{second} has a deciding hook, too, so calls may count twice"
    second.write_text('{"disableAllHooks": true}', "utf-8")
    (check,) = checks(machine, project)
    assert (check.ok, check.hint) == (False, "remove that setting")
    assert check.detail == f"Claude Code skips it, because {second} has disableAllHooks = true"
