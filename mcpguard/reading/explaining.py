"""Explains one call by the policy and the counters, and finds rules that no call has matched."""

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from mcpguard.config import Settings
from mcpguard.configured_identity import configured_identity
from mcpguard.errors import ConfigError, StoreUnavailable, Unauthenticated
from mcpguard.files import named_path
from mcpguard.identity.caller import Identity, parse_agent
from mcpguard.light_typing import Final, NamedTuple
from mcpguard.limiter.plan import Plan
from mcpguard.limiter.sliding import EMPTY, State, decide
from mcpguard.limiter.waiting import is_held
from mcpguard.policy.explain import Headroom, RuleMatch, headrooms, rule_matches
from mcpguard.policy.lint import beyond_hooks, label
from mcpguard.policy.model import AXES, BUILT_IN, Call, Policy
from mcpguard.session.decision import verdict
from mcpguard.session.verdict import Verdict
from mcpguard.stores.api import Readable
from mcpguard.wire.arguments import args_hash

ROWS_LOOKED_AT: Final = 2000
"""How many of the newest audit rows are searched for the server of a tool."""

CALLS_LOOKED_AT: Final = 20_000
"""How many of the newest audit rows are matched with the rules. Reading them takes about half a second."""


class Explanation(NamedTuple):
    """The explanation of a call.

    Attributes:
        call: The call.
        sources: The sources of its user, agent and server: `jwt`, `config`, `os`, `default`, `audit` or `unknown`. For a
            configured user or agent, `user_from` and `agent_from` hold the place.
        matches: How each rule matches the call.
        headrooms: The quota left of each limit, by the index of its rule in the policy.
        verdict: The verdict that the next such call would get; None if the store cannot be read, or if it depends on arguments
            that are not given. A call that a rule with `deny` refuses does not depend on them.
        is_held: Whether the next such call would first wait for room.
        is_refused: Whether there is no room for the next such call, whatever its arguments are. False if the store
            cannot be read.
        failure: Why the store cannot be read; empty if it can.
        agent_open: What can name another agent in a real call, as a clause; empty if nothing can.
    """

    call: Call
    sources: dict[str, str]
    matches: list[RuleMatch]
    headrooms: dict[int, list[Headroom]]
    verdict: Verdict | None
    is_held: bool
    is_refused: bool
    failure: str
    agent_open: str


def caller(
    settings: Settings,
    *,
    user: str | None,
    agent: str | None,
    token: str | None,
    roles: Sequence[str],
    scopes: Sequence[str],
    notify: Callable[[str], None],
) -> Identity:
    """The caller that a wrapper started here would have, with the given parts replaced.

    Args:
        settings: The settings of this machine.
        user: Replaces the user, and then no token is read. None to keep the user.
        agent: Replaces the configured agent; None to keep it.
        token: The file of a token, or empty for the usual token; None if no option asks for a token.
        roles: Replace the token's roles; empty to keep them.
        scopes: Replace the token's scopes; empty to keep them.
        notify: Receives warnings.

    Raises:
        ConfigError: No token names the user here, or the agent is invalid.
        Unauthenticated: The token is rejected.
    """
    configured = configured_identity(settings._replace(agent=agent or settings.agent), "")
    if token is not None or (settings.jwt and user is None):
        who = _verified(settings, configured, named_path(token, where="--token") if token else None, notify)
    else:
        who = configured._replace(user=user, user_source="config") if user is not None else configured
    if agent and not _is_part_of(agent, who):
        notify(f"--agent: a call has another one, {who.agent(None)[0]}, since the token names it")
    if (roles or scopes) and settings.jwt is None:
        notify("no call has roles or scopes here: configure [identity.jwt] in config.toml")
    return who._replace(roles=tuple(roles) or who.roles, scopes=tuple(scopes) or who.scopes)


def _is_part_of(agent: str, who: Identity) -> bool:
    """Whether the caller has all parts that `agent` names."""
    given = parse_agent(agent, where="--agent")
    return who.agent_parts == given.or_else(who.agent_parts)


def _verified(settings: Settings, configured: Identity, file: Path | None, notify: Callable[[str], None]) -> Identity:
    from mcpguard.identity.token import VARIABLE, TokenSource  # loads PyJWT

    if settings.jwt is None:
        raise ConfigError("no token names the user here", "configure [identity.jwt] in config.toml")
    jwt, environ = settings.jwt, dict(os.environ)
    if file is not None:
        jwt = replace(jwt, token_file=file)
        environ.pop(VARIABLE, None)
    found = TokenSource(jwt, configured, environ, budget_ms=settings.timeout_ms, notify=notify).examine_patiently()
    if found.identity is None:
        problem = found.problems[0]
        raise Unauthenticated(f"every call is denied with 401: {problem.message}", problem.hint)
    return found.identity


