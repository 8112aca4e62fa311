"""`mcpguard audit show`: explains one row: its rule, its counters, and how to change the rule."""

import json
from collections.abc import Mapping
from typing import Any, Final

import click

from mcpguard.cli.audit import require_store
from mcpguard.cli.commands import Command
from mcpguard.cli.options import json_option, policy_words, with_settings
from mcpguard.cli.policy.show import rule_as_json
from mcpguard.cli.present import echo, echo_json, paragraph
from mcpguard.cli.usage import counter_text
from mcpguard.config import Settings
from mcpguard.configured_identity import SOURCES
from mcpguard.policy.explain import Headroom, sentence
from mcpguard.policy.file import load
from mcpguard.policy.model import Policy
from mcpguard.reading.explaining import LimitThen, Shown, explain_row, find
from mcpguard.session.audit import MEMBERS
from mcpguard.text.times import ms_up

_OF_LIMITS: Final = ("axis", "rule", "limit", "window", "counts", "count", "remaining", "retry_after_ms", "exceeded")
"""The members that describe the limits that decided. They are shown with these limits, if the row names them."""

_SOURCE_WORDS: Final = SOURCES | {"default": "not known"}
"""Where a user or an agent comes from. For `config` a row does not tell which of three places it was."""


def shown_as_json(shown: Shown, policy: Policy) -> dict[str, object]:
    """A row and its explanation as JSON."""
    return {
        "row": shown.record,
        "rules": [
            {
                "rule": one.text,
                "number": None if one.at is None else one.at + 1,
                "now": None if one.at is None else rule_as_json(policy.rules[one.at]),
            }
            for one in shown.rules
        ],
        "limits": [
            {
                "rule": limit.reported.rule,
                "limit": limit.reported.limit,
                "window": limit.reported.window,
                **({"counts": limit.reported.counts} if limit.reported.counts else {}),
                "counter": _counter_text(shown.counters.get(at)),
                "then": _then_as_json(limit, shown.record),
                "now": None if at not in shown.counters else _now_as_json(shown.counters[at]),
            }
            for at, limit in enumerate(shown.limits)
        ],
        "commands": shown.commands,
    }


def _then_as_json(limit: LimitThen, record: Mapping[str, object]) -> dict[str, object]:
    n, left = limit.reported.limit, limit.left
    return {
        "used": None if n is None or left is None else n - left,
        "remaining": left,
        "count": record.get("count") if limit.decided else None,
        "retry_after_ms": limit.retry_after_ms,
    }


def _now_as_json(now: Headroom) -> dict[str, object]:
    return {
        "limit": now.reported.limit,
        "used": now.used,
        "remaining": now.remaining,
        "retry_after_ms": None if now.retry_after_us is None else ms_up(now.retry_after_us),
    }


def _source_of(key: str, record: Mapping[str, Any]) -> str:
    """Where the user or the agent of a row comes from, in brackets; empty for another member."""
    word = record.get(f"{key}_source")
    words = f"--{key}, MCPGUARD_{key.upper()} or config.toml" if word == "config" else _SOURCE_WORDS.get(str(word), word)
    return f" ({words})" if words else ""


def print_shown(shown: Shown, policy: Policy, file: str) -> None:
    """Print a row, its rules, its counters, and the commands that change the rules."""
    record = shown.record
    elsewhere = {"time_us", "user_source", "agent_source", *(_OF_LIMITS if shown.limits else ())}
    for key in MEMBERS:
        if key in record and key not in elsewhere:
            value = record[key]
            text = value if isinstance(value, str) else json.dumps(value)
            paragraph(f"{key + ':':13}{text}{_source_of(key, record)}")
    if not shown.limits:
        click.echo("\nSeveral limits decided. The row does not tell which." if shown.was_refused else "\nNo rule decided.")
        return
    for one in shown.rules:
        click.echo()
        paragraph(f"Rule {one.text} (axis {record['axis']}):" if len(shown.rules) == 1 else f"Rule {one.text}:")
        if one.at is None:
            paragraph(f"not in {file} now", indent="    ")
        else:
            rule = policy.rules[one.at]
            line = f", line {rule.line}" if rule.line else ""
            paragraph(f"rule {one.at + 1} of {file}{line}: {sentence(rule, policy.costs)}", indent="    ")
        for number in one.limits:
            _print_limit(shown.limits[number], shown.counters.get(number), record)
    if shown.commands:
        click.echo(f"\nTo change the {'rule' if len(shown.commands) == 1 else 'rules'}, edit the limit in:")
    for command in shown.commands:
        echo(f"    {command}")


def _print_limit(limit: LimitThen, now: Headroom | None, record: Mapping[str, object]) -> None:
    reported = limit.reported
    if reported.limit is None:
        paragraph("deny: it counts nothing", indent="    ")
        return
    text = reported.limit_text
    paragraph(f"{text} for {_counter_text(now)}" if now else text, indent="    ")
    word = "in flight" if reported.counts == "concurrent" else "used"
    then = _then_as_json(limit, record)
    parts = _parts(then, word)
    if then["used"] is not None and then["count"] not in (None, then["used"]):
        parts.append(f"count {then['count']} with denials")
    if parts:
        paragraph(f"then: {', '.join(parts)}", indent="      ")
    if now:
        of = "" if now.reported.limit == reported.limit else f" of {now.reported.limit}"
        paragraph(f"now:  {', '.join(_parts(_now_as_json(now), word, of))}", indent="      ")


def _counter_text(now: Headroom | None) -> str | None:
    return counter_text(now.counter.label) if now and now.counter else None


def _parts(counter: Mapping[str, Any], word: str, of: str = "") -> list[str]:
    """What a counter holds, what is left of its limit, and when it has room."""
    wait_ms = counter["retry_after_ms"]
    found = [] if counter["used"] is None else [f"{counter['used']:,} {word}", f"{counter['remaining']:,} left{of}"]
    return [*found, f"retry in {-(-wait_ms // 1000):,} s"] if wait_ms else found


@click.command("show", Command)
@click.argument("row_id", metavar="ID")
@with_settings("policy", "store")
@json_option
def show(settings: Settings, row_id: str, as_json: bool) -> None:
    """Show a row, the rule that decided, and what its counters held then and hold now.

    ID is the audit_id of a denial, the id of a row of `audit tail` (on a terminal of at least 120 columns, or in a pipe), or
    the word last, which stands for the newest row that `audit tail` shows. The last line is a command that sets the rule as it
    is now: edit its limit to change the rule.

    \b
    Examples:
      mcpguard audit show last
      mcpguard audit show 45732ae6c06cfb07-4
    """
    require_store(settings)
    found = load(settings.policy, named=settings.policy_named)
    with settings.read_store() as opened:
        record = find(opened, settings.namespace, row_id)
        explained = explain_row(opened, found, record, policy_option=policy_words(settings))
    if as_json:
        echo_json(shown_as_json(explained, found), indent=2)
    else:
        print_shown(explained, found, "the starter policy" if found.is_starter else str(settings.policy))
