"""`mcpguard install --bridge`, the own entries of servers that plugins bring to Codex, and how both are undone."""

import json
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.cli.account import APPS, GONE, IN_TOML, Account, guarded, listing, servers
from tests.cli.command import unfolded
from tests.clients.test_files import GOOSE, ZED

URL = "https://mcp.acme.com/mcp"
FAR = ("npx", "-y", "mcp-remote", URL)
CLINE = "home/.cline/data/settings/cline_mcp_settings.json"


def one_entry(file: Path) -> list[dict[str, Any]]:
    """The values of the only server in a file."""
    if file.suffix == ".toml":
        return list(tomllib.loads(file.read_text())["mcp_servers"].values())
    value = json.loads(re.sub(r"//.*|,(?=\s*[}])", "", file.read_text().replace("https://", "https:%%")).replace("%%", "//"))
    return list(next(iter(value.values())).values())


def config(account: Account) -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((account.home / ".codex/config.toml").read_text())["mcp_servers"]
    return found


def test_without_the_option_a_remote_server_is_left_and_with_it_it_gets_a_bridge(account: Account) -> None:
    off = {"url": URL, "disabled": True}
    file = account.cursor(listing(a={"url": URL}, off=off))
    before = account.files()
    account.install()
    assert account.files() == before
    assert "a: guarded (its URL is reached through npx mcp-remote)" in account.install("cursor", "--bridge").stdout
    assert servers(file) == {"a": guarded("a", *FAR), "off": off}
    assert "2 of 2" not in account.run("clients").stdout
    assert account.install("--bridge").stdout.count("guarded already") == 1
    account.undo(before)


@pytest.mark.parametrize(
    ("name", "text", "entry"),
    [
        (
            ZED,
            '{\r\n  // mine\r\n  "context_servers": {\r\n    "a": {\r\n      "url": "URL", // here\r\n'
            '      "headers": {"X-Key": "k1"},\r\n      "timeout": 30,\r\n    },\r\n  },\r\n}\r\n',
            {"env": {"MCP_HEADER_1": "k1"}, "timeout": 30},
        ),
        (f"{APPS}/Code/User/mcp.json", '{"servers": {"a": {"type": "http", "url": "URL"}}}', {"type": "stdio"}),
        ("home/.config/opencode/opencode.json", '{"mcp": {"a": {"type": "remote", "url": "URL"}}}', {"type": "local"}),
        (CLINE, '{"mcpServers": {"a": {"transport": {"type": "streamableHttp", "url": "URL"}, "timeout": 9}}}', {"timeout": 9}),
        ("home/.codeium/windsurf/mcp_config.json", '{"mcpServers": {"a": {"serverUrl": "URL"}}}', {}),
        ("home/.codex/config.toml", '[mcp_servers.a] # mine\nurl = "URL" # here\nstartup_timeout_sec = 20\n\n[x]\ny = 1\n', {}),
        ("home/.codex/config.toml", 'mcp_servers = { a = { url = "URL", bearer_token_env_var = "T" } }', {"env_vars": ["T"]}),
        (
            "home/.codex/config.toml",
            '[mcp_servers.a]\nhttp_headers = { X = "1" }\nurl = "URL"\nenv_http_headers = { "Y" = "V" }',
            {"env_vars": ["V"], "env": {"MCP_HEADER_1": "1"}},
        ),
    ],
)  # fmt: skip
def test_a_bridge_has_the_clients_form_and_can_be_undone(account: Account, name: str, text: str, entry: dict[str, Any]) -> None:
    file = account.write(name, text.replace("URL", URL))
    before = account.files()
    account.install("--bridge")
    said = json.loads(account.run("clients", "--json").stdout)
    assert [(row["state"], row["command"][:4]) for row in said] == [("guarded", [*FAR])]
    assert not re.search(r"url\W* [:=]|headers\W* [:=]|bearer_token", file.read_text(), re.IGNORECASE)
    (one,) = one_entry(file)
    assert {key: one.get(key) for key in entry} == entry
    account.undo(before)


@pytest.mark.parametrize("url", ["https://a-host-with-a-long-name-27.eu.acme.com/v1/mcp", "http://127.0.0.1:8080/mcp/v2-beta"])
def test_a_url_whose_path_has_only_short_parts_gets_a_bridge(account: Account, url: str) -> None:
    file = account.cursor(listing(a={"url": url}))
    account.install("--bridge")
    assert url in servers(file)["a"]["args"]


