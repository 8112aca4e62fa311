"""Puts a guard together from settings. Imported when the server has been started: what it needs is loaded while that boots."""

import os
import threading
from collections.abc import Callable
from typing import Final

from mcpguard import __version__
from mcpguard.config import Settings
from mcpguard.core.audit import summary
from mcpguard.core.digest import blake2b, cut
from mcpguard.core.guard import Guard
from mcpguard.core.identity import Identity
from mcpguard.core.journal import Journal
from mcpguard.core.policy import Policy
from mcpguard.core.policy_explain import tier_warning
from mcpguard.core.text import plural, quoted
from mcpguard.errors import PolicyError, Unauthenticated
from mcpguard.files import exposed
from mcpguard.policy_file import PolicyFile
from mcpguard.relay.child import Child
from mcpguard.relay.console import Console
from mcpguard.relay.output import ClientOutput
from mcpguard.relay.pumps import IdentitySource, Pumps
from mcpguard.relay.session import Life
from mcpguard.relay.watchdog import Watchdog
from mcpguard.stores.failover.spill import SpillFolder
from mcpguard.stores.failover.store import LAST_TRY_S, FailoverStore
from mcpguard.stores.sqlite.address import SqliteAddress

CLOSE_S: Final = LAST_TRY_S + 0.25
"""How long the store may take to close. One that is stuck, and a call with it, ends with us."""


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
    console = Console(quiet=settings.quiet)
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
    who: IdentitySource | None = None
    user, is_known = identity.user, True
    if settings.jwt:
        who, found = _verified(identity, settings, console)
        guard.identify(found)
        is_known = isinstance(found, Identity)
        user = f"unauthenticated: {found.message}" if isinstance(found, Unauthenticated) else found.user
    output = ClientOutput(1, lambda: life.ended("client"))
    pumps = Pumps(
        child,
        guard,
        store,
        journal,
        policy_file,
        output,
        console,
        life.ended,
        who=who,
        max_frame_bytes=settings.max_frame_bytes,
    )
    watchdog = Watchdog(child.pid)
    where = "the starter policy" if policy_file.is_starter else quoted(settings.policy)
    tell = console.line if is_known and isinstance(policy, Policy) else console.error
    _introduce(tell, guard, policy, user=user, where=where, store=settings.address.shown)
    for line in (*settings.warnings, *exposed(settings.files)):
        console.error(line)
    status = life.supervise(child, pumps, console)
    watchdog.dismiss()
    console.line(summary(journal.tally))
    closing = threading.Thread(target=store.close, name="mcpguard-close", daemon=True)
    closing.start()
    closing.join(life.at_most(CLOSE_S))
    return status


def _introduce(
    tell: Callable[[str], None], guard: Guard, policy: Policy | PolicyError, *, user: str, where: str, store: str
) -> None:
    """Say who calls, by which policy, and where it is counted; and if no rule is for such an agent."""
    rules = plural(len(policy.rules), "rule") if isinstance(policy, Policy) else f"no policy: {policy.message}"
    names = {"server": guard.identity.server, "user": user, "agent": guard.agent}
    caller = " ".join(f"{key}={quoted(cut(name))}" for key, name in names.items())
    tell(f"{__version__} {caller} policy={where} ({rules}) store={quoted(store)}")
    unlimited = tier_warning(policy, guard.identity.agent_parts.tier) if isinstance(policy, Policy) else None
    if unlimited:
        tell(unlimited)


def _verified(identity: Identity, settings: Settings, console: Console) -> tuple[IdentitySource, Identity | Unauthenticated]:
    """Where the token tells who is calling, and who that is now."""
    from mcpguard.auth.token import TokenSource  # loads PyJWT: only where it is needed

    assert settings.jwt is not None  # noqa: S101 - what the caller has looked at
    source = TokenSource(settings.jwt, identity, os.environ, budget_ms=settings.timeout_ms, notify=console.error)
    return source, source.begin()


def _store(settings: Settings, console: Console) -> FailoverStore:
    settings.address.load()  # not at the expense of the store's budget
    return FailoverStore(
        settings.open_store,
        mode=settings.on_unavailable,
        notify=console.error,
        spills=_spills(settings),
        timeout_ms=settings.timeout_ms,
    )


def _spills(settings: Settings) -> SpillFolder:
    """Where wrappers of the same store and namespace leave what it does not take: beside a file, else in the state folder."""
    address = settings.address
    beside = address.path if isinstance(address, SqliteAddress) else settings.database.with_name("mcpguard")
    which = blake2b(f"{address.shown}\0{settings.namespace}".encode(), digest_size=8).hexdigest()
    return SpillFolder(beside.parent, f"{beside.name}-spill-{which}-")
