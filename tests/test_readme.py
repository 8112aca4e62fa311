"""Every block of the README is run or checked here; a server's user is tried in `tests/stores/test_redis_rights.py`."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from mcpguard import config
from mcpguard.cli import commands
from mcpguard.core.frames import read
from mcpguard.core.guard import Guard, Reply
from mcpguard.core.identity import Identity
from mcpguard.core.journal import Journal
from mcpguard.core.policy import Call
from mcpguard.core.policy_parse import parse, parse_rule
from mcpguard.core.verdict import Charge
from mcpguard.errors import ExitStatus
from mcpguard.stores.address import address
from mcpguard.stores.redis.url import SCHEMES
from tests.end_to_end.host import environment, program
from tests.memory_store import MemoryStore

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(kind: str) -> list[str]:
    return [match[1] for match in re.finditer(rf"^```{kind}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)]


def run(*argv: str, home: Path) -> subprocess.CompletedProcess[str]:
    env = environment(home, NO_COLOR="1")
    return subprocess.run(program(*argv), capture_output=True, text=True, env=env, timeout=250, check=False)


def context_of(argv: list[str]) -> tuple[click.Command, click.Context]:
    """What the command line makes of `mcpguard ARGV`, without doing it."""
    command: click.Command = commands.cli
    context = click.Context(command)
    while isinstance(command, click.Group):
        name, *argv = argv
        found = command.get_command(context, name)
        assert found is not None, name
        command = found
    return command, command.make_context(command.name, argv)


def test_the_first_shell_block_installs_and_does_the_main_job_in_one_line() -> None:
    (first, *_) = blocks("sh")
    assert first.count("\n") == 1
    assert "pip install --quiet . " in first
    assert first.rstrip().endswith("mcpguard demo")


def test_the_second_shell_block_is_the_test_command_that_ci_runs() -> None:
    second = blocks("sh")[1]
    assert second.count("\n") == 1
    assert "pip install --quiet --editable '.[dev]'" in second
    assert second.rstrip().endswith("python -m pytest -n 4")
    assert "together=(-n 4 " in (ROOT / ".ci/run").read_text()


def test_each_command_shown_is_one_that_the_command_line_takes() -> None:
    for block in blocks("console"):
        for line in block.splitlines():
            argv = shlex.split(line.removeprefix("$ mcpguard "))
            assert line.startswith("$ mcpguard ")
            context_of(argv)


def test_the_limit_that_is_set_in_the_readme_is_set(tmp_path: Path) -> None:
    (line,) = blocks("console")[0].splitlines()
    done = run(*shlex.split(line.removeprefix("$ mcpguard ")), home=tmp_path)
    assert done.returncode == 0, done.stderr
    rules = parse((tmp_path / "policy.toml").read_text()).rules
    assert ("user=* tool=search_customers", "100/1h") in [(rule.text, rule.limit_text) for rule in rules]


def test_client_entries_start_mcpguard_as_the_command_line_takes_it() -> None:
    entries = [entry for block in blocks("json") for entry in json.loads(block).get("mcpServers", {}).values()]
    guarded = [entry for entry in entries if entry["command"] == "mcpguard"]
    assert len(guarded) >= 2
    for entry in guarded:
        _, context = context_of(entry["args"])
        assert context.params["argv"] == ("npx", "-y", "@acme/crm-server")


def test_a_subagents_own_entry_starts_mcpguard_as_the_command_line_takes_it() -> None:
    (block,) = blocks("yaml")
    _, context = context_of(json.loads(block.split("args: ")[1].splitlines()[0]))
    assert context.params["agent"] == "Claude Code::subagent::crm-researcher"
    assert context.params["argv"] == ("npx", "-y", "@acme/crm-server")


def test_the_hook_shown_is_the_one_that_its_help_shows_and_starts_a_command_that_there_is(tmp_path: Path) -> None:
    (shown,) = [json.loads(block) for block in blocks("json") if '"hooks"' in block]
    text = run("hook", "claude-code", "--help", home=tmp_path).stdout
    assert json.loads(text[text.index("{") : text.rindex("}") + 1]) == shown
    command = shown["hooks"]["PreToolUse"][0]["hooks"][0]["command"]
    context_of(shlex.split(command)[1:])


def test_policies_and_settings_shown_are_valid(tmp_path: Path) -> None:
    for block in blocks("toml"):
        if "[[rule]]" in block:
            assert parse(block).rules
        else:
            (tmp_path / "config.toml").write_text(block)
            settings = config.load({"MCPGUARD_HOME": str(tmp_path)})
            assert settings.jwt if "[identity.jwt]" in block else settings.user == "alice@acme.com"


def test_the_addresses_and_the_extra_shown_are_what_the_program_takes(tmp_path: Path) -> None:
    third = blocks("sh")[2]
    (extra,) = re.findall(r"'\.\[(\w+)\]'", third)
    assert f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text()
    for name in ("password", "ca.pem"):
        (tmp_path / name).write_text("s3cret\n")
    chapter = README.split("## A fleet on one Redis")[1].split("\n## ")[0]
    shown = re.findall(r'^url = "(.*)"$', chapter, re.MULTILINE) + re.findall(r"^\| `(.*?://.*?)` \|", chapter, re.MULTILINE)
    found = [address(url.replace("~/.config/mcpguard", str(tmp_path))) for url in shown]
    assert len(found) == 5
    assert {url.partition("://")[0] for url in re.findall(r"`([a-z+]+://)", chapter)} == set(SCHEMES)


def test_every_setting_and_every_variable_is_documented() -> None:
    settings = {key for keys in config._TABLES.values() for key in keys} - {"max_frame_bytes"}
    assert {key for key in settings if not re.search(rf"\b{key}\b", README)} == set()
    variables = set(re.findall(r"MCPGUARD_[A-Z]+", (ROOT / "mcpguard/config.py").read_text()))
    assert {name for name in variables if name not in README} == set()


def test_no_figure_is_left_to_be_filled_in() -> None:
    assert re.findall(r"\| [A-Z]+_[A-Z0-9]+ ", README) == []


def test_every_command_is_documented() -> None:
    for name in commands._COMMANDS:
        assert re.search(rf"\bmcpguard {name}\b", README), name


def _rule(text: str) -> dict[str, object]:
    table: dict[str, object] = dict(re.findall(r'(\w+)="([^"]*)"', text))
    if "per=[]" in text:
        table["per"] = []
    return table | {"limit": text.split()[-1]}


@pytest.mark.parametrize(
    "row", re.findall(r"^\| (`.*?) \| (.*?) \|$", README.split("## How rules override")[1], re.MULTILINE)[:7]
)
def test_the_table_of_overrides_says_what_holds(row: tuple[str, str]) -> None:
    rules = [_rule(text) for text in re.findall(r"`([^`]*=[^`]*)`", row[0])]
    assert len(rules) == 2
    tool = next((str(rule["tool"]) for rule in rules if "*" not in str(rule.get("tool", "*"))), "search")
    call = Call("alice", "a::interactive::b", "crm", "crm_read" if "crm_read" in row[0] else tool)
    text = "".join("[[rule]]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in rule.items()) for rule in rules)
    plan = parse(text).plan(call)
    wanted = {"both": 2, "open": 0}.get(re.split(r"\W", row[1])[0], 1)
    assert len(plan.limits) == wanted
    if wanted == 1:
        assert str(plan.limits[0].n) == re.split(r"\W", row[1])[0]
    for rule in rules:
        parse_rule(rule, where="table")


def test_the_denial_shown_is_the_one_that_a_client_gets() -> None:
    shown = next(json.loads(block) for block in blocks("json") if '"error"' in block)
    now_us = 0
    store = MemoryStore(clock=lambda: now_us)
    policy = parse('[[rule]]\nuser = "*"\ntool = "search_customers"\nlimit = "100/1h"\n')
    guard = Guard(Identity("alice@acme.com", "config", "crm", client="Claude Code"), policy, session="45732ae6c06cfb07")
    journal = Journal(guard.session)
    reply = None
    for _ in range(101):
        line = b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"search_customers"}}'
        (charge,) = guard.client_messages(read([line]), now_us=0)
        assert isinstance(charge, Charge)
        (verdict,) = store.decide([charge], journal)
        reply = guard.charged(charge, verdict, now_us=0)
        now_us = 3600_000_000 - 846_213_000
    assert isinstance(reply, Reply)
    assert json.loads(reply.data) == shown


def test_the_output_of_the_demo_is_what_it_prints(tmp_path: Path) -> None:
    done = run("demo", home=tmp_path)
    assert done.returncode == 0, done.stderr
    masked = re.sub(r"\d+ ms", "N ms", done.stdout)
    (shown,) = blocks("text")
    assert re.sub(r"\d+ ms", "N ms", shown) in masked


def test_the_exit_statuses_are_those_of_the_program() -> None:
    table = README.split("| exit status | |")[1].split("##")[0]
    documented = {int(number) for row in re.findall(r"^\| ([\d, ]+) \|", table, re.MULTILINE) for number in row.split(",")}
    assert documented == {int(status) for status in ExitStatus} - {0}


@pytest.mark.skipif(sys.platform != "linux", reason="the table has a column for each system")
def test_the_files_are_where_the_readme_says_whatever_xdg_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", "/elsewhere")
    places = config.folders({})
    home = Path.home()
    assert places.config_file == home / ".config/mcpguard/config.toml"
    assert places.database == home / ".local/state/mcpguard/mcpguard.db"
    assert "`~/.config/mcpguard`" in README
    assert "`~/.local/state/mcpguard`" in README
