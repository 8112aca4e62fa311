"""`mcpguard install` and `uninstall`: what they change, how they ask, and which options they write into entries."""

import json
import sys
import tomllib
from pathlib import Path

import pytest

from mcpguard.clients.catalog import BY_KEY
from tests.cli.account import CODEX, CURSOR, GONE, IN_TOML, ONE, PROGRAM, Account, guarded, listing, servers
from tests.cli.command import unfolded
from tests.clients.test_files import FOLDER, GOOSE, SAMPLES

# What it changes


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["LF", "CRLF"])
def test_the_files_of_all_clients_are_guarded_in_one_run_and_given_back_byte_for_byte(account: Account, end: str) -> None:
    for sample in SAMPLES:
        data = (FOLDER / sample.file).read_bytes()
        account.write(sample.place, data.replace(b"\r\n", b"\n").replace(b"\n", end.encode()))
    before = account.files()
    done = account.install(status=1)
    refused = [line.partition(": ")[2] for line in done.stderr.splitlines() if line.startswith("mcpguard: ")]
    assert [line.split(": ")[1] for line in refused] == ["sandboxed", "old-form", "shared", "tagged"]
    assert "sandboxed: its sandbox would keep mcpguard from its counters" in refused[0]
    account.install("--project", str(account.project))
    after = account.files()
    assert [name for name, content in before.items() if after[name] == content] == []
    everything = json.loads(account.run("clients", "--json").stdout)
    unguarded = {row["server"] for row in everything if row["command"] and not row["note"] and not row["guarded"]}
    assert unguarded == {"sandboxed"}
    assert {row["client"] for row in everything} == set(BY_KEY)
    account.install(status=1)
    assert account.files() == after
    account.uninstall()
    account.uninstall("--project", str(account.project))
    assert account.files() == before


def test_each_file_is_named_with_what_was_done_and_what_was_left_and_why(account: Account) -> None:
    cursor, codex = account.cursor(), account.codex()
    before = account.files()
    done = account.install()
    assert done.stdout.splitlines()[:7] == [
        f"Codex (user scope), {codex}",
        "  crm: guarded",
        f"Cursor (user scope), {cursor}",
        "  crm: guarded",
        "  bare: guarded",
        "  web: not changed (remote: mcpguard guards only servers that the client starts)",
        "  off: not changed (disabled)",
    ]
    assert "  Cursor: switch the server off and on in Cursor's settings, or restart Cursor" in done.stdout
    wanted = json.loads(CURSOR)["mcpServers"] | {"bare": guarded("bare", "crm-server")}
    assert servers(cursor) == wanted | {"crm": wanted["crm"] | guarded("crm", "npx", "-y", "@acme/crm")}
    assert tomllib.loads(codex.read_text("utf-8"))["mcp_servers"]["crm"]["args"][:4] == ["run", "--server", "crm", "--"]
    done = account.undo(before)
    assert "  crm: no longer guarded" in done.stdout
    assert "  web: not guarded\n" in done.stdout


def test_a_second_install_changes_nothing_and_says_so(account: Account) -> None:
    account.cursor()
    account.install()
    before, saved = account.files(), sorted((account.state / "backups").iterdir())
    done = account.run("install")  # it need not ask
    assert (done.returncode, account.files(), sorted((account.state / "backups").iterdir())) == (0, before, saved)
    assert "  crm: guarded already" in done.stdout
    assert "take effect" not in done.stdout
    account.uninstall()
    done = account.run("uninstall")
    assert (done.returncode, done.stderr) == (0, "")
    assert "  crm: not guarded" in done.stdout


def test_only_the_named_client_and_the_named_servers_are_changed(account: Account) -> None:
    cursor, codex = account.cursor(), account.codex()
    account.install("cursor", "--server", "crm")
    assert servers(cursor)["crm"]["command"] == PROGRAM
    assert servers(cursor)["bare"] == {"command": "crm-server"}
    assert codex.read_text("utf-8") == CODEX
    account.install("--server", "crm", "--server", "bare")
    assert servers(cursor)["bare"]["command"] == PROGRAM
    assert codex.read_text("utf-8") != CODEX
    account.uninstall("--server", "crm")
    assert codex.read_text("utf-8") == CODEX
    assert servers(cursor)["bare"]["command"] == PROGRAM


