"""`mcpguard policy explain`: shows which rules apply to a call, and what is left of their limits."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click

from mcpguard import config
from mcpguard.cli.commands import Command
from mcpguard.cli.options import files, json_option, name_option, policy_option, store_option, unseen
from mcpguard.cli.policy.show import named, print_source, rule_as_json, source_as_json
from mcpguard.cli.present import echo_json, paragraph, print_table, warn
from mcpguard.cli.usage import counter_text
from mcpguard.configured_identity import SOURCES
from mcpguard.errors import UsageError
from mcpguard.identity.caller import parse_agent
from mcpguard.identity.client_agents import told_session
from mcpguard.limiter.plan import SESSION
from mcpguard.policy.explain import Headroom, RuleMatch
from mcpguard.policy.file import load
from mcpguard.policy.model import Policy
from mcpguard.reading.explaining import Explanation, caller
from mcpguard.reading.explaining import explain as explained
from mcpguard.session.verdict import Verdict
from mcpguard.text.times import ms_up
from mcpguard.wire.frames import refuse_constant

_SOURCES: Final = SOURCES | {"default": ""}
"""The remark on a value's source. For the source `config` it is the option, variable or file."""

_HEADINGS: Final = {"applies": "Applies", "overridden": "Overridden", "no match": "Does not match"}
_STYLES: Final = {"applies": "green", "overridden": "yellow", "no match": "dim"}
_COLUMNS: Final = (
    {"header": "RULE", "ratio": 2},
    {"header": "LIMIT", "max_width": 12},
    {"header": "STATUS", "max_width": 10},
    {"header": "REASON, OR QUOTA LEFT", "ratio": 3},
)


def _require_names(**given: str | tuple[str, ...] | None) -> None:
    """Refuse patterns: a call has one user, not a pattern of users.

    Args:
        given: The values of options; None for an option that is not given.

    Raises:
        UsageError: A value is empty or a pattern.
    """
    for key, values in given.items():
        for value in values if isinstance(values, tuple) else (values,):
            if value == "":
                raise UsageError(f"--{key} is empty", f"give a name{'' if key == 'tool' else ', or leave the option out'}")
            if value is not None and "*" in value:
                raise UsageError(f"--{key}: {value!r} is a pattern", "give an exact name: only rules have patterns")


def _arguments_of(text: str | None) -> dict[str, object] | None:
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


