"""Starts a session: the server first, then all that the guard needs, while the server boots."""

import os
from collections.abc import Sequence

from mcpguard.config import Settings
from mcpguard.core.identity import parse_agent
from mcpguard.identity import configured_identity
from mcpguard.relay.child import spawn
from mcpguard.relay.command import environment
from mcpguard.relay.session import Life


def run(argv: Sequence[str], settings: Settings, *, server: str | None, observe: bool) -> int:
    """Start a server, relay and guard it until one side ends.

    Args:
        argv: The server's command.
        settings: Of this machine.
        server: The server's name; None to derive it from the command.
        observe: Decide and log, deny nothing.

    Returns:
        The exit status: the server's.

    Raises:
        CommandError: The server cannot be started.
        ConfigError: The configured agent or store cannot be.
    """
    if settings.agent:
        parse_agent(settings.agent, where="agent")  # one that cannot be is said before anything starts
    _ = settings.address
    life = Life()
    child = spawn(argv, environment(os.environ))
    from mcpguard.core.server_name import server_name  # from here on the server boots beside us
    from mcpguard.relay.assembly import guarded

    child.confirm()
    identity = configured_identity(settings, server or server_name(argv))
    return guarded(child, life, identity, settings, observe=observe)
