"""Files as the clients' documents describe them, in LF and CRLF, with and without a byte order mark."""

import codecs
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

import pytest

from mcpguard.clients.catalog import BY_KEY
from mcpguard.clients.discovery import Machine, Source, entries_of, sources
from mcpguard.clients.entries import Layout
from mcpguard.documents.document import Dialect
from tests.cli.account import APPS
from tests.clients.single import guarded

FOLDER: Final = Path(__file__).with_name("files")
SERVERS: Final = Layout(("mcpServers",))
GUARD: Final = ("/x/mcpguard", "run", "--")
ON_WINDOWS: Final = sys.platform == "win32"
GOOSE: Final = f"{APPS}/Block/goose/config/config.yaml" if ON_WINDOWS else "home/.config/goose/config.yaml"
ZED: Final = f"{APPS}/Zed/settings.json" if ON_WINDOWS else "home/.config/zed/settings.json"
GOOSES: Final = {"developer": "bundled", "shared": "faulty", "tagged": "faulty", "web": "remote", "off": "disabled"}
CODEXES: Final = {"figma": "remote", "old": "disabled"}
OFF: Final = {"off": "disabled"}
WINDSURF: Final = "home/.codeium/windsurf"
ZEDS: Final = {"postgres-context-server": "bundled", "old-form": "faulty"}


class Sample(NamedTuple):
    file: str
    client: str
    place: str  # below a folder with a home folder and a project
    stdio: str  # the names of its stdio servers, with commas
    others: Mapping[str, str] = MappingProxyType({})  # the kinds of its other servers


CLAUDE: Final = "claude_desktop_config.json"
SAMPLES: Final = [
    Sample(CLAUDE, "claude-desktop", f"{APPS}/Claude/{CLAUDE}", "filesystem,sqlite,time,empty"),
    Sample("claude.json", "claude-code", "home/.claude.json", "crm,db", {"sentry": "remote"}),
    Sample("claude_code.mcp.json", "claude-code", "project/.mcp.json", "crm,git"),
    Sample("codex.config.toml", "codex", "home/.codex/config.toml", "crm,docs,my files", CODEXES),
    Sample("cursor.mcp.json", "cursor", "home/.cursor/mcp.json", "crm", {"linear": "remote"}),
    Sample("vscode.mcp.json", "vscode", f"{APPS}/Code/User/mcp.json", "crm,python,bare,sandboxed", {"github": "remote"}),
    Sample("vscode.settings.json", "vscode", f"{APPS}/Code/User/settings.json", "crm"),
    Sample("copilot.mcp-config.json", "copilot", "home/.copilot/mcp-config.json", "crm", {"docs": "remote"}),
    Sample("windsurf.mcp_config.json", "windsurf", f"{WINDSURF}/mcp_config.json", "github", {"figma": "remote"} | OFF),
    Sample("zed.settings.json", "zed", ZED, "crm", ZEDS),
    Sample("gemini.settings.json", "gemini", "home/.gemini/settings.json", "crm", {"remote": "remote"}),
    Sample("qwen.settings.json", "qwen", "home/.qwen/settings.json", "crm,bare", {"remote": "remote"}),
    Sample("opencode.jsonc", "opencode", "home/.config/opencode/opencode.jsonc", "crm,bun", {"jira": "remote"} | OFF),
    Sample("cline_mcp_settings.json", "cline", "home/.cline/mcp.json", "flat,nested", {"nested-remote": "remote"}),
    Sample("continue.config.yaml", "continue", "home/.continue/config.yaml", "crm,SQLite MCP,bare", {"docs": "remote"}),
    Sample("goose.config.yaml", "goose", GOOSE, "crm,empty", GOOSES),
    Sample("kiro.mcp.json", "kiro", "home/.kiro/settings/mcp.json", "aws-docs"),
    Sample("lmstudio.mcp.json", "lm-studio", "home/.lmstudio/mcp.json", "crm", {"hf-mcp-server": "remote"}),
]


def sources_of(sample: Sample, folder: Path) -> list[Source]:
    """Where the file has servers."""
    path = folder / sample.place
    path.parent.mkdir(parents=True)
    path.write_bytes((FOLDER / sample.file).read_bytes())
    project = folder / "project" if sample.place.startswith("project/") else None
    return sources(Machine(folder / "home", {}), [BY_KEY[sample.client]], project)


def variants(sample: Sample) -> list[bytes]:
    data = (FOLDER / sample.file).read_bytes()
    crlf = data.replace(b"\n", b"\r\n")
    return [data, crlf, codecs.BOM_UTF8 + data, codecs.BOM_UTF8 + crlf, data.rstrip(), crlf.rstrip()]


every_sample = pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.file)


@every_sample
def test_the_kind_of_each_server_is_found(tmp_path: Path, sample: Sample) -> None:
    found = sources_of(sample, tmp_path)
    for data in variants(sample):
        kinds = {entry.name: entry.kind for source in found for entry in entries_of(source, data)}
        assert kinds == dict.fromkeys(sample.stdio.split(","), "stdio") | dict(sample.others)


@every_sample
def test_new_lines_end_as_the_files_lines_do(tmp_path: Path, sample: Sample) -> None:
    data = (FOLDER / sample.file).read_bytes()
    for source in sources_of(sample, tmp_path):
        for entry in entries_of(source, data):
            if entry.kind == "stdio":
                where = source.layout, source.dialect, entry.name
                crlf = guarded(data.replace(b"\n", b"\r\n"), *where, GUARD)
                assert crlf == guarded(data, *where, GUARD).replace(b"\n", b"\r\n")


TOML_LOOK: Final = """command = "/x/mcpguard"       # a launcher
args = [
    # keep -y
    "run",
    "--",
    "npx",
"""
YAML_LOOK: Final = """    crm:
        args:
        - "run"
        - "--"
        - npx
        - -y
        # the package
"""


@pytest.mark.parametrize(
    ("file", "layout", "dialect", "look"),
    [
        ("codex.config.toml", Layout(("mcp_servers",)), Dialect.TOML, TOML_LOOK),
        ("goose.config.yaml", Layout(("extensions",), command="cmd"), Dialect.YAML, YAML_LOOK),
    ],
)
def test_the_look_of_guarded_entries_is_the_files_own(file: str, layout: Layout, dialect: Dialect, look: str) -> None:
    assert look in guarded((FOLDER / file).read_bytes(), layout, dialect, "crm", GUARD).decode()
