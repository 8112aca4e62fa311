"""The program's commands."""

import click

from mcpguard import __version__
from mcpguard.cli.base import Group


@click.group(
    cls=Group,
    parts={
        "run": ("run:run", "start a server behind mcpguard"),
        "install": ("clients.install:install", "make your clients start their servers through mcpguard"),
        "uninstall": ("clients.install:uninstall", "undo install"),
        "clients": ("clients.listing:clients", "list the clients, their servers, and which are guarded"),
        "policy": ("policy:policy", "show, check, explain and edit limits"),
        "audit": ("audit:audit", "read the audit log"),
        "usage": ("counters.usage:usage", "show how full each counter is"),
        "reset": ("counters.reset:reset", "empty counters"),
        "doctor": ("doctor:doctor", "check this installation, and a server behind it"),
        "whoami": ("whoami:whoami", "show which user and agent a server would have, and why"),
        "hook": ("hook:hook", "tell a client's subagents apart"),
        "completion": ("completion:completion", "let your shell complete commands, options and names"),
        "demo": ("demo:demo", "see mcpguard at work in ten seconds"),
    },
)
@click.version_option(__version__, prog_name="mcpguard", message="%(prog)s %(version)s")
def cli() -> None:
    """Limit how often AI agents call MCP tools, by user, tool and agent.

    `mcpguard install` puts mcpguard in front of the servers in your clients' files.

    \b
    Examples:
      mcpguard install --dry-run
      mcpguard run --server crm -- npx -y @acme/crm-server
      mcpguard policy set --user '*' --tool search_customers 100/1h
      mcpguard audit tail -f
    """
