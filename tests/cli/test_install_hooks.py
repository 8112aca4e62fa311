"""`mcpguard install --hook`, and what `uninstall` does with hooks."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.account import CODEX, GONE, HOOK, IN_TOML, Account
from tests.clients.installations import impostor
from tests.links import follows_links


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
    assert group["hooks"] == [{"type": "command", "command": f"{HOOK} hook claude-code {store}", "timeout": 5}]
    codex = json.loads((account.home / ".codex/hooks.json").read_bytes())
    assert codex["hooks"]["PreToolUse"][0]["hooks"][0]["command"] == f"{HOOK} hook codex {store}"
    copilot = json.loads((account.home / ".copilot/hooks/mcpguard.json").read_bytes())
    assert copilot["version"] == 1
    (hook,) = copilot["hooks"]["preMcpToolCall"]
    assert hook == {
        "type": "command",
        "powershell" if sys.platform == "win32" else "bash": f"{HOOK} hook copilot {store}",
        "timeoutSec": 5,
    }
    assert "  Codex: start a new session, enter /hooks, and trust the hook" in done.stdout
    again = account.run("install", "--hook")
    assert again.returncode == 0
    assert again.stdout.count("the hook is there already") == 3
    gone = account.run("uninstall", "--yes")
    assert gone.returncode == 0
    assert gone.stdout.count("the hook was removed") == 3
    assert account.files() == before


def test_a_named_client_without_servers_gets_its_hook(account: Account) -> None:
    account.codex('model = "gpt-7"\n')
    done = account.run("install", "codex", "--hook", "--yes")
    assert done.returncode == 0, done.stderr
    assert (account.home / ".codex/hooks.json").exists()
    assert "no client with servers" not in done.stdout


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


def test_with_a_server_only_the_hooks_of_clients_that_have_it_are_added_and_removed(account: Account) -> None:
    account.codex()
    account.write("home/.claude.json", '{"mcpServers": {"files": {"command": "a", "args": []}}}')
    before = account.files()
    done = account.run("install", "--server", "crm", "--hook", "--yes")
    assert (done.returncode, done.stdout.count("the hook was added")) == (0, 1)
    assert (account.home / ".codex/hooks.json").exists()
    account.run("install", "--hook", "--yes")
    done = account.run("uninstall", "--server", "files", "--hook", "--yes")
    assert (done.returncode, done.stdout.count("the hook was removed")) == (0, 1)
    assert (account.home / ".codex/hooks.json").exists()
    account.run("uninstall", "--server", "crm", "--hook", "--yes")
    assert account.files() == before


DECIDING = ("claude-code", "codex", "cursor", "copilot", "gemini")


def deciding(file: Path, event: str = "PreToolUse") -> list[dict[str, Any]]:
    """The entries of hooks for an event."""
    found: list[dict[str, Any]] = json.loads(file.read_bytes())["hooks"][event]
    return found


def test_the_deciding_hooks_of_all_clients_have_their_forms_and_go_again_byte_for_byte(account: Account) -> None:
    settings = account.write("home/.claude/settings.json", '{\n  "model": "opus",\n  "hooks": {"Stop": []}\n}\n')
    gemini = account.write("home/.gemini/settings.json", '{\n\t// mine\n\t"a": 1,\n}')
    codex = account.home / ".codex/hooks.json"
    before = account.files()
    done = account.run("install", *DECIDING, "--enforce", "--yes", MCPGUARD_STORE="redis://cache/0", MCPGUARD_QUIET="1")
    assert done.returncode == 0, done.stderr
    store = "--store redis://cache/0"
    command = f"{HOOK} hook claude-code --enforce {store}"
    entry = {"matcher": "*", "hooks": [{"type": "command", "command": command, "timeout": 5}]}
    assert deciding(settings) == deciding(settings, "PostToolUseFailure") == [entry]
    entry = {"matcher": "*", "hooks": [{"type": "command", "command": f"{HOOK} hook codex --enforce {store}", "timeout": 5}]}
    assert json.loads(codex.read_bytes()) == {"hooks": {"PreToolUse": [entry]}}
    command = f"{HOOK} hook copilot"
    shell = "powershell" if sys.platform == "win32" else "bash"
    hook = {"type": "command", shell: f"{command} --enforce {store}", "timeoutSec": 5}
    assert json.loads((account.home / ".copilot/hooks/mcpguard.json").read_bytes()) == {
        "version": 1,
        "hooks": {
            "preMcpToolCall": [hook | {shell: f"{command} {store}"}],
            "preToolUse": [hook],
            "postToolUseFailure": [hook],
        },
    }
    hook = {"command": f"{HOOK} hook cursor --enforce {store}", "timeout": 5}
    assert json.loads((account.home / ".cursor/hooks.json").read_bytes()) == {
        "version": 1,
        "hooks": {"beforeMCPExecution": [hook], "preToolUse": [{"matcher": "^(?!MCP:)"} | hook]},
    }
    hook = {"type": "command", "command": f"{HOOK} hook gemini --enforce {store}", "timeout": 5000}
    text = gemini.read_text().replace("// mine", "").replace(",\n}", "}")
    assert json.loads(text)["hooks"] == {key: [{"matcher": "*", "hooks": [hook]}] for key in ("BeforeTool", "AfterTool")}
    said = " ".join(done.stdout.split())
    assert f"Codex, {codex}: the deciding hook was added: it limits calls of built-in tools and of all MCP servers" in said
    assert "of all MCP servers, but not hosted web search" in said
    assert "Codex: start a new session, enter /hooks, and trust the hook" in said
    assert account.run("install", *DECIDING, "--enforce").stdout.count("the hook is there already") == len(DECIDING)
    assert account.run("uninstall", "--yes").returncode == 0
    assert account.files() == before


def test_a_hook_for_notes_becomes_the_deciding_one_in_its_place_with_its_options(account: Account) -> None:
    account.codex()
    policy = Path("/p.toml").absolute()
    mine = {"matcher": "Bash", "hooks": [{"type": "command", "command": "lint"}]}
    line = f"MCPGUARD_USER=a {HOOK} hook codex --config /c.toml 2>/dev/null"
    note = {"matcher": "mcp__.*", "hooks": [{"type": "command", "command": line, "timeout": 9}]}
    hooks = account.write("home/.codex/hooks.json", json.dumps({"hooks": {"PreToolUse": [mine, note, mine]}}))
    done = account.run("install", "--enforce", "--yes", MCPGUARD_POLICY=str(policy))
    assert "the hook decides now: it limits" in " ".join(done.stdout.split())
    now = f"MCPGUARD_USER=a {HOOK} hook codex --enforce --config /c.toml 2>/dev/null --policy {policy.as_posix()}"
    entry = {"matcher": "*", "hooks": [{"type": "command", "command": now, "timeout": 5}]}
    assert deciding(hooks) == [mine, entry, mine]
    account.run("uninstall", "--yes")
    assert hooks.read_text() == json.dumps({"hooks": {"PreToolUse": [mine, mine]}})


def test_notes_and_decisions_of_one_client_are_undone_together_byte_for_byte(account: Account) -> None:
    account.write("home/.claude/settings.json", '{\n    "hooks": {},\n    "a": 1\n}')
    account.write("home/.claude.json", "{}")
    account.write("home/.copilot/mcp-config.json", '{"mcpServers": {"a": {"command": "a", "args": []}}}')
    before = account.files()
    for options in (("--hook",), ("--enforce",), ("--hook",), ("--enforce",)):
        assert account.run("install", "claude-code", "copilot", *options, "--yes").returncode == 0
    text = (account.home / ".claude/settings.json").read_text()
    assert (text.count(f"{HOOK} hook"), text.count("--enforce")) == (2, 2)
    assert account.run("uninstall", "--yes").returncode == 0
    assert account.files() == before


def test_claude_code_denies_if_the_hook_fails_where_calls_are_to_be_denied_without_the_store(account: Account) -> None:
    settings = account.write("home/.claude/settings.json", "{}")
    account.run("install", "claude-code", "--enforce", "--yes")
    assert "onFailure" not in settings.read_text()
    account.write("mcpguard/config/config.toml", '[store]\non_unavailable = "deny"\n')
    config = {"MCPGUARD_CONFIG": str(account.state / "config/config.toml")}
    assert account.run("install", "claude-code", "--enforce", "--yes", **config).returncode == 0
    (entry,) = deciding(settings)
    assert entry["hooks"][0]["onFailure"] == "block"
    (after,) = deciding(settings, "PostToolUseFailure")
    assert "onFailure" not in after["hooks"][0]
    account.write("mcpguard/config/config.toml", '[store]\non_unavailable = "local"\n')
    assert account.run("install", "claude-code", "--enforce", "--yes", **config).returncode == 0
    assert "onFailure" not in settings.read_text()
    account.run("uninstall", "--yes")
    assert settings.read_text() == "{}"


@pytest.mark.parametrize("client", DECIDING)
@pytest.mark.parametrize("first", ["account", "project"])
def test_a_second_deciding_hook_in_the_other_scope_is_refused_with_a_hint(
    account: Account, monkeypatch: pytest.MonkeyPatch, client: str, first: str
) -> None:
    monkeypatch.chdir(account.project)
    scopes: dict[str, tuple[str, ...]] = {"account": (), "project": ("--project", ".")}
    (second,) = scopes.keys() - {first}
    assert account.run("install", client, "--enforce", "--yes", *scopes[first]).returncode == 0
    before = account.files()
    (file,) = before
    done = account.run("install", client, "--enforce", "--yes", *scopes[second])
    assert (done.returncode, account.files()) == (1, before)
    assert f"no hook is added: {file} has a deciding one, and calls would count twice (hint: one is enough" in done.stderr
    assert account.run("install", client, "--enforce", *scopes[first]).stdout.count("the hook is there already") == 1


def test_a_deciding_hook_needs_no_server_and_no_file_of_its_client(account: Account) -> None:
    (account.home / ".codex").mkdir()
    done = account.run("install", "--enforce", "--yes")
    assert done.returncode == 0, done.stderr
    assert [*account.files()] == [str(account.home / ".codex/hooks.json")]
    assert account.run("install", "gemini", "--project", str(account.project), "--enforce", "--yes").returncode == 0
    assert (account.project / ".gemini/settings.json").exists()


@pytest.mark.parametrize(
    "others", ['{"type": "command", "command": "lint"}', '{"type": "command", "command": "mcpguard hook codex"}']
)
def test_a_hook_beside_others_does_not_become_the_deciding_one(account: Account, others: str) -> None:
    ours = '{"type": "command", "command": "mcpguard hook codex"}'
    groups = f'{{"hooks": [{ours}, {others}]}}' if "lint" in others else f'{{"hooks": [{ours}]}}, {{"hooks": [{others}]}}'
    hooks = account.write("home/.codex/hooks.json", f'{{"hooks": {{"PreToolUse": [{groups}]}}}}')
    before = hooks.read_text()
    done = account.run("install", "codex", "--enforce", "--yes")
    assert (done.returncode, hooks.read_text()) == (1, before)
    assert f"{hooks}: the hook is not changed: it is there more than once, or beside other hooks" in done.stderr


@pytest.mark.parametrize(
    ("command", "mended"),
    [
        (f"{GONE} hook codex", f"{HOOK} hook codex"),
        (f"{GONE} hook codex --store redis://h/0", f"{HOOK} hook codex --store redis://h/0"),
        (f"MCPGUARD_STORE=redis://h/0 {GONE} hook codex", f"MCPGUARD_STORE=redis://h/0 {HOOK} hook codex"),
        (f"env A=b {GONE} hook codex", f"env A=b {HOOK} hook codex"),
        ("MCPGUARD_STORE=redis://h/0 mcpguard hook codex", f"MCPGUARD_STORE=redis://h/0 {HOOK} hook codex"),
        ('"/go ne/mcpguard" hook codex --config "$C"', f'{HOOK} hook codex --config "$C"'),
        (f"{GONE} hook codex 2>/dev/null || true", f"{HOOK} hook codex 2>/dev/null || true"),
        (r"/go\ ne/mcpguard hook codex", f"{HOOK} hook codex --store redis://other/0"),
        ('"unfinished/mcpguard hook codex', f"{HOOK} hook codex --store redis://other/0"),
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
""".replace("/gone/mcpguard", GONE)
    hooks = account.write("home/.codex/hooks.json", text)
    done = account.run("install", "--hook", "--yes")
    assert f"Codex, {hooks}: the hook's mcpguard is this one now" in done.stdout.replace("\n    ", " ")
    assert hooks.read_text("utf-8") == text.replace(GONE, HOOK)


