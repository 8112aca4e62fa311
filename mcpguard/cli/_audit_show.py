"""Explains one row of the audit log: its rule, what its counters held then and hold now, and how to change the rule."""

import json
import shlex
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import click

from mcpguard.cli._counters import Counted
from mcpguard.cli._policy_show import rule_as_json
from mcpguard.cli._text import paragraph
from mcpguard.core import limiter
from mcpguard.core.audit import MEMBERS
from mcpguard.core.policy.explain import sentence
from mcpguard.core.policy.model import Call, Counter, Policy, Rule
from mcpguard.core.policy.rule_text import rule_of_text
from mcpguard.core.text import printable
from mcpguard.core.times import ms_up
from mcpguard.errors import McpguardError
from mcpguard.stores.api import AuditReader, Readable, Wanted

_OF_LIMITS: Final = ("axis", "rule", "limit", "window", "count", "remaining", "retry_after_ms", "exceeded")
"""The members that tell of the limits that decided. They are not shown among the others."""

_SOURCES: Final = {"user": "user_source", "agent": "agent_source"}
"""Members that are shown in one line with their sources, which are members, too."""


class LimitThen(NamedTuple):
    """A limit of a row.

    Attributes:
        rule: The text of its rule.
        limit: Calls per window; None for `deny`.
        window: The window as the policy writes it.
        is_reported: Whether it decided. `count` and `remaining` of the row are of this limit.
        retry_after_ms: The wait that the denial told.
    """

    rule: str
    limit: int | None
    window: str
    is_reported: bool
    retry_after_ms: int | None

    @property
    def text(self) -> str:
        """As a policy writes it."""
        return "deny" if self.limit is None else f"{self.limit}/{self.window}"


class CounterNow(NamedTuple):
    """What the counter of a limit holds now.

    Attributes:
        counter: The counter.
        n: The limit in force; that of the row if the policy has none for this window.
        in_force: Whether the policy has a limit for this window.
        used: The calls in the counter.
        retry_after_us: The wait until the limit admits the next call; 0 if it does now.
    """

    counter: Counter
    n: int
    in_force: bool
    used: int
    retry_after_us: int


class Shown(NamedTuple):
    """A row and what explains it.

    Attributes:
        record: The row.
        limits: The limits that said no, or the one with the least quota left.
        rules: For each of their rules, its text and its index in the policy in force; None if the policy has no such rule.
        counters: By the index of a limit, what its counter holds now.
        commands: For each rule, the command that changes it.
    """

    record: dict[str, object]
    limits: list[LimitThen]
    rules: dict[str, int | None]
    counters: dict[int, CounterNow]
    commands: list[str]

    @property
    def was_refused(self) -> bool:
        """Whether limits said no, perhaps in observe mode."""
        return "exceeded" in self.record


def find(store: AuditReader, namespace: str, row_id: str) -> dict[str, object]:
    """The row with this id.

    Raises:
        McpguardError: The namespace has no such row.
    """
    session, dash, _ = row_id.partition("-")
    first_id = row_id.partition(".")[0]
    hint = "look for it with mcpguard audit tail --json; old rows are deleted, see [audit] in config.toml"
    if dash:
        wanted = Wanted(partial(_is_of_session, namespace, session))
        for _, record in store.newest(wanted=wanted):
            if record["id"] == row_id:
                return record
            if record["id"] == first_id:
                hint = f"the denials before it have a row: mcpguard audit show {first_id}"
    raise McpguardError(f"no row has the id {row_id}", hint)


def _is_of_session(namespace: str, session: str, context: Mapping[str, object]) -> bool:
    return context["namespace"] == namespace and context.get("session") == session


