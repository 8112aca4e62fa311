"""A server's process on POSIX: started before anything slow is loaded, and ended with all that it started."""

import sys

if sys.platform == "win32":
    raise ImportError("on Windows this is mcpguard.relay.windows")

import contextlib
import errno
import os
import signal
from collections.abc import Mapping, Sequence
from typing import Final

from mcpguard.errors import CommandError, ExitStatus
from mcpguard.relay import strays
from mcpguard.relay.command import find_program

_PR_SET_PDEATHSIG: Final = 1


class Child:
    """The server's process, its group, and the pipes to it.

    Args:
        pid: The process; on POSIX also the number of its group.
        stdin: Our end of its standard input.
        stdout: Our end of its standard output.
        failed: Where the new process says why it could not become the server; it ends when it has.
        command: How an error names it.

    Attributes:
        status: Its exit status if it has ended, as a shell has it: 128 + n for signal n.
        was_killed: Whether a signal has ended it.
    """

    def __init__(self, pid: int, stdin: int, stdout: int, failed: int, command: str) -> None:
        self.pid = pid
        self._failed = failed
        self._command = command
        self.stdin = stdin
        self.stdout = stdout
        self.status: int | None = None
        self.was_killed = False
        self._pipes = {strays.pipe_of(stdin), strays.pipe_of(stdout)}
        self._strays: set[strays.Process] = set()
        self._nowhere = os.open(os.devnull, os.O_WRONLY)  # at the end there may be no descriptor left

    def confirm(self) -> None:
        """Wait until the program runs: some milliseconds, in which we had better things to do.

        Raises:
            CommandError: It does not.
        """
        failure = os.read(self._failed, 16)
        os.close(self._failed)
        if failure:
            os.waitpid(self.pid, 0)
            number = int(failure)
            what, hint = os.strerror(number), "a script needs a first line like #!/bin/sh"
            if number == errno.ENOEXEC:
                what = "not a program for this system"
            elif number == errno.ENOENT:  # the program itself is there: it was looked for
                what, hint = "its interpreter is missing", "look at its first line, or at what it was built for"
            raise CommandError(f"cannot run {self._command}: {what}", hint, ExitStatus.NOT_EXECUTABLE)

    def poll(self) -> int | None:
        """Its exit status if it has ended.

        On Linux the system keeps its number until we end: what it started may outlive it by hours, and a signal to the group of
        that number must not find another one.
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
        """Send a signal to it and all that it started, as far as the system lets us: it may run as another user.

        On Linux that includes what has left its group. It is looked for first: what a dying parent leaves is hard to find.
        """
        if sys.platform == "linux":
            self._strays |= strays.find(self.pid, self._pipes)
        try:
            os.killpg(self.pid, number)
        except OSError:
            if self.status is None:  # it has left its group, perhaps
                with contextlib.suppress(OSError):
                    os.kill(self.pid, number)
        for process in self._strays:
            strays.send(process, number)

    def kill(self) -> None:
        """End it and all that it started, whatever they heed."""
        self.signal(signal.SIGKILL)

    def close_stdin(self) -> None:
        """End its input. The descriptor's number stays taken: another thread may be about to write to it."""
        os.dup2(self._nowhere, self.stdin, inheritable=False)


def _exit_code(pid: int) -> int | None:
    """How a child has ended: its status, or -n for signal n; None if it has not."""
    if sys.platform == "linux":
        found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if found is None:
            return None
        return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def spawn(argv: Sequence[str], environ: Mapping[str, str]) -> Child:
    """Start a server in a process group of its own, with pipes for input and output and our own stderr.

    To be called while this process has one thread. Where the system can, the server is killed when we are.

    Args:
        argv: Its command; the first word is looked up in `PATH`.
        environ: Its environment.

    Raises:
        CommandError: There is no such program. That the system cannot run it is for `Child.confirm` to say.
    """
    program = find_program(argv[0], environ)
    try:
        return _spawn(program, argv, environ)
    except OSError as error:  # of ours: the new process tells its own by itself
        what = f"cannot start {argv[0]}: {error.strerror}"
        raise CommandError(what, "look at the limits of this system: ulimit -a", ExitStatus.NOT_EXECUTABLE) from error


def _spawn(program: str, argv: Sequence[str], environ: Mapping[str, str]) -> Child:
    stdin_read, stdin_write = os.pipe()
    stdout_read, stdout_write = os.pipe()
    failed_read, failed_write = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _become(program, argv, environ, stdin_read, stdout_write, failed_write, parent)
    for fd in (stdin_read, stdout_write, failed_write):
        os.close(fd)
    return Child(pid, stdin_write, stdout_read, failed_read, argv[0])


def _become(
    program: str, argv: Sequence[str], environ: Mapping[str, str], stdin: int, stdout: int, failed: int, parent: int
) -> None:
    """In the new process: turn into the server. Does not return."""
    try:
        os.setpgid(0, 0)
        if sys.platform == "linux":
            _die_with(parent)
        os.dup2(stdin, 0)
        os.dup2(stdout, 1)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and that would be inherited
            signal.signal(number, signal.SIG_DFL)
        os.execve(program, list(argv), dict(environ))  # noqa: S606 - starting a program without a shell is the point
    except OSError as error:
        os.write(failed, str(error.errno).encode())
    finally:
        os._exit(ExitStatus.NOT_EXECUTABLE)


def _die_with(parent: int) -> None:
    """Ask the kernel to kill us when the parent is gone, however it went. SIGKILL: a server may ignore all else."""
    import ctypes  # in the new process only: it would cost the guard memory

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(ExitStatus.FAILURE)
