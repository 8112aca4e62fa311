"""Decides a call that a hook shows: by the same policy, on the same counters and with the same audit rows as `mcpguard run`."""

import contextlib
import json
import os
from _thread import allocate_lock, start_new_thread
from collections.abc import Callable, Mapping, Sequence
from time import monotonic

from mcpguard import run_options
from mcpguard.config import Settings
from mcpguard.configured_identity import configured_identity
from mcpguard.errors import NOT_IN_TIME, PolicyError, StoreUnavailable
from mcpguard.hook.shown import CLIENTS, Given, ShownCall, copilot_parts
from mcpguard.identity.account import account_name
from mcpguard.identity.client_agents import HOOKS, AgentNote, call_key, hook_session
from mcpguard.light_typing import TYPE_CHECKING, Final, TypeVar
from mcpguard.policy.file import PolicyFile
from mcpguard.policy.model import BUILT_IN, Call, Policy
from mcpguard.session.journal import Journal
from mcpguard.session.machine import Session
from mcpguard.session.verdict import DecisionRequest, Ending
from mcpguard.stores.clock import wall_us
from mcpguard.wire import meta
from mcpguard.wire.frames import TOOLS_CALL, Frame

if TYPE_CHECKING:
    from mcpguard.stores.api import CallStore, Store
    from mcpguard.stores.outage.store import OutageStore

UPKEEP_SHARE: Final = 4
"""Of 256 hooks, how many tend the store. Each is a process of its own, and does not know what is left to do."""

KEYS_MS: Final = 600
"""How long a provider's keys are waited for: no later hook gets what this process is still fetching."""

UNKNOWN_SESSION: Final = "unknown"
"""The session of all calls whose client tells none: this process's own would be a new one for each call."""

STEP_MS: Final = 5
"""How long each step of a wait is. On a busy machine it takes several times as long, and so does opening a store."""

OPENING_S: Final = 0.5
"""The longest that all steps together take: the rest of a hook's second is for what decides without the store."""

_KEY: Final = "hook"
"""The key of the one note that the session gets: which agent calls."""

_T = TypeVar("_T")