def test_args_that_were_missing_are_missing_again_and_empty_ones_are_empty_again_server_by_server(account: Account) -> None:
    file = account.cursor(listing(a={"command": "a"}, b={"command": "b", "args": []}))
    before = file.read_bytes()
    account.install()
    account.uninstall("--server", "a")
    assert servers(file) == {"a": {"command": "a"}, "b": guarded("b", "b")}
    account.uninstall("--server", "b")
    assert file.read_bytes() == before
    account.install()
    file.write_bytes(file.read_bytes().replace(IN_TOML.encode(), GONE.encode()))
    account.install()
    assert IN_TOML in file.read_text("utf-8")
    account.uninstall()
    assert file.read_bytes() == before
    account.install()
    (account.state / "installed.json").unlink()  # without the record an empty list is left
    account.uninstall()
    assert servers(file) == {"a": {"command": "a", "args": []}, "b": {"command": "b", "args": []}}


def test_a_path_that_is_gone_is_mended_and_a_path_of_another_installation_stays(account: Account) -> None:
    commands = {"a": GONE, "b": str(account.write("other/mcpguard", "#!/bin/sh\n")), "c": "${userHome}/bin/mcpguard"}
    entry = {"args": ["run", "--server", "crm", "--user", "alice", "--", "npx"], "env": {}}
    file = account.cursor(listing(**{key: {"command": one, **entry} for key, one in commands.items()}))
    done = account.install()
    assert servers(file) == {key: {"command": one, **entry} for key, one in (commands | {"a": PROGRAM}).items()}
    assert f"  a: its mcpguard is this one now ({GONE} is gone)" in done.stdout
    account.uninstall()
    assert all(one == {"command": "npx", "args": [], "env": {}} for one in servers(file).values())


@pytest.mark.parametrize(
    "command",
    [
        ["/opt/airlock-mcp", "npx"],
        ["${env:NODE}", "${workspaceFolder}", "$HOME", "${input:key}"],
        ["uv", "--directory", "/src/mcpguard", "run", "server.py"],  # a folder with the name of mcpguard
        ["npm", "--prefix=/src/mcpguard", "run", "server"],
    ],
    ids=lambda value: value[0],
)
def test_a_command_of_any_form_is_guarded_as_it_is(account: Account, command: list[str]) -> None:
    file = account.cursor(listing(a={"command": command[0], "args": command[1:]}))
    assert "  a: guarded\n" in account.install().stdout
    assert servers(file)["a"] == guarded("a", *command)


def test_a_server_of_a_container_is_guarded_with_a_note_and_its_path_need_not_exist_on_the_host(account: Account) -> None:
    entries = '{"a": {"command": "npx", "args": []}, "b": {"command": "/in/container/mcpguard", "args": ["run", "--", "npx"]}}'
    text = '{"customizations": {"vscode": {"mcp": {"servers": %s}}}}'
    file = account.write("project/.devcontainer/devcontainer.json", text % entries)
    done = account.install("vscode", "--project", str(account.project))
    assert "a: guarded (it starts in the container, where mcpguard must have the same path)" in unfolded(done.stdout)
    assert "  b: guarded already" in done.stdout
    assert '"b": {"command": "/in/container/mcpguard", "args": ["run", "--", "npx"]}' in file.read_text("utf-8")


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
def test_a_command_that_starts_mcpguard_itself_is_left_lest_calls_count_twice(account: Account, command: list[str]) -> None:
    text = listing(a={"command": command[0], "args": command[1:]})
    file = account.cursor(text)
    left = "  a: not changed (its own command starts mcpguard run)"
    assert left in account.install().stdout
    assert file.read_text("utf-8") == text
    assert "  a: its own command starts mcpguard run: " in account.run("clients").stdout
    assert account.uninstall().stdout.splitlines()[1] == left
    done = account.uninstall("--server", "a", status=1)
    assert done.stderr == "mcpguard: a: not changed: its own command starts mcpguard run\n"


def test_a_command_that_cannot_be_edited_is_a_failure_because_it_stays_without_a_guard(account: Account) -> None:
    file = account.write(GOOSE, "extensions:\n  a: &x\n    cmd: npx\n")
    (line,) = account.refusal().splitlines()
    assert line.startswith(f"mcpguard: {file}: a: not changed: it has a YAML anchor, alias, tag or merge key")


