"""The server's process on POSIX: started before anything slow is loaded, and ended with all processes that it started."""

import sys

if sys.platform == "win32":
    raise ImportError("on Windows import mcpguard.relay.process_windows")

import contextlib
import errno
import os
import signal
from collections.abc import Mapping, Sequence
from typing import Final

from mcpguard.errors import CommandError, ExitStatus
from mcpguard.relay import strays
from mcpguard.relay.command import find_program

_LIMITS: Final = (errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Errors of a system that has reached a limit."""


class ServerProcess:
    """The server's process, its group, and the pipes to it.

    Args:
        pid: The process; on POSIX also the number of its group.
        stdin: Our end of its standard input.
        stdout: Our end of its standard output.

    Attributes:
        status: Its exit status as a shell reports it, 128 + n for signal n; None while it runs.
        was_killed: Whether a signal ended it.
    """

    def __init__(self, pid: int, stdin: int, stdout: int) -> None:
        self.pid = pid
        self.stdin = stdin
        self.stdout = stdout
        self.status: int | None = None
        self.was_killed = False
        self._pipes = {strays.pipe_of(stdin), strays.pipe_of(stdout)}
        self._strays: set[strays.Process] = set()
        self._devnull = os.open(os.devnull, os.O_WRONLY)  # opened early: later there may be no descriptor left

    def poll(self) -> int | None:
        """Its exit status; None while it runs.

        On Linux it stays a zombie until mcpguard ends, so that its number is not used again. Processes that it started may
        outlive it by hours, and a signal to its group must not reach another group with the same number.
        """
        if self.status is None:
            try:
                code = _exit_code(self.pid)
            except ChildProcessError:
                self.status = ExitStatus.FAILURE
                return self.status
            if code is not None:
                self.was_killed = code < 0
                self.status = code if code >= 0 else 128 - code
        return self.status

    def signal(self, number: int) -> None:
        """Send a signal to it and to the processes that it started, unless they run as another user.

        On Linux that includes processes that left its group. They are looked for before the signal is sent, because they cannot
        be found as descendants once their parent is dead.
        """
        if sys.platform == "linux":
            self._strays |= strays.find(self.pid, self._pipes)
        try:
            os.killpg(self.pid, number)
        except OSError:
            if self.status is None:  # it may have left its group
                with contextlib.suppress(OSError):
                    os.kill(self.pid, number)
        for process in self._strays:
            strays.send(process, number)

    def kill(self) -> None:
        """Kill it and the processes that it started."""
        self.signal(signal.SIGKILL)

    def close_stdin(self) -> None:
        """End its input. The descriptor stays open, on the null device: another thread may be about to write to it."""
        os.dup2(self._devnull, self.stdin, inheritable=False)


def _exit_code(pid: int) -> int | None:
    """The status of a process that has ended, or -n for signal n; None while it runs."""
    if sys.platform == "linux":
        found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if found is None:
            return None
        return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def spawn(argv: Sequence[str], environ: Mapping[str, str]) -> ServerProcess:
    """Start a server in a process group of its own, with pipes for input and output and mcpguard's stderr.

    It is not forked: a copy of this process would delay the server, and the loading of modules here, by milliseconds.

    Args:
        argv: Its command; the first word is looked up in `PATH`.
        environ: Its environment.

    Raises:
        CommandError: There is no such program, or the system cannot run it.
    """
    program = find_program(argv[0], environ)
    pipes: list[int] = []
    try:
        for _ in range(2):
            pipes += os.pipe()
        stdin_read, stdin_write, stdout_read, stdout_write = pipes
        pid = os.posix_spawn(
            program,
            list(argv),
            dict(environ),
            file_actions=[(os.POSIX_SPAWN_DUP2, stdin_read, 0), (os.POSIX_SPAWN_DUP2, stdout_write, 1)],
            setpgroup=0,
            setsigdef=(signal.SIGPIPE, signal.SIGXFSZ),  # Python ignores them, and a server would inherit that
        )
    except OSError as error:
        for fd in pipes:
            os.close(fd)
        raise _not_started(argv[0], error) from error
    os.close(stdin_read)
    os.close(stdout_write)
    return ServerProcess(pid, stdin_write, stdout_read)


def _not_started(command: str, error: OSError) -> CommandError:
    if error.errno in _LIMITS:
        what, hint = f"cannot start {command}: {error.strerror}", "look at the limits of this system: ulimit -a"
    elif error.errno == errno.ENOENT:  # the program itself exists: `find_program` found it
        what, hint = f"cannot run {command}: its interpreter is missing", "look at its first line, or at what it was built for"
    else:
        why = "not a program for this system" if error.errno == errno.ENOEXEC else error.strerror
        what, hint = f"cannot run {command}: {why}", "a script needs a first line like #!/bin/sh"
    return CommandError(what, hint, ExitStatus.NOT_EXECUTABLE)
