"""`mcpguard policy suggest`: suggests limits from the audit log, as JSON, as TOML, as a diff."""

import sys
from pathlib import Path

import click

from mcpguard.cli.base import Command
from mcpguard.cli.options import json_option, with_settings
from mcpguard.cli.present import coloured_diff, echo, echo_json
from mcpguard.config import Settings, span_us
from mcpguard.errors import ExitStatus, McpguardError
from mcpguard.policy.suggest import FITS, HEADROOM, Suggestion
from mcpguard.reading.suggesting import SuggestedPolicy
from mcpguard.reading.suggesting import suggest as suggested
from mcpguard.stores.clock import wall_us
from mcpguard.text.printing import amount, plural
from mcpguard.text.times import rfc3339


def _as_json(found: SuggestedPolicy, path: Path, since: str) -> dict[str, object]:
    """The suggestions as JSON."""
    findings = found.findings
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


def _print_summary(found: SuggestedPolicy, path: Path, since: str) -> None:
    """Say on stderr what the suggestions are based on, whether that is too little, and what becomes of the other rules."""
    findings, (low, high) = found.findings, FITS
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


@click.command("suggest", Command)
@click.option("--since", metavar="D", default="7d", show_default=True, help="How far back to look: 12h, 7d, 4w …")
@click.option("--toml", "only", flag_value="toml", help="Print only the suggested policy.")
@click.option("--diff", "only", flag_value="diff", help="Print only the difference from the policy in force, for patch.")
@with_settings("policy", "store")
@json_option
def suggest(settings: Settings, since: str, only: str | None, as_json: bool) -> int | None:
    """Suggest limits from the calls in the audit log, as a policy and as its difference from the policy in force.

    A suggested limit is twice the calls in the busiest window, rounded up. It is never below what was seen. Each has its
    reason beside it. Warns of a limit that comes from a single burst, which may be a loop. Limits that fit, and rules that
    deny, stay. So do caps, limits on cost or errors, and limits that count equal arguments separately. Nothing is written.

    \b
    Examples:
      mcpguard policy suggest --since 7d
      mcpguard policy suggest --toml > suggested.toml
      mcpguard policy suggest --diff | patch "$(mcpguard policy path)"
    """
    since_us = wall_us() - span_us(since, where="--since")
    found = suggested(settings, since_us=since_us)
    if as_json:
        echo_json(_as_json(found, settings.policy, since), indent=2)
        return ExitStatus.OK if found.findings.calls else ExitStatus.FAILURE
    if not found.findings.calls:
        hint = "let servers run with mcpguard for a few days; to deny nothing during that time: mcpguard policy mode observe"
        raise McpguardError(f"too little history: no calls in the last {since}", hint)
    _print_summary(found, settings.policy, since)
    diff = found.diff(settings.policy)
    if not diff:
        click.echo("nothing to suggest: no limit needs a change", err=True)
    if only != "diff" and (diff or only):
        _print_text(found.after)
    if not only and diff:
        click.echo()
    if only != "toml":
        _print_text(diff)
    return None


def _print_text(text: str) -> None:
    """Print a text of several lines; on a terminal in the colours of a diff."""
    is_terminal = sys.stdout.isatty()
    click.echo("".join(f"{coloured_diff(line)}\n" for line in text.splitlines()) if is_terminal else text, nl=False)
