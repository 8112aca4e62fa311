"""What was measured, as the table in the manual's page about performance."""

from collections.abc import Sequence
from typing import Final

from tests.pages import ROOT

from .rounds import Row
from .variants import CAT, GUARD, LEAST

PAGE: Final = ROOT / "docs" / "performance.md"

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
