"""The server's process on Windows, with the same interface as on POSIX. It is type-checked, but its authors have not run it."""

import sys

if sys.platform != "win32":
    raise ImportError("elsewhere import mcpguard.relay.process_posix")

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence

from mcpguard.errors import CommandError, ExitStatus
from mcpguard.relay.command import find_program
from mcpguard.system_programs import output_of


class ServerProcess:
    """The server's process, its group, and the pipes to it.

    Args:
        process: The process, in a process group of its own.

    Attributes:
        status: Its exit status; None while it runs.
        was_killed: Whether a signal ended it: never, because Windows has no signals.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None and process.stdout is not None  # noqa: S101, PT018 - `spawn` asks for pipes
        self._process = process
        self.pid = process.pid
        self.stdin = process.stdin.fileno()
        self.stdout = process.stdout.fileno()
        self.status: int | None = None
        self.was_killed = False
        self._devnull = os.open(os.devnull, os.O_WRONLY)

    def confirm(self) -> None:
        """Nothing to wait for: `spawn` has raised if Windows cannot run the program."""

    def watch(self) -> None:
        """Do nothing: Windows has no process that could watch."""

    def poll(self) -> int | None:
        """Its exit status; None while it runs."""
        if self.status is None:
            self.status = self._process.poll()
        return self.status

    def wait(self, ended: Callable[[], None]) -> None:
        """Wait until it has ended, then call `ended`."""
        self._process.wait()
        ended()

    def signal(self, number: int) -> None:
        """Ask its group to end, whatever the number: Ctrl-Break is the only signal that a group can receive."""
        del number
        with contextlib.suppress(OSError):
            os.kill(self.pid, signal.CTRL_BREAK_EVENT)

    def pass_on(self, number: int) -> None:
        """Do nothing: Windows has no signals that end nothing."""

    def kill(self) -> None:
        """Kill it and the processes that it started."""
        output_of("taskkill", "/T", "/F", "/PID", str(self.pid), within_s=2)
        with contextlib.suppress(OSError):
            self._process.kill()

    def close_stdin(self) -> None:
        """End its input. The descriptor stays open, on the null device: another thread may be about to write to it."""
        os.dup2(self._devnull, self.stdin, inheritable=False)

    def reap(self) -> None:
        """Do nothing: on Windows nothing is left of a process that has ended."""


def spawn(argv: Sequence[str], environ: Mapping[str, str]) -> ServerProcess:
    """Start a server in a process group of its own, with pipes for input and output and mcpguard's stderr.

    Args:
        argv: Its command; the first word is looked up in `PATH`, with the endings of `PATHEXT` (`npx` is `npx.cmd`).
        environ: Its environment.

    Raises:
        CommandError: It cannot be started.
    """
    program = find_program(argv[0], environ)
    flags = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW
    try:
        process = subprocess.Popen(
            [program, *argv[1:]],
            env=dict(environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            creationflags=flags,
        )
    except OSError as error:
        raise CommandError(
            f"cannot run {argv[0]}: {error.strerror}",
            "name a program, or an interpreter and a script",
            ExitStatus.NOT_EXECUTABLE,
        ) from error
    return ServerProcess(process)


def end_by(number: int) -> None:
    """Do nothing: on Windows no signal ends a server."""
