"""Writes audit rows as JSON lines, as CSV, or as OCSF events.

Most rows differ from others only in their times and numbers. So a line is made once for rows that are alike, with a placeholder
for each member in which they may differ. For each further row the placeholders are filled in, which takes a fifth of the time.
"""

import json
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any, Final, NamedTuple

from mcpguard import __version__
from mcpguard.identity.agent import Agent
from mcpguard.session.audit import FAILED, MEMBERS, Row, id_value, record
from mcpguard.session.verdict import REFUSED
from mcpguard.stores.api import StoredRow
from mcpguard.text.printing import printable
from mcpguard.text.times import rfc3339

_TEMPLATES: Final = 10_000
"""The most templates that are kept in memory."""

_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")


class Format(NamedTuple):
    """How a row is written.

    Attributes:
        heading: The first line; empty if there is none.
        line: The line of a record, without its end.
        request_id: How such a line has the request id of a row.
        skips: A decision whose rows are left out.
    """

    heading: str
    line: Callable[[Mapping[str, object]], str]
    request_id: Callable[[str], str]
    skips: str = ""


def _csv_line(found: Mapping[str, object]) -> str:
    return ",".join(["" if (value := found.get(member)) is None else _cell(value) for member in MEMBERS])


def _cell(value: object) -> str:
    """A cell. No spreadsheet takes a text for a formula: a text that begins like a formula gets an apostrophe."""
    if isinstance(value, str):
        text = printable(value)
        text = "'" + text if value.startswith(_FORMULA) else text
    else:
        text = json.dumps(value)
    return '"' + text.replace('"', '""') + '"' if any(char in text for char in ',"') else text


def _ocsf_line(found: Mapping[str, object]) -> str:
    return json.dumps(ocsf_event(found))


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
    "namespace", "user_source", "agent_source", "roles", "args_hash", "arguments", "act", "decision", "axis", "limit", "window",
    "counts", "cost", "count", "remaining", "in_flight", "retry_after_ms", "exceeded", "waited_ms", "outcome", "duration_ms",
)  # fmt: skip
"""The members that OCSF has no attribute for."""


def _given(values: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in values.items() if value is not None and value != {}}


def _message(found: Mapping[str, object]) -> str:
    words = [str(found["decision"]), str(found.get("tool", "tools/call"))]
    words += [f"for {found['user']}"] if "user" in found else []
    words += [f"by {found['rule']}"] if "rule" in found else []
    return " ".join(words)


def _json_id(text: str) -> str:
    return text if text.isdecimal() else json.dumps(id_value(text))


def _csv_id(text: str) -> str:
    return text if text.isdecimal() else _cell(id_value(text))


def _ocsf_id(text: str) -> str:
    return f'"{text}"' if text.isdecimal() else json.dumps(str(id_value(text)))


FORMATS: Final[Mapping[str, Format]] = {
    "jsonl": Format("", json.dumps, _json_id),
    "csv": Format(",".join(MEMBERS), _csv_line, _csv_id),
    "ocsf": Format("", _ocsf_line, _ocsf_id, skips="policy"),
}


