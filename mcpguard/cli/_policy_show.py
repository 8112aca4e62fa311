"""A policy in words: as JSON, as text, as a table."""

from pathlib import Path
from typing import Final

from mcpguard.cli._text import new_table, paragraph
from mcpguard.core.policy import AXES, Policy, Rule
from mcpguard.core.policy_explain import sentence
from mcpguard.core.text import printable

NO_RULES: Final = "no rules: nothing is limited"
"""What is said of a policy without rules."""


def as_json(policy: Policy, path: Path, *, is_starter: bool) -> dict[str, object]:
    """A policy with a sentence for each rule.

    Args:
        policy: The policy.
        path: Where it is, or would be.
        is_starter: Whether it is the starter policy, since there is no file.
    """
    return {
        "file": None if is_starter else str(path),
        "starter": is_starter,
        "mode": "observe" if policy.observe else "enforce",
        "policy": policy.digest,
        "rules": [
            {
                "rule": rule.text,
                "limit": rule.limit_text.split(" "),
                "mode": "observe" if rule.observe else "enforce",
                "axis": rule.axis,
                "per": [axis for axis in AXES if axis in rule.per],
                "line": None if is_starter or not rule.line else rule.line,
                "name": rule.name or None,
                "sentence": sentence(rule),
            }
            for rule in policy.rules
        ],
    }


def print_plain(policy: Policy) -> None:
    """Print each rule and its sentence."""
    for rule in policy.rules:
        paragraph(f"{rule.limit_text}  {named(rule)}")
        paragraph(sentence(rule), indent="    ")


def print_table(policy: Policy) -> None:
    """Print a table for a terminal."""
    from rich.text import Text

    console, table = new_table()
    table.add_column("LIMIT", overflow="fold", max_width=16)
    table.add_column("RULE", overflow="fold", ratio=2)
    table.add_column("IN WORDS", overflow="fold", ratio=3)
    for rule in policy.rules:
        limit = Text(printable(rule.limit_text).replace(" ", "\n"), style="red" if rule.deny else "cyan")
        table.add_row(limit, Text(printable(named(rule))), Text(printable(sentence(rule))))
    console.print(table)


def named(rule: Rule) -> str:
    """A rule's text, and what its author calls it."""
    return f"{rule.text} ({rule.name})" if rule.name else rule.text
