"""`mcpguard` run in this process, in a process of its own, or on a terminal."""

import contextlib
import io
import os
import select
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar
from unittest.mock import patch

import pytest

from mcpguard.cli import main
from tests.end_to_end.host import DEADLINE_S, Host, environment, program, script

ALICE = ("--server", "crm", "--user", "alice@acme.com", "--agent", "Claude Code::interactive::default")
BOB = ("--server", "files", "--user", "bob", "--agent", "Cursor::background::nightly")
OBEDIENT = script("obedient")
command = program

_IS_ROOT = sys.platform != "win32" and os.geteuid() == 0
BOUND = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search") if _IS_ROOT else ()
"""A command to start mcpguard under, so that file permissions bind it even if the tests run as root."""

_T = TypeVar("_T", bound=Callable[..., object])


def permissions_bind(test: _T) -> _T:
    """Mark a test that starts mcpguard under `BOUND`."""
    skip = pytest.mark.skipif(bool(BOUND) and not shutil.which("setpriv"), reason="permissions do not bind root")
    marked: _T = pytest.mark.posix(skip(test))
    return marked


ENDS_ITS_PROCESS = ("run", "hook")
"""Commands that call `os._exit`: they need a process of their own."""


def mcpguard(home: Path, *argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command without a terminal, in this process if the command allows it.

    Use `process` where the test is about a process: signals, locks that this process holds, permissions, encodings.
    """
    if argv[:1] and argv[0] in ENDS_ITS_PROCESS:
        return process(home, *argv, preexec=None, **env)
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors, newline="\n") for errors in ("strict", "backslashreplace"))
    with (
        Path(os.devnull).open() as nothing,
        patch.dict(os.environ, _environment(home, env), clear=True),
        patch.object(os, "nice", create=True),
        patch.multiple(sys, argv=["mcpguard", *argv], stdin=nothing, stdout=out, stderr=err),
        pytest.raises(SystemExit) as end,
    ):
        main()
    said = [stream.detach().getvalue().decode() for stream in (out, err)]
    return subprocess.CompletedProcess(argv, int(end.value.code or 0), *said)


def _environment(home: Path, env: Mapping[str, str]) -> dict[str, str]:
    """The variables of a command. On Windows other ones than HOME lead to the home folder, and to what is in it."""
    home_folder = {"USERPROFILE": env["HOME"], "APPDATA": "", "LOCALAPPDATA": ""} if "HOME" in env else {}
    return environment(home, **{**home_folder, **env})


def process(
    home: Path, *argv: str, under: Sequence[str] = (), preexec: Callable[[], None] | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, without a terminal."""
    return subprocess.run(
        [*under, *command(*argv)],
        env=_environment(home, env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=DEADLINE_S,
        check=False,
        preexec_fn=preexec,
    )


def sqlite(folder: Path) -> str:
    """The beginning of the URL of a store in a folder."""
    return f"sqlite://{'/' if sys.platform == 'win32' else ''}{folder.as_posix()}"


def start(home: Path, *argv: str, under: Sequence[str] = ()) -> subprocess.Popen[bytes]:
    """Start a command that runs until the test ends it."""
    words = [*under, *command(*argv)]
    return subprocess.Popen(words, env=environment(home), stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)


def line_of(process: subprocess.Popen[bytes]) -> str:
    """Read the next line of a process's stdout."""
    assert process.stdout
    data = b""
    while not data.endswith(b"\n"):
        readable = sys.platform == "win32" or select.select([process.stdout], [], [], DEADLINE_S)[0]  # Windows cannot tell
        assert readable, f"nothing came after {data!r}"
        byte = os.read(process.stdout.fileno(), 1)
        assert byte, f"the stream has ended after {data!r}"
        data += byte
    return data.decode().replace("\r\n", "\n")


def on_terminal(home: Path, *argv: str, typed: bytes = b"", columns: int = 80, **env: str) -> tuple[int, str]:
    """Run a command on a terminal of its own; return its exit status and what the terminal received."""
    if sys.platform == "win32":
        pytest.skip("needs a terminal of POSIX")
    import fcntl
    import pty
    import termios

    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    variables = environment(home, **{"TERM": "xterm", **env})
    process = subprocess.Popen(command(*argv), env=variables, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    os.write(master, typed)
    data = b""
    with contextlib.suppress(OSError):  # EIO: the last process has closed it
        while select.select([master], [], [], DEADLINE_S)[0] and (some := os.read(master, 65536)):
            data += some
    os.close(master)
    return process.wait(DEADLINE_S), data.decode().replace("\r\n", "\n")


def calls(home: Path, tool: str, times: int, *options: str) -> None:
    """Call a tool a number of times through a wrapper that ends afterwards."""
    with Host(home, *OBEDIENT, options=options or ALICE) as host:
        for number in range(times):
            host.call(number, tool)
        host.end()
