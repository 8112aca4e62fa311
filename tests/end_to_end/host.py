"""A client for tests: it starts `mcpguard run` as a process and exchanges JSON-RPC lines with it."""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import tomli_w

from mcpguard.relay.readiness import ServerInput
from mcpguard.stores.api import Options
from mcpguard.stores.sqlite.store import SqliteStore
from tests.windows import processes

ROOT = Path(__file__).parents[2]
SERVERS = Path(__file__).parent / "servers"
DEADLINE_S = 60.0
"""Only a process that hangs takes this long."""
PATIENT_MS = 20_000
"""A time limit for the store that is long enough on a busy machine, and shorter than `DEADLINE_S`."""

WINDOWS: Final = sys.platform == "win32"
KILL: Final = getattr(signal, "SIGKILL", signal.SIGTERM)
"""The signal that ends a process at once. On Windows each does."""
KILLED_STATUS: Final = 1 if WINDOWS else -9
"""The exit status of a process that got it."""
PYTHON: Final = [sys.executable, "-S", "-c"]
CAT: Final = [*PYTHON, "import os\nwhile data := os.read(0, 65_536): os.write(1, data)"]
"""A server that says what it is told."""

Message = dict[str, Any]


def script(name: str, *arguments: object) -> list[str]:
    """The command of a server in `servers/`."""
    return [sys.executable, "-S", str(SERVERS / f"{name}.py"), *map(str, arguments)]


OUTPUT = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
"""Variables that change the output of a command. The terminal or pytest may have set them."""


def environment(home: Path, **more: str) -> dict[str, str]:
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith(("MCPGUARD_", "CLAUDE")) and key not in OUTPUT
    }
    return kept | {"MCPGUARD_HOME": str(home), "PYTHONPATH": str(ROOT)} | more


def program(*argv: str, tuned: Mapping[str, object] | None = None) -> list[str]:
    """The command line of mcpguard. `tuned` gives constants, such as `mcpguard.identity.keys.FETCH_S`, other values."""
    if not tuned:
        return [sys.executable, "-m", "mcpguard", *argv]
    lines = ["import importlib"]
    for name, value in tuned.items():
        module, _, constant = name.rpartition(".")
        lines += [f"names = vars(importlib.import_module({module!r}))", f"names[{constant!r}]  # exists"]
        lines += [f"names[{constant!r}] = eval({repr(value)!r}, names)"]
    return [sys.executable, "-c", "\n".join([*lines, "from mcpguard.cli import main", "main()"]), *argv]


def call(request_id: int | str, tool: str, arguments: Message | None = None, **params: Any) -> Message:
    params = {"name": tool, "arguments": arguments or {}, **params}
    return {"jsonrpc": "2.0", "id": request_id, "method": "tools/call", "params": params}


def request(request_id: int | str, method: str, params: Message | None = None) -> Message:
    return {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params or {}}


def lines(messages: Sequence[Message]) -> bytes:
    return b"".join(json.dumps(message).encode() + b"\n" for message in messages)


def until(done: Callable[[], bool], what: str, most_pause_s: float = 0.005) -> None:
    """Poll a condition until it is true, with pauses that grow to `most_pause_s`."""
    deadline, pause_s = time.monotonic() + DEADLINE_S, 0.001
    while not done():
        assert time.monotonic() < deadline, f"not in time: {what}"
        threading.Event().wait(pause_s)
        pause_s = min(2 * pause_s, most_pause_s)


def budget(home: Path, timeout_ms: int) -> None:
    """Set `timeout_ms` in `config.toml`, unless it is set. The file is replaced, so that no wrapper reads half of it."""
    home.mkdir(exist_ok=True, parents=True)
    file = home / "config.toml"
    with contextlib.suppress(ValueError, RecursionError):  # a test has written a broken file
        settings = tomllib.loads(file.read_text("utf-8") if file.exists() else "")
        store = settings.setdefault("store", {})
        if "timeout_ms" not in store:
            store["timeout_ms"] = timeout_ms
            new = home / f"config-{threading.get_ident()}.new"
            new.write_text(tomli_w.dumps(settings), "utf-8")
            new.replace(file)


def ends(kind: str, folder: Path) -> tuple[int, int]:
    """What a client may give as stdout: the end that it reads from, and the end that is written to."""
    if kind == "pipe":
        return os.pipe()
    if kind == "terminal":
        import pty

        return pty.openpty()
    if kind == "socket":
        ours, theirs = socket.socketpair()
        return theirs.detach(), ours.detach()
    file = folder / "out" if kind == "file" else os.devnull
    return os.open(file, os.O_RDONLY | os.O_CREAT), os.open(file, os.O_WRONLY)