class _HookStore:
    """The store; from its first failure on, what decides without it. It is opened at once, in a thread of its own.

    Args:
        settings: The settings of this machine.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._used: CallStore | None = None
        self._opened: Store | None = None
        self._failure: Exception = NOT_IN_TIME
        self._opening = allocate_lock()  # held until it is open, or has failed
        self._opening.acquire()
        with contextlib.suppress(RuntimeError):  # the system has no thread left
            start_new_thread(self._open, ())

    def _open(self) -> None:
        try:
            self._opened = self._settings.open_store()
        except Exception as error:
            self._failure = error
        self._opening.release()

    def _store(self) -> "Store":
        """The store, once it is open. Raises why it cannot be used."""
        if self._opened is None:
            raise self._failure
        return self._opened

    def use(self, use: "Callable[[CallStore], _T]") -> _T:
        """Use the store."""
        try:
            if self._used is None:
                until_s = monotonic() + OPENING_S
                for _ in range(0, self._settings.timeout_ms, STEP_MS):
                    if self._opening.acquire(timeout=STEP_MS / 1000) or monotonic() > until_s:
                        break
                self._used = self._store()
            return use(self._used)
        except Exception as error:
            failed, self._opened, self._failure = self._opened, None, error
        self._used = outages = self._for_outages()
        if failed:
            outages.begin_after(failed, self._failure)
        return use(outages)

    def tend(self) -> None:
        """Do upkeep, and take in what was logged in outages."""
        store = self._for_outages()
        _ = store.args_key  # waits until the store is used
        store.tend()

    def _for_outages(self) -> "OutageStore":
        from mcpguard.stores.outage.log import OutageFolder
        from mcpguard.stores.outage.store import OutageStore  # takes 2 ms to load: only if it is needed

        settings = self._settings
        folder = OutageFolder.of(settings.address, settings.namespace, settings.database_path)
        mode, timeout_ms = settings.on_unavailable, settings.timeout_ms
        return OutageStore(self._store, mode=mode, notify=lambda _: None, folder=folder, timeout_ms=timeout_ms)


def _closes(policy: Policy | PolicyError, user: str, call: ShownCall) -> bool:
    """Whether a rule denies every call of this tool, whichever agent makes it."""
    return isinstance(policy, Policy) and policy.plan(Call(user, "", call.server, call.tool)).is_closed


class HookDecision:
    """The decision on the call that a hook shows, in a session of its own.

    Args:
        name: The name of the hook.
        given: What the hook received.
        call: The call in it.
        settings: The settings of this machine.
        options: The options of the hook.
    """

    def __init__(self, name: str, given: Given, call: ShownCall, settings: Settings, options: Mapping[str, object]) -> None:
        client = CLIENTS[name]
        self._given = given
        self._options = options
        self._settings = settings
        self._note: AgentNote | None = None  # to be left once the call is decided
        named, observe = settings.policy_named, settings.observe
        policy = PolicyFile(settings.policy_path, named=named, observe=observe, tables_beside=settings.database_path).begin()
        if isinstance(policy, Policy):
            policy = policy.without_waiting(client.counts)
        self._is_guarded = self._guards(call.words)
        self._call = call if call.server else self._copilot_call(call, policy)
        self._key = call_key(HOOKS[name], given, os.environ) if name in HOOKS and self._call.server != BUILT_IN else None
        self._client_session = hook_session(given)
        identity = configured_identity(settings, self._call.server, os.environ)
        identity = identity._replace(via="hook", session=self._client_session or UNKNOWN_SESSION)
        self._store = _HookStore(settings)
        self._session = session = Session(
            identity,
            policy,
            Journal(os.urandom(8).hex()),
            namespace=settings.namespace,
            denials="error",
            arguments=settings.arguments,
            args_key=lambda: self._store.use(lambda store: store.args_key),
        )
        session.requests.client_name = client.title
        if settings.jwt:
            from mcpguard.identity.token import TokenSource  # loads PyJWT: only if it is needed

            token = TokenSource(settings.jwt, identity, os.environ, budget_ms=KEYS_MS, notify=lambda _: None)
            found = token.begin()
            session.change_identity(token.poll(for_call=True) or found)

    def _guards(self, words: Sequence[str]) -> bool:
        """Whether a server's command is a wrapper that judges calls as this hook does. In doubt it is not."""
        parsed = run_options.parse(words[1:])
        if parsed is None or any((parsed[key] or None) != (value or None) for key, value in self._options.items()):
            return False
        from pathlib import Path

        from mcpguard.clients.guards import Guards  # these take longer to load than all else: only if they are needed

        return Guards(os.environ).examine(words[0], Path(str(self._given.get("cwd") or "")), is_of_project=True).holds

    def _copilot_call(self, call: ShownCall, policy: Policy | PolicyError) -> ShownCall:
        """The call with the server and the tool that Copilot CLI's name means. If it may mean a closed tool, it does."""
        from pathlib import Path

        from mcpguard.clients.catalog import BY_KEY
        from mcpguard.clients.discovery import Machine, plugin_sources, readable_entries, sources

        folder, machine, client = self._given.get("cwd"), Machine.this(), BY_KEY["copilot"]
        projects = [None, *([Path(folder)] if isinstance(folder, str) and folder else [])]
        found = [source for project in projects for source in sources(machine, [client], project)]
        found += [source for project in projects for source in plugin_sources(machine, [client], project)]
        words: dict[str, list[Sequence[str]]] = {"github-mcp-server": []}  # Copilot CLI's own
        for entry in [entry for source in found for entry in readable_entries(source) if entry.kind != "disabled"]:
            words.setdefault(entry.name, []).append((*(entry.guard or ()), *entry.words))
        choices = [call._replace(server=server, tool=tool) for server, tool in copilot_parts(call.tool, words)]
        user = self._settings.user or account_name()
        choices = [one for one in choices if _closes(policy, user, one)] or choices
        entries = words.get(choices[0].server, [])
        self._is_guarded = bool(entries) and all(map(self._guards, entries))
        return choices[0]

    @property
    def denial_if_late(self) -> str:
        """Why the call is denied if the store takes too long: a rule denies every such call. Empty if none does."""
        call, requests = self._call, self._session.requests
        is_closed = not self._is_guarded and _closes(requests.policy, requests.identity.user, call)
        return f"Tool {call.tool} is denied by policy. Waiting does not help." if is_closed else ""

    def result(self) -> str | None:
        """Decide the call; or count it, if it has failed. Returns why it is denied, for the model; None if it is not.

        A call of a guarded server is left to its wrapper, if the client gives both no id of the call.
        """
        call, session, store = self._call, self._session, self._store
        if self._is_guarded:
            return None
        params = {"name": call.tool, "arguments": call.arguments, "_meta": {meta.COPILOT_CALL_ID: _KEY}}
        frame = Frame(b"{}", TOOLS_CALL, json.dumps(call.call_id or None), params)
        session.requests.take_note = lambda _: call.agent  # as the wrapper finds it in the note of a hook
        if call.has_failed:
            self._count_failure(session.requests.of_call(frame, ""))
            return None
        asked = session.judge([frame], 0)
        if session.unwritten:
            store.use(lambda store: store.append(session.rows(wall_us())))
        verdict = None
        if asked:
            (verdict,) = verdicts = store.use(lambda store: store.decide(asked, session.journal))
            session.decided(verdicts)
        to_server, to_client = session.output()
        if not to_server:
            return str(json.loads(to_client)["error"]["message"])
        if self._key is not None and verdict is not None:
            note = AgentNote.of(self._key, call.agent, self._client_session)
            # Without the store, what was counted here is not known to a wrapper
            is_counted = verdict.row_id is not None and verdict.row_id >= 0
            self._note = note.after_decision(verdict.charged) if is_counted else note
        return None

    def finish(self) -> None:
        """Let a wrapper that gets the call forward it as decided. Without the note the wrapper counts it, too."""
        settings, timeout_s = self._settings, self._settings.timeout_ms / 1000
        if self._note:
            with contextlib.suppress(StoreUnavailable):
                settings.address.leave_note(settings.namespace, self._note, wall_us=wall_us(), timeout_s=timeout_s)
        if os.urandom(1)[0] < UPKEEP_SHARE:
            self._store.tend()

    def notify(self) -> None:
        """Tell of the call, if it was denied or warns."""
        records = [log.record for log in self._session.take_lines() if log.record]
        if records and self._settings.notify:
            from mcpguard.alerts.notifier import Notifier  # only if it is needed

            notifier = Notifier(self._settings.notify, self._settings.database_path)
            for record in records:
                notifier.note(record)
            notifier.close()

    def _count_failure(self, request: DecisionRequest) -> None:
        """Count a call that has failed, unless a wrapper does it: one that gets the call takes the call's note."""
        plan, key, use = request.plan.only(lambda limit: limit.counts == "errors"), self._key, self._store.use
        if plan.limits and (key is None or use(lambda store: store.take_note(self._settings.namespace, key))):
            use(lambda store: store.settle([Ending(0, plan, failed=True)]))
