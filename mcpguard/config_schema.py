"""The JSON Schema of `config.toml`, by which editors complete and check it. It is made from the tables that `config` uses.

A schema cannot tell a token from a name, nor which URLs and paths are valid.
"""

import tomllib
from pathlib import Path

from mcpguard.config import LISTED, SETTINGS, SettingKind, Settings
from mcpguard.identity.jwt_settings import ALGORITHMS, LISTS, REQUIRED
from mcpguard.policy.schema import DRAFT, NOT_ZERO, Schema, matching, one_or_several, table
from mcpguard.text.times import SPAN, span


def _setting(kind: SettingKind) -> Schema:
    if isinstance(kind, list):
        return {"type": "array", "items": _setting(tuple(kind) or str), "minItems": 1}
    if isinstance(kind, tuple):
        return {"enum": [*kind]}
    if isinstance(kind, range):
        return {"type": "integer", "minimum": kind[0], "maximum": kind[-1]}
    if kind is SPAN:
        return matching(SPAN) | NOT_ZERO | {"default": span(Settings._field_defaults["keep_us"])}
    return {"type": "boolean"} if kind is bool else {"type": "string", "minLength": 1}


def _jwt(key: str) -> Schema:
    schema = {"type": "string", "pattern": f"^({'|'.join(ALGORITHMS)})$" if key == "algorithms" else r"\S"}
    return one_or_several(schema) if key in LISTS else schema


def config_schema() -> Schema:
    """The schema of `config.toml`."""
    texts = tomllib.loads(Path(__file__).with_name("config_keys.toml").read_text("utf-8"))
    defaults = {key: {"default": value} for key, value in Settings._field_defaults.items() if value is not None}
    tables: dict[str, Schema] = {}
    for name, keys in SETTINGS.items():
        schemas = {key: _jwt(key) if kind is object else _setting(kind) | defaults.get(key, {}) for key, kind in keys.items()}
        tables[name] = table(texts[name or "top"], schemas)
        parent, _, key = name.rpartition(".")
        if name:
            whole = {"type": "array", "items": tables[name]} if name in LISTED else tables[name]
            whole["description"] = texts[parent or "top"][key]
            tables[parent]["properties"][key] = whole
    tables["identity.jwt"]["required"] = [*REQUIRED]
    desktop = {"required": ["desktop"], "properties": {"desktop": {"const": True}}}
    tables["notify"]["oneOf"] = [{"required": ["command"]}, {"required": ["webhook"]}, desktop]
    tables["identity"]["dependencies"] = {"jwt": {"properties": {"user": False}}}
    return {"$schema": DRAFT, "title": "mcpguard's config.toml", **tables[""]}
