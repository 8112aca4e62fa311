"""Puts a guard together from settings. Imported when the server has been started: what it needs is loaded while that boots."""

import os

from mcpguard import __version__
from mcpguard.config import Settings
from mcpguard.core.audit import Journal, summary
from mcpguard.core.guard import Guard
from mcpguard.core.identity import Identity
from mcpguard.core.policy import Policy
from mcpguard.policy_file import PolicyFile
from mcpguard.relay.child import Child
from mcpguard.relay.console import Console
from mcpguard.relay.output import ClientOutput
from mcpguard.relay.pumps import Pumps
from mcpguard.relay.session import Life
from mcpguard.stores.failover import FailoverStore


def guarded(child: Child, life: Life, identity: Identity, settings: Settings, *, observe: bool) -> int:
    """Relay and guard a server that has been started, until one side ends.

    Args:
        child: The server.
        life: Watches over it.
        identity: Who is calling, and the server's name.
        settings: Of this machine.
        observe: Decide and log, deny nothing.

    Returns:
        The exit status: the server's.
    """
    console = Console()
    policy_file = PolicyFile(settings.policy, named=settings.policy_named, observe=observe)
    policy = policy_file.begin()
    store = _store(settings, console)
    journal = Journal(os.urandom(8).hex())
    guard = Guard(
        identity,
        policy,
        session=journal.session,
        namespace=settings.namespace,
        denials=settings.denials,
        arguments=settings.arguments,
        args_key=lambda: store.args_key,
    )
    output = ClientOutput(1, lambda: life.ended("client"))
    pumps = Pumps(
        child, guard, store, journal, policy_file, output, console, life.ended, max_frame_bytes=settings.max_frame_bytes
    )
    rules = f"{len(policy.rules)} rules" if isinstance(policy, Policy) else f"no policy: {policy.message}"
    where = "the starter policy" if policy_file.is_starter else str(settings.policy)
    who = f"server={identity.server} user={identity.user} agent={guard.agent}"
    console.line(f"{__version__} {who} policy={where} ({rules}) store={settings.address.shown}")
    pumps.start()
    status = life.supervise(child, pumps, console)
    console.line(summary(journal.tally))
    store.close()
    return status


def _store(settings: Settings, console: Console) -> FailoverStore:
    settings.address.load()  # not at the expense of the store's budget
    return FailoverStore(settings.open_store, mode=settings.on_unavailable, notify=console.line, timeout_ms=settings.timeout_ms)
