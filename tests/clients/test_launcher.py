"""Which command `install` writes, and its warning of commands that an app on macOS may not find."""

import errno
import os
import sys
import sysconfig
import tempfile
from pathlib import Path

import pytest

from mcpguard.clients.catalog import BY_KEY
from mcpguard.clients.discovery import Machine, Source
from mcpguard.clients.entries import Entry
from mcpguard.clients.installing import SHORT, short_path_warnings
from mcpguard.clients.launcher import PROGRAM, Launcher, find, is_same, launcher, may_vary, own_program, stable, words_of
from mcpguard.clients.plan import ChangePlan, EntryOutcome
from mcpguard.errors import McpguardError
from tests.build import refusing
from tests.clients.installations import program
from tests.links import follows_links


@pytest.fixture
def venv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment with the program, and an account of its own."""
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path / "home"))
    return program(tmp_path / f"tools/mcpguard-cli/bin/{PROGRAM}").parent.parent


def link(path: Path, target: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)
    return path


def here(monkeypatch: pytest.MonkeyPatch, script: Path) -> None:
    """Let this environment's program be here."""
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(script.parent))
    monkeypatch.setattr(sys, "executable", str(script.with_name("python")))


@follows_links
@pytest.mark.parametrize(
    ("links", "variables", "taken"),
    [
        *((["bin"], {variable: "bin"}, "bin") for variable in ("UV_TOOL_BIN_DIR", "PIPX_BIN_DIR", "XDG_BIN_HOME")),
        (["brew"], {"PATH": "brew"}, "brew"),
        (["brew", "home/.local/bin"], {"PATH": "brew"}, "home/.local/bin"),
        ([], {"PATH": "gone"}, ""),  # a link that leads nowhere
        ([], {"PATH": "other"}, ""),  # a program of another environment
        ([], {}, ""),
    ],
)
def test_a_link_of_uv_pipx_or_a_package_manager_is_taken(
    tmp_path: Path, venv: Path, links: list[str], variables: dict[str, str], taken: str
) -> None:
    own = venv / f"bin/{PROGRAM}"
    for folder in links:
        link(tmp_path / folder / PROGRAM, own)
    link(tmp_path / "gone" / PROGRAM, tmp_path / "nothing")
    program(tmp_path / "other" / PROGRAM)
    too_long = f"{tmp_path}/{'x' * 300}"  # it cannot be looked into
    environ = {name: str(tmp_path / folder) for name, folder in variables.items()}
    environ["PATH"] = os.pathsep.join([too_long, "relative", f"{venv}/bin", environ.get("PATH", "")])
    assert stable(own, environ) == (tmp_path / taken / PROGRAM if taken else own)


@follows_links
def test_the_link_that_uvs_receipt_names_is_taken_first(tmp_path: Path, venv: Path) -> None:
    usual = link(tmp_path / f"home/.local/bin/{PROGRAM}", venv / f"bin/{PROGRAM}")
    shim = link(tmp_path / f"my bin/{PROGRAM}", venv / f"bin/{PROGRAM}")
    entry = f'entrypoints = [\n    {{ name = "mcpguard", install-path = "{shim}" }},\n]\n'
    for receipt, taken in ((f'[tool]\nrequirements = [{{ name = "mcpguard-cli" }}]\n{entry}', shim), ("damaged [", usual)):
        (venv / "uv-receipt.toml").write_text(receipt)
        assert stable(venv / f"bin/{PROGRAM}", {}) == taken


CACHES = ("home/.cache/uv/archive-v0/x1/bin", "home/Library/Caches/uv/archive-v0/x1/bin", "home/Library/Caches/pipx/x1/bin")
ON_WINDOWS = ("home/AppData/Local/uv/cache/x1/Scripts", "home/AppData/Local/pipx/pipx/Cache/x1/bin")
STAYING = ("home/projects/cache/venv/bin", "homebrew/bin", "opt/venv/bin", "home/.local/bin")


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("work/checkout/.venv/bin", "is in the checkout"),
        *((folder, "is in a cache") for folder in (*CACHES, *ON_WINDOWS)),
        ("tmp/venv/bin", "is in a temporary folder"),
        *((folder, "") for folder in STAYING),
    ],
)
def test_a_place_that_may_go_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, said: str) -> None:
    for folder in ("work/checkout", "home", "homebrew"):  # some people keep their whole home folder in git
        (tmp_path / folder / ".git").mkdir(parents=True)
    (tmp_path / "homebrew/Cellar").mkdir()
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    here(monkeypatch, program(tmp_path / place / PROGRAM))
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path / "home"))
    warnings = launcher({}).warnings
    assert [said in warning for warning in warnings] == ([True] if said else [])


def test_a_place_is_known_though_no_folder_takes_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "gettempdir", refusing(errno.ENOENT))
    here(monkeypatch, program(tmp_path / f"home/.cache/uv/archive-v0/x1/bin/{PROGRAM}"))
    (warning,) = launcher({}).warnings
    assert "is in a cache" in warning


def test_an_environment_without_the_program_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    brought = program(tmp_path / f"project/{PROGRAM}")
    monkeypatch.chdir(brought.parent)
    here(monkeypatch, tmp_path / f"none/{PROGRAM}")
    for argv in ("-c", "", "mcpguard"):
        monkeypatch.setattr(sys, "argv", [argv])
        with pytest.raises(McpguardError, match="no program mcpguard") as error:
            launcher({})
        assert "uv tool install" in error.value.hint
    monkeypatch.setattr(sys, "argv", [str(brought)])
    assert own_program({"PATH": ""}) == brought


