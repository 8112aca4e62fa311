"""Makes the requests for the store from the identity and the policy in force: of a call, a refused frame, or a policy."""

import json
import re
from collections.abc import Callable, Mapping

from mcpguard.errors import PolicyError, Unauthenticated
from mcpguard.identity import client_agents
from mcpguard.identity.caller import CODEX, Identity, known_client
from mcpguard.light_typing import Final, NamedTuple
from mcpguard.limiter.plan import Plan
from mcpguard.policy.model import Call, Policy
from mcpguard.session.verdict import NO_LIMITS, DecisionRequest
from mcpguard.text.digest import cut
from mcpguard.text.printing import compact
from mcpguard.wire import meta
from mcpguard.wire.arguments import NONE, Unbuilt, args_hash
from mcpguard.wire.frames import Frame, Refusal

MAX_CALLERS: Final = 1024
"""How many callers are remembered, so that rules are matched only once for each."""

MAX_ARGUMENTS: Final = 64
"""How many plans are remembered of a caller whose calls are counted by arguments. A loop repeats few."""

MAX_CALLER_CHARS: Final = 1024
"""Callers with longer names are not remembered."""

_REMEMBERED_BYTES: Final = 4096
"""The arguments of a longer call are not remembered."""

_TRACEPARENT: Final = (  # compiled only if it is needed
    r"(?!ff)[0-9a-f]{2}-((?!0{32})[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
)

_Names = tuple[str | None, str | None, str | None, str | None, str, str, str]
"""What tells callers apart: the client's name, the agent in the call's `_meta`, the agent that a hook noted for the call, the
tier that Codex reports in `_meta`, each None if there is none; the session that a hook noted, the session in `_meta` if the
client is Codex, each empty if there is none; and the tool."""


class Caller(NamedTuple):
    """What the calls of one agent to one tool have in common.

    Attributes:
        call: Who calls which tool.
        plan: The limits that each call must pass.
        context: The caller and the tool in the audit row: a JSON object, as text.
        of_arguments: If the plan is split by arguments, the plans by the arguments' hash.
    """

    call: Call
    plan: Plan
    context: str
    of_arguments: dict[str, Plan]

    def plan_of(self, digest: str, earlier: str = "") -> Plan:
        """The plan of a call with these arguments; see `Plan.of_arguments`."""
        found = self.of_arguments.get(digest + earlier)
        if found is None:
            if len(self.of_arguments) >= MAX_ARGUMENTS:
                self.of_arguments.clear()
            found = self.of_arguments[digest + earlier] = self.plan.of_arguments(digest, earlier)
        return found


