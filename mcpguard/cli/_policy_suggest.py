"""Prints what `mcpguard policy suggest` finds: as JSON, as TOML, as a diff."""

import sys
from pathlib import Path

import click

from mcpguard.cli._text import is_coloured
from mcpguard.core.policy.explain import series
from mcpguard.core.policy.suggest import FITS, HEADROOM, LEAST_CALLS, Findings, Suggestion
from mcpguard.core.text import plural, printable
from mcpguard.core.times import rfc3339
from mcpguard.policy_suggesting import Suggested

_KINDS = {"change": "would change", "add": "new", "keep": "stays", "few": "too few calls"}


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
            }
            for one in suggestion.limits
        ],
    }


def warn_of_little(findings: Findings, since: str) -> None:
    """Say on stderr what the suggestions are based on, and whether that is too little."""
    first, last = rfc3339(findings.first_us), rfc3339(findings.last_us)
    _say(f"{plural(findings.calls, 'call')} in the last {since}, from {first} to {last}")
    if not findings.is_enough:
        _say(
            "warning: too little history: these limits may be too low for an ordinary day;"
            " observe for some days (mcpguard policy mode observe), then ask again"
        )


def print_summary(found: Suggested) -> None:
    """Say on stderr what becomes of each rule."""
    low, high = FITS
    _say(f"limits are {HEADROOM} times the busiest window, rounded up; a limit between {low:g} and {high:g} times stays")
    for one in found.findings.suggestions:
        text = (
            found.policy.rules[one.at].text if one.at >= 0 else " ".join(f"{key}={value}" for key, value in one.table.items())
        )
        name = f"rule {one.at + 1} ({text})" if one.at >= 0 else text
        why = f"{one.calls} of {LEAST_CALLS}" if one.kind == "few" else series([limit.reason for limit in one.limits])
        denied = f"; it denied {plural(one.denied, 'call')}" if one.denied else ""
        if one.kind in ("keep", "few") or denied:
            _say(f"{name}: {_KINDS[one.kind]}: {why}{denied}")
    if found.findings.tools_left_out:
        _say(f"{plural(found.findings.tools_left_out, 'more tool')} with fewer calls: no new rules")


def print_diff(diff: str) -> None:
    """Print a diff, coloured on a terminal."""
    colours = {"+": "green", "-": "red", "@": "cyan"} if sys.stdout.isatty() and is_coloured() else {}
    for line in diff.splitlines():
        click.echo(click.style(printable(line), fg=colours.get(line[:1])))


def _say(text: str) -> None:
    click.echo(printable(text), err=True)
