"""`mcpguard clients`, and what the shell completes."""

import json
from typing import Any

import pytest

from mcpguard import __version__
from mcpguard.cli import commands
from tests.cli.account import GONE, PROGRAM, Account, listing
from tests.cli.command import output
from tests.cli.test_completion import offered
from tests.clients.installations import impostor, installed


def rows(account: Account, *argv: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(output(account.state, "clients", "--json", *argv, **account.environ()))
    return found


def test_each_server_is_an_object_with_its_client_its_file_and_whether_it_is_guarded(account: Account) -> None:
    file = account.cursor()
    account.install("--server", "crm")
    usual: dict[str, Any] = {"client": "cursor", "file": str(file), "scope": "user", "guarded": False}
    usual |= dict.fromkeys(("project", "plugin", "fix", "mcpguard", "version", "note"))
    crm: dict[str, Any] = {"server": "crm", "command": ["npx", "-y", "@acme/crm"], "state": "guarded"}
    crm |= {"guarded": True, "mcpguard": PROGRAM, "version": __version__}
    bare = {"server": "bare", "command": ["crm-server"], "state": "unguarded", "fix": "mcpguard install cursor"}
    web = {"server": "web", "command": None, "state": "unguarded", "fix": "mcpguard install cursor --enforce", "note": "remote"}
    off = {"server": "off", "command": ["old"], "state": "disabled", "note": "disabled"}
    assert rows(account) == [usual | one for one in (crm, bare, web, off)]


def test_in_a_pipe_each_server_has_a_line(account: Account) -> None:
    file = account.cursor()
    account.install("--server", "crm")
    assert account.run("clients").stdout.splitlines() == [
        f"Cursor (user scope), {file}",
        f"  crm: guarded by mcpguard {__version__}: npx -y @acme/crm",
        "  bare: unguarded (to guard it: mcpguard install cursor): crm-server",
        "  web: unguarded (remote, to guard it: mcpguard install cursor --enforce)",
        "  off: disabled: old",
        "1 of 3 servers guarded; not counted: 1 disabled",
    ]


def test_without_a_client_it_says_so(account: Account) -> None:
    assert account.run("clients").stdout == "no client with servers is found\n"
    assert rows(account) == []


def test_a_mcpguard_that_is_missing_disabled_or_of_another_version_is_told(account: Account) -> None:
    programs = {"gone": GONE, "old": installed(account.home / "old", "0.0.9"), "varies": "${userHome}/mcpguard"}
    servers = {name: {"command": path, "args": ["run", "--", "npx"]} for name, path in programs.items()}
    off = {"command": impostor(account.home / "bin/mcpguard"), "args": ["run", "--", "npx"], "disabled": True}
    account.cursor(listing(**servers, off=off))
    found = [(row["server"], row["guarded"], row["version"], row["note"]) for row in rows(account)]
    assert found[:2] == [("gone", True, None, "missing"), ("old", True, "0.0.9", None)]
    assert found[2:] == [("varies", True, None, "version unknown"), ("off", True, None, "disabled")]
    said = account.run("clients").stdout
    assert f"gone: guarded by {GONE} (missing): npx" in said
    assert "varies: guarded by ${userHome}/mcpguard (version unknown): npx" in said


@pytest.mark.parametrize("argv", [["clients"], ["clients", "--json"]])
def test_secrets_in_a_command_are_not_shown(account: Account, argv: list[str]) -> None:
    account.cursor(listing(crm={"command": "npx", "args": ["--api-key", "s3cret"], "env": {"K": "s3cret"}}))
    shown = account.run(*argv).stdout
    assert "***" in shown
    assert "s3cret" not in shown


def test_a_file_that_cannot_be_read_is_shown_with_its_fault(account: Account) -> None:
    file = account.cursor("{,")
    account.codex()
    first, second = rows(account)[::-1]
    assert (first["server"], second["server"]) == (None, "crm")
    assert first["note"].startswith(f"{file}:1:2: ")
    done = account.run("clients")
    assert done.returncode == 0
    assert f"Cursor (user scope), {file}\n  {file}:1:2: " in done.stdout


def test_the_shell_completes_clients_and_servers_that_are_found(account: Account) -> None:
    def completed(line: str) -> list[str]:
        return offered(account.state, f"mcpguard {line}", **account.environ())

    account.cursor()
    account.codex('[mcp_servers.crm]\ncommand = "a"\n[mcp_servers."my files"]\ncommand = "b"\n')
    assert completed("install ") == ["codex", "cursor"]
    assert completed("uninstall cu") == ["cursor"]
    account.write("home/.gemini/settings.json", "{ damaged")
    assert completed("install --server ") == ["bare", "crm", r"my\ files", "off", "web"]
    assert completed(f"install --project {account.project.as_posix()} --server ") == []
    assert completed("install --project /nowhere --server ") == []


def test_every_client_is_in_the_help_of_install() -> None:
    from mcpguard.clients.catalog import BY_KEY

    command = commands.cli.parts["install"].loaded()
    assert command.help
    listed = command.help.split("Clients: ")[1].split(".\n")[0]
    assert [key.strip() for key in listed.split(",")] == list(BY_KEY)
