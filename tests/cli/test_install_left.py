"""What `mcpguard install` and `uninstall` leave as it is, and what they do not find."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mcpguard.clients import plan
from tests.cli.account import APPS, CODEX, CURSOR, IN_TOML, PROGRAM, Account, listing, servers
from tests.cli.command import BOUND, permissions_bind
from tests.links import follows_links


def link(account: Account, name: str, target: Path) -> Path:
    """Make a link below the home folder."""
    place = account.home / name
    place.parent.mkdir()
    place.symlink_to(target)
    return place


@pytest.mark.parametrize("damaged", ['{"mcpServers": {"a": {"command": "x"}}', "{// strict\n}", "\xff", "[1, 2"])
def test_a_file_that_does_not_parse_is_left_and_the_other_clients_are_done(account: Account, damaged: str) -> None:
    cursor, codex = account.write("home/.cursor/mcp.json", damaged.encode("latin-1")), account.codex()
    done = account.install(status=1)
    assert cursor.read_bytes() == damaged.encode("latin-1")
    assert IN_TOML in codex.read_text("utf-8")
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("mcpguard: ")]
    assert line.startswith(f"mcpguard: {cursor}:")
    assert "hint: fix the file" in line


@pytest.mark.posix
def test_a_read_only_file_is_left_under_each_name_and_the_other_clients_are_done(account: Account) -> None:
    cursor, codex = account.cursor(), account.codex()
    cursor.chmod(0o444)
    link(account, ".lmstudio/mcp.json", cursor)
    done = account.in_process("install", "--yes", under=BOUND)
    assert (done.returncode, cursor.read_text("utf-8")) == (1, CURSOR)
    assert IN_TOML in codex.read_text("utf-8")
    assert f"mcpguard: {cursor}: not changed: Permission denied (hint: give your account the right to write" in done.stderr
    assert "Cursor" not in done.stdout
    assert "LM Studio" not in done.stdout, "it reads the same file"


@pytest.mark.posix
def test_without_a_writable_state_folder_no_file_is_changed(account: Account) -> None:
    cursor, codex = account.cursor(), account.codex()
    account.state.chmod(0o555)
    done = account.in_process("install", "codex", "--yes", under=BOUND)
    assert done.returncode == 1
    assert f"no copy of it can be saved in {account.state / 'backups'}: Permission denied" in done.stderr
    done = account.in_process("install", "--yes", under=BOUND)  # it must note that a server had no arguments
    assert done.returncode == 1
    assert f"{account.state / 'installed.json'}: cannot be written: Permission denied" in done.stderr
    assert (cursor.read_text("utf-8"), codex.read_text("utf-8")) == (CURSOR, CODEX)


@follows_links
def test_a_link_to_nothing_is_reported(account: Account) -> None:
    file = link(account, ".cursor/mcp.json", Path("gone.json"))
    told = f"mcpguard: {file}: cannot be read: No such file or directory (hint: check where the link leads)\n"
    assert account.install(status=1).stderr.endswith(told)


def test_a_sandboxed_server_is_refused_until_its_sandbox_lets_mcpguard_write(account: Account) -> None:
    settings: dict[str, object] = {"servers": {"a": {"command": "a", "args": [], "sandboxEnabled": True}}}
    file = account.write(f"{APPS}/Code/User/mcp.json", json.dumps(settings))
    assert f"add {account.state} to sandbox.filesystem.allowWrite in this file" in account.refusal()
    settings["sandbox"] = {"filesystem": {"allowWrite": [str(account.state)]}}
    file.write_text(json.dumps(settings), "utf-8")
    account.install()
    assert IN_TOML in file.read_text("utf-8")


DESKTOP = f"{APPS}/Claude/claude_desktop_config.json"


@pytest.fixture
def start_desktop(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes Claude Desktop run."""
    return lambda: monkeypatch.setattr(plan, "is_running", lambda client: client.key == "claude-desktop")


