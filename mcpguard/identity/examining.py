"""Examines a token for commands that show it."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from mcpguard.identity.caller import Identity
from mcpguard.identity.jwt_settings import JwtSettings
from mcpguard.identity.keys import FETCH_S
from mcpguard.identity.token import VARIABLE, Examination, TokenSource


def examined(
    settings: JwtSettings,
    configured: Identity,
    environ: Mapping[str, str],
    *,
    budget_ms: int,
    notify: Callable[[str], None],
    file: Path | None = None,
) -> tuple[TokenSource, Examination]:
    """Verify the token. If its keys are not known, wait for them.

    Args:
        settings: How users are verified.
        configured: The caller's server and agent, as far as they are configured.
        environ: The environment, which can hold the token.
        budget_ms: See `TokenSource`.
        notify: Receives warnings.
        file: The file of the token to verify; None for the token that a wrapper would use.
    """
    if file is not None:
        settings = replace(settings, token_file=file)
        environ = {name: value for name, value in environ.items() if name != VARIABLE}
    source = TokenSource(settings, configured, environ, budget_ms=budget_ms, notify=notify)
    found = source.examine()
    for _ in range(2):  # the first fetch, and a second one if the token's key is not among the keys
        if source.keys.is_fetching:
            source.keys.wait(FETCH_S)
            found = source.examine()
    return source, found
