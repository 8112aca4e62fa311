"""The server's process on Windows, with the same interface as on POSIX: in a job, with all processes that it started."""

import sys

if sys.platform != "win32":
    raise ImportError("elsewhere import mcpguard.relay.process_posix")

import _winapi
import ctypes
import os
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from ctypes import wintypes

from mcpguard.errors import CommandError, ExitStatus
from mcpguard.light_typing import Final
from mcpguard.relay.readiness import ServerInput
from mcpguard.system_programs import system_program

_KILL_ON_CLOSE: Final = 0x2000
_EXTENDED_LIMITS: Final = 9
_CREATE_SUSPENDED: Final = 0x4

MAX_BATCH_CHARS: Final = 8191
"""The longest command line of `cmd.exe`. It would cut a longer one."""

_PLAIN: Final = re.compile(r"[\w#$+./:@\\-]*[\w#$+./:@-]", re.ASCII)
"""Arguments without quotes: a batch file that compares `%1` with an option expects none. A backslash at the end needs them."""

_BEFORE_QUOTE: Final = re.compile(r'(\\*)("|$)')

_kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
_kernel32.CreateJobObjectW.restype = wintypes.HANDLE
_kernel32.CreateJobObjectW.argtypes = (ctypes.c_void_p, wintypes.LPCWSTR)
_kernel32.SetInformationJobObject.argtypes = (wintypes.HANDLE, ctypes.c_int, ctypes.c_void_p, wintypes.DWORD)
_kernel32.AssignProcessToJobObject.argtypes = (wintypes.HANDLE, wintypes.HANDLE)
_kernel32.TerminateJobObject.argtypes = (wintypes.HANDLE, wintypes.UINT)
_ntdll = ctypes.WinDLL("ntdll")
_ntdll.NtResumeProcess.argtypes = (wintypes.HANDLE,)


class _BasicLimits(ctypes.Structure):
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
        limits = _BasicLimits(flags=flags)
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
        """Nothing to wait for: `start` has raised if Windows cannot run the program."""

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

    def reap(self) -> None:
        """Let processes that it started go on after mcpguard, as without it."""
        self._job.release()


def start(program: str, argv: Sequence[str], environ: Mapping[str, str]) -> ServerProcess:
    """Start a server, in a job that ends with mcpguard.

    Args:
        program: The file that its command names.
        argv: Its command.
        environ: Its environment.

    Raises:
        CommandError: It cannot be started.
    """
    executable, command = program, subprocess.list2cmdline([program, *argv[1:]])
    if is_batch_file(program):
        try:
            executable, command = system_program("cmd"), batch_command_line(program, argv[1:])
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


def is_batch_file(program: str) -> bool:
    """Whether `cmd.exe` runs a program. Windows looks at the ending, and ignores dots and spaces behind it."""
    return program.rstrip(". ").lower().endswith((".bat", ".cmd"))


def batch_command_line(program: str, arguments: Sequence[str]) -> str:
    """The command line by which `cmd.exe` runs a batch file, such as `npx.cmd`, with its arguments unchanged.

    `cmd.exe` acts on characters that other programs take as they are: an `&` would begin another command. `subprocess` quotes
    for programs alone. So each argument is quoted for both: for `cmd.exe`, which reads it once on this command line and once
    more where the batch file says `%*`, and for the program that the batch file starts.

    - In quotes `cmd.exe` acts on no character but `"` and `%`.
    - `"` is written as `""`: `cmd.exe` stays in quotes, and a program of Microsoft's C runtime reads one quotation mark.
    - `%` is written as `%%cd:~,%`: a per cent sign, then a variable of which nothing is taken, so that no other variable begins
      there. `cmd.exe` expands variables on this line, and not again in what `%*` stands for.

    Args:
        program: The path of the batch file.
        arguments: Its arguments.

    Raises:
        ValueError: `cmd.exe` cannot pass on an argument: it ends at a line break or a NUL, or the line is too long.

    Source: `make_bat_command_line` of Rust's standard library (library/std/src/sys/args/windows.rs), the answer to
    CVE-2024-24576.
    """
    if any(char in argument for argument in (program, *arguments) for char in "\r\n\0"):
        raise ValueError("cmd.exe, which runs batch files, cannot pass on an argument with a line break")
    words = " ".join([_in_quotes(program), *map(_quoted, arguments)])
    line = f'cmd.exe /d /e:on /v:off /s /c "{words}"'
    if len(line) > MAX_BATCH_CHARS:
        raise ValueError(
            f"cmd.exe, which runs batch files, takes {MAX_BATCH_CHARS:,} characters, and the command has {len(line):,}"
        )
    return line


def _quoted(argument: str) -> str:
    return argument if _PLAIN.fullmatch(argument) else _in_quotes(argument)


def _in_quotes(argument: str) -> str:
    # A program reads backslashes in front of a quotation mark in pairs; elsewhere they are what they are
    doubled = _BEFORE_QUOTE.sub(lambda found: found[1] * 2 + found[2] * 2, argument)
    return '"' + doubled.replace("%", "%%cd:~,%") + '"'
