"""The JSON Schema of a policy, by which editors complete and check `policy.toml`. It is made from the tables of `parse`.

A schema cannot compare rules or limits, nor bound a number in a text. Only `parse` refuses two rules with the same selectors,
two limits for one window, and a limit or a time that is too large.
"""

import json
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from mcpguard.policy.model import PER
from mcpguard.policy.parse import COST, NOT_WITH_DENY, RULE, TOP, TableKeys
from mcpguard.policy.values import LIMIT_WORDS, RATE, SHARE, Axes, Limits, Number, Patterns, Share, Text, TimeSpan, Words
from mcpguard.text.times import SPAN

Schema = dict[str, Any]

DRAFT: Final = "http://json-schema.org/draft-07/schema#"
"""The newest draft that taplo supports, by which most editors check TOML.

Source: taplo uses the crate `jsonschema` without its features for later drafts.
"""

TITLE: Final = "mcpguard's policy.toml"
"""Tells the schemas that mcpguard has written from other files."""

NOT_ZERO: Final = {"not": {"type": "string", "pattern": "^0+[/a-z]|/0+[a-z]"}}
"""For a limit or a span of time: no number in it is 0."""

_PART: Final = ":?[^:]+(:[^:]+)*"
_MORE: Final = {"agent": {"pattern": rf"^(\*|{_PART}::{_PART}::({_PART}:?|:))$"}}
"""What else holds for the value of a key. An agent has three parts, none of them empty, separated where `::` first occurs."""


def table(texts: Mapping[str, str], schemas: Mapping[str, Schema]) -> Schema:
    """A table that may have these keys, and no others."""
    described = {key: {"description": texts[key], **schema} for key, schema in schemas.items()}
    return {"type": "object", "additionalProperties": False, "properties": described}


def matching(pattern: re.Pattern[str]) -> Schema:
    """A text that matches a pattern as a whole."""
    return {"type": "string", "pattern": f"^{pattern.pattern}$"}


_RATE: Final = matching(RATE) | {"maxLength": 32} | NOT_ZERO


def one_or_several(schema: Schema) -> Schema:
    """A text, or a list of at least one such text. taplo shows no description of a key whose value has `anyOf`."""
    return {**schema, "type": ["string", "array"], "items": schema, "minItems": 1}


def _number(number: Number) -> Schema:
    whole = {"type": "integer", "minimum": 1, "maximum": number.most}
    return {**whole, "type": ["integer", "string"], "pattern": "^unlimited$"} if number.unlimited else whole


def _patterns(patterns: Patterns) -> Schema:
    one = {"type": "string", "minLength": 1}
    return one_or_several(one) if patterns.may_be_list else one


_VALUES: Final[dict[type, Callable[[Any], Schema]]] = {
    Words: lambda words: {"enum": [*words.words]},
    Number: _number,
    TimeSpan: lambda _: matching(SPAN),
    Share: lambda _: matching(SHARE),
    Text: lambda _: {"type": "string"},
    Patterns: _patterns,
    Axes: lambda _: {"type": "array", "items": {"enum": [*PER]}},
    Limits: lambda _: one_or_several(_RATE) | {"pattern": f"^({'|'.join(LIMIT_WORDS)}|{RATE.pattern})$"},
}
"""The schema of each kind of value."""


def policy_schema() -> Schema:
    """The schema of `policy.toml`."""
    texts = tomllib.loads(Path(__file__).with_name("keys.toml").read_text("utf-8"))

    def keys(name: str, of: TableKeys, **tables: Schema) -> Schema:
        values = {key: _VALUES[type(value)](value) | _MORE.get(key, {}) for key, value in of.values.items()}
        return table(texts[name], values | {key: {"type": "array", "items": one} for key, one in tables.items()})

    has_limit, has_no = {"required": ["limit"]}, {"properties": dict.fromkeys(NOT_WITH_DENY, False)}
    denies = {"if": {"properties": {"limit": {"const": "deny"}}}, "then": has_no}
    counts = {"if": {"properties": {"count": {"const": "calls"}}}, "else": has_limit}
    warns = {"required": ["limit"], "properties": {"limit": {"not": {"const": "unlimited"}}}}
    caps = {"if": {"required": ["concurrent"]}, "else": has_limit}
    # With `allOf`, taplo completes no keys
    conditions = {**caps, "dependencies": {"limit": denies, "count": counts, "warn": warns}}
    rule, cost = keys("rule", RULE) | conditions, keys("cost", COST) | {"required": ["cost"]}
    return {"$schema": DRAFT, "title": TITLE, **keys("top", TOP, rule=rule, cost=cost), "minProperties": 1}


def schema_text(schema: Schema) -> str:
    """A schema as the text of a file."""
    return json.dumps(schema, indent=2) + "\n"
