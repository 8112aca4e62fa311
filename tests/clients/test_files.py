"""Files as the clients' documents describe them, in LF and CRLF, with and without a byte order mark."""

import codecs
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from mcpguard.clients.entries import Layout, entries
from mcpguard.documents.document import Dialect
from tests.clients.single import guarded

FOLDER: Final = Path(__file__).with_name("files")
SERVERS: Final = Layout(("mcpServers",))
GUARD: Final = ("/x/mcpguard", "run", "--")


class Sample(NamedTuple):
    file: str
    layout: Layout
    dialect: Dialect
    stdio: str
    others: dict[str, str]


SAMPLES: Final = [
    Sample("claude_desktop_config.json", SERVERS, Dialect.JSON, "filesystem sqlite time empty", {}),
    Sample("claude.json", SERVERS, Dialect.JSON, "crm", {"sentry": "remote"}),
    Sample("claude.json", Layout(("projects", "/home/alice/work/shop", "mcpServers")), Dialect.JSON, "db", {}),
    Sample("claude_code.mcp.json", SERVERS, Dialect.JSON, "crm git", {}),
    Sample(
        "codex.config.toml",
        Layout(("mcp_servers",)),
        Dialect.TOML,
        "crm docs my\tfiles",
        {"figma": "remote", "old": "disabled"},
    ),
    Sample("cursor.mcp.json", SERVERS, Dialect.JSON, "crm", {"linear": "remote"}),
    Sample("vscode.mcp.json", Layout(("servers",)), Dialect.JSONC, "crm python bare sandboxed", {"github": "remote"}),
    Sample("vscode.settings.json", Layout(("mcp", "servers")), Dialect.JSONC, "crm", {}),
    Sample("copilot.mcp-config.json", SERVERS, Dialect.JSONC, "crm", {"docs": "remote"}),
    Sample("windsurf.mcp_config.json", SERVERS, Dialect.JSON, "github", {"figma": "remote", "off": "disabled"}),
    Sample(
        "zed.settings.json",
        Layout(("context_servers",)),
        Dialect.JSONC,
        "crm",
        {"postgres-context-server": "bundled", "old-form": "faulty"},
    ),
    Sample("gemini.settings.json", SERVERS, Dialect.JSONC, "crm", {"remote": "remote"}),
    Sample("qwen.settings.json", SERVERS, Dialect.JSONC, "crm bare", {"remote": "remote"}),
    Sample("opencode.jsonc", Layout(("mcp",), args=None), Dialect.JSONC, "crm bun", {"jira": "remote", "off": "disabled"}),
    Sample(
        "cline_mcp_settings.json",
        Layout(("mcpServers",), nested="transport"),
        Dialect.JSON,
        "flat nested",
        {"nested-remote": "remote"},
    ),
    Sample(
        "continue.config.yaml",
        Layout(("mcpServers",), is_list=True),
        Dialect.YAML,
        "crm SQLite\tMCP bare",
        {"docs": "remote"},
    ),
    Sample(
        "goose.config.yaml",
        Layout(("extensions",), command="cmd"),
        Dialect.YAML,
        "crm empty",
        {"developer": "bundled", "shared": "faulty", "tagged": "faulty", "web": "remote", "off": "disabled"},
    ),
    Sample("kiro.mcp.json", SERVERS, Dialect.JSON, "aws-docs", {}),
    Sample("lmstudio.mcp.json", SERVERS, Dialect.JSON, "crm", {"hf-mcp-server": "remote"}),
]


def names(sample: Sample) -> list[str]:
    return [name.replace("\t", " ") for name in sample.stdio.split(" ")]


def variants(sample: Sample) -> list[bytes]:
    data = (FOLDER / sample.file).read_bytes()
    crlf = data.replace(b"\n", b"\r\n")
    return [data, crlf, codecs.BOM_UTF8 + data, codecs.BOM_UTF8 + crlf, data.rstrip(), crlf.rstrip()]


every_sample = pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: f"{sample.file}:{'.'.join(sample.layout.path)}")


@every_sample
def test_the_kind_of_each_server_is_found(sample: Sample) -> None:
    for data in variants(sample):
        kinds = {entry.name: entry.kind for entry in entries(data, sample.layout, sample.dialect)}
        assert kinds == dict.fromkeys(names(sample), "stdio") | sample.others


@every_sample
def test_new_lines_end_as_the_files_lines_do(sample: Sample) -> None:
    data = (FOLDER / sample.file).read_bytes()
    for name in names(sample):
        new = guarded(data, sample.layout, sample.dialect, name, GUARD)
        crlf = guarded(data.replace(b"\n", b"\r\n"), sample.layout, sample.dialect, name, GUARD)
        assert crlf == new.replace(b"\n", b"\r\n")


def test_the_look_of_guarded_entries_is_the_files_own() -> None:
    codex = (FOLDER / "codex.config.toml").read_bytes()
    new = guarded(codex, Layout(("mcp_servers",)), Dialect.TOML, "crm", GUARD)
    assert (
        b"""command = "/x/mcpguard"       # a launcher
args = [
    # keep -y
    "run",
    "--",
    "npx",
    "-y",
    '@acme/crm-mcp',  # no version
"""
        in new
    )
    goose = (FOLDER / "goose.config.yaml").read_bytes()
    new = guarded(goose, Layout(("extensions",), command="cmd"), Dialect.YAML, "crm", GUARD)
    assert (
        b"""    crm:
        args:
        - "run"
        - "--"
        - npx
        - -y
        # the package
"""
        in new
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('{"command":"npx"}', '{"command":"/x/mcpguard","args":["run","--","npx"]}'),
        ('{"command": "npx"}', '{"command": "/x/mcpguard", "args": ["run", "--", "npx"]}'),
        ('{"command":"npx","args":["-y","crm"]}', '{"command":"/x/mcpguard","args":["run","--","npx","-y","crm"]}'),
        ('{\n\t"command" : "npx"\n}', '{\n\t"command" : "/x/mcpguard",\n\t"args" : ["run", "--", "npx"]\n}'),
        ('{"command": /* old */ "npx"}', '{"command": /* old */ "/x/mcpguard", "args": ["run", "--", "npx"]}'),
    ],
)
def test_spaces_and_lines_of_new_arguments_are_those_of_the_entry(old: str, new: str) -> None:
    data = f'{{"mcpServers": {{"crm": {old}}}}}'.encode()
    found = guarded(data, SERVERS, Dialect.JSONC, "crm", GUARD)
    assert found.decode() == f'{{"mcpServers": {{"crm": {new}}}}}'