@follows_links
@pytest.mark.parametrize("argv", [["install"], ["uninstall"], ["install", "cursor"], ["uninstall", "cursor"]], ids=" ".join)
def test_claude_desktops_file_is_left_while_it_runs_even_if_another_client_reads_it_through_a_link(
    account: Account, start_desktop: Callable[[], None], argv: list[str]
) -> None:
    desktop = account.write(DESKTOP, CURSOR)
    linked = link(account, ".cursor/mcp.json", desktop)
    if argv[0] == "uninstall":
        assert "  Claude Desktop: start Claude Desktop\n" in account.install().stdout
    before = desktop.read_bytes()
    start_desktop()
    done = account.run(*argv, "--yes")
    assert (done.returncode, desktop.read_bytes()) == (1, before)
    told = "not changed: Claude Desktop is running, and would write its own copy back (hint: quit Claude Desktop"
    assert f"{linked if 'cursor' in argv else desktop}: {told}" in done.stderr


@pytest.mark.parametrize("content", [CURSOR, '{"globalShortcut": ""}'], ids=["guarded", "without servers"])
def test_claude_desktop_may_run_if_nothing_changes(account: Account, start_desktop: Callable[[], None], content: str) -> None:
    account.write(DESKTOP, content)
    account.codex()
    account.install()
    start_desktop()
    assert account.install().stderr == ""


# What is not found


def test_uninstall_has_nothing_to_do_for_a_named_client_without_a_file(account: Account) -> None:
    codex, hooks = account.codex(), account.home / ".codex/hooks.json"
    account.install("codex", "--hook")
    codex.unlink()
    done = account.uninstall("cursor", "codex")
    missing = [f"Cursor: no file {account.home / '.cursor/mcp.json'}", f"Codex: no file {codex}"]
    assert (done.stderr, done.stdout.splitlines()[:2], hooks.exists()) == ("", missing, False)


@pytest.mark.parametrize(
    ("argv", "status", "message", "hint"),
    [
        (["curser"], 2, "no such client: curser", "did you mean cursor?"),
        (["Claude Code"], 2, "no such client: Claude Code", "did you mean claude-code?"),
        (["xyz"], 2, "no such client: xyz", "use one of: claude-desktop claude-code"),
        (["--project", "/nowhere"], 2, "--project: /nowhere: no such folder", "name the folder that holds the project's files"),
        (["windsurf", "--project", "PROJECT"], 1, "Windsurf: it has no files in a project", "leave out --project"),
        (["gemini", "codex"], 1, "Gemini CLI: no file {home}/.gemini/settings.json", "add a server in the client first"),
        (["--server", "crn", "--server", "bare"], 1, "no file has a server named crn", "did you mean crm?"),
        (["--server", "web"], 1, "web: not changed: remote: mcpguard guards only servers that the client starts", ""),
    ],
)
def test_what_is_not_found_is_said_with_a_hint_and_the_rest_is_done(
    account: Account, argv: list[str], status: int, message: str, hint: str
) -> None:
    cursor, codex = account.cursor(), account.codex()
    done = account.install(*(word.replace("PROJECT", str(account.project)) for word in argv), status=status)
    told = f"mcpguard: {message.format(home=account.home)}" + (f" (hint: {hint}" if hint else "\n")
    assert told in done.stderr.replace("\nhint: ", " (hint: ")
    assert (IN_TOML in codex.read_text("utf-8")) == ("codex" in argv)
    assert (servers(cursor)["bare"]["command"] == PROGRAM) == ("bare" in argv)


def test_without_any_client_install_fails_and_uninstall_has_nothing_to_do(account: Account) -> None:
    hint = "(hint: add a server in a client first; mcpguard install --help names the clients)"
    assert account.install(status=1).stderr == f"mcpguard: no file of a client is found {hint}\n"
    done = account.install("--project", str(account.project), status=1)
    assert f"no file of a client is found in {account.project}" in done.stderr
    assert account.uninstall().stdout == "no client with servers is found\n"


@pytest.mark.parametrize("argv", [["install"], ["install", "cursor", "--dry-run"], ["uninstall", "--yes"]])
def test_a_file_without_servers_is_not_passed_over_in_silence(account: Account, argv: list[str]) -> None:
    account.cursor(listing())
    done = account.run(*argv)
    assert (done.returncode, done.stdout, done.stderr) == (0, "no client with servers is found\n", "")


@permissions_bind
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


@pytest.mark.posix
def test_a_project_below_a_folder_that_is_gone_is_a_usage_error(account: Account, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = account.project / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    said = "mcpguard: --project: the home or working folder for . does not exist\nhint: write an absolute path\n"
    assert account.install("--project", ".", status=2).stderr == said
