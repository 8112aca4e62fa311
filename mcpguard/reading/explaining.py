"""Explains a call, or a row of the audit log, by the policy and the counters; and finds rules that no call has matched.

Of a row it tells its limits, what their counters held then and hold now, and how to change its rules.
"""

import os
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from mcpguard.config import Settings
from mcpguard.configured_identity import configured_identity
from mcpguard.errors import ConfigError, McpguardError, StoreUnavailable, Unauthenticated
from mcpguard.files import named_path
from mcpguard.identity.caller import Identity, parse_agent
from mcpguard.light_typing import Any, Final, NamedTuple
from mcpguard.limiter.plan import SESSION, Plan, Reported
from mcpguard.limiter.sliding import EMPTY, State, decide, is_held
from mcpguard.policy.explain import Headroom, RuleMatch, headrooms, rule_matches
from mcpguard.policy.lint import beyond_hooks, label
from mcpguard.policy.model import AXES, BUILT_IN, Call, Policy, Rule
from mcpguard.session.audit import BY_RULES, POLICY_AT_START
from mcpguard.session.decision import verdict
from mcpguard.session.verdict import Verdict
from mcpguard.stores.api import AuditReader, Readable, Wanted
from mcpguard.text.times import seconds_of
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


LAST: Final = "last"
"""In place of an id: the newest row that `audit tail` shows."""


class LimitThen(NamedTuple):
    """A limit of a row.

    Attributes:
        reported: The limit, without an axis.
        decided: Whether it decided. `count` and `remaining` of the row are of this limit.
        retry_after_ms: The wait that the denial told.
        left: The quota that it had left after the decision. A row has that of the limit that decided; others are full. None if
            nobody knows: the row sums up denials, or another limit may have had room for a part of the call's cost.
    """

    reported: Reported
    decided: bool
    retry_after_ms: int | None
    left: int | None


class RuleThen(NamedTuple):
    """A rule that a row names.

    Attributes:
        text: Its text.
        at: Its index in the policy in force; None if the policy has no such rule.
        limits: The indexes of its limits among those of the row.
    """

    text: str
    at: int | None
    limits: list[int]


class Shown(NamedTuple):
    """A row and what explains it.

    Attributes:
        record: The row.
        limits: The limits that said no, or the one with the least quota left.
        rules: Their rules.
        counters: By the index of a limit, what is left of it now. A limit has none if the row does not tell which counter it
            was: one of several by arguments, or by a name that a row of several denials leaves out. Nor has one that is no
            longer in force.
        commands: For each rule in force, the command that sets it as it is now.
    """

    record: dict[str, object]
    limits: list[LimitThen]
    rules: list[RuleThen]
    counters: dict[int, Headroom]
    commands: list[str]

    @property
    def was_refused(self) -> bool:
        """Whether limits said no, perhaps in observe mode."""
        return self.record["decision"] in BY_RULES


def find(store: AuditReader, namespace: str, row_id: str) -> dict[str, object]:
    """The row with this id, or the one that `LAST` stands for.

    Raises:
        McpguardError: The namespace has no such row.
    """
    if row_id == LAST:
        newest = (record for _, record in store.newest(wanted=Wanted(lambda context: context["namespace"] == namespace)))
        found = next((record for record in newest if record.get("reason") != POLICY_AT_START), None)
        if found is None:
            raise McpguardError("the audit log has no rows yet", "call a tool of a server that mcpguard guards")
        return found
    session, dash, _ = row_id.partition("-")
    first_id = row_id.partition(".")[0]
    hint = "look for it with mcpguard audit tail --json; old rows are deleted, see [audit] in config.toml"
    if dash:
        of_session = Wanted(lambda context: (context["namespace"], context.get("session")) == (namespace, session))
        for _, record in store.newest(wanted=of_session):
            if record["id"] == row_id:
                return record
            if record["id"] == first_id:
                hint = f"look at the row of the denials before it: mcpguard audit show {first_id}"
    raise McpguardError(f"no row has the id {row_id}", hint)


def explain_row(store: Readable, policy: Policy, record: dict[str, Any], *, policy_option: Sequence[str]) -> Shown:
    """Explain a row.

    Args:
        store: The store, for what the counters hold now.
        policy: The policy in force.
        record: The row.
        policy_option: The option that names the policy file, for the commands; empty if none is needed.
    """
    limits = _limits(record)
    rules = _rules(policy, limits)
    counters: dict[int, Headroom] = {}
    commands = []
    for rule in rules:
        if rule.at is None:
            continue
        in_force = policy.rules[rule.at]
        commands.append(shlex.join(["mcpguard", "policy", "set", *policy_option, *in_force.setting]))
        now = _now(store, policy, in_force, record)
        for at in rule.limits:
            limit = limits[at].reported
            if limit.limit is not None and (room := now.get(_kind(limit))):
                counters[at] = room
    return Shown(record, limits, rules, counters, commands)


def _rules(policy: Policy, limits: Sequence[LimitThen]) -> list[RuleThen]:
    """The rules of limits. Rules that count different things can have the same text."""
    found: dict[object, RuleThen] = {}
    for number, limit in enumerate(limits):
        rule, at = limit.reported.rule, _in_force(policy, limit.reported)
        found.setdefault((rule, limit.reported.counts if at is None else at), RuleThen(rule, at, [])).limits.append(number)
    return list(found.values())


def _in_force(policy: Policy, limit: Reported) -> int | None:
    """The index of the rule in force that has a limit of this kind; else of the one that opens or closes the same calls now."""
    alike = [(part, at) for part, at in policy.parts if part.text == limit.rule]
    alike.sort(key=lambda one: (limit.window == SESSION) not in {rate.is_per_session for rate in one[0].rates})
    counts = limit.counts or "calls"
    same = [at for part, at in alike if (part.deny if limit.limit is None else part.counts == counts and not part.deny)]
    other = [at for part, at in alike if part.deny or limit.limit is None]
    return next(iter(same + other), None)


def _now(store: Readable, policy: Policy, rule: Rule, record: Mapping[str, Any]) -> dict[object, Headroom]:
    """By their `_kind`, what is left for a row's call of the limits that a rule has now.

    It is empty if the row does not tell which counters the call has.
    """
    if any(axis not in record for axis in AXES if axis in rule.per):
        return {}
    roles, scopes = (tuple(rule.selectors.get(key, ())) for key in ("role", "scope"))  # the row does not have the scopes
    session = str(record.get("client_session", record.get("session", "")))
    call = Call.of(record)._replace(roles=roles, scopes=scopes, session=session)
    plan = Policy((rule,), costs=policy.costs).plan(call, str(record["namespace"]))
    rooms = headrooms(plan, *store.peek(plan.counters))
    return {_kind(one.reported): one for one in rooms if one.counter and one.is_known}


def _kind(limit: Reported) -> object:
    """What two limits have in common if one is the other with another N: what they count, and the window in seconds."""
    return limit.counts, SESSION if limit.window == SESSION else seconds_of(limit.window)


def _limits(record: Mapping[str, Any]) -> list[LimitThen]:
    """The limits that a row names."""
    found = []
    decided = Reported.of(record)._replace(axis="")
    for one in (record.get("exceeded") or [record]) if "rule" in record else ():
        limit = Reported.of(one)._replace(axis="")
        left = None if limit.counts == "cost" and record.get("cost", 1) > 1 else 0
        if limit == decided:
            left = record.get("remaining")
        found.append(LimitThen(limit, limit == decided, one.get("retry_after_ms"), left))
    return found
