"""Who calls, and what the calls of one agent to one tool have in common."""

from collections.abc import Mapping
from typing import Final, NamedTuple

from mcpguard.core.digest import cut
from mcpguard.core.identity import Identity
from mcpguard.core.policy.model import Call, Plan, Policy
from mcpguard.core.text import compact
from mcpguard.errors import PolicyError, Unauthenticated

MAX_CALLERS: Final = 1024
MAX_CALLER_CHARS: Final = 1024
"""How many callers are remembered, so that rules are matched once for each, and how long the names of one may be."""


class Caller(NamedTuple):
    """What the calls of one agent to one tool have in common.

    Attributes:
        call: Who calls which tool.
        plan: The limits that each call has to pass.
        context: What the audit says about the caller and the tool, as a JSON object.
    """

    call: Call
    plan: Plan
    context: str


class Callers:
    """The identity and the policy in force, and the callers that they make.

    Args:
        identity: The configured identity.
        policy: The policy, or why there is none.
        session: The session's id.
        namespace: The namespace of counters and audit.

    Attributes:
        identity: The identity in force.
        unauthenticated: Why no user is verified; None if one is, or need not be.
        policy: The policy in force, or why there is none.
        client_name: What the client called itself in the handshake; None if it has not.
    """

    def __init__(self, identity: Identity, policy: Policy | PolicyError, session: str, namespace: str) -> None:
        self.identity = identity
        self.unauthenticated: Unauthenticated | None = None
        self.policy = policy
        self.client_name: str | None = None
        self._configured = identity
        self._session = session
        self._namespace = namespace
        self._callers: dict[tuple[str | None, str | None, str | None, str], Caller] = {}

    def __len__(self) -> int:
        return len(self._callers)

    def identify(self, found: Identity | Unauthenticated) -> None:
        """Put an identity in force, or the reason why no user is verified."""
        self.unauthenticated = found if isinstance(found, Unauthenticated) else None
        self.identity = found if isinstance(found, Identity) else self._configured
        self._callers.clear()

    def take_up(self, policy: Policy | PolicyError) -> None:
        """Put a policy in force. An error leaves the last good policy in force."""
        if isinstance(policy, Policy) or isinstance(self.policy, PolicyError):
            self.policy = policy
            self._callers.clear()

    def caller(self, client_name: str | None, meta_agent: object, noted: str | None, tool: str) -> Caller:
        """The caller of one call.

        Args:
            client_name: What the client calls itself; None if it has given no name.
            meta_agent: The agent that the call names; anything but a string is ignored.
            noted: The agent that a hook noted for the call; None if none did.
            tool: The tool.
        """
        named = meta_agent if isinstance(meta_agent, str) else None
        key = (client_name, named, noted, tool)
        caller = self._callers.get(key)
        if caller is None:
            who = self.identity
            agent, source = who.agent(client_name, named, noted)
            call = Call(who.user, agent, who.server, tool, who.roles, who.scopes)
            plan = self.policy.plan(call, self._namespace) if isinstance(self.policy, Policy) else Plan()
            members: dict[str, object] = {"agent": cut(agent), "agent_source": source, "tool": cut(tool)}
            members |= {member: list(map(cut, names)) for member, names in (("roles", who.roles), ("act", who.act)) if names}
            caller = Caller(call, plan, self.context(members))
            if len(self._callers) >= MAX_CALLERS:
                self._callers.clear()
            if sum(len(name) for name in (*key, agent) if name) <= MAX_CALLER_CHARS:
                self._callers[key] = caller
        return caller

    def context(self, members: Mapping[str, object], *, with_user: bool = True) -> str:
        """What the audit says about a caller, as a JSON object: the session, the server, the user, and these members."""
        who = self.identity
        context: dict[str, object] = {"session": self._session, "namespace": self._namespace, "server": who.server}
        if with_user and not self.unauthenticated:
            context |= {"user": cut(who.user), "user_source": who.user_source}
            if who.email:
                context["email"] = cut(who.email)
        return compact({**context, **members})