def test_headers_are_passed_in_variables_so_that_no_secret_is_on_a_command_line(account: Account) -> None:
    headers = {"Authorization": "Bearer ${env:TOKEN}", "X-Key": "sk-secret"}
    file = account.cursor(listing(a={"url": "http://acme.com/mcp", "headers": headers}))
    before = account.files()
    account.install("--bridge")
    names = ("MCP_HEADER_1", "MCP_HEADER_2")
    words = ["--header", "Authorization:${MCP_HEADER_1}", "--header", "X-Key:${MCP_HEADER_2}"]
    entry = guarded("a", "npx", "-y", "mcp-remote", "http://acme.com/mcp", "--allow-http", *words)
    assert servers(file)["a"] == entry | {"env": dict(zip(names, headers.values(), strict=True))}
    account.undo(before)


KEPT = (
    "https://mcp.zapier.com/api/mcp/s/NDk4YWJjZGVmZ2hpamts/mcp",
    "https://acme.com/0b9d2c1e-6f3a-4c55-9a77-1f2e3d4c5b6a",
    "https://acme.com/mcp?k=Zm9v",
    "https://acme.com/mcp?code=1",
    "https://acme.com/mcp#k",
)


@pytest.mark.parametrize(
    ("name", "entry", "reason"),
    [
        (".cursor/mcp.json", {"url": "https://acme.com/${env:KEY}"}, "its URL holds a variable or a secret"),
        (".cursor/mcp.json", {"url": "https://acme.com/?api_key=s3cret"}, "its URL holds a variable or a secret"),
        *((".cursor/mcp.json", {"url": url}, "its URL has a query, or a part that may be a key") for url in KEPT),
        (".cursor/mcp.json", {"url": URL, "auth": {"CLIENT_ID": "x"}}, "mcp-remote cannot be told its auth"),
        (".claude.json", {"type": "http", "url": URL, "headers": {"A": "${T}"}}, "its headers would be on a command line"),
        (".gemini/settings.json", {"httpUrl": URL, "headers": {"A": "$T"}}, "its headers would be on a command line"),
    ],
)
def test_what_cannot_be_carried_over_gets_no_bridge(account: Account, name: str, entry: dict[str, Any], reason: str) -> None:
    file = account.write(f"home/{name}", listing(a=entry))
    said = account.refusal("--bridge")
    assert f"{file}: a: no bridge: {reason}" in said
    assert " --enforce" in said


def test_a_table_of_headers_in_toml_and_a_yaml_file_get_no_bridge(account: Account) -> None:
    account.codex(f'[mcp_servers.a]\nurl = "{URL}"\n[mcp_servers.a.http_headers]\nX = "1"\n')
    account.write(GOOSE, f"extensions:\n  a:\n    type: streamable_http\n    uri: {URL}\n")
    assert account.refusal("--bridge").count("no bridge") == 2


def test_a_bridge_whose_mcpguard_is_gone_is_mended_and_still_undone_byte_for_byte(account: Account) -> None:
    file = account.cursor(listing(a={"url": URL}))
    before = account.files()
    account.install("--bridge")
    records = account.state / "installed.json"
    file.write_bytes(file.read_bytes().replace(IN_TOML.encode(), GONE.encode()))
    records.write_bytes(records.read_bytes().replace(json.dumps(IN_TOML)[1:-1].encode(), GONE.encode()))
    assert "its mcpguard is this one now" in account.install().stdout
    account.undo(before)


def test_a_bridge_in_a_file_that_the_client_has_laid_out_anew_is_undone(account: Account) -> None:
    before = {"a": {"url": URL, "headers": {"X-Key": "k1"}, "timeout": 30}, "b": {"command": "npx"}}
    file = account.cursor(listing(**before))
    account.install("--bridge")
    file.write_text(json.dumps(json.loads(file.read_text()), indent=4))
    account.run("uninstall", "--yes")
    assert servers(file) == before


def test_a_bridge_that_was_edited_since_keeps_the_edit_and_loses_mcpguard(account: Account) -> None:
    file = account.cursor(listing(a={"url": URL}))
    account.install("--bridge")
    file.write_text(file.read_text().replace(URL, "https://other.com/mcp"))
    account.uninstall()
    assert servers(file)["a"] == {"command": "npx", "args": ["-y", "mcp-remote", "https://other.com/mcp"]}


PLUGIN = {
    "crm": {"command": "npx", "args": ["-y", "@acme/crm"], "env": {"A": "b"}, "startup_timeout_sec": 20, "type": "stdio"},
    "own": {"command": "python3", "args": ["server.py", "${PLUGIN_ROOT}/data"], "cwd": "./bin"},
    "far": {"type": "http", "url": URL},
}


def plugin(account: Account, version: str, state: str | None = "enabled = true") -> Path:
    """A plugin of Codex, which keeps one version. Without a state Codex has no file of its own."""
    root = f"home/.codex/plugins/cache/market/crm/{version}"
    file = account.write(f"{root}/.codex-plugin/plugin.json", json.dumps({"name": "crm", "mcpServers": "./.mcp.json"}))
    account.write(f"{root}/.mcp.json", json.dumps({"mcpServers": PLUGIN}))
    account.write(f"{root}/bin/server.py", "")
    if state is not None and not (account.home / ".codex/config.toml").exists():
        account.codex(f'[plugins."crm@market"]\n{state}')
    return file.parents[1]


