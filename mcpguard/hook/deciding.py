"""Decides a call that a hook shows: by the same policy, on the same counters and with the same audit rows as `mcpguard run`."""

import contextlib
import json
import os
from collections.abc import Mapping
from typing import Final

from mcpguard.config import Settings
from mcpguard.configured_identity import configured_identity
from mcpguard.errors import StoreUnavailable
from mcpguard.hook.shown import ClientHook, Given, ShownCall, copilot_parts
from mcpguard.identity.client_agents import HOOKS, AgentNote, call_key
from mcpguard.policy.file import PolicyFile
from mcpguard.policy.model import BUILT_IN, Policy
from mcpguard.run_options import starts_run
from mcpguard.session.journal import Journal
from mcpguard.session.machine import Session
from mcpguard.session.verdict import NO_LIMITS, DecisionRequest, Ending
from mcpguard.stores.clock import wall_us
from mcpguard.stores.outage.log import OutageFolder
from mcpguard.stores.outage.store import OutageStore
from mcpguard.wire import meta
from mcpguard.wire.frames import TOOLS_CALL, Frame

UPKEEP_SHARE: Final = 4
"""Of 256 hooks, how many tend the store. Each is a process of its own, and does not know what is left to do."""

_KEY: Final = "hook"
"""The key of the one note that the session gets: which agent calls."""


def decision(name: str, client: ClientHook, given: Given, settings: Settings) -> "Decision | None":
    """The decision on the call that a hook shows; None if another process decides it.

    Args:
        name: The name of the hook.
        client: The client.
        given: What the hook received.
        settings: The settings of this machine.
    """
    call = client.shown(given)
    if call is None or (call.command and starts_run(call.command)):
        return None
    if not call.server:
        server, tool, is_guarded = copilot_parts(call.tool, _copilot_servers(given.get("cwd")))
        if is_guarded:
            return None
        call = call._replace(server=server, tool=tool)
    return Decision(name, client, given, call, settings)


class Decision:
    """The decision on one call, in a session of its own.

    Args:
        name: The name of the hook.
        client: The client.
        given: What the hook received.
        call: The call in it.
        settings: The settings of this machine.
    """

    def __init__(self, name: str, client: ClientHook, given: Given, call: ShownCall, settings: Settings) -> None:
        self._call = call
        self._settings = settings
        self._note: AgentNote | None = None  # to be left once the call is decided
        self._key = call_key(HOOKS[name], given, os.environ) if name in HOOKS and call.server != BUILT_IN else None
        file = PolicyFile(settings.policy_path, named=settings.policy_named, observe=settings.observe)
        policy = file.begin()
        if isinstance(policy, Policy):
            policy = policy.without_waiting(client.counts)
        identity = configured_identity(settings, call.server, os.environ)._replace(via="hook")
        self._store = OutageStore(
            settings.open_store,
            mode=settings.on_unavailable,
            notify=lambda _: None,
            folder=OutageFolder.of(settings.address, settings.namespace, settings.database_path),
            timeout_ms=settings.timeout_ms,
        )
        self._session = session = Session(
            identity,
            policy,
            Journal(os.urandom(8).hex()),
            namespace=settings.namespace,
            denials="error",
            arguments=settings.arguments,
            args_key=lambda: self._store.args_key,
        )
        session.requests.client_name = client.title
        if settings.jwt:
            from mcpguard.identity.token import TokenSource  # loads PyJWT: only if it is needed

            token = TokenSource(settings.jwt, identity, os.environ, budget_ms=settings.timeout_ms, notify=lambda _: None)
            found = token.begin()
            session.change_identity(token.poll(for_call=True) or found)

    def result(self) -> str | None:
        """Decide the call; or count it, if it has failed. Returns why it is denied, for the model; None if it is not."""
        call, session, store = self._call, self._session, self._store
        params = {"name": call.tool, "arguments": call.arguments, "_meta": {meta.COPILOT_CALL_ID: _KEY}}
        frame = Frame(b"{}", TOOLS_CALL, json.dumps(call.call_id), params)
        if call.has_failed:
            self._count_failure(session.requests.of_call(frame, "", call.agent or None))
            return None
        plan, asked = NO_LIMITS, session.judge([frame], 0, {_KEY: call.agent} if call.agent else None)
        if session.unwritten:
            store.append(session.rows(wall_us()))
        while asked:
            plan = asked[0].plan
            asked = session.decided(store.decide(asked, session.journal))
        to_server, to_client = session.output()
        if not to_server:
            return str(json.loads(to_client)["error"]["message"])
        if self._key is not None:
            self._note = AgentNote(self._key, call.agent).after_decision(plan.keys)
        return None

    def finish(self) -> None:
        """Let a wrapper that gets the call forward it as decided. Without the note the wrapper counts it, too."""
        settings, timeout_s = self._settings, self._settings.timeout_ms / 1000
        if self._note:
            with contextlib.suppress(StoreUnavailable):
                settings.address.leave_note(settings.namespace, self._note, wall_us=wall_us(), timeout_s=timeout_s)
        if os.urandom(1)[0] < UPKEEP_SHARE:
            self._store.tend()

    def _count_failure(self, request: DecisionRequest) -> None:
        """Count a call that has failed, unless a wrapper does it: one that gets the call takes the call's note."""
        plan, store = request.plan.only(lambda limit: limit.counts == "errors"), self._store
        if plan.limits and (self._key is None or store.take_notes(self._settings.namespace, [self._key])):
            store.settle([Ending(0, plan, failed=True)])


def _copilot_servers(folder: object) -> Mapping[str, bool]:
    """The servers in Copilot CLI's files for the account and for a project, with whether they start through mcpguard."""
    from pathlib import Path

    from mcpguard.clients.catalog import BY_KEY  # these take longer to load than all else: only if they are needed
    from mcpguard.clients.discovery import Machine, readable_entries, sources
    from mcpguard.clients.installing import starts_mcpguard

    projects = [None, *([Path(folder)] if isinstance(folder, str) and folder else [])]
    found = [source for project in projects for source in sources(Machine.this(), [BY_KEY["copilot"]], project)]
    entries = [entry for source in found for entry in readable_entries(source)]
    return {entry.name: entry.guard is not None or starts_mcpguard(entry) for entry in entries}