def explain(store: Readable, policy: Policy, record: dict[str, Any], *, policy_option: Sequence[str]) -> Shown:
    """Explain a row.

    Args:
        store: The store, for what the counters hold now.
        policy: The policy in force.
        record: The row.
        policy_option: The option that names the policy file, for the commands; empty if none is needed.
    """
    limits = _limits(record)
    numbers = {rule.text: at for at, rule in enumerate(policy.rules)}
    rules = {limit.rule: numbers.get(limit.rule) for limit in limits}
    in_force = {text: policy.rules[at] for text, at in rules.items() if at is not None}
    counters: dict[int, CounterNow] = {}
    for at, limit in enumerate(limits):
        found = _counter(limit, record)
        if found is not None:
            (log,), now_us = store.peek([found])
            log = limiter.live(log, found.window_us, now_us)
            rates = {rate.window_us: rate.n for rate in in_force[limit.rule].rates} if limit.rule in in_force else {}
            n = rates.get(found.window_us, limit.limit or 0)
            wait_us = limiter.retry_after(log, n, found.window_us, now_us)
            counters[at] = CounterNow(found, n, found.window_us in rates, limiter.used(log), wait_us or 0)
    commands = []
    for text in rules:
        command = _command(text, in_force.get(text), [limit for limit in limits if limit.rule == text], record)
        commands += [shlex.join(["mcpguard", "policy", "set", *policy_option, *command])] if command else []
    return Shown(record, limits, rules, counters, commands)


def _limits(record: Mapping[str, Any]) -> list[LimitThen]:
    """The limits that a row names."""
    if "rule" not in record:
        return []
    known = record.get("exceeded") or [record]
    reported = [record.get(key) for key in ("rule", "limit", "window")]
    return [
        LimitThen(
            one["rule"],
            one.get("limit"),
            one.get("window", ""),
            [one.get(key) for key in ("rule", "limit", "window")] == reported,
            one.get("retry_after_ms"),
        )
        for one in known
    ]


def _counter(limit: LimitThen, record: Mapping[str, Any]) -> Counter | None:
    """The counter of a limit. It does not depend on the policy in force. None if the row does not tell enough."""
    rule = rule_of_text(limit.rule, limit.text)
    if limit.limit is None or rule is None:
        return None
    roles, scopes = (tuple(rule.selectors.get(key, ())) for key in ("role", "scope"))  # the row does not have the scopes
    user, agent, server, tool = (str(record.get(key, "")) for key in ("user", "agent", "server", "tool"))
    call = Call(user, agent, server, tool, roles, scopes)
    plan = Policy((rule,)).plan(call, str(record["namespace"]))
    return plan.counters[0] if plan.counters else None


def _command(text: str, rule: Rule | None, limits: Sequence[LimitThen], record: Mapping[str, Any]) -> list[str] | None:
    """The arguments of the command that changes a rule: so that it admits such a call, if it refused it.

    Args:
        text: The rule's text.
        rule: The rule, if it is in force.
        limits: Its limits that the row names.
        record: The row.
    """
    rule = rule or rule_of_text(text, [one.text for one in limits] if limits[0].limit is not None else "deny")
    if rule is None:
        return None
    words = [word for key, patterns in rule.selectors.items() for one in patterns for word in (f"--{key}", one)]
    words += ["--per", rule.per_text] if rule.per_text else []
    refused = {one.window: one for one in limits} if "exceeded" in record else {}
    rates = []
    for rate in rule.rates:
        n, one = rate.n, refused.get(rate.text)
        if one is not None:
            least = record.get("count") if one.is_reported else None
            n = max(n, (one.limit or 0) + 1, least or 0)
        rates.append(f"{n}/{rate.text}")
    return [*words, *(rates or ["unlimited"])]


def as_json(shown: Shown, policy: Policy, *, is_starter: bool) -> dict[str, object]:
    """A row and its explanation as JSON."""
    return {
        "row": shown.record,
        "rules": [
            {
                "rule": text,
                "number": None if at is None else at + 1,
                "now": None if at is None else rule_as_json(policy.rules[at], is_starter=is_starter),
            }
            for text, at in shown.rules.items()
        ],
        "limits": [
            {
                "rule": limit.rule,
                "limit": limit.limit,
                "window": limit.window or None,
                "counter": None if at not in shown.counters else Counted.of(shown.counters[at].counter.label).text,
                "then": _then_as_json(limit, shown.record),
                "now": None if at not in shown.counters else _now_as_json(shown.counters[at]),
            }
            for at, limit in enumerate(shown.limits)
        ],
        "commands": shown.commands,
    }


