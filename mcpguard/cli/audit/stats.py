"""`mcpguard audit stats`: counts the calls in the audit log."""

import sys
from typing import Any, Final

import click

from mcpguard.cli.commands import Command, give_way
from mcpguard.cli.options import json_option, none_match, row_filters, wanted_rows, with_settings
from mcpguard.cli.present import echo_json, headings, room_beside, say, table_row, width_of_terminal
from mcpguard.config import Settings
from mcpguard.reading.statistics import KEYS, Statistic, statistics
from mcpguard.text.printing import printable, quoted

_LEAST_KEY: Final = 16
"""How wide what is counted by should be. A narrower terminal shows fewer columns."""

_LEFT_OUT: Final = ("DENIED %", "P50", "P99", "ERRORS")
"""The columns that are left out then, one after another."""


@click.command("stats", Command)
@click.option("--by", type=click.Choice(KEYS), default="tool", show_default=True, help="What to count by.")
@row_filters
@json_option
@with_settings("store")
def stats(settings: Settings, by: str, as_json: bool, **filters: Any) -> None:
    """Count the calls in the audit log, with their denials, errors and durations.

    A row that stands for several denials counts as that many calls. Durations are exact to 0.5 %. Hours are in UTC. Errors are
    the outcomes tool_error and rpc_error.

    \b
    Examples:
      mcpguard audit stats --since 1d
      mcpguard audit stats --by user --denied --since 2h
      mcpguard audit stats --by hour --tool search_customers --json
    """
    give_way()
    wanted = wanted_rows(settings.namespace, filters)
    found: list[Statistic] = []
    total = None
    if settings.address.exists():
        with settings.read_store() as opened:
            found, total = statistics(opened.tally(wanted=wanted), by)
    if as_json:
        echo_json({"by": by, "rows": [one._asdict() for one in found]})
    elif total is None:
        say(f"no calls: there is no store at {settings.address.shown}")
    elif not found:
        say(none_match("calls", filters))
    else:
        lines = _table(by, [*found, total], width_of_terminal()) if sys.stdout.isatty() else [_line(by, one) for one in found]
        click.echo("\n".join(lines))


def _line(by: str, one: Statistic) -> str:
    words = [f"{name}={value}" for name in Statistic._fields[1:] if (value := getattr(one, name)) is not None]
    return " ".join([f"{by}={'-' if one.key is None else quoted(one.key)}", *words])


def _table(by: str, found: list[Statistic], width: int) -> list[str]:
    """A table with as many columns as fit."""
    columns = [("CALLS", -9), ("DENIED", -8), ("DENIED %", -8), ("ERRORS", -7), ("P50", -7), ("P95", -7), ("P99", -7)]
    if width >= 110:
        columns[1:1] = [("ALLOWED", -9)]
        columns[4:4] = [("WOULD DENY", -10)]
    for name in _LEFT_OUT:
        if room_beside(columns, width) < _LEAST_KEY:
            columns = [one for one in columns if one[0] != name]
    columns.insert(0, (by.upper(), max(_LEAST_KEY // 2, room_beside(columns, width))))
    cells = [{by.upper(): _key(by, one.key), **_cells(one)} for one in found]
    return [headings(columns), *(table_row([one[name] for name, _ in columns], columns) for one in cells)]


def _key(by: str, key: str | None) -> str:
    """A key as the table shows it: an hour without its seconds, so that it fits into 80 columns."""
    if key is None:
        return "-"
    return key.replace(":00:00Z", ":00Z") if by == "hour" else printable(key)


def _cells(one: Statistic) -> dict[str, str]:
    return {
        "CALLS": f"{one.calls:,}",
        "ALLOWED": f"{one.allowed:,}",
        "DENIED": f"{one.denied:,}",
        "DENIED %": f"{100 * one.denied / one.calls:.1f}" if one.calls else "",
        "WOULD DENY": f"{one.would_deny:,}",
        "ERRORS": f"{one.errors:,}",
        "P50": _duration(one.p50_ms),
        "P95": _duration(one.p95_ms),
        "P99": _duration(one.p99_ms),
    }


def _duration(ms: float | None) -> str:
    if ms is None:
        return "-"
    return f"{ms:.1f}ms" if ms < 100 else f"{ms:.0f}ms" if ms < 10_000 else f"{ms / 1000:.0f}s"
