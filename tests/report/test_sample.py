import re

from tests.report.sample import FILE, sample


def without_version(page: str) -> str:
    return re.sub(r"<footer.*?</footer>", "", page, flags=re.DOTALL)


def test_the_sample_report_of_the_manual_is_that_of_the_made_up_week() -> None:
    page = FILE.read_text("utf-8")
    assert without_version(page) == without_version(sample()), "run python -m tests.report.sample"
    assert page.count("<svg") == 5
