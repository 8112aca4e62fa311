"""Runs or checks every block of the README and of the manual in `docs/`.

Some blocks are checked elsewhere: the user of a Redis server in `tests/stores/redis/test_rights.py`, rows of the audit log in
`tests/test_audit_page.py`, the commands' help in `tests/test_command_reference.py`, and the clients' table in
`tests/test_clients_page.py`.
"""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest

from mcpguard import config
from mcpguard.cli import commands
from mcpguard.config_schema import config_schema
from mcpguard.errors import ExitStatus
from mcpguard.identity.account import folders
from mcpguard.identity.client_agents import HOOKS
from mcpguard.policy.model import Call
from mcpguard.policy.parse import parse
from mcpguard.stores.address import address
from mcpguard.stores.redis.url import SCHEMES
from tests.build import START_US, Talk, call_line
from tests.cli.command import output
from tests.demo.conftest import shared_run
from tests.end_to_end.host import rule
from tests.pages import BLOCK, DOCS, README, ROOT, blocks, chapter

PAGES = {"README.md": README, **DOCS}


def all_blocks(kind: str) -> list[str]:
    return [block for page in PAGES.values() for block in blocks(kind, page)]


def context_of(argv: list[str]) -> tuple[click.Command, click.Context]:
    """Parse `mcpguard ARGV` without running it."""
    command: click.Command = commands.cli
    while isinstance(command, commands.CommandGroup):
        name, *argv = argv
        command = command.parts[name].loaded()
    return command, command.make_context(command.name, argv)


def test_the_first_shell_blocks_run_the_demo_and_the_tests_that_ci_runs_each_in_one_line() -> None:
    demo, tests = (block.splitlines() for block in blocks("sh", README)[:2])
    assert re.search(r"pip install --quiet \. .*mcpguard demo$", demo.pop())
    assert re.search(r"pip install --quiet --editable '\.\[dev\]'.*python -m pytest -n 4$", tests.pop())
    assert demo == tests == []
    assert "step python -m pytest -n " in (ROOT / ".ci/run").read_text("utf-8")


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_every_folder_of_tests_that_is_named_exists(page: str) -> None:
    named = re.findall(r"\btests/[\w/.]+", (ROOT / page).read_text("utf-8"))
    assert named
    assert [one for one in named if not (ROOT / one.rstrip("./")).exists()] == []


def test_the_other_shell_blocks_install_an_existing_package_or_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    others = [block for block in all_blocks("sh") if block not in blocks("sh", README)[:2]]
    assert len(others) >= 3
    for line in "".join(others).splitlines():
        match = re.fullmatch(r"(?:uv tool|pipx) install ([\w-]+)|\.venv/bin/pip install --quiet '\.\[(\w+)\]'", line)
        assert match, line
        assert match[1] in {None, project["name"]}
        assert match[2] in {None, *project["optional-dependencies"]}


def test_python_blocks_run() -> None:
    for block in all_blocks("python"):
        done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr


def test_every_block_is_of_a_checked_kind() -> None:
    for page, text in PAGES.items():
        kinds = [match["kind"] for match in BLOCK.finditer(text)]
        assert set(kinds) <= {"acl", "console", "json", "python", "sh", "text", "toml", "yaml"}, page
        assert 2 * len(kinds) == len(re.findall(r"^ *```", text, re.MULTILINE)), page


def test_the_readme_is_short() -> None:
    assert README.count("\n") <= 200


