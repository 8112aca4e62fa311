"""A server's processes beyond its process group, on Linux: those that descend from it, and those that hold its pipes.

`setsid` takes a process out of the group that signals go to. It is found in `/proc` while its parent lives, or while it has the
server's stdin or stdout. One that has cut all of these ties, as a daemon does, is on its own. A child subreaper would find that
too, but it changes what servers see: the guard would be an orphan's parent, and some servers end when that becomes process 1.
"""

import contextlib
import os
import stat
from collections.abc import Collection
from typing import Final, NamedTuple

_PROC: Final = "/proc"
_STAT_BYTES: Final = 1024
_PARENT, _GROUP, _STARTED = 1, 2, 19
"""Where `_stat` has the parent's number, the group's, and the start time."""


class Process(NamedTuple):
    """A process, told from a later one with the same number by its start time.

    Attributes:
        pid: Its number.
        started: When it was started, in ticks since the system was.
    """

    pid: int
    started: bytes


def pipe_of(fd: int) -> str | None:
    """What `/proc` calls the pipe that a descriptor of ours is an end of; None if it is none."""
    found = os.fstat(fd)
    return f"pipe:[{found.st_ino}]" if stat.S_ISFIFO(found.st_mode) else None


def find(leader: int, pipes: Collection[str | None]) -> set[Process]:
    """The processes of a server that are not in its group.

    Args:
        leader: The server's process; its group has the same number.
        pipes: Its stdin and stdout, as `pipe_of` has them.
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
    found_anew = list(found)
    while found_anew:
        for child in children.get(found_anew.pop(), ()):
            if child not in found:
                found.add(child)
                found_anew.append(child)
    return {processes[pid] for pid in found - group}


def send(process: Process, number: int) -> None:
    """Send a signal to a process if it still runs, as far as the system lets us."""
    fields = _stat(process.pid)
    if fields is not None and fields[_STARTED] == process.started:
        with contextlib.suppress(OSError):
            os.kill(process.pid, number)


def _link(path: str) -> str:
    """What a link names, which may be a file that nobody must wait for; empty if it is not ours to see."""
    try:
        return os.readlink(path)  # noqa: PTH115 - hundreds of them
    except OSError:
        return ""


def _pids() -> list[int]:
    try:
        return [int(name) for name in os.listdir(_PROC) if name.isdecimal()]  # noqa: PTH208 - names alone are wanted
    except OSError:
        return []


def _stat(pid: int) -> list[bytes] | None:
    """The fields of `/proc/PID/stat` behind the name, which may hold anything; None if there is no such process any more."""
    try:
        fd = os.open(f"{_PROC}/{pid}/stat", os.O_RDONLY)
    except OSError:
        return None
    try:
        text = os.read(fd, _STAT_BYTES)
    except OSError:
        return None
    finally:
        os.close(fd)
    fields = text.rpartition(b")")[2].split()
    return fields if len(fields) > _STARTED else None
