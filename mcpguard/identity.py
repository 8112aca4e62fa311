"""Who is calling, by the settings of this machine."""

from mcpguard.config import Settings, account
from mcpguard.core.agent import Agent
from mcpguard.core.identity import Identity, parse_agent


def configured_identity(settings: Settings, server: str) -> Identity:
    """Who is calling as far as that is configured. Where a token has to name the user, nobody is until one does.

    Raises:
        ConfigError: The configured agent cannot be.
    """
    agent = parse_agent(settings.agent, where="agent") if settings.agent else Agent()
    if settings.jwt:
        user, source = "", "jwt"
    elif settings.user is None:
        user, source = account(), "os"
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
    )
