"""Shows rows of the audit log as a table on a terminal."""

import time
from collections.abc import Mapping
from typing import Final

import click

from mcpguard.cli.counters import short_limit
from mcpguard.cli.present import Columns, cell_width, fit, fit_all, room_beside
from mcpguard.session.verdict import FORWARDED, REFUSED
from mcpguard.text.printing import printable
from mcpguard.text.times import span_up

WITH_ID: Final = 120
"""The width from which on each row has its id, which `audit show` takes."""

WIDE: Final = 155
"""The width from which on each row has server, user and agent. In a narrower table they have lines of their own when they
change."""

_LEAST_TOOL: Final = 8
"""The least width of a tool's name. If there is less room, each row has two lines."""

_NOTED: Final = ("would_deny", "allowed_unavailable", "warned")
"""Words for calls that were forwarded, though not as a matter of course."""


class Table:
    """Formats audit records as lines of a table.

    Args:
        width: The width of the terminal in columns.
    """

    def __init__(self, width: int) -> None:
        self._width = width - 1  # a line of full width would wrap on some terminals
        self._is_wide = width >= WIDE
        self._day = ""
        self._who: list[str] = []
        self._lines = self._layout(width)
        self._size = {name: abs(size) for columns in self._lines for name, size in columns}
        self._heading = self._row({name: name for name in self._size})

    def _layout(self, width: int) -> list[Columns]:
        """The columns of a row, by line."""
        begin, end = [("TIME", 8), ("DECISION", 12), ("AXIS", 5)], [("COUNT", -6), ("LIMIT", 9), ("OUTCOME", 11)]
        end += [("ID", 24)] if width >= WITH_ID else []
        spare = room_beside(begin + end, width)
        if spare < _LEAST_TOOL:
            first = [("TIME", 8), ("DECISION", max(4, self._width - 27)), ("AXIS", 5), ("OUTCOME", 11)]
            return [first, [("", 1), ("TOOL", max(4, self._width - 19)), ("COUNT", -6), ("LIMIT", 9)]]
        if not self._is_wide:
            return [[*begin, ("TOOL", spare), *end]]
        server, user, agent = spare // 8, spare // 5, spare * 2 // 5
        names = [("SERVER", server), ("USER", user), ("AGENT", agent), ("TOOL", spare - server - user - agent - 3)]
        return [begin + names + end]

    def lines(self, record: Mapping[str, object], *, ended: bool = False) -> list[str]:
        """The lines of a record. Above the first one are the names of the columns.

        Lines with the date, and in a narrow table with user, agent and server, come before it if these have changed. With
        `ended`, the record was shown without its outcome: its line has the time of the outcome.
        """
        heading, self._heading = self._heading, []
        tool = printable(str(record.get("tool", record.get("reason", ""))))
        if ended:
            cells = {"DECISION": "ended", "TOOL": tool, "OUTCOME": _end(record)}
            return heading + self._with_context(record, ended_us(record), cells)
        decision = str(record["decision"])
        if isinstance(warned := record.get("warned"), list):
            record, decision = {**record, **warned[0]}, "warned" if decision == "allowed" else decision
        if "repeats" in record:
            times = f" ×{record['repeats']}"
            tool = fit(tool, max(1, self._size["TOOL"] - len(times))).rstrip() + times
        cells = {"DECISION": decision, "AXIS": str(record.get("axis", "")), "TOOL": tool, "COUNT": str(record.get("count", ""))}
        cells |= {"LIMIT": _limit(record), "OUTCOME": _end(record)}
        style = "red" if decision in REFUSED else "yellow" if decision in _NOTED else ""
        return heading + self._with_context(record, int(str(record["time_us"])), cells, style)

    def _with_context(self, record: Mapping[str, object], time_us: int, cells: dict[str, str], style: str = "") -> list[str]:
        at = time.localtime(time_us // 1_000_000)  # unlike `datetime`, it takes any zone that TZ names
        name = {key: printable(str(record[key])) for key in ("id", "user", "agent", "server") if key in record}
        cells = {"TIME": time.strftime("%H:%M:%S", at)} | {key.upper(): text for key, text in name.items()} | cells
        lines = self._row(cells, style)
        who = [
            name.get("user", ""),
            *(f"{word} {name[key]}" for word, key in (("as", "agent"), ("on", "server")) if key in name),
        ]
        if not self._is_wide and who != self._who:
            self._who = who
            whole = f"- {' '.join(who).strip()}"
            parts = [whole] if cell_width(whole) <= self._width else [f"- {who[0]}", *(f"  {part}" for part in who[1:])]
            lines = [*(fit(part, self._width).rstrip() for part in parts), *lines]
        day = time.strftime("%Y-%m-%d", at)
        if day != self._day:
            self._day = day
            lines = [day, *lines]
        return lines

    def _row(self, cells: Mapping[str, str], style: str = "") -> list[str]:
        lines = []
        for columns in self._lines:
            names = [name for name, _ in columns]
            padded = dict(zip(names, fit_all([cells.get(name, "") for name in names], columns), strict=True))
            if style and "DECISION" in padded:
                padded["DECISION"] = click.style(padded["DECISION"], fg=style)
            lines.append(" ".join(padded.values()).rstrip())
        return lines


def ended_us(record: Mapping[str, object]) -> int:
    """The time at which a call ended, if its outcome is known."""
    return int(str(record["time_us"])) + round(float(str(record.get("duration_ms", 0))) * 1000)


def _limit(record: Mapping[str, object]) -> str:
    if "limit" in record:
        return short_limit(record)
    return "deny" if record["decision"] == "denied" or ("rule" in record and "count" not in record) else ""


def _end(record: Mapping[str, object]) -> str:
    """The outcome of a call that was forwarded; when a denied call may be retried, or why nobody knows."""
    wait = record.get("retry_after_ms")
    if isinstance(wait, int) and record["decision"] not in FORWARDED:
        return f"retry {span_up(wait, 10_000)}"
    if record["decision"] == "rate_limited":  # there is no wait
        return str(record.get("reason", ""))
    return str(record.get("outcome", ""))
