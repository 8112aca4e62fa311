"""The tiers of agents that are used on this machine."""

from mcpguard.config import Settings
from mcpguard.core.identity import parse_agent
from mcpguard.errors import ConfigError


def configured_tier(settings: Settings) -> str | None:
    """The tier of the configured agent; None if there is none, or if it is not valid, which `run` reports."""
    try:
        return parse_agent(settings.agent, where="agent").tier if settings.agent else None
    except ConfigError:
        return None


def tiers(settings: Settings) -> list[str]:
    """The tiers that are used here although they are not usual ones."""
    tier = configured_tier(settings)
    return [tier] if tier else []
