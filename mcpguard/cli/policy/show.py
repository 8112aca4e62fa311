"""`mcpguard policy show`: prints each rule with a sentence that explains it."""

import sys
from pathlib import Path
from typing import Final

import click

from mcpguard.cli.commands import Command
from mcpguard.cli.options import json_option, with_settings
from mcpguard.cli.present import echo, echo_json, paragraph, print_table
from mcpguard.config import Settings
from mcpguard.policy.explain import cost_sentence, overriding, sentences
from mcpguard.policy.file import load
from mcpguard.policy.model import PER, Cost, Policy, Rule
from mcpguard.text.printing import plural
from mcpguard.text.times import span

NO_RULES: Final = "no rules: nothing is limited"
"""Printed for a policy without rules."""


def _as_json(policy: Policy, path: Path) -> dict[str, object]:
    """A policy with a sentence for each rule.

    Args:
        policy: The policy.
        path: Its file, which may be missing.
    """
    return {
        **source_as_json(policy, path),
        "policy": policy.digest,
        "wait": span(policy.wait_us) if policy.wait_us else None,
        "costs": [_cost_as_json(cost) for cost in policy.costs],
        "rules": [
            {
                "number": at + 1,
                **rule_as_json(rule),
                "axis": rule.axis,
                "per": [axis for axis in PER if axis in rule.per],
                "overridden_by": [other + 1 for other in narrower],
                "sentence": text,
            }
            for at, (rule, narrower, text) in enumerate(zip(policy.rules, overriding(policy), sentences(policy), strict=True))
        ],
    }


def source_as_json(policy: Policy, path: Path) -> dict[str, object]:
    """Where a policy comes from, and its mode."""
    mode = "observe" if policy.observe else "enforce"
    return {"file": None if policy.is_starter else str(path), "starter": policy.is_starter, "mode": mode}


def rule_as_json(rule: Rule) -> dict[str, object]:
    """A rule as its author wrote it. A rule of the starter policy has no line."""
    return {
        "rule": rule.text,
        "limit": rule.limit_text.split(),
        "count": rule.counts if rule.has_limit else None,
        "concurrent": "unlimited" if rule.concurrent == 0 else rule.concurrent,
        "wait": None if rule.wait_us is None else span(rule.wait_us),
        "warn": None if rule.warn is None else f"{rule.warn}%",
        "mode": "observe" if rule.observe else "enforce",
        "line": rule.line or None,
        "name": rule.name or None,
    }


def _cost_as_json(cost: Cost) -> dict[str, object]:
    selectors = {key: cost.pattern.selectors.get(key, (None,))[0] for key in ("tool", "server")}
    return {**selectors, "cost": cost.units, "line": cost.pattern.line or None}


_COLUMNS: Final = (
    {"header": "#", "justify": "right"},
    {"header": "LIMIT", "max_width": 16},
    {"header": "RULE", "ratio": 2},
    {"header": "MEANING", "ratio": 3},
)


def _print_rules(policy: Policy, *, as_table: bool) -> None:
    """Print each rule and its sentence."""
    found = [
        (f"{at + 1}", rule.limits_text, named(rule), text, "red" if rule.deny else "cyan")
        for at, (rule, text) in enumerate(zip(policy.rules, sentences(policy), strict=True))
    ]
    if as_table:
        rows = [(number, (limit.replace(" ", "\n"), style), rule, text) for number, limit, rule, text, style in found]
        print_table(rows, _COLUMNS)
        return
    for number, limit, rule, text, _ in found:
        paragraph(f"{number}. {limit}  {rule}")
        paragraph(text, indent="    ")


def counted(policy: Policy) -> str:
    """The number of rules, or that nothing is limited."""
    return plural(len(policy.rules), "rule") if policy.rules else NO_RULES


def named(rule: Rule) -> str:
    """A rule's text, the name that its author gave it, and a mark in observe mode."""
    return f"{rule.text}{f' ({rule.name})' if rule.name else ''}{' [observe mode]' if rule.observe else ''}"


@click.command("show", Command)
@with_settings("policy")
@json_option
def show(settings: Settings, as_json: bool) -> None:
    """Show where the policy comes from, and each rule with a sentence that explains it.

    \b
    Examples:
      mcpguard policy show
      mcpguard policy show --json
    """
    found = load(settings.policy, named=settings.policy_named)
    if as_json:
        echo_json(_as_json(found, settings.policy), indent=2)
        return
    print_source(found, settings.policy)
    click.echo()
    if not found.rules:
        click.echo(NO_RULES)
        return
    _print_rules(found, as_table=sys.stdout.isatty())
    if found.costs:
        click.echo("\nCosts:")
    for cost in found.costs:
        paragraph(cost_sentence(cost), indent="    ")


def print_source(policy: Policy, path: Path) -> None:
    """Print where a policy comes from, and what holds for all its rules."""
    echo(f"starter policy: no file at {path}" if policy.is_starter else f"policy: {path}")
    if policy.observe:
        click.echo("mode: observe (nothing is denied; calls that would be denied are logged)")
    if policy.wait_us:
        wait = span(policy.wait_us)
        click.echo(f"wait: {wait} (a refused call waits at most this long, if its rule has no wait)")