def test_links_in_readme_manual_and_contributing_lead_somewhere() -> None:
    pages = {ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs" / name for name in DOCS)}
    for page in pages:
        for target, _, anchor in re.findall(r"\]\((?!\w+:)([^)#]*)(#([^)]+))?\)", page.read_text("utf-8")):
            file = (page.parent / target).resolve() if target else page
            assert file.exists(), f"{page.name}: {target}"
            assert not anchor or anchor in anchors(file.read_text("utf-8")), f"{page.name}: {target}#{anchor}"


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", text), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.lower())).strip("-") for heading in headings}


def test_the_glossary_has_each_term_once() -> None:
    terms = re.findall(r"^### (.*)$", DOCS["glossary.md"], re.MULTILINE)
    assert len(terms) == len(set(terms)) > 20


def test_each_shown_command_is_valid() -> None:
    assert blocks("console", README)
    for block in all_blocks("console"):
        for line in block.splitlines():
            argv = shlex.split(line.removeprefix("$ mcpguard "))
            assert line.startswith("$ mcpguard ")
            context_of(argv)


def test_the_policy_set_of_the_readme_works(tmp_path: Path) -> None:
    (line,) = next(block for block in blocks("console", README) if "policy set" in block).splitlines()
    output(tmp_path, *shlex.split(line.removeprefix("$ mcpguard ")))
    rules = parse((tmp_path / "policy.toml").read_text("utf-8")).rules
    assert ("user=* tool=search_customers", "100/1h") in [(rule.text, rule.limit_text) for rule in rules]


def test_client_entries_have_valid_arguments() -> None:
    entries = [entry for block in all_blocks("json") for entry in json.loads(block).get("mcpServers", {}).values()]
    guarded = [entry for entry in entries if entry["command"] == "mcpguard"]
    assert len(guarded) >= 3
    for entry in guarded:
        _, context = context_of(entry["args"])
        assert context.params["argv"] == ("npx", "-y", "@acme/crm-server")


def test_a_subagents_own_entry_has_valid_arguments() -> None:
    (block,) = all_blocks("yaml")
    _, context = context_of(json.loads(block.split("args: ")[1].splitlines()[0]))
    assert context.params["agent"] == "Claude Code::subagent::crm-researcher"
    assert context.params["argv"] == ("npx", "-y", "@acme/crm-server")


def test_each_shown_hook_is_that_of_the_help_and_its_command_is_valid(tmp_path: Path) -> None:
    shown = [json.loads(block) for block in all_blocks("json") if '"hooks"' in block]
    for client in HOOKS:
        command = f"mcpguard hook {client}"
        text = output(tmp_path, "hook", client, "--help")
        told = json.loads(text[text.index("{") : text.rindex("}") + 1])
        assert told == next(one for one in shown if f'"{command}"' in json.dumps(one))
        context_of(shlex.split(command)[1:])
    assert len(shown) == len(HOOKS)


def test_policies_and_settings_shown_are_valid(tmp_path: Path) -> None:
    for block in all_blocks("toml"):
        if "[[rule]]" in block:
            assert parse(block).rules
        else:
            (tmp_path / "config.toml").write_text(block)
            settings = config.load({"MCPGUARD_HOME": str(tmp_path)})
            assert settings.jwt if "[identity.jwt]" in block else settings.user == "alice@acme.com" or settings.notify


def test_the_shown_store_addresses_and_extra_are_valid(tmp_path: Path) -> None:
    fleet = chapter(DOCS["stores-and-fleets.md"], "Redis or Valkey, for a fleet")
    (install,) = blocks("sh", fleet)
    (extra,) = re.findall(r"'\.\[(\w+)\]'", install)
    assert f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text("utf-8")
    for name in ("password", "ca.pem"):
        (tmp_path / name).write_text("s3cret\n")
    shown = re.findall(r'^url = "(.*)"$', fleet, re.MULTILINE) + re.findall(r"^\| `(.*?://.*?)` \|", fleet, re.MULTILINE)
    assert len(shown) == 5
    for url in shown:
        if sys.platform != "win32" or not url.startswith("unix://"):
            address(url.replace("~/.config/mcpguard", tmp_path.as_posix()))
    assert {url.partition("://")[0] for url in re.findall(r"`([a-z+]+://)", fleet)} == set(SCHEMES)


def test_every_setting_and_every_variable_is_documented() -> None:
    page = DOCS["configuration.md"]
    settings = {key for keys in config.SETTINGS.values() for key in keys}
    assert {key for key in settings if not re.search(rf"\b{key}\b", page)} == set()
    code = "".join((ROOT / "mcpguard" / name).read_text("utf-8") for name in ("config.py", "identity/account.py"))
    variables = set(re.findall(r"MCPGUARD_[A-Z_]+[A-Z]", code))
    assert {name for name in variables if f"`{name}`" not in page} == set()


def test_the_documented_defaults_and_values_are_those_of_the_program() -> None:
    rows = re.findall(r"^\| `(?:(\w+)\.)?(\w+)` \| (.*?) \| (.*?) \|$", DOCS["configuration.md"], re.MULTILINE)
    plain = [
        (table, key, kind) for table, keys in config.SETTINGS.items() if table != "identity.jwt" for key, kind in keys.items()
    ]
    assert [(table, key) for table, key, *_ in rows] == [(table, key) for table, key, _ in plain]
    for (_, key, kind), (_, _, default, values) in zip(plain, rows, strict=True):
        if key == "keep":
            assert config.span_us(default.strip("`"), where=key) == config.Settings._field_defaults["keep_us"]
        elif isinstance(kind, range):
            assert default == str(config.Settings._field_defaults[key])
            assert values.startswith(f"{kind[0]} to {kind[-1]} ")
        elif isinstance(kind, tuple):
            assert default == f"`{config.Settings._field_defaults[key]}`"
            assert re.findall(r"`(\w+)`", values)[: len(kind)] == list(kind)
        elif isinstance(kind, list):
            assert re.findall(r"`(\w+)`", values) == kind
        elif kind is bool:
            assert default == f"`{str(config.Settings._field_defaults.get(key, False)).lower()}`"


def test_the_table_of_settings_has_the_descriptions_that_editors_show() -> None:
    rows = re.findall(r"^\| `(?:(\w+)\.)?(\w+)` \| .*? \| (.*?) \|$", DOCS["configuration.md"], re.MULTILINE)
    for table, key, shown in rows:
        keys = config_schema()["properties"]
        text = (keys[table].get("items", keys[table])["properties"] if table else keys)[key]["description"]
        plain = re.sub(r"\[([^\]]*)\]\(.*?\)", r"\1", shown).replace("`", "")
        assert f"{plain}.".lower() == text.lower()


def test_the_figures_of_the_readme_are_those_of_the_manual() -> None:
    figures = re.findall(r"\d[\d,]*(?:–[\d,]+| / \d+)(?: µs| MiB)?", chapter(README, "How fast it is"))
    assert len(figures) >= 8
    assert [figure for figure in figures if figure not in DOCS["performance.md"]] == []


def test_every_command_is_documented() -> None:
    for name in commands.cli.commands:
        assert re.search(rf"\bmcpguard {name}\b", README), name


@pytest.mark.parametrize(
    "row", re.findall(r"^\| (`.*?) \| (.*?) \|$", chapter(DOCS["policy.md"], "How rules override"), re.MULTILINE)[:7]
)
def test_the_table_of_overrides_is_right(row: tuple[str, str]) -> None:
    rules = [text.split() for text in re.findall(r"`([^`]*=[^`]*)`", row[0])]
    assert len(rules) == 2
    policy = parse("".join("\n".join(["[[rule]]", *keys, f'limit = "{limit}"', ""]) for *keys, limit in rules))
    (tool,) = {"crm_read", "search", "grant"} & set(re.findall(r"\w+", row[0])) or {"search"}
    plan = policy.plan(Call("alice", "a::interactive::b", "crm", tool))
    word = re.split(r"\W", row[1])[0]
    assert [str(limit.n) for limit in plan.limits] == {"both": [limit.split("/")[0] for *_, limit in rules], "open": []}.get(
        word, [word]
    )


def test_the_shown_denial_is_what_a_client_receives() -> None:
    shown = next(json.loads(block) for block in blocks("json", DOCS["policy.md"]) if '"error"' in block)
    talk = Talk(rule("100/1h", user="*", tool="search_customers"), session="45732ae6c06cfb07")
    for request_id in range(107, 6, -1):
        talk.client(call_line("search_customers", request_id))
        talk.time.now_us = START_US + 3600_000_000 - 846_213_000
    assert talk.to_client == [shown]


def test_the_shown_output_of_the_demo_is_what_it_prints(tmp_path_factory: pytest.TempPathFactory) -> None:
    done = shared_run(tmp_path_factory)
    assert done.status == 0, done.err
    masked = re.sub(r"\d+ ms", "N ms", done.out)
    (shown,) = blocks("text", README)
    assert re.sub(r"\d+ ms", "N ms", shown) in masked


def test_the_documented_exit_statuses_are_those_of_the_program() -> None:
    table = DOCS["configuration.md"].split("| exit status | |")[1].split("##")[0]
    documented = {int(number) for row in re.findall(r"^\| ([\d, ]+) \|", table, re.MULTILINE) for number in row.split(",")}
    assert documented == {int(status) for status in ExitStatus} - {0}


@pytest.mark.skipif(sys.platform != "linux", reason="the table has a column for each system")
def test_the_files_are_where_the_manual_says_whatever_xdg_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", "/elsewhere")
    places = folders({})
    home = Path.home()
    assert places.config_file == str(home / ".config/mcpguard/config.toml")
    assert places.database == str(home / ".local/state/mcpguard/mcpguard.db")
    assert "`~/.config/mcpguard`" in DOCS["configuration.md"]
    assert "`~/.local/state/mcpguard`" in DOCS["configuration.md"]
