"""taplo, which is in the editors' extension Even Better TOML, checks and completes a file by the schema that it names.

`MCPGUARD_REAL_TAPLO=1` runs these tests.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest

from mcpguard.config_schema import config_schema
from mcpguard.policy.editing import put
from mcpguard.policy.parse import SCHEMA_LINE
from mcpguard.policy.schema import policy_schema, schema_text
from mcpguard.policy.writing import begin, write_policy
from tests.end_to_end.host import rule
from tests.missing import missing

from .parts import HERE, MissingError, Parts

TIMEOUT_S = 60

GOOD = (
    'mode = "observe"\nwait = "5s"\n\n'
    + rule(
        user="*", agent="*::subagent::*", role=["support", "eu"], per=["user", "arguments"], count="cost", name="all subagents"
    )
    + 'limit = ["20/1m", "100/1h"]\n'
    + rule(tool="open_page", concurrent=2, wait="20s")
    + rule("deny", tool="delete_user")
    + '[[cost]]\ntool = "generate_report"\ncost = 20\n'
)


@pytest.fixture
def modules(parts: Parts) -> Path:
    if os.environ.get("MCPGUARD_REAL_TAPLO") != "1":
        missing("MCPGUARD_REAL_TAPLO is not 1: taplo comes from npm")
    try:
        return parts.npm("taplo")
    except MissingError as error:
        missing(str(error))


def run(*command: str, modules: Path) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"NODE_PATH": str(modules)}
    return subprocess.run(command, env=env, text=True, capture_output=True, timeout=TIMEOUT_S, check=False)


def refusals(file: Path, modules: Path) -> str:
    """What taplo finds wrong with a file; empty if nothing."""
    done = run(str(modules / ".bin" / "taplo"), "check", str(file), modules=modules)
    assert (done.returncode == 0) == ("error:" not in done.stderr), done.stderr
    return "" if done.returncode == 0 else done.stderr


def completed(file: Path, line: int, column: int, modules: Path) -> dict[str, str]:
    """What an editor offers at a place, each with its description."""
    done = run("node", str(HERE / "programs/editor_taplo.cjs"), str(file), str(line), str(column), modules=modules)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def test_taplo_takes_the_policies_that_mcpguard_makes(tmp_path: Path, modules: Path) -> None:
    file = tmp_path / "policy.toml"
    begin(file)
    assert refusals(file, modules) == ""
    put(file, {"user": "*", "tool": "search", "limit": ["20/1m", "100/1h"]})
    assert refusals(file, modules) == ""
    write_policy(file, (SCHEMA_LINE + GOOD).encode())
    assert refusals(file, modules) == ""


@pytest.mark.parametrize(
    ("right", "wrong", "shown"),
    [
        ('"observe"', '"obsrve"', '"obsrve" is not one of'),
        ('"5s"', "5", '5 is not of type "string"'),
        ('"*::subagent::*"', '"*::subagent"', '"*::subagent" does not match'),
        ('"user", "arguments"', '"usr"', '"usr" is not one of'),
        ('"20/1m"', '"0/1m"', "is not allowed for"),
        ('"100/1h"', '"100 an hour"', '"100 an hour" does not match'),
        ("limit = [", "limt = [", "('limt' was unexpected)"),
        ("concurrent = 2\n", "", '"limit" is a required property'),
        ('limit = "deny"', 'limit = "deny"\ncount = "cost"', 'does not allow "cost"'),
        ("cost = 20", "", '"cost" is a required property'),
    ],
)
def test_taplo_refuses_a_mistake_with_its_place(tmp_path: Path, modules: Path, right: str, wrong: str, shown: str) -> None:
    assert right in GOOD
    file = tmp_path / "policy.toml"
    write_policy(file, (SCHEMA_LINE + GOOD.replace(right, wrong)).encode())
    assert shown in refusals(file, modules)


def test_taplo_checks_the_settings_by_a_schema_that_policy_schema_has_printed(tmp_path: Path, modules: Path) -> None:
    file = tmp_path / "config.toml"
    (tmp_path / "config.schema.json").write_text(schema_text(config_schema()), "utf-8")
    text = '#:schema ./config.schema.json\ndenials = "auto"\n[store]\ntimeout_ms = 250\n'
    file.write_text(text, "utf-8")
    assert refusals(file, modules) == ""
    file.write_text(text.replace("250", "0"), "utf-8")
    assert "0 is less than the minimum of 1" in refusals(file, modules)


def test_an_editor_completes_the_keys_of_a_policy_with_their_descriptions(tmp_path: Path, modules: Path) -> None:
    file = tmp_path / "policy.toml"
    rule = policy_schema()["properties"]["rule"]["items"]["properties"]
    write_policy(file, f'{SCHEMA_LINE}\n[[rule]]\nlimit = "5/1m"\n\n'.encode())
    assert set(completed(file, 1, 0, modules)) >= {"mode", "wait"}
    assert completed(file, 4, 0, modules) == {key: one["description"] for key, one in rule.items() if key != "limit"}
    write_policy(file, f'{SCHEMA_LINE}[[rule]]\ncount = ""\n'.encode())
    assert set(completed(file, 2, 9, modules)) == {'"calls"', '"cost"', '"errors"'}
