"""Servers of clients that `mcpguard doctor` starts by their names, and those that it refuses to start."""

import os
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from mcpguard.doctor.clients import entry_of
from mcpguard.errors import UsageError
from tests.cli.account import Account
from tests.cli.command import BOUND, mcpguard, permissions_bind, process
from tests.clients.installations import impostor, written
from tests.doctor.checks import doctor, only
from tests.end_to_end.host import policy, rule, script
from tests.links import follows_links

PYTHON, _, SDK = script("on_the_sdk")
SERVER = {"command": PYTHON, "args": [SDK]}
TOOLS = "tools search_customers, import_customers"


def cursor(home: Path, **servers: object) -> Path:
    return written(home / "account/.cursor/mcp.json", {"mcpServers": servers})


def windsurf(home: Path, **servers: object) -> None:
    written(home / "account/.codeium/windsurf/mcp_config.json", {"mcpServers": servers})


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the home folder `account`, and a project that is the working folder."""
    account = Account(tmp_path / "unused")
    for name, value in (account.environ() | dict.fromkeys(("HOME", "USERPROFILE"), str(tmp_path / "account"))).items():
        monkeypatch.setenv(name, value)
    for folder in ("account", "project"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path


def started(server: str, client: str | None = None) -> tuple[str, ...]:
    return entry_of(server, os.environ, client).words


def refusal(server: str, client: str | None = None) -> tuple[str, str]:
    """The message and the hint for a server that is not started."""
    with pytest.raises(UsageError) as error:
        entry_of(server, os.environ, client)
    return error.value.message.removeprefix("--server: "), error.value.hint


def test_a_server_of_a_client_is_started_by_its_name_and_its_options_and_variables_are_used(tmp_path: Path) -> None:
    policy(tmp_path, rule("7/1h", user="carol", server="customers"))
    guard = ["run", "--server", "customers", "--user", "carol", "--"]
    variables = {"MCPGUARD_AGENT": "::api::nightly"}
    guarded = {"command": str(tmp_path / "mcpguard"), "args": [*guard, PYTHON, SDK], "env": variables}
    cursor(tmp_path, crm=guarded, erp={"command": "no-such-erp"})
    windsurf(tmp_path, crm={**SERVER, "env": variables})
    checks = doctor(tmp_path, "--server", "crm", status=1)  # 1, because the program mcpguard does not exist
    assert only(checks, "identity").detail.startswith("user carol (--user), agent ")
    assert "agent unknown::api::nightly (MCPGUARD_AGENT)" in only(checks, "identity").detail
    assert only(checks, "server").detail.startswith("customers: crm, protocol ")
    assert only(checks, TOOLS).detail == "7/1h by rule 1 (user=carol server=customers)"
    found = only(doctor(tmp_path, "--server", "erp", status=1), "server")
    assert found.detail == "cannot run no-such-erp: no such command"


def usage_error(home: Path, *argv: str) -> list[str]:
    """The lines that refuse a call of `mcpguard doctor`."""
    done = mcpguard(home, "doctor", *argv, HOME=str(home / "account"))
    assert (done.returncode, done.stdout) == (2, "")
    return done.stderr.splitlines()


@pytest.mark.parametrize("env", [{"": "x"}, {"A=B": "x"}, {"A": "\0b"}, pytest.param({"A": "\ud800"}, marks=pytest.mark.posix)])
def test_variables_that_no_program_can_have_are_refused(tmp_path: Path, env: dict[str, str]) -> None:
    cursor(tmp_path, crm={**SERVER, "env": env})
    message, hint = usage_error(tmp_path, "--server", "crm")
    assert message.startswith("mcpguard: --server: the variables of crm cannot be set: ")
    assert hint == "hint: correct its env in the client's file"


def test_a_client_is_named_with_a_server_and_without_a_command(tmp_path: Path) -> None:
    unknown = usage_error(tmp_path, "--client", "curser", "--server", "crm")
    assert unknown == ["mcpguard: no such client: curser", "hint: did you mean cursor?"]
    for argv in ([], ["--server", "crm", "--", "npx"]):
        assert usage_error(tmp_path, "--client", "cursor", *argv) == [
            "mcpguard: --client: it says in which client's file --server is",
            "hint: add --server NAME, and no command",
        ]


@pytest.mark.posix
def test_a_server_starts_in_the_folder_that_its_entry_names(tmp_path: Path) -> None:
    folder = tmp_path / "crm server"
    folder.mkdir()
    (folder / "server").write_text(f'#!/bin/sh\ntest -f mcpguard.py && exec "{PYTHON}" "{SDK}"\n', "utf-8")
    (folder / "server").chmod(0o755)
    (folder / "mcpguard.py").write_text("raise SystemExit('the wrong mcpguard')", "utf-8")
    cursor(tmp_path, crm={"command": "./server", "cwd": str(folder)}, erp={**SERVER, "cwd": "/gone"})
    assert only(doctor(tmp_path, "--server", "crm"), "server").ok
    found = only(doctor(tmp_path, "--server", "erp", status=1), "server")
    assert (found.detail, found.hint) == ("erp: there is no folder /gone", "correct cwd in the client's file")


@permissions_bind
def test_a_folder_that_may_not_be_looked_into_is_a_failed_check(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    cursor(tmp_path, crm={**SERVER, "cwd": f"{closed}/crm"})
    done = process(tmp_path, "doctor", "--server", "crm", under=BOUND, HOME=str(tmp_path / "account"))
    closed.chmod(0o700)
    assert (done.returncode, done.stderr) == (1, "")
    assert f"FAIL server: crm: there is no folder {closed}/crm hint: " in " ".join(done.stdout.split())


@pytest.mark.parametrize("client", [None, "claude-code"])
def test_a_server_that_only_a_projects_file_names_is_not_started(home: Path, client: str | None) -> None:
    argv = ["-c", "touch it", "--api-key", "tango-s3cret"]
    file = written(home / "project/.mcp.json", {"mcpServers": {"crm": {"command": "sh", "args": argv}}})
    given = f"mcpguard doctor --server crm -- {shlex.join(['sh', *argv[:2]])} --api-key '***'"
    assert refusal("crm", client) == (
        f"{file} is a project's file, and doctor starts nothing that it names",
        f"if you trust it, give its command: {given}",
    )


def test_of_equal_entries_that_of_the_account_is_started_and_not_the_guarded_one_of_a_project(home: Path) -> None:
    cursor(home, crm=SERVER)
    guarded = {"command": "mcpguard", "args": ["run", "--user", "mallory", "--", PYTHON, SDK]}
    written(home / "project/.mcp.json", {"mcpServers": {"crm": guarded}})
    assert started("crm") == (PYTHON, SDK)
    windsurf(home, crm=guarded | {"args": ["run", "--user", "carol", "--", PYTHON, SDK]})
    assert "carol" in started("crm")


@pytest.mark.posix
def test_an_entry_whose_mcpguard_others_may_change_is_not_started(home: Path) -> None:
    program = impostor(home / "public/mcpguard")
    (home / "public").chmod(0o777)
    cursor(home, crm={"command": program, "args": ["run", "--option-of-its-own", "--", PYTHON, SDK]})
    assert refusal("crm")[0].startswith(f"crm: other accounts may change its mcpguard {program}: ")


def test_the_client_whose_server_is_started_can_be_named(home: Path) -> None:
    cursor(home, crm=SERVER, erp=SERVER)
    windsurf(home, crm={"command": "no-such-crm"})
    assert started("crm", "cursor") == (PYTHON, SDK)
    assert started("crm", "windsurf") == ("no-such-crm",)
    assert refusal("erp", "windsurf") == ("Windsurf has no server erp with a command", "use one of: crm")


BY_COMMAND = "give its command: mcpguard doctor --server {} -- COMMAND"


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("none", "no client has a server none with a command", "use one of: crm file key twice"),
        ("crm", "Cursor, Windsurf start crm with {}", "name one with --client: cursor windsurf"),
        ("twice", "Cursor starts twice with {}", BY_COMMAND),
        ("key", "only the client can fill in ${{input:key}} {{env:A}} for key", BY_COMMAND),
        ("file", "only the client reads the variables of file from ${{workspaceFolder}}/.env", BY_COMMAND),
    ],
)
def test_a_server_that_cannot_be_started_by_its_name_is_refused(home: Path, name: str, message: str, hint: str) -> None:
    key = {"command": "x", "args": ["${input:key}", "$A"], "env": {"A": "{env:A}"}}
    env_file = {**SERVER, "envFile": "${workspaceFolder}/.env"}
    cursor(home, crm=SERVER, key=key, twice=SERVER, remote={"url": "https://acme.com"}, file=env_file)
    written(home / "project/.cursor/mcp.json", {"mcpServers": {"twice": {"command": "x"}}})
    windsurf(home, crm={**SERVER, "env": {"A": "tango-s3cret"}})
    assert refusal(name) == (message.format("different commands, folders or variables"), hint.format(name))


@pytest.mark.posix
def test_what_a_shell_fills_in_stays_as_it_is_for_clients_that_fill_in_nothing(tmp_path: Path) -> None:
    entry = {"command": "sh", "args": ["-c", f'exec "{PYTHON}" "${{SCRIPT}}"'], "env": {"SCRIPT": SDK}}
    written(tmp_path / "account/.config/Claude/claude_desktop_config.json", {"mcpServers": {"crm": entry}})
    assert only(doctor(tmp_path, "--server", "crm", SCRIPT="/another"), "server").ok


def test_entries_differ_neither_by_the_order_of_variables_nor_by_a_disabled_one(home: Path) -> None:
    cursor(home, crm={**SERVER, "env": {"A": "1", "B": "2"}})
    windsurf(home, crm={**SERVER, "env": {"B": "2", "A": "1"}})
    written(home / "account/.lmstudio/mcp.json", {"mcpServers": {"crm": {"command": "old", "disabled": True}}})
    assert started("crm") == (PYTHON, SDK)


def test_of_claude_codes_servers_of_projects_the_working_folders_starts(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, other = Path.cwd(), home / "other"
    other.mkdir()
    local: dict[str, Any] = {"mcpServers": {"crm": {"command": PYTHON, "args": ["server.py"]}}}
    gone = {"mcpServers": {"crm": {"command": "gone"}}}
    file = written(home / "account/.claude.json", {"projects": {str(here): local, str(other): gone}})
    assert entry_of("crm", os.environ).cwd == str(here)
    shutil.copy(SDK, here / "server.py")
    written(file, {"projects": {str(here): local}})
    monkeypatch.chdir(other)
    assert entry_of("crm", os.environ).cwd == str(here)
    assert only(doctor(home, "--server", "crm"), "server").ok


@follows_links
def test_a_home_folder_behind_a_link_is_no_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = cursor(tmp_path, crm=SERVER)
    (tmp_path / "account").rename(tmp_path / "disk")
    (tmp_path / "account").symlink_to("disk")
    monkeypatch.chdir(tmp_path / "account")
    assert [one.check for one in doctor(tmp_path) if "mcp.json" in one.check] == [f"Cursor (user scope), {file}"]
