"""`mcpguard install --hook`, and what `uninstall` does with hooks."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.account import CODEX, GONE, HOOK, IN_TOML, ONE, Account, listing
from tests.cli.command import unfolded
from tests.clients.installations import hooks, impostor
from tests.links import follows_links

STORE = "--store redis://cache/0"
SHELL = "powershell" if sys.platform == "win32" else "bash"


def entries(file: Path, event: str = "PreToolUse") -> list[dict[str, Any]]:
    """The entries of hooks for an event."""
    found: list[dict[str, Any]] = json.loads(file.read_bytes())["hooks"][event]
    return found


def entry(command: str, matcher: str = "*", timeout: int = 5) -> dict[str, Any]:
    """An entry with one hook."""
    found: dict[str, Any] = hooks(command, matcher, timeout=timeout)["hooks"]["PreToolUse"][0]
    return found


def codex_hooks(account: Account, *groups: dict[str, Any]) -> Path:
    """Write Codex's files of servers and hooks; return the latter."""
    account.codex()
    return account.write("home/.codex/hooks.json", json.dumps({"hooks": {"PreToolUse": groups}}))


def test_hooks_are_added_and_removed_with_the_rest_of_the_file_unchanged(account: Account) -> None:
    account.write("home/.claude.json", ONE)
    settings = account.write("home/.claude/settings.json", '{\n  "model": "opus",\n  "env": {"K": "v"}\n}\n')
    codex_file = codex_hooks(account)
    codex_file.write_bytes(b"")
    account.write("home/.copilot/mcp-config.json", ONE)
    before = account.files()
    done = account.install("--hook", MCPGUARD_STORE="redis://cache/0")
    assert json.loads(settings.read_bytes())["model"] == "opus"
    assert entries(settings) == [entry(f"{HOOK} hook claude-code {STORE}", "mcp__.*")]
    assert entries(codex_file) == [entry(f"{HOOK} hook codex {STORE}", "mcp__.*")]
    hook = {"type": "command", SHELL: f"{HOOK} hook copilot {STORE}", "timeoutSec": 5}
    copilot = account.home / ".copilot/hooks/mcpguard.json"
    assert json.loads(copilot.read_bytes()) == {"version": 1, "hooks": {"preMcpToolCall": [hook]}}
    assert "  Codex: start a new session, enter /hooks, and trust the hook" in done.stdout
    assert account.run("install", "--hook").stdout.count("the hook is there already") == 3
    assert account.undo(before).stdout.count("the hook was removed") == 3


def test_a_named_client_without_servers_gets_its_hook(account: Account) -> None:
    account.codex('model = "gpt-7"\n')
    assert "no client with servers" not in account.install("codex", "--hook").stdout
    assert (account.home / ".codex/hooks.json").exists()


def test_a_hook_that_asks_for_nothing_does_not_hide_what_its_clients_servers_need(account: Account) -> None:
    account.write("home/.cursor/mcp.json", ONE)
    said = unfolded(account.install("cursor", "--enforce").stdout)
    assert "Cursor: switch the server off and on in Cursor's settings" in said


def test_with_a_server_only_the_hooks_of_clients_that_have_it_are_added_and_removed_if_that_is_asked(account: Account) -> None:
    account.codex()
    account.write("home/.claude.json", listing(files={"command": "a", "args": []}))
    before, file = account.files(), account.home / ".codex/hooks.json"
    account.install("--server", "crm")
    assert not file.exists()
    assert account.install("--server", "crm", "--hook").stdout.count("the hook was added") == 1
    account.install("--hook")
    assert account.uninstall("--server", "files", "--hook").stdout.count("the hook was removed") == 1
    account.uninstall("--server", "crm")
    assert file.exists()
    account.uninstall("--server", "crm", "--hook")
    assert account.files() == before


DECIDING = ("claude-code", "codex", "cursor", "copilot", "gemini")


