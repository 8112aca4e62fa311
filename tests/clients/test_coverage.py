"""Servers of plugins, remote servers and hooks: what `clients` and `doctor` say of each."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from mcpguard.clients.catalog import BY_KEY
from mcpguard.clients.coverage import Coverage, counted
from mcpguard.clients.discovery import FileFault, Machine, hook_files
from mcpguard.clients.hooks import why_skipped
from tests.cli.account import HOOK, PROGRAM
from tests.clients.installations import hooks, written

STDIO = {"crm": {"command": "npx", "args": ["-y", "@acme/crm"]}}
SERVERS = {"mcpServers": STDIO}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path, {"PATH": "/usr/bin"}, "linux")


def write(machine: Machine, name: str, value: Any) -> Path:
    return written(machine.home / name, value)


def filled(machine: Machine, text: str) -> str:
    """A text in which the home folder is in place of `HOME`, as JSON and TOML have it on all systems."""
    return text.replace("file://HOME", machine.home.as_uri()).replace("HOME", f"/{machine.home.as_posix().lstrip('/')}")


def seen(machine: Machine, project: Path | None = None) -> tuple[dict[str, str], str]:
    """The state of each server, or what would guard it; a file that cannot be read is a fault. And how many are guarded."""
    coverage, found = Coverage(machine), {}
    for source in coverage.sources(project):
        try:
            for one in coverage.servers(source):
                told = one.fix.partition(" (its hook")[0] if one.state == "unguarded" else one.state
                found[f"{source.client.key} {source.project or source.plugin} {one.entry.name}"] = told
        except FileFault:
            found[str(source.file)] = "fault"
    return found, counted(coverage.states())


def states(machine: Machine, project: Path | None = None) -> dict[str, str]:
    return seen(machine, project)[0]


CACHE = ".claude/plugins/cache/market/crm"
BY_HAND = "add its command to the client's own file, switch it off here, then run mcpguard install {}"

CLAUDE = "claude-code crm@market plugin:crm:crm"
AGENT = ".vscode/agent-plugins/github.com/acme/crm x"
AGENT_PLUGINS = {
    ".vscode/agent-plugins/installed.json": {
        "version": 1,
        "installed": [{"pluginUri": f"file://HOME/{AGENT}".replace(" ", "%20"), "marketplace": "acme/crm"}],
    },
    f"{AGENT}/plugin.json": {"$schema": "https://agent-plugins.org/1", "name": "crm"},
    f"{AGENT}/mcp.json": {"$schema": "s", **SERVERS},
    ".vscode/agent-plugins/github.com/acme/other/mcp.json": SERVERS,
}
OF_CODEX = ".codex/plugins/cache/market/crm/1.0"
BUNDLE = {"type": "node", "entry_point": "i.js", "mcp_config": {"command": "node", "args": ["${__dirname}/i.js"]}}

FORMS = [
    ("claude-code", {f"{CACHE}/1.0/.mcp.json": SERVERS}, CLAUDE, "--enforce"),
    ("a flat file", {f"{CACHE}/1.0/.mcp.json": STDIO}, CLAUDE, "--enforce"),
    ("in the manifest", {f"{CACHE}/1.0/.claude-plugin/plugin.json": SERVERS}, CLAUDE, "--enforce"),
    ("codex", {f"{OF_CODEX}/.codex-plugin/plugin.json": {"mcpServers": "./servers.json"}, f"{OF_CODEX}/servers.json": SERVERS},
     "codex crm@market crm", ""),
    ("copilot", {".copilot/installed-plugins/market/crm/.github/mcp.json": SERVERS}, "copilot crm crm", "--enforce"),
    ("cursor", {".cursor/plugins/local/crm/mcp.json": SERVERS}, "cursor crm crm", "--enforce"),
    ("Agent Plugins", AGENT_PLUGINS, "vscode crm x crm", BY_HAND.format("vscode")),
    ("gemini", {".gemini/extensions/crm/gemini-extension.json": {"name": "crm", **SERVERS}}, "gemini crm crm", "--enforce"),
    ("qwen", {".qwen/extensions/crm/qwen-extension.json": {"name": "crm", **SERVERS}}, "qwen crm crm", BY_HAND.format("qwen")),
    ("a bundle", {".config/Claude/Claude Extensions/ant.dir.crm/manifest.json": {"name": "crm", "server": BUNDLE}},
     "claude-desktop ant.dir.crm crm", BY_HAND.format("claude-desktop")),
]  # fmt: skip


@pytest.mark.parametrize(("files", "server", "fix"), [form[1:] for form in FORMS], ids=[form[0] for form in FORMS])
def test_a_plugins_server_is_told_with_what_guards_it(machine: Machine, files: dict[str, Any], server: str, fix: str) -> None:
    for name, value in files.items():
        write(machine, name, filled(machine, json.dumps(value)))
    client = server.split()[0]
    expected = f"mcpguard install {client} {fix}".strip() if fix in ("", "--enforce") else fix
    assert states(machine) == {server: expected}


def test_a_remote_server_in_yaml_gets_a_command_by_hand(machine: Machine) -> None:
    write(machine, ".config/goose/config.yaml", "extensions:\n  crm: {type: streamable_http, uri: https://mcp.acme.com}\n")
    fix = "write npx -y mcp-remote and its URL as its command, then run mcpguard install goose"
    assert [*states(machine).values()] == [fix]


@pytest.mark.parametrize(
    ("versions", "used"),
    [(("0.9.0", "0.10.0", "0.2.0"), "0.10.0"), (("2.0", "local"), "local"), (("1.0.0", "abc"), "1.0.0")],
)
def test_of_a_plugins_versions_the_one_that_is_started_counts(machine: Machine, versions: tuple[str, ...], used: str) -> None:
    for version in versions:
        write(machine, f".codex/plugins/cache/market/crm/{version}/.mcp.json", {"mcpServers": {version: STDIO["crm"]}})
    assert [*states(machine)] == [f"codex crm@market {used}"]


def test_a_register_tells_the_version_the_project_and_what_is_switched_off(machine: Machine) -> None:
    for version in ("1.0", "2.0"):
        write(machine, f"{CACHE}/{version}/.mcp.json", {"mcpServers": {version: STDIO["crm"]}})
    project = machine.home / "project"
    at = {version: {"installPath": str(machine.home / CACHE / version)} for version in ("1.0", "2.0")}
    plugins = {"crm@market": [{"scope": "user"} | at["1.0"], {"scope": "project", "projectPath": str(project)} | at["2.0"]]}
    write(machine, ".claude/plugins/installed_plugins.json", {"version": 2, "plugins": plugins})
    assert [*states(machine)] == ["claude-code crm@market plugin:crm:1.0"]
    assert [*states(machine, project)] == ["claude-code crm@market plugin:crm:2.0"]
    file = write(machine, ".copilot/installed-plugins/market/crm/.mcp.json", SERVERS)
    one = {"name": "crm", "enabled": False, "cache_path": str(file.parent)}
    write(machine, ".copilot/config.json", {"installedPlugins": [one]})
    assert [name for name in states(machine) if "copilot" in name] == []


@pytest.mark.parametrize(
    ("plugin", "file", "text", "is_listed"),
    [
        (FORMS[0], ".claude/settings.json", {"enabledPlugins": {"crm@market": False}}, False),
        (FORMS[0], ".claude/settings.json", {"deniedMcpServers": [{"serverName": "plugin:crm:crm"}]}, True),
        (FORMS[3], ".codex/config.toml", '[plugins."crm@market"]\nenabled = false\n', False),
        (FORMS[3], ".codex/config.toml", '[plugins."crm@market".mcp_servers.crm]\nenabled = false\n', True),
        (FORMS[7], ".gemini/extensions/extension-enablement.json", {"crm": {"overrides": ["/x/*", "!HOME/*"]}}, False),
        (FORMS[7], ".gemini/settings.json", {"mcpServers": {"crm": {"command": "x", "disabled": True}}}, True),
        (FORMS[9], ".config/Claude/Claude Extensions Settings/ant.dir.crm.json", {"isEnabled": False}, False),
    ],
)  # fmt: skip
def test_a_plugin_or_a_server_of_it_that_is_switched_off_or_replaced_does_not_count(
    machine: Machine, plugin: tuple[str, dict[str, Any], str, str], file: str, text: Any, is_listed: bool
) -> None:
    for name, value in plugin[1].items():
        write(machine, name, value)
    write(machine, file, filled(machine, text if isinstance(text, str) else json.dumps(text)))
    found = states(machine)
    assert found.get(plugin[2]) == ("disabled" if is_listed else None)


@pytest.mark.parametrize("text", ["{", "[]", "5", "null", '{"mcpServers": 5}', '{"mcpServers": [5, {}]}', "[" * 99_999, "\xff"])
@pytest.mark.parametrize("name", [".mcp.json", ".claude-plugin/plugin.json"])
def test_a_damaged_file_of_a_plugin_is_at_most_one_fault(machine: Machine, name: str, text: str) -> None:
    file = write(machine, f"{CACHE}/1.0/{name}", text)
    for registered in ("", "{", '{"plugins": [[{"installPath": 5}]]}'):
        write(machine, ".claude/plugins/installed_plugins.json", registered)
        assert states(machine) in ({}, {str(file): "fault"})


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "missing.json", "", ".", "/dev/null"])
def test_a_plugin_that_names_no_file_is_at_most_one_fault(machine: Machine, name: str) -> None:
    write(machine, f"{CACHE}/1.0/.claude-plugin/plugin.json", {"mcpServers": [name, 5]})
    assert list(states(machine).values()) in ([], ["fault"])


FAR = {"mcpServers": {"far": {"type": "http", "url": "https://acme.com/mcp"}}}
ENFORCE = f"{HOOK} hook claude-code --enforce"
INSTALL = "mcpguard install claude-code --enforce"


def test_with_the_deciding_hook_what_is_not_guarded_is_by_hook(machine: Machine) -> None:
    guarded = {"command": PROGRAM, "args": ["run", "--", "npx"]}
    write(machine, ".claude.json", {"mcpServers": FAR["mcpServers"] | {"open": STDIO["crm"], "shut": guarded}})
    write(machine, f"{CACHE}/1.0/.mcp.json", SERVERS)
    write(machine, ".cursor/mcp.json", FAR)
    write(machine, ".claude/settings.json", hooks(ENFORCE))
    expected = {
        "claude-code  far": "by hook",
        "claude-code  open": "by hook",
        "claude-code  shut": "guarded",
        "claude-code crm@market plugin:crm:crm": "by hook",
        "cursor  far": "mcpguard install cursor --enforce",
    }
    assert seen(machine) == (expected, "4 of 5 servers guarded, 3 of them by hook")


ASYNC: dict[str, Any] = {"async": True}
ONLY_IF: dict[str, Any] = {"if": "Bash(git *)"}
OBSERVING = "remove that from its command, if you have seen enough"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (hooks(f"{HOOK} hook claude-code"), INSTALL),
        (hooks(ENFORCE, matcher="mcp__crm__.*"), "remove the matcher in the file"),
        (hooks(ENFORCE, matcher=""), "by hook"),
        (hooks("/gone/mcpguard hook claude-code --enforce"), INSTALL),
        (hooks(f"{HOOK} hook codex --enforce"), "write mcpguard hook claude-code in its place in the file"),
        (hooks(f"{ENFORCE} --observe"), OBSERVING),
        (hooks(f"MCPGUARD_OBSERVE=1 {ENFORCE}"), OBSERVING),
        (hooks(ENFORCE, **ASYNC), "remove async from the hook in the file"),
        (hooks(ENFORCE, **ONLY_IF), "remove if from the hook in the file"),
        (hooks(ENFORCE) | {"disableAllHooks": True}, "remove that setting"),
        (hooks(ENFORCE) | {"env": {"MCPGUARD_OBSERVE": "1"}}, "remove that setting"),
        (hooks(ENFORCE) | {"env": {"MCPGUARD_OBSERVE": "0"}}, "by hook"),
        ({"hooks": {"PreToolUse": 5}}, INSTALL),
        (hooks(ENFORCE) | {"hooks": hooks(ENFORCE)["hooks"] | {"PostToolUseFailure": 5}}, "by hook"),
    ],
)
def test_a_hook_guards_if_it_denies_and_is_run_for_each_call(machine: Machine, settings: dict[str, Any], told: str) -> None:
    write(machine, ".claude.json", FAR)
    write(machine, ".claude/settings.json", settings)
    assert states(machine) == {"claude-code  far": told}


@pytest.mark.parametrize("name", ["settings.json", "settings.local.json"])
def test_the_hook_of_the_account_guards_nothing_in_a_project_that_switches_hooks_off(machine: Machine, name: str) -> None:
    project = machine.home / "project"
    write(machine, f"project/.claude/{name}", {"disableAllHooks": True})
    write(machine, "project/.mcp.json", FAR)
    write(machine, ".claude.json", FAR | {"projects": {str(project): FAR}})
    write(machine, ".claude/settings.json", hooks(ENFORCE))
    local = {f"claude-code {project} far": "remove that setting"}
    assert states(machine) == {"claude-code  far": "by hook"} | local
    found = {key: told for key, told in states(machine, project).items() if "claude" in key}
    assert found == {"claude-code  far": "remove that setting"} | local


def test_gemini_and_codex_skip_hooks_where_the_project_says_so(machine: Machine) -> None:
    project = machine.home / "project"
    hook = hooks(f"{HOOK} hook gemini --enforce", event="BeforeTool", timeout=5000)
    write(machine, ".gemini/settings.json", FAR | hook)
    for value, expected in (({}, "by hook"), ({"hooksConfig": {"enabled": False}}, "remove that setting")):
        write(machine, "project/.gemini/settings.json", FAR | value)
        assert states(machine, project) == {"gemini  far": expected}
    assert states(machine) == {"gemini  far": "by hook"}
    write(machine, "project/.codex/config.toml", "[features]\nhooks = false\n")
    told = why_skipped(machine, hook_files(machine, [BY_KEY["codex"]])[0], project)
    assert told
    assert told[0].startswith(f"Codex skips it, because {project / '.codex/config.toml'} has ")


def test_the_hook_of_a_project_guards_in_this_project_alone(machine: Machine) -> None:
    project = machine.home / "project"
    write(machine, "project/.claude/settings.local.json", hooks(ENFORCE))
    write(machine, ".claude.json", FAR | {"projects": {str(project): FAR, "/other": FAR}})
    found = {"claude-code  far": INSTALL, f"claude-code {project} far": "by hook", "claude-code /other far": INSTALL}
    assert seen(machine) == (found, "1 of 3 servers guarded, 1 of them by hook")


CODEX_HASH = "sha256:476dabbe257ad4d64c01ca65f80398e7985f20d74c78cabcadf4e300542b3c6f"
"""What Codex 0.171.0 keeps for the hook `/abs/mcpguard hook codex --enforce` with the matcher `*` and 5 seconds."""


def test_codex_trusts_a_hook_by_its_place_and_by_a_hash_of_its_definition(machine: Machine) -> None:
    def hashed(command: str) -> str:
        hook = f'{{"async":false,"command":"{command}","timeout":5,"type":"command"}}'
        text = f'{{"event_name":"pre_tool_use","hooks":[{hook}],"matcher":"*"}}'
        return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"

    assert hashed("/abs/mcpguard hook codex --enforce") == CODEX_HASH
    command = f"{HOOK} hook codex --enforce"
    value = hooks(command, timeout=5)
    value["hooks"]["PreToolUse"].insert(0, {"hooks": [{"type": "command", "command": "lint"}]})
    file = write(machine, ".codex/hooks.json", value)
    server = '[mcp_servers.crm]\nurl = "https://acme.com/mcp"\n'
    unguarded = "start a new session, enter /hooks, and trust the hook"
    for place, digest, more, expected in (
        ("1:0", hashed(command), "", "by hook"),
        ("0:0", hashed(command), "", unguarded),
        ("1:0", CODEX_HASH, "", unguarded),
        ("1:0", hashed(command), "enabled = false\n", unguarded),
        ("1:0", hashed(command), "[features]\nhooks = false\n", "remove that setting"),
    ):
        state = f'[hooks.state.{json.dumps(f"{file}:pre_tool_use:{place}")}]\ntrusted_hash = "{digest}"\n{more}'
        write(machine, ".codex/config.toml", server + state)
        assert states(machine) == {"codex  crm": expected}
    write(machine, ".codex/config.toml", server)
    assert states(machine) == {"codex  crm": unguarded}


def test_a_file_that_clients_share_is_guarded_if_it_is_for_those_that_are_used(machine: Machine) -> None:
    project = machine.home / "project"
    write(machine, "project/.mcp.json", FAR)
    write(machine, ".claude/settings.json", hooks(ENFORCE))
    assert seen(machine, project)[1] == "1 of 1 server guarded, 1 of them by hook"
    write(machine, ".copilot/config.json", "{}")
    assert seen(machine, project)[1] == "0 of 1 server guarded"
