"""The table of audit rows has a cell for each kind of limit."""

from typing import Any

import click
import pytest

from mcpguard.cli.audit.tail import Table

ROW = {"time_us": 0, "decision": "rate_limited", "axis": "user", "user": "bob", "agent": "a::b::c", "tool": "echo", "count": 3}


@pytest.mark.parametrize(
    ("more", "end"),
    [
        ({"limit": 5, "window": "1m", "retry_after_ms": 1500}, "3 5/1m      retry 2s"),
        ({"limit": 2, "counts": "concurrent", "reason": "concurrent"}, "3 2 at once concurrent"),
        ({"limit": 9, "window": "1h", "counts": "cost", "reason": "too_costly"}, "3 9 u/1h    too_costly"),
        ({"limit": 3, "window": "1m", "counts": "errors", "reason": "failing", "retry_after_ms": 9000}, "3 3 err/1m  retry 9s"),
        ({"decision": "denied", "rule": "tool=echo", "count": ""}, " deny"),
        ({"decision": "allowed", "limit": 2, "counts": "concurrent", "outcome": "ok"}, "2 at once ok"),
    ],
)
def test_a_row_shows_its_limit_and_its_outcome_or_when_to_come_back(more: dict[str, Any], end: str) -> None:
    line = click.unstyle(Table(80).lines(ROW | more)[-1])
    assert len(line) < 80
    assert line.endswith(end)


@pytest.mark.parametrize(("width", "with_id"), [(119, False), (120, True), (154, True), (155, True), (200, True)])
def test_a_table_of_at_least_120_columns_has_the_ids_that_audit_show_takes(width: int, with_id: bool) -> None:
    lines = Table(width).lines(ROW | {"id": "45732ae6c06cfb07-4", "limit": 5, "window": "1m"})
    assert ("45732ae6c06cfb07-4" in lines[-1]) == with_id
    assert max(len(click.unstyle(line)) for line in lines) < width


def test_a_call_that_warns_shows_the_limit_of_which_it_does() -> None:
    warned = [{"axis": "agent", "limit": 9, "window": "1h", "count": 8}]
    found = {**ROW, "decision": "allowed", "limit": 5, "window": "1m", "outcome": "ok", "warned": warned}
    assert click.unstyle(Table(80).lines(found)[-1]).split()[1:] == ["warned", "agent", "echo", "8", "9/1h", "ok"]
    assert "would_deny" in click.unstyle(Table(80).lines(found | {"decision": "would_deny"})[-1])
