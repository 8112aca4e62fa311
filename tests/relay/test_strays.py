import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mcpguard.relay.process import ServerProcess
from tests.build import raising
from tests.relay.conftest import Start

if sys.platform != "linux":
    pytest.skip("only Linux has such a /proc", allow_module_level=True)

from mcpguard.relay import process_posix

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

LEAVES = "import os, signal; os.fork() and signal.pause(); os.setsid();"
"""A server with a child that has left its group."""

DETACHES = "import os, signal; os.fork() and signal.pause(); os.setsid(); os.fork() and os._exit(0);"
"""The same, and the child's parent is gone."""

REDIRECTS = "null = os.open('/dev/null', os.O_RDWR); os.dup2(null, 0); os.write(1, b'up'); os.dup2(null, 1); signal.pause()"
STAYS = "signal.signal(15, signal.SIG_IGN); os.write(1, b'up'); signal.pause()"


def up(start: Start, program: str) -> ServerProcess:
    """Start a server, and wait until what has left it is up."""
    child = start(sys.executable, "-S", "-c", program)
    assert os.read(child.stdout, 2) == b"up"
    return child


def nobody_holds(child: ServerProcess) -> bool:
    """Whether nobody has the other end of a server's output any more."""
    return bool(select.select([child.stdout], [], [], 30)[0]) and os.read(child.stdout, 1) == b""


@pytest.mark.parametrize("program", [LEAVES + STAYS, DETACHES + STAYS])
def test_processes_that_left_the_servers_group_are_killed_with_the_server(start: Start, program: str) -> None:
    child = up(start, program)
    child.signal(signal.SIGTERM)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not select.select([child.stdout], [], [], 0)[0]  # what has left is told, too, and heeds nothing
    child.kill()
    assert nobody_holds(child)


def test_a_process_without_group_and_pipes_is_found_while_its_parent_lives(start: Start) -> None:
    child = up(start, LEAVES + REDIRECTS)
    (process,) = process_posix.strays(child.pid, set())
    process_posix.send(process, signal.SIGKILL)


def test_only_processes_of_the_server_outside_of_its_group_are_strays(start: Start) -> None:
    child = up(start, "import os, signal; os.fork() and signal.pause();" + STAYS)
    pipes = {process_posix.pipe_of(child.stdin.fd), process_posix.pipe_of(child.stdout)}
    with subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE) as other:
        assert process_posix.strays(child.pid, pipes) == set()
        other.communicate(b"\n")


def test_another_process_with_the_pid_of_a_stray_is_not_signalled(start: Start) -> None:
    child = up(start, LEAVES + STAYS)
    (process,) = process_posix.strays(child.pid, set())
    process_posix.send(process._replace(started=b"1"), signal.SIGKILL)
    assert process_posix.strays(child.pid, set()) == {process}


def test_without_proc_nothing_is_found(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    child = up(start, LEAVES + STAYS)
    (process,) = process_posix.strays(child.pid, set())
    with monkeypatch.context() as patched:
        for name in ("listdir", "open"):
            patched.setattr(os, name, raising(FileNotFoundError("/proc")))
        assert process_posix.strays(child.pid, set()) == set()
        process_posix.send(process, signal.SIGKILL)
    assert process_posix.strays(child.pid, set()) == {process}


def test_a_descriptor_that_is_not_a_pipe_has_no_name() -> None:
    with Path(os.devnull).open() as null:
        assert process_posix.pipe_of(null.fileno()) is None
