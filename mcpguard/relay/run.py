"""Puts one session together: the server first, then all that the guard needs, while the server boots."""

import os
from collections.abc import Sequence

from mcpguard import __version__
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
    path = settings.sqlite_path
    life = Life()
    child = spawn(argv, environment(os.environ))
    # From here on the server boots beside us
    from mcpguard.core.audit import Journal, summary
    from mcpguard.core.guard import Guard
    from mcpguard.core.policy import Policy
    from mcpguard.policy_file import PolicyFile
    from mcpguard.relay.console import Console
    from mcpguard.relay.output import ClientOutput
    from mcpguard.relay.pumps import Pumps
    from mcpguard.stores.failover import FailoverStore
    from mcpguard.stores.sqlite import SqliteStore

    child.confirm()
    console = Console()
    identity = Identity(
        user=account() if settings.user is None else settings.user,
        user_source="os" if settings.user is None else "config",
        server=server or server_name(argv),
        trust_client_info=settings.trust_client_info,
        trust_meta=settings.trust_meta,
        **parts,  # type: ignore[arg-type]
    )
    policy_file = PolicyFile(settings.policy, named=settings.policy_named, observe=observe)
    policy = policy_file.begin()
    store = FailoverStore(
        lambda: SqliteStore(
            path,
            timeout_ms=settings.timeout_ms,
            durability=settings.durability,
            keep_us=settings.keep_us,
            max_bytes=settings.max_mb * 1024 * 1024,
        ),
        mode=settings.on_unavailable,
        notify=console.line,
    )
    session = os.urandom(8).hex()
    journal = Journal(session)
    guard = Guard(
        identity,
        policy,
        session=session,
        namespace=settings.namespace,
        denials=settings.denials,
        arguments=settings.arguments,
        args_key=store.args_key,
    )
    output = ClientOutput(1, lambda: life.ended("client"))
    pumps = Pumps(
        child, guard, store, journal, policy_file, output, console, life.ended, max_frame_bytes=settings.max_frame_bytes
    )
    rules = f"{len(policy.rules)} rules" if isinstance(policy, Policy) else f"no policy: {policy.message}"
    where = "the starter policy" if policy_file.is_starter else str(settings.policy)
    console.line(
        f"{__version__} server={identity.server} user={identity.user} agent={guard.agent} policy={where} ({rules}) store={path}"
    )
    pumps.start()
    status = life.supervise(child, pumps, console)
    console.line(summary(journal.tally))
    store.close()
    return status
