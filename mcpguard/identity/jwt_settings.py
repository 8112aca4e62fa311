"""The settings of `[identity.jwt]`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from mcpguard.errors import ConfigError
from mcpguard.files import named_path
from mcpguard.identity.claims import Expected
from mcpguard.light_typing import Final
from mcpguard.text.redaction import holds_token
from mcpguard.urls import url_problem

ALGORITHMS: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""The algorithms that the settings can allow. Never `none`, and never HMAC, whose verification key can also sign."""

REQUIRED: Final = {
    "issuer": 'write issuer = "https://idp.acme.com/", exactly as in the claim iss of the tokens',
    "audience": 'write audience = "crm-mcp", one of the values in the claim aud of the tokens',
    "jwks": 'write jwks = "https://idp.acme.com/.well-known/jwks.json", or a file',
}
"""The keys that the settings must have, each with a hint."""

LISTS: Final = ("audience", "algorithms")
"""The keys whose value can be a list."""


@dataclass(frozen=True, slots=True)
class JwtSettings:
    """How users are verified.

    Attributes:
        expected: The claims that a token must have, and those that are read.
        jwks: The URL or the file of the issuer's keys.
        algorithms: The signature algorithms that are accepted.
        token_file: The file that holds the token; None if only `MCPGUARD_TOKEN` can hold it.
        state: The folder in which fetched keys are cached.
    """

    expected: Expected
    jwks: str | Path = field(repr=False)  # a URL can hold a secret
    algorithms: tuple[str, ...]
    token_file: Path | None
    state: Path


def read(table: Mapping[str, object], *, file: Path, state: Path) -> JwtSettings:
    """Read the settings from a table without unknown keys.

    Args:
        table: `[identity.jwt]`.
        file: The file of the table; paths are relative to its folder.
        state: The folder in which fetched keys are cached.

    Raises:
        ConfigError: A key is missing, or a value is not allowed.
    """
    where = f"{file}: identity.jwt"
    for key, hint in REQUIRED.items():
        if key not in table:
            raise ConfigError(f"{where}: no {key}", hint)
    texts = {key: _texts(table[key], where=f"{where}.{key}", many=key in LISTS) for key in table}
    algorithms = texts.get("algorithms", ("RS256",))
    for name in algorithms:
        if name not in ALGORITHMS:
            raise ConfigError(f"{where}.algorithms: {name!r} is not allowed", f"use one of: {' '.join(ALGORITHMS)}")
    claims = {key: texts[key][0] for key in ("user_claim", "roles_claim", "agent_claim") if key in texts}
    jwks = texts["jwks"][0]
    if jwks.startswith("file:///"):
        jwks = re.sub(r"^/(?=[A-Za-z]:/)", "", unquote(jwks.removeprefix("file://")))  # the slash before a drive of Windows
    is_url = re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", jwks)  # a single letter is a drive on Windows
    if is_url and (problem := url_problem(jwks)):
        raise ConfigError(f"{where}.jwks: {problem}", REQUIRED["jwks"])
    return JwtSettings(
        Expected(texts["issuer"][0], texts["audience"], **claims),
        jwks if is_url else _path(jwks, file, where=f"{where}.jwks"),
        algorithms,
        _path(texts["token_file"][0], file, where=f"{where}.token_file") if "token_file" in texts else None,
        state,
    )


def _texts(value: object, *, where: str, many: bool) -> tuple[str, ...]:
    if holds_token(str(value)):
        hint = "write the token into a file that only you can read, and give that file as token_file"
        raise ConfigError(f"{where} holds a token, which does not belong here", hint)
    values = value if many and isinstance(value, list) else [value]
    if not values or not all(isinstance(text, str) and text.strip() for text in values):
        raise ConfigError(f"{where}: this is empty or not text", f'write {where.rpartition(".")[2]} = "…"')
    return tuple(values)


def _path(text: str, file: Path, *, where: str) -> Path:
    return named_path(text if text.startswith("~") else str(file.parent / text), where=where)