def test_a_server_without_a_name_is_a_failure_with_the_same_hint_as_clients_and_doctor_have(account: Account) -> None:
    file = account.cursor(listing(**{"": {"command": "npx"}}))
    hint = "give it a name in the file"
    assert account.refusal() == f"mcpguard: {file}: a server without a name: not changed (hint: {hint})\n"
    assert f"unguarded (to guard it: {hint})" in account.run("clients").stdout


# Projects and shared files


def test_a_project_has_its_own_files_and_those_of_the_account_stay(account: Account) -> None:
    def commands() -> list[str]:
        """The commands in Claude Code's file: those of the account, of the project, and of another project."""
        found = json.loads(claude.read_bytes())
        parts = (found, found["projects"][str(account.project)], found["projects"]["/elsewhere"])
        return [part["mcpServers"]["a"]["command"] for part in parts]

    cursor, file = account.cursor(), account.write("project/.mcp.json", ONE)
    text = json.loads(ONE) | {"projects": {str(account.project): json.loads(ONE), "/elsewhere": json.loads(ONE)}}
    claude = account.write("home/.claude.json", json.dumps(text))
    before = account.files()
    account.install("--project", str(account.project))
    assert servers(file)["a"]["command"] == PROGRAM
    assert cursor.read_text("utf-8") == CURSOR
    assert commands() == ["a", PROGRAM, "a"]
    account.install("claude-code")
    assert commands() == [PROGRAM] * 3
    account.uninstall()
    account.uninstall("--project", str(account.project))
    assert account.files() == before


def test_one_edit_of_a_projects_file_serves_all_clients_that_read_it_and_the_accounts_files_stay(account: Account) -> None:
    file, cursor = account.write("project/.mcp.json", ONE), account.cursor()
    done = account.install("--project", str(account.project))
    assert servers(file) == {"a": guarded("a", "a")}
    assert cursor.read_text("utf-8") == CURSOR
    for client in ("Claude Code", "Copilot CLI", "VS Code"):
        assert f"{client} (project scope), {file}\n  a: guarded\n" in done.stdout
        assert f"\n  {client}: " in done.stdout.split("take effect")[1]
    assert len(list((account.state / "backups").iterdir())) == 1


def test_a_file_with_comments_that_one_client_reads_and_another_does_not_is_edited_for_the_first(account: Account) -> None:
    file = account.write("project/.mcp.json", ONE.replace("{", "{// ours\n", 1))
    assert account.install("--project", str(account.project), status=1).stderr.count(f"{file}:1:2: ") == 1
    assert IN_TOML in file.read_text("utf-8")
    account.install("copilot", "--project", str(account.project))


# Asking and showing


@pytest.mark.parametrize("more", [[], ["--yes"], ["--server", "crm", "--server", "bare", "--server", "nowhere"]], ids=" ".join)
def test_a_dry_run_prints_the_diff_changes_nothing_and_fails_as_the_change_would(account: Account, more: list[str]) -> None:
    cursor = account.cursor()
    before = account.files()
    done = account.run("install", "--dry-run", *more)
    assert done.returncode == ("nowhere" in more)
    assert ("no file has a server named nowhere" in done.stderr) == ("nowhere" in more)
    assert account.files() == before
    assert list(account.state.iterdir()) == []
    assert done.stdout.splitlines() == [
        f"--- {cursor}",
        f"+++ {cursor}",
        "@@ -4,2 +4,2 @@",
        '-      "command": "npx",',
        '-      "args": ["-y", "@acme/crm"],',
        f'+      "command": "{IN_TOML}",',
        '+      "args": ["run", "--server", "crm", "--", "npx", "-y", "@acme/crm"],',
        "@@ -8,1 +8,1 @@",
        '-    "bare": { "command": "crm-server" },',
        f'+    "bare": {{ "command": "{IN_TOML}", "args": ["run", "--server", "bare", "--", "crm-server"] }},',
    ]


def test_it_asks_on_a_terminal_and_changes_nothing_without_a_yes(account: Account) -> None:
    cursor = account.cursor()
    status, said = account.on_terminal("install", typed=b"\n")
    assert (status, cursor.read_text("utf-8")) == (1, CURSOR)
    assert f"Change {cursor}? [y/N]" in said
    assert "nothing was changed" in said
    status, said = account.on_terminal("install", typed=b"y\n")
    assert (status, servers(cursor)["crm"]["command"]) == (0, PROGRAM)
    assert "\x1b[32m+" in said
    assert "\x1b[31m-" in said
    status, said = account.on_terminal("uninstall", typed=b"y\n", NO_COLOR="1")
    assert (status, cursor.read_text("utf-8")) == (0, CURSOR)
    assert "\x1b[" not in said
    assert f'-      "command": "{IN_TOML}",' in said


