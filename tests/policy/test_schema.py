"""The schemas of `policy.toml` and `config.toml` say what their parsers do, and are where files name them."""

import datetime
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from jsonschema import Draft7Validator

from mcpguard import config
from mcpguard.config_schema import config_schema
from mcpguard.errors import ConfigError, PolicyError
from mcpguard.identity.jwt_settings import ALGORITHMS, REQUIRED
from mcpguard.policy.model import PER
from mcpguard.policy.parse import COST, RULE, SCHEMA_LINE, STARTER, TOP, parse
from mcpguard.policy.schema import Schema, policy_schema
from tests.schemas import ROOT, schemas

POLICY = Draft7Validator(policy_schema())
CONFIG = Draft7Validator(config_schema())

BEYOND_A_SCHEMA = re.compile(
    r"the same selectors|two limits for one window|is over \d+ calls|window out of bounds|is too long"  # in a policy
    r"|jwks: this is neither an https URL|9w' is not a span of time"  # in config.toml
    r"|webhook: messages are not sent to this URL"
)
"""What a schema cannot say, by the message of the parser."""

TEXTS = [
    *("", " ", "5 /1m", "0" * 30 + "5/1s", "80 %", "5 s", "9" * 20 + "w"),
    *"x * 5 none deny unlimited calls cost errors observe enforce ENFORCE".split(),
    *"5/1m 007/01h 100/90m 0/1m 00/1m 5/0m 5/1x 1/99999d 9000000000/1s 200/session 0/session 5/sessions".split(),
    *"a::b::c *::b::* :a::b::c a:::b:::c: a::b::: a:b::c:d::e:f a::b a::b::c::d a::::c ::b::c a::b::".split(),
    *"1% 80% 100% 0% 101% 8.5% 080%".split(),
    *"5s 1h 0s 00m s 2h 1d 7x".split(),
    *"auto local full hash HS256 https://idp.acme.com/keys ftp://idp.acme.com".split(),
    *ALGORITHMS,
]
ANYTHING: list[Any] = [
    *(True, False, -1, 0, 1, 1023, 10_000, 10_001, 1_000_000_000, 1_000_000_001, 1.5, datetime.date(2026, 1, 1), {}, {"x": 1}),
    *([], [3], ["user", "user"], ["role"], ["session"], ["5/1m", "9/1m"], ["5/1m", "9/1h"]),
    *([text] for text in (*TEXTS, *PER)),
    *TEXTS,
]
"""Values of every kind: right ones, nearly right ones, and others."""

RIGHT: list[Any] = [2, "5s", "80%", "5/1m", "a::b::c", "unlimited", ["user"], *"calls cost errors observe".split()]
"""Values that are each right for some key."""


def check(data: dict[str, Any], validator: Draft7Validator, wrong: list[str]) -> None:
    """The schema takes what the parser takes, and refuses what it refuses, unless no schema could."""
    is_valid = validator.is_valid(data)
    assert is_valid or wrong, f"only the schema refuses it: {[error.message for error in validator.iter_errors(data)]}"
    assert not (is_valid and [one for one in wrong if not BEYOND_A_SCHEMA.search(one)]), "only the parser refuses it"


def faults(text: str) -> list[str]:
    try:
        parse(text)
    except PolicyError as error:
        return [one.message for one in error.problems]
    return []


RULES: list[dict[str, Any]] = [
    *({"limit": limit} for limit in ("5/1m", "deny", "unlimited")),
    *({"concurrent": 1}, {"limit": "5/1m", "concurrent": 1}),
]
ONE_KEY = [
    *([{"rule": [{"limit": "5/1m", key: one}]} for key in [*RULE.values, "unknown"] for one in ANYTHING]),
    *([{"rule": [rule | {key: one}]} for rule in RULES for key in RULE.values for one in RIGHT]),
    *([{"cost": [{"cost": 5, key: one}]} for key in [*COST.values, "limit"] for one in ANYTHING]),
    *([{key: one} for key in [*TOP.values, "rule", "cost", "store"] for one in ANYTHING]),
    *({}, {"rule": [{}]}, {"rule": [{"tool": "a"}]}, {"cost": [{}]}, {"cost": [{"tool": "a"}]}),
]


def test_schema_and_parser_take_the_same_values_of_each_key() -> None:
    for data in ONE_KEY:
        check(data, POLICY, faults(tomli_w.dumps(data)))


@pytest.fixture
def same_settings(tmp_path: Path) -> Callable[[dict[str, Any]], None]:
    """Checks that schema and parser agree on some settings."""
    file = tmp_path / "config.toml"

    def checked(data: dict[str, Any]) -> None:
        file.unlink(missing_ok=True)  # ext4 writes a file that is truncated and closed to the disk at once
        file.write_text(tomli_w.dumps(data), "utf-8")
        try:
            config.load({"MCPGUARD_HOME": str(tmp_path)})
        except ConfigError as error:
            check(data, CONFIG, [error.message])
        else:
            check(data, CONFIG, [])

    return checked


def test_schema_and_parser_take_the_same_values_of_each_setting(same_settings: Callable[[dict[str, Any]], None]) -> None:
    jwt = dict.fromkeys(REQUIRED, "x")
    for name, keys in config.SETTINGS.items():
        for key, kind in keys.items():
            edges = [kind[0] - 1, kind[0], kind[-1], kind[-1] + 1] if isinstance(kind, range) else []
            for one in ANYTHING + edges:
                if name in config.LISTED:
                    same_settings({name: [{"desktop": True, key: one}]})
                    same_settings({name: [{key: one}]})
                    continue
                same_settings(
                    {"identity": {"jwt": jwt | {key: one}}} if "jwt" in name else {name: {key: one}} if name else {key: one}
                )
    tables: list[Any] = [3, {}, jwt, jwt | {"issuer": " "}, {"issuer": "x", "audience": "x"}]
    others: list[dict[str, Any]] = [{}, {"store": 3}, {"unknown": 3}, {"identity": {"jwt": jwt, "user": "x"}}]
    ways: list[Any] = [3, {"desktop": True}, [], [{}], ["x"], [{"desktop": True}, {"command": ["x"], "desktop": False}]]
    others += [{"notify": way} for way in ways]
    for data in [*({"identity": {"jwt": table}} for table in tables), *others]:
        same_settings(data)


@pytest.mark.parametrize("validator", [POLICY, CONFIG])
def test_each_key_has_a_text_and_each_text_a_key(validator: Draft7Validator) -> None:
    Draft7Validator.check_schema(validator.schema)
    name = "policy/keys.toml" if validator is POLICY else "config_keys.toml"
    texts = tomllib.loads((ROOT / "mcpguard" / name).read_text("utf-8"))

    def described(schema: Schema, table: str) -> dict[str, dict[str, str]]:
        found = {table or "top": {key: one["description"] for key, one in schema["properties"].items()}}
        for key, one in schema["properties"].items():
            if "properties" in (inner := one.get("items", one)):
                found |= described(inner, f"{table}.{key}".lstrip("."))
        return found

    assert described(validator.schema, "") == texts


def test_the_schemas_in_the_docs_and_in_the_examples_are_those_of_the_program() -> None:
    for file, text in schemas():
        assert file.read_text("utf-8") == text, f"{file}: run python -m tests.schemas"


@pytest.mark.parametrize("text", [STARTER, *(file.read_text("utf-8") for file in sorted((ROOT / "examples").rglob("*.toml")))])
def test_each_policy_that_we_ship_names_its_schema_and_is_valid_by_it(text: str) -> None:
    assert text.startswith(SCHEMA_LINE)
    assert POLICY.is_valid(tomllib.loads(text))
