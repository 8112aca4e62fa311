"""Writes the sample report of the manual, `docs/sample-report.html`: `python -m tests.report.sample`."""

from pathlib import Path

from mcpguard.policy.parse import parse
from mcpguard.report.gather import gather
from mcpguard.report.page import page
from tests.report.week import POLICY, SINCE_US, UNTIL_US, week

FILE = Path(__file__).parents[2] / "docs" / "sample-report.html"


def sample() -> str:
    """The report of the made-up week."""
    findings = gather([list(week())], SINCE_US, UNTIL_US)
    return page(findings, parse(POLICY), namespace="default", filters="", made_us=UNTIL_US)


if __name__ == "__main__":
    FILE.write_text(sample(), "utf-8")