def test_the_deciding_hooks_of_all_clients_have_their_forms_and_go_again_byte_for_byte(account: Account) -> None:
    settings = account.write("home/.claude/settings.json", '{\n  "model": "opus",\n  "hooks": {"Stop": []}\n}\n')
    gemini = account.write("home/.gemini/settings.json", '{\n\t// mine\n\t"a": 1,\n}')
    codex = account.home / ".codex/hooks.json"
    before = account.files()
    done = account.install(*DECIDING, "--enforce", MCPGUARD_STORE="redis://cache/0", MCPGUARD_QUIET="1")
    claude = [entry(f"{HOOK} hook claude-code --enforce {STORE}")]
    assert entries(settings) == entries(settings, "PostToolUseFailure") == claude
    assert json.loads(codex.read_bytes()) == {"hooks": {"PreToolUse": [entry(f"{HOOK} hook codex --enforce {STORE}")]}}
    hook = {"type": "command", SHELL: f"{HOOK} hook copilot --enforce {STORE}", "timeoutSec": 5}
    note = hook | {SHELL: f"{HOOK} hook copilot {STORE}"}
    copilot = json.loads((account.home / ".copilot/hooks/mcpguard.json").read_bytes())
    assert copilot == {"version": 1, "hooks": {"preMcpToolCall": [note], "preToolUse": [hook], "postToolUseFailure": [hook]}}
    hook = {"command": f"{HOOK} hook cursor --enforce {STORE}", "timeout": 5}
    cursor = json.loads((account.home / ".cursor/hooks.json").read_bytes())
    assert cursor["version"] == 1
    own_tools = [{"matcher": "^(?!MCP:)"} | hook]
    assert cursor["hooks"] == {"beforeMCPExecution": [hook], "preToolUse": own_tools, "postToolUseFailure": own_tools}
    text = gemini.read_text().replace("// mine", "").replace(",\n}", "}")
    both = [entry(f"{HOOK} hook gemini --enforce {STORE}", timeout=5000)]
    assert json.loads(text)["hooks"] == {"BeforeTool": both, "AfterTool": both}
    said = unfolded(done.stdout)
    assert f"Codex, {codex}: the deciding hook was added: it limits calls of built-in tools and of all MCP servers" in said
    assert "of all MCP servers, but not hosted web search" in said
    assert "Codex: start a new session, enter /hooks, and trust the hook" in said
    assert account.run("install", *DECIDING, "--enforce").stdout.count("the hook is there already") == len(DECIDING)
    account.undo(before)


def test_a_hook_for_notes_becomes_the_deciding_one_in_its_place_with_its_options(account: Account) -> None:
    policy = Path("/p.toml").absolute()
    mine = {"matcher": "Bash", "hooks": [{"type": "command", "command": "lint"}]}
    note = entry(f"MCPGUARD_USER=a {HOOK} hook codex --config /c.toml 2>/dev/null", "mcp__.*", 9)
    file = codex_hooks(account, mine, note, mine)
    done = account.install("--enforce", MCPGUARD_POLICY=str(policy))
    assert "the hook decides now: it limits" in unfolded(done.stdout)
    now = f"MCPGUARD_USER=a {HOOK} hook codex --enforce --config /c.toml 2>/dev/null --policy {policy.as_posix()}"
    assert entries(file) == [mine, entry(now), mine]
    account.uninstall()
    assert file.read_text() == json.dumps({"hooks": {"PreToolUse": [mine, mine]}})


def test_notes_and_decisions_of_one_client_are_undone_together_byte_for_byte(account: Account) -> None:
    settings = account.write("home/.claude/settings.json", '{\n    "hooks": {},\n    "a": 1\n}')
    account.write("home/.claude.json", "{}")
    account.write("home/.copilot/mcp-config.json", ONE)
    before = account.files()
    for option in ("--hook", "--enforce", "--hook", "--enforce"):
        account.install("claude-code", "copilot", option)
    text = settings.read_text()
    assert (text.count(f"{HOOK} hook"), text.count("--enforce")) == (2, 2)
    account.undo(before)


def test_claude_code_denies_if_the_hook_fails_where_calls_are_to_be_denied_without_the_store(account: Account) -> None:
    settings = account.write("home/.claude/settings.json", "{}")

    def enforced(on_unavailable: str) -> str:
        file = account.write("mcpguard/config/config.toml", f'[store]\non_unavailable = "{on_unavailable}"\n')
        account.install("claude-code", "--enforce", MCPGUARD_CONFIG=str(file))
        return settings.read_text()

    account.install("claude-code", "--enforce")
    assert "onFailure" not in settings.read_text()
    assert enforced("deny").count("onFailure") == 1
    assert entries(settings)[0]["hooks"][0]["onFailure"] == "block"
    assert "onFailure" not in enforced("local")
    account.uninstall()
    assert settings.read_text() == "{}"


@pytest.mark.parametrize("client", DECIDING)
@pytest.mark.parametrize("first", ["account", "project"])
def test_a_second_deciding_hook_in_the_other_scope_is_refused_with_a_hint(
    account: Account, monkeypatch: pytest.MonkeyPatch, client: str, first: str
) -> None:
    monkeypatch.chdir(account.project)
    scopes: dict[str, tuple[str, ...]] = {"account": (), "project": ("--project", ".")}
    (second,) = scopes.keys() - {first}
    account.install(client, "--enforce", *scopes[first])
    (file,) = account.files()
    said = account.refusal(client, "--enforce", *scopes[second])
    assert f"no hook is added: {file} has a deciding one, and calls would count twice (hint: one is enough" in said
    assert account.run("install", client, "--enforce", *scopes[first]).stdout.count("the hook is there already") == 1


def test_a_deciding_hook_needs_no_server_and_no_file_of_its_client(account: Account) -> None:
    (account.home / ".codex").mkdir()
    account.install("--enforce")
    assert [*account.files()] == [str(account.home / ".codex/hooks.json")]
    account.install("gemini", "--project", str(account.project), "--enforce")
    assert (account.project / ".gemini/settings.json").exists()


OURS, LINT = ({"type": "command", "command": command} for command in ("mcpguard hook codex", "lint"))


