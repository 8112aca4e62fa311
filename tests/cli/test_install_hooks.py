"""`mcpguard install --hook`, and what `uninstall` does with hooks."""

import json
import sys

import pytest

from tests.cli.account import CODEX, GONE, HOOK, IN_TOML, Account
from tests.clients.installations import impostor


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


def folders(account: Account) -> set[str]:
    return {str(path) for root in (account.home, account.project) for path in root.rglob("*") if path.is_dir()}


def test_folders_that_were_made_for_hooks_go_and_others_stay(account: Account) -> None:
    account.write("home/.claude.json", '{"mcpServers": {"a": {"command": "a", "args": []}}}')
    account.write("home/.copilot/mcp-config.json", '{"mcpServers": {"a": {"command": "a", "args": []}}}')
    account.write("project/.mcp.json", '{"mcpServers": {"a": {"command": "a", "args": []}}}')
    (account.project / ".github").mkdir()
    before = folders(account)
    for more in ([], ["--project", str(account.project)]):
        account.run("install", "--hook", "--yes", *more)
        account.run("install", "--hook", "--yes", *more)
    assert folders(account) - before == {
        str(account.home / ".claude"),
        str(account.home / ".copilot/hooks"),
        str(account.project / ".claude"),
        str(account.project / ".github/hooks"),
    }
    for more in ([], ["--project", str(account.project)]):
        account.run("uninstall", "--yes", *more)
    assert folders(account) == before


def test_a_folder_that_was_made_for_a_hook_stays_with_what_somebody_has_put_into_it(account: Account) -> None:
    account.write("home/.claude.json", '{"mcpServers": {"a": {"command": "a", "args": []}}}')
    account.run("install", "--hook", "--yes")
    mine = account.write("home/.claude/CLAUDE.md", "mine")
    done = account.run("uninstall", "--yes")
    assert (done.returncode, mine.read_text("utf-8"), [path.name for path in mine.parent.iterdir()]) == (0, "mine", [mine.name])


def test_the_hooks_of_a_project_go_into_its_own_files(account: Account) -> None:
    account.write("project/.mcp.json", '{"mcpServers": {"a": {"command": "a", "args": []}}}')
    before = account.files()
    account.run("install", "--project", str(account.project), "--hook", "--yes")
    assert (account.project / ".claude/settings.local.json").exists()
    assert (account.project / ".github/hooks/mcpguard.json").exists()
    assert not (account.home / ".claude").exists()
    account.run("uninstall", "--project", str(account.project), "--yes")
    assert account.files() == before


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
