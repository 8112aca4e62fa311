"""The tiers of agents that are used on this machine."""

from mcpguard.config import Settings
from mcpguard.identity import configured_tier


def tiers(settings: Settings) -> list[str]:
    """The tiers that are used here although they are not usual ones."""
    tier = configured_tier(settings)
    return [tier] if tier else []
