"""What was measured, as the table in the manual's page about performance, and how that page is renewed."""

from collections.abc import Mapping, Sequence
from typing import Final

from .rounds import Row
from .session import BenchmarkError
from .variants import CAT, GUARD, LEAST, ROOT

PAGE: Final = ROOT / "docs" / "performance.md"
END: Final = "<!-- end of these figures -->"

NAMES: Final = {"bare": "bare server", LEAST.name: "smallest possible relay", "warden": "mcp-warden", CAT.name: "`cat`"}
"""How the table names what mcpguard is compared with."""


def markdown(rows: Sequence[Row]) -> str:
    """The table."""
    lines = ["", "| | mcpguard | for comparison |", "|---|---|---|"]
    for row in rows:
        cells = {name: f"{' / '.join(map(_rounded, values))} {row.unit}".strip() for name, values in row.values.items()}
        own = cells.pop(GUARD.name)
        lines.append(f"| {row.text} | {own} | {', '.join(f'{NAMES.get(name, name)} {cell}' for name, cell in cells.items())} |")
    return "\n".join([*lines, ""])


def _rounded(value: float) -> str:
    """Two digits of a large figure, since the rest differs from run to run. An added time under 0 is chance.

    >>> _rounded(26_412), _rounded(1_482), _rounded(98.4), _rounded(-3.6)
    ('26,000', '1,500', '98', '0')
    """
    value = max(0.0, value)
    step = 10 ** max(0, len(str(round(value))) - 2) if value >= 1000 else 1
    return f"{round(value / step) * step:,}"


def begin(name: str) -> str:
    """The mark before the figures with a name."""
    return f"<!-- {name}: `python -m tests.benchmarks --docs` writes the figures that follow -->"


def renewed(page: str, figures: Mapping[str, str]) -> str:
    """The page with these figures, by name: what stands between two marks is replaced.

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


def write(figures: Mapping[str, str]) -> None:
    """Renew figures in the page."""
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8"), figures), encoding="utf-8")