def test_the_command_line_of_a_hook_can_be_split_again() -> None:
    start = Launcher(f"/my programs/{PROGRAM}", (("--policy", "/p"), ("--store", "redis://h/0"), ("--quiet",)))
    assert words_of(start.hook("codex")) == [f"/my programs/{PROGRAM}", "hook", "codex", "--store", "redis://h/0"]
    assert words_of('"unfinished') == []


def test_a_windows_path_in_a_hook_has_slashes_and_powershell_calls_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    start = Launcher("C:\\my programs\\mcpguard.exe")
    assert start.hook("claude-code") == '"C:/my programs/mcpguard.exe" hook claude-code'
    assert start.hook("copilot") == '& "C:/my programs/mcpguard.exe" hook copilot'
    assert words_of(start.hook("copilot"))[0] == "C:/my programs/mcpguard.exe"
    assert start.hook("copilot", "C:/gone/mcpguard.exe hook copilot") == start.hook("copilot")
    assert start.hook("copilot", '& "C:/go ne/mcpguard.exe" hook copilot') == start.hook("copilot")
    start = Launcher("C:\\mcpguard.exe", (("--config", "C:\\acme\\config.toml"),))
    assert start.hook("claude-code") == "C:/mcpguard.exe hook claude-code --config C:/acme/config.toml"


def test_a_bare_name_is_looked_for_on_the_path(tmp_path: Path) -> None:
    found = program(tmp_path / f"bin/{PROGRAM}")
    assert find("mcpguard", {"PATH": str(tmp_path / "bin")}) == found
    assert find("mcpguard", {"PATH": str(tmp_path)}) is None
    assert find(str(found), {}) == found
    assert find(f"{tmp_path}/{'x' * 300}/mcpguard", {}) is None  # it cannot be looked into
    assert find(str(tmp_path), os.environ) is None


def test_a_path_with_a_variable_of_the_client_is_known_only_to_the_client() -> None:
    paths = ("${userHome}/bin/mcpguard", "{env:HOME}/bin/mcpguard", f"/usr/bin/{PROGRAM}")
    assert [may_vary(path) for path in paths] == [True, True, False]


def test_two_spellings_of_a_path_are_one_file_if_case_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **more: stat(str(path).replace("UPPER", "upper"), **more))
    program(tmp_path / f"upper/{PROGRAM}")
    assert is_same(tmp_path / f"upper/{PROGRAM}", f"{tmp_path}/UPPER/{PROGRAM}")
    assert not is_same(tmp_path / "upper", tmp_path)
    assert is_same(f"{tmp_path}/gone/../x", tmp_path / "x")  # neither exists
    assert not is_same("a\0", "a\0")


def outcome(command: str, client: str = "claude-desktop", action: str = "guard") -> EntryOutcome:
    location = BY_KEY[client].locations[0]
    source = Source(BY_KEY[client], "user", Path("/f.json"), location.layout, location.dialect)
    return EntryOutcome(source, Entry("crm", "stdio", (command, "-y") if command else ()), action)


def warnings(home: Path, *outcomes: EntryOutcome, path: str = "", system: str = "darwin") -> list[str]:
    plan = ChangePlan(home / "state", Machine(home, {"PATH": path}, system))
    plan.outcomes += outcomes
    return list(short_path_warnings(plan))


pytestmark = pytest.mark.posix  # programs of macOS are found by their modes


def test_a_command_beyond_the_short_path_is_named_once_with_its_full_path_and_that_of_what_it_needs(tmp_path: Path) -> None:
    npx = program(tmp_path / "tools/npx-9", "#!/usr/bin/env node-9\n")
    node = program(tmp_path / "node/node-9")
    found = [outcome("npx-9"), outcome("npx-9"), outcome("npx-9", "cursor"), outcome("sh")]
    (warning,) = warnings(tmp_path, *found, path=f"{npx.parent}:{node.parent}")
    assert warning == (
        "npx-9 is not on the PATH of apps that the Dock starts. If Claude Desktop or Cursor cannot start a server with it, "
        f'write {npx} in its place, and "PATH": "{npx.parent}:{node.parent}:{SHORT}" into env'
    )


@pytest.mark.parametrize("folder", [".local/bin", ".volta/bin", ".asdf/shims", ".nvm/versions/node/v22.1.0/bin"])
def test_it_is_looked_for_where_package_managers_put_it(tmp_path: Path, folder: str) -> None:
    program(tmp_path / ".nvm/versions/node/v9.0.0/bin/uvx-9")
    found = program(tmp_path / folder / "uvx-9")
    (warning,) = warnings(tmp_path, outcome("uvx-9"))
    assert f'write {found} in its place, and "PATH": "{found.parent}:{SHORT}" into env' in warning


def test_a_command_that_is_found_nowhere_is_named_too(tmp_path: Path) -> None:
    (warning,) = warnings(tmp_path, outcome("npx-9"))
    assert warning.endswith("cannot start a server with it, write its full path")


def test_a_path_a_client_in_a_terminal_a_server_that_stays_and_another_system_bring_no_warning(tmp_path: Path) -> None:
    for other in ("/opt/npx-9", "sh", ""):
        assert warnings(tmp_path, outcome(other)) == []
    assert warnings(tmp_path, outcome("npx-9", "claude-code"), outcome("npx-9", action="keep")) == []
    assert warnings(tmp_path, outcome("npx-9"), system="linux") == []
