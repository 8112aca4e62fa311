"""`mcpguard policy suggest`: suggests limits from the audit log or for a server's tools, as JSON, as TOML, as a diff."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from mcpguard import config
from mcpguard.cli import run
from mcpguard.cli.clients import entry_options
from mcpguard.cli.commands import Command
from mcpguard.cli.options import files, json_option, policy_option, store_option
from mcpguard.cli.present import coloured_diff, echo, echo_json
from mcpguard.config import span_us
from mcpguard.errors import ExitStatus, McpguardError, UsageError
from mcpguard.policy.model import server_named
from mcpguard.policy.suggest import FITS, HEADROOM, Findings, Suggestion
from mcpguard.reading.suggesting import SuggestedPolicy, suggest_for_server
from mcpguard.reading.suggesting import suggest as suggested
from mcpguard.stores.clock import wall_us
from mcpguard.text.printing import amount, plural, printable
from mcpguard.text.times import rfc3339


def _as_json(findings: Findings, found: SuggestedPolicy, path: Path, since: str) -> dict[str, object]:
    """The suggestions as JSON."""
    return {
        "since": since,
        "calls": findings.calls,
        "first": rfc3339(findings.first_us) if findings.calls else None,
        "last": rfc3339(findings.last_us) if findings.calls else None,
        "enough": findings.is_enough,
        "headroom": HEADROOM,
        "file": None if found.policy.is_starter else str(path),
        "starter": found.policy.is_starter,
        "rules": [_suggestion_as_json(one) for one in findings.suggestions],
        "tools_left_out": findings.tools_left_out,
        "toml": found.after,
        "diff": found.diff(path),
    }


def _suggestion_as_json(suggestion: Suggestion) -> dict[str, object]:
    return {
        "suggestion": suggestion.kind,
        "number": suggestion.at + 1 if suggestion.at >= 0 else None,
        "rule": suggestion.table,
        "calls": suggestion.calls,
        "denied": suggestion.denied,
        "limits": [
            {
                "limit": f"{one.n}/{one.window}",
                "was": None if one.was is None else f"{one.was}/{one.window}",
                "peak": one.peak.calls,
                "peak_by": one.peak.who or None,
                "peak_from": rfc3339(one.peak.begin_us) if one.peak.calls else None,
                "reason": one.reason,
                "burst": bool(one.burst),
            }
            for one in suggestion.limits
        ],
    }


def _print_summary(findings: Findings, found: SuggestedPolicy, path: Path, since: str) -> None:
    """Say on stderr what the suggestions are based on, whether that is too little, and what becomes of the other rules."""
    low, high = FITS
    first, last = (f"{rfc3339(at_us)[:16].replace('T', ' ')}" for at_us in (findings.first_us, findings.last_us))
    _say(f"{amount(findings.calls, 'call')} in the last {since}, from {first} to {last} UTC")
    if not findings.is_enough:
        _say(
            "warning: too little history: these limits may be too low for an ordinary day;"
            " observe for a few days (mcpguard policy mode observe), then ask again"
        )
    _say(f"limits are {HEADROOM} times the busiest window, rounded up; a limit of {low:g} to {high:g} times stays")
    if found.policy.is_starter:
        _say(f"the starter policy is in force; to write it to {path}: mcpguard policy init")
    for one in findings.suggestions:
        name = f"rule {one.at + 1} ({found.policy.rules[one.at].text})" if one.at >= 0 else _text(one)
        denied = f"; it denied {amount(one.denied, 'call')}" if one.denied else ""
        if one.kind == "few":
            _say(f"{name}: too few calls to suggest a limit ({one.calls}){denied}")
        elif one.kind == "keep":
            kept = ", ".join(f"{limit.why}: {limit.busiest}" for limit in one.limits)
            _say(f"{name}: {kept}{denied}")
        elif denied:
            _say(name + denied)
        for limit in one.limits:
            if limit.burst:
                begin = rfc3339(limit.peak.begin_us)[:16].replace("T", " ")
                calls = f"the {limit.peak.calls:,} calls from {begin} UTC on"
                _say(f"warning: {name}: {limit.n}/{limit.window} is too high if {calls} were a loop: {limit.burst}")
    if findings.tools_left_out:
        _say(f"{plural(findings.tools_left_out, 'more tool')} with fewer calls: no new rules")


def _text(suggestion: Suggestion) -> str:
    return " ".join(f"{key}={value}" for key, value in suggestion.table.items() if isinstance(value, str))


def _say(text: str) -> None:
    echo(text, err=True)


@click.command("suggest", Command, context_settings=run.run.context_settings)
@click.option("--since", metavar="D", help="How far back to look: 12h, 7d, 4w …  [default: 7d]")
@click.option("--toml", "only", flag_value="toml", help="Print only the suggested policy.")
@click.option("--diff", "only", flag_value="diff", help="Print only the difference from the policy in force, for patch.")
@entry_options
@policy_option
@store_option
@json_option
@click.argument("argv", nargs=-1, type=click.UNPROCESSED, metavar="[[--] COMMAND [ARG]...]", shell_complete=files)
def suggest(
    argv: Sequence[str], since: str | None, only: str | None, client: str | None, as_json: bool, **options: Any
) -> int | None:
    """Suggest limits from the calls in the audit log, or for the tools of a server that is started.

    Prints a policy, and its difference from the policy in force. Nothing is written.

    Without COMMAND and --server: a suggested limit is twice the calls in the busiest window, rounded up. It is never below what
    was seen. Each has its reason beside it. Warns of a limit that comes from a single burst, which may be a loop. Limits that
    fit, and rules that deny, stay. So do caps, limits on cost or errors, and limits that count equal arguments separately.

    With COMMAND or --server: starts that stdio MCP server behind mcpguard, reads its list of tools, and ends it. No tool is
    called. Suggests rules for the tools that no rule of the policy is meant for: by their annotations, which are hints that
    nobody has checked, and without annotations by their names. Each rule has its reason above it.

    \b
    Examples:
      mcpguard policy suggest --since 7d
      mcpguard policy suggest --toml > suggested.toml
      mcpguard policy suggest --diff | patch "$(mcpguard policy path)"
      mcpguard policy suggest --server crm -- npx -y @acme/crm-server
    """
    if argv or options["server"] or client:
        if since is not None:
            raise UsageError("--since: the tools of a server are not in the audit log", "leave out --since, or the server")
        _for_server(argv, options, client, only, as_json=as_json)
        return None
    del options["server"]
    settings, since = config.load(os.environ, **options), since or "7d"
    findings, found = suggested(settings, since_us=wall_us() - span_us(since, where="--since"))
    if as_json:
        echo_json(_as_json(findings, found, settings.policy, since), indent=2)
        return ExitStatus.OK if findings.calls else ExitStatus.FAILURE
    if not findings.calls:
        hint = "let servers run with mcpguard for a few days; to deny nothing during that time: mcpguard policy mode observe"
        raise McpguardError(f"too little history: no calls in the last {since}", hint)
    _print_summary(findings, found, settings.policy, since)
    _print(found.after, found.diff(settings.policy), only, "no limit needs a change")
    return None


def _for_server(argv: Sequence[str], options: dict[str, Any], client: str | None, only: str | None, *, as_json: bool) -> None:
    """Suggest limits for the tools of a server."""
    from mcpguard.cli.doctor import server_command
    from mcpguard.doctor.server import listed, named  # loads mcp

    words, options, folder = server_command(argv, options, client, command="policy suggest")
    settings = config.load(os.environ, **{key: value for key, value in options.items() if key not in {"observe", "quiet"}})
    server = named(options["server"], words)
    says = listed(server, words, options=run.words(options), folder=folder)
    if not says.tools:
        raise McpguardError(f"{printable(server)} has no tools", "some servers have tools only after they have been configured")
    findings, found = suggest_for_server(settings, server_named(server), says.tools)
    diff = found.diff(settings.policy)
    if as_json:
        rules = [one._asdict() | {"kind": one.kind.what, "limits": one.kind.limits} for one in findings.rules]
        echo_json({"server": server} | findings._asdict() | {"rules": rules, "toml": found.after, "diff": diff}, indent=2)
        return
    if diff:
        _say(f"{server}: {says.name}, {plural(len(says.tools), 'tool')}; annotations are hints that nobody has checked")
        _say("the limits are a start: observe for a week (mcpguard policy mode observe), then mcpguard policy suggest")
    for names, why in ((findings.kept, "the policy has rules for them"), (findings.left_out, "* in a rule is any text")):
        if names:
            _say(f"left out, because {why}: {', '.join(names)}")
    _print(found.after, diff, only, "the policy has rules for its tools")


def _print(after: str, diff: str, only: str | None, nothing: str) -> None:
    """Print a suggested policy and its difference from the policy in force, or only one of them."""
    if not diff:
        _say(f"nothing to suggest: {nothing}")
    if only != "diff" and (diff or only):
        _print_text(after)
    if not only and diff:
        click.echo()
    if only != "toml":
        _print_text(diff)


def _print_text(text: str) -> None:
    """Print a text of several lines; on a terminal in the colours of a diff."""
    is_terminal = sys.stdout.isatty()
    click.echo("".join(f"{coloured_diff(line)}\n" for line in text.splitlines()) if is_terminal else text, nl=False)
