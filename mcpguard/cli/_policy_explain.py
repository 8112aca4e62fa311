"""Prints what `mcpguard policy explain` finds: as JSON, as text, as a table."""

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import click

from mcpguard.cli._counters import counter_text
from mcpguard.cli._policy_show import named, observed, rule_as_json, source_as_json
from mcpguard.cli._text import new_table, paragraph
from mcpguard.errors import UsageError
from mcpguard.identity.caller import parse_agent
from mcpguard.policy.match import Headroom, RuleMatch
from mcpguard.policy.model import Policy
from mcpguard.reading.explaining import Explanation
from mcpguard.session.verdict import Verdict
from mcpguard.text.printing import printable
from mcpguard.text.times import ms_up
from mcpguard.wire.frames import refuse_constant

_SOURCES: Final = {
    "os": "the OS account",
    "jwt": "the token",
    "audit": "from the last call of this tool",
    "unknown": "unknown; name it with --server",
}
"""The remark on a value's source. For the source `config` it is the option, variable or file."""

_HEADINGS: Final = {"applies": "Applies", "overridden": "Overridden", "no match": "Does not match"}


def require_names(given: Iterable[tuple[str, str | None]]) -> None:
    """Refuse patterns: a call has one user, not a pattern of users.

    Args:
        given: Options and their values; None if the option is not given.

    Raises:
        UsageError: A value is empty or a pattern.
        ConfigError: An agent does not have three parts.
    """
    for option, value in given:
        if value == "":
            instead = "" if option == "--tool" else ", or leave the option out"
            raise UsageError(f"{option} is empty", f"give a name{instead}")
        if value is not None and "*" in value:
            raise UsageError(f"{option}: {value!r} is a pattern", "give an exact name: only rules have patterns")
        if value and option == "--agent":
            parse_agent(value, where=option)


def arguments_of(text: str | None) -> dict[str, object] | None:
    """The arguments that `--arguments` gives.

    Raises:
        UsageError: They are not a JSON object.
    """
    if text is None:
        return None
    try:
        found = json.loads(text, parse_constant=refuse_constant)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UsageError("--arguments is not a JSON object", """write --arguments '{"query": "acme"}'""")
    return found


def as_json(found: Explanation, policy: Policy, file: Path, *, is_starter: bool) -> dict[str, object]:
    """An explanation as JSON. Counts are null if the store cannot be read."""
    call, verdict = found.call, found.verdict
    return {
        "call": {
            "user": call.user,
            "user_source": found.sources["user"],
            "agent": call.agent,
            "agent_source": found.sources["agent"],
            "server": call.server or None,
            "server_source": found.sources["server"],
            "tool": call.tool,
            "roles": list(call.roles),
            "scopes": list(call.scopes),
            **{key: source for key, source in found.sources.items() if key.endswith("_from")},
        },
        "policy": source_as_json(policy, file, is_starter=is_starter),
        "store": {"readable": not found.failure, "reason": found.failure or None},
        "rules": [
            {
                "number": one.at + 1,
                **rule_as_json(one.rule, is_starter=is_starter),
                "status": one.status.replace(" ", "_"),
                "reason": one.reason or None,
                "overridden_by": None if one.winner is None else one.winner + 1,
                "narrower_in": list(one.narrower_in),
                "limits": [_limit_as_json(left, known=not found.failure) for left in _headrooms(found, one)],
            }
            for one in found.matches
        ],
        "next": None if verdict is None else _verdict_as_json(verdict) | ({"held": True} if found.is_held else {}),
    }


def _limit_as_json(left: Headroom, *, known: bool) -> dict[str, object]:
    """A limit and its quota left. With `known` false, or if it depends on arguments, counts and wait are null."""
    known = known and left.is_known
    return {
        **left.reported.members(),
        **({"cost": left.cost} if left.reported.counts == "cost" else {}),
        "counter": None if left.counter is None else counter_text(left.counter.label),
        "count": left.used if known else None,
        "remaining": left.remaining if known else None,
        "retry_after_ms": ms_up(left.retry_after_us) if known and left.retry_after_us is not None else None,
    }


def _verdict_as_json(verdict: Verdict) -> dict[str, object]:
    values: dict[str, object] = {
        "decision": verdict.decision,
        **(verdict.reported.members() if verdict.reported else {}),
        "reason": verdict.reason,
        "cost": verdict.cost,
        "in_flight": verdict.in_flight,
        "count": verdict.count,
        "remaining": verdict.remaining,
        "retry_after_ms": None if verdict.retry_after_us is None else ms_up(verdict.retry_after_us),
    }
    return {key: value for key, value in values.items() if value is not None}


