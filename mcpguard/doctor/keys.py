"""Checks that the keys that verify tokens can be fetched now, whatever is cached."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from mcpguard.config import Settings
from mcpguard.doctor.check import Check, failed, good
from mcpguard.files import read_at_once
from mcpguard.text.printing import plural

_HINT: Final = "check identity.jwt.jwks in config.toml, and that the provider can be reached from here"


def checks(settings: Settings) -> Iterator[Check]:
    """Fetch the keys, if users are verified."""
    if settings.jwt is None:
        return
    from mcpguard.identity import keys  # loads what verifies tokens
    from mcpguard.identity.jwt_settings import shown_url

    jwks = settings.jwt.jwks
    where = str(jwks) if isinstance(jwks, Path) else shown_url(jwks)
    try:
        yield good("keys", f"{where}: {plural(len(keys.parse_keys(_read(jwks))), 'key')}")
    except TimeoutError:
        yield failed("keys", f"{where}: no answer in {keys.FETCH_S:g} s", _HINT)
    except OSError as error:
        yield failed("keys", f"{where}: cannot be read: {error.strerror}", _HINT)
    except ValueError as error:
        yield failed("keys", f"{where}: {error}", _HINT)


def _read(jwks: str | Path) -> bytes:
    from mcpguard.identity import fetch, keys

    if isinstance(jwks, Path):
        return read_at_once(jwks, keys.MAX_BYTES)
    return fetch.get(jwks, keys.FETCH_S, keys.MAX_BYTES)
