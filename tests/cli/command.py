"""`mcpguard` run in this process, in a process of its own, or on a terminal."""

import contextlib
import io
import json
import os
import re
import select
import shutil
import struct
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import pytest

from mcpguard.cli import main
from tests.end_to_end.host import DEADLINE_S, ROOT, Host, environment, program, script

ALICE = ("--server", "crm", "--user", "alice@acme.com", "--agent", "Claude Code::interactive::default")
BOB = ("--server", "files", "--user", "bob", "--agent", "Cursor::background::nightly")
OBEDIENT = script("obedient")
command = program

SHOWN = Path(__file__).parent / "shown"
"""The output that was looked at."""

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


def output(home: Path, *argv: str, **env: str) -> str:
    """The stdout of a command that ends well and has nothing to say on stderr."""
    done = mcpguard(home, *argv, **env)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


def objects(home: Path, *argv: str, **env: str) -> list[dict[str, Any]]:
    """The objects that such a command prints, one a line."""
    return [json.loads(line) for line in output(home, *argv, **env).splitlines()]


def complaint(home: Path, *argv: str, status: int = 2, **env: str) -> str:
    """The stderr of a command that ends with this status and prints nothing else."""
    done = mcpguard(home, *argv, **env)
    assert (done.returncode, done.stdout) == (status, ""), done
    return done.stderr


def unfolded(text: str) -> str:
    """A text with one space in place of all space between two words."""
    return " ".join(text.split())


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


def trapped(folder: Path, module: str, statement: str) -> str:
    """A PYTHONPATH with which a process executes a statement just before it imports a module."""
    finder = f"import os, signal, sys\n\nclass Trap:\n    def find_spec(name, path, target):\n        if name == {module!r}:\n"
    text = f"{finder}{textwrap.indent(statement, 12 * ' ')}\n\nsys.meta_path.insert(0, Trap)\n"
    (folder / "sitecustomize.py").write_text(text, "utf-8")
    return os.pathsep.join([str(folder), str(ROOT)])


def sqlite(folder: Path) -> str:
    """The beginning of the URL of a store in a folder."""
    return f"sqlite://{'/' if sys.platform == 'win32' else ''}{folder.as_posix()}"


@contextlib.contextmanager
def running(home: Path, *argv: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command until the block ends."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command(*argv), env=environment(home), bufsize=0, **pipes) as process:  # type: ignore[call-overload]
        try:
            yield process
        finally:
            process.kill()


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


class Terminal:
    """A program on a terminal of its own."""

    def __init__(
        self, argv: Sequence[str], env: dict[str, str], *, columns: int = 80, lines: int = 24, cwd: Path | None = None
    ) -> None:
        if sys.platform == "win32":
            pytest.skip("needs a terminal of POSIX")
        import fcntl
        import pty
        import termios

        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.at_first = self.settings()  # before the program started
        self.process = subprocess.Popen(
            argv,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=env,
            cwd=cwd,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(theirs)
        self.data = b""  # what the terminal has received

    def settings(self) -> list[Any]:
        """How the terminal is set."""
        import termios

        return termios.tcgetattr(self._ours)

    def type(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def read(self) -> bytes:
        """What comes next; empty when the last process has closed the terminal."""
        assert select.select([self._ours], [], [], DEADLINE_S)[0], f"nothing came after {self.data!r}"
        some = b""
        with contextlib.suppress(OSError):  # EIO: the last process has closed it
            some = os.read(self._ours, 65536)
        self.data += some
        return some

    def wait_for(self, pattern: bytes) -> re.Match[bytes]:
        while not (found := re.search(pattern, self.data)):
            assert self.read(), f"it has ended after {self.data!r}"
        return found

    def end(self, number: int = 0) -> int:
        """Send a signal, read everything that comes, and return the exit status."""
        self.process.send_signal(number)
        while self.read():
            pass
        return self.process.wait(DEADLINE_S)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


def on_terminal(home: Path, *argv: str, typed: bytes = b"", columns: int = 80, **env: str) -> tuple[int, str]:
    """Run a command on a terminal of its own; return its exit status and what the terminal received."""
    variables = environment(home, **{"TERM": "xterm", **env})
    with contextlib.closing(Terminal(command(*argv), variables, columns=columns)) as terminal:
        terminal.type(typed)
        return terminal.end(), terminal.data.decode().replace("\r\n", "\n")


def calls(home: Path, tool: str, times: int, *options: str, rules: str = "") -> None:
    """Call a tool a number of times through a wrapper that ends afterwards, under these rules or those in the file."""
    with Host(home, *OBEDIENT, options=options or ALICE, rules=rules) as host:
        for number in range(times):
            host.call(number, tool)
        host.end()


def compare(name: str, text: str) -> None:
    """Compare an output with the file that was looked at. `MCPGUARD_WRITE_SHOWN=1` writes it anew."""
    if os.environ.get("MCPGUARD_WRITE_SHOWN"):
        (SHOWN / name).write_text(text, "utf-8")
    assert text == (SHOWN / name).read_text("utf-8"), "set MCPGUARD_WRITE_SHOWN=1, and look at the files"
