"""`mcpguard audit`: reads the audit log."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import click

from mcpguard.cli.commands import CommandGroup
from mcpguard.config import Settings
from mcpguard.errors import McpguardError, UsageError


@click.group(
    "audit",
    CommandGroup,
    parts={
        "export": ("audit.export:export", "Write rows for other programs."),
        "prune": ("audit.prune:prune", "Delete old rows."),
        "report": ("audit.report:report", "Write an HTML page about a period."),
        "show": ("audit.show:show", "Explain one row."),
        "stats": ("audit.stats:stats", "Count calls by user, tool or hour."),
        "tail": ("audit.tail:tail", "Show the newest rows."),
    },
)
def audit() -> None:
    """Read the audit log, which has a row for each decision.

    \b
    Example:
      mcpguard audit tail -f
    """


def require_store(settings: Settings) -> None:
    """Refuse to go on without a store.

    Raises:
        McpguardError: There is none.
    """
    if not settings.address.exists():
        raise McpguardError(
            f"no audit log yet: there is no store at {settings.address.shown}",
            "start a server with mcpguard run, which creates it",
        )


@contextlib.contextmanager
def output_file(output: str) -> Iterator[Path | None]:
    """The file that `-o` names, to be written in the block; None for `-`, which stands for stdout.

    Raises:
        UsageError: It is a folder, or its folder is missing.
        McpguardError: The file cannot be written.
    """
    path = Path(output)
    try:
        if output != "-" and path.is_dir():
            raise UsageError(f"-o: {output} is a folder", "name a file")
        if output != "-" and not path.parent.is_dir():
            raise UsageError(f"-o: there is no folder {path.parent}", "create it, or name another file")
        yield None if output == "-" else path
    except OSError as error:
        if output == "-":
            raise
        what = f"-o: {output} cannot be written: {error.strerror or error}"
        raise McpguardError(what, "check that its folder is writable and the disk is not full") from error