@pytest.mark.parametrize("groups", [[[OURS, LINT]], [[OURS], [OURS]]], ids=["beside another", "twice"])
def test_a_hook_beside_others_does_not_become_the_deciding_one(account: Account, groups: list[list[object]]) -> None:
    file = account.write("home/.codex/hooks.json", json.dumps({"hooks": {"PreToolUse": [{"hooks": one} for one in groups]}}))
    why = "it is there more than once, or beside other hooks"
    assert f"{file}: the hook is not changed: {why}" in account.refusal("codex", "--enforce")


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"disableAllHooks": True}, "has disableAllHooks = true (hint: remove that setting)"),
        (hooks(f"{HOOK} hook claude-code --enforce", "Bash"), "its matcher is Bash (hint: remove the matcher in the file)"),
    ],
)
def test_a_deciding_hook_that_the_client_does_not_ask_before_each_call_is_a_failure(
    account: Account, settings: dict[str, Any], why: str
) -> None:
    file = account.write("home/.claude/settings.json", json.dumps(settings))
    account.install("claude-code", "--enforce", status=1)
    said = account.refusal("claude-code", "--enforce")
    assert said.startswith(f"mcpguard: {file}: the hook is there, but ")
    assert why in said


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
def test_of_a_hook_whose_mcpguard_is_gone_the_program_alone_is_replaced(account: Account, command: str, mended: str) -> None:
    file = codex_hooks(account, entry(command, "mcp__crm__.*", 9), entry("lint"), entry(f"{GONE} hook codex", "mcp__erp__.*"))
    text = file.read_text()
    done = account.install("--hook", MCPGUARD_STORE="redis://other/0", PATH="/usr/bin:/bin")
    assert f"Codex, {file}: the hook's mcpguard is this one now" in unfolded(done.stdout)
    assert file.read_text() == text.replace(json.dumps(command), json.dumps(mended), 1).replace(GONE, HOOK)


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
    account.write("home/tools/mcpguard", "")
    file = codex_hooks(account, entry(command))
    before = file.read_bytes()
    assert "the hook is there already" in account.install("--hook", PATH="/usr/bin:/bin").stdout
    assert file.read_bytes() == before


@pytest.mark.posix
def test_a_hook_whose_mcpguard_others_may_change_is_left_and_told(account: Account) -> None:
    public = account.home / "public"
    program = impostor(public / "mcpguard")
    public.chmod(0o777)
    file = codex_hooks(account, entry(f"{program} hook codex"))
    before = file.read_bytes()
    done = account.install("--hook", status=1)
    assert file.read_bytes() == before
    assert f"{file}: the hook is not changed: other accounts may change its mcpguard {program}: " in done.stderr


@follows_links
def test_a_link_to_a_file_of_hooks_stays_a_link(account: Account) -> None:
    account.codex()
    account.install("--hook")
    file, moved = account.home / ".codex/hooks.json", account.home / "dotfiles.json"
    file.rename(moved)
    file.symlink_to(moved)
    account.uninstall()
    assert (file.is_symlink(), moved.read_bytes()) == (True, b"")


def folders(account: Account) -> set[str]:
    return {str(path) for root in (account.home, account.project) for path in root.rglob("*") if path.is_dir()}


def test_folders_that_were_made_for_hooks_go_unless_somebody_has_put_something_into_them(account: Account) -> None:
    for name in ("home/.claude.json", "home/.copilot/mcp-config.json", "project/.mcp.json"):
        account.write(name, ONE)
    (account.project / ".github").mkdir()
    before = folders(account)
    made: set[str] = set()
    project = ("--project", str(account.project))
    for more, root, copilot in ((project, account.project, ".github"), ((), account.home, ".copilot")):
        account.install("--hook", *more)
        account.install("--hook", *more)
        made |= {str(root / ".claude"), str(root / copilot / "hooks")}
        assert folders(account) - before == made
    mine = account.write("home/.claude/CLAUDE.md", "mine")
    account.uninstall()
    account.uninstall(*project)
    assert folders(account) == before | {str(mine.parent)}
    assert [*mine.parent.iterdir()] == [mine]


def test_a_named_client_without_a_hook_is_a_failure(account: Account) -> None:
    account.cursor()
    hint = "(hint: use one of: claude-code, codex, copilot)"
    told = f"mcpguard: Cursor: mcpguard has no hook for it {hint}\n"
    assert account.install("cursor", "--hook", status=1).stderr.endswith(told)


def test_a_damaged_file_of_hooks_is_left(account: Account) -> None:
    codex = account.codex()
    file = account.write("home/.codex/hooks.json", "{")
    assert f"mcpguard: {file}:1:2: " in account.install("--hook", status=1).stderr
    assert IN_TOML in codex.read_text("utf-8")
    assert f"mcpguard: {file}:1:2: " in account.uninstall(status=1).stderr
    assert (file.read_text("utf-8"), codex.read_text("utf-8")) == ("{", CODEX)
