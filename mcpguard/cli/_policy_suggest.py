"""Prints what `mcpguard policy suggest` finds: as JSON, as TOML, as a diff."""

import sys
from pathlib import Path

import click

from mcpguard.cli._text import is_coloured
from mcpguard.policy.suggest import FITS, HEADROOM, Suggestion
from mcpguard.reading.suggesting import Suggested
from mcpguard.text.printing import amount, plural, printable
from mcpguard.text.times import rfc3339


def as_json(found: Suggested, path: Path, since: str) -> dict[str, object]:
    """The suggestions as JSON."""
    findings = found.findings
    return {
        "since": since,
        "calls": findings.calls,
        "first": rfc3339(findings.first_us) if findings.calls else None,
        "last": rfc3339(findings.last_us) if findings.calls else None,
        "enough": findings.is_enough,
        "headroom": HEADROOM,
        "file": None if found.is_starter else str(path),
        "starter": found.is_starter,
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


def print_summary(found: Suggested, path: Path, since: str) -> None:
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
    if found.is_starter:
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


def print_toml(text: str) -> None:
    """Print a policy."""
    if not sys.stdout.isatty():
        click.echo(text, nl=False)
        return
    for line in text.splitlines():
        click.echo(_shown(line))


def print_diff(diff: str) -> None:
    """Print a diff, coloured on a terminal."""
    if not sys.stdout.isatty():
        click.echo(diff, nl=False)
        return
    colours = {"+": "green", "-": "red", "@": "cyan"} if is_coloured() else {}
    for line in diff.splitlines():
        click.echo(click.style(_shown(line), fg=colours.get(line[:1])) if colours else _shown(line))


def _shown(line: str) -> str:
    """A line of a file on a terminal, control characters escaped."""
    return printable(line.expandtabs())


def _say(text: str) -> None:
    click.echo(printable(text), err=True)
