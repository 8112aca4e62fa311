"""A rule's text in a denial or an audit row can be parsed back."""

from typing import Literal

import pytest

from mcpguard.policy.parse import parse_rule
from mcpguard.policy.rule_text import rule_of_text


@pytest.mark.parametrize(
    "table",
    [
        {},
        {"per": []},
        {"tool": "search"},
        {"user": "*", "tool": "a b", "per": ["user", "tool"]},
        {"agent": "Claude Code::subagent::*", "server": "crm=2", "per": []},
        {"user": "*", "role": ["a", "b"], "scope": "c"},
    ],
)
@pytest.mark.parametrize("limit", ["deny", "5/1m", ["5/1m", "9/1h"]])
def test_a_rule_is_found_again_from_its_text(table: dict[str, object], limit: object) -> None:
    rule = parse_rule({**table, "limit": limit}, where="rule")
    assert rule_of_text(rule.text, limit) == rule


@pytest.mark.parametrize("counts", ["cost", "errors"])
def test_a_rule_that_counts_something_else_is_found_again(counts: Literal["cost", "errors"]) -> None:
    table = {"user": "*", "per": ["user", "arguments"]}
    rule = parse_rule({**table, "limit": "5/1m", "count": counts}, where="rule")
    assert rule_of_text(rule.text, "5/1m", counts) == rule


def test_a_cap_is_found_again() -> None:
    rule = parse_rule({"tool": "a b", "concurrent": 2}, where="rule")
    assert rule_of_text(rule.text, 2, "concurrent") == rule
    assert rule_of_text(rule.text, "2/1m", "concurrent") is None


@pytest.mark.parametrize("text", ["", "nonsense", "tool=", "tool=a tool=b", "per=moon", "agent=one::two"])
def test_a_text_that_no_rule_has_gives_none(text: str) -> None:
    assert rule_of_text(text, "5/1m") is None
