"""Parses the text of a rule in reports and audit rows, and writes a rule as options of a command."""

import re
from typing import Final

from mcpguard.errors import PolicyError
from mcpguard.limiter.sliding import Counts
from mcpguard.policy.model import SELECTORS, Rule
from mcpguard.policy.parse import parse_rule

_SELECTION: Final = re.compile(rf"(?:^| )({'|'.join(SELECTORS)}|per)=")


def rule_of_text(text: str, limit: object, counts: Counts = "calls") -> Rule | None:
    """The rule with this `Rule.text` and this limit.

    Args:
        text: The rule's text.
        limit: A value of `limit` in a policy file; of `concurrent` for a cap on calls in flight.
        counts: What the limit counts; `concurrent` for such a cap.

    Returns:
        None if no rule has this text.
    """
    _, *parts = _SELECTION.split(text)
    table: dict[str, object] = dict(zip(parts[::2], parts[1::2], strict=True))
    for key in table.keys() & {"role", "scope", "per"}:
        table[key] = str(table[key]).split(",")
    if table.get("per") == ["none"]:
        table["per"] = []
    try:
        rule = parse_rule(table | _limit(limit, counts), where="rule")
    except PolicyError:
        return None
    return rule if rule.text == text else None


def _limit(limit: object, counts: Counts) -> dict[str, object]:
    if counts == "concurrent":
        return {"concurrent": limit}
    return {"limit": limit} if counts == "calls" else {"limit": limit, "count": counts}


def options_of(rule: Rule) -> list[str]:
    """The options of `policy set` for a rule's selectors and its `per`."""
    words = [word for key in SELECTORS for pattern in rule.selectors.get(key, ()) for word in (f"--{key}", pattern)]
    return words + (["--per", rule.per_text] if rule.per_text else [])