def test_codex_gets_an_own_entry_of_each_server_of_a_plugin_which_goes_byte_for_byte(account: Account) -> None:
    folder = plugin(account, "1.0.0")
    before = account.files()
    assert "crm: guarded (in place of the server of the plugin crm@market)" in account.install().stdout
    entries = config(account)
    assert entries["crm"] == guarded("crm", "npx", "-y", "@acme/crm") | {"env": {"A": "b"}, "startup_timeout_sec": 20}
    own = guarded("own", "python3", "server.py", f"{folder}/data") | {"cwd": str(folder / "bin")}
    assert entries == {"crm": entries["crm"], "own": own}
    listed = {row["server"]: row["state"] for row in json.loads(account.run("clients", "--json").stdout) if row["plugin"]}
    assert listed == {"crm": "disabled", "own": "disabled", "far": "unguarded"}
    assert account.install().stdout.count("guarded already") == 2
    account.undo(before)


@pytest.mark.parametrize("argv", [("codex",), (), ("codex", "--server", "crm")])
def test_without_a_file_codex_gets_one_for_a_plugins_servers_which_goes_again(account: Account, argv: tuple[str, ...]) -> None:
    old = plugin(account, "1.0.0", None)
    account.install(*argv)
    assert [*config(account)] == (["crm"] if "--server" in argv else ["crm", "own"])
    new = plugin(account, "1.1.0", None)
    shutil.rmtree(old)
    before = {name: data for name, data in account.files().items() if not name.endswith("config.toml")}
    account.install(*argv)
    assert "--server" in argv or config(account)["own"]["cwd"] == str(new / "bin")
    account.uninstall("--server", "crm")
    account.undo(before)


def test_a_file_of_codex_that_was_empty_or_has_more_by_now_stays(account: Account) -> None:
    plugin(account, "1.0.0", None)
    file = account.codex("")
    before = account.files()
    account.install()
    account.undo(before)
    file.unlink()
    account.install()
    file.write_bytes(file.read_bytes() + b"[tui]\nx = 1\n")
    account.uninstall()
    assert file.read_bytes() == b"[tui]\nx = 1\n"


@pytest.mark.parametrize("text", ['{"mcpServers": {"far": {"url": "https://acme.com"}}}', "{"])
def test_without_a_server_that_an_entry_would_guard_codex_gets_no_file(account: Account, text: str) -> None:
    (plugin(account, "1.0.0", None) / ".mcp.json").write_text(text)
    assert "Codex: no file " in account.refusal("codex")


def test_after_an_update_of_the_plugin_doctor_says_what_is_gone_and_install_renews_it(account: Account) -> None:
    old = plugin(account, "1.0.0")
    before = (account.home / ".codex/config.toml").read_bytes()
    account.install()
    shutil.rmtree(old)
    plugin(account, "1.1.0")
    assert f"a folder of a plugin is gone: {old} " in unfolded(account.run("doctor").stdout)
    entries = config(account)
    account.install()
    assert config(account) == {"crm": entries["crm"], "own": json.loads(json.dumps(entries["own"]).replace("1.0.0", "1.1.0"))}
    assert "is gone" not in account.run("doctor").stdout
    account.uninstall()
    assert (account.home / ".codex/config.toml").read_bytes() == before


@pytest.mark.parametrize("state", ["enabled = false", '[plugins."crm@market".mcp_servers.crm]\nenabled = false\n'])
def test_a_plugin_or_server_that_is_switched_off_gets_no_entry(account: Account, state: str) -> None:
    plugin(account, "1.0.0", state)
    account.run("install", "--server", "crm", "--yes")  # it has nothing to do where the plugin is off
    assert "crm" not in tomllib.loads((account.home / ".codex/config.toml").read_text()).get("mcp_servers", {})


def test_an_own_entry_of_the_user_stays_and_only_named_servers_get_one(account: Account) -> None:
    plugin(account, "1.0.0")
    file = account.home / ".codex/config.toml"
    file.write_text(file.read_text() + '\n[mcp_servers.crm]\ncommand = "mine"\n')
    account.install("--server", "crm")
    assert config(account) == {"crm": guarded("crm", "mine")}


def test_a_file_to_which_no_table_can_be_added_is_left(account: Account) -> None:
    plugin(account, "1.0.0")
    file = account.codex('mcp_servers = { }\n[plugins."crm@market"]\nenabled = true\n')
    assert f"mcpguard: {file}:" in account.refusal()
