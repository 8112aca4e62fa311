"""`docs/audit.md` describes every member and value of a row, and its examples are real rows."""

import json
import re

from mcpguard.session.audit import DECISIONS, MEMBERS, OUTCOMES
from mcpguard.session.verdict import FORWARDED
from tests.audit_examples import HEADING, PAGE, examples, section
from tests.pages import chapter

TEXT, _, EXAMPLES = PAGE.read_text("utf-8").partition(HEADING)


def first_cells(title: str) -> list[str]:
    cells = re.findall(r"^\| (`.*?`) \|", chapter(TEXT, title), re.MULTILINE)
    return [name for cell in cells for name in re.findall("`(.*?)`", cell)]


def test_every_member_and_every_outcome_of_a_row_is_described() -> None:
    assert first_cells("Members") == list(MEMBERS)
    assert first_cells("Outcomes") == list(OUTCOMES)


def test_every_decision_is_described_and_said_to_be_forwarded_or_not() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| (\S+) \|$", chapter(TEXT, "Decisions"), re.MULTILINE))
    assert list(rows) == list(DECISIONS)
    assert {name for name, forwarded in rows.items() if forwarded == "yes"} == FORWARDED


def test_every_decision_has_an_example_as_it_is_written() -> None:
    shown = {name: json.loads(block) for name, block in re.findall(r"### (\w+)\n\n```json\n(.*?)\n```", EXAMPLES, re.DOTALL)}
    assert shown == examples(), "run python -m tests.audit_examples"
    assert section() == HEADING + EXAMPLES