@pytest.mark.parametrize(
    "command",
    [
        f"MCPGUARD_STORE=redis://h/0 {HOOK} hook codex",
        "$TOOLS/mcpguard hook codex",
        "~/tools/mcpguard hook codex",
        "uvx --from mcpguard-cli mcpguard hook codex",
        "python3 -m mcpguard hook codex",
        "command -v mcpguard >/dev/null && mcpguard hook codex",
    ],
)
def test_a_hook_whose_mcpguard_a_shell_or_another_command_finds_stays(account: Account, command: str) -> None:
    account.codex()
    account.write("home/tools/mcpguard", "")
    hook = {"type": "command", "command": command}
    hooks = account.write("home/.codex/hooks.json", json.dumps({"hooks": {"PreToolUse": [{"hooks": [hook]}]}}))
    before = hooks.read_bytes()
    assert "the hook is there already" in account.run("install", "--hook", "--yes", PATH="/usr/bin:/bin").stdout
    assert hooks.read_bytes() == before


@pytest.mark.posix
def test_a_hook_whose_mcpguard_others_may_change_is_left_and_told(account: Account) -> None:
    account.codex()
    public = account.home / "public"
    program = impostor(public / "mcpguard")
    public.chmod(0o777)
    hook = {"type": "command", "command": f"{program} hook codex"}
    hooks = account.write("home/.codex/hooks.json", json.dumps({"hooks": {"PreToolUse": [{"hooks": [hook]}]}}))
    before = hooks.read_bytes()
    done = account.run("install", "--hook", "--yes")
    assert (done.returncode, hooks.read_bytes()) == (1, before)
    assert f"{hooks}: the hook is not changed: other accounts may change its mcpguard {program}: " in done.stderr


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


