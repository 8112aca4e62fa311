"""`mcpguard policy schema`, and the schema beside each policy that mcpguard makes."""

import json
import os
from pathlib import Path

import pytest

from mcpguard.config_schema import config_schema
from mcpguard.policy.parse import SCHEMA_FILE, SCHEMA_LINE, STARTER
from mcpguard.policy.schema import policy_schema
from tests.cli.command import output
from tests.end_to_end.host import policy, rule
from tests.missing import make_link

SET = ("policy", "set", "--tool", "x", "5/1h")
RULE = rule("1/1h", tool="a")


def schema(folder: Path) -> object:
    return json.loads((folder / SCHEMA_FILE).read_text("utf-8"))


def test_schema_prints_the_schema_of_the_policy_or_of_the_settings(tmp_path: Path) -> None:
    assert json.loads(output(tmp_path, "policy", "schema")) == policy_schema()
    assert json.loads(output(tmp_path, "policy", "schema", "--config")) == config_schema()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("argv", [("policy", "init"), SET, ("policy", "mode", "observe")])
def test_each_command_that_makes_a_policy_names_its_schema_and_puts_it_beside(tmp_path: Path, argv: tuple[str, ...]) -> None:
    output(tmp_path, *argv)
    assert (tmp_path / "policy.toml").read_text("utf-8").startswith(SCHEMA_LINE)
    assert schema(tmp_path) == policy_schema()
    assert {file.name for file in tmp_path.iterdir()} <= {"policy.toml", SCHEMA_FILE, "mcpguard.db"}


@pytest.mark.parametrize("first", ["# ours", "#:schema https://acme.com/policy.json", "# :schema ./policy.schema.json", ""])
def test_a_file_keeps_its_first_line_and_gets_no_schema_that_it_does_not_name(tmp_path: Path, first: str) -> None:
    before = f"{first}\n{RULE}"
    file = policy(tmp_path, before)
    output(tmp_path, *SET)
    assert file.read_text("utf-8").startswith(before)
    assert not (tmp_path / SCHEMA_FILE).exists()


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_an_edit_brings_the_schema_up_to_date_that_the_file_names(tmp_path: Path, line_end: str) -> None:
    (tmp_path / "policy.toml").write_text(SCHEMA_LINE + RULE, "utf-8", newline=line_end)
    output(tmp_path, *SET)
    assert schema(tmp_path) == policy_schema()
    (tmp_path / SCHEMA_FILE).write_text(json.dumps(policy_schema() | {"properties": {}}), "utf-8")
    output(tmp_path, *SET[:-1], "7/1h")
    assert schema(tmp_path) == policy_schema()


@pytest.mark.parametrize("theirs", ["file", "folder", "read-only"])
def test_what_is_not_our_schema_stays_and_the_policy_is_written_all_the_same(tmp_path: Path, theirs: str) -> None:
    beside, text = tmp_path / SCHEMA_FILE, json.dumps({"title": "theirs" if theirs == "file" else policy_schema()["title"]})
    if theirs == "folder":
        beside.mkdir()
    else:
        beside.write_text(text, "utf-8")
    if theirs == "read-only":
        beside.chmod(0o400)
        if os.access(beside, os.W_OK):
            pytest.skip("permissions do not bind this account")
    output(tmp_path, *SET)
    assert "tool = " in (tmp_path / "policy.toml").read_text("utf-8")
    assert beside.is_dir() if theirs == "folder" else beside.read_text("utf-8") == text


def test_of_a_policy_that_is_a_link_the_schema_is_beside_the_file_that_it_leads_to(tmp_path: Path) -> None:
    team = tmp_path / "team"
    make_link(tmp_path / "policy.toml", policy(team, SCHEMA_LINE + RULE))
    output(tmp_path, *SET)
    assert schema(team) == policy_schema()
    assert not (tmp_path / SCHEMA_FILE).exists()


@pytest.mark.posix
def test_an_editor_gets_the_starter_rules_and_the_schema_beside_the_copy_that_it_opens(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    editor = f'sh -c \'cp "$(dirname "$0")/{SCHEMA_FILE}" {seen}; echo "# edited" >> "$0"\''
    output(tmp_path, "policy", "edit", EDITOR=editor)
    assert json.loads(seen.read_text("utf-8")) == policy_schema()
    assert (tmp_path / "policy.toml").read_text("utf-8") == f"{STARTER}# edited\n"


def test_reading_a_policy_writes_nothing(tmp_path: Path) -> None:
    policy(tmp_path, SCHEMA_LINE + RULE)
    for command in ("check", "show", "path", "schema"):
        output(tmp_path, "policy", command)
    assert not (tmp_path / SCHEMA_FILE).exists()
