"""`mcpguard install` and `mcpguard uninstall`."""

import errno
import json
import os
import shutil
import sys
import sysconfig
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import pytest

from mcpguard.cli import _clients
from mcpguard.clients import installing, launcher, running
from mcpguard.clients.catalog import BY_KEY
from tests.cli.account import CODEX, CURSOR, Account
from tests.cli.command import BOUND
from tests.clients.test_files import FOLDER

PROGRAM = str(Path(sysconfig.get_path("scripts")) / "mcpguard")


@pytest.fixture(autouse=True)
def _no_client_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine that runs the tests may run Claude Desktop."""
    monkeypatch.setattr(running, "_name", lambda _: "")
    monkeypatch.setattr(running, "_output", lambda *_: "")


def servers(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_bytes())["mcpServers"]
    return found


def guarded(name: str, *command: str, options: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"command": PROGRAM, "args": ["run", "--server", name, *options, "--", *command]}


PLACES = {
    "amazonq.mcp.json": "home/.aws/amazonq/mcp.json",
    "claude.json": "home/.claude.json",
    "claude_code.mcp.json": "project/.mcp.json",
    "claude_desktop_config.json": "home/.config/Claude/claude_desktop_config.json",
    "cline_mcp_settings.json": "home/.cline/mcp.json",
    "codex.config.toml": "home/.codex/config.toml",
    "continue.config.yaml": "home/.continue/config.yaml",
    "copilot.mcp-config.json": "home/.copilot/mcp-config.json",
    "cursor.mcp.json": "home/.cursor/mcp.json",
    "gemini.settings.json": "home/.gemini/settings.json",
    "goose.config.yaml": "home/.config/goose/config.yaml",
    "kiro.mcp.json": "home/.kiro/settings/mcp.json",
    "lmstudio.mcp.json": "home/.lmstudio/mcp.json",
    "opencode.jsonc": "home/.config/opencode/opencode.jsonc",
    "vscode.mcp.json": "home/.config/Code/User/mcp.json",
    "vscode.settings.json": "home/.config/Code/User/settings.json",
    "windsurf.mcp_config.json": "home/.codeium/windsurf/mcp_config.json",
    "zed.settings.json": "home/.config/zed/settings.json",
}
"""Where the files of `tests/clients/files` belong."""


# What it changes


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["LF", "CRLF"])
def test_the_files_of_all_clients_are_guarded_in_one_run_and_given_back_byte_for_byte(account: Account, end: str) -> None:
    assert {file.name for file in FOLDER.iterdir()} >= set(PLACES)
    for name, place in PLACES.items():
        account.write(place, (FOLDER / name).read_bytes().replace(b"\r\n", b"\n").replace(b"\n", end.encode()))
    before = account.files()
    done = account.run("install", "--yes")
    refused = [line.partition(": ")[2] for line in done.stderr.splitlines() if line.startswith("mcpguard: ")]
    assert [line.split(": ")[1] for line in refused] == ["sandboxed", "old-form", "shared", "tagged"]
    assert "sandboxed: its sandbox would keep mcpguard from its counters" in refused[0]
    project = account.run("install", "--yes", "--project", str(account.project))
    assert (done.returncode, project.returncode) == (1, 0)
    after = account.files()
    assert [name for name, content in before.items() if after[name] == content] == []
    everything = json.loads(account.run("clients", "--json").stdout)
    unguarded = {row["server"] for row in everything if row["command"] and not row["note"] and not row["guarded"]}
    assert unguarded == {"sandboxed"}
    assert {row["client"] for row in everything} == set(BY_KEY)
    account.run("install", "--yes")
    assert account.files() == after
    assert account.run("uninstall", "--yes").returncode == 0
    assert account.run("uninstall", "--yes", "--project", str(account.project)).returncode == 0
    assert account.files() == before


def test_install_puts_mcpguard_before_the_commands_of_all_clients_and_uninstall_gives_every_byte_back(account: Account) -> None:
    cursor, codex = account.cursor(), account.codex()
    before = account.files()
    done = account.run("install", "--yes")
    assert done.returncode == 0, done.stderr
    found = servers(cursor)
    assert found["crm"] == guarded("crm", "npx", "-y", "@acme/crm") | {"env": {"CRM_KEY": "sk-secret"}}
    assert found["bare"] == guarded("bare", "crm-server")
    assert found["web"] == {"url": "https://mcp.acme.com/?key=s3cret"}
    assert found["off"] == {"command": "old", "disabled": True}
    toml = codex.read_text()
    assert tomllib.loads(toml)["mcp_servers"]["crm"]["args"][:4] == ["run", "--server", "crm", "--"]
    assert 'model = "gpt-7"  # keep' in toml
    assert account.run("uninstall", "--yes").returncode == 0
    assert account.files() == before


def test_each_file_is_named_with_what_was_done_and_what_was_left_and_why(account: Account) -> None:
    cursor = account.cursor()
    done = account.run("install", "--yes", "cursor")
    assert done.stdout.splitlines()[:5] == [
        f"Cursor (user scope), {cursor}",
        "  crm: guarded",
        "  bare: guarded",
        "  web: not changed (remote: mcpguard guards only servers that the client starts)",
        "  off: not changed (disabled)",
    ]
    assert "  Cursor: switch the server off and on in Cursor's settings, or restart Cursor" in done.stdout
    done = account.run("uninstall", "--yes")
    assert "  crm: not guarded any more" in done.stdout
    assert "  web: not guarded\n" in done.stdout


def test_a_second_install_changes_nothing_and_says_so(account: Account) -> None:
    account.cursor()
    account.codex()
    account.run("install", "--yes")
    before, saved = account.files(), sorted((account.state / "backups").iterdir())
    done = account.run("install")  # it need not ask
    assert done.returncode == 0
    assert "  crm: guarded already" in done.stdout
    assert "take effect" not in done.stdout
    assert account.files() == before
    assert sorted((account.state / "backups").iterdir()) == saved
    account.run("uninstall", "--yes")
    done = account.run("uninstall")
    assert (done.returncode, done.stderr) == (0, "")
    assert "  crm: not guarded" in done.stdout


def test_only_the_named_client_and_the_named_servers_are_changed(account: Account) -> None:
    cursor, codex = account.cursor(), account.codex()
    assert account.run("install", "cursor", "--server", "crm", "--yes").returncode == 0
    assert servers(cursor)["crm"]["command"] == PROGRAM
    assert servers(cursor)["bare"] == {"command": "crm-server"}
    assert codex.read_text() == CODEX
    assert account.run("install", "--server", "crm", "--server", "bare", "--yes").returncode == 0
    assert servers(cursor)["bare"]["command"] == PROGRAM
    assert codex.read_text() != CODEX
    assert account.run("uninstall", "--server", "crm", "--yes").returncode == 0
    assert codex.read_text() == CODEX
    assert servers(cursor)["bare"]["command"] == PROGRAM


def test_uninstall_finds_its_part_after_the_client_has_written_the_file_anew(account: Account) -> None:
    file = account.cursor()
    account.run("install", "--yes")
    content = json.loads(file.read_bytes())
    content["mcpServers"]["new"] = {"command": "other", "args": []}
    file.write_text(json.dumps(content, indent=8, sort_keys=True))
    account.run("uninstall", "--yes")
    wanted = json.loads(CURSOR)
    wanted["mcpServers"]["new"] = {"command": "other", "args": []}
    assert json.loads(file.read_bytes()) == wanted


def test_args_that_were_missing_are_missing_again_and_empty_ones_are_empty_again(account: Account) -> None:
    file = account.cursor('{"mcpServers": {"a": {"command": "a"}, "b": {"command": "b", "args": []}}}\n')
    before = file.read_bytes()
    account.run("install", "--yes")
    account.run("uninstall", "--yes", "--server", "a")
    account.run("uninstall", "--yes", "--server", "b")
    assert file.read_bytes() == before


def test_without_its_record_uninstall_leaves_an_empty_list(account: Account) -> None:
    file = account.cursor('{"mcpServers": {"a": {"command": "a"}}}\n')
    account.run("install", "--yes")
    (account.state / "installed.json").unlink()
    account.run("uninstall", "--yes")
    assert servers(file) == {"a": {"command": "a", "args": []}}


def test_a_record_that_another_install_makes_while_the_user_reads_the_diff_is_kept(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    account.cursor('{"mcpServers": {"a": {"command": "a"}}}\n')
    account.write("home/.codeium/windsurf/mcp_config.json", '{"mcpServers": {"b": {"command": "b"}}}\n')
    before = account.files()
    agreed = _clients._agreed

    def late(*args: Any, **options: Any) -> bool:
        monkeypatch.setattr(_clients, "_agreed", agreed)
        assert account.run("install", "windsurf", "--yes").returncode == 0
        return agreed(*args, **options)

    monkeypatch.setattr(_clients, "_agreed", late)
    assert account.run("install", "cursor", "--yes").returncode == 0
    assert account.run("uninstall", "--yes").returncode == 0
    assert account.files() == before


def test_a_path_that_is_gone_is_mended_and_a_path_of_another_installation_stays(account: Account, tmp_path: Path) -> None:
    gone = "/gone/bin/mcpguard"
    other = account.write("other/mcpguard", "#!/bin/sh\n")
    entry = {"args": ["run", "--server", "crm", "--user", "alice", "--", "npx"], "env": {}}
    varying = "${userHome}/bin/mcpguard"
    commands = {"a": gone, "b": str(other), "c": varying}
    file = account.cursor(json.dumps({"mcpServers": {key: {"command": one, **entry} for key, one in commands.items()}}))
    done = account.run("install", "--yes")
    assert done.returncode == 0
    assert {key: one["command"] for key, one in servers(file).items()} == {"a": PROGRAM, "b": str(other), "c": varying}
    assert all(one["args"] == entry["args"] for one in servers(file).values())
    assert f"  a: its mcpguard is this one now ({gone} is gone)" in done.stdout
    account.run("uninstall", "--yes")
    assert all(one == {"command": "npx", "args": [], "env": {}} for one in servers(file).values())


def test_a_server_behind_another_guard_gets_mcpguard_around_it_with_a_note(account: Account) -> None:
    account.cursor('{"mcpServers": {"a": {"command": "/opt/airlock-mcp", "args": ["npx"]}}}')
    done = account.run("install", "--yes")
    assert "  a: guarded (it also runs through airlock-mcp)" in done.stdout


def test_a_server_of_a_container_is_guarded_with_a_note(account: Account) -> None:
    servers = '{"customizations": {"vscode": {"mcp": {"servers": {"a": {"command": "npx", "args": []}}}}}}'
    account.write("project/.devcontainer/devcontainer.json", servers)
    done = account.run("install", "vscode", "--project", str(account.project), "--yes")
    assert "a: guarded (it starts in the container, where mcpguard must have the same path)" in " ".join(done.stdout.split())


def test_a_path_in_a_container_stays_though_it_does_not_exist_on_the_host(account: Account) -> None:
    servers = '{"a": {"command": "/in/container/mcpguard", "args": ["run", "--", "npx"]}}'
    text = f'{{"customizations": {{"vscode": {{"mcp": {{"servers": {servers}}}}}}}}}'
    file = account.write("project/.devcontainer/devcontainer.json", text)
    done = account.run("install", "--project", str(account.project), "--yes")
    assert (done.returncode, file.read_text()) == (0, text)
    assert "  a: guarded already" in done.stdout


def test_a_variable_of_the_client_stays_as_it_is(account: Account) -> None:
    text = '{"mcpServers": {"a": {"command": "${env:NODE}", "args": ["${workspaceFolder}", "$HOME", "${input:key}"]}}}'
    file = account.cursor(text)
    account.run("install", "--yes")
    assert servers(file)["a"]["args"][4:] == ["${env:NODE}", "${workspaceFolder}", "$HOME", "${input:key}"]


def test_a_link_to_a_file_of_dotfiles_stays_a_link(account: Account) -> None:
    real = account.write("dotfiles/cursor.json", CURSOR)
    link = account.home / ".cursor/mcp.json"
    link.parent.mkdir()
    link.symlink_to(real)
    account.run("install", "--yes")
    assert link.is_symlink()
    assert servers(real)["crm"]["command"] == PROGRAM
    account.run("uninstall", "--yes")
    assert (link.is_symlink(), real.read_text()) == (True, CURSOR)


@pytest.mark.parametrize(
    "command",
    [
        ["uvx", "--from", "mcpguard-cli", "mcpguard", "run", "--", "npx"],
        ["sh", "-c", "exec /opt/mcpguard run -- npx"],
        ["python", "-m", "mcpguard", "run", "npx"],
        ["pipx", "run", "mcpguard-cli", "run", "--", "npx"],
        ["uvx", "mcpguard-cli[redis]==0.1.0", "run", "npx"],
        ["docker", "run", "-i", "acme/mcpguard:0.1.0", "run", "npx"],
    ],
    ids=" ".join,
)
def test_a_command_that_starts_mcpguard_itself_is_left_because_calls_would_count_twice(
    account: Account, command: list[str]
) -> None:
    text = json.dumps({"mcpServers": {"a": {"command": command[0], "args": command[1:]}}})
    file = account.cursor(text)
    done = account.run("install", "--yes")
    assert (done.returncode, file.read_text()) == (0, text)
    assert "  a: not changed (its own command starts mcpguard run)" in done.stdout
    assert "  a: its own command starts mcpguard run: " in account.run("clients").stdout


@pytest.mark.parametrize(
    "command",
    [["uv", "--directory", "/src/mcpguard", "run", "server.py"], ["npm", "--prefix=/src/mcpguard", "run", "server"]],
    ids=lambda command: command[0],
)
def test_a_server_that_a_launcher_runs_in_a_folder_with_the_name_of_mcpguard_is_guarded(
    account: Account, command: list[str]
) -> None:
    file = account.cursor(json.dumps({"mcpServers": {"a": {"command": command[0], "args": command[1:]}}}))
    assert account.run("install", "--yes").returncode == 0
    assert servers(file)["a"] == guarded("a", *command)


def test_an_entry_without_a_name_or_without_a_command_is_left(account: Account) -> None:
    text = '{"mcpServers": {"": {"command": "a"}, "b": {"args": []}, "c": 7}}'
    file = account.cursor(text)
    done = account.run("install", "--yes")
    assert (done.returncode, file.read_text()) == (0, text)
    assert "  : not changed (it has no name)" in done.stdout
    assert "  b: not changed (it has no command)" in done.stdout
    assert "  c: not changed (it is not an object)" in done.stdout


@pytest.mark.parametrize(
    ("place", "text", "detail"),
    [
        (
            "home/.config/goose/config.yaml",
            "extensions:\n  a: &x\n    cmd: npx\n",
            "it has a YAML anchor, alias, tag or merge key",
        ),
        (
            "home/.config/goose/config.yaml",
            "extensions:\n  a:\n    cmd: >-\n      npx\n",
            "its command is written on several lines",
        ),
        (
            "home/.config/zed/settings.json",
            '{"context_servers": {"a": {"command": {"path": "npx", "args": []}}}}',
            "its command or an argument of it is not a text",
        ),
        ("project/.mcp.json", '{"mcpServers": {"a": {"command": "npx", "args": "-y"}}}', "its args is not an array"),
    ],
    ids=["anchor", "lines", "object", "shared"],
)
def test_a_command_that_cannot_be_edited_is_a_failure_because_it_stays_without_a_guard(
    account: Account, place: str, text: str, detail: str
) -> None:
    file = account.write(place, text)
    done = account.run("install", "--yes", *(["--project", str(account.project)] if "project" in place else []))
    assert (done.returncode, file.read_text()) == (1, text)
    assert done.stderr.startswith(f"mcpguard: {file}: a: not changed: {detail}")
    assert done.stderr.count("\n") == 1


def test_an_entry_that_starts_nothing_is_no_failure(account: Account) -> None:
    text = """{"mcpServers": {"a": {"command": null, "url": "https://x"}, "b": {"command": ""}, "c": {"command": []},
        "d": {"command": ["npx"], "disabled": true}}}"""
    file = account.cursor(text)
    done = account.run("install", "--yes")
    assert (done.returncode, done.stderr, file.read_text()) == (0, "", text)
    assert "  a: not changed (remote: " in done.stdout


# Projects and shared files


def test_a_project_has_its_own_files_and_those_of_the_account_stay(account: Account) -> None:
    cursor = account.cursor()
    file = account.write("project/.mcp.json", '{"mcpServers": {"crm": {"command": "npx", "args": ["x"]}}}')
    claude = account.write(
        "home/.claude.json",
        json.dumps(
            {
                "mcpServers": {"mine": {"command": "a"}},
                "projects": {
                    str(account.project): {"mcpServers": {"here": {"command": "b", "args": []}}},
                    "/elsewhere": {"mcpServers": {"there": {"command": "c", "args": []}}},
                },
            }
        ),
    )
    before = account.files()
    done = account.run("install", "--project", str(account.project), "--yes")
    assert done.returncode == 0, done.stderr
    assert servers(file)["crm"]["command"] == PROGRAM
    assert cursor.read_text() == CURSOR
    found = json.loads(claude.read_bytes())
    assert found["mcpServers"] == {"mine": {"command": "a"}}
    assert found["projects"][str(account.project)]["mcpServers"]["here"]["command"] == PROGRAM
    assert found["projects"]["/elsewhere"]["mcpServers"]["there"]["command"] == "c"
    account.run("install", "claude-code", "--yes")
    found = json.loads(claude.read_bytes())
    assert found["mcpServers"]["mine"]["command"] == PROGRAM
    assert found["projects"]["/elsewhere"]["mcpServers"]["there"]["command"] == PROGRAM
    account.run("uninstall", "--yes")
    account.run("uninstall", "--project", str(account.project), "--yes")
    assert account.files() == before


def test_who_follows_the_warning_of_a_program_that_will_not_stay_gets_the_path_of_the_other(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = account.cursor()
    passing, staying = (account.write(f"{folder}/mcpguard", "") for folder in (".cache/uv", "bin"))
    monkeypatch.setattr(tempfile, "gettempdir", lambda: "/nowhere")
    monkeypatch.setattr(launcher, "_script", lambda: passing)
    (warning,) = [line for line in account.run("install", "--yes").stderr.splitlines() if "cache" in line]
    monkeypatch.setattr(launcher, "_script", lambda: staying)
    _, *commands = warning.partition(", then run ")[2].replace(" and ", " ").split("mcpguard ")
    assert len(commands) == 2
    for command in commands:
        account.run(*command.split(), "--yes")
    assert servers(file)["crm"]["command"] == str(staying)


def test_a_relative_path_of_mcpguard_begins_in_the_project(account: Account) -> None:
    account.write("project/tools/mcpguard", "")
    text = '{"mcpServers": {"a": {"command": "./tools/mcpguard", "args": ["run", "--", "a"]}}}'
    file = account.write("project/.mcp.json", text)
    local = account.write("home/.claude.json", json.dumps({"projects": {str(account.project): json.loads(text)}}))
    before = account.files()
    done = account.run("install", "--project", str(account.project), "--yes")
    assert account.files() == before
    assert done.stdout.count("a: guarded already") == 4
    assert "missing" not in account.run("clients", "--project", str(account.project)).stdout
    (account.project / "tools/mcpguard").unlink()
    account.run("install", "--project", str(account.project), "--yes")
    assert all(PROGRAM in one.read_text() for one in (file, local))


def test_one_edit_of_a_file_that_several_clients_read_serves_them_all(account: Account) -> None:
    file = account.write("project/.mcp.json", '{"mcpServers": {"crm": {"command": "npx", "args": ["x"]}}}')
    done = account.run("install", "--project", str(account.project), "--yes")
    assert servers(file) == {"crm": guarded("crm", "npx", "x")}
    for client in ("Claude Code", "Copilot CLI", "VS Code"):
        assert f"{client} (project scope), {file}\n  crm: guarded\n" in done.stdout
        assert f"\n  {client}: " in done.stdout.split("take effect")[1]
    assert len(list((account.state / "backups").iterdir())) == 1


def test_a_file_with_comments_that_one_client_reads_and_another_does_not_is_edited_for_the_first(account: Account) -> None:
    file = account.write("project/.mcp.json", '{// ours\n"mcpServers": {"crm": {"command": "npx", "args": ["x"]}}}')
    done = account.run("install", "--project", str(account.project), "--yes")
    assert done.returncode == 1
    assert done.stderr.count(f"{file}:1:2: ") == 1
    assert PROGRAM in file.read_text()
    assert account.run("install", "copilot", "--project", str(account.project), "--yes").returncode == 0


# What it does not change


@pytest.mark.parametrize("damaged", ['{"mcpServers": {"a": {"command": "x"}}', "{// strict\n}", "\xff", "[1, 2"])
def test_a_file_that_does_not_parse_is_left_and_the_other_clients_are_done(account: Account, damaged: str) -> None:
    cursor, codex = account.write("home/.cursor/mcp.json", damaged.encode("latin-1")), account.codex()
    done = account.run("install", "--yes")
    assert done.returncode == 1
    assert cursor.read_bytes() == damaged.encode("latin-1")
    assert PROGRAM in codex.read_text()
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("mcpguard: ")]
    assert line.startswith(f"mcpguard: {cursor}:")
    assert "hint: mend the file" in line


def test_a_read_only_file_is_left_and_the_other_clients_are_done(account: Account) -> None:
    cursor, codex = account.cursor(), account.codex()
    cursor.chmod(0o444)
    done = account.in_process("install", "--yes", under=BOUND)
    assert done.returncode == 1
    assert cursor.read_text() == CURSOR
    assert PROGRAM in codex.read_text()
    assert f"mcpguard: {cursor}: not changed: Permission denied (hint: give your account the right to write" in done.stderr
    assert f"Cursor (user scope), {cursor}" not in done.stdout
    assert "  Cursor: " not in done.stdout


def test_a_file_that_is_left_is_not_said_to_be_guarded_under_another_clients_link_to_it(account: Account) -> None:
    cursor = account.cursor()
    cursor.chmod(0o444)
    link = account.home / ".lmstudio/mcp.json"
    link.parent.mkdir()
    link.symlink_to(cursor)
    done = account.in_process("install", "--yes", under=BOUND)
    assert (done.returncode, done.stdout, cursor.read_text()) == (1, "", CURSOR)
    assert f"mcpguard: {cursor}: not changed: Permission denied" in done.stderr


def test_a_folder_that_cannot_be_written_to_leaves_its_file(account: Account) -> None:
    cursor = account.cursor()
    cursor.parent.chmod(0o555)
    done = account.in_process("install", "--yes", under=BOUND)
    cursor.parent.chmod(0o755)
    assert done.returncode == 1
    assert cursor.read_text() == CURSOR
    assert "not changed: Permission denied" in done.stderr


def test_a_file_without_space_for_its_backup_is_left(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    cursor = account.cursor()

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("mcpguard.clients.writing._save_in", refuse)
    done = account.run("install", "--yes")
    assert done.returncode == 1
    assert cursor.read_text() == CURSOR
    where = account.state / "backups"
    assert f"no copy of it can be saved in {where}: No space left on device (hint: check that this folder" in done.stderr


def test_without_a_writable_state_folder_no_file_is_changed(account: Account) -> None:
    cursor, codex = account.cursor(), account.codex()
    account.state.chmod(0o555)
    done = account.in_process("install", "codex", "--yes", under=BOUND)
    assert done.returncode == 1
    assert f"no copy of it can be saved in {account.state}/backups: Permission denied" in done.stderr
    done = account.in_process("install", "--yes", under=BOUND)  # it must note that a server had no arguments
    assert done.returncode == 1
    assert f"{account.state}/installed.json: not changed: Permission denied" in done.stderr
    assert (cursor.read_text(), codex.read_text()) == (CURSOR, CODEX)


def test_a_file_that_changes_while_the_user_reads_the_diff_is_left(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    cursor, codex = account.cursor(), account.codex()
    write = installing._write

    def late(change: installing.Change, backups: Path) -> None:
        if change.file == cursor:
            cursor.write_text("{}")
        write(change, backups)

    monkeypatch.setattr(installing, "_write", late)
    done = account.run("install", "--yes")
    assert done.returncode == 1
    assert cursor.read_text() == "{}"
    assert PROGRAM in codex.read_text()
    assert "another program has changed it just now (hint: run this again)" in done.stderr


def test_a_link_to_nothing_is_reported(account: Account) -> None:
    link = account.home / ".cursor/mcp.json"
    link.parent.mkdir()
    link.symlink_to("gone.json")
    done = account.run("install", "--yes")
    assert done.returncode == 1
    assert done.stderr.endswith(
        f"mcpguard: {link}: cannot be read: No such file or directory (hint: check where the link leads)\n"
    )


def test_a_sandboxed_server_is_refused_until_its_sandbox_lets_mcpguard_write(account: Account) -> None:
    text = '{"servers": {"a": {"command": "a", "args": [], "sandboxEnabled": true}}%s}'
    file = account.write("home/.config/Code/User/mcp.json", text % "")
    done = account.run("install", "--yes")
    assert done.returncode == 1
    assert f"add {account.state} to sandbox.filesystem.allowWrite in this file" in done.stderr
    assert file.read_text() == text % ""
    file.write_text(text % f', "sandbox": {{"filesystem": {{"allowWrite": ["{account.state}"]}}}}')
    assert account.run("install", "--yes").returncode == 0
    assert PROGRAM in file.read_text()


def test_claude_desktop_is_refused_while_it_runs_and_the_others_are_done(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    desktop = account.write("home/.config/Claude/claude_desktop_config.json", CURSOR)
    codex = account.codex()
    monkeypatch.setattr(installing, "is_running", lambda client: client.key == "claude-desktop")
    done = account.run("install", "--yes")
    assert done.returncode == 1
    assert desktop.read_text() == CURSOR
    assert "Claude Desktop is running, and would write its own copy back (hint: quit Claude Desktop" in done.stderr
    assert PROGRAM in codex.read_text()
    monkeypatch.setattr(installing, "is_running", lambda _: False)
    done = account.run("install", "--yes")
    assert done.returncode == 0
    assert "  Claude Desktop: start Claude Desktop\n" in done.stdout


@pytest.mark.parametrize("argv", [["install"], ["uninstall"], ["install", "cursor"], ["uninstall", "cursor"]], ids=" ".join)
def test_claude_desktops_file_is_left_while_it_runs_even_if_another_client_reads_it_through_a_link(
    account: Account, monkeypatch: pytest.MonkeyPatch, argv: list[str]
) -> None:
    desktop = account.write("home/.config/Claude/claude_desktop_config.json", CURSOR)
    link = account.home / ".cursor/mcp.json"
    link.parent.mkdir()
    link.symlink_to(desktop)
    if argv[0] == "uninstall":
        account.run("install", "--yes")
    before = desktop.read_bytes()
    monkeypatch.setattr(installing, "is_running", lambda client: client.key == "claude-desktop")
    done = account.run(*argv, "--yes")
    assert (done.returncode, desktop.read_bytes()) == (1, before)
    assert f"{link}: not changed: Claude Desktop is running" in done.stderr


@pytest.mark.parametrize("content", [CURSOR, '{"globalShortcut": ""}'], ids=["guarded", "without servers"])
def test_claude_desktop_may_run_if_nothing_is_to_be_written(
    account: Account, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    account.write("home/.config/Claude/claude_desktop_config.json", content)
    account.codex()
    assert account.run("install", "--yes").returncode == 0
    monkeypatch.setattr(installing, "is_running", lambda client: client.key == "claude-desktop")
    again = account.run("install", "--yes")
    assert (again.returncode, again.stderr) == (0, "")


# Asking and showing


def test_a_dry_run_prints_the_diff_and_changes_nothing(account: Account) -> None:
    cursor = account.cursor()
    before = account.files()
    done = account.run("install", "--dry-run")
    assert done.returncode == 0
    assert account.files() == before
    assert list(account.state.iterdir()) == []
    assert done.stdout.splitlines() == [
        f"--- {cursor}",
        f"+++ {cursor}",
        "@@ -4,2 +4,2 @@",
        '-      "command": "npx",',
        '-      "args": ["-y", "@acme/crm"],',
        f'+      "command": "{PROGRAM}",',
        '+      "args": ["run", "--server", "crm", "--", "npx", "-y", "@acme/crm"],',
        "@@ -8 +8 @@",
        '-    "bare": { "command": "crm-server" },',
        f'+    "bare": {{ "command": "{PROGRAM}", "args": ["run", "--server", "bare", "--", "crm-server"] }},',
    ]


def test_the_diff_shows_no_line_around_a_change_and_no_token(account: Account) -> None:
    token = "eyJhbGciOiJSUzI1NiJ9.e30.c2ln"
    account.cursor(CURSOR.replace('"-y"', f'"{token}"'))
    done = account.run("install", "--dry-run")
    assert "(a token)" in done.stdout
    assert token not in done.stdout + done.stderr
    assert "secret" not in done.stdout


def test_the_diff_of_a_file_in_one_line_shows_only_the_parts_that_change(account: Account) -> None:
    content = json.loads(CURSOR) | {"history": ["a long story"] * 100}
    account.cursor(json.dumps(content))
    done = account.run("install", "--dry-run", "--server", "crm")
    assert '-"command": "npx",' in done.stdout.replace("- ", "-")
    assert "story" not in done.stdout
    assert "secret" not in done.stdout


def test_the_diff_of_a_line_that_only_becomes_long_shows_only_the_parts_that_change(account: Account) -> None:
    entry = {"env": {"CRM_KEY": "secret"}, "command": "npx", "args": ["-y", "@acme/" + "x" * 80]}
    account.cursor(json.dumps({"mcpServers": {"crm": entry}}))
    for command in ("install", "uninstall"):
        done = account.run(command, "--dry-run")
        assert PROGRAM in done.stdout
        assert "secret" not in done.stdout
        account.run("install", "--yes")


def test_it_asks_on_a_terminal_and_changes_nothing_without_a_yes(account: Account) -> None:
    cursor = account.cursor()
    status, said = account.on_terminal("install", typed=b"\n")
    assert status == 1
    assert f"Change {cursor}? [y/N]" in said
    assert "nothing was changed" in said
    assert cursor.read_text() == CURSOR
    status, said = account.on_terminal("install", typed=b"y\n")
    assert status == 0
    assert "\x1b[32m+" in said
    assert "\x1b[31m-" in said
    assert servers(cursor)["crm"]["command"] == PROGRAM
    status, said = account.on_terminal("uninstall", typed=b"y\n", NO_COLOR="1")
    assert status == 0
    assert "\x1b[" not in said
    assert cursor.read_text() == CURSOR


def test_it_does_not_ask_in_a_pipe(account: Account) -> None:
    cursor = account.cursor()
    done = account.run("install")
    assert done.returncode == 2
    assert "mcpguard: install asks for confirmation, and there is no terminal\nhint: add --yes" in done.stderr
    assert cursor.read_text() == CURSOR
    account.run("install", "--yes")
    assert account.run("uninstall").returncode == 2


# What is not found


def test_an_unknown_client_is_an_error_with_the_nearest_name(account: Account) -> None:
    done = account.run("install", "curser")
    assert (done.returncode, done.stderr) == (2, "mcpguard: no such client: curser\nhint: did you mean cursor?\n")
    done = account.run("uninstall", "Claude Code")
    assert done.stderr.endswith("hint: did you mean claude-code?\n")
    assert "hint: clients: claude-desktop claude-code" in account.run("install", "xyz").stderr


def test_a_named_client_without_a_file_is_a_failure(account: Account) -> None:
    codex = account.codex()
    done = account.run("install", "cursor", "codex", "--yes")
    assert done.returncode == 1
    assert f"mcpguard: Cursor: no file {account.home}/.cursor/mcp.json (hint: add a server in the client first)" in done.stderr
    assert PROGRAM in codex.read_text()


def test_uninstall_has_nothing_to_do_for_a_named_client_without_a_file(account: Account) -> None:
    codex, hooks = account.codex(), account.home / ".codex/hooks.json"
    account.run("install", "codex", "--hook", "--yes")
    codex.unlink()
    done = account.run("uninstall", "cursor", "codex", "--yes")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[:2] == [
        f"Cursor: no file {account.home}/.cursor/mcp.json",
        f"Codex: no file {codex}",
    ]
    assert not hooks.exists()


def test_the_hint_for_a_client_without_files_in_a_project_is_to_leave_the_project_out(account: Account) -> None:
    done = account.run("install", "windsurf", "--project", str(account.project), "--yes")
    assert (done.returncode, done.stderr) == (
        1, "mcpguard: Windsurf: it has no files in a project (hint: leave out --project)\n",
    )  # fmt: skip


def test_without_any_client_install_fails_and_uninstall_has_nothing_to_do(account: Account) -> None:
    done = account.run("install", "--yes")
    assert done.returncode == 1
    assert done.stderr == (
        "mcpguard: no file of a client is found "
        "(hint: add a server in a client first; mcpguard install --help names the clients)\n"
    )
    done = account.run("uninstall", "--yes")
    assert (done.returncode, done.stdout, done.stderr) == (0, "no client with servers is found\n", "")
    done = account.run("install", "--project", str(account.project))
    assert f"no file of a client is found in {account.project}" in done.stderr


@pytest.mark.parametrize("argv", [["install"], ["install", "cursor", "--dry-run"], ["uninstall", "--yes"]])
def test_a_file_without_servers_is_not_passed_over_in_silence(account: Account, argv: list[str]) -> None:
    account.write("home/.cursor/mcp.json", '{"mcpServers": {}}')
    done = account.run(*argv)
    assert (done.returncode, done.stdout, done.stderr) == (0, "no client with servers is found\n", "")


def test_an_unknown_server_is_a_failure_with_the_nearest_name(account: Account) -> None:
    cursor = account.cursor()
    done = account.run("install", "--server", "crn", "--server", "bare", "--yes")
    assert done.returncode == 1
    assert "mcpguard: no file has a server named crn (hint: did you mean crm?)" in done.stderr
    assert servers(cursor)["bare"]["command"] == PROGRAM
    done = account.run("install", "--server", "web", "--yes")
    assert done.returncode == 1
    assert "mcpguard: web: not changed: remote: " in done.stderr


def test_a_missing_project_folder_is_a_usage_error(account: Account) -> None:
    done = account.run("install", "--project", "/nowhere")
    assert (done.returncode, done.stderr.splitlines()[0]) == (2, "mcpguard: --project: /nowhere: no such folder")


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="root may read everything")
def test_a_folder_that_may_not_be_looked_into_has_no_projects_and_no_files_of_clients(account: Account) -> None:
    closed = account.project / "closed"
    (closed / "project").mkdir(parents=True)
    closed.chmod(0)
    try:
        project = account.in_process("install", "--yes", "--project", str(closed / "project"), under=BOUND)
        home = account.in_process("clients", under=BOUND, HOME=str(closed / "home"))
    finally:
        closed.chmod(0o700)
    assert (project.returncode, project.stderr.splitlines()[0]) == (2, f"mcpguard: --project: {closed}/project: no such folder")
    assert (home.returncode, home.stdout) == (0, "no client with servers is found\n")


def test_a_project_relative_to_a_folder_that_is_gone_is_a_usage_error(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = account.project / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    done = account.run("install", "--project", ".", "--yes")
    assert (done.returncode, done.stderr) == (
        2,
        "mcpguard: --project: the home or working folder for . does not exist\nhint: write an absolute path\n",
    )


# What the shell chooses


def test_what_the_variables_choose_is_written_as_options(account: Account) -> None:
    file = account.cursor('{"mcpServers": {"a": {"command": "a", "args": []}}}')
    done = account.run(
        "install", "--yes", MCPGUARD_POLICY="~/policy.toml", MCPGUARD_USER="alice", MCPGUARD_STORE="redis://cache/0",
        MCPGUARD_DENIALS="error", MCPGUARD_OBSERVE="1", MCPGUARD_QUIET="1", MCPGUARD_AGENT="::background::",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    options = ["--policy", f"{account.home}/policy.toml", "--store", "redis://cache/0", "--user", "alice"]
    options += ["--agent", "::background::", "--denials", "error", "--observe", "--quiet"]
    assert servers(file)["a"] == guarded("a", "a", options=tuple(options))


def test_a_server_whose_name_is_not_utf_8_is_left_and_the_others_are_done(account: Account) -> None:
    text = r'{"mcpServers": {"a\ud800": {"command": "a"}, "b": {"command": "b", "args": []}}}'
    file = account.cursor(text)
    done = account.run("install", "--yes")
    why = "not changed: the server's name, an option or the path of mcpguard is not UTF-8"
    assert done.returncode == 1
    assert done.stderr.endswith(f"mcpguard: {file}: {why}\n")
    assert servers(file) == {"a\ud800": {"command": "a"}, "b": guarded("b", "b")}


@pytest.mark.skipif(sys.platform == "win32", reason="variables are Unicode")
def test_an_option_that_is_not_utf_8_is_not_written_into_a_file(account: Account) -> None:
    text = '{"mcpServers": {"a": {"command": "a"}}}'
    file = account.write("home/.claude.json", text)
    done = account.run("install", "--hook", "--yes", MCPGUARD_STORE="sqlite:///caf\udce9.db")
    assert done.returncode == 1
    assert done.stderr.count("an option or the path of mcpguard is not UTF-8\n") == 2  # of the server and of the hook
    assert "Traceback" not in done.stderr
    assert file.read_text() == text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MCPGUARD_TOKEN", "eyJhbGciOiJSUzI1NiJ9.e30.c2ln"),
        ("MCPGUARD_STORE_PASSWORD", "s3cret"),
        ("MCPGUARD_STORE", "redis://:s3cret@cache/0"),
        ("MCPGUARD_USER", "eyJhbGciOiJSUzI1NiJ9.e30.c2ln"),
    ],
)
def test_a_secret_is_never_written_into_a_clients_file(account: Account, name: str, value: str) -> None:
    cursor = account.cursor()
    done = account.run("install", "--yes", **{name: value})
    assert done.returncode == 2
    assert name in done.stderr
    assert "hint: " in done.stderr
    assert value not in done.stderr
    assert cursor.read_text() == CURSOR


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("MCPGUARD_STORE", "counters.db", "MCPGUARD_STORE: this is not a URL"),
        ("MCPGUARD_AGENT", "nightly", "MCPGUARD_AGENT: 'nightly' does not have three parts"),
        ("MCPGUARD_CONFIG", "/gone.toml", "MCPGUARD_CONFIG: /gone.toml: no such file"),
        ("MCPGUARD_DENIALS", "never", "MCPGUARD_DENIALS: 'never' is none of auto, error, result"),
    ],
)
def test_a_value_with_which_no_server_would_start_is_not_written(account: Account, name: str, value: str, message: str) -> None:
    cursor = account.cursor()
    done = account.run("install", "--yes", **{name: value})
    assert (done.returncode, done.stderr.splitlines()[0]) == (78, f"mcpguard: {message}")
    assert cursor.read_text() == CURSOR


def test_variables_that_have_no_option_are_warned_of(account: Account) -> None:
    account.cursor()
    done = account.run("install", "--yes", MCPGUARD_NAMESPACE="team")
    assert "warning: MCPGUARD_HOME is set here, but clients do not pass it on to the servers: " in done.stderr
    assert "warning: MCPGUARD_NAMESPACE is set here" in done.stderr


# Hooks


def test_hooks_are_added_and_removed_with_the_rest_of_the_file_unchanged(account: Account) -> None:
    account.write("home/.claude.json", '{"mcpServers": {"a": {"command": "a", "args": []}}}')
    settings = account.write("home/.claude/settings.json", '{\n  "model": "opus",\n  "env": {"K": "v"}\n}\n')
    account.codex()
    account.write("home/.copilot/mcp-config.json", '{"mcpServers": {"a": {"command": "a", "args": []}}}')
    before = account.files()
    done = account.run("install", "--hook", "--yes", MCPGUARD_STORE="redis://cache/0")
    assert done.returncode == 0, done.stderr
    claude = json.loads(settings.read_bytes())
    assert claude["model"] == "opus"
    store = "--store redis://cache/0"
    (group,) = claude["hooks"]["PreToolUse"]
    assert group["matcher"] == "mcp__.*"
    assert group["hooks"] == [{"type": "command", "command": f"{PROGRAM} hook claude-code {store}", "timeout": 5}]
    codex = json.loads((account.home / ".codex/hooks.json").read_bytes())
    assert codex["hooks"]["PreToolUse"][0]["hooks"][0]["command"] == f"{PROGRAM} hook codex {store}"
    copilot = json.loads((account.home / ".copilot/hooks/mcpguard.json").read_bytes())
    assert copilot["version"] == 1
    (hook,) = copilot["hooks"]["preMcpToolCall"]
    assert hook == {"type": "command", "bash": f"{PROGRAM} hook copilot {store}", "timeoutSec": 5}
    assert "  Codex: start a new session, enter /hooks, and trust the hook" in done.stdout
    again = account.run("install", "--hook")
    assert again.returncode == 0
    assert again.stdout.count("the hook is there already") == 3
    gone = account.run("uninstall", "--yes")
    assert gone.returncode == 0
    assert gone.stdout.count("the hook was removed") == 3
    assert account.files() == before


def test_without_hook_no_hook_is_added_and_a_single_server_leaves_it(account: Account) -> None:
    account.codex()
    account.run("install", "--yes")
    hooks = account.home / ".codex/hooks.json"
    assert not hooks.exists()
    account.run("install", "--hook", "--yes")
    account.run("uninstall", "--server", "crm", "--yes")
    assert hooks.exists()
    account.run("uninstall", "--server", "crm", "--hook", "--yes")
    assert not hooks.exists()


def test_a_hook_whose_mcpguard_is_gone_is_replaced(account: Account) -> None:
    account.codex()
    entry = {"matcher": "mcp__.*", "hooks": [{"type": "command", "command": "/gone/mcpguard hook codex"}]}
    hooks = account.write("home/.codex/hooks.json", json.dumps({"hooks": {"PreToolUse": [entry]}}))
    account.run("install", "--hook", "--yes")
    (group,) = json.loads(hooks.read_bytes())["hooks"]["PreToolUse"]
    assert group["hooks"][0]["command"] == f"{PROGRAM} hook codex"


@pytest.mark.parametrize(
    ("command", "mended"),
    [
        ("/gone/mcpguard hook codex --store redis://h/0", f"{PROGRAM} hook codex --store redis://h/0"),
        ("MCPGUARD_STORE=redis://h/0 /gone/mcpguard hook codex", f"MCPGUARD_STORE=redis://h/0 {PROGRAM} hook codex"),
        ("env A=b /gone/mcpguard hook codex", f"env A=b {PROGRAM} hook codex"),
        ("MCPGUARD_STORE=redis://h/0 mcpguard hook codex", f"MCPGUARD_STORE=redis://h/0 {PROGRAM} hook codex"),
        ('"/go ne/mcpguard" hook codex --config "$C"', f'{PROGRAM} hook codex --config "$C"'),
        ("/gone/mcpguard hook codex 2>/dev/null || true", f"{PROGRAM} hook codex 2>/dev/null || true"),
        (r"/go\ ne/mcpguard hook codex", f"{PROGRAM} hook codex --store redis://other/0"),
        ('"unfinished/mcpguard hook codex', f"{PROGRAM} hook codex --store redis://other/0"),
    ],
)
def test_of_a_hook_whose_mcpguard_is_gone_only_the_program_is_replaced_if_it_can_be(
    account: Account, command: str, mended: str
) -> None:
    account.codex()
    entry = {"matcher": "mcp__.*", "hooks": [{"type": "command", "command": command}]}
    hooks = account.write("home/.codex/hooks.json", json.dumps({"hooks": {"PreToolUse": [entry]}}))
    account.run("install", "--hook", "--yes", MCPGUARD_STORE="redis://other/0", PATH="/usr/bin:/bin")
    (group,) = json.loads(hooks.read_bytes())["hooks"]["PreToolUse"]
    assert group["hooks"][0]["command"] == mended


def test_a_hook_whose_mcpguard_is_gone_keeps_its_matcher_its_time_limit_and_its_neighbours(account: Account) -> None:
    account.codex()
    text = """{ "hooks": {"PreToolUse": [
        {"matcher": "mcp__crm__.*", "hooks": [{"type": "command", "command": "/gone/mcpguard hook codex", "timeout": 9},
                                              {"type": "command", "command": "lint"}]},
        {"matcher": "mcp__erp__.*", "hooks": [{"command": "/gone/mcpguard hook codex --store redis://h/0"}]}
    ]} }
