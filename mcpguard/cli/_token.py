"""Where it comes from who is calling, and what can be said of the token, for commands that tell of it."""

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mcpguard.config import Settings
from mcpguard.core.identity import Identity
from mcpguard.errors import ConfigError

if TYPE_CHECKING:  # loads PyJWT, which most commands do without
    from mcpguard.auth.token import Examination, TokenSource


def place(key: str, options: Mapping[str, str | None]) -> str:
    """Where a `user` or an `agent` that is configured stands: an option, a variable, or `config.toml`."""
    variable = f"MCPGUARD_{key.upper()}"
    return f"--{key}" if options[key] else variable if os.environ.get(variable) else "config.toml"


def examined(
    settings: Settings, configured: Identity, *, notify: Callable[[str], None], file: Path | None = None
) -> "tuple[TokenSource, Examination]":
    """Look at the token, and wait for the keys that it needs.

    Args:
        settings: Of this machine.
        configured: Who is calling apart from the user.
        notify: Gets warnings.
        file: The token's file, instead of the configured one and of the environment's token.

    Raises:
        ConfigError: No token is to name the user here.
    """
    from mcpguard.auth.keys import FETCH_S
    from mcpguard.auth.token import VARIABLE, TokenSource

    if settings.jwt is None:
        raise ConfigError("no token names the user here", "there is no [identity.jwt] in config.toml")
    jwt, environ = settings.jwt, dict(os.environ)
    if file is not None:
        jwt = replace(jwt, token_file=file)
        environ.pop(VARIABLE, None)
    source = TokenSource(jwt, configured, environ, budget_ms=settings.timeout_ms, notify=notify)
    found = source.examine()
    for _ in range(2):  # the first load, and one for a key that it does not have
        if source.keys.is_fetching:
            source.keys.wait(FETCH_S)
            found = source.examine()
    return source, found
