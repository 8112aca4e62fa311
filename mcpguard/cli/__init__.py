"""The command line.

Every client starts `mcpguard run` and keeps it running, so its options are parsed without a library. click parses all other
commands, and a command line of `run` that has an error or asks for help.
"""

import contextlib
import gc
import io
import os
import sys
from collections.abc import Sequence

from mcpguard import run_options
from mcpguard.errors import ExitStatus, McpguardError, UsageError
from mcpguard.light_typing import Any, NoReturn


def main() -> None:
    """Run the `mcpguard` command. An error that the user can fix is printed as one line and a hint, without a traceback."""
    if sys.platform == "win32":
        prepare_output()
    try:
        wanted = run_options.parse(sys.argv[1:])
        if wanted is not None:
            start(**wanted)
        asked = run_options.parse_hook(sys.argv[1:])
        if asked is not None:
            from mcpguard.hook.run import run

            run(**asked)
        status = _by_click()
    except McpguardError as error:
        status = _complain(error)
    except KeyboardInterrupt:
        status = ExitStatus.INTERRUPTED
    _leave(ExitStatus.OK if sys.argv[1:2] == ["hook"] else status)  # after another status a client may stop the call


class _Output(io.FileIO):
    """Redirected output. A write to a pipe that nobody reads fails as on POSIX; Windows would call it an invalid argument."""

    def write(self, data: Any, /) -> int:
        """See `io.FileIO`.

        Raises:
            BrokenPipeError: The reader has left.
        """
        try:
            return super().write(data) or 0
        except OSError as error:
            import errno  # takes a tenth of a millisecond, and `run` begins here

            if error.errno == errno.EINVAL:
                raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)) from error
            raise


def prepare_output() -> None:
    """Write UTF-8 into pipes and files, whatever the code page, or what `PYTHONIOENCODING` says. A terminal stays as it is."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper) and not isinstance(stream.buffer, io.BytesIO) and not stream.isatty():
            output = io.BufferedWriter(_Output(stream.fileno(), "w", closefd=False))
            at_once = stream.write_through or name == "stderr"
            encoding = stream.encoding if os.environ.get("PYTHONIOENCODING") else "utf-8"
            setattr(sys, name, io.TextIOWrapper(output, encoding, stream.errors, line_buffering=at_once))


def refuse_quotes(arguments: Sequence[str]) -> None:
    """Refuse an argument in single quotes.

    Raises:
        UsageError: `cmd.exe` takes them as a part of the text, so a rule for the user `'*'` would match nobody.
    """
    for argument in arguments:
        if argument.startswith("'"):
            raise UsageError(f"{argument}: single quotes are part of the text in cmd.exe", 'use double quotes, such as "*"')


def start(argv: Sequence[str], *, server: str | None, observe: bool | None, quiet: bool, **options: str | None) -> NoReturn:
    """Run a server behind mcpguard, and end this process with the server's exit status.

    Args:
        argv: The server's command.
        server: The server's name; None to derive it from the command.
        observe: Decide and log, but deny nothing; None for what `MCPGUARD_OBSERVE` says.
        quiet: Write only errors to stderr.
        options: The options of `config.load`.

    Raises:
        McpguardError: The settings are not valid, or the server cannot be started.
    """
    from mcpguard import config
    from mcpguard.relay.run import run

    for fd in (0, 1, 2):  # that the client left closed: no other file, such as the store, may take its place
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    settings = config.load(os.environ, server=server, **options)
    settings = settings._replace(quiet=quiet or settings.quiet, observe=settings.observe if observe is None else observe)
    status = run(argv, settings, server=server or os.environ.get("MCPGUARD_SERVER"))
    os._exit(_exit_code(status))  # at once, because a thread may still wait for the client


def _exit_code(status: int) -> int:
    """The number for `os._exit`: on Windows a status has 32 bits, such as 0xC0000005, and is passed with a sign."""
    if sys.platform == "win32":
        return status if status < 1 << 31 else status - (1 << 32)
    return status if 0 <= status <= 255 else ExitStatus.FAILURE


def _by_click() -> int:
    import click

    from mcpguard.cli.commands import cli

    gc.enable()
    _tolerate_output()
    if instruction := os.environ.get("_MCPGUARD_COMPLETE"):  # a shell asks, by the script of `mcpguard completion`
        from mcpguard.cli.completion import answer

        values = answer(cli, instruction)
        click.echo(values, nl=bool(values))  # bash would take an empty line for a value
        return ExitStatus.OK
    if sys.platform == "win32":
        refuse_quotes(sys.argv[1:])
    try:
        plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"  # else colours are for terminals
        # Unlike `click.Command.main`, this leaves pipes and * alone
        with cli.make_context("mcpguard", sys.argv[1:], color=False if plain else None) as ctx:
            status = cli.invoke(ctx)
        sys.stdout.flush()
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.exceptions.Abort:
        return ExitStatus.INTERRUPTED
    except click.exceptions.NoArgsIsHelpError as help_text:
        help_text.show()
        return ExitStatus.USAGE
    except click.ClickException as error:
        from mcpguard.cli.present import click_error

        usage = UsageError(*click_error(error))
        if sys.argv[1:2] == ["hook"] and "--enforce" in sys.argv[3:] and sys.argv[2] in run_options.HOOK_CLIENTS:
            from mcpguard.hook.run import refuse

            refuse(sys.argv[2], f"mcpguard cannot decide calls: {usage.message}")
        return _complain(usage)
    except BrokenPipeError as error:
        return _unread(error)
    except OSError as error:
        what = f"cannot use {error.filename}" if error.filename else "cannot write the output"
        hint = "check that its folder is writable and the disk is not full"
        return _complain(McpguardError(f"{what}: {error.strerror or error}", hint))
    return status if isinstance(status, int) else ExitStatus.OK


def _unread(error: BrokenPipeError) -> int:
    """The status if a pipe has no reader. Without a reader of stdout, the command ends quietly."""
    from mcpguard.cli.present import reader_leaves

    if not reader_leaves(within_s=0):
        return _complain(McpguardError(f"cannot continue: {error.strerror or 'broken pipe'}"))
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes stdout at exit
    return ExitStatus.OK


def _tolerate_output() -> None:
    """Escape characters that stdout cannot encode. If stdout is closed, discard the output."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - open until the process ends
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure:
        reconfigure(errors="backslashreplace")


def _leave(status: int) -> None:
    """Exit with a status. If stdout or stderr can no longer be written to, exit without a traceback."""
    try:
        sys.stdout.flush()
    except (OSError, AttributeError):
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - the interpreter flushes it at exit
        status = status or ExitStatus.FAILURE
    try:
        sys.stderr.flush()
    except (OSError, AttributeError):
        sys.stderr = None  # with its own status, the interpreter would hide this one
    sys.exit(status)


def _complain(error: McpguardError) -> ExitStatus:
    from mcpguard.cli.present import error_lines

    with contextlib.suppress(OSError, AttributeError):  # stderr is closed
        sys.stderr.write("".join(f"{line}\n" for line in error_lines(error)))
        sys.stderr.flush()
    return error.exit_status
