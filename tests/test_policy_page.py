"""What `docs/policy.md` says about rules that do more than count calls is so."""

import json
import re

import pytest

from mcpguard.policy.schema import policy_schema
from mcpguard.policy.values import MAX_CONCURRENT, MAX_N, MAX_WAIT_SECONDS
from mcpguard.session.held_calls import LOOK_US, MAX_WAITING
from tests.build import Talk, call_line
from tests.pages import DOCS, block, chapter

PAGE = DOCS["policy.md"]


def policy(title: str) -> str:
    return block("toml", chapter(PAGE, title))


REASONS = {
    "search_customers": '[[rule]]\nuser = "*"\ntool = "search_customers"\nlimit = "100/1h"\n',
    "browse": '[[rule]]\nuser = "*"\nlimit = "200/session"\n',
    "generate_report": policy("Cost"),
    "import_all": policy("Cost") + '[[cost]]\ntool = "import_all"\ncost = 500\n',
    "sync_orders": policy("Errors"),
    "open_page": policy("Calls in flight"),
    "delete_user": '[[rule]]\ntool = "delete_user"\nlimit = "deny"\n',
}


def denial(tool: str) -> dict[str, object]:
    """The error that a client gets for the first call of a tool that is denied, if calls fail."""
    talk = Talk(REASONS[tool])
    for at in range(202):
        talk.client(call_line(tool, at))
        if tool != "open_page":
            talk.answer(at, isError=True)
        if talk.to_client:
            error: dict[str, object] = talk.to_client[-1]["error"]
            return error
    pytest.fail("no call was denied")


@pytest.mark.parametrize(
    "row", re.findall(r"^\| (4\d\d) \| `(\w+)` \| (T[^|]*) \| (.*?) ?\|$", chapter(PAGE, "Reasons"), re.MULTILINE)
)
def test_the_shown_messages_are_those_that_clients_get(row: tuple[str, str, str, str]) -> None:
    code, reason, message, members = row
    (tool,) = (name for name in REASONS if f"ool {name} " in message)
    error = denial(tool)
    data = error["data"]
    assert isinstance(data, dict)
    assert (str(error["code"]), data["reason"], error["message"]) == (code, reason, message)
    shown = set(re.findall(r"`(\w+)`", members))
    if "the same" in members:
        shown |= {"limit", "window"}
    if "the same" in members or "retry times" in members:
        shown |= {"retry_after_ms", "retry_after_seconds"}
    usual = {"reason", "axis", "tool", "user", "agent", "rule", "audit_id", "exceeded"}
    assert set(data) - usual == shown


def test_every_reason_of_a_limit_is_shown() -> None:
    shown = re.findall(r"^\| \d\d\d \| `(\w+)`", chapter(PAGE, "Reasons"), re.MULTILINE)
    assert set(shown) >= {"rate_limited", "too_costly", "failing", "concurrent", "denied"}
    assert len([name for name in REASONS if f"ool {name} " in chapter(PAGE, "Reasons")]) == len(REASONS)


def test_the_shown_progress_is_what_a_client_gets_after_three_seconds() -> None:
    shown = block("json", chapter(PAGE, "Waiting"))
    talk = Talk('[[rule]]\ntool = "a"\nlimit = "1/10s"\nwait = "20s"\n')
    talk.client(call_line("a", 1), call_line("a", 2, _meta={"progressToken": 7}))
    talk.pass_ms(3000)
    assert talk.to_client[-1] == json.loads(shown)

    capped = Talk('[[rule]]\ntool = "a"\nconcurrent = 1\nwait = "20s"\n')
    capped.client(call_line("a", 1), call_line("a", 2, _meta={"progressToken": 7}))
    capped.pass_ms(3000)
    assert f'"{capped.to_client[-1]["params"]["message"]}' in chapter(PAGE, "Waiting")


def test_the_table_of_every_key_has_the_descriptions_that_editors_show() -> None:
    keys = chapter(PAGE, "Every key").replace("`", "")
    tables = [re.findall(r"^\| (\w+) \| (.+) \|$", part, re.MULTILINE) for part in keys.split("The keys ")[1:]]
    schema = policy_schema()
    shown = [schema, *(schema["properties"][name]["items"] for name in ("rule", "cost"))]
    assert tables == [[(key, one["description"]) for key, one in table["properties"].items()] for table in shown]


def test_the_bounds_are_those_of_the_program() -> None:
    assert f"# 1 to {MAX_CONCURRENT}," in policy("Calls in flight")
    assert f"# 1 to {MAX_N}\n" in policy("Cost")
    assert "s, m or h, at most 1h" in policy("Waiting")
    assert MAX_WAIT_SECONDS == 3600
    assert f"At most {MAX_WAITING} calls wait" in chapter(PAGE, "Waiting")
    assert f"noticed within {LOOK_US // 1000} ms" in chapter(PAGE, "Waiting")
