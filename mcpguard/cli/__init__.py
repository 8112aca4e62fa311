"""The command line.

Every client starts `mcpguard run` and keeps it running, so its options are parsed without a library. click parses all other
commands, and a command line of `run` that has an error or asks for help.
"""

import contextlib
import gc
import os
import sys

from mcpguard import run_options
from mcpguard.errors import ExitStatus, McpguardError, UsageError


def main() -> None:
    """Run the `mcpguard` command. An error that the user can fix is printed as one line and a hint, without a traceback."""
    try:
        wanted = run_options.parse(sys.argv[1:])
        if wanted is not None:
            from mcpguard.cli.start import start

            start(**wanted)
        _leave(_by_click())
    except McpguardError as error:
        _leave(_complain(error))
    except KeyboardInterrupt:
        _leave(ExitStatus.INTERRUPTED)


def _by_click() -> int:
    import click

    from mcpguard.cli.commands import cli
    from mcpguard.cli.errors import by_click

    gc.enable()
    _tolerate_output()
    if instruction := os.environ.get("_MCPGUARD_COMPLETE"):  # a shell asks, by the script of `mcpguard completion`
        from mcpguard.cli.completion import answer

        values = answer(cli, instruction)
        click.echo(values, nl=bool(values))  # bash would take an empty line for a value
        return ExitStatus.OK
    try:
        status = cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        return ExitStatus.INTERRUPTED
    except click.ClickException as error:
        return _complain(UsageError(*by_click(error)))
    except OSError as error:
        what = f"cannot use {error.filename}" if error.filename else "cannot write the output"
        return _complain(McpguardError(f"{what}: {error.strerror or error}"))
    return status if isinstance(status, int) else 0


def _tolerate_output() -> None:
    """Escape characters that stdout cannot encode. If stdout is closed, discard the output."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - open until the process ends
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure:
        reconfigure(errors="backslashreplace")


def _leave(status: int) -> None:
    """Exit with a status. If stdout can no longer be written to, exit without a traceback."""
    try:
        sys.stdout.flush()
    except (OSError, AttributeError):
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - the interpreter flushes it at exit
        status = status or ExitStatus.FAILURE
    sys.exit(status)


def _complain(error: McpguardError) -> ExitStatus:
    from mcpguard.cli.errors import lines

    with contextlib.suppress(OSError, AttributeError):  # stderr is closed
        sys.stderr.write("".join(f"{line}\n" for line in lines(error)))
        sys.stderr.flush()
    return error.exit_status
