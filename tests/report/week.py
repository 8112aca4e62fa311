"""A made-up week of three people, their agents and a loop: audit rows for tests and for the sample report."""

import json
import random
from collections.abc import Iterator, Sequence
from typing import Final

from mcpguard.policy.parse import parse
from mcpguard.session.audit import Outcome, Row
from mcpguard.stores.api import Store, StoredRow
from tests.build import WALL_US
from tests.end_to_end.host import rule

HOUR_US: Final = 3600 * 1_000_000
WEEK_US: Final = 7 * 24 * HOUR_US
SINCE_US: Final = WALL_US + 4 * 24 * HOUR_US  # 2026-01-05, a Monday
UNTIL_US: Final = SINCE_US + WEEK_US

POLICY: Final = (
    rule("400/1h", user="*")
    + rule("60/1m", agent="*::background::*", tool="search_customers")
    + rule(["20/1h", "500/1d"], user="*", tool="send_email", mode="observe")
    + rule("deny", tool="delete_customer")
    + rule("200/1d", user="*", tool="export_report")
)

PEOPLE: Final = (
    ("alice@acme.com", "Claude Code::interactive::default"),
    ("alice@acme.com", "Claude Code::subagent::researcher"),
    ("bob@acme.com", "Cursor::interactive::default"),
    ("carol@acme.com", "Claude Desktop::interactive::default"),
    ("carol@acme.com", "crond::background::nightly sync"),
)
TOOLS: Final = (
    ("crm", "search_customers", 12, 50),
    ("crm", "get_customer", 9, 20),
    ("mail", "send_email", 3, 400),
    ("crm", "export_report", 1, 3000),
    ("crm", "delete_customer", 0.05, 30),
)
"""Server, tool, weight, and the usual duration in ms."""

_RULES: Final = {rule.text: rule for rule in parse(POLICY).rules}


def _limit(text: str, at: int = 0) -> str:
    rule = _RULES[text]
    named: dict[str, object] = {"axis": rule.axis, "rule": text}
    if rule.rates:
        named |= {"limit": rule.rates[at].n, "window": rule.rates[at].text}
    return json.dumps(named)


def week(*, calls_an_hour: int = 150) -> Iterator[StoredRow]:
    """The rows, oldest first."""
    made = random.Random(11)  # noqa: S311 - the week is always the same
    found: list[StoredRow] = []
    for hour in range(7 * 24):
        day, clock = divmod(hour, 24)
        busy = 1.0 if 8 <= clock < 18 and day < 5 else 0.08
        for _ in range(round(calls_an_hour * busy * made.uniform(0.7, 1.3))):
            user, agent = made.choices(PEOPLE, (6, 3, 5, 3, 1))[0]
            server, tool, _, usual_ms = made.choices(TOOLS, [one[2] for one in TOOLS])[0]
            at_us = SINCE_US + hour * HOUR_US + made.randrange(HOUR_US)
            found.append(_call(made, at_us, user, agent, server, tool, usual_ms))
    found += _loop(made, SINCE_US + 2 * 24 * HOUR_US + 14 * HOUR_US)
    found += _loop(made, SINCE_US + 3 * 24 * HOUR_US + 3 * HOUR_US, user="carol@acme.com", agent=PEOPLE[4][1])
    found.sort(key=lambda one: one.row.time_us)
    for number, one in enumerate(found, 1):
        yield one._replace(row_id=number, row=one.row._replace(seq=number))


def _context(user: str, agent: str, server: str, tool: str) -> str:
    names = {"user": user, "agent": agent, "server": server, "tool": tool, "namespace": "default"}
    return json.dumps(names | {"session": "00000000000000ab", "user_source": "jwt", "agent_source": "clientInfo"})


def _call(made: random.Random, at_us: int, user: str, agent: str, server: str, tool: str, usual_ms: float) -> StoredRow:
    context = _context(user, agent, server, tool)
    if tool == "delete_customer":
        return StoredRow(0, Row(at_us, 0, "denied", context, _limit("tool=delete_customer"), request_id="1"), None, None)
    if tool == "send_email" and made.random() < 0.15:
        limit = _limit("user=* tool=send_email")
        row = Row(at_us, 0, "would_deny", context, limit, request_id="1", counted=20, remaining=0, retry_after_ms=90_000)
    else:
        limit = _limit("user=* tool=export_report" if tool == "export_report" else "user=*")
        counted = made.randrange(1, 30 if tool == "export_report" else 150)
        left = int(json.loads(limit)["limit"]) - counted
        row = Row(at_us, 0, "allowed", context, limit, request_id="1", counted=counted, remaining=left)
    outcome = made.choices(("ok", "tool_error", "rpc_error", "cancelled"), (95, 3, 1, 1))[0]
    return StoredRow(0, row, outcome, round(1000 * usual_ms * made.lognormvariate(0, 0.6)))


def _loop(
    made: random.Random, at_us: int, *, user: str = "alice@acme.com", agent: str = "Claude Code::subagent::researcher"
) -> Iterator[StoredRow]:
    """An agent that calls a tool again and again: some calls pass, then a row a second sums up the denials."""
    context = _context(user, agent, "crm", "search_customers")
    is_nightly = "background" in agent
    limit = _limit("agent=*::background::* tool=search_customers" if is_nightly else "user=*")
    for second in range(600 if is_nightly else 240):
        row = Row(at_us + second * 1_000_000, 0, "rate_limited", context, limit, request_id="1", counted=400 + second)
        yield StoredRow(0, row._replace(repeats=made.randrange(1, 4), remaining=0, retry_after_ms=30_000), None, None)


def fill(store: Store, rows: Sequence[StoredRow], *, later_us: int = 0) -> None:
    """Write rows to a store, each so much later."""
    for at in range(0, len(rows), 500):
        some = rows[at : at + 500]
        ids = store.append([one.row._replace(time_us=one.row.time_us + later_us) for one in some])
        ended = zip(ids, some, strict=True)
        store.record([Outcome(row_id, one.outcome, one.duration_us or 0) for row_id, one in ended if one.outcome])
