"""`mcpguard` as a process: in a pipe, or on a terminal."""

import contextlib
import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.end_to_end.host import DEADLINE_S, Host, environment, program, script

ALICE = ("--server", "crm", "--user", "alice@acme.com", "--agent", "Claude Code::interactive::default")
OBEDIENT = script("obedient")
command = program


BOUND = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search") if os.geteuid() == 0 else ()
"""What a command is started under so that the permissions of files bind it, though it be root's."""


def mcpguard(
    home: Path, *argv: str, under: Sequence[str] = (), preexec: Callable[[], None] | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run a command in a pipe, without a terminal anywhere."""
    return subprocess.run(
        [*under, *command(*argv)],
        env=environment(home, **env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
        preexec_fn=preexec,
    )


def start(home: Path, *argv: str) -> subprocess.Popen[bytes]:
    """Start a command that goes on until it is ended."""
    return subprocess.Popen(command(*argv), env=environment(home), stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)


def line_of(process: subprocess.Popen[bytes]) -> str:
    """The next line on a process's stdout."""
    assert process.stdout
    data = b""
    while not data.endswith(b"\n"):
        assert select.select([process.stdout], [], [], DEADLINE_S)[0], f"nothing came after {data!r}"
        byte = os.read(process.stdout.fileno(), 1)
        assert byte, f"the stream has ended after {data!r}"
        data += byte
    return data.decode()


def on_terminal(home: Path, *argv: str, typed: bytes = b"", columns: int = 80, **env: str) -> tuple[int, str]:
    """Run a command on a terminal of its own; its exit status, and all that the terminal got."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    variables = environment(home, TERM="xterm", **env)
    process = subprocess.Popen(command(*argv), env=variables, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    os.write(master, typed)
    data = b""
    with contextlib.suppress(OSError):  # EIO: the last one has closed it
        while select.select([master], [], [], DEADLINE_S)[0] and (some := os.read(master, 65536)):
            data += some
    os.close(master)
    return process.wait(DEADLINE_S), data.decode().replace("\r\n", "\n")


def calls(home: Path, tool: str, times: int, *options: str) -> None:
    """Make calls of a tool through a wrapper that ends afterwards."""
    with Host(home, *OBEDIENT, options=options or ALICE) as host:
        for number in range(times):
            host.call(number, tool)
        host.end()
