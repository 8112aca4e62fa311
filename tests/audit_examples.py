"""Writes the examples in `docs/audit.md`, a row for each decision: `python -m tests.audit_examples`."""

import json
from pathlib import Path
from typing import Final

from mcpguard.core.agent import Agent
from mcpguard.core.audit import DECISIONS, Outcome
from mcpguard.core.identity import Identity
from mcpguard.core.session.events import Started
from mcpguard.core.verdict import Verdict
from mcpguard.errors import Unauthenticated
from tests.core.build import WALL_US, Talk, call_line

PAGE: Final = Path(__file__).parents[1] / "docs" / "audit.md"
HEADING: Final = "## An example of each decision\n"
POLICY: Final = """
[[rule]]
user = "*"
tool = "search_customers"
limit = "2/1h"

[[rule]]
tool = "delete_user"
limit = "deny"

[[rule]]
tool = "generate_report"
limit = "1/1m"
mode = "observe"
"""
SESSION: Final = "45732ae6c06cfb07"


def examples() -> dict[str, dict[str, object]]:
    """An audit record for each decision, by the decision's name."""
    talk = Talk(POLICY, session=SESSION, args_key=lambda: bytes(16))
    talk.handle(Started())
    for request_id in 1, 2, 3:
        talk.client(call_line("search_customers", request_id, arguments={"name": "Smith"}))
        if request_id == 1:
            talk.store.record([Outcome(talk.verdicts[-1].row_id or 0, "ok", 41_250)])
    talk.client(call_line("delete_user", 4, arguments={"id": 7}))
    for request_id in 5, 6:
        talk.client(call_line("generate_report", request_id, arguments={"year": 2026}))
    talk.client(call_line("book_meeting", 7, arguments={"with": "Smith"}))
    talk.answer(7, resultType="input_required", inputRequests={"when": {}}, requestState="s1")
    talk.client(call_line("book_meeting", 8, arguments={"with": "Smith"}, requestState="s1", inputResponses={"when": 1}))
    talk.client(b'{"jsonrpc":"2.0","id":9,"method":"tools/call","params":{"name":"search_customers","NAME":"delete_user"}}')
    (request,) = talk.charges("search_customers", arguments={"name": "Smith"})
    talk.store.append(talk.journal.rows([request], [Verdict("allowed_unavailable")], WALL_US))
    talk.input_closes("the server exited with status 1")
    talk.client(call_line("search_customers", 11))

    nobody = Talk(POLICY, who=Identity("", "jwt", "crm", Agent(client="Claude Code")), session=SESSION)
    nobody.identify(Unauthenticated("the token in ~/.config/acme/token expired at 2026-01-01T00:00:00Z", "get a new one"))
    nobody.client(call_line("search_customers", 1))
    found = {str(one["decision"]): one for one in reversed([*all_of(talk), *all_of(nobody)])}
    return {name: found[name] for name in DECISIONS}


def all_of(talk: Talk) -> list[dict[str, object]]:
    return [entry.record for entry in talk.store.entries()]


def section() -> str:
    """The section of the page with the examples."""
    shown = [f"### {name}\n\n```json\n{json.dumps(one, indent=2)}\n```\n" for name, one in examples().items()]
    return "\n".join([HEADING, f"The rows are from a session with this policy:\n\n```toml{POLICY}```\n", *shown])


if __name__ == "__main__":
    PAGE.write_text(PAGE.read_text().partition(HEADING)[0] + section())