def _as_json(found: Explanation, policy: Policy, file: Path) -> dict[str, object]:
    """An explanation as JSON. Counts are null if the store cannot be read."""
    call, verdict = found.call, found.verdict
    sources = {key if key.endswith("_from") else f"{key}_source": source for key, source in found.sources.items()}
    known = {key: value for key, value in call._asdict().items() if key != SESSION or value}
    return {
        "call": known | {"server": call.server or None} | sources,
        "policy": source_as_json(policy, file),
        "store": {"readable": not found.failure, "reason": found.failure or None},
        "rules": [
            {
                "number": one.at + 1,
                **rule_as_json(one.rule),
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
    wait = {"retry_after_ms": None if verdict.retry_after_us is None else ms_up(verdict.retry_after_us)}
    values = {key: getattr(verdict, key) for key in ("reason", "cost", "in_flight", "count", "remaining")} | wait
    reported = verdict.reported.members() if verdict.reported else {}
    return {"decision": verdict.decision} | reported | {key: value for key, value in values.items() if value is not None}


def _print(found: Explanation) -> None:
    """Print the call, what each rule does to it, and the decision on the next such call."""
    _print_call(found)
    if sys.stdout.isatty():
        click.echo()
        print_table([_cells(found, one) for one in found.matches], _COLUMNS)
    for status, heading in () if sys.stdout.isatty() else _HEADINGS.items():
        matches = [one for one in found.matches if one.status == status]
        if matches:
            click.echo(f"\n{heading}:")
        for one in matches:
            paragraph(f"{one.at + 1}. {one.rule.limits_text}  {named(one.rule)}")
            for line in _lines(found, one):
                paragraph(line, indent="    ")
    click.echo()
    paragraph(f"Next call: {_next(found)}")


def _print_call(found: Explanation) -> None:
    call, sources = found.call, found.sources
    paragraph(f"call of {call.tool}")
    for key in ("user", "agent", "server"):
        place = sources.get(f"{key}_from", "")
        remarks = (_SOURCES.get(sources[key], ""), "" if place.startswith("--") else place, found.agent_open * (key == "agent"))
        remark = "; ".join(filter(None, remarks))
        paragraph(f"{key + ':':8}{getattr(call, key) or '-'}{f' ({remark})' if remark else ''}", indent="  ")
    for key, values in (("roles", call.roles), ("scopes", call.scopes), ("session", (call.session,) if call.session else ())):
        if values:
            paragraph(f"{key + ':':7} {' '.join(values)}", indent="  ")
    if found.failure:
        paragraph(f"the store cannot be read, so the counts are unknown: {found.failure}")


def _cells(found: Explanation, one: RuleMatch) -> Sequence[str | tuple[str, str]]:
    """The cells of a rule in the table."""
    rule, limits = f"{one.at + 1}. {named(one.rule)}", one.rule.limits_text.replace(" ", "\n")
    return rule, limits, (one.status, _STYLES[one.status]), "\n".join(_lines(found, one))


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


@click.command("explain", Command)
@name_option("user", "U", "The user who calls. Default: the token, MCPGUARD_USER, config.toml, the OS account.")
@name_option("agent", "A", "client::tier::name. Default: MCPGUARD_AGENT, config.toml, an unknown client.")
@name_option("tool", "T", "The tool that is called.", required=True)
@name_option("server", "S", "The tool's server. Default: MCPGUARD_SERVER, the server of the tool's last call.")
@name_option("role", "R", "A role of the caller. May be repeated.", multiple=True)
@name_option("scope", "S", "A scope of the caller. May be repeated.", multiple=True)
@click.option(
    "--arguments", metavar="JSON", help="The call's arguments, a JSON object, for rules that count equal arguments separately."
)
@name_option("session", "ID", "The session of the call. Default: CLAUDE_CODE_SESSION_ID, a new session.")
@click.option(
    "--token", metavar="[FILE]", is_flag=False, flag_value="", help="Take the caller from the token, or from the token in FILE."
)
@policy_option
@click.option(
    "--config",
    "config_file",
    metavar="F",
    shell_complete=files,
    help="The settings file. Default: MCPGUARD_CONFIG, the account's.",
)
@store_option
@json_option
def explain(
    tool: str, server: str | None, role: tuple[str, ...], scope: tuple[str, ...], arguments: str | None, session: str | None,
    token: str | None, config_file: str | None, as_json: bool, user: str | None, agent: str | None, **options: str | None,
) -> None:  # fmt: skip
    """Show which rules apply to one call, and what is left of their limits. Nothing is counted.

    Shows which rules apply, which are overridden and by which rule, which do not match and why, what the counters hold, and
    the decision on the next such call. If you leave an option out, its value is that of a server started here. If the
    token names the agent, --agent does not change it.

    \b
    Examples:
      mcpguard policy explain --user bob@acme.com --tool search_customers
      mcpguard policy explain --agent Cursor::background::nightly --tool search
      mcpguard policy explain --token --tool delete_user
    """
    if token is not None and user is not None:
        raise UsageError("--user and --token both name the user", "give only one of them")
    _require_names(user=user, agent=agent, tool=tool, server=server, session=session, role=role, scope=scope)
    if agent:
        parse_agent(agent, where="--agent")
    given_arguments = _arguments_of(arguments)
    settings = config.load(os.environ, config=config_file, server=server, **options)
    policy = load(settings.policy, named=settings.policy_named)
    who = caller(settings, user=user, agent=agent, token=token, roles=role, scopes=scope, notify=warn)
    places = {key: config.place(key, option, os.environ) for key, option in (("user", user), ("agent", agent))}
    called = server or os.environ.get("MCPGUARD_SERVER")
    for note in unseen(settings, {"user": user, "agent": agent, "server": server, "tool": tool}):
        warn(note)
    found = explained(
        settings,
        policy,
        who,
        tool=tool,
        server=called,
        arguments=given_arguments,
        session=told_session(os.environ) if session is None else session,
        places=places,
        notify=warn,
    )
    if as_json:
        echo_json(_as_json(found, policy, settings.policy), indent=2)
        return
    print_source(policy, settings.policy)
    _print(found)
