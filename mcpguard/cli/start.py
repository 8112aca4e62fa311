"""Starts `mcpguard run` once its options are parsed, by `run_options` or by click."""

import os
from collections.abc import Sequence
from typing import NoReturn

from mcpguard import config
from mcpguard.errors import ExitStatus
from mcpguard.relay.run import run


def start(argv: Sequence[str], *, server: str | None, observe: bool, quiet: bool, **options: str | None) -> NoReturn:
    """Run a server behind mcpguard, and end this process with the server's exit status.

    Args:
        argv: The server's command.
        server: The server's name; None to derive it from the command.
        observe: Decide and log, but deny nothing.
        quiet: Write only errors to stderr.
        options: The options of `config.load`.

    Raises:
        McpguardError: The settings are not valid, or the server cannot be started.
    """
    _open_standard_streams()
    settings = config.load(os.environ, server=server, **options)
    settings = settings._replace(quiet=quiet or settings.quiet, observe=observe or settings.observe)
    status = run(argv, settings, server=server or os.environ.get("MCPGUARD_SERVER"))
    os._exit(status if 0 <= status <= 255 else ExitStatus.FAILURE)  # at once, because a thread may still wait for the client


def _open_standard_streams() -> None:
    """Open the standard streams that the client left closed, so that no other file, such as the store, takes their place."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
