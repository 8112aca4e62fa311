import json
import os
import shlex
import shutil
from pathlib import Path

import pytest

from tests.cli.command import BOUND, mcpguard, permissions_bind, process
from tests.clients.installations import impostor
from tests.doctor.checks import doctor, only
from tests.end_to_end.host import policy, rule, script
from tests.links import follows_links

PYTHON, _, SDK = script("on_the_sdk")
SERVER = {"command": PYTHON, "args": [SDK]}
TOOLS = "search_customers, import_customers"


def written(file: Path, **servers: object) -> Path:
    """Write a client's file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"mcpServers": servers}), "utf-8")
    return file


def cursor(home: Path, **servers: object) -> Path:
    return written(home / "account/.cursor/mcp.json", **servers)


def windsurf(home: Path, **servers: object) -> Path:
    return written(home / "account/.codeium/windsurf/mcp_config.json", **servers)


def refusal(home: Path, *argv: str) -> tuple[str, str]:
    """The message and the hint of a command line that is refused."""
    done = mcpguard(home, "doctor", *argv, HOME=str(home / "account"))
    assert (done.returncode, done.stdout) == (2, "")
    first, second = done.stderr.splitlines()
    return first.removeprefix("mcpguard: "), second.removeprefix("hint: ")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_each_clients_file_is_checked(tmp_path: Path) -> None:
    good, broken = cursor(tmp_path, crm=SERVER), windsurf(tmp_path)
    broken.write_text("{", "utf-8")
    checks = doctor(tmp_path, status=1)
    assert only(checks, f"Cursor (user scope), {good}").detail == "0 of 1 server guarded; unguarded: crm"
    assert not only(checks, f"Windsurf (user scope), {broken}").ok


def test_a_server_of_a_client_is_started_by_its_name(tmp_path: Path) -> None:
    policy(tmp_path, rule("7/1h", user="*", server="crm"))
    cursor(tmp_path, crm=SERVER, erp={"command": "no-such-erp"})
    checks = doctor(tmp_path, "--server", "crm")
    assert only(checks, "server").detail.startswith("crm: crm, protocol ")
    assert only(checks, f"tools {TOOLS}").detail == "7/1h by rule 1 (user=* server=crm)"
    assert only(doctor(tmp_path, "--server", "erp", status=1), "server").detail == "cannot run no-such-erp: no such command"


def test_the_options_and_variables_of_a_guarded_entry_are_used(tmp_path: Path) -> None:
    policy(tmp_path, rule("7/1h", user="carol", server="customers"))
    guard = ["run", "--server", "customers", "--user", "carol", "--"]
    program = tmp_path / "mcpguard"
    entry = {"command": str(program), "args": [*guard, PYTHON, SDK], "env": {"MCPGUARD_AGENT": "::api::nightly"}}
    cursor(tmp_path, crm=entry)
    windsurf(tmp_path, crm={**SERVER, "env": entry["env"]})
    checks = doctor(tmp_path, "--server", "crm", status=1)  # 1, because the program mcpguard does not exist
    assert only(checks, "identity").detail.startswith("user carol (--user), agent ")
    assert "agent unknown::api::nightly (MCPGUARD_AGENT)" in only(checks, "identity").detail
    assert only(checks, "server").detail.startswith("customers: ")
    assert only(checks, f"tools {TOOLS}").detail == "7/1h by rule 1 (user=carol server=customers)"


def test_the_arguments_of_an_entry_can_be_pasted_as_they_are(tmp_path: Path) -> None:
    policy(tmp_path, rule("7/1h", user="carol", server="crm"))
    checks = doctor(tmp_path, "run", "--server", "crm", "--user", "carol", "--", PYTHON, SDK)
    assert only(checks, "identity").detail.startswith("user carol (--user), agent ")
    assert only(checks, f"tools {TOOLS}").detail == "7/1h by rule 1 (user=carol server=crm)"


@pytest.mark.parametrize(
    "env", [{"": "x"}, {"A=B": "x"}, {"A": "a\0b"}, pytest.param({"A": "\ud800"}, marks=pytest.mark.posix)]
)
def test_variables_that_no_program_can_have_are_refused(tmp_path: Path, env: dict[str, str]) -> None:
    cursor(tmp_path, crm={**SERVER, "env": env})
    message, hint = refusal(tmp_path, "--server", "crm")
    assert message.startswith("--server: the variables of crm cannot be set: ")
    assert hint == "correct its env in the client's file"


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


def test_a_server_that_only_a_projects_file_names_is_not_started(tmp_path: Path, project: Path) -> None:
    argv = ["-c", f"touch {tmp_path / 'touched'}", "--api-key", "tango-s3cret"]
    written(project / ".mcp.json", crm={"command": "sh", "args": argv})
    given = f"mcpguard doctor --server crm -- {shlex.join(['sh', *argv[:2]])} --api-key '***'"
    for client in ([], ["--client", "claude-code"]):
        assert refusal(tmp_path, *client, "--server", "crm") == (
            f"--server: {project / '.mcp.json'} is a project's file, and doctor starts nothing that it names",
            f"if you trust it, give its command: {given}",
        )
    assert not (tmp_path / "touched").exists()


def test_of_equal_entries_that_of_the_account_is_started_and_not_the_guarded_one_of_a_project(
    tmp_path: Path, project: Path
) -> None:
    cursor(tmp_path, crm=SERVER)
    guard = ["run", "--user", "mallory", "--", PYTHON, SDK]
    written(project / ".mcp.json", crm={"command": "mcpguard", "args": guard})
    nowhere = {"PATH": os.defpath}  # has no mcpguard, which makes the status 1
    checks = doctor(tmp_path, "--server", "crm", status=1, **nowhere)
    assert only(checks, "server").ok
    assert "mallory" not in only(checks, "identity").detail


@pytest.mark.posix
def test_an_entry_whose_mcpguard_others_may_change_is_not_started(tmp_path: Path) -> None:
    public = tmp_path / "public"
    program = impostor(public / "mcpguard", tmp_path / "touched")
    public.chmod(0o777)
    cursor(tmp_path, crm={"command": program, "args": ["run", "--option-of-its-own", "--", PYTHON, SDK]})
    message, _ = refusal(tmp_path, "--server", "crm")
    assert message.startswith(f"--server: crm: other accounts may change its mcpguard {program}: ")
    assert not (tmp_path / "touched").exists()


def test_the_client_whose_server_is_started_can_be_named(tmp_path: Path) -> None:
    cursor(tmp_path, crm=SERVER, erp=SERVER)
    windsurf(tmp_path, crm={"command": "no-such-crm"})
    assert only(doctor(tmp_path, "--client", "cursor", "--server", "crm"), "server").ok
    found = only(doctor(tmp_path, "--client", "windsurf", "--server", "crm", status=1), "server")
    assert found.detail == "cannot run no-such-crm: no such command"
    for argv, message, hint in (
        (["--client", "windsurf", "--server", "erp"], "--server: Windsurf has no server erp with a command", "use one of: crm"),
        (["--client", "curser", "--server", "crm"], "no such client: curser", "did you mean cursor?"),
        (["--client", "cursor"], "--client: it says in which client's file --server is", "add --server NAME, and no command"),
        (
            ["--client", "cursor", "--server", "crm", "--", "npx"],
            "--client: it says in which client's file --server is",
            "add --server NAME, and no command",
        ),
    ):
        assert refusal(tmp_path, *argv) == (message, hint)


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("none", "no client has a server none with a command", "use one of: crm key twice"),
        (
            "crm",
            "Cursor, Windsurf start crm with different commands, folders or variables",
            "name one with --client: cursor windsurf",
        ),
        (
            "twice",
            "Cursor starts twice with different commands, folders or variables",
            "give its command: mcpguard doctor ",
        ),
        ("key", "only the client can fill in ${input:key} {env:A} for key", "give its command: mcpguard doctor "),
    ],
)
def test_a_server_that_cannot_be_started_by_its_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str, hint: str
) -> None:
    key = {"command": "x", "args": ["${input:key}", "$A"], "env": {"A": "{env:A}"}}
    cursor(tmp_path, crm=SERVER, key=key, twice=SERVER, remote={"url": "https://acme.com"})
    cursor(tmp_path / "project", twice={"command": "x"})
    monkeypatch.chdir(tmp_path / "project/account")
    windsurf(tmp_path, crm={**SERVER, "env": {"A": "tango-s3cret"}})
    first, second = refusal(tmp_path, "--server", name)
    assert first == f"--server: {message}"
    assert second.startswith(hint)


def test_the_files_of_the_project_in_the_working_folder_are_checked(tmp_path: Path, project: Path) -> None:
    file = written(project / ".mcp.json", crm=SERVER)
    checks = doctor(tmp_path)
    assert [one.ok for one in checks if str(file) in one.check][:1] == [True]
    (found,) = [one for one in json.loads(mcpguard(tmp_path, "doctor", "--json", HOME=str(tmp_path / "account")).stdout)
                if one["check"] == "servers guarded"]  # fmt: skip
    assert (found["ok"], found["detail"]) == (False, "0 of 1 server guarded")
    assert found["hint"] == f"mcpguard install --project {shlex.quote(str(project))}; or add --allow-unguarded if that is meant"


@pytest.mark.posix
def test_what_a_shell_fills_in_stays_as_it_is_for_clients_that_fill_in_nothing(tmp_path: Path) -> None:
    entry = {"command": "sh", "args": ["-c", f'exec "{PYTHON}" "${{SCRIPT}}"'], "env": {"SCRIPT": SDK}}
    written(tmp_path / "account/.config/Claude/claude_desktop_config.json", crm=entry)
    assert only(doctor(tmp_path, "--server", "crm"), "server").ok
    assert only(doctor(tmp_path, "--server", "crm", SCRIPT="/another"), "server").ok


def test_a_server_whose_variables_only_its_client_reads_from_a_file_is_refused(tmp_path: Path) -> None:
    cursor(tmp_path, crm={**SERVER, "envFile": "${workspaceFolder}/.env"})
    message, hint = refusal(tmp_path, "--server", "crm")
    assert message == "--server: only the client reads the variables of crm from ${workspaceFolder}/.env"
    assert hint.startswith("give its command: mcpguard doctor ")


def test_entries_differ_neither_by_the_order_of_variables_nor_by_a_disabled_one(tmp_path: Path) -> None:
    cursor(tmp_path, crm={**SERVER, "env": {"A": "1", "B": "2"}})
    windsurf(tmp_path, crm={**SERVER, "env": {"B": "2", "A": "1"}})
    written(tmp_path / "account/.lmstudio/mcp.json", crm={"command": "old", "disabled": True})
    assert only(doctor(tmp_path, "--server", "crm"), "server").ok


def test_of_the_servers_that_claude_code_keeps_for_projects_that_of_the_working_folder_counts_and_starts_in_its_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "account/.claude.json"
    file.parent.mkdir()
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        folder.mkdir()
    shutil.copy(SDK, one / "server.py")
    local = {"mcpServers": {"crm": {"command": PYTHON, "args": ["server.py"]}}}
    gone = {"mcpServers": {"crm": {"command": "gone"}}}
    file.write_text(json.dumps({"projects": {str(one): local, str(other): gone}}), "utf-8")
    monkeypatch.chdir(one)
    assert only(doctor(tmp_path, "--server", "crm"), "server").ok
    file.write_text(json.dumps({"projects": {str(one): local}}), "utf-8")
    monkeypatch.chdir(other)
    assert only(doctor(tmp_path, "--server", "crm"), "server").ok


@follows_links
def test_a_home_folder_behind_a_link_is_no_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = cursor(tmp_path, crm=SERVER)
    (tmp_path / "account").rename(tmp_path / "disk")
    (tmp_path / "account").symlink_to("disk")
    monkeypatch.chdir(tmp_path / "account")
    assert [one.check for one in doctor(tmp_path) if "mcp.json" in one.check] == [f"Cursor (user scope), {file}"]
