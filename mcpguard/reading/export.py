"""Writes audit rows as JSON lines, as CSV, or as OCSF events."""

import csv
import json
from collections.abc import Callable, Iterable, Mapping
from io import StringIO

from mcpguard import __version__
from mcpguard.identity.caller import Agent
from mcpguard.light_typing import Final, NamedTuple
from mcpguard.session.audit import FAILED, MEMBERS, record
from mcpguard.session.verdict import REFUSED
from mcpguard.stores.api import StoredRow
from mcpguard.text.printing import printable

_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")


class Format(NamedTuple):
    """How a row is written.

    Attributes:
        heading: The first line; empty if there is none.
        line: The line of a record, without its end.
        skips: A decision whose rows are left out.
    """

    heading: str
    line: Callable[[Mapping[str, object]], str]
    skips: str = ""

    def lines(self, rows: Iterable[StoredRow]) -> str:
        """The lines of rows, each with its end."""
        kept = (one for one in rows if one.row.decision != self.skips)
        return "".join([self.line(record(one.row, outcome=one.outcome, duration_us=one.duration_us)) + "\n" for one in kept])


def _csv_line(found: Mapping[str, object]) -> str:
    line = StringIO()
    csv.writer(line, lineterminator="").writerow([_cell(found[member]) if member in found else "" for member in MEMBERS])
    return line.getvalue()


def _cell(value: object) -> str:
    """A cell. No spreadsheet takes a text for a formula: a text that begins like a formula gets an apostrophe."""
    if not isinstance(value, str):
        return json.dumps(value)
    return ("'" if value.startswith(_FORMULA) else "") + printable(value)


def ocsf_event(found: Mapping[str, object]) -> dict[str, object]:
    """A record as an event of OCSF 1.9: API Activity (class 6003) with the profiles `ai_operation` and `security_control`.

    Source: https://schema.ocsf.io/1.9.0/classes/api_activity
    """
    decision, outcome = str(found["decision"]), found.get("outcome")
    action = "Denied" if decision in REFUSED else "Observed" if decision == "would_deny" else "Allowed"
    failed = action == "Denied" or outcome in FAILED
    status = "Failure" if failed else "Success" if outcome == "ok" else "Unknown"
    agent = found.get("agent")
    parts = Agent.split(str(agent)) if agent else None
    server = _given({"name": found.get("server")})
    event = {
        "activity_id": 99,
        "activity_name": "tools/call",
        "category_uid": 6,
        "category_name": "Application Activity",
        "class_uid": 6003,
        "class_name": "API Activity",
        "type_uid": 600399,
        "type_name": "API Activity: Other",
        "time": int(str(found["time_us"])) // 1000,
        "severity_id": 2 if action == "Denied" else 1,
        "severity": "Low" if action == "Denied" else "Informational",
        "status_id": {"Unknown": 0, "Success": 1, "Failure": 2}[status],
        "status": status,
        "status_code": outcome or decision,
        "status_detail": found.get("reason"),
        "message": _message(found),
        "count": found.get("repeats"),
        "metadata": {
            "version": "1.9.0",
            "uid": found["id"],
            "sequence": found["seq"],
            "log_name": "audit",
            "product": {"name": "mcpguard", "vendor_name": "mcpguard", "version": __version__},
            "profiles": ["ai_operation", "security_control"],
            **_given({"correlation_uid": found.get("trace_id")}),
        },
        "actor": _given(
            {
                "user": _given({"name": found.get("user"), "email_addr": found.get("email")}),
                "session": {"uid": found["session"]},
                "app_name": parts.client if parts else None,
            }
        ),
        "api": _given(
            {
                "operation": found.get("tool", "tools/call"),
                "service": server,
                "request": {"uid": str(found["request_id"])} if "request_id" in found else None,
            }
        ),
        "src_endpoint": {"svc_name": parts.client if parts else "unknown"},
        "dst_endpoint": _given({"svc_name": found.get("server")}),
        "ai_agent": {"name": agent, "instance_uid": found["session"]} if agent else None,
        "message_context": {"uid": found["session"], "service": server} if server else None,
        "action_id": {"Allowed": 1, "Denied": 2, "Observed": 3}[action],
        "action": action,
        "disposition_id": {"Allowed": 1, "Denied": 2, "Observed": 17}[action],
        "disposition": {"Allowed": "Allowed", "Denied": "Blocked", "Observed": "Logged"}[action],
        "policy": _given({"name": found.get("rule")}),
        "unmapped": {member: found[member] for member in _UNMAPPED if member in found},
    }
    return _given(event)


_UNMAPPED: Final = (
    "namespace", "via", "client_session", "user_source", "agent_source", "roles", "args_hash", "arguments", "act", "decision",
    "axis", "limit", "window", "counts", "cost", "count", "remaining", "in_flight", "retry_after_ms", "exceeded", "warned",
    "waited_ms",
    "outcome", "duration_ms",
)  # fmt: skip
"""The members that OCSF has no attribute for."""


def _given(values: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in values.items() if value is not None and value != {}}


def _message(found: Mapping[str, object]) -> str:
    words = [str(found["decision"]), str(found.get("tool", "tools/call"))]
    words += [f"for {found['user']}"] if "user" in found else []
    words += [f"by {found['rule']}"] if "rule" in found else []
    return " ".join(words)


FORMATS: Final[Mapping[str, Format]] = {
    "jsonl": Format("", json.dumps),
    "csv": Format(",".join(MEMBERS), _csv_line),
    "ocsf": Format("", lambda found: json.dumps(ocsf_event(found)), skips="policy"),
}
