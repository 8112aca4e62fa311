"""`mcpguard run`: what a client starts instead of the server."""

import os

import click

from mcpguard import config
from mcpguard.errors import ExitStatus


@click.command(
    "run",
    context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False},
    short_help="Start a server behind the guard.",
)
@click.option("--server", metavar="NAME", help="The server's name in rules and audit. Default: from the command.")
@click.option("--user", metavar="U", help="Who calls. Default: MCPGUARD_USER, config.toml, the account.")
@click.option("--agent", metavar="A", help="client::tier::name; an empty part is filled in.")
@click.option("--policy", metavar="F", help="The policy file.")
@click.option("--config", "config_file", metavar="F", help="The settings file.")
@click.option("--store", metavar="URL", help="Where counters and audit are: sqlite:///absolute/path.db, or redis://host/0")
@click.option("--observe", is_flag=True, help="Decide and log, deny nothing.")
@click.option("--denials", type=click.Choice(["error", "result"]), help="How a denial is sent: as error or tool result.")
@click.argument("argv", nargs=-1, type=click.UNPROCESSED, metavar="[--] COMMAND [ARG]...")
def command(argv: tuple[str, ...], server: str | None, config_file: str | None, observe: bool, **options: str | None) -> None:
    """Start COMMAND, a stdio MCP server, and limit its tool calls.

    Its stderr and exit status pass through, and so does everything on stdin and stdout that is not a call over a limit.

    \b
    Example, in a client's config:
      "command": "mcpguard",
      "args": ["run", "--server", "crm", "--", "npx", "-y", "@acme/crm-server"]
    """
    _open_standard_streams()
    if not argv:
        raise click.UsageError("no command to run\nhint: mcpguard run -- npx -y @acme/crm-server")
    settings = config.load(os.environ, config=config_file, **options)
    from mcpguard.relay.run import run

    status = run(list(argv), settings, server=server or os.environ.get("MCPGUARD_SERVER"), observe=observe)
    os._exit(status if 0 <= status <= 255 else ExitStatus.FAILURE)  # at once: pumps may still wait for a client


def _open_standard_streams() -> None:
    """Open what the client has left closed; else the next file that is opened, such as the store, would be our stderr."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
