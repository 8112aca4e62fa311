"""Checks of clients' files and hooks for `mcpguard doctor`."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from mcpguard import __version__
from mcpguard.clients.discovery import Machine
from mcpguard.doctor import Check, clients
from mcpguard.errors import installing
from tests.cli.account import GONE, HOOK, PROGRAM
from tests.clients.installations import hooks, impostor, installed, written

NAME = "servers guarded"
NPX, FAR, OFF = {"command": "npx"}, {"url": "https://a.b"}, {"command": "old", "disabled": True}
ONE_OFF = "not counted: 1 disabled"
MEANT = "; or add --allow-unguarded if that is meant"
INSTEAD = f"write {PROGRAM} in its place in the file"
CLAUDE = f"{HOOK} hook claude-code --enforce"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "home", {"PATH": "/usr/bin"}, "linux")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "my project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def through(program: str) -> dict[str, object]:
    """An entry that starts a server through a mcpguard."""
    return {"command": program, "args": ["run", "--", "npx"]}


def cursor(folder: Path, **servers: object) -> Path:
    """Cursor's file in a folder, whose servers are entries, or the programs through which they start."""
    entries = {name: through(one) if isinstance(one, str) else one for name, one in servers.items()}
    return written(folder / ".cursor/mcp.json", {"mcpServers": entries})


def found(machine: Machine, **options: bool) -> tuple[list[Check], Check]:
    """The checks of files, and that of all servers."""
    *checks, total = clients.checks(machine, **options)
    return checks, total


def checks(machine: Machine) -> list[Check]:
    return found(machine)[0]


def test_without_a_client_there_is_no_check_and_it_says_so(machine: Machine) -> None:
    none, total = found(machine)
    assert (none, total.check, total.is_advice) == ([], "clients", True)
    assert total.detail == "no client with servers is found on this machine"
    assert "mcpguard install" in total.hint


@pytest.mark.parametrize(
    ("servers", "told", "hint"),
    [
        ({"a": PROGRAM, "b": PROGRAM}, "2 of 2 servers guarded", ""),
        ({"a": PROGRAM, "b": NPX, "c": {"command": "uvx"}}, "1 of 3 servers guarded; unguarded: b, c", "install cursor"),
        (
            {"a": PROGRAM, "f": FAR, "off": OFF},
            f"1 of 2 servers guarded; unguarded: f; {ONE_OFF}",
            "install cursor --enforce",
        ),
        ({"off": OFF}, f"no server to guard; {ONE_OFF}", ""),
        ({"a": {"command": "uvx", "args": ["mcpguard-cli", "run", "--", "npx"]}}, "0 of 1 server guarded; not checked: 1", ""),
        ({"a": {"command": "npx", "args": ["-p", 80]}}, "0 of 1 server guarded; unguarded: a", "install cursor"),
    ],
    ids=["all", "some", "remote and disabled", "disabled", "by another program", "not editable"],
)
def test_a_files_servers_are_counted_with_the_mend(machine: Machine, servers: dict[str, Any], told: str, hint: str) -> None:
    file = cursor(machine.home, **servers)
    some, total = found(machine)
    assert some == [Check(f"Cursor (user scope), {file}", True, told, hint and f"mcpguard {hint}")]
    all_told = re.sub("; unguarded: [^;]*", "", told)
    every = hint and f"mcpguard {hint.replace(' cursor', '')}"
    assert total == Check(NAME, not hint, all_told, every and f"{every}{MEANT}")
    assert found(machine, allow_unguarded=True)[1] == Check(NAME, True, all_told, every)


