"""`mcpguard audit report`: writes an HTML page about a period."""

import os
import shlex
import sys
from pathlib import Path
from typing import Any, Final

import click

from mcpguard import config, whole_files
from mcpguard.cli.audit import require_store
from mcpguard.cli.base import Command, give_way
from mcpguard.cli.filters import is_given, row_filters, wanted_rows
from mcpguard.cli.options import policy_option, store_option
from mcpguard.cli.present import echo, written_to
from mcpguard.errors import ExitStatus, UsageError, require
from mcpguard.files import is_there
from mcpguard.policy.file import PolicyFile
from mcpguard.policy.model import Policy
from mcpguard.stores.clock import wall_us
from mcpguard.text.printing import plural

PERIOD_US: Final = 7 * 86_400_000_000
"""The period without `--since`."""

_STDOUT: Final = Path("-")


@click.command("report", Command)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("report.html"),
    metavar="FILE",
    help="The file; - for stdout. Default: report.html.",
)
@row_filters
@policy_option
@store_option
def report(output: Path, policy: str | None, store: str | None, **filters: Any) -> int:
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
    settings = config.load(os.environ, store=store, policy=policy)
    wanted = wanted_rows(settings.namespace, **filters)
    now_us = wall_us()
    until_us = now_us if wanted.until_us is None else wanted.until_us
    since_us = until_us - PERIOD_US if wanted.since_us is None else wanted.since_us
    if since_us >= until_us:
        raise UsageError("--since names a time that has not come yet", "write a span before now, such as 7d")
    with written_to(output):
        _check(output)
    require_store(settings)
    from mcpguard.report.gather import gather
    from mcpguard.report.page import page

    with settings.read_store() as readable:
        rows = readable.rows(wanted=wanted._replace(since_us=since_us, until_us=until_us))
        findings = gather(rows, since_us, until_us)
    policy_file = PolicyFile(settings.policy, named=settings.policy_named).begin()
    in_force = policy_file if isinstance(policy_file, Policy) else None  # the page says so if it is not valid
    text = page(findings, in_force, namespace=settings.namespace, filters=_shown(filters), made_us=now_us)
    if output == _STDOUT:
        sys.stdout.write(text)
    else:
        with written_to(output):
            whole_files.write(Path(os.path.realpath(output)), text.encode())
        calls, denied = plural(findings.all.calls, "call"), f"{findings.all.denied} denied"
        echo(f"wrote {output}: {calls}, {denied}")
    return ExitStatus.OK


def _check(output: Path) -> None:
    """Refuse a path that no page can be written to.

    Raises:
        OSError: The system does not say what is there.
        UsageError: It is no file, or its folder is missing.
    """
    if output != _STDOUT and is_there(output) and not output.is_file():
        raise UsageError(f"-o: {output} is not a regular file", "name a file, or - for stdout")
    if not output.parent.is_dir():
        raise UsageError(f"-o: there is no folder {output.parent}", "create it, or name another file")


def _shown(filters: dict[str, Any]) -> str:
    """The options that select rows besides the period, as a command line."""
    words = []
    for key, value in filters.items():
        if key in {"since", "until"} or not is_given(value):
            continue
        for one in value if isinstance(value, tuple) else (value,):
            words += [f"--{key}"] if one is True else [f"--{key}", str(one)]
    return shlex.join(words)
