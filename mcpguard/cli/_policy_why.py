"""`mcpguard policy explain`: prints one call as the policy sees it, and what the counters hold for it now."""

from collections.abc import Iterable
from pathlib import Path
from typing import Final

import click

from mcpguard.cli._counters import Counted
from mcpguard.cli._policy_show import named
from mcpguard.cli._text import new_table, paragraph
from mcpguard.core.identity import parse_agent
from mcpguard.core.policy import Policy
from mcpguard.core.policy_match import Headroom, RuleMatch
from mcpguard.core.text import printable
from mcpguard.core.times import ms_up
from mcpguard.core.verdict import Verdict
from mcpguard.errors import ConfigError, UsageError
from mcpguard.policy_explaining import Explanation

_SAID: Final = {
    "os": "the account",
    "jwt": "the token",
    "audit": "as in the last call of this tool",
    "unknown": "not known; name it with --server",
}
"""What is said of a source; of `config` its place."""

_HEADINGS: Final = {"applies": "Applies", "overridden": "Overridden", "no match": "Does not match"}


def require_names(given: Iterable[tuple[str, str | None]]) -> None:
    """Refuse what cannot name somebody or something: a call has a user, not a pattern of users.

    Args:
        given: Options and their values; None for one that is not given.

    Raises:
        UsageError: A value is empty or a pattern, or an agent does not have three parts.
    """
    for option, value in given:
        if value == "":
            raise UsageError(f"{option}: it is empty", "name one, or leave the option out")
        if value is not None and "*" in value:
            raise UsageError(f"{option}: {value!r} is a pattern", "a call has names of its own; patterns are for rules")
        if value and option == "--agent":
            try:
                parse_agent(value, where=option)
            except ConfigError as error:
                raise UsageError(error.message, error.hint) from error


def as_json(found: Explanation, policy: Policy, file: Path, *, is_starter: bool) -> dict[str, object]:
    """An explanation for programs; counts are null where the store cannot be read."""
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
        "policy": {
            "file": None if is_starter else str(file),
            "starter": is_starter,
            "mode": "observe" if policy.observe else "enforce",
        },
        "store": {"readable": not found.failure, "reason": found.failure or None},
        "rules": [
            {
                "number": one.at + 1,
                "rule": one.rule.text,
                "limit": one.rule.limit_text.split(" "),
                "mode": "observe" if one.rule.observe else "enforce",
                "line": None if is_starter or not one.rule.line else one.rule.line,
                "name": one.rule.name or None,
                "status": one.status.replace(" ", "_"),
                "reason": one.reason or None,
                "overridden_by": None if one.winner is None else one.winner + 1,
                "narrower_in": list(one.narrower_in),
                "limits": [_room_as_json(room, known=not found.failure) for room in found.headrooms.get(one.at, [])],
            }
            for one in found.matches
        ],
        "next": None if verdict is None else _verdict_as_json(verdict),
    }


def _room_as_json(room: Headroom, *, known: bool) -> dict[str, object]:
    counter = None if room.counter is None else Counted.of(room.counter.label)
    return {
        **room.reported.members(),
        "counter": None if counter is None else counter.text,
        "count": room.used if known else None,
        "remaining": room.remaining if known else None,
        "retry_after_ms": ms_up(room.retry_after_us) if known and room.retry_after_us is not None else None,
    }


def _verdict_as_json(verdict: Verdict) -> dict[str, object]:
    values: dict[str, object] = {
        "decision": verdict.decision,
        **(verdict.reported.members() if verdict.reported else {}),
        "count": verdict.count,
        "remaining": verdict.remaining,
        "retry_after_ms": None if verdict.retry_after_us is None else ms_up(verdict.retry_after_us),
    }
    return {key: value for key, value in values.items() if value is not None}


def print_subject(found: Explanation) -> None:
    """Print what is explained, and what was filled in."""
    call, sources = found.call, found.sources
    paragraph(f"call of {call.tool}")
    for key in ("user", "agent", "server"):
        place = sources.get(f"{key}_from", "")
        remarks = [
            _SAID.get(sources[key], ""),
            "" if place.startswith("--") else place,
            found.agent_open if key == "agent" else "",
        ]
        remark = "; ".join(filter(None, remarks))
        paragraph(f"{key + ':':8}{getattr(call, key) or '-'}{f' ({remark})' if remark else ''}", indent="  ")
    for key, values in (("roles", call.roles), ("scopes", call.scopes)):
        if values:
            paragraph(f"{key + ':':8}{' '.join(values)}", indent="  ")
    if found.failure:
        paragraph(f"the store cannot be read, so that nothing is known of the counters: {found.failure}")


def print_plain(found: Explanation) -> None:
    """Print the rules by what they are to the call."""
    for status, heading in _HEADINGS.items():
        those = [one for one in found.matches if one.status == status]
        if those:
            click.echo(f"\n{heading}:")
        for one in those:
            paragraph(f"{one.at + 1}. {one.rule.limit_text}  {named(one.rule)}{_observed(one)}")
            for line in _lines(found, one):
                paragraph(line, indent="    ")


def print_table(found: Explanation) -> None:
    """Print the rules as a table for a terminal."""
    from rich.text import Text

    console, table = new_table()
    table.add_column("RULE", overflow="fold", ratio=2)
    table.add_column("LIMIT", overflow="fold", max_width=12)
    table.add_column("STATUS", overflow="fold", max_width=10)
    table.add_column("WHY, AND WHAT IS LEFT", overflow="fold", ratio=3)
    styles = {"applies": "green", "overridden": "yellow", "no match": "dim"}
    for one in found.matches:
        table.add_row(
            Text(printable(f"{one.at + 1}. {named(one.rule)}{_observed(one)}")),
            Text(printable(one.rule.limit_text).replace(" ", "\n")),
            Text(one.status, style=styles[one.status]),
            Text("\n".join(printable(line) for line in _lines(found, one))),
        )
    click.echo()
    console.print(table)


def _observed(one: RuleMatch) -> str:
    return " [reports only]" if one.rule.observe else ""


def _lines(found: Explanation, one: RuleMatch) -> list[str]:
    """Why a rule does not apply, or what is left of each of its limits."""
    if one.reason:
        return [one.reason]
    if one.rule.deny:
        return ["denies the call"]
    if not one.rule.rates:
        return ["counts nothing"]
    lines = []
    for room in found.headrooms[one.at]:
        assert room.counter is not None  # noqa: S101 - only `deny` has none
        held = "" if found.failure else f"{room.used:,} used, {room.remaining:,} left"
        counter = Counted.of(room.counter.label).text
        lines.append(f"{room.reported.limit}/{room.reported.window}: {held + ' of ' if held else ''}{counter}")
    return lines


def print_next(found: Explanation) -> None:
    """Print what the next such call would get."""
    click.echo()
    paragraph(f"Next call: {_next(found)}")


def _next(found: Explanation) -> str:
    verdict = found.verdict
    if verdict is None:
        return "not known, since the store cannot be read"
    reported = verdict.reported
    if reported is None:
        return "allowed; no rule limits it"
    if reported.limit is None:
        return f"{verdict.decision} by {reported.rule}"
    by = f"{reported.limit}/{reported.window} of {reported.rule}"
    if verdict.decision == "allowed":
        return f"allowed; {verdict.remaining:,} left after it by {by}"
    wait_s = -(-(verdict.retry_after_us or 0) // 1_000_000)
    return f"{verdict.decision} by {by}; room in {wait_s:,} s"