@follows_links
def test_a_link_to_a_file_of_hooks_stays_a_link(account: Account) -> None:
    account.codex()
    account.run("install", "--hook", "--yes")
    hooks, moved = account.home / ".codex/hooks.json", account.home / "dotfiles.json"
    hooks.rename(moved)
    hooks.symlink_to(moved)
    assert account.run("uninstall", "--yes").returncode == 0
    assert (hooks.is_symlink(), moved.read_bytes()) == (True, b"")


def folders(account: Account) -> set[str]:
    return {str(path) for root in (account.home, account.project) for path in root.rglob("*") if path.is_dir()}


def test_folders_that_were_made_for_hooks_go_and_others_stay(account: Account) -> None:
    account.write("home/.claude.json", '{"mcpServers": {"a": {"command": "a", "args": []}}}')
    account.write("home/.copilot/mcp-config.json", '{"mcpServers": {"a": {"command": "a", "args": []}}}')
    account.write("project/.mcp.json", '{"mcpServers": {"a": {"command": "a", "args": []}}}')
    (account.project / ".github").mkdir()
    before = folders(account)
    made: set[str] = set()
    for more, root, copilot in (
        (["--project", str(account.project)], account.project, ".github"),
        ([], account.home, ".copilot"),
    ):
        account.run("install", "--hook", "--yes", *more)
        account.run("install", "--hook", "--yes", *more)
        made |= {str(root / ".claude"), str(root / copilot / "hooks")}
        assert folders(account) - before == made
    for more in ([], ["--project", str(account.project)]):
        account.run("uninstall", "--yes", *more)
    assert folders(account) == before


