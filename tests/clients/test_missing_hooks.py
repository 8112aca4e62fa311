"""Rules for subagents of clients that have no hook of mcpguard: what says so, and when nothing has to."""

import json
from pathlib import Path

import pytest

from mcpguard.clients.coverage import missing_hooks
from mcpguard.policy.parse import STARTER, parse
from tests.cli.account import Account
from tests.cli.command import calls

SERVERS = '{"mcpServers": {"crm": {"command": "npx", "args": ["-y", "@acme/crm"]}}}'
EXPLORE = ("--user", "*", "--agent", "*::*::Explore")
CLAUDE = "matches no subagent of Claude Code, because its hook is not installed"
RUN = "mcpguard install claude-code --hook"


@pytest.fixture
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Account:
    account = Account(tmp_path)
    account.write("home/.claude.json", SERVERS)
    account.codex()
    account.write("home/.copilot/mcp-config.json", SERVERS)
    for name, value in account.environ().items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(account.project)
    return account


def titles(account: Account, agent: str, *, hooks: bool = False) -> str:
    if hooks:
        assert account.run("install", "--hook", "--yes").returncode == 0
    found = missing_hooks(parse(f'[[rule]]\nuser = "*"\nagent = "{agent}"\nlimit = "1/1h"\n'))
    return " ".join(one.partition("; run mcpguard install ")[2].removesuffix(" --hook") for one in found.values())


@pytest.mark.parametrize(
    ("agent", "clients"),
    [
        *((agent, "claude-code copilot") for agent in ("*::subagent::*", "*::sub*::*")),  # Codex tells the tier itself
        *((agent, "claude-code codex copilot") for agent in ("*::subagent::Explore", "*::*::Explore")),
        ("Claude Code::subagent::*", "claude-code"),
        ("Codex::subagent::explorer", "codex"),
        *((agent, "") for agent in ("Codex::subagent::*", "Cursor::subagent::*", "*::interactive::*", "*::background::x")),
        *((agent, "") for agent in ("Claude Code::*::*", "*::*::default")),
    ],
)
def test_the_clients_are_those_of_a_rules_subagents_that_need_the_hook(account: Account, agent: str, clients: str) -> None:
    assert titles(account, agent) == clients
    assert titles(account, agent, hooks=True) == ""


def test_a_client_that_is_not_on_this_machine_is_not_named(account: Account) -> None:
    (account.home / ".claude.json").unlink()
    assert titles(account, "*::subagent::*") == "copilot"


def test_the_hook_of_the_project_counts_too(account: Account) -> None:
    account.write("project/.mcp.json", SERVERS)
    assert account.run("install", "claude-code", "--hook", "--project", str(account.project), "--yes").returncode == 0
    assert titles(account, "Claude Code::subagent::*") == ""


def test_the_rules_of_the_starter_policy_are_not_named(account: Account) -> None:
    assert missing_hooks(parse(STARTER)) == {}
    assert len(missing_hooks(parse(STARTER.replace("60/1m", "61/1m")))) == 1


def test_set_check_doctor_and_install_name_the_command_that_adds_the_hook(account: Account) -> None:
    (account.home / ".codex/config.toml").unlink()
    (account.home / ".copilot/mcp-config.json").unlink()
    told = account.run("policy", "set", *EXPLORE, "500/1h").stderr
    assert f"rule 5 (user=* agent=*::*::Explore) {CLAUDE}; run {RUN}" in told
    assert RUN not in account.run("policy", "set", "--tool", "x", "5/1m").stderr  # nothing new
    assert f"{CLAUDE}; run {RUN}" in account.run("policy", "check").stdout
    (note,) = [one for one in json.loads(account.run("doctor", "--json").stdout) if CLAUDE in one["detail"]]
    assert (note["check"], note["hint"]) == ("policy", RUN)
    assert f"{CLAUDE}; run {RUN}" in account.run("install", "--yes").stderr
    assert CLAUDE not in account.run("install", "--hook", "--yes").stderr
    for argv in (("policy", "check"), ("doctor",), ("install",)):
        done = account.run(*argv)
        assert CLAUDE not in done.stdout + done.stderr


def test_a_rule_that_matches_nothing_for_want_of_the_hook_is_not_said_to_be_misspelt(account: Account) -> None:
    account.run("policy", "set", *EXPLORE, "500/1h")
    account.run("policy", "set", "--tool", "serach", "500/1h")
    calls(account.state, "search", 1)
    told = json.loads(account.run("policy", "check", "--json").stdout)["warnings"]
    unmatched = "".join(one for one in told if "has matched none" in one)
    assert ("Explore" in unmatched, "serach" in unmatched) == (False, True)