"""
    hooks = account.write("home/.codex/hooks.json", text)
    done = account.run("install", "--hook", "--yes")
    assert f"Codex, {hooks}: the hook's mcpguard is this one now" in done.stdout.replace("\n    ", " ")
    assert hooks.read_text() == text.replace("/gone/mcpguard", PROGRAM)


@pytest.mark.parametrize(
    "command", [f"MCPGUARD_STORE=redis://h/0 {PROGRAM} hook codex", "$TOOLS/mcpguard hook codex", "~/tools/mcpguard hook codex"]
)
def test_a_hook_whose_mcpguard_a_shell_finds_stays(account: Account, command: str) -> None:
    account.codex()
    account.write("home/tools/mcpguard", "")
    hook = {"type": "command", "command": command}
    hooks = account.write("home/.codex/hooks.json", json.dumps({"hooks": {"PreToolUse": [{"hooks": [hook]}]}}))
    before = hooks.read_bytes()
    assert "the hook is there already" in account.run("install", "--hook", "--yes").stdout
    assert hooks.read_bytes() == before


@pytest.mark.parametrize(
    "command",
    [
        "uvx --from mcpguard-cli mcpguard hook codex",
        "python3 -m mcpguard hook codex",
        "command -v mcpguard >/dev/null && mcpguard hook codex",
    ],
)
def test_a_hook_whose_mcpguard_another_command_finds_stays(account: Account, command: str) -> None:
    account.codex()
    hook = {"type": "command", "command": command}
    hooks = account.write("home/.codex/hooks.json", json.dumps({"hooks": {"PreToolUse": [{"hooks": [hook]}]}}))
    before = hooks.read_bytes()
    assert "the hook is there already" in account.run("install", "--hook", "--yes", PATH="/usr/bin:/bin").stdout
    assert hooks.read_bytes() == before


def test_an_empty_file_of_hooks_is_empty_again(account: Account) -> None:
    account.codex()
    hooks = account.write("home/.codex/hooks.json", "")
    account.run("install", "--hook", "--yes")
    account.run("install", "--hook", "--yes")
    assert hooks.read_bytes() != b""
    account.run("uninstall", "--yes")
    assert hooks.read_bytes() == b""
    hooks.unlink()
    account.run("install", "--hook", "--yes")
    account.run("uninstall", "--yes")
    assert not hooks.exists()


def test_a_link_to_a_file_of_hooks_stays_a_link(account: Account) -> None:
    account.codex()
    target = account.write("home/dotfiles/hooks.json", "")
    hooks = account.home / ".codex/hooks.json"
    hooks.symlink_to(target)
    account.run("install", "--hook", "--yes")
    assert target.read_bytes() != b""
    account.run("uninstall", "--yes")
    assert (hooks.is_symlink(), target.read_bytes()) == (True, b"")
    account.run("install", "--hook", "--yes")
    (account.state / "installed.json").unlink()
    account.run("uninstall", "--yes")
    assert (hooks.is_symlink(), target.read_bytes()) == (True, b"")


def test_the_hooks_of_a_project_go_into_its_own_files(account: Account) -> None:
    account.write("project/.mcp.json", '{"mcpServers": {"a": {"command": "a", "args": []}}}')
    before = account.files()
    account.run("install", "--project", str(account.project), "--hook", "--yes")
    assert (account.project / ".claude/settings.local.json").exists()
    assert (account.project / ".github/hooks/mcpguard.json").exists()
    assert not (account.home / ".claude").exists()
    account.run("uninstall", "--project", str(account.project), "--yes")
    assert account.files() == before


def test_a_named_client_without_a_hook_is_a_failure(account: Account) -> None:
    account.cursor()
    done = account.run("install", "cursor", "--hook", "--yes")
    assert done.returncode == 1
    hint = "(hint: clients with a hook: claude-code, codex, copilot)"
    assert done.stderr.endswith(f"mcpguard: Cursor: mcpguard has no hook for it {hint}\n")


def test_a_damaged_file_of_hooks_is_left(account: Account) -> None:
    codex = account.codex()
    hooks = account.write("home/.codex/hooks.json", "{")
    done = account.run("install", "--hook", "--yes")
    assert done.returncode == 1
    assert f"mcpguard: {hooks}:1:2: " in done.stderr
    assert hooks.read_text() == "{"
    assert PROGRAM in codex.read_text()
    done = account.run("uninstall", "--yes")
    assert done.returncode == 1
    assert f"mcpguard: {hooks}:1:2: " in done.stderr
    assert (hooks.read_text(), codex.read_text()) == ("{", CODEX)


@pytest.mark.parametrize("hooks", ['{"hooks": []}', '{"hooks": {"PreToolUse": {}}}', "[]"])
def test_a_file_of_hooks_in_another_form_is_left(account: Account, hooks: str) -> None:
    account.codex()
    file = account.write("home/.codex/hooks.json", hooks)
    done = account.run("install", "--hook", "--yes")
    assert done.returncode == 1
    assert f"mcpguard: {file}" in done.stderr
    assert file.read_text() == hooks
