"""Starts a session: first the server, then the traffic, then the modules that judge calls, which are loaded meanwhile."""

import os
import sys
from collections.abc import Sequence

from mcpguard.config import Settings
from mcpguard.light_typing import TYPE_CHECKING, Final
from mcpguard.relay.process import cannot_start, end_by, environment, spawn
from mcpguard.relay.supervisor import SHUTDOWN_TIMEOUTS, Supervisor

if TYPE_CHECKING:
    from mcpguard.relay.guard import Guard

SWITCH_S: Final = 0.0002
"""How long a thread that computes may keep the interpreter's lock from one that has a call. Python's default is 5 ms."""


def run(argv: Sequence[str], settings: Settings, *, server: str | None) -> int:
    """Start a server, and relay and guard its traffic until one side ends.

    Messages that are not calls pass as soon as the traffic starts. Calls wait until what they are judged by is loaded.

    Args:
        argv: The server's command.
        settings: The settings of this machine.
        server: The server's name; None to derive it from the command.

    Returns:
        The exit status: the server's. If a signal ended the server, the same signal ends this process.

    Raises:
        CommandError: The server cannot be started.
        ConfigError: The configured agent or store is invalid.
        McpguardError: The system has no thread left.
    """
    if settings.agent:
        from mcpguard.identity.caller import parse_agent

        parse_agent(settings.agent, where=settings.places["agent"])  # raises before anything is started
    if settings.store:
        _ = settings.address
    try:
        supervisor = Supervisor(SHUTDOWN_TIMEOUTS, settings.timeout_ms / 1000)
    except OSError as error:
        raise cannot_start(argv[0], error) from error
    server_process = spawn(argv, environment(os.environ))
    from mcpguard.relay.console import Console  # from here on the server boots at the same time
    from mcpguard.relay.output import ClientOutput
    from mcpguard.relay.traffic import Traffic

    server_process.confirm()
    sys.setswitchinterval(SWITCH_S)
    console = Console(quiet=settings.quiet)
    output = ClientOutput(1, lambda: supervisor.ended("client"))
    traffic = Traffic(server_process, output, console, supervisor.ended, max_frame_bytes=settings.max_frame_bytes)
    guard: Guard

    def begin() -> None:
        nonlocal guard
        server_process.watch()
        from mcpguard.configured_identity import configured_identity  # while the client's first messages pass
        from mcpguard.policy.model import server_named
        from mcpguard.relay.guard import Guard

        name = server
        if not name:
            from mcpguard.identity.server_name import server_name  # only then: `mcpguard install` names each server

            name = server_name(argv)
        identity = configured_identity(settings, server_named(name), os.environ)
        guard = Guard(traffic, identity, settings, console)

    status = supervisor.supervise(server_process, traffic, console, begin)
    server_process.reap()
    guard.close(supervisor.at_most)
    if server_process.was_killed:
        end_by(status - 128)
    return status
