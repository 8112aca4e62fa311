"""`mcpguard audit stats`: counts the calls in the audit log."""

import json
import os
import shutil
import sys
from typing import Any

import click

from mcpguard import config
from mcpguard.cli import _filters
from mcpguard.cli._audit_table import fit
from mcpguard.cli._command import Command, give_way
from mcpguard.cli._filters import row_filters
from mcpguard.cli._options import json_option, store_option
from mcpguard.cli._text import say
from mcpguard.errors import ExitStatus
from mcpguard.reading.statistics import KEYS, Statistic, statistics
from mcpguard.text.printing import printable, quoted

_MEMBERS = ("calls", "allowed", "denied", "would_deny", "errors", "p50_ms", "p95_ms", "p99_ms")


@click.command("stats", Command, short_help="Count calls by user, tool or hour.")
@click.option("--by", type=click.Choice(KEYS), default="tool", show_default=True, help="What to count by.")
@row_filters
@json_option
@store_option
def command(by: str, as_json: bool, store: str | None, **filters: Any) -> int:
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
    settings = config.load(os.environ, store=store)
    wanted = _filters.wanted(settings.namespace, **filters)
    found: list[Statistic] = []
    total = None
    if settings.address.exists():
        with settings.read_store() as opened:
            found, total = statistics(opened.tally(wanted=wanted), by)
    if as_json:
        click.echo(json.dumps({"by": by, "rows": [one._asdict() for one in found]}))
    elif total is None:
        say(f"no calls: there is no store at {settings.address.shown}")
    elif not found:
        say("no calls" + (" match" if any(map(_filters.is_given, filters.values())) else ""))
    else:
        is_terminal = sys.stdout.isatty()
        width = shutil.get_terminal_size().columns
        for line in _table(by, [*found, total], width) if is_terminal else map(_line, [by] * len(found), found):
            click.echo(line)
    return ExitStatus.OK


def _line(by: str, one: Statistic) -> str:
    words = [f"{name}={value}" for name in _MEMBERS if (value := getattr(one, name)) is not None]
    return " ".join([f"{by}={'-' if one.key is None else quoted(one.key)}", *words])


def _table(by: str, found: list[Statistic], width: int) -> list[str]:
    """A table with as many columns as fit; in a narrow one a key has a line of its own."""
    columns = [("CALLS", -9), ("DENIED", -8), ("DENIED %", -8), ("ERRORS", -7), ("P50", -7), ("P95", -7), ("P99", -7)]
    if width >= 110:
        columns[1:1] = [("ALLOWED", -9)]
        columns[4:4] = [("WOULD DENY", -10)]
    elif width < 60:
        columns = [("CALLS", -9), ("DENIED %", -8), ("P50", -7), ("P99", -7)]
    spare = width - 1 - sum(abs(size) + 1 for _, size in columns)
    lines = []
    for names in [None, *found]:
        values = {name: name for name, _ in columns} if names is None else _cells(names)
        key = by.upper() if names is None else _key(by, names.key)
        cells = " ".join(fit(values[name], size) for name, size in columns)
        if spare < 8:
            lines += [fit(key, width - 1).rstrip(), f"  {cells}"]
        else:
            lines.append(f"{fit(key, spare)} {cells}")
    return lines


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
