"""Writes the examples in `docs/audit.md`, a row for each decision: `python -m tests.audit_examples`."""

import json
from pathlib import Path
from typing import Final

from mcpguard.errors import Unauthenticated
from mcpguard.identity.caller import Agent, Identity
from mcpguard.session.audit import DECISIONS, Outcome
from mcpguard.session.verdict import Verdict
from tests.build import WALL_US, Talk, call_line
from tests.end_to_end.host import rule

PAGE: Final = Path(__file__).parents[1] / "docs" / "audit.md"
HEADING: Final = "## An example of each decision\n"
POLICY: Final = (
    rule("2/1h", user="*", tool="search_customers")
    + rule("deny", tool="delete_user")
    + rule("1/1m", tool="generate_report", mode="observe")
)
BEYOND: Final = (
    rule("40/1m", user="*", count="cost", wait="1m")
    + '[[cost]]\ntool = "generate_report"\ncost = 20\n\n'
    + rule(tool="open_page", concurrent=1)
    + rule("1/1m", tool="sync_orders", count="errors")
)
SESSION: Final = "45732ae6c06cfb07"


def examples() -> dict[str, dict[str, object]]:
    """An audit record for each decision, by the decision's name."""
    talk = Talk(POLICY, session=SESSION, args_key=lambda: bytes(16))
    talk.start()
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
    talk.calls = 9
    (request,) = talk.charges("search_customers", arguments={"name": "Smith"})
    talk.store.append(talk.journal.rows([request], [Verdict("allowed_unavailable")], WALL_US))
    talk.input_closes("the server exited with status 1")
    talk.client(call_line("search_customers", 11))

    nobody = Talk(POLICY, who=Identity("", "jwt", "crm", Agent(client="Claude Code")), session=SESSION)
    nobody.identify(Unauthenticated("the token in ~/.config/acme/token expired at 2026-01-01T00:00:00Z", "get a new one"))
    nobody.client(call_line("search_customers", 1))
    found = {str(one["decision"]): one for one in reversed([*all_of(talk), *all_of(nobody)])}
    return {name: found[name] for name in DECISIONS}


def beyond() -> dict[str, dict[str, object]]:
    """Audit records of rules that do more than count calls, by what they show."""
    talk = Talk(BEYOND, session=SESSION, args_key=lambda: bytes(16))
    talk.start()
    talk.client(*(call_line("generate_report", request_id, arguments={"year": 2026}) for request_id in (1, 2)))
    talk.time.pass_s(45)
    talk.client(call_line("generate_report", 3, arguments={"year": 2026}))
    talk.pass_ms(15_000)
    talk.store.record([Outcome(talk.verdicts[-1].row_id or 0, "ok", 41_250)])
    waited = all_of(talk)[-1]
    talk.client(*(call_line("open_page", request_id, arguments={"id": 7}) for request_id in (4, 5)))
    concurrent = all_of(talk)[-1]
    talk.client(call_line("sync_orders", 6))
    talk.answer(6, content=[], isError=True)
    talk.client(call_line("sync_orders", 7))
    failing = all_of(talk)[-1]
    return {
        "A call that waited, under a limit that counts cost": waited,
        "A call over a cap on calls in flight": concurrent,
        "A call of a tool that keeps failing": failing,
    }


def all_of(talk: Talk) -> list[dict[str, object]]:
    return [entry.record for entry in talk.store.entries()]


def section() -> str:
    """The section of the page with the examples."""
    intro = "The rows are from a session with this policy:\n\n```toml\n{}\n```\n"
    more = "## Examples of other limits\n"
    parts = [HEADING, intro.format(POLICY.strip()), *_shown(examples()), more, intro.format(BEYOND.strip()), *_shown(beyond())]
    return "\n".join(parts)


def _shown(records: dict[str, dict[str, object]]) -> list[str]:
    return [f"### {name}\n\n```json\n{json.dumps(one, indent=2)}\n```\n" for name, one in records.items()]


if __name__ == "__main__":
    PAGE.write_text(PAGE.read_text("utf-8").partition(HEADING)[0] + section())
