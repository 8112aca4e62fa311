"""The command line.

`mcpguard run` is started with every client and stays all day, so that it goes its own way, which loads no library; all other
commands are click's, and so is all that `run` does not understand.
"""

import contextlib
import os
import sys

from mcpguard.cli import run_options
from mcpguard.errors import ExitStatus, McpguardError


def main() -> None:
    """The `mcpguard` command: one line and a hint for what a user can mend, never a traceback for it."""
    try:
        wanted = run_options.parse(sys.argv[1:])
        if wanted is not None:
            from mcpguard.cli.start import start

            start(**wanted)
        _leave(_by_click())
    except McpguardError as error:
        _leave(_complain(error.message, error.hint, error.exit_status))
    except KeyboardInterrupt:
        _leave(ExitStatus.INTERRUPTED)


def _by_click() -> int:
    import click

    from mcpguard.cli.commands import cli

    try:
        status = cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        return ExitStatus.INTERRUPTED
    except click.ClickException as error:
        ctx = getattr(error, "ctx", None)
        return _complain(error.format_message(), f"{ctx.command_path if ctx else 'mcpguard'} --help", ExitStatus.USAGE)
    except OSError as error:
        return _complain(f"cannot write: {error.strerror or error}", "", ExitStatus.FAILURE)
    return status if isinstance(status, int) else 0


def _leave(status: int) -> None:
    """End with a status. What is still to be written may have nowhere to go: that is no reason for a traceback."""
    try:
        sys.stdout.flush()
    except (OSError, AttributeError):
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - for the interpreter's own flush
        status = status or ExitStatus.FAILURE
    sys.exit(status)


def _complain(message: str, hint: str, status: ExitStatus) -> ExitStatus:
    from mcpguard.core.redaction import redacted
    from mcpguard.core.text import printable

    lines = [f"mcpguard: {message}", *([f"hint: {hint}"] if hint else [])]
    lines = [printable(redacted(line)) for line in lines]  # a name may hold line ends; a token may stand where one belongs
    with contextlib.suppress(OSError, AttributeError):  # nobody listens
        sys.stderr.write("".join(f"{line}\n" for line in lines))
        sys.stderr.flush()
    return status
