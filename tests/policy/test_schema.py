"""The schemas of `policy.toml` and `config.toml` say what their parsers do, and are where files name them."""

import datetime
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft7Validator

from mcpguard import config
from mcpguard.config_schema import config_schema
from mcpguard.errors import ConfigError, PolicyError
from mcpguard.identity.jwt_settings import ALGORITHMS, LISTS, REQUIRED
from mcpguard.policy.model import PER
from mcpguard.policy.parse import COST, RULE, SCHEMA_LINE, STARTER, TOP, TableKeys, parse
from mcpguard.policy.schema import Schema, policy_schema
from mcpguard.policy.values import Axes, Limits, Number, Patterns, Share, Text, TimeSpan, ValueType, Words
from mcpguard.text.times import SPAN
from tests.schemas import ROOT, schemas

POLICY = Draft7Validator(policy_schema())
CONFIG = Draft7Validator(config_schema())

BEYOND_A_SCHEMA = re.compile(
    r"the same selectors|two limits for one window|is over \d+ calls|window out of bounds|is too long"  # in a policy
    r"|jwks: this is neither an https URL|9w' is not a span of time"  # in config.toml
    r"|webhook: messages are not sent to this URL"
)
"""What a schema cannot say, by the message of the parser."""

Values = tuple[st.SearchStrategy[Any], st.SearchStrategy[Any]]
"""Values of a key: right ones, and others, some of which may be right."""

TEXTS = [
    *("", " ", "5 /1m", "0" * 30 + "5/1s", "80 %", "5 s", "9" * 20 + "w"),
    *"x * 5 none deny unlimited calls cost errors observe enforce ENFORCE".split(),
    *"5/1m 007/01h 100/90m 0/1m 00/1m 5/0m 5/1x 1/99999d 9000000000/1s 200/session 0/session 5/sessions".split(),
    *"a::b::c *::b::* :a::b::c a:::b:::c: a::b::: a:b::c:d::e:f a::b a::b::c::d a::::c ::b::c a::b::".split(),
    *"1% 80% 100% 0% 101% 8.5% 080%".split(),
    *"5s 1h 0s 00m s 2h 1d 7x".split(),
    *"auto local full hash RS256 EdDSA HS256 https://idp.acme.com/keys ftp://idp.acme.com".split(),
]
ANYTHING: list[Any] = [
    *(True, False, -1, 0, 1, 1023, 10_000, 10_001, 1_000_000_000, 1_000_000_001, 1.5, datetime.date(2026, 1, 1), {}, {"x": 1}),
    *([], [3], ["user", "user"], ["role"], ["session"], ["5/1m", "9/1m"], ["5/1m", "9/1h"]),
    *([text] for text in TEXTS),
    *TEXTS,
]
"""Values of every kind: right ones, nearly right ones, and others."""

JUNK = st.sampled_from(ANYTHING)
LIMITS = st.sampled_from(["5/1m", "007/01h", "100/90m"])
AGENTS = st.sampled_from(["*", "a::b::c", "*::b::*"])
SPANS = st.sampled_from(["5s", "1h", "9m"])


def listed(one: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(one, min_size=1, max_size=2)


def of_kind(key: str, value: ValueType) -> st.SearchStrategy[Any]:
    """Right values for a key of a policy."""
    match value:
        case Words():
            return st.sampled_from(value.words)
        case Number():
            return st.sampled_from([1, value.most])
        case TimeSpan():
            return SPANS
        case Share():
            return st.sampled_from(["1%", "80%", "100%"])
        case Limits():
            return LIMITS | st.sampled_from([["5/1m", "9/1h"], ["5/1m"], "deny", "unlimited"])
        case Axes():
            return st.lists(st.sampled_from(PER), max_size=3)
        case Patterns():
            one = AGENTS if key == "agent" else st.sampled_from(["*", "a", "b*"])
            return one | listed(one) if value.may_be_list else one
    assert isinstance(value, Text), f"{key}: add what it may be"
    return st.text(max_size=3)


def tables(keys: Mapping[str, st.SearchStrategy[Any]], *required: str) -> st.SearchStrategy[dict[str, Any]]:
    """Tables that mostly have only right values; in half of them one value is something else, or one key is unknown."""
    optional = {key: value for key, value in keys.items() if key not in required}
    usual = st.fixed_dictionaries({key: keys[key] for key in required}, optional=optional)
    spoiled = st.tuples(usual, st.sampled_from([*keys, "unknown"]), JUNK)
    return usual | spoiled.map(lambda one: one[0] | {one[1]: one[2]})


def of(keys: TableKeys, *required: str) -> st.SearchStrategy[Any]:
    return st.lists(tables({key: of_kind(key, value) for key, value in keys.values.items()}, *required), max_size=1)


POLICIES = tables(
    {key: of_kind(key, value) for key, value in TOP.values.items()} | {"rule": of(RULE, "limit"), "cost": of(COST, "cost")}
)


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


@given(POLICIES)
def test_schema_and_parser_take_the_same_policies(data: dict[str, Any]) -> None:
    check(data, POLICY, faults(tomli_w.dumps(data)))


ONE_KEY = [
    *([{"rule": [{"limit": "5/1m", key: one}]} for key in [*RULE.values, "unknown"] for one in ANYTHING]),
    *([{"rule": [{"limit": limit, key: "5s"}]} for key in RULE.values for limit in ("deny", "unlimited")]),
    *([{"rule": [{"concurrent": 1, key: one}]} for key in RULE.values for one in ("cost", "calls", "deny", "unlimited", "5s")]),
    *([{"cost": [{"cost": 5, key: one}]} for key in [*COST.values, "limit"] for one in ANYTHING]),
    *([{key: one} for key in [*TOP.values, "rule", "cost", "store"] for one in ANYTHING]),
    *({}, {"rule": [{}]}, {"rule": [{"tool": "a"}]}, {"cost": [{}]}, {"cost": [{"tool": "a"}]}),
]


def test_schema_and_parser_take_the_same_values_of_each_key() -> None:
    for data in ONE_KEY:
        check(data, POLICY, faults(tomli_w.dumps(data)))


def of_setting(key: str, kind: config.SettingKind) -> st.SearchStrategy[Any]:
    """Right values for a setting."""
    if isinstance(kind, list):
        return listed(st.sampled_from(kind or ["a"]))
    if isinstance(kind, tuple):
        return st.sampled_from(kind)
    if isinstance(kind, range):
        return st.sampled_from([kind[0], kind[-1]])
    if kind is bool:
        return st.booleans()
    one = SPANS if kind is SPAN else st.sampled_from(ALGORITHMS if key == "algorithms" else ["a", "https://idp.acme.com/keys"])
    return one | listed(one) if key in LISTS else one


def configs() -> st.SearchStrategy[dict[str, Any]]:
    named = {name: {key: of_setting(key, kind) for key, kind in keys.items()} for name, keys in config.SETTINGS.items()}
    named["identity"]["jwt"] = tables(named["identity.jwt"], *REQUIRED)
    ways = st.lists(tables(named["notify"], "desktop") | tables(named["notify"]), max_size=2)
    return tables(named[""] | {name: tables(named[name]) for name in ("store", "identity", "audit")} | {"notify": ways})


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


def test_schema_and_parser_take_the_same_settings(same_settings: Callable[[dict[str, Any]], None]) -> None:
    given(configs())(same_settings)()


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