class DecisionRequests:
    """The identity and the policy in force, and the requests that follow from them.

    Args:
        identity: The configured identity.
        policy: The policy, or the reason why there is none.
        session: The session's id.
        namespace: The namespace of counters and audit log.
        arguments: What the audit log keeps of a call's arguments: `hash`, `none` or `full`.
        args_key: Returns the key of the hash; empty for no hash. It is called for each call.

    Attributes:
        identity: The identity in force.
        unauthenticated: The reason why no user is verified; None if a user is, or need not be.
        policy: The policy in force, or the reason why there is none.
        client_name: The client's name in the handshake; None if it gave none.
        callers: The callers that are remembered.
        take_note: Called with the key of a note that a hook may have left for a call: removes the note and returns its text,
            which is empty if there is none.
    """

    def __init__(
        self,
        identity: Identity,
        policy: Policy | PolicyError,
        session: str,
        *,
        namespace: str,
        arguments: str,
        args_key: Callable[[], bytes],
    ) -> None:
        self.identity = self._configured = identity
        self.unauthenticated: Unauthenticated | None = None
        self.policy = policy
        self.client_name: str | None = None
        self.callers: dict[_Names, Caller] = {}
        self.take_note: Callable[[str], str] = lambda _: ""
        self._session = session
        self._namespace = namespace
        self._arguments = arguments
        self._args_key = args_key
        self._has_own_key = False  # whether calls were counted by a key of this session, while the store's was not known
        # The last arguments, the key, and the hash: the next arguments may be the same object
        self._hashed: tuple[object, bytes, bytes] | None = None

    def identify(self, found: Identity | Unauthenticated) -> None:
        """Put an identity in force, or the reason why no user is verified."""
        self.unauthenticated = found if isinstance(found, Unauthenticated) else None
        self.identity = found if isinstance(found, Identity) else self._configured
        self.callers.clear()

    def take_up(self, policy: Policy | PolicyError) -> None:
        """Put a policy in force. An error leaves the last good policy in force."""
        if isinstance(policy, Policy) or isinstance(self.policy, PolicyError):
            self.policy = policy
            self.callers.clear()

    def of_call(self, frame: Frame, key: str, noted: str | None = None) -> DecisionRequest:
        """The request for a call, to be decided by its plan.

        Args:
            frame: The call.
            key: The `id_key` of its id.
            noted: The note that a hook left for it, empty if no hook did; None if that is not known yet.
        """
        params: dict[str, object] = frame.params
        call_meta: object = params.get("_meta")
        tool: str = frame.params["name"]
        names: _Names = (self.client_name, None, None, None, "", "", tool)
        trace: object = None
        if isinstance(call_meta, dict) and not meta.OF_CALLER.isdisjoint(call_meta):
            if noted is None and (note_key := client_agents.note_key(call_meta, self.identity.claude_session)):
                noted = self.take_note(note_key)
            names, trace = self._names(call_meta, noted, tool), call_meta.get(meta.TRACEPARENT)
        caller = self.callers.get(names) or self._new_caller(names)
        call, plan, context, _ = caller
        request = DecisionRequest(call, plan, context, frame, str(frame.id), key)
        request.client_name = names[0]
        if noted:
            request.noted = noted
        if self._arguments == "hash":
            if args_key := self._args_key():
                arguments, hashed = params.get("arguments", NONE), self._hashed
                if hashed is None or arguments is not hashed[0] or args_key is not hashed[1]:
                    hashed = arguments, args_key, args_hash(arguments, args_key)
                    self._hashed = hashed if len(frame.raw) <= _REMEMBERED_BYTES else None
                request.args_hash = hashed[2]
        elif self._arguments == "full":
            request.detail = {"arguments": _in_full(params.get("arguments"))}
        if not plan.is_plain:
            self._complete(request, caller, params)
        if trace and isinstance(trace, str) and (match := re.fullmatch(_TRACEPARENT, trace)):
            request.trace_id = match[1]
        return request

    def _names(self, call_meta: Mapping[str, object], noted: str | None, tool: str) -> _Names:
        """What tells the caller of a call apart, if its `_meta` says something of it."""
        client_name, noted_agent, noted_session = self.client_name, None, ""
        if meta.CLIENT_INFO in call_meta:
            client_name = name_in(call_meta[meta.CLIENT_INFO]) or client_name
        agent, session = call_meta.get(meta.AGENT), call_meta.get(meta.CODEX_SESSION)
        if noted:
            noted_session = client_agents.session_in(noted)
            # If Codex reports that its main agent makes the call, the note of an earlier call does not name the agent
            if not (self._is_codex(client_name) and client_agents.is_codexs_main_agent(call_meta)):
                noted_agent = client_agents.agent_in(noted) or None
        meta_agent = agent if isinstance(agent, str) else None
        tier = client_agents.codex_tier(call_meta) if meta.CODEX_TURN in call_meta else None
        return client_name, meta_agent, noted_agent, tier, noted_session, session if isinstance(session, str) else "", tool

    def _is_codex(self, client_name: str | None) -> bool:
        """Whether Codex makes a call, and what it tells of itself is trusted."""
        return self.identity.trust_client_info and client_name is not None and known_client(client_name) == CODEX

    def _new_caller(self, names: _Names) -> Caller:
        """A caller that is not among `callers`. It is remembered."""
        identity = self.identity
        client_name, meta_agent, noted, tier, session, told_session, tool = names
        agent, source = identity.agent(client_name, meta_agent, noted, tier)
        if not session and self._is_codex(client_name):
            session = client_agents.valid_id(told_session)
        session = session or identity.session
        call = Call(identity.user, agent, identity.server, tool, identity.roles, identity.scopes, session or self._session)
        plan = self.policy.plan(call, self._namespace) if isinstance(self.policy, Policy) else NO_LIMITS
        members: dict[str, object] = {"agent": cut(agent), "agent_source": source, "tool": cut(tool)}
        members |= {"client_session": session} if session else {}
        members |= {key: [*map(cut, names)] for key, names in (("roles", identity.roles), ("act", identity.act)) if names}
        caller = Caller(call, plan, self._context(members), {})
        if len(self.callers) >= MAX_CALLERS:
            self.callers.clear()
        if sum(len(name) for name in (*names, agent) if name) <= MAX_CALLER_CHARS:
            self.callers[names] = caller
        return caller

    def _context(self, members: Mapping[str, object], *, with_user: bool = True) -> str:
        """The context of an audit row: a JSON object with the session, the server, the user, and these members."""
        identity = self.identity
        context: dict[str, object] = {"session": self._session, "namespace": self._namespace, "server": cut(identity.server)}
        if with_user and not self.unauthenticated:
            context |= {"user": cut(identity.user), "user_source": identity.user_source}
            if identity.email:
                context["email"] = cut(identity.email)
        if identity.via:
            context["via"] = identity.via
        return compact({**context, **members})

    def _complete(self, request: DecisionRequest, caller: Caller, params: dict[str, object]) -> None:
        """Add what only the requests of some plans have."""
        plan = caller.plan
        if plan.is_split:
            key, arguments, earlier = self._args_key(), params.get("arguments", NONE), ""
            if not key or self._has_own_key:
                earlier = args_hash(arguments, self._session.encode()).hex()  # whoever reads the hash can read either key
                self._has_own_key = True
            request.plan = caller.plan_of(args_hash(arguments, key).hex(), earlier) if key else caller.plan_of(earlier)
        if plan.cost is not None:
            request.detail = {**request.detail, "cost": plan.cost}
        if plan.waits:
            request.waited_us = 0

    def of_refusal(self, refusal: Refusal) -> DecisionRequest:
        """The row of a frame that was refused."""
        identity = self.identity
        tool = {} if refusal.tool is None else {"tool": cut(refusal.tool)}
        return DecisionRequest(
            Call(identity.user, "", identity.server, refusal.tool or ""),
            NO_LIMITS,
            self._context(tool),
            request_id="" if refusal.id == "null" else cut(refusal.id),
            detail={"reason": refusal.message},
        )

    def of_policy(self, reason: str) -> DecisionRequest:
        """The row that names the policy in force, and why the row is written."""
        detail: dict[str, object] = {"policy": self.policy.digest} if isinstance(self.policy, Policy) else {}
        detail["reason"] = reason
        return DecisionRequest(
            Call("", "", self.identity.server, ""), NO_LIMITS, self._context({}, with_user=False), detail=detail
        )


def name_in(client_info: object) -> str | None:
    """The client's name in a `clientInfo`; None if there is none."""
    name = client_info.get("name") if isinstance(client_info, dict) else None
    return name if isinstance(name, str) and name else None


def _in_full(arguments: object) -> object:
    """Arguments as the audit log keeps them: as text if they were not built, or have a number beyond the range of doubles."""
    if isinstance(arguments, Unbuilt):
        return arguments.text
    try:
        json.dumps(arguments, allow_nan=False)
    except ValueError:
        return json.dumps(arguments)
    return arguments
