"""The guard: session, store, policy and identity. Imported after the traffic has started: first messages do not wait for it."""

import contextlib
import functools
import gc
import os
from collections.abc import Callable

from mcpguard import __version__
from mcpguard.config import Settings
from mcpguard.errors import PolicyError, Unauthenticated
from mcpguard.files import exposed
from mcpguard.identity.caller import Identity
from mcpguard.light_typing import TYPE_CHECKING, Final
from mcpguard.policy.file import PolicyFile
from mcpguard.policy.model import Policy
from mcpguard.relay import threads
from mcpguard.relay.console import Console
from mcpguard.relay.traffic import Traffic
from mcpguard.session.audit import summary
from mcpguard.session.journal import Journal
from mcpguard.session.machine import Session
from mcpguard.stores.outage.log import OutageFolder
from mcpguard.stores.outage.store import LAST_TRY_S, OutageStore
from mcpguard.text.digest import cut
from mcpguard.text.printing import plural, quoted
from mcpguard.wire.frames import MessageReader

if TYPE_CHECKING:
    from mcpguard.alerts.notifier import Notifier
    from mcpguard.identity.token import TokenSource

MESSAGES_S: Final = 1.0
"""How long a wrapper waits at the end for messages that are due."""

CLOSE_S: Final = LAST_TRY_S + 0.5
"""How long the store may take to close. A store that hangs is left open."""

_CALL: Final = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"none","arguments":{}}}'


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
        self._notifier = _notifier(settings, console)
        self._store = store = _store(settings, console, self._notifier)
        policy_file = PolicyFile(settings.policy_path, named=settings.policy_named, observe=settings.observe)
        policy = policy_file.begin()
        token = _token(settings, identity, console)
        found = token.begin() if token else identity
        self._session = session = Session(
            identity,
            policy,
            Journal(os.urandom(8).hex()),
            namespace=settings.namespace,
            denials=settings.denials,
            arguments=settings.arguments,
            args_key=functools.partial(getattr, store, "args_key"),
        )
        session.change_identity(found)
        session.start()
        traffic.guard(session, store, policy_file, token, self._notifier)
        for line, is_error in _introduction(identity, found, policy, settings):
            (console.error if is_error else console.line)(line)
        with contextlib.suppress(Exception):  # a bug is reported when a real call meets it
            rehearse(found if isinstance(found, Identity) else identity, policy)
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
        self._console.line(summary(self._session.tally))
        threads.start_last(self._store.close, "close", at_most(CLOSE_S))
        if self._notifier:
            self._notifier.close(at_most(MESSAGES_S))


def rehearse(identity: Identity, policy: Policy | PolicyError) -> None:
    """Judge a call that nobody has made, in a session of its own, so that the first real call finds everything in place.

    What a process does for the first time, such as to compile a pattern, takes several times as long as later.

    Args:
        identity: Who calls.
        policy: The policy.
    """
    Session(identity, policy, Journal("")).judge(MessageReader().read([_CALL]), 0)


def _notifier(settings: Settings, console: Console) -> "Notifier | None":
    if not settings.notify:
        return None
    from mcpguard.alerts.notifier import Notifier  # only if it is needed

    return Notifier(settings.notify, settings.database_path, console.error)


def _store(settings: Settings, console: Console, notifier: "Notifier | None") -> OutageStore:
    """The store, which is opened while the policy is read."""
    shown = settings.address.shown
    settings.address.load()  # outside of the store's time budget, because calls wait for it
    return OutageStore(
        settings.open_store,
        mode=settings.on_unavailable,
        notify=console.error,
        outage=lambda told: notifier.note({**told, "store": shown}) if notifier else None,
        folder=OutageFolder.of(settings.address, settings.namespace, settings.database_path),
        timeout_ms=settings.timeout_ms,
    )


def _token(settings: Settings, configured: Identity, console: Console) -> "TokenSource | None":
    """The source of the identity; None if it does not change."""
    if not settings.jwt:
        return None
    from mcpguard.identity.token import TokenSource  # loads PyJWT: only if it is needed

    return TokenSource(settings.jwt, configured, os.environ, budget_ms=settings.timeout_ms, notify=console.error)


def _introduction(
    configured: Identity, found: Identity | Unauthenticated, policy: Policy | PolicyError, settings: Settings
) -> list[tuple[str, bool]]:
    """The line that names the mode, the caller, the policy and the store, and warnings. Each with whether it is an error.

    The mode stands first: in observe mode nothing is denied, whatever else the line says.
    """
    identity = found if isinstance(found, Identity) else configured
    user = found.user if isinstance(found, Identity) else f"unauthenticated: {found.message}"
    unlimited = None
    if isinstance(policy, Policy):
        observed = 0 if policy.observe else sum(rule.observe for rule in policy.rules)
        rules = plural(len(policy.rules), "rule") + (f", {observed} in observe mode" if observed else "")
        mode, unlimited = policy.mode_text, policy.tier_warning(identity.agent_parts.tier)
    else:
        rules, mode = f"no policy: {policy.message}", "mode=closed (every call is denied)"
    names = {"server": identity.server, "user": user, "agent": identity.agent(None)[0]}
    caller = " ".join(f"{key}={quoted(cut(name))}" for key, name in names.items())
    where = "the starter policy" if isinstance(policy, Policy) and policy.is_starter else quoted(settings.policy_path)
    is_error = found is not identity or isinstance(policy, PolicyError)
    line = f"{__version__} {mode} {caller} policy={where} ({rules}) store={quoted(settings.address.shown)}"
    warnings = (*settings.warnings, *exposed(settings.files))
    return [*((text, is_error) for text in (line, unlimited) if text), *((warning, True) for warning in warnings)]
