"""Checks who would call: the user, the agent, the token that names the user, and the keys that verify it."""

import os
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from mcpguard.config import Settings, place
from mcpguard.configured_identity import SOURCES, TOKEN_UNUSED, configured_identity
from mcpguard.doctor.check import Check, advice, failed, failed_by, good
from mcpguard.errors import ConfigError
from mcpguard.identity.caller import Identity
from mcpguard.text.printing import plural
from mcpguard.text.times import span_down

if TYPE_CHECKING:
    from mcpguard.identity.jwt_settings import JwtSettings


def checks(settings: Settings, options: Mapping[str, str | None]) -> Iterator[Check]:
    """Tell the user and the agent with their sources, and until when the token is valid.

    Args:
        settings: The settings of this machine.
        options: The options of the command line, which may name user and agent.
    """
    yield from _caller(settings, options)
    if settings.jwt:
        yield _keys(settings.jwt)


def _caller(settings: Settings, options: Mapping[str, str | None]) -> Iterator[Check]:
    try:
        configured = configured_identity(settings, "")
    except ConfigError as error:
        yield failed_by("identity", error)
        return
    if settings.jwt:
        yield from _verified(settings, settings.jwt, configured, options)
        return
    yield good("identity", _told(configured, options))
    if os.environ.get("MCPGUARD_TOKEN"):
        yield advice("token", TOKEN_UNUSED, "configure [identity.jwt], or unset the variable")


def _told(who: Identity, options: Mapping[str, str | None]) -> str:
    agent, agent_source = who.agent(None)
    user_from, agent_from = (
        place(key, options.get(key), os.environ) if source == "config" else SOURCES[source]
        for key, source in (("user", who.user_source), ("agent", agent_source))
    )
    return f"user {who.user} ({user_from}), agent {agent} ({agent_from})"


def _verified(
    settings: Settings, jwt: "JwtSettings", configured: Identity, options: Mapping[str, str | None]
) -> Iterator[Check]:
    from mcpguard.identity.claims import time_of, utc
    from mcpguard.identity.token import examined  # loads PyJWT

    warnings: list[str] = []
    source, found = examined(jwt, configured, os.environ, budget_ms=settings.timeout_ms, notify=warnings.append)
    if found.identity is None:
        yield failed("identity", "nobody is verified, so every call is denied with 401", "see the next lines")
    else:
        yield good("identity", _told(found.identity, options))
    for problem in found.problems:
        yield failed_by("token", problem)
    expires_s = time_of(found.claims, "exp") if found.claims else None
    if found.identity is not None and expires_s is not None:
        yield good("token", f"{source.where}: valid until {utc(expires_s)}, for {span_down(expires_s - time.time())}")
    for warning in warnings:
        yield advice("token", warning.partition(": chmod")[0], f"run chmod 600 {source.where}")


def _keys(jwt: "JwtSettings") -> Check:
    """Whether the keys that verify tokens can be fetched now, whatever is cached."""
    from mcpguard.identity.keys import FETCH_S, keys_of

    found = keys_of(jwt)
    found.seek()
    found.wait(FETCH_S)
    if found.problem:
        hint = "check identity.jwt.jwks in config.toml, and that the provider can be reached from here"
        return failed("keys", f"{found.source}: {found.problem}", hint)
    return good("keys", f"{found.source}: {plural(len(found), 'key')}")
