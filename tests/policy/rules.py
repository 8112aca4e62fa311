"""Policies in a short form: each rule on a line, such as `user='*' tool='search' limit=['5/1m', '9/1h']`."""

import re
from collections.abc import Sequence

from mcpguard.policy.model import Policy
from mcpguard.policy.parse import parse


def keys(text: str) -> list[str]:
    """The keys of a rule with their values."""
    return re.split(r"(?<=['\]\d]) (?=\w+=)", text)


def written(*rules: str, head: str = "", costs: Sequence[str] = ()) -> str:
    """The text of a policy."""
    tables = [("rule", one) for one in rules] + [("cost", one) for one in costs]
    return head + "".join("\n".join([f"[[{kind}]]", *filter(None, keys(one)), ""]) for kind, one in tables)


def policy(*rules: str, head: str = "", costs: Sequence[str] = ()) -> Policy:
    return parse(written(*rules, head=head, costs=costs))
