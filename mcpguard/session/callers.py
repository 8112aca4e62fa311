"""The identity and the policy in force, and what follows from them for the calls of one agent to one tool."""

from collections.abc import Mapping
from typing import Final, NamedTuple

from mcpguard.errors import PolicyError, Unauthenticated
from mcpguard.identity import client_agents
from mcpguard.identity.caller import CODEX, Identity, known_client
from mcpguard.limiter.plan import Plan
from mcpguard.policy.model import Call, Policy
from mcpguard.text.digest import cut
from mcpguard.text.printing import compact
from mcpguard.wire import meta

MAX_CALLERS: Final = 1024
"""How many callers are remembered, so that rules are matched only once for each."""

MAX_ARGUMENTS: Final = 64
"""How many plans are remembered of a caller whose calls are counted by arguments. A loop repeats few."""

MAX_CALLER_CHARS: Final = 1024
"""Callers with longer names are not remembered."""


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


class Callers:
    """The identity and the policy in force, and the callers that follow from them.

    Args:
        identity: The configured identity.
        policy: The policy, or the reason why there is none.
        session: The session's id.
        namespace: The namespace of counters and audit log.

    Attributes:
        identity: The identity in force.
        unauthenticated: The reason why no user is verified; None if a user is, or need not be.
        policy: The policy in force, or the reason why there is none.
        client_name: The client's name in the handshake; None if it gave none.
        session: The session's id.
        known: The callers that are remembered, by the arguments of `new`.
    """

    def __init__(self, identity: Identity, policy: Policy | PolicyError, session: str, namespace: str) -> None:
        self.identity = identity
        self.unauthenticated: Unauthenticated | None = None
        self.policy = policy
        self.client_name: str | None = None
        self._configured = identity
        self.session = session
        self._namespace = namespace
        self.known: dict[tuple[str | None, str | None, str | None, str | None, str], Caller] = {}

    def __len__(self) -> int:
        return len(self.known)

    def identify(self, caller: Identity | Unauthenticated) -> None:
        """Put an identity in force, or the reason why no user is verified."""
        self.unauthenticated = caller if isinstance(caller, Unauthenticated) else None
        self.identity = caller if isinstance(caller, Identity) else self._configured
        self.known.clear()

    def take_up(self, policy: Policy | PolicyError) -> None:
        """Put a policy in force. An error leaves the last good policy in force."""
        if isinstance(policy, Policy) or isinstance(self.policy, PolicyError):
            self.policy = policy
            self.known.clear()

    def note_key(self, call_meta: Mapping[str, object]) -> str | None:
        """The key of the note that a hook may have left for a call; None if no note can count.

        Args:
            call_meta: The call's `_meta`.
        """
        identity = self.identity
        if identity.has_whole_agent or meta.CALL_IDS.isdisjoint(call_meta):
            return None
        if client_agents.is_codexs_main_agent(call_meta) and identity.trust_client_info:
            name = name_in(call_meta.get(meta.CLIENT_INFO)) or self.client_name
            if name and known_client(name) == CODEX:
                return None
        return client_agents.note_key(call_meta, identity.claude_session)

    def new(
        self, client_name: str | None, meta_agent: str | None, noted: str | None, codex_tier: str | None, tool: str
    ) -> Caller:
        """A caller that is not among `known`. It is remembered.

        Args:
            client_name: The client's name; None if it gave none.
            meta_agent: The agent in the call's `_meta`; None if there is none.
            noted: The agent that a hook noted for the call; None if no hook did.
            codex_tier: The tier that Codex reports in the call's `_meta`; None if there is none.
            tool: The tool.
        """
        key = (client_name, meta_agent, noted, codex_tier, tool)
        identity = self.identity
        agent, source = identity.agent(client_name, meta_agent, noted, codex_tier)
        call = Call(identity.user, agent, identity.server, tool, identity.roles, identity.scopes)
        plan = self.policy.plan(call, self._namespace) if isinstance(self.policy, Policy) else Plan()
        members: dict[str, object] = {"agent": cut(agent), "agent_source": source, "tool": cut(tool)}
        members |= {key: [*map(cut, names)] for key, names in (("roles", identity.roles), ("act", identity.act)) if names}
        caller = Caller(call, plan, self.context(members), {})
        if len(self.known) >= MAX_CALLERS:
            self.known.clear()
        if sum(len(name) for name in (*key, agent) if name) <= MAX_CALLER_CHARS:
            self.known[key] = caller
        return caller

    def context(self, members: Mapping[str, object], *, with_user: bool = True) -> str:
        """The context of an audit row: a JSON object with the session, the server, the user, and these members."""
        identity = self.identity
        context: dict[str, object] = {"session": self.session, "namespace": self._namespace, "server": cut(identity.server)}
        if with_user and not self.unauthenticated:
            context |= {"user": cut(identity.user), "user_source": identity.user_source}
            if identity.email:
                context["email"] = cut(identity.email)
        return compact({**context, **members})


def name_in(client_info: object) -> str | None:
    """The client's name in a `clientInfo`; None if there is none."""
    name = client_info.get("name") if isinstance(client_info, dict) else None
    return name if isinstance(name, str) and name else None
