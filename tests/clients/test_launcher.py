"""Which command `install` writes."""

import errno
import os
import sys
import sysconfig
import tempfile
from pathlib import Path

import pytest

from mcpguard.clients.launcher import PROGRAM, Launcher, find, is_same, launcher, may_vary, own_program, stable, words_of
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