def has_bytes(fd: int, timeout_s: float = 0) -> bool:
    """Whether a pipe has bytes to read, or has ended; waits for that, at most this long."""
    if sys.platform != "win32":
        return bool(select.select([fd], [], [], timeout_s)[0])
    import _winapi
    import msvcrt

    until_s = time.monotonic() + timeout_s
    with contextlib.suppress(OSError):  # the end
        while not (found := _winapi.PeekNamedPipe(msvcrt.get_osfhandle(fd), 0)[0]) and time.monotonic() < until_s:
            time.sleep(0.001)
        return bool(found)
    return True


def release(pipe: ServerInput) -> None:
    """Close the pipe to a server. On Windows a thread may be about to use the descriptor, which stays open."""
    pipe.close()
    if not WINDOWS:
        os.close(pipe.fd)


def fill(fd: int) -> None:
    """Write into a pipe until it is full."""
    os.set_blocking(fd, False)
    with contextlib.suppress(OSError):
        while True:
            os.write(fd, b"." * 4096)
    os.set_blocking(fd, True)


class Host:
    """A client and its server behind mcpguard. The wrapper waits `PATIENT_MS` for its store, unless `config.toml` sets a time.

    Args:
        home: The folder for `MCPGUARD_HOME`.
        command: The server's command.
        options: Options of `mcpguard run`.
        env: Further environment variables.
        stderr: The descriptor for the wrapper's stderr; None for a file that `err` reads.
        own_group: Whether the wrapper leads a process group of its own.
        under: A command that the wrapper is started under, such as `setpriv`.
        tuned: Constants with other values; see `program`.
        rules: The policy; without one, that in `home`.
    """

    def __init__(
        self,
        home: Path,
        *command: str,
        options: Sequence[str] = (),
        env: dict[str, str] | None = None,
        stderr: int | None = None,
        own_group: bool = False,
        under: Sequence[str] = (),
        tuned: Mapping[str, object] | None = None,
        rules: str = "",
    ) -> None:
        if rules:
            policy(home, rules)
        budget(home, PATIENT_MS)
        self.home = home
        self._err = home / f"stderr-{time.monotonic_ns()}"
        self._pids: set[int] = set()
        self._held, held = os.pipe()
        with self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [*under, *program("run", *options, "--", *command, tuned=tuned)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=err if stderr is None else stderr,
                bufsize=0,
                env=environment(home, **(env or {})),
                pass_fds=() if WINDOWS else (held,),  # every process of the session holds it open
                process_group=0 if own_group else None,
            )
        os.close(held)
        assert self.process.stdin
        assert self.process.stdout
        self.stdin = self.process.stdin
        self.stdout = self.process.stdout
        self._buffer = bytearray()
        self._messages: list[Message] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with contextlib.suppress(OSError):
            self.stdin.close()
        self.stdout.close()
        try:
            self.process.wait(DEADLINE_S if kind is None else 5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            if kind is None:
                raise
        finally:
            os.close(self._held)

    @property
    def err(self) -> str:
        return self._err.read_text("utf-8", errors="replace")

    def send(self, *messages: Message | bytes) -> None:
        for message in messages:
            data = message if isinstance(message, bytes) else json.dumps(message).encode() + b"\n"
            view = memoryview(data)
            while view:
                view = view[os.write(self.stdin.fileno(), view) :]

    @contextlib.contextmanager
    def sending(self, data: bytes, *, in_vain: bool = False) -> Iterator[None]:
        """Write in a thread, for more data than a pipe holds. With `in_vain`, the wrapper may end before it has read all."""

        def send() -> None:
            with contextlib.suppress(*([OSError] if in_vain else [])):
                self.send(data)

        thread = threading.Thread(target=send)
        thread.start()
        yield
        thread.join(DEADLINE_S)
        assert not thread.is_alive(), "mcpguard does not read its stdin"

    def read(self, size: int = 1 << 16) -> bytes:
        """Read from the wrapper's stdout; empty at its end."""
        if not WINDOWS and not select.select([self.stdout], [], [], DEADLINE_S)[0]:
            raise AssertionError(f"nothing came; stderr: {self.err}")
        return os.read(self.stdout.fileno(), size)

    def line(self) -> bytes:
        """The next line without its newline; at the end of the stream, the rest."""
        while True:
            end = self._buffer.find(b"\n")
            if end >= 0:
                line = bytes(self._buffer[:end])
                del self._buffer[: end + 1]
                return line
            data = self.read()
            if not data:
                line = bytes(self._buffer)
                self._buffer.clear()
                return line
            self._buffer += data

    def rest(self) -> bytes:
        """Everything until the end of the stream."""
        while data := self.read():
            self._buffer += data
        rest = bytes(self._buffer)
        self._buffer.clear()
        return rest

    def ended(self) -> tuple[bytes, int]:
        """Everything until the end of the stream, and the exit status."""
        return self.rest(), self.wait()

    def message(self) -> Message:
        """The next message."""
        line = self.line()
        assert line, f"the stream has ended; stderr: {self.err}"
        message: Message = json.loads(line)
        return message

    def answer(self, request_id: int | str | None) -> Message:
        """The answer to a request. Other messages are kept for later."""
        for at, message in enumerate(self._messages):
            if message.get("id") == request_id and "method" not in message:
                return self._messages.pop(at)
        while (message := self.message()).get("id") != request_id or "method" in message:
            self._messages.append(message)
        return message

    def notification(self, method: str) -> Message:
        """The next notification with this method. Earlier messages are dropped."""
        while (message := self.message()).get("method") != method:
            pass
        return message

    def call(self, request_id: int | str, tool: str, arguments: Message | None = None, **params: Any) -> Message:
        """Call a tool and return the answer."""
        self.send(call(request_id, tool, arguments, **params))
        return self.answer(request_id)

    def ask(self, request_id: int | str, method: str, params: Message | None = None) -> Message:
        """Send a request and return the answer."""
        self.send(request(request_id, method, params))
        return self.answer(request_id)

    def end(self) -> int:
        """Close stdin, read everything, wait, and return the exit status."""
        self.stdin.close()
        self.rest()
        return self.wait()

    def leave(self) -> int:
        """Close stdin and stdout, as a client that is gone; wait, and return the exit status."""
        self._note_processes()
        with contextlib.suppress(OSError):
            self.stdin.close()
        self.stdout.close()
        return self.wait()

    def wait(self) -> int:
        self._note_processes()
        return self.process.wait(DEADLINE_S)

    def kill(self, number: int = KILL) -> None:
        self._note_processes()
        self.process.send_signal(number)

    def _note_processes(self) -> None:
        """On Windows, where no descriptor is passed on, note which processes belong to the session."""
        if WINDOWS:
            self._pids |= {self.process.pid, *(pid for pid, _ in processes.below(self.process.pid))}

    def nobody_is_left(self) -> bool:
        """Wait until all processes of the session have ended. False after `DEADLINE_S`."""
        if WINDOWS:
            return not processes.left_after(DEADLINE_S, self._pids)
        return bool(select.select([self._held], [], [], DEADLINE_S)[0]) and not os.read(self._held, 1)

    def is_up(self) -> None:
        """Wait until calls can be judged."""
        until(lambda: " store=" in self.err, "the guard is up")

    def audit(self) -> list[Message]:
        """The audit rows of calls."""
        return audit(self.home)

    def notes(self) -> list[Message]:
        """The audit rows of policies."""
        return audit(self.home, policies=True)


@contextlib.contextmanager
def serving(home: Path, *command: str, **how: Any) -> Iterator[Host]:
    """A server, by default `obedient`, behind mcpguard. The client ends the session, whose exit status has to be 0."""
    with Host(home, *(command or script("obedient")), **how) as host:
        yield host
        assert host.end() == 0


def audit(home: Path, *, policies: bool = False) -> list[Message]:
    store = SqliteStore(home / "mcpguard.db", Options(timeout_ms=10_000))
    try:
        records = [entry.record for entry in store.entries()]
        return [record for record in records if (record["decision"] == "policy") == policies]
    finally:
        store.close()


def all_said(home: Path) -> str:
    """The stderr of all wrappers of a home."""
    return "".join(file.read_text("utf-8", errors="replace") for file in sorted(home.glob("stderr-*")))


def total(rows: Sequence[Message], decision: str) -> int:
    """The number of calls with a decision, repeats included."""
    return sum(int(row.get("repeats", 1)) for row in rows if row["decision"] == decision)


def policy(home: Path, text: str) -> Path:
    """Write the policy file."""
    home.mkdir(exist_ok=True, parents=True)
    file = home / "policy.toml"
    file.write_text(text, encoding="utf-8")
    return file


def sqlite_url(file: Path) -> str:
    return f"sqlite:///{file.as_posix().removeprefix('/')}"


def rule(limit: str | Sequence[str] = "", **keys: object) -> str:
    """A rule of a policy: its limit or its limits, if it has any, and its other keys."""
    table = keys | ({"limit": limit} if limit else {})
    return "[[rule]]\n" + "".join(f"{key} = {json.dumps(table[key], ensure_ascii=False)}\n" for key in table) + "\n"
