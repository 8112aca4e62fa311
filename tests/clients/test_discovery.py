"""Where the files of clients are found, on each system."""

import errno
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from mcpguard.clients.catalog import BY_KEY, CLIENTS, LOCAL, PROJECT, Client
from mcpguard.clients.discovery import MAX_BYTES, FileFault, Machine, client_paths, entries_of, may_exist, read, sources
from mcpguard.clients.entries import Layout
from mcpguard.documents.document import Dialect
from tests.build import refusing
from tests.clients.installations import written


def paths(key: str, machine: Machine, project: Path | None = None) -> list[str]:
    return [path.as_posix().removeprefix(DRIVE).replace("/home/a", "~") for path in client_paths(machine, BY_KEY[key], project)]


@pytest.mark.parametrize(
    ("error", "may"), [(errno.ENOENT, False), (errno.ENOTDIR, False), (errno.EACCES, True), (errno.EIO, True)]
)
def test_only_what_is_not_found_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int, may: bool) -> None:
    monkeypatch.setattr(os, "lstat", refusing(error))
    assert may_exist(tmp_path / "mcp.json") is may


HOME = Path("/home/a")
LINUX = Machine(HOME, {}, "linux")
MAC = Machine(HOME, {}, "darwin")
DRIVE = "C:" if sys.platform == "win32" else ""
WINDOWS = Machine(HOME, {"APPDATA": f"{DRIVE}/home/a/Roaming", "LOCALAPPDATA": f"{DRIVE}/home/a/Local"}, "win32")
MAC_APPS = "~/Library/Application Support"


@pytest.mark.parametrize(
    ("key", "linux", "mac", "windows"),
    [
        ("codex", *["~/.codex/config.toml"] * 3),
        ("vscode", "~/.config/Code/User/mcp.json", f"{MAC_APPS}/Code/User/mcp.json", "~/Roaming/Code/User/mcp.json"),
        ("zed", "~/.config/zed/settings.json", "~/.config/zed/settings.json", "~/Roaming/Zed/settings.json"),
        ("opencode", *["~/.config/opencode/opencode.json"] * 3),
        ("goose", *["~/.config/goose/config.yaml"] * 2, "~/Roaming/Block/goose/config/config.yaml"),
        ("claude-desktop", *(f"{apps}/Claude/claude_desktop_config.json" for apps in ("~/.config", MAC_APPS, "~/Roaming"))),
    ],
)
def test_a_client_has_its_file_in_the_folder_that_each_system_has_for_it(key: str, linux: str, mac: str, windows: str) -> None:
    assert [paths(key, machine)[0] for machine in (LINUX, MAC, WINDOWS)] == [linux, mac, windows]


@pytest.mark.posix  # the paths have no drive
@pytest.mark.parametrize(
    ("key", "variable", "folder", "file"),
    [
        ("claude-code", "CLAUDE_CONFIG_DIR", "/c", "/c/.claude.json"),
        ("codex", "CODEX_HOME", "/c", "/c/config.toml"),
        ("codex", "CODEX_HOME", "relative", "~/.codex/config.toml"),
        ("copilot", "COPILOT_HOME", "/c", "/c/mcp-config.json"),
        ("zed", "XDG_CONFIG_HOME", "/c", "/c/zed/settings.json"),
        ("opencode", "XDG_CONFIG_HOME", "/c", "/c/opencode/opencode.json"),
        ("claude-desktop", "XDG_CONFIG_HOME", "/c", "/c/Claude/claude_desktop_config.json"),
    ],
)
def test_a_variable_that_moves_a_clients_folder_is_obeyed(key: str, variable: str, folder: str, file: str) -> None:
    moved = Machine(HOME, {variable: folder}, "linux")
    assert paths(key, moved)[0] == file
    if key == "zed":  # it reads the variable on Linux alone
        assert paths(key, moved._replace(system="darwin")) == ["~/.config/zed/settings.json"]


def test_a_packaged_claude_desktop_on_windows_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "Local/Packages/Claude_pzs8sxrjxfjjc/LocalCache/Roaming/Claude"
    written(folder / "claude_desktop_config.json", {})
    machine = Machine(tmp_path, {"LOCALAPPDATA": str(tmp_path / "Local")}, "win32")
    assert [source.file.parent for source in sources(machine)] == [folder]


