"""Assembles a session from settings. It is imported after the server has started, so that it loads while the server boots."""

import functools
import gc
import os
import sys
import threading
from typing import Final

from mcpguard.config import Settings
from mcpguard.core.audit import summary
from mcpguard.core.digest import blake2b
from mcpguard.core.identity import Identity
from mcpguard.core.journal import Journal
from mcpguard.core.session.machine import Session
from mcpguard.errors import PolicyError
from mcpguard.relay.console import Console
from mcpguard.relay.output import ClientOutput
from mcpguard.relay.process import ServerProcess
from mcpguard.relay.supervisor import Supervisor
from mcpguard.relay.traffic import Traffic
from mcpguard.relay.watchdog import Watchdog
from mcpguard.stores.api import Store
from mcpguard.stores.failover.spill import SpillFolder
from mcpguard.stores.failover.store import LAST_TRY_S, FailoverStore
from mcpguard.stores.sqlite.address import SqliteAddress

SWITCH_S: Final = 0.0002
"""How long a thread that computes may keep the interpreter's lock from one that has a call. Python's default is 5 ms."""

CLOSE_S: Final = LAST_TRY_S + 0.25
"""How long the store may take to close. A store that hangs is left open."""


def guarded(server: ServerProcess, supervisor: Supervisor, identity: Identity, settings: Settings, *, observe: bool) -> int:
    """Relay and guard the traffic of a running server, until one side ends.

    Messages that are not calls pass as soon as the traffic starts. Calls wait until what they are judged by is loaded.

    Args:
        server: The server's process.
        supervisor: Starts the traffic and shuts it down.
        identity: The configured identity, and the server's name.
        settings: The settings of this machine.
        observe: Decide and log, deny nothing.

    Returns:
        The exit status: the server's.
    """
    sys.setswitchinterval(SWITCH_S)
    console = Console(quiet=settings.quiet)
    is_loaded = threading.Event()
    store = _store(settings, console, is_loaded)
    journal = Journal(os.urandom(8).hex())
    session = Session(
        identity,
        PolicyError("the policy is being loaded"),
        journal,
        namespace=settings.namespace,
        denials=settings.denials,
        arguments=settings.arguments,
        args_key=functools.partial(getattr, store, "args_key"),
    )
    output = ClientOutput(1, lambda: supervisor.ended("client"))
    traffic = Traffic(server, session, store, output, console, supervisor.ended, max_frame_bytes=settings.max_frame_bytes)
    watchdog = Watchdog(server.pid)

    def guard() -> None:
        from mcpguard.relay import judging  # while the client's first messages pass

        try:
            settings.address.load()  # outside of the store's time budget, because calls wait for it
        finally:
            is_loaded.set()
        judging.begin(traffic, identity, settings, console, observe=observe)
        gc.freeze()  # what is loaded stays: a collection would stop all threads for milliseconds to look through it
        gc.enable()

    status = supervisor.supervise(server, traffic, console, guard)
    watchdog.dismiss()
    console.line(summary(journal.tally))
    closing = threading.Thread(target=store.close, name="mcpguard-close", daemon=True)
    closing.start()
    closing.join(supervisor.at_most(CLOSE_S))
    return status


def _store(settings: Settings, console: Console, is_loaded: threading.Event) -> FailoverStore:
    def reopen() -> Store:
        is_loaded.wait()
        return settings.open_store()

    return FailoverStore(
        reopen,
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
