"""The lines of an export: each format has its rules."""

import csv
import json
from io import StringIO
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpguard.reading.export import FORMATS, ocsf_event
from mcpguard.session.audit import MEMBERS, OUTCOMES, Row, record
from mcpguard.stores.api import StoredRow
from mcpguard.text.printing import compact
from tests.audit_examples import examples

names = st.text(min_size=1, max_size=8) | st.sampled_from(["=1+1", "%s", "100%", 'a"b,c', "\x1b[2J", "+", "@x", "-1", "\tx"])
small = st.none() | st.integers(0, 5)
contexts = st.builds(
    lambda user, tool, rest: compact(
        {"session": "00000000000000aa", "namespace": "default", "user": user, "agent": "Cursor::api::x", **rest}
        | ({"tool": tool} if tool else {})
    ),
    names,
    st.none() | names,
    st.fixed_dictionaries({}, optional={"server": names, "roles": st.lists(names, max_size=2)}),
)
LIMITS: list[dict[str, Any]] = [
    {"rule": "user=* tool=%"},
    *({"counts": "cost"}, {"counts": "errors"}),
    {"counts": "concurrent", "window": None},
    {"axis": "tool", "rule": "tool=x", "limit": None, "window": None},
]


def reported(**more: object) -> str:
    """The limit of a row."""
    members = {"axis": "user", "rule": "user=*", "limit": 5, "window": "1h", **more}
    return compact({key: value for key, value in members.items() if value is not None})


limits = st.sampled_from([None, *(reported(**one) for one in LIMITS)])
rows = st.builds(
    Row,
    st.integers(0, 10**16),
    st.integers(1, 10**6),
    st.sampled_from(["allowed", "rate_limited", "denied", "would_deny", "continued"]),
    contexts,
    limits,
    st.none() | (st.integers(-3, 10**20) | names).map(json.dumps) | st.just('"cut …'),
    st.none() | st.binary(min_size=12, max_size=12),
    st.none() | st.just("f" * 32),
    *[small] * 4,
    st.none() | st.sampled_from(['{"reason":"x"}', '{"act":["a","b"]}', '{"in_flight":2,"cost":20,"waited_ms":5}']),
)
stored = st.builds(StoredRow, st.just(1), rows, st.none() | st.sampled_from(OUTCOMES), st.none() | st.integers(0, 10**9))


def plain(one: StoredRow) -> dict[str, object]:
    return record(one.row, outcome=one.outcome, duration_us=one.duration_us)


@given(st.lists(stored, max_size=3))
@settings(max_examples=40)
def test_each_json_line_is_a_record(found: list[StoredRow]) -> None:
    assert [json.loads(line) for line in FORMATS["jsonl"].lines(found).splitlines()] == [plain(one) for one in found]


@given(stored)
def test_a_csv_line_has_a_cell_for_each_member_and_no_cell_is_a_formula(one: StoredRow) -> None:
    (cells,) = csv.reader(StringIO(FORMATS["csv"].lines([one])), strict=True)
    found = plain(one)
    assert len(cells) == len(MEMBERS)
    for member, cell in zip(MEMBERS, cells, strict=True):
        value = found.get(member)
        assert all(char.isprintable() for char in cell)
        if isinstance(value, str):
            assert cell[:1] not in {"=", "+", "-", "@", "\t", "\r"}
        elif value is not None:
            assert json.loads(cell) == value


def test_csv_begins_with_the_names_of_the_members() -> None:
    assert FORMATS["csv"].heading.split(",") == list(MEMBERS)


REQUIRED = set("activity_id actor api category_uid class_uid metadata severity_id src_endpoint time type_uid".split())
"""The attributes that OCSF 1.9 requires of an event of API Activity."""


@pytest.mark.parametrize(("decision", "found"), [one for one in examples().items() if one[0] != "policy"])
def test_an_ocsf_event_has_all_that_its_class_requires(decision: str, found: dict[str, object]) -> None:
    event = ocsf_event(found)
    assert event.keys() >= REQUIRED
    assert event["type_uid"] == event["class_uid"] * 100 + event["activity_id"]  # type: ignore[operator]
    assert event["metadata"]["profiles"] == ["ai_operation", "security_control"]  # type: ignore[index]
    actions = {"allowed": 1, "continued": 1, "allowed_unavailable": 1, "would_deny": 3}
    assert event["action_id"] == actions.get(decision, 2)
    assert (event["status"] == "Failure") == (event["action"] == "Denied")


def test_an_ocsf_event_of_a_denial_names_user_agent_tool_and_rule() -> None:
    event = json.loads(json.dumps(ocsf_event(examples()["rate_limited"])))
    assert event["actor"]["user"] == {"name": "alice@acme.com"}
    assert event["ai_agent"]["name"] == "Claude Code::interactive::default"
    assert event["api"] == {"operation": "search_customers", "service": {"name": "crm"}, "request": {"uid": "3"}}
    assert event["policy"] == {"name": "user=* tool=search_customers"}
    assert (event["action"], event["disposition"], event["time"]) == ("Denied", "Blocked", 1767225600000)
    assert event["unmapped"]["retry_after_ms"] == 3600000
    assert event["status_code"] == "rate_limited"
    assert event["message"] == "rate_limited search_customers for alice@acme.com by user=* tool=search_customers"


CONTEXT = '{"session":"aa","namespace":"default","tool":"x","user":"alice"}'


def test_an_ocsf_event_of_a_call_without_a_limit_has_its_outcome_and_no_policy() -> None:
    event = ocsf_event(record(Row(0, 1, "allowed", CONTEXT), outcome="tool_error", duration_us=5))
    assert (event["status_code"], event["status"], event["message"]) == ("tool_error", "Failure", "allowed x for alice")
    assert not event.keys() & {"policy", "dst_endpoint", "message_context", "ai_agent", "count"}


@pytest.mark.parametrize(("outcome", "status"), [("ok", "Success"), ("rpc_error", "Failure"), (None, "Unknown")])
def test_an_ocsf_event_of_an_admitted_call_has_the_status_of_its_outcome(outcome: str | None, status: str) -> None:
    event = ocsf_event(record(Row(0, 1, "allowed", CONTEXT), outcome=outcome))
    assert (event["status"], event["action"], event["severity"]) == (status, "Allowed", "Informational")


def test_an_ocsf_event_tells_what_a_cap_counts_and_how_long_a_call_waited() -> None:
    told = {"in_flight": 2, "cost": 20, "waited_ms": 5}
    limit = reported(limit=2, window=None, counts="concurrent")
    event = ocsf_event(record(Row(0, 1, "rate_limited", CONTEXT, limit, detail=compact(told))))
    assert event["status_detail"] == "concurrent"
    unmapped = event["unmapped"]
    assert isinstance(unmapped, dict)
    assert unmapped == unmapped | {"limit": 2, "counts": "concurrent", **told}


def test_ocsf_leaves_out_rows_that_are_no_calls() -> None:
    row = Row(0, 1, "policy", '{"session":"aa","namespace":"default","server":"crm"}', detail='{"reason":"x"}')
    assert FORMATS["ocsf"].lines([StoredRow(1, row, None, None)]) == ""
    assert json.loads(FORMATS["jsonl"].lines([StoredRow(1, row, None, None)]))["decision"] == "policy"