class Writer:
    """Makes the lines of rows.

    Args:
        form: Their format.
    """

    def __init__(self, form: Format) -> None:
        self._form = form
        self._templates: dict[tuple[object, ...], _Template] = {}
        self._marks = _Marks.random()
        self._second, self._prefix = -1, ""

    def lines(self, rows: Iterable[StoredRow]) -> str:
        """The lines of rows, each with its end."""
        texts = [self._filled(one) for one in rows if one.row.decision != self._form.skips]
        return "\n".join([*texts, ""])

    def _filled(self, stored: StoredRow) -> str:
        _, row, outcome, duration_us = stored
        (
            time_us, seq, decision, context, reported, request_id, args_hash, trace_id, counted, remaining, retry_after_ms,
            repeats, detail,
        ) = row  # fmt: skip
        if detail is not None:
            return self._form.line(record(row, outcome=outcome, duration_us=duration_us))
        alike = (
            context, reported, decision, outcome, request_id is None, args_hash is None, trace_id is None, counted is None,
            remaining is None, retry_after_ms is None, repeats is None, duration_us is None,
        )  # fmt: skip
        template = self._templates.get(alike)
        if template is None:
            template = self._template(row, outcome, duration_us, alike)
        second, part_us = divmod(time_us, 1_000_000)
        if second != self._second:
            self._second, self._prefix = second, rfc3339(second * 1_000_000)[:-7]
        values = (
            seq, f"{seq:016x}", f"{self._prefix}{part_us:06d}Z", time_us, time_us // 1000,
            request_id and self._form.request_id(request_id),
            args_hash and args_hash.hex(), trace_id, counted, remaining, retry_after_ms, repeats,
            None if duration_us is None else duration_us / 1000,
        )  # fmt: skip
        return template.text % template.values(values)

    def _template(self, row: Row, outcome: str | None, duration_us: int | None, alike: tuple[object, ...]) -> "_Template":
        """The template of rows that are alike."""
        marked = self._marks.row
        values: dict[str, Any] = {name: None if getattr(row, name) is None else getattr(marked, name) for name in _VARYING}
        duration = None if duration_us is None else self._marks.duration_us
        text = self._form.line(record(row._replace(**values), outcome=outcome, duration_us=duration))
        slots = [self._marks.slots[found] for found in self._marks.pattern.findall(text)]
        template = _Template(self._marks.pattern.sub("%s", text.replace("%", "%%")), itemgetter(*slots))
        if len(self._templates) >= _TEMPLATES:
            self._templates.clear()
        self._templates[alike] = template
        return template


class _Template(NamedTuple):
    """A line with placeholders.

    Attributes:
        text: The line as a format string.
        values: Picks its values out of those of a row.
    """

    text: str
    values: Callable[[Sequence[object]], object]


_VARYING: Final = (
    "time_us", "seq", "request_id", "args_hash", "trace_id", "counted", "remaining", "retry_after_ms", "repeats",
)  # fmt: skip
"""The members in which rows that are alike may differ, besides the duration."""


class _Marks(NamedTuple):
    """Placeholders: a row of values that no other row has.

    Attributes:
        row: The row.
        duration_us: Its duration.
        slots: The index of each placeholder's value among the values of a row.
        pattern: Finds the placeholders in a line.
    """

    row: Row
    duration_us: int
    slots: Mapping[str, int]
    pattern: re.Pattern[str]

    @classmethod
    def random(cls) -> "_Marks":
        """Placeholders that nobody can guess, so that no name that a client chose can be one."""
        chance = random.SystemRandom()
        numbers = chance.sample(range(10**15, 10**16), 8)
        seq, counted, remaining, retry_after_ms, repeats, duration_ms, *ids = numbers
        time_us = chance.randrange(2 * 10**17, 25 * 10**16)  # in the years 8307 to 9892
        request_id, trace_id, args_hash = f"r{ids[0]}r", f"t{ids[1]}t", chance.randbytes(12)
        row = Row(
            time_us, seq, "", "", None, json.dumps(request_id), args_hash, trace_id, counted, remaining, retry_after_ms, repeats
        )
        texts = [
            str(seq), f"{seq:016x}", rfc3339(time_us), str(time_us), str(time_us // 1000), request_id, args_hash.hex(),
            trace_id, str(counted), str(remaining), str(retry_after_ms), str(repeats), str(duration_ms / 1),
        ]  # fmt: skip
        slots = {text: at for at, text in enumerate(texts)} | {f'"{request_id}"': texts.index(request_id)}
        pattern = "|".join(map(re.escape, sorted(slots, key=len, reverse=True)))
        return cls(row, duration_ms * 1000, slots, re.compile(pattern))
