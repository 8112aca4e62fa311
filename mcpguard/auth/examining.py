"""What can be said of a token, for commands that tell of it."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from mcpguard.auth.keys import FETCH_S
from mcpguard.auth.settings import JwtSettings
from mcpguard.auth.token import VARIABLE, Examination, TokenSource
from mcpguard.core.identity import Identity


def examined(
    settings: JwtSettings,
    configured: Identity,
    environ: Mapping[str, str],
    *,
    budget_ms: int,
    notify: Callable[[str], None],
    file: Path | None = None,
) -> tuple[TokenSource, Examination]:
    """Look at the token, and wait for the keys that it needs.

    Args:
        settings: How users are verified.
        configured: Who is calling apart from the user.
        environ: May have a token.
        budget_ms: See `TokenSource`.
        notify: Gets warnings.
        file: The token's file, instead of the configured one and of the environment's token.
    """
    if file is not None:
        settings = replace(settings, token_file=file)
        environ = {name: value for name, value in environ.items() if name != VARIABLE}
    source = TokenSource(settings, configured, environ, budget_ms=budget_ms, notify=notify)
    found = source.examine()
    for _ in range(2):  # the first load, and one for a key that it does not have
        if source.keys.is_fetching:
            source.keys.wait(FETCH_S)
            found = source.examine()
    return source, found
