"""`mcpguard audit export --otlp`: sends rows of the audit log to an OpenTelemetry collector."""

import contextlib
import os

import click

from mcpguard.cli._text import say
from mcpguard.config import Settings
from mcpguard.errors import ExitStatus, McpguardError, require
from mcpguard.identity.account import state_folder
from mcpguard.stores.api import Wanted
from mcpguard.text.printing import plural


def send(settings: Settings, url: str, wanted: Wanted, *, with_user: bool, follow: bool) -> int:
    """Send rows.

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
    options = telemetry.Options(wanted, os.environ.get(telemetry.SERVICE) or "mcpguard", with_user, follow)
    try:
        position = telemetry.Position(state_folder(os.environ), settings.address.shown, settings.namespace, url)
        with contextlib.closing(position):
            exporter = telemetry.Exporter(settings, telemetry.Collector(url), position, options, say)
            exporter.run()
    except KeyboardInterrupt:
        return ExitStatus.INTERRUPTED
    except OSError as error:
        hint = "check that the folder is writable and the disk is not full"
        raise McpguardError(f"the position of the export cannot be kept: {error}", hint) from error
    click.echo(f"{plural(exporter.sent, 'row')} sent", err=True)
    return ExitStatus.OK