def explain(
    settings: Settings,
    policy: Policy,
    who: Identity,
    *,
    tool: str,
    server: str | None,
    arguments: object = None,
    session: str = "",
    places: Mapping[str, str],
    notify: Callable[[str], None],
) -> Explanation:
    """Explain a call.

    Args:
        settings: The settings of this machine.
        policy: The policy in force.
        who: The caller.
        tool: The tool.
        server: The server; None for the server of the last call of this tool.
        arguments: The call's arguments, a JSON object; None if they are not known.
        session: The call's session; empty for a new one.
        places: The places of a configured `user` and `agent`: an option, a variable or a file.
        notify: Receives warnings.
    """
    if unlimited := policy.tier_warning(who.agent_parts.tier):
        notify(unlimited)
    agent, agent_source = who.agent(None)
    call = Call(who.user, agent, server or "", tool, who.roles, who.scopes, session)
    plan = _plan(policy, call, settings.namespace, arguments, b"")
    states: Sequence[State] | None = None
    now_us, failure = 0, ""
    try:
        if settings.address.exists():
            with settings.read_store() as store:
                key = store.args_key
                call = call if server else call._replace(server=_server_of(store, settings.namespace, tool))
                plan = _plan(policy, call, settings.namespace, arguments, key)
                states, now_us = store.peek(plan.counters)
    except StoreUnavailable as error:
        failure = error.message
    for at in dict.fromkeys(at for _, at in policy.applying(call)) if call.server == BUILT_IN else ():
        if gaps := beyond_hooks(policy, policy.rules[at]):
            notify(f"{label(policy, at)}: a hook decides calls of built-in tools: it {gaps}")
    if states is None:
        states = [EMPTY] * len(plan.counters)
    left: dict[int, list[Headroom]] = {}
    for room in headrooms(plan, states, now_us):
        left.setdefault(room.at, []).append(room)
    sources = {"user": who.user_source, "agent": agent_source}
    sources |= {f"{key}_from": places[key] for key, source in sources.items() if source == "config"}
    sources["server"] = "config" if server else "audit" if call.server else "unknown"
    decision = decide(plan.limits, states, now_us)
    known = not failure and (plan.is_closed or not plan.is_split)
    return Explanation(
        call,
        sources,
        rule_matches(policy, call),
        left,
        verdict(plan, decision) if known else None,
        known and not decision.admitted and is_held(plan.limits, decision.exceeded, 0),
        not failure and not decision.admitted,  # counters that depend on arguments that are not given are taken for empty
        failure,
        _agent_open(settings, who),
    )


def _plan(policy: Policy, call: Call, namespace: str, arguments: object, key: bytes) -> Plan:
    """The plan of a call. Without its arguments, the counters that depend on them stay unknown."""
    plan = policy.plan(call, namespace)
    if arguments is None or not plan.is_split:
        return plan
    return plan.of_arguments(args_hash(arguments, key).hex())


def _agent_open(settings: Settings, who: Identity) -> str:
    if settings.jwt and settings.jwt.expected.agent_claim and who.user_source != "jwt":
        return f"the user's token may name another in {settings.jwt.expected.agent_claim}"
    return "a client fills in its own name" if not who.agent_parts.client and who.trust_client_info else ""


def _server_of(store: Readable, namespace: str, tool: str) -> str:
    """The server of the last call of this tool; empty if the newest rows have no such call."""
    for entry in islice(store.newest(), ROWS_LOOKED_AT):
        if entry.record.get("tool") == tool and entry.record["namespace"] == namespace:
            return str(entry.record["server"])
    return ""


def never_matched(
    policy: Policy, settings: Settings, *, explained: Collection[int] = (), newest: int = CALLS_LOOKED_AT
) -> list[str]:
    """One warning for each rule that matched no call in the audit log.

    Rules on scopes are skipped, because the log has no scopes, and so are starter rules that nobody has edited.

    Args:
        policy: The policy.
        settings: The settings.
        explained: The indexes of rules that are left out, because another warning says why they match nothing.
        newest: How many of the newest rows are looked at.
    """
    calls: set[Call] = set()
    rows = 0
    try:
        if not settings.address.exists():
            return []
        with settings.read_store() as store:
            for _, record in islice(store.newest(), newest):
                rows += 1
                if all(key in record for key in AXES) and record["namespace"] == settings.namespace:
                    calls.add(Call.of(record))
    except StoreUnavailable:
        return []
    matched = {policy.parts[part][1] for call in calls for part in policy.matched(call)}
    since = f"the newest {rows}" if rows == newest else "the"
    return [
        f"{label(policy, at)} has matched none of {since} calls in the audit log"
        for at, rule in enumerate(policy.rules)
        if calls and "scope" not in rule.selectors and not rule.is_starter and at not in matched | {*explained}
    ]
