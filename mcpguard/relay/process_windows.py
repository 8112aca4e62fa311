"""The server's process on Windows, with the same interface as on POSIX: in a job, with all processes that it started."""

import sys

if sys.platform != "win32":
    raise ImportError("elsewhere import mcpguard.relay.process_posix")

import _winapi
import ctypes
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from ctypes import wintypes

from mcpguard.errors import CommandError, ExitStatus
from mcpguard.light_typing import Final
from mcpguard.relay import batch_file
from mcpguard.relay.command import find_program
from mcpguard.relay.readiness import ServerInput
from mcpguard.system_programs import system_program

_KILL_ON_CLOSE: Final = 0x2000
_EXTENDED_LIMITS: Final = 9
_CREATE_SUSPENDED: Final = 0x4

_kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
_kernel32.CreateJobObjectW.restype = wintypes.HANDLE
_kernel32.CreateJobObjectW.argtypes = (ctypes.c_void_p, wintypes.LPCWSTR)
_kernel32.SetInformationJobObject.argtypes = (wintypes.HANDLE, ctypes.c_int, ctypes.c_void_p, wintypes.DWORD)
_kernel32.AssignProcessToJobObject.argtypes = (wintypes.HANDLE, wintypes.HANDLE)
_kernel32.TerminateJobObject.argtypes = (wintypes.HANDLE, wintypes.UINT)
_ntdll = ctypes.WinDLL("ntdll")
_ntdll.NtResumeProcess.argtypes = (wintypes.HANDLE,)


class _Limits(ctypes.Structure):
    """JOBOBJECT_EXTENDED_LIMIT_INFORMATION, of which only the flags are used."""

    _fields_ = (
        ("times", ctypes.c_int64 * 2),
        ("flags", wintypes.DWORD),
        ("sizes", ctypes.c_size_t * 2),
        ("processes", wintypes.DWORD),
        ("affinity", ctypes.c_size_t),
        ("classes", wintypes.DWORD * 2),
        ("counters", ctypes.c_uint64 * 6),
        ("memory", ctypes.c_size_t * 4),
    )


class _Job:
    """A job object: a process and all that it starts. While it is closed by nobody else, Windows kills them when mcpguard ends.

    Raises:
        OSError: Windows cannot create it.
    """

    def __init__(self) -> None:
        self._handle = _checked(_kernel32.CreateJobObjectW(None, None))
        self._limit(_KILL_ON_CLOSE)

    def _limit(self, flags: int) -> None:
        limits = _Limits(flags=flags)
        size = ctypes.sizeof(limits)
        _checked(_kernel32.SetInformationJobObject(self._handle, _EXTENDED_LIMITS, ctypes.byref(limits), size))

    def add(self, process: int) -> None:
        """Put a process into it, by its handle."""
        _checked(_kernel32.AssignProcessToJobObject(self._handle, process))

    def kill(self) -> None:
        """Kill its processes, with the status that Windows' own programs give: 1."""
        _kernel32.TerminateJobObject(self._handle, 1)

    def release(self) -> None:
        """Let its processes outlive mcpguard."""
        self._limit(0)


def _checked(result: int) -> int:
    if not result:
        raise ctypes.WinError(ctypes.get_last_error())
    return result


class ServerProcess:
    """The server's process, its job, and the pipes to it.

    Args:
        process: The process.
        job: The job that it is in.
        stdin: Our end of its standard input.
        stdout: Our end of its standard output.

    Attributes:
        status: Its exit status; None while it runs.
        was_killed: Whether a signal ended it: never, because Windows has no signals.
    """

    def __init__(self, process: subprocess.Popen[bytes], job: _Job, stdin: int, stdout: int) -> None:
        self._process = process
        self._job = job
        self.pid = process.pid
        self.stdin = ServerInput(stdin)
        self.stdout = stdout
        self.status: int | None = None
        self.was_killed = False

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

    def kill(self) -> None:
        """Kill it and the processes that it started."""
        self._job.kill()

    def close_stdin(self) -> None:
        """End its input. From any thread, and more than once."""
        self.stdin.close()

    def reap(self) -> None:
        """Let processes that it started go on after mcpguard, as without it."""
        self._job.release()


def spawn(argv: Sequence[str], environ: Mapping[str, str]) -> ServerProcess:
    """Start a server with pipes for input and output and mcpguard's stderr, in a job that ends with mcpguard.

    Args:
        argv: Its command; the first word is looked up in `PATH`, with the endings of `PATHEXT` (`npx` is `npx.cmd`).
        environ: Its environment.

    Raises:
        CommandError: It cannot be started.
    """
    program = find_program(argv[0], environ)
    executable, command = program, subprocess.list2cmdline([program, *argv[1:]])
    if batch_file.is_batch_file(program):
        try:
            executable, command = system_program("cmd"), batch_file.command_line(program, argv[1:])
        except ValueError as error:
            hint = "name the program that the batch file starts"
            raise CommandError(f"cannot run {argv[0]}: {error}", hint, ExitStatus.NOT_EXECUTABLE) from error
    stdin_read, stdin_write = os.pipe()
    stdout_read, stdout_write = os.pipe()
    try:
        job = _Job()
        process = subprocess.Popen(
            command,
            executable=executable,
            env=dict(environ),
            stdin=stdin_read,
            stdout=stdout_write,
            creationflags=subprocess.CREATE_NO_WINDOW | _CREATE_SUSPENDED,
        )
        # Suspended until it is in the job: what it starts before would not be in it
        handle = _winapi.OpenProcess(0x1F0FFF, False, process.pid)
        try:
            job.add(handle)
            if status := _ntdll.NtResumeProcess(handle):
                raise OSError(status, "Windows cannot resume it")
        except OSError:
            process.kill()
            raise
        finally:
            _winapi.CloseHandle(handle)
    except OSError as error:
        raise CommandError(
            f"cannot run {argv[0]}: {error.strerror}",
            "name a program, or an interpreter and a script",
            ExitStatus.NOT_EXECUTABLE,
        ) from error
    finally:
        os.close(stdin_read)
        os.close(stdout_write)
    return ServerProcess(process, job, stdin_write, stdout_read)


def end_by(number: int) -> None:
    """Do nothing: on Windows no signal ends a server."""
