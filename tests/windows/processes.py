"""Which processes run, on Windows and on POSIX."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from pathlib import Path

if sys.platform == "win32":
    import ctypes
    from ctypes import wintypes

    class _Entry(ctypes.Structure):
        _fields_ = (
            *((name, wintypes.DWORD) for name in ("size", "usage", "pid")),
            ("heap", ctypes.c_void_p),
            *((name, wintypes.DWORD) for name in ("module", "threads", "parent")),
            *(("priority", wintypes.LONG), ("flags", wintypes.DWORD), ("program", wintypes.WCHAR * 260)),
        )

    _kernel = ctypes.WinDLL("kernel32")
    _kernel.CreateToolhelp32Snapshot.restype = _kernel.OpenProcess.restype = wintypes.HANDLE
    _kernel.CloseHandle.argtypes = (wintypes.HANDLE,)
    _kernel.WaitForSingleObject.argtypes = (wintypes.HANDLE, wintypes.DWORD)
    _kernel.GetProcessTimes.argtypes = (wintypes.HANDLE, *[ctypes.POINTER(wintypes.FILETIME)] * 4)
    _kernel.Process32FirstW.argtypes = _kernel.Process32NextW.argtypes = (wintypes.HANDLE, ctypes.POINTER(_Entry))
    _PROCESSES = 0x2
    _SYNCHRONIZE = 0x100000
    _QUERY_LIMITED_INFORMATION = 0x1000

    def _all() -> Iterator[tuple[int, int, str]]:
        shot, entry = _kernel.CreateToolhelp32Snapshot(_PROCESSES, 0), _Entry(size=ctypes.sizeof(_Entry))
        more = _kernel.Process32FirstW(shot, ctypes.byref(entry))
        while more:
            yield entry.pid, entry.parent, entry.program
            more = _kernel.Process32NextW(shot, ctypes.byref(entry))
        _kernel.CloseHandle(shot)

    def _started(pid: int) -> int:
        times = [wintypes.FILETIME() for _ in range(4)]
        handle = _kernel.OpenProcess(_QUERY_LIMITED_INFORMATION, False, pid)
        _kernel.GetProcessTimes(handle, *map(ctypes.byref, times))
        _kernel.CloseHandle(handle)
        return times[0].dwHighDateTime << 32 | times[0].dwLowDateTime

    def _is_child(pid: int, parent: int) -> bool:
        # A process keeps the pid of a parent that has ended, and a later process can have the same pid.
        return _started(pid) >= _started(parent)

    def runs(pid: int) -> bool:
        handle = _kernel.OpenProcess(_SYNCHRONIZE, False, pid)
        if not handle:
            return False
        waited = _kernel.WaitForSingleObject(handle, 0)
        _kernel.CloseHandle(handle)
        return bool(waited)

else:

    def _all() -> Iterator[tuple[int, int, str]]:
        if sys.platform == "linux":
            for stat in Path("/proc").glob("[0-9]*/stat"):
                with contextlib.suppress(OSError):  # it has ended by now
                    head, _, tail = stat.read_text(errors="replace").rpartition(")")
                    if tail.split()[0] != "Z":
                        yield int(stat.parent.name), int(tail.split()[1]), head.partition("(")[2]
            return
        listed = ["/bin/ps", "-axo", "pid=,ppid=,stat=,comm="]
        for line in subprocess.run(listed, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines():
            pid, parent, state, program = line.split(maxsplit=3)
            if state[0] != "Z":
                yield int(pid), int(parent), program

    def _is_child(pid: int, parent: int) -> bool:
        return True

    def runs(pid: int) -> bool:
        return any(pid == one for one, _, _ in _all())


def below(pid: int) -> list[tuple[int, str]]:
    """The processes that a process has started, and theirs: pid and program."""
    everything = list(_all())
    found: list[tuple[int, str]] = []
    parents = {pid}
    while parents:
        children = [(one, program) for one, parent, program in everything if parent in parents and _is_child(one, parent)]
        parents = {one for one, _ in children} - {one for one, _ in found}
        found += [child for child in children if child[0] in parents]
    return found


def with_variable(name: str, value: object) -> list[int]:
    """The processes of this account that have a variable with a value in their environment; on Linux only."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it has ended meanwhile, or is another account's
            if f"{name}={value}".encode() in environ.read_bytes().split(b"\0"):
                found.append(int(environ.parent.name))
    return found


def kill(pids: Collection[int]) -> None:
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, getattr(signal, "SIGKILL", 9))  # Windows ends the process with this status


def left_after(seconds: float, pids: Collection[int]) -> list[int]:
    """Wait until processes have ended. Those that still run after some seconds."""
    until = time.monotonic() + seconds
    while (left := [pid for pid in pids if runs(pid)]) and time.monotonic() < until:
        time.sleep(0.05)
    return left
