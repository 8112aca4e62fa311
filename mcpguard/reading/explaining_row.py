"""Explains a row of the audit log: its limits, what their counters held then and hold now, and how to change its rules."""

import shlex
from collections.abc import Mapping, Sequence

from mcpguard.errors import McpguardError
from mcpguard.light_typing import Any, Final, NamedTuple
from mcpguard.limiter.plan import SESSION, Reported
from mcpguard.policy.explain import Headroom, headrooms
from mcpguard.policy.model import AXES, Call, Policy, Rule
from mcpguard.session.audit import BY_RULES, POLICY_AT_START
from mcpguard.stores.api import AuditReader, Readable, Wanted
from mcpguard.text.times import seconds_of

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
