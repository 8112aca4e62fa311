"""The server's process on POSIX: started before anything slow is loaded, and ended with all processes that it started.

On Linux it also ends strays: processes outside of the server's group. `setsid` takes a process out of the group that signals
go to. `/proc` shows such a process as a descendant while its parent lives, or as a holder of the server's pipes while its stdin
or stdout is one of them. A daemon, which is neither, is not found. As a child subreaper mcpguard would find daemons too, but it
would become the parent of orphans, and some servers rely on process 1 becoming their parent: they exit then.
"""

import sys

if sys.platform == "win32":
    raise ImportError("on Windows import mcpguard.relay.process_windows")

import contextlib
import errno
import os
import signal
import stat
from collections.abc import Collection, Mapping, Sequence

from mcpguard.errors import LOOK_AT_LIMITS, CommandError, ExitStatus
from mcpguard.files import close, read_at_once
from mcpguard.light_typing import Any, Final, NamedTuple
from mcpguard.relay.readiness import ServerInput

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4

_OF_ONE_PROCESS: Final = frozenset({signal.SIGUSR1, signal.SIGUSR2})
"""Signals that somebody sends to one process. Other processes of the group may have no handler, and would end by them."""

_WATCHDOG: Final = 'trap "" HUP INT QUIT TERM USR1 USR2; read -r word; kill -s KILL -- "-$1"'
"""The shell command that ends a group when its input ends. It ignores the signals that all processes of a session may get."""

_LIMITED: Final = frozenset({errno.EAGAIN, errno.ENOMEM, errno.E2BIG, errno.EMFILE, errno.ENFILE})
"""Errors of a program that could run with higher limits."""


class ServerProcess:
    """The server's process, its group, and the pipes to it.

    Args:
        pid: The process; on POSIX also the number of its group.
        stdin: Our end of its standard input.
        stdout: Our end of its standard output.
        failed: The pipe on which the new process reports why it could not become the server. It ends when the program runs.
        command: The command, for errors.

    Attributes:
        status: Its exit status as a shell reports it, 128 + n for signal n; None while it runs.
        was_killed: Whether a signal ended it.
    """

    def __init__(self, pid: int, stdin: int, stdout: int, failed: int, command: str) -> None:
        self.pid = pid
        self._failed = failed
        self._command = command
        self.stdin = ServerInput(stdin)
        self.stdout = stdout
        self.status: int | None = None
        self.was_killed = False
        self._pipes = {pipe_of(stdin), pipe_of(stdout)}
        self._strays: set[Stray] = set()
        self._watchdog = 0  # the shell

    def confirm(self) -> None:
        """Wait until the program runs. That takes a few milliseconds: load modules before you call this.

        Raises:
            CommandError: The system cannot run it.
        """
        failure = os.read(self._failed, 16)
        close(self._failed)
        if failure:
            os.waitpid(self.pid, 0)
            self.reap()
            number = int(failure)
            what, hint = os.strerror(number), "a script needs a first line like #!/bin/sh"
            if number == errno.ENOEXEC:
                what = "not a program for this system"
            elif number == errno.ENOENT:  # the program itself exists: it was found
                what, hint = "its interpreter is missing", "look at its first line, or at what it was built for"
            elif number in _LIMITED:
                hint = LOOK_AT_LIMITS
            raise CommandError(f"cannot run {self._command}: {what}", hint, ExitStatus.NOT_EXECUTABLE)

    def watch(self) -> None:
        """Have its group killed if mcpguard is killed, if the system has a shell, descriptors and a process for that.

        On Linux the kernel kills the server itself then, but not the processes that it has started. So a shell waits for the
        end of a pipe that only mcpguard holds. On other systems `start` has called this.
        """
        if self._watchdog:
            return
        shell = "/bin/sh"
        with contextlib.suppress(OSError):
            read, _ = os.pipe()
            nowhere = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_WRONLY, 0) for fd in (1, 2)]
            try:
                self._watchdog = os.posix_spawn(
                    shell,
                    [shell, "-c", _WATCHDOG, "mcpguard-watchdog", str(self.pid)],
                    {},
                    file_actions=[(os.POSIX_SPAWN_DUP2, read, 0), *nowhere],
                    setpgroup=0,  # signals to mcpguard's group or the server's must not reach it
                )
            finally:
                close(read)

    def poll(self) -> int | None:
        """Its exit status; None while it runs.

        On Linux it stays a zombie until `reap`, so that its number is not used again. Processes that it started may outlive it
        by hours, and a signal to its group must not reach another group with the same number.
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
            self._strays |= strays(self.pid, self._pipes)
        self._to_group(number)
        for process in self._strays:
            send(process, number)

    def pass_on(self, number: int) -> None:
        """Send it a signal that mcpguard got. Its group gets it, too, if it is one that a terminal sends to a whole group."""
        if number in _OF_ONE_PROCESS:
            with contextlib.suppress(OSError):
                os.kill(self.pid, number)
        else:
            self._to_group(number)

    def _to_group(self, number: int) -> None:
        try:
            os.killpg(self.pid, number)
        except OSError:
            if self.status is None:  # it may have left its group
                with contextlib.suppress(OSError):
                    os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it and the processes that it started."""
        self.signal(signal.SIGKILL)

    def reap(self) -> None:
        """Remove the zombie: in a container, process 1 may not do it. From now on send no signal, and nobody watches."""
        with contextlib.suppress(OSError):
            os.waitpid(self.pid, os.WNOHANG)
        if self._watchdog:
            with contextlib.suppress(OSError):
                os.kill(self._watchdog, signal.SIGKILL)
                os.waitpid(self._watchdog, 0)
            self._watchdog = 0


