"""Assembles a session from settings. It is imported after the server has started, so that it loads while the server boots."""

import os
import threading
from collections.abc import Callable
from typing import Final

from mcpguard import __version__
from mcpguard.config import Settings
from mcpguard.core.audit import summary
from mcpguard.core.digest import blake2b, cut
from mcpguard.core.identity import Identity
from mcpguard.core.journal import Journal
from mcpguard.core.policy.lint import tier_warning
from mcpguard.core.policy.model import Policy
from mcpguard.core.session.events import IdentityChanged
from mcpguard.core.session.machine import Session
from mcpguard.core.text import plural, quoted
from mcpguard.errors import PolicyError, Unauthenticated
from mcpguard.files import exposed
from mcpguard.policy_file import PolicyFile
from mcpguard.relay.console import Console
from mcpguard.relay.output import ClientOutput
from mcpguard.relay.process import ServerProcess
from mcpguard.relay.supervisor import Supervisor
from mcpguard.relay.traffic import Traffic
from mcpguard.relay.upstream import IdentitySource
from mcpguard.relay.watchdog import Watchdog
from mcpguard.stores.failover.spill import SpillFolder
from mcpguard.stores.failover.store import LAST_TRY_S, FailoverStore
from mcpguard.stores.sqlite.address import SqliteAddress

CLOSE_S: Final = LAST_TRY_S + 0.25
"""How long the store may take to close. A store that hangs is left open."""


def guarded(server: ServerProcess, supervisor: Supervisor, identity: Identity, settings: Settings, *, observe: bool) -> int:
    """Relay and guard the traffic of a running server, until one side ends.

    Args:
        server: The server's process.
        supervisor: Starts the traffic and shuts it down.
        identity: The configured identity, and the server's name.
        settings: The settings of this machine.
        observe: Decide and log, deny nothing.

    Returns:
        The exit status: the server's.
    """
    console = Console(quiet=settings.quiet)
    policy_file = PolicyFile(settings.policy, named=settings.policy_named, observe=observe)
    policy = policy_file.begin()
    store = _store(settings, console)
    journal = Journal(os.urandom(8).hex())
    session = Session(
        identity,
        policy,
        journal,
        namespace=settings.namespace,
        denials=settings.denials,
        arguments=settings.arguments,
        args_key=lambda: store.args_key,
    )
    token: IdentitySource | None = None
    user, is_known = identity.user, True
    if settings.jwt:
        token, found = _verified(identity, settings, console)
        session.handle(IdentityChanged(found))
        is_known = isinstance(found, Identity)
        user = f"unauthenticated: {found.message}" if isinstance(found, Unauthenticated) else found.user
    output = ClientOutput(1, lambda: supervisor.ended("client"))
    traffic = Traffic(
        server,
        session,
        store,
        output,
        console,
        supervisor.ended,
        policy=policy_file,
        identity=token,
        max_frame_bytes=settings.max_frame_bytes,
    )
    watchdog = Watchdog(server.pid)
    where = "the starter policy" if policy_file.is_starter else quoted(settings.policy)
    tell = console.line if is_known and isinstance(policy, Policy) else console.error
    _introduce(tell, session, policy, user=user, where=where, store=settings.address.shown)
    for line in (*settings.warnings, *exposed(settings.files)):
        console.error(line)
    status = supervisor.supervise(server, traffic, console)
    watchdog.dismiss()
    console.line(summary(journal.tally))
    closing = threading.Thread(target=store.close, name="mcpguard-close", daemon=True)
    closing.start()
    closing.join(supervisor.at_most(CLOSE_S))
    return status


def _introduce(
    tell: Callable[[str], None], session: Session, policy: Policy | PolicyError, *, user: str, where: str, store: str
) -> None:
    """Write the line that names the caller, the policy and the store; and a warning if no rule limits the agent's tier."""
    rules = plural(len(policy.rules), "rule") if isinstance(policy, Policy) else f"no policy: {policy.message}"
    names = {"server": session.identity.server, "user": user, "agent": session.agent}
    caller = " ".join(f"{key}={quoted(cut(name))}" for key, name in names.items())
    tell(f"{__version__} {caller} policy={where} ({rules}) store={quoted(store)}")
    unlimited = tier_warning(policy, session.identity.agent_parts.tier) if isinstance(policy, Policy) else None
    if unlimited:
        tell(unlimited)


def _verified(identity: Identity, settings: Settings, console: Console) -> tuple[IdentitySource, Identity | Unauthenticated]:
    """The source of the token's identity, and the identity now."""
    from mcpguard.auth.token import TokenSource  # loads PyJWT: only if it is needed

    assert settings.jwt is not None  # noqa: S101 - the caller has checked it
    source = TokenSource(settings.jwt, identity, os.environ, budget_ms=settings.timeout_ms, notify=console.error)
    return source, source.begin()


def _store(settings: Settings, console: Console) -> FailoverStore:
    settings.address.load()  # outside of the store's time budget
    return FailoverStore(
        settings.open_store,
        mode=settings.on_unavailable,
        notify=console.error,
        spills=_spills(settings),
        timeout_ms=settings.timeout_ms,
    )


def _spills(settings: Settings) -> SpillFolder:
    """The spill files of this store and namespace: beside a store that is a file, else in the state folder."""
    address = settings.address
    beside = address.path if isinstance(address, SqliteAddress) else settings.database.with_name("mcpguard")
    which = blake2b(f"{address.shown}\0{settings.namespace}".encode(), digest_size=8).hexdigest()
    return SpillFolder(beside.parent, f"{beside.name}-spill-{which}-")
