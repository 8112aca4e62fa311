"""Prints a policy with a sentence for each rule: as JSON, as text, as a table."""

from pathlib import Path
from typing import Final

from mcpguard.cli._text import new_table, paragraph
from mcpguard.core.policy.explain import sentence
from mcpguard.core.policy.model import AXES, Policy, Rule
from mcpguard.core.text import printable

NO_RULES: Final = "no rules: nothing is limited"
"""Printed for a policy without rules."""


def as_json(policy: Policy, path: Path, *, is_starter: bool) -> dict[str, object]:
    """A policy with a sentence for each rule.

    Args:
        policy: The policy.
        path: Its file, which may be missing.
        is_starter: Whether this is the starter policy, because there is no file.
    """
    return {
        **source_as_json(policy, path, is_starter=is_starter),
        "policy": policy.digest,
        "rules": [
            {
                **rule_as_json(rule, is_starter=is_starter),
                "axis": rule.axis,
                "per": [axis for axis in AXES if axis in rule.per],
                "sentence": sentence(rule),
            }
            for rule in policy.rules
        ],
    }


def source_as_json(policy: Policy, path: Path, *, is_starter: bool) -> dict[str, object]:
    """Where a policy comes from, and its mode."""
    mode = "observe" if policy.observe else "enforce"
    return {"file": None if is_starter else str(path), "starter": is_starter, "mode": mode}


def rule_as_json(rule: Rule, *, is_starter: bool) -> dict[str, object]:
    """A rule as its author wrote it. A rule of the starter policy has no line."""
    return {
        "rule": rule.text,
        "limit": rule.limit_text.split(" "),
        "mode": "observe" if rule.observe else "enforce",
        "line": None if is_starter or not rule.line else rule.line,
        "name": rule.name or None,
    }


def print_plain(policy: Policy) -> None:
    """Print each rule and its sentence."""
    for rule in policy.rules:
        paragraph(f"{rule.limit_text}  {named(rule)}")
        paragraph(sentence(rule), indent="    ")


def print_table(policy: Policy) -> None:
    """Print a table of the rules for a terminal."""
    from rich.text import Text

    console, table = new_table()
    table.add_column("LIMIT", overflow="fold", max_width=16)
    table.add_column("RULE", overflow="fold", ratio=2)
    table.add_column("MEANING", overflow="fold", ratio=3)
    for rule in policy.rules:
        limit = Text(printable(rule.limit_text).replace(" ", "\n"), style="red" if rule.deny else "cyan")
        table.add_row(limit, Text(printable(named(rule))), Text(printable(sentence(rule))))
    console.print(table)


def named(rule: Rule) -> str:
    """A rule's text and the name that its author gave it."""
    return f"{rule.text} ({rule.name})" if rule.name else rule.text
