"""Shows rows of the audit log as a table on a terminal."""

import os
import shutil
import sys
from collections.abc import Mapping
from datetime import datetime
from typing import Final

import click

from mcpguard.cli._text import is_coloured
from mcpguard.core.text import printable

WIDE: Final = 130
"""The width from which on each row has user and agent. In a narrower table they have a line of their own when they change."""

_STYLES: Final = {
    "rate_limited": "red",
    "denied": "red",
    "unauthenticated": "red",
    "unavailable": "red",
    "invalid": "red",
    "would_deny": "yellow",
    "allowed_unavailable": "yellow",
}
_UNITS_MS: Final = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


class Table:
    """Formats audit records as lines of a table.

    Args:
        width: The width of the terminal in columns.
        coloured: Whether decisions are coloured.
    """

    def __init__(self, width: int, *, coloured: bool) -> None:
        self._coloured = coloured
        self._is_wide = width >= WIDE
        self._who = ""
        self._width = width
        spare = width - 1 - sum(size + 1 for size in (8, 12, 5, 6, 9, 11))  # a line of full width would wrap on some terminals
        if self._is_wide:
            user, agent = spare // 4, spare * 2 // 5
            sizes = [("USER", user), ("AGENT", agent), ("TOOL", spare - user - agent - 2)]
        else:
            sizes = [("TOOL", max(8, spare))]
        self._what_size = sizes[-1][1]
        self._columns = [("TIME", 8), ("DECISION", 12), ("AXIS", 5), *sizes, ("COUNT", -6), ("LIMIT", 9), ("OUTCOME", 11)]

    def heading(self) -> str:
        """The line with the names of the columns."""
        return self._row([name for name, _ in self._columns])

    def lines(self, record: Mapping[str, object]) -> list[str]:
        """The line of a record. In a narrow table, a line with user, agent and server comes first if they have changed."""
        name = {key: printable(str(record[key])) for key in ("user", "agent", "server", "tool") if key in record}
        decision = str(record["decision"])
        what = name.get("tool", printable(str(record.get("reason", ""))))
        if "repeats" in record:
            times = f" ×{record['repeats']}"
            what = fit(what, max(1, self._what_size - len(times))).rstrip() + times
        cells = [
            datetime.fromisoformat(str(record["time"])).astimezone().strftime("%H:%M:%S"),
            decision,
            str(record.get("axis", "")),
        ]
        if self._is_wide:
            cells += [name.get("user", ""), name.get("agent", "")]
        cells += [what, str(record.get("count", "")), _limit(record), _end(record)]
        lines = [self._row(cells, _STYLES.get(decision, ""))]
        if not self._is_wide:
            who = " ".join([name.get("user", ""), *([f"as {name['agent']}"] if "agent" in name else [])])
            who += f" on {name['server']}" if "server" in name else ""
            if who != self._who:
                self._who = who
                lines.insert(0, fit(f"- {who.strip()}", self._width - 1).rstrip())
        return lines

    def _row(self, cells: list[str], style: str = "") -> str:
        padded = [fit(cell, size) for cell, (_, size) in zip(cells, self._columns, strict=True)]
        if style and self._coloured:
            padded[1] = click.style(padded[1], fg=style)
        return " ".join(padded).rstrip()


def _limit(record: Mapping[str, object]) -> str:
    if "limit" in record:
        return f"{record['limit']}/{record['window']}"
    return "deny" if record["decision"] == "denied" or ("rule" in record and "count" not in record) else ""


def _end(record: Mapping[str, object]) -> str:
    wait = record.get("retry_after_ms")
    if isinstance(wait, int):
        spans = [(-(-wait // unit_ms), word) for word, unit_ms in _UNITS_MS.items()]
        return next((f"retry {n}{word}" for n, word in spans if n < 10_000), "")
    return str(record.get("outcome", ""))


def fit(text: str, size: int) -> str:
    """A text, cut or padded to a number of terminal columns. A negative number aligns it to the right.

    >>> fit("search_customers", 8), fit("7", -3), fit("客户", 5)
    ('search_…', '  7', '客户 ')
    """
    from rich.cells import cell_len, set_cell_size

    width = abs(size)
    if cell_len(text) > width:
        text = set_cell_size(text, width - 1) + "…"
    padding = " " * (width - cell_len(text))
    return padding + text if size < 0 else text + padding


def wanted() -> Table | None:
    """The table for stdout. None for a pipe, unless COLUMNS is set."""
    is_terminal = sys.stdout.isatty()
    if not is_terminal and not os.environ.get("COLUMNS", "").isdigit():
        return None
    return Table(shutil.get_terminal_size().columns, coloured=is_terminal and is_coloured())
