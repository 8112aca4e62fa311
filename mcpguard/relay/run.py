"""Starts a session: the server first, then all that the guard needs, while the server boots."""

import os
from collections.abc import Sequence

from mcpguard.config import Settings, account
from mcpguard.core.identity import Identity, parse_agent, server_name
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
    parts = parse_agent(settings.agent, where="agent") if settings.agent else {}
    _ = settings.address  # one that cannot be is said before anything starts
    life = Life()
    child = spawn(argv, environment(os.environ))
    from mcpguard.relay.assembly import guarded  # from here on the server boots beside us

    child.confirm()
    identity = Identity(
        user=account() if settings.user is None else settings.user,
        user_source="os" if settings.user is None else "config",
        server=server or server_name(argv),
        trust_client_info=settings.trust_client_info,
        trust_meta=settings.trust_meta,
        **parts,  # type: ignore[arg-type]
    )
    return guarded(child, life, identity, settings, observe=observe)
