import json

import pytest

from mcpguard.policy.parse import parse
from mcpguard.report.page import page, unreached
from mcpguard.stores.api import StoredRow
from tests.end_to_end.host import rule
from tests.report import test_gather
from tests.report.test_gather import LIMIT, of

POLICY = parse(rule(["50/1m", "1000/1h"], user="*") + rule("100/1d", tool="a b", per=[]))
FIRST = LIMIT | {"limit": 50}


def stored(limit: dict[str, object], decision: str, **members: object) -> StoredRow:
    """The row of a call that reports a limit."""
    one = test_gather.stored(0, decision, **members)  # type: ignore[arg-type]
    return one._replace(row=one.row._replace(reported=json.dumps(limit)))


@pytest.mark.parametrize("decision", ["rate_limited", "would_deny"])
def test_a_limit_that_denied_a_call_or_would_have_is_reached(decision: str) -> None:
    assert [one.rate.text for one in unreached(POLICY, of(stored(FIRST, decision)).limits)] == ["1h", "1d"]


@pytest.mark.parametrize("decision", ["rate_limited", "would_deny"])
def test_a_limit_without_room_is_reached_though_the_denial_names_another(decision: str) -> None:
    without_room = [FIRST | {"retry_after_ms": 9}, LIMIT | {"limit": 1000, "window": "1h", "retry_after_ms": 99}]
    denial = stored(without_room[1], decision, detail=json.dumps({"exceeded": without_room}))
    assert [one.rate.text for one in unreached(POLICY, of(denial).limits)] == ["1d"]


def test_a_limit_never_reached_has_a_suggestion_above_its_largest_use() -> None:
    uses = of(stored(FIRST, "allowed", counted=1), stored(FIRST, "allowed", counted=2)).limits
    first, second, _ = unreached(POLICY, uses)
    assert (first.peak, first.suggested) == (2, 5)
    assert first.command == "mcpguard policy set --user '*' 5/1m 1000/1h"
    assert (second.peak, second.suggested, second.command) == (0, None, "")


def test_no_limit_is_suggested_that_is_as_high_as_the_present_one() -> None:
    first, *_ = unreached(POLICY, of(stored(FIRST, "allowed", counted=24)).limits)
    assert (first.peak, first.suggested) == (24, None)


KINDS = parse(
    rule("50/1m", user="*", concurrent=2)
    + rule("90/1h", tool="sync", count="cost")
    + rule("3/1m", tool="sync", count="errors")
    + rule("deny", tool="closed")
)
CAP = {"axis": "user", "rule": "user=*", "limit": 2, "counts": "concurrent"}
ERRORS = {"axis": "tool", "rule": "tool=sync", "limit": 3, "window": "1m", "counts": "errors"}


def test_caps_and_limits_on_cost_and_errors_are_listed_and_nothing_is_suggested_for_them() -> None:
    found = unreached(KINDS, {})
    assert [one.limit.limit_text for one in found] == ["50/1m", "2-in-flight", "90-units/1h", "3-errors/1m"]
    cost = ERRORS | {"limit": 90, "window": "1h", "counts": "cost"}
    uses = of(stored(cost, "allowed", counted=20), stored(ERRORS, "rate_limited"), stored(CAP, "would_deny")).limits
    found = unreached(KINDS, uses)
    assert [(one.limit.limit_text, one.peak, one.suggested) for one in found] == [("50/1m", 0, None), ("90-units/1h", 20, None)]


def test_the_page_names_each_kind_of_limit() -> None:
    limits: tuple[dict[str, object], ...] = (CAP, ERRORS, {"axis": "tool", "rule": "tool=closed"})
    findings = of(*(stored(limit, "rate_limited", repeats=9) for limit in limits))
    html = page(findings, KINDS, namespace="default", filters="", made_us=0)
    for text in ("2-in-flight", "3-errors/1m", "90-units/1h", ">deny"):
        assert html.count(text) >= 1
    assert "None" not in html


def test_a_lower_limit_per_session_is_suggested_beside_the_other_limits_of_its_rule() -> None:
    limit: dict[str, object] = {"axis": "user", "rule": "user=*", "limit": 900, "window": "session"}
    policy = parse(rule(["20/1m", "900/session"], user="*", concurrent=2))
    found = {one.limit.limit_text: one.command for one in unreached(policy, of(stored(limit, "allowed", counted=4)).limits)}
    assert found == {"20/1m": "", "900/session": "mcpguard policy set --user '*' 20/1m 8/session", "2-in-flight": ""}
