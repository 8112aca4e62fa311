"""The caller according to the settings of this machine."""

from collections.abc import Mapping

from mcpguard.config import Settings
from mcpguard.errors import ConfigError
from mcpguard.identity.account import account_name
from mcpguard.identity.caller import Agent, Identity, parse_agent
from mcpguard.identity.client_agents import claude_session, claude_tier, told_session
from mcpguard.light_typing import Final

SOURCES: Final = {
    "os": "the OS account",
    "jwt": "the token",
    "default": "a client fills in its own name",
    "hook": "the client's hook",
    "clientInfo": "what the client tells of itself",
    "meta": "the call's _meta",
    "audit": "from the last call of this tool",
    "unknown": "unknown; name it with --server",
}
"""Where a user, an agent or a server comes from, for people, by the word in `user_source` and so on."""

TOKEN_UNUSED: Final = "MCPGUARD_TOKEN is set but not used, because config.toml has no [identity.jwt]"  # noqa: S105 - not a token


def configured_identity(settings: Settings, server: str, environ: Mapping[str, str] | None = None) -> Identity:
    """The caller as far as it is configured. If users are verified, the user is empty until a token names one.

    Args:
        settings: The settings.
        server: The server's name.
        environ: The environment in which the client starts the server; None if no client does.

    Raises:
        ConfigError: The configured agent does not have three parts, or it or the configured user is a pattern.
    """
    agent = parse_agent(settings.agent, where=settings.places.get("agent", "agent")) if settings.agent else Agent()
    if settings.jwt:
        user, source = "", "jwt"
    elif settings.user is None:
        user, source = account_name(), "os"
    elif "*" in settings.user:
        where = settings.places.get("user", "user")
        raise ConfigError(f"{where}: {settings.user!r} is a pattern", "name one user: only rules have patterns")
    else:
        user, source = settings.user, "config"
    return Identity(
        user,
        source,
        server,
        agent,
        "config" if any(agent) else "default",
        trust_client_info=settings.trust_client_info,
        trust_meta=settings.trust_meta,
        claude_session=claude_session(environ or {}),
        claude_tier=claude_tier(environ or {}),
        session=told_session(environ or {}),
    )


def configured_tier(settings: Settings) -> str | None:
    """The tier of the configured agent; None if there is none, or if it is not valid, which `configured_identity` reports."""
    try:
        return parse_agent(settings.agent, where="agent").tier if settings.agent else None
    except ConfigError:
        return None


def used_tiers(settings: Settings) -> list[str]:
    """The tiers that agents have here, beside the usual ones: the tier of the configured agent, if there is one."""
    tier = configured_tier(settings)
    return [tier] if tier else []