def print_all(found: Explanation) -> None:
    """Print the call, what each rule does to it, and the decision on the next such call."""
    _print_call(found)
    if sys.stdout.isatty():
        _print_table(found)
    else:
        _print_plain(found)
    click.echo()
    paragraph(f"Next call: {_next(found)}")


def _print_call(found: Explanation) -> None:
    call, sources = found.call, found.sources
    paragraph(f"call of {call.tool}")
    for key in ("user", "agent", "server"):
        place = sources.get(f"{key}_from", "")
        remarks = [
            _SOURCES.get(sources[key], ""),
            "" if place.startswith("--") else place,
            found.agent_open if key == "agent" else "",
        ]
        remark = "; ".join(filter(None, remarks))
        paragraph(f"{key + ':':8}{getattr(call, key) or '-'}{f' ({remark})' if remark else ''}", indent="  ")
    for key, values in (("roles", call.roles), ("scopes", call.scopes)):
        if values:
            paragraph(f"{key + ':':8}{' '.join(values)}", indent="  ")
    if found.failure:
        paragraph(f"the store cannot be read, so the counts are unknown: {found.failure}")


def _print_plain(found: Explanation) -> None:
    for status, heading in _HEADINGS.items():
        matches = [one for one in found.matches if one.status == status]
        if matches:
            click.echo(f"\n{heading}:")
        for one in matches:
            paragraph(f"{one.at + 1}. {one.rule.limits_text}  {named(one.rule)}{observed(one.rule)}")
            for line in _lines(found, one):
                paragraph(line, indent="    ")


def _print_table(found: Explanation) -> None:
    from rich.text import Text

    console, table = new_table()
    table.add_column("RULE", overflow="fold", ratio=2)
    table.add_column("LIMIT", overflow="fold", max_width=12)
    table.add_column("STATUS", overflow="fold", max_width=10)
    table.add_column("REASON, OR QUOTA LEFT", overflow="fold", ratio=3)
    styles = {"applies": "green", "overridden": "yellow", "no match": "dim"}
    for one in found.matches:
        table.add_row(
            Text(printable(f"{one.at + 1}. {named(one.rule)}{observed(one.rule)}")),
            Text(printable(one.rule.limits_text).replace(" ", "\n")),
            Text(one.status, style=styles[one.status]),
            Text("\n".join(printable(line) for line in _lines(found, one))),
        )
    click.echo()
    console.print(table)


def _lines(found: Explanation, one: RuleMatch) -> list[str]:
    """Why a rule does not apply, or what is left of each of its limits."""
    if one.reason:
        return [one.reason]
    if one.rule.deny:
        return ["denies the call"]
    return [_line(found, headroom) for headroom in _headrooms(found, one)] or ["counts nothing"]


def _headrooms(found: Explanation, one: RuleMatch) -> Sequence[Headroom]:
    """What is left of each limit; of none if the rule is overridden, since another part of the rule may apply."""
    return found.headrooms.get(one.at, ()) if one.status == "applies" else ()


def _line(found: Explanation, left: Headroom) -> str:
    """What is left of a limit."""
    assert left.counter is not None  # noqa: S101 - only `deny` has none
    limit, whose = left.reported.limit_text, counter_text(left.counter.label)
    if not left.is_known:
        return f"{limit}: what is left depends on the arguments; give them with --arguments ({whose})"
    used = "in flight" if left.reported.counts == "concurrent" else "used"
    counts = "" if found.failure else f"{left.used:,} {used}, {left.remaining:,} left for "
    cost = ""
    if left.reported.counts == "cost":
        cost = f"; the call costs {left.cost:,}" + (", more than the whole limit" if left.is_too_costly else "")
    return f"{limit}: {counts}{whose}{cost}"


def _next(found: Explanation) -> str:
    """The decision on the next such call."""
    verdict = found.verdict
    if found.failure:
        return "unknown, because the store cannot be read"
    if verdict is None and found.is_refused:
        return "no room, whatever the arguments are; to see for how long, give them with --arguments"
    if verdict is None:
        return "it depends on the arguments; give them with --arguments"
    reported = verdict.reported
    if reported is None:
        return "allowed; no rule limits it"
    if reported.limit is None:
        return f"{verdict.decision} by the rule {reported.rule}"
    limit = f"{reported.limit_text} (rule {reported.rule})"
    if verdict.decision == "allowed":
        return f"allowed; then {verdict.remaining:,} left of {limit}"
    held = "waits for room; without room it is " if found.is_held else ""
    return f"{held}{verdict.decision} by {limit}; {_when(verdict)}"


def _when(verdict: Verdict) -> str:
    """When a refused call has room."""
    if verdict.retry_after_us is not None:
        return f"retry in {-(-verdict.retry_after_us // 1_000_000):,} s"
    if verdict.reason == "concurrent":
        return "retry when a call in flight has ended"
    return "waiting does not help"
