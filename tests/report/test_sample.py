import re

from tests.report.sample import FILE, sample


def without_drawings(page: str) -> str:
    """A page without what depends on the releases of mcpguard and of the library that draws."""
    return re.sub(r"<svg.*?</svg>|<footer.*?</footer>", "", page, flags=re.DOTALL)


def test_the_sample_report_of_the_manual_is_that_of_the_made_up_week() -> None:
    page = FILE.read_text("utf-8")
    assert without_drawings(page) == without_drawings(sample()), "run python -m tests.report.sample"
    assert page.count("<svg") == 5
    assert len(page.encode()) < 500_000