def test_a_folder_that_was_made_for_a_hook_stays_with_what_somebody_has_put_into_it(account: Account) -> None:
    account.write("home/.claude.json", '{"mcpServers": {"a": {"command": "a", "args": []}}}')
    account.run("install", "--hook", "--yes")
    mine = account.write("home/.claude/CLAUDE.md", "mine")
    done = account.run("uninstall", "--yes")
    assert (done.returncode, mine.read_text("utf-8"), [path.name for path in mine.parent.iterdir()]) == (0, "mine", [mine.name])


def test_a_named_client_without_a_hook_is_a_failure(account: Account) -> None:
    account.cursor()
    done = account.run("install", "cursor", "--hook", "--yes")
    assert done.returncode == 1
    hint = "(hint: use one of: claude-code, codex, copilot)"
    assert done.stderr.endswith(f"mcpguard: Cursor: mcpguard has no hook for it {hint}\n")


def test_a_damaged_file_of_hooks_is_left(account: Account) -> None:
    codex = account.codex()
    hooks = account.write("home/.codex/hooks.json", "{")
    done = account.run("install", "--hook", "--yes")
    assert done.returncode == 1
    assert f"mcpguard: {hooks}:1:2: " in done.stderr
    assert hooks.read_text("utf-8") == "{"
    assert IN_TOML in codex.read_text("utf-8")
    done = account.run("uninstall", "--yes")
    assert done.returncode == 1
    assert f"mcpguard: {hooks}:1:2: " in done.stderr
    assert (hooks.read_text("utf-8"), codex.read_text("utf-8")) == ("{", CODEX)
