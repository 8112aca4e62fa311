"""Assembles what judges calls. It is imported after the traffic has started: the client's first messages do not wait for it."""

import functools
import gc
import os
from collections.abc import Callable
from typing import Final

from mcpguard.config import Settings
from mcpguard.errors import PolicyError
from mcpguard.identity.caller import Identity
from mcpguard.relay import judging, threads
from mcpguard.relay.console import Console
from mcpguard.relay.traffic import Traffic
from mcpguard.session.audit import summary
from mcpguard.session.journal import Journal
from mcpguard.session.machine import Session
from mcpguard.stores.outage.log import OutageFolder
from mcpguard.stores.outage.store import LAST_TRY_S, OutageStore
from mcpguard.stores.sqlite.address import SqliteAddress
from mcpguard.text.digest import blake2b

CLOSE_S: Final = LAST_TRY_S + 0.5
"""How long the store may take to close. A store that hangs is left open."""


class Guard:
    """Loads what calls are judged by, and lets the traffic judge them.

    Args:
        traffic: The traffic, which has started.
        identity: The configured identity, and the server's name.
        settings: The settings of this machine.
        console: Takes lines for stderr.
    """

    def __init__(self, traffic: Traffic, identity: Identity, settings: Settings, console: Console) -> None:
        self._console = console
        settings.address.load()  # outside of the store's time budget, because calls wait for it
        self._store = _store(settings, console)  # it is opened while the policy is read
        self._journal = Journal(os.urandom(8).hex())
        session = Session(
            identity,
            PolicyError("the policy is being loaded"),
            self._journal,
            namespace=settings.namespace,
            denials=settings.denials,
            arguments=settings.arguments,
            args_key=functools.partial(getattr, self._store, "args_key"),
        )
        judging.begin(traffic, session, self._store, settings, console)
        # What a later call or a later fault in the policy needs: an upgrade of mcpguard may replace its files meanwhile
        import mcpguard.documents.toml
        import mcpguard.wire.form  # noqa: F401

        gc.freeze()  # what is loaded stays: a collection would stop all threads for milliseconds to look through it
        gc.enable()

    def close(self, at_most: Callable[[float], float]) -> None:
        """Tell the user what the session's calls were, and close the store. The traffic has ended.

        Args:
            at_most: How long a part of the shutdown may take; see `Supervisor`.
        """
        self._console.line(summary(self._journal.tally))
        threads.start_last(self._store.close, "close", at_most(CLOSE_S))


def _store(settings: Settings, console: Console) -> OutageStore:
    return OutageStore(
        settings.open_store,
        mode=settings.on_unavailable,
        notify=console.error,
        folder=_outages(settings),
        timeout_ms=settings.timeout_ms,
    )


def _outages(settings: Settings) -> OutageFolder:
    """The outage logs of this store and namespace: beside a store that is a file, else in the state folder.

    Links are resolved, so that wrappers that name one file by different links read each other's logs.
    """
    address = settings.address
    file = os.path.realpath(address.path) if isinstance(address, SqliteAddress) else None
    names = f"{file or address.shown}\0{settings.namespace}".encode(errors="surrogatepass")  # a path need not be UTF-8
    which = blake2b(names, digest_size=8).hexdigest()
    folder, name = os.path.split(file) if file else (os.path.dirname(settings.database_path), "mcpguard")
    return OutageFolder(folder, f"{name}-outage-{which}-")
