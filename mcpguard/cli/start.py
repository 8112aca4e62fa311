"""Starts `mcpguard run`, whichever way its options were read."""

import os
from collections.abc import Sequence
from typing import NoReturn

from mcpguard import config
from mcpguard.errors import ExitStatus
from mcpguard.relay.run import run


def start(argv: Sequence[str], *, server: str | None, observe: bool, quiet: bool, **options: str | None) -> NoReturn:
    """Run a server behind the guard, and end this process with its status.

    Args:
        argv: The server's command.
        server: Its name.
        observe: Decide and log, deny nothing.
        quiet: Say nothing on stderr but errors.
        options: As `config.load` has them.

    Raises:
        McpguardError: It cannot be started.
    """
    _open_standard_streams()
    settings = config.load(os.environ, server=server, **options)
    settings = settings._replace(quiet=quiet or settings.quiet)
    status = run(argv, settings, server=server or os.environ.get("MCPGUARD_SERVER"), observe=observe)
    os._exit(status if 0 <= status <= 255 else ExitStatus.FAILURE)  # at once: a thread of the relay may still wait for a client


def _open_standard_streams() -> None:
    """Open what the client has left closed; else the next file that is opened, such as the store, would be our stderr."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
