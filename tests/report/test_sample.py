"""The sample report of the manual, `docs/sample-report.html`, which `python -m tests.report.test_sample` writes."""

import re
from pathlib import Path

from mcpguard.policy.parse import parse
from mcpguard.report.gather import gather
from mcpguard.report.page import page
from tests.report.week import POLICY, SINCE_US, UNTIL_US, week

FILE = Path(__file__).parents[2] / "docs" / "sample-report.html"


def sample() -> str:
    findings = gather([list(week())], SINCE_US, UNTIL_US)
    return page(findings, parse(POLICY), namespace="default", filters="", made_us=UNTIL_US)


def test_the_sample_report_of_the_manual_is_that_of_the_made_up_week() -> None:
    manual, made = (re.sub(r"<footer.*?</footer>", "", page, flags=re.DOTALL) for page in (FILE.read_text("utf-8"), sample()))
    assert manual == made, "run python -m tests.report.test_sample"
    assert made.count("<svg") == 5


if __name__ == "__main__":
    FILE.write_text(sample(), "utf-8")