def test_profiles_and_insiders_of_vs_code_are_found(tmp_path: Path) -> None:
    for name in ("Code/User", "Code/User/profiles/-1a", "Code - Insiders/User"):
        written(tmp_path / ".config" / name / "mcp.json", {})
    found = sources(Machine(tmp_path, {}, "linux"))
    assert {source.client.key for source in found} == {"vscode"}
    assert [source.scope for source in found] == ["user", "profile", "insiders"]


SERVER = {"command": "npx", "args": ["-y"]}


def sample(layout: Layout, dialect: Dialect) -> str:
    """A file with a server, in the client's own form."""
    entry: dict[str, Any] = {layout.command: "npx", layout.args: ["-y"]} if layout.args else {layout.command: ["npx", "-y"]}
    entry = {layout.nested: entry} if layout.nested else entry
    content: Any = [{"name": "crm"} | entry] if layout.is_list else {"crm": entry}
    for key in reversed(layout.path):
        content = {key: content}
    if dialect is Dialect.TOML:
        return tomli_w.dumps(content)
    text = json.dumps(content, indent=2)  # which is YAML, too
    return text if dialect is not Dialect.JSONC else "// ours\n" + text.replace('"\n', '",\n', 1)


@pytest.mark.parametrize("client", CLIENTS, ids=[client.key for client in CLIENTS])
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["LF", "CRLF"])
def test_the_servers_of_each_location_are_found_and_read(tmp_path: Path, client: Client, end: str) -> None:
    machine, project = Machine(tmp_path / "home", {}, "linux"), tmp_path / "project"
    for pattern, scope, layout, dialect in client.locations:
        where = pattern.replace("*.", "one.").replace("y*ml", "yaml").replace("profiles/*", "profiles/one")
        for file in machine.paths(where, project) if scope != LOCAL else ():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(sample(layout, dialect).replace("\n", end).encode())
            found = sources(machine, [client], project if scope == PROJECT else None)
            mine = [one for one in found if one.file == file and one.layout == layout]
            (entry,) = [entry for one in mine for entry in entries_of(one, read(file))]
            assert (entry.name, entry.kind, entry.words) == ("crm", "stdio", ("npx", "-y")), file
            file.unlink()


def test_claude_codes_servers_of_a_project_are_found_in_the_accounts_file(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    projects = {str(tmp_path / "one"): {"mcpServers": {"b": SERVER}}, "/two": {}}
    written(tmp_path / ".claude.json", {"mcpServers": {"a": SERVER}, "projects": projects})

    def found(project: Path | None) -> list[tuple[str, str, list[str]]]:
        every = sources(Machine(tmp_path, {}, "linux"), project=project)
        return [(one.scope, one.project, [entry.name for entry in entries_of(one, read(one.file))]) for one in every]

    local = ("local", str(tmp_path / "one"), ["b"])
    assert found(None) == [("user", "", ["a"]), local]
    assert found(tmp_path / "one") == [local]
    assert found(tmp_path) == []


def test_projects_of_claude_code_without_a_path_or_in_another_form_are_passed_over(tmp_path: Path) -> None:
    one = {"mcpServers": {"a": SERVER}}
    projects: dict[str, object] = {"a\0b": one, "\ud800": one, "/null": None, "/list": [], str(tmp_path): one}
    written(tmp_path / ".claude.json", {"projects": projects})
    machine = Machine(tmp_path, {}, "linux")
    assert [one.project for one in sources(machine)][-1] == str(tmp_path)
    assert [one.project for one in sources(machine, project=tmp_path)] == [str(tmp_path)]


@pytest.mark.posix  # Windows refuses to open a folder
def test_a_file_that_cannot_be_read_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(FileFault, match="Is a directory") as folder:
        read(tmp_path)
    assert folder.value.hint == "put a file in its place"
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(FileFault) as link:
        read(tmp_path / "link")
    assert link.value.hint == "check where the link leads"
    (tmp_path / "large").touch()
    os.truncate(tmp_path / "large", MAX_BYTES + 1)
    with pytest.raises(FileFault, match="over 64 MiB"):
        read(tmp_path / "large")
