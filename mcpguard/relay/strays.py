"""Processes of a server outside of its process group, on Linux: its descendants, and processes that hold its pipes.

`setsid` takes a process out of the group that signals go to. `/proc` shows such a process as a descendant while its parent
lives, or as a holder of the server's pipes while its stdin or stdout is one of them. A daemon, which is neither, is not found.
As a child subreaper mcpguard would find daemons too, but it would become the parent of orphans, and some servers rely on
process 1 becoming their parent: they exit then.
"""

import contextlib
import os
import stat
from collections.abc import Collection

from mcpguard.files import read_at_once
from mcpguard.light_typing import Final, NamedTuple

_PROC: Final = "/proc"
_STAT_BYTES: Final = 1024
_PARENT, _GROUP, _STARTED = 1, 2, 19
"""The places of the parent's pid, the group and the start time in what `_stat` returns."""


class Process(NamedTuple):
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


def find(leader: int, pipes: Collection[str | None]) -> set[Process]:
    """The processes of a server that are not in its group.

    Args:
        leader: The server's pid, which is also the number of its group.
        pipes: Its stdin and stdout, as `pipe_of` names them.
    """
    processes: dict[int, Process] = {}
    children: dict[int, list[int]] = {}
    group = {leader}
    for pid in _pids():
        if (fields := _stat(pid)) is None:
            continue
        processes[pid] = Process(pid, fields[_STARTED])
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


def send(process: Process, number: int) -> None:
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
