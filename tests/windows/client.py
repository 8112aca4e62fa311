"""A client of `mcpguard run` that knows Windows and POSIX."""

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.windows import processes

STUB = [sys.executable, str(Path(__file__).with_name("stub_server.py"))]
STUBBORN = [
    sys.executable,
    "-c",
    """
import os, time
os.read(0, 65536)
result = b'{"protocolVersion":"2025-11-25","capabilities":{},"serverInfo":{"name":"stubborn","version":"1"}}'
os.write(1, b'{"jsonrpc":"2.0","id":1,"result":' + result + b"}\\n")
time.sleep(90)
""",
]
"""A server that answers once, and then neither reads nor ends by itself."""

MCPGUARD = [sys.executable, "-m", "mcpguard"]
ENDS_S = 20.0
"""How long an mcpguard whose client has left may take to end."""
DEADLINE_S = 90.0
"""Only a process that hangs takes this long."""

Message = dict[str, Any]


class Home:
    """A folder for mcpguard's files, with a policy that has no starter rules."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.policy = folder / "policy.toml"
        self.policy.write_text('mode = "enforce"\n')
        (folder / "config.toml").write_text("[store]\ntimeout_ms = 20000\n")  # enough on a busy machine
        self.environ = {name: value for name, value in os.environ.items() if not name.startswith(("MCPGUARD_", "STUB_"))}
        self.environ["MCPGUARD_HOME"] = str(folder)

    def command(self, *argv: str) -> str:
        """Run an mcpguard command, which must succeed; returns what it prints."""
        done = subprocess.run(
            [*MCPGUARD, *argv],
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            timeout=DEADLINE_S,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout


class Client:
    """A client of one `mcpguard run`, or of another program that it is started by.

    Args:
        home: mcpguard's folder.
        server: The server's command.
        program: The whole command line, in place of `mcpguard run -- server`.
        environ: Further environment variables.
    """

    def __init__(
        self,
        home: Home,
        server: Sequence[str] = STUB,
        *,
        program: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.process = subprocess.Popen(
            program or [*MCPGUARD, "run", "--", *server],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env={**home.environ, **(environ or {})},
        )
        assert self.process.stdin
        assert self.process.stdout
        assert self.process.stderr
        self.stdin, self._stdout, self._stderr = self.process.stdin, self.process.stdout, self.process.stderr
        self.raw = b""
        self._said = b""
        self._last = 0
        self._lines: queue.Queue[bytes | None] = queue.Queue()
        self._threads = [threading.Thread(target=read, daemon=True) for read in (self._read_answers, self._read_stderr)]
        for thread in self._threads:
            thread.start()
        self._started = {self.process.pid}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.below()
        processes.kill(self._started)
        self.process.wait(DEADLINE_S)
        for thread in self._threads:
            thread.join(DEADLINE_S)
        for stream in (self.stdin, self._stdout, self._stderr):
            with contextlib.suppress(OSError):
                stream.close()

    def _read_answers(self) -> None:
        rest = b""
        while data := os.read(self._stdout.fileno(), 65_536):
            self.raw += data
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._lines.put(line)
        self._lines.put(None)

    def _read_stderr(self) -> None:
        while data := os.read(self._stderr.fileno(), 65_536):
            self._said += data

    @property
    def said(self) -> str:
        """What mcpguard and the server have written to stderr."""
        return self._said.decode("utf-8", "replace").strip()

    def await_said(self, words: str) -> None:
        until = time.monotonic() + DEADLINE_S
        while words not in self.said:
            assert time.monotonic() < until, self.said
            time.sleep(0.01)

    def send(self, **message: object) -> None:
        self.stdin.write(json.dumps({"jsonrpc": "2.0", **message}, ensure_ascii=False).encode() + b"\n")

    def answer(self, number: int) -> Message:
        """The answer to a request. Messages before it are dropped."""
        until = time.monotonic() + DEADLINE_S
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"request {number} is not answered; stderr: {self.said}") from None
            assert line is not None, f"the stream has ended; stderr: {self.said}"
            message: Message = json.loads(line)
            if message.get("id") == number:
                return message

    def ask(self, method: str, **params: object) -> Message:
        """Send a request and return its answer."""
        self._last += 1
        self.send(id=self._last, method=method, params=params)
        return self.answer(self._last)

    def begin(self) -> Self:
        """Open the session."""
        client = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "scenario", "version": "1"}}
        assert "result" in self.ask("initialize", **client)
        self.send(method="notifications/initialized")
        return self

    def call(self, tool: str, **arguments: object) -> Message:
        return self.ask("tools/call", name=tool, arguments=arguments)

    def text(self, tool: str, **arguments: object) -> str:
        """Call a tool; returns the text of its answer."""
        found = self.call(tool, **arguments)
        assert "result" in found, (found, self.said)
        text: str = found["result"]["content"][0]["text"]
        return text

    def below(self) -> list[tuple[int, str]]:
        """The processes below mcpguard: pid and program."""
        found = processes.below(self.process.pid)
        self._started.update(pid for pid, _ in found)
        return found

    def servers(self) -> list[int]:
        """The processes of the server, or of the mcpguard that a launcher has started and of its server."""
        found = [pid for pid, program in self.below() if "python" in program.lower()]
        assert found, self.said
        return found

    def wait(self) -> int:
        """The exit status, in Windows' unsigned form. mcpguard must end in `ENDS_S`."""
        try:
            status = self.process.wait(ENDS_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"mcpguard still runs after {ENDS_S} s; stderr: {self.said}") from None
        for thread in self._threads:
            thread.join(DEADLINE_S)
        assert "Traceback" not in self.said, self.said
        return status

    def leave(self) -> int:
        """End the input, and wait."""
        self.below()
        self.stdin.close()
        return self.wait()


def is_denied(answer: Message) -> bool:
    return "error" in answer or bool(answer["result"].get("isError"))