def end_by(number: int) -> None:
    """End this process by a signal, as the server has ended, so that the client sees it. Without a core dump of its own.

    Returns if the signal does not end the process, such as process 1 of a container.
    """
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if sys.platform == "linux":
        _prctl(_PR_SET_DUMPABLE, 0)  # a program that collects core dumps may not heed the limit
    with contextlib.suppress(OSError):  # SIGKILL has no handler
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os.kill(os.getpid(), number)


def _exit_code(pid: int) -> int | None:
    """The status of a process that has ended, or -n for signal n; None while it runs."""
    if sys.platform == "linux":
        found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if found is None:
            return None
        return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def start(program: str, argv: Sequence[str], environ: Mapping[str, str]) -> ServerProcess:
    """Start a server in a process group of its own. On Linux the kernel kills it when mcpguard ends.

    Args:
        program: The file that its command names.
        argv: Its command.
        environ: Its environment.

    Raises:
        OSError: There is no process or descriptor left. If the system cannot run the program, `ServerProcess.confirm` raises.
    """
    stdin_read, stdin_write = os.pipe()
    stdout_read, stdout_write = os.pipe()
    failed_read, failed_write = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _become(program, argv, environ, stdin_read, stdout_write, failed_write, parent)
    with contextlib.suppress(OSError):  # so does the server, but a watchdog may look for the group before that
        os.setpgid(pid, pid)
    for fd in (stdin_read, stdout_write, failed_write):
        close(fd)
    server = ServerProcess(pid, stdin_write, stdout_read, failed_read, argv[0])
    if sys.platform != "linux":
        server.watch()
    return server


def _become(
    program: str, argv: Sequence[str], environ: Mapping[str, str], stdin: int, stdout: int, failed: int, parent: int
) -> None:
    """In the new process: become the server. Does not return."""
    try:
        os.setpgid(0, 0)
        if sys.platform == "linux":
            _die_with(parent)
        os.dup2(stdin, 0)
        os.dup2(stdout, 1)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and a server would inherit that
            signal.signal(number, signal.SIG_DFL)
        os.execve(program, list(argv), dict(environ))  # noqa: S606 - starting a program without a shell is the point
    except OSError as error:
        os.write(failed, str(error.errno).encode())
    finally:
        os._exit(ExitStatus.NOT_EXECUTABLE)


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when the parent ends in any way. With SIGKILL: a server may ignore other signals."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(ExitStatus.FAILURE)


def _prctl(option: int, value: int) -> None:
    """Linux's `prctl`. In a new process, or at the end of this one: it costs memory."""
    arguments = (option, int(value), 0, 0, 0)
    try:  # what ctypes does, which takes 3 ms to load
        import _ctypes

        this_program: Any = None  # typeshed does not know that `dlopen` takes it
        _ctypes.call_function(_ctypes.dlsym(_ctypes.dlopen(this_program, 0), "prctl"), arguments)
    except (ImportError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(*arguments)


_PROC: Final = "/proc"
_STAT_BYTES: Final = 1024
_PARENT, _GROUP, _STARTED = 1, 2, 19
"""The places of the parent's pid, the group and the start time in what `_stat` returns."""


class Stray(NamedTuple):
    """A process; the start time distinguishes it from a later one with the same pid.

    Attributes:
        pid: Its pid.
        started: When it was started, in ticks since the system started.
    """

    pid: int
    started: bytes


def pipe_of(fd: int) -> str | None:
    """The name in `/proc` of the pipe that a descriptor is an end of; None if it is not a pipe."""
    found = os.fstat(fd)
    return f"pipe:[{found.st_ino}]" if stat.S_ISFIFO(found.st_mode) else None


def strays(leader: int, pipes: Collection[str | None]) -> set[Stray]:
    """The processes of a server that are not in its group.

    Args:
        leader: The server's pid, which is also the number of its group.
        pipes: Its stdin and stdout, as `pipe_of` names them.
    """
    processes: dict[int, Stray] = {}
    children: dict[int, list[int]] = {}
    group = {leader}
    for pid in _pids():
        if (fields := _stat(pid)) is None:
            continue
        processes[pid] = Stray(pid, fields[_STARTED])
        children.setdefault(int(fields[_PARENT]), []).append(pid)
        if int(fields[_GROUP]) == leader:
            group.add(pid)
    holders = {pid for pid in processes if any(_link(f"{_PROC}/{pid}/fd/{fd}") in pipes for fd in (0, 1))}
    found = group | (holders - {os.getpid()})
    parents = list(found)
    while parents:
        for child in children.get(parents.pop(), ()):
            if child not in found:
                found.add(child)
                parents.append(child)
    return {processes[pid] for pid in found - group}


def send(process: Stray, number: int) -> None:
    """Send a signal to a process if it still runs and the system permits it."""
    fields = _stat(process.pid)
    if fields is not None and fields[_STARTED] == process.started:
        with contextlib.suppress(OSError):
            os.kill(process.pid, number)


def _link(path: str) -> str:
    """The target of a link, which is not opened; empty if it may not be read."""
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _pids() -> list[int]:
    try:
        return [int(name) for name in os.listdir(_PROC) if name.isdecimal()]
    except OSError:
        return []


def _stat(pid: int) -> list[bytes] | None:
    """The fields of `/proc/PID/stat` after the name, which may contain anything; None if the process has ended."""
    try:
        text = read_at_once(f"{_PROC}/{pid}/stat", _STAT_BYTES)
    except OSError:
        return None
    fields = text.rpartition(b")")[2].split()
    return fields if len(fields) > _STARTED else None
