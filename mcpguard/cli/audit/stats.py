"""`mcpguard audit stats` and `report`: count the calls in the audit log; write an HTML page about a period."""

import os
import shlex
import sys
from pathlib import Path
from typing import Any, Final

import click

from mcpguard import whole_files
from mcpguard.cli.audit import output_file, output_option, require_store
from mcpguard.cli.commands import Command, give_way
from mcpguard.cli.options import is_given, json_option, none_match, row_filters, wanted_rows, with_settings
from mcpguard.cli.present import echo, echo_json, headings, room_beside, say, table_row, width_of_terminal
from mcpguard.config import Settings
from mcpguard.errors import UsageError, require
from mcpguard.policy.file import PolicyFile
from mcpguard.policy.model import Policy
from mcpguard.reading.statistics import KEYS, Statistic, statistics
from mcpguard.stores.clock import wall_us
from mcpguard.text.printing import plural, printable, quoted

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


PERIOD_US: Final = 7 * 86_400_000_000
"""The period without `--since`."""


@click.command("report", Command)
@output_option("report.html", "The file; - for stdout. Default: report.html.")
@row_filters
@with_settings("policy", "store")
def report(settings: Settings, output: str, **filters: Any) -> None:
    """Write an HTML page about a period: calls, denials, bursts, errors, durations, and how limits are used.

    The page is one file without scripts. A browser shows it without any request. The period is the last 7 days unless
    --since or --until say otherwise.

    \b
    Examples:
      mcpguard audit report
      mcpguard audit report --since 30d --server crm -o crm.html
    """
    give_way()
    require("audit report", "report", "jinja2")
    wanted = wanted_rows(settings.namespace, filters)
    now_us = wall_us()
    until_us = now_us if wanted.until_us is None else wanted.until_us
    since_us = until_us - PERIOD_US if wanted.since_us is None else wanted.since_us
    if since_us >= until_us:
        raise UsageError("--since names a time that has not come yet", "write a span before now, such as 7d")
    with output_file(output):  # refused before all rows are read
        require_store(settings)
    from mcpguard.report.gather import gather
    from mcpguard.report.page import page

    with settings.read_store() as readable:
        rows = readable.rows(wanted=wanted._replace(since_us=since_us, until_us=until_us))
        findings = gather(rows, since_us, until_us)
    policy_file = PolicyFile(settings.policy, named=settings.policy_named).begin()
    in_force = policy_file if isinstance(policy_file, Policy) else None  # the page says so if it is not valid
    text = page(findings, in_force, namespace=settings.namespace, filters=_as_words(filters), made_us=now_us)
    with output_file(output) as path:
        if path is None:
            sys.stdout.write(text)
            return
        whole_files.write(Path(os.path.realpath(path)), text.encode())
    echo(f"wrote {output}: {plural(findings.all.calls, 'call')}, {findings.all.denied} denied")


def _as_words(filters: dict[str, Any]) -> str:
    """The options that select rows besides the period, as a command line."""
    words = []
    for key, value in filters.items():
        if key in {"since", "until"} or not is_given(value):
            continue
        for one in value if isinstance(value, tuple) else (value,):
            words += [f"--{key}"] if one is True else [f"--{key}", str(one)]
    return shlex.join(words)