def test_a_file_that_cannot_be_read_is_not_ok(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    file = cursor(machine.home)
    plugin = machine.home / ".claude/plugins/cache/market/crm/1.0/.mcp.json"
    for text, told, hint in (
        ("{,", ":1:2", "fix the file, then run this again"),
        ("[" * 100_000, ": the", "correct the file"),
    ):
        written(file, text)
        (check,) = checks(machine)
        assert (check.ok, check.hint) == (False, hint)
        assert check.detail.startswith(f"{file}{told}")
    file.unlink()
    written(plugin, "{")
    assert [(check.check, check.ok) for check in checks(machine)] == [(f"Claude Code (plugin crm@market), {plugin}", False)]
    written(plugin, {"mcpServers": {"crm": NPX}})
    assert checks(machine)[0].detail == "0 of 1 server guarded; unguarded: plugin:crm:crm"
    plugin.unlink()
    monkeypatch.setitem(sys.modules, "ruamel.yaml", None)
    written(machine.home / ".config/goose/config.yaml", "extensions: {}\n")
    (check,) = checks(machine)
    assert (check.ok, check.hint) == (False, installing("yaml"))


def test_what_is_wrong_with_a_mcpguard_is_told_of_all_its_servers_and_it_is_not_run(machine: Machine) -> None:
    touched = machine.home / "touched"
    old, same = installed(machine.home / "x", "0.0.1"), installed(machine.home / "y", __version__)
    mute = impostor(machine.home / "z/mcpguard", touched)
    options = {"command": PROGRAM, "args": ["run", "--agnt", "x", "--", "npx"]}
    file = cursor(machine.home, a=GONE, b=GONE, c=PROGRAM, d=old, e=same, f=mute, g=options)
    name = f"Cursor (user scope), {file}"
    assert checks(machine) == [
        Check(name, False, f"a, b: its mcpguard is missing: {GONE}", "mcpguard install cursor"),
        Check(name, False, f"d: {old} is mcpguard 0.0.1; this is {__version__}", f"upgrade it, or {INSTEAD}"),
        Check(name, True, f"f: {mute}, version unknown", f"if it is not {__version__}, {INSTEAD}"),
        Check(name, False, "g: mcpguard run does not accept its options", "compare them with mcpguard run --help"),
    ]
    assert not touched.exists()


def test_each_project_has_a_command_of_its_own_that_guards_its_servers(machine: Machine, project: Path) -> None:
    cursor(machine.home, a=NPX)
    cursor(project, d=NPX)
    hint = f"mcpguard install; mcpguard install --project '{project}'{MEANT}"
    assert found(machine)[1] == Check(NAME, False, "0 of 2 servers guarded", hint)


def test_a_program_that_came_with_a_project_is_not_run_and_not_ok(machine: Machine, project: Path) -> None:
    path = impostor(project / "bin/mcpguard", project / "touched", __version__)
    brought: dict[str, object] = {"a": through(path), "b": through("./bin/mcpguard")}
    written(project / ".mcp.json", {"mcpServers": brought})
    assert found(machine)[1].hint == f"correct the entries that failed a check{MEANT}"
    written(project / ".mcp.json", {"mcpServers": brought | {"c": NPX}})
    some, total = found(machine)
    told = f"its mcpguard is neither this one nor on your PATH, so it may be the project's: {path}"
    unsafe = {(False, f"{server}: {told}", INSTEAD) for server in "ab"}
    assert {(check.ok, check.detail, check.hint) for check in some if not check.ok} == unsafe
    assert {check.detail for check in some if check.ok} == {"0 of 3 servers guarded; unguarded: a, b, c"}
    assert total.detail == "0 of 3 servers guarded"  # though three clients read the file
    assert not (project / "touched").exists()


@pytest.mark.parametrize(
    ("name", "keys", "program", "told", "hint"),
    [
        (
            *(".devcontainer.json", ("customizations", "vscode", "mcp", "servers"), "/in/it/mcpguard"),
            *("is in the container, so it is not checked from here", "run mcpguard doctor in the container"),
        ),
        (".cursor/mcp.json", ("mcpServers",), "${workspaceFolder}/mcpguard", "is: ${workspaceFolder}/mcpguard", INSTEAD),
    ],
    ids=["container", "client"],
)
def test_a_mcpguard_that_only_the_client_or_a_container_knows_is_neither_missing_nor_believed(
    machine: Machine, project: Path, name: str, keys: tuple[str, ...], program: str, told: str, hint: str
) -> None:
    value: dict[str, object] = {"a": through(program)}
    for key in reversed(keys):
        value = {key: value}
    written(project / name, value)
    (unseen, number), total = found(machine)
    assert (unseen.is_advice, unseen.hint, unseen.detail.endswith(told)) == (True, hint, True)
    counted = "0 of 1 server guarded; not checked: 1"
    assert (number.is_advice, number.detail, total) == (False, counted, Check(NAME, True, counted))


def codex_hook(machine: Machine, command: str) -> Check:
    written(machine.home / ".codex/config.toml", "")
    written(machine.home / ".codex/hooks.json", hooks(command))
    (check,) = checks(machine)
    assert check.check == f"Codex (hook), {machine.home / '.codex/hooks.json'}"
    return check


@pytest.mark.parametrize("before", ["", "MCPGUARD_STORE=redis://h/0 "])
def test_a_hook_is_ok_if_its_program_exists_and_is_of_this_version(machine: Machine, before: str) -> None:
    own, gone = f"{before}{HOOK} hook codex", f"{before}{GONE} hook codex"
    check = codex_hook(machine, own)
    assert check == Check(check.check, True, own)
    told = f"{gone}: its mcpguard is missing: {GONE}"
    assert codex_hook(machine, gone) == Check(check.check, False, told, "mcpguard install codex --hook")
    assert codex_hook(machine, f"{gone} --enforce").hint == "mcpguard install codex --enforce"
    assert codex_hook(machine, "$TOOLS/mcpguard hook codex").ok
    assert not codex_hook(machine, f"{installed(machine.home / 'x', '0.0.1')} hook codex").ok
    written(machine.home / ".codex/hooks.json", "{")
    assert [(one.check, one.ok) for one in checks(machine)] == [(check.check, False)]


@pytest.mark.posix
def test_a_hook_of_a_project_whose_mcpguard_is_gone_or_may_be_somebody_elses_is_not_ok(machine: Machine, project: Path) -> None:
    public, touched = machine.home / "public", machine.home / "touched"
    shared = impostor(public / "mcpguard", touched)
    public.chmod(0o777)
    brought = impostor(project / "mcpguard", touched)
    written(project / ".mcp.json", "{}")

    def hook(program: str) -> Check:
        written(project / ".claude/settings.local.json", hooks(f"{program} hook claude-code"))
        (check,) = checks(machine)
        return check

    for program in (shared, brought, f"{public}/gone/mcpguard"):
        assert not hook(program).ok
    assert hook("/gone/mcpguard").hint == f"mcpguard install claude-code --project '{project}' --hook"
    for program in ("$PWD/mcpguard", "uvx mcpguard", f"sh '{brought}'; {PROGRAM}", f"A=$(sh '{brought}') {PROGRAM}"):
        assert hook(program).is_advice
        assert hook(program).detail.startswith(f"{program} hook claude-code: ")
    assert hook(PROGRAM).detail == f"{PROGRAM} hook claude-code"
    assert not touched.exists()


def test_a_deciding_hook_that_its_client_skips_is_not_ok_and_a_client_needs_no_server_for_it(machine: Machine) -> None:
    file = written(machine.home / ".codex/hooks.json", hooks(f"{HOOK} hook codex --enforce", timeout=5))
    told = "Codex skips it, because you have not trusted it, or not since it changed"
    hint = "start a new session, enter /hooks, and trust the hook"
    assert checks(machine) == [Check(f"Codex (hook), {file}", False, told, hint)]
    written(machine.home / ".claude/settings.json", hooks(f"{CLAUDE} --observe"))
    observing = checks(machine)[0]
    assert (observing.ok, observing.detail) == (False, "it denies nothing, because its command says to observe")


def test_the_accounts_hook_is_not_ok_in_a_project_without_hooks_or_with_a_deciding_one(machine: Machine, project: Path) -> None:
    own = written(machine.home / ".claude/settings.json", hooks(CLAUDE))
    name = f"Claude Code (hook), {own}"
    assert checks(machine) == [Check(name, True, CLAUDE)]
    second = written(project / ".claude/settings.local.json", hooks(CLAUDE))
    assert [(one.ok, one.detail) for one in checks(machine) if one.check == name] == [
        (True, CLAUDE),
        (False, f"{second} has a deciding hook, too, so calls may count twice"),
    ]
    written(second, {"disableAllHooks": True})
    told = f"Claude Code skips it, because {second} has disableAllHooks = true"
    assert checks(machine)[1] == Check(name, False, told, "remove that setting")
