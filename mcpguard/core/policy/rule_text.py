"""Parses the text of a rule in reports and audit rows."""

import re
from typing import Final

from mcpguard.core.policy.model import SELECTORS, Rule
from mcpguard.core.policy.parse import parse_rule
from mcpguard.errors import PolicyError

_SELECTION: Final = re.compile(rf"(?:^| )({'|'.join(SELECTORS)}|per)=")


def rule_of_text(text: str, limit: object) -> Rule | None:
    """The rule with this `Rule.text` and this limit.

    Args:
        text: The rule's text.
        limit: A value of `limit` in a policy file.

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
        rule = parse_rule({**table, "limit": limit}, where="rule")
    except PolicyError:
        return None
    return rule if rule.text == text else None