def _then_as_json(limit: LimitThen, record: Mapping[str, object]) -> dict[str, object]:
    left = _left_then(limit, record)
    return {
        "used": None if limit.limit is None else limit.limit - left,
        "remaining": left,
        "count": record.get("count") if limit.is_reported else None,
        "retry_after_ms": limit.retry_after_ms,
    }


def _left_then(limit: LimitThen, record: Mapping[str, Any]) -> int:
    """The quota that a limit had left after the decision. A row has that of the limit that decided; others are full."""
    return record.get("remaining", 0) if limit.is_reported else 0


def _now_as_json(now: CounterNow) -> dict[str, object]:
    return {
        "limit": now.n if now.in_force else None,
        "used": now.used,
        "remaining": max(0, now.n - now.used),
        "retry_after_ms": ms_up(now.retry_after_us),
    }


def print_all(shown: Shown, policy: Policy, file: str) -> None:
    """Print a row, its rules, its counters, and the commands that change the rules."""
    record = shown.record
    for key in MEMBERS:
        if key in record and key not in (*_OF_LIMITS, *_SOURCES.values(), "time_us"):
            value = record[key]
            text = value if isinstance(value, str) else json.dumps(value)
            source = f" ({record[_SOURCES[key]]})" if key in _SOURCES and _SOURCES[key] in record else ""
            paragraph(f"{key + ':':13}{text}{source}")
    if not shown.limits:
        click.echo("\nNo rule decided.")
        return
    for text, at in shown.rules.items():
        click.echo()
        paragraph(f"Rule {text} (axis {record['axis']}):" if len(shown.rules) == 1 else f"Rule {text}:")
        if at is None:
            paragraph(f"not in {file} now", indent="    ")
        else:
            line = f", line {policy.rules[at].line}" if policy.rules[at].line else ""
            paragraph(f"rule {at + 1} of {file}{line}: {sentence(policy.rules[at])}", indent="    ")
        for number, limit in enumerate(shown.limits):
            if limit.rule == text:
                _print_limit(limit, shown.counters.get(number), record)
    if shown.commands:
        click.echo("\nTo let the rule admit such a call:" if shown.was_refused else "\nTo change the rule, edit its limit in:")
    for command in shown.commands:
        click.echo(printable(f"    {command}"))


def _print_limit(limit: LimitThen, now: CounterNow | None, record: Mapping[str, object]) -> None:
    if limit.limit is None:
        paragraph("deny: it counts nothing", indent="    ")
        return
    paragraph(f"{limit.text} for {Counted.of(now.counter.label).text}" if now else f"{limit.text}", indent="    ")
    left, count = _left_then(limit, record), record.get("count")
    used = limit.limit - left
    parts = [f"{used:,} used", f"{left:,} left"]
    parts += [_retry(limit.retry_after_ms)] if limit.retry_after_ms is not None else []
    parts += [f"count {count} with denials"] if limit.is_reported and count != used else []
    paragraph(f"then: {', '.join(parts)}", indent="      ")
    if now is None:
        return
    parts = [f"{now.used:,} used", f"{max(0, now.n - now.used):,} left" + (f" of {now.n}" if now.n != limit.limit else "")]
    parts += [_retry(ms_up(now.retry_after_us))] if now.retry_after_us else []
    parts += [] if now.in_force else ["but the policy has no such limit now"]
    paragraph(f"now:  {', '.join(parts)}", indent="      ")


def _retry(ms: int) -> str:
    return f"retry in {-(-ms // 1000):,} s"
