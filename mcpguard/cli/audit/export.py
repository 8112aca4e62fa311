"""`mcpguard audit export`: writes rows of the audit log for other programs."""

import contextlib
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import click

from mcpguard import whole_files
from mcpguard.cli.audit import output_file, output_option, require_store
from mcpguard.cli.commands import Command, give_way
from mcpguard.cli.options import row_filters, wanted_rows, with_settings
from mcpguard.cli.present import say, wait_for_reader
from mcpguard.config import Settings
from mcpguard.errors import McpguardError, UsageError, require
from mcpguard.identity.account import state_folder
from mcpguard.reading.export import FORMATS
from mcpguard.reading.following import follow as follow_rows
from mcpguard.stores.api import StoredRow, Wanted
from mcpguard.text.printing import amount, plural


@click.command("export", Command)
@click.option("--format", "form", type=click.Choice(tuple(FORMATS)), help="The format. Default: jsonl.")
@output_option("-", "The file to write. Default: stdout. A file that exists is not replaced.")
@click.option("-f", "--follow", is_flag=True, help="Then wait for new rows and write them, too. A file is appended to.")
@click.option("--otlp", "collector", metavar="URL", help="Send rows to an OpenTelemetry collector, over HTTP, instead.")
@click.option("--otlp-user", "with_user", is_flag=True, help="With --otlp: name users in spans and metrics.")
@row_filters
@with_settings("store")
def export(
    settings: Settings,
    form: str | None,
    output: str,
    follow: bool,
    collector: str | None,
    with_user: bool,
    **filters: Any,
) -> None:
    """Write rows of the audit log, the oldest first: as JSON lines, as CSV, or as OCSF events.

    A file appears under its name when it is complete, and only your account can read it. With --follow a row is written when
    its call has ended, or after ten seconds.

    With --otlp rows become spans and metrics. The next command with the same store and URL continues after the last row sent.
    The first one with --follow begins with new rows unless --since is given. OTEL_EXPORTER_OTLP_HEADERS has the headers of
    requests, such as an API key.

    \b
    Examples:
      mcpguard audit export --since 7d -o week.jsonl
      mcpguard audit export --format csv --denied -o denials.csv
      mcpguard audit export --format ocsf --follow --since 1m | vector
      mcpguard audit export --otlp http://localhost:4318 --follow
    """
    give_way()
    wanted = wanted_rows(settings.namespace, filters)
    if not follow:
        require_store(settings)
    if collector is not None:
        if output != "-" or form is not None:
            raise UsageError("--otlp excludes -o and --format", "leave them out: rows are sent to the collector")
        _send(settings, collector, wanted, with_user=with_user, follow=follow)
        return
    if with_user:
        raise UsageError("--otlp-user needs --otlp", "write --otlp URL")
    rows, chosen = 0, FORMATS[form or "jsonl"]
    with output_file(output) as path, _opened(path, follow=follow) as (file, is_empty):
        if chosen.heading and is_empty:
            file.write(chosen.heading + "\n")
        for page in _pages(settings, wanted, wait_for_reader if path is None else time.sleep, follow=follow):
            file.write(chosen.lines(page))
            file.flush()
            rows += len(page)
    if path and not follow:  # said when the file has its name, which does not depend on stderr
        click.echo(f"{amount(rows, 'row')} written", err=True)


def _pages(
    settings: Settings, wanted: Wanted, sleep: Callable[[float], None], *, follow: bool
) -> Iterator[Sequence[StoredRow]]:
    """All wanted rows, some at a time; with `follow`, then those that come."""
    if follow:
        yield from (page for _, page in follow_rows(settings, wanted, say, sleep))
        return
    with settings.read_store() as store:
        yield from store.rows(wanted=wanted)


@contextlib.contextmanager
def _opened(path: Path | None, *, follow: bool) -> Iterator[tuple[IO[str], bool]]:
    """The file to write, and whether it is empty.

    A new file is written beside its place and gets its name at the end. With `follow` the file is appended to.

    Raises:
        UsageError: The file exists.
    """
    if path is None:
        yield sys.stdout, True
        return
    mode = path.stat().st_mode if path.exists() else None
    if follow or (mode is not None and not stat.S_ISREG(mode)):  # such as /dev/null or a named pipe
        with open(path, "a", encoding="utf-8", newline="", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            if mode is not None and stat.S_ISREG(mode) and _is_cut(path):
                file.write("\n")
            yield file, not path.stat().st_size
        return
    if mode is not None:
        raise UsageError(f"{path} exists, and is not replaced", "name another file, or remove it first")
    try:
        with whole_files.new_file(path.absolute()) as file:
            yield file, True
    except FileExistsError:
        raise UsageError(f"{path} exists by now, and is not replaced", "name another file") from None


def _is_cut(path: Path) -> bool:
    """Whether a file ends within a line, such as when the disk was full."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 1))
        return file.read() not in {b"", b"\n"}


def _send(settings: Settings, url: str, wanted: Wanted, *, with_user: bool, follow: bool) -> None:
    """Send rows to an OpenTelemetry collector.

    Args:
        settings: They name the store.
        url: The collector's URL.
        wanted: The rows.
        with_user: Whether spans and metrics name users.
        follow: Whether to wait for further rows.
    """
    require("audit export --otlp", "otel", "opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")
    from mcpguard.reading import telemetry

    url = telemetry.checked_url(url, os.environ)
    service = os.environ.get(telemetry.SERVICE) or "mcpguard"
    made = telemetry.Telemetry(service, settings.namespace, with_user=with_user)
    try:
        position = telemetry.SentPosition(state_folder(os.environ), settings.address.shown, settings.namespace, url)
        with contextlib.closing(position):
            collector = telemetry.Collector(url)
            exporter = telemetry.Exporter(settings, made, collector, position, wanted, follow=follow, say=say)
            exporter.run()
    except OSError as error:
        hint = "check that the folder is writable and the disk is not full"
        raise McpguardError(f"the position of the export cannot be kept: {error}", hint) from error
    click.echo(f"{plural(exporter.sent, 'row')} sent", err=True)
