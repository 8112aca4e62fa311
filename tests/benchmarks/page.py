"""Renews the figures in the manual's page about performance: what stands between two marks is replaced."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from .session import BenchmarkError
from .variants import ROOT

PAGE: Final = ROOT / "docs" / "performance.md"
PICTURE: Final = PAGE.parent / "images" / "benchmarks" / "flat.svg"
END: Final = "<!-- end of these figures -->"


def begin(name: str) -> str:
    """The mark before the figures with a name."""
    return f"<!-- {name}: `python -m tests.benchmarks --docs` writes the figures that follow -->"


def renewed(page: str, figures: Mapping[str, str]) -> str:
    """The page with these figures, by name.

    Raises:
        BenchmarkError: A mark is missing.
    """
    for name, text in figures.items():
        before, mark, rest = page.partition(begin(name))
        _, end, after = rest.partition(END)
        if not mark or not end:
            raise BenchmarkError(f"{PAGE.name} does not have the lines {begin(name)} and {END}")
        page = f"{before}{mark}\n{text}\n{end}{after}"
    return page


def write(figures: Mapping[str, str], picture: str | None, page: Path = PAGE) -> None:
    """Renew figures in the page, and the picture unless it is None."""
    page.write_text(renewed(page.read_text(encoding="utf-8"), figures), encoding="utf-8")
    if picture is not None:
        PICTURE.write_text(picture, encoding="utf-8")
