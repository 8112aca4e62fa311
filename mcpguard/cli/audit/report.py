"""`mcpguard audit report`: writes an HTML page about a period."""

import os
import shlex
import sys
from pathlib import Path
from typing import Any, Final

import click

from mcpguard import whole_files
from mcpguard.cli.audit import output_file, output_option, require_store
from mcpguard.cli.commands import Command, give_way
from mcpguard.cli.options import is_given, row_filters, wanted_rows, with_settings
from mcpguard.cli.present import echo
from mcpguard.config import Settings
from mcpguard.errors import UsageError, require
from mcpguard.policy.file import PolicyFile
from mcpguard.policy.model import Policy
from mcpguard.stores.clock import wall_us
from mcpguard.text.printing import plural

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
    text = page(findings, in_force, namespace=settings.namespace, filters=_shown(filters), made_us=now_us)
    with output_file(output) as path:
        if path is None:
            sys.stdout.write(text)
            return
        whole_files.write(Path(os.path.realpath(path)), text.encode())
    echo(f"wrote {output}: {plural(findings.all.calls, 'call')}, {findings.all.denied} denied")


def _shown(filters: dict[str, Any]) -> str:
    """The options that select rows besides the period, as a command line."""
    words = []
    for key, value in filters.items():
        if key in {"since", "until"} or not is_given(value):
            continue
        for one in value if isinstance(value, tuple) else (value,):
            words += [f"--{key}"] if one is True else [f"--{key}", str(one)]
    return shlex.join(words)