def test_it_does_not_ask_in_a_pipe(account: Account) -> None:
    cursor = account.cursor()
    done = account.run("install")
    assert done.returncode == 2
    assert "mcpguard: install asks for confirmation, and there is no terminal\nhint: add --yes" in done.stderr
    assert cursor.read_text("utf-8") == CURSOR
    account.install()
    assert account.run("uninstall").returncode == 2


# Options that it writes into entries


def test_what_the_variables_choose_is_written_as_options_and_those_without_one_are_warned_of(account: Account) -> None:
    file = account.cursor(ONE)
    done = account.install(
        MCPGUARD_NAMESPACE="team",
        MCPGUARD_POLICY="~/policy.toml", MCPGUARD_USER="alice", MCPGUARD_STORE="redis://cache/0",
        MCPGUARD_DENIALS="error", MCPGUARD_OBSERVE="1", MCPGUARD_QUIET="1", MCPGUARD_AGENT="::background::",
    )  # fmt: skip
    written = "--store redis://cache/0 --user alice --agent ::background:: --denials error --observe --quiet".split()
    assert servers(file)["a"] == guarded("a", "a", options=("--policy", str(account.home / "policy.toml"), *written))
    assert "warning: MCPGUARD_HOME is set here, but clients do not pass it on to the servers: " in done.stderr
    assert "warning: MCPGUARD_NAMESPACE is set here" in done.stderr


def test_a_server_whose_name_is_not_utf_8_is_left_and_the_others_are_done(account: Account) -> None:
    file = account.cursor(listing(**{"a\ud800": {"command": "a"}, "b": {"command": "b", "args": []}}))
    why = "not changed: the server's name, an option or the path of mcpguard is not UTF-8"
    assert account.install(status=1).stderr.endswith(f"mcpguard: {file}: {why}\n")
    assert servers(file) == {"a\ud800": {"command": "a"}, "b": guarded("b", "b")}


@pytest.mark.skipif(sys.platform == "win32", reason="variables are Unicode")
def test_an_option_that_is_not_utf_8_is_not_written_into_a_file(account: Account) -> None:
    account.write("home/.claude.json", ONE)
    said = account.refusal("--hook", MCPGUARD_STORE="sqlite:///caf\udce9.db")
    assert said.count("an option or the path of mcpguard is not UTF-8\n") == 2  # of the server and of the hook
    assert "Traceback" not in said


TOKEN = "eyJhbGciOiJSUzI1NiJ9.e30.c2ln"


@pytest.mark.parametrize(
    ("name", "value", "status", "message"),
    [
        ("MCPGUARD_TOKEN", TOKEN, 2, "MCPGUARD_TOKEN is set here, and a secret must not be written into a client's file"),
        ("MCPGUARD_STORE_PASSWORD", "s3cret", 2, "MCPGUARD_STORE_PASSWORD is set here, and a secret must not be written"),
        ("MCPGUARD_STORE", "redis://:s3cret@cache/0", 2, "MCPGUARD_STORE holds a secret, which must not be written"),
        ("MCPGUARD_USER", TOKEN, 2, "MCPGUARD_USER holds a secret, which must not be written into a client's file"),
        ("MCPGUARD_STORE", "counters.db", 78, "MCPGUARD_STORE: this is not a URL"),
        ("MCPGUARD_AGENT", "nightly", 78, "MCPGUARD_AGENT: 'nightly' does not have three parts"),
        ("MCPGUARD_CONFIG", "/gone.toml", 78, f"MCPGUARD_CONFIG: {Path('/gone.toml').absolute()}: no such file"),
        ("MCPGUARD_DENIALS", "never", 78, "MCPGUARD_DENIALS: 'never' is none of auto, error, result"),
    ],
)
def test_a_secret_or_a_value_with_which_no_server_would_start_is_not_written_into_a_clients_file(
    account: Account, name: str, value: str, status: int, message: str
) -> None:
    account.cursor()
    said = account.refusal(status=status, **{name: value})
    assert said.startswith(f"mcpguard: {message}")
    assert ("hint: " in said, value in said) == (True, False) or status == 78
