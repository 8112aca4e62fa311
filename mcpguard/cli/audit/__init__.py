"""`mcpguard audit`: reads the audit log."""

import click

from mcpguard.cli.base import Group
from mcpguard.config import Settings
from mcpguard.errors import McpguardError


@click.group(
    "audit",
    Group,
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
