"""Starts a session: first the server, then the modules that mcpguard needs, which are loaded while the server boots."""

import os
from collections.abc import Sequence

from mcpguard.config import Settings
from mcpguard.core.identity import parse_agent
from mcpguard.identity import configured_identity
from mcpguard.relay.command import environment
from mcpguard.relay.process import spawn
from mcpguard.relay.supervisor import Supervisor


def run(argv: Sequence[str], settings: Settings, *, server: str | None, observe: bool) -> int:
    """Start a server, and relay and guard its traffic until one side ends.

    Args:
        argv: The server's command.
        settings: The settings of this machine.
        server: The server's name; None to derive it from the command.
        observe: Decide and log, deny nothing.

    Returns:
        The exit status: the server's.

    Raises:
        CommandError: The server cannot be started.
        ConfigError: The configured agent or store is invalid.
    """
    if settings.agent:
        parse_agent(settings.agent, where=settings.places["agent"])  # raises before anything is started
    _ = settings.address
    supervisor = Supervisor()
    server_process = spawn(argv, environment(os.environ))
    from mcpguard.relay.assembly import guarded  # from here on the server boots at the same time

    server_process.confirm()
    identity = configured_identity(settings, server or _derived_name(argv))
    return guarded(server_process, supervisor, identity, settings, observe=observe)


def _derived_name(argv: Sequence[str]) -> str:
    from mcpguard.core.server_name import server_name  # only if it is needed: `mcpguard install` names each server

    return server_name(argv)
