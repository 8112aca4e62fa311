"""One started command, spoken to as an MCP client would: newline-delimited JSON-RPC on its stdin and stdout."""

import contextlib
import fcntl
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

READ_BYTES = 65536  # what a Linux pipe holds

INITIALIZE = (
    b'{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},'
    b'"clientInfo":{"name":"bench","version":"1"}}}\n'
)
INITIALIZED = b'{"jsonrpc":"2.0","method":"notifications/initialized"}\n'


def echo_call(request_id: int, tool: bytes = b"echo") -> bytes:
    """The call whose cost is measured, a little over 200 bytes."""
    return (
        b'{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":"%b","arguments":{"query":"customers in '
        b'Lyon with an open invoice","limit":50,"newest_first":true},"_meta":{"progressToken":%d}}}\n'
    ) % (request_id, tool, request_id)


class BenchmarkError(Exception):
    """A command under test did not do what it must; the message is for the reader of the terminal."""


class Session:
    """A command under test and the two ends of its pipes. It is killed after `deadline_s`, which shows as its output's end."""

    def __init__(
        self, name: str, argv: Sequence[str], *, cwd: Path, env: Mapping[str, str] | None, deadline_s: float = 150
    ) -> None:
        self.name = name
        self._last_id = 0
        self._stderr_file = cwd / "stderr"
        with self._stderr_file.open("ab") as stderr:
            pipe = subprocess.PIPE
            self._process = subprocess.Popen(
                argv, stdin=pipe, stdout=pipe, stderr=stderr, bufsize=0, cwd=cwd, env=env, start_new_session=True
            )
        if self._process.stdin is None or self._process.stdout is None:
            raise AssertionError("both were asked for")
        self.stdin_fd = self._process.stdin.fileno()
        self.stdout_fd = self._process.stdout.fileno()
        self._watchdog = threading.Timer(deadline_s, self._kill)
        self._watchdog.daemon = True
        self._watchdog.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._watchdog.cancel()
        with self._process:  # closes the pipes, then waits
            if self._process.stdin:
                with contextlib.suppress(BrokenPipeError):
                    self._process.stdin.close()
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._kill()

    def ids(self, count: int) -> range:
        self._last_id += count
        return range(self._last_id - count + 1, self._last_id + 1)

    def handshake(self) -> None:
        self.write(INITIALIZE)
        self.read_answer(0)
        self.write(INITIALIZED)

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self.stdin_fd, view) :]
        except BrokenPipeError:
            raise self.failure("reads no more") from None

    def read(self) -> bytes:
        """What has come since, at least one byte."""
        data = os.read(self.stdout_fd, READ_BYTES)
        if not data:
            raise self.failure("ended its output too early")
        return data

    def read_answer(self, request_id: int) -> None:
        """Wait for the answer to a request, past notifications. The next response must be this one, and no error."""
        rest = b""
        while True:
            *lines, rest = (rest + self.read()).split(b"\n")
            for line in lines:
                if b'"method"' not in line:
                    self.check_answer(line, request_id)
                    return

    def check_answer(self, line: bytes, request_id: int) -> None:
        compact = line.replace(b" ", b"")
        if b'"result":' not in compact or b'"id":%d' % request_id not in compact:
            raise self.failure(f"answered request {request_id} with {line[:300].decode(errors='replace')}")

    def widen_pipes(self) -> None:
        """Let both pipes hold 1 MiB, about 5,000 calls."""
        for fd in (self.stdin_fd, self.stdout_fd):
            with contextlib.suppress(OSError):
                fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, 1 << 20)

    def peak_kib(self) -> int:
        """The most memory that the started process alone had, without the server it started."""
        status = Path(f"/proc/{self._process.pid}/status").read_text(encoding="ascii", errors="replace").split()
        return int(status[status.index("VmHWM:") + 1])

    def cpu_ns(self) -> int:
        """CPU time of the started process alone, without the server it started."""
        return time.clock_gettime_ns(~self._process.pid << 3 | 2)  # as Linux makes the id of a process's CPU clock

    def kill(self) -> None:
        self._process.kill()

    def check_store(self) -> None:
        """Fail if mcpguard has lost its store: from then on it counts on its own, which is faster."""
        if "until it is back" in self._said():
            raise self.failure("lost its store, and counted on its own")

    def failure(self, what: str) -> BenchmarkError:
        return BenchmarkError("\n  ".join([f"{self.name} {what}", *self._said().strip().splitlines()[-5:]]))

    def _said(self) -> str:
        return self._stderr_file.read_text(encoding="utf-8", errors="replace")

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)


def ping_pong(session: Session, count: int, pause_us: int = 0) -> list[float]:
    """Make calls, one at a time; the time of each in microseconds, without the pause before it."""
    ids = session.ids(count)
    calls = [echo_call(request_id) for request_id in ids]
    answers: list[bytes] = []
    times_us: list[float] = []
    stdin_fd, stdout_fd = session.stdin_fd, session.stdout_fd
    for call in calls:
        if pause_us:
            time.sleep(pause_us / 1e6)
        before = time.perf_counter_ns()
        os.write(stdin_fd, call)
        answer = os.read(stdout_fd, READ_BYTES)
        while answer and not answer.endswith(b"\n"):
            answer += session.read()
        after = time.perf_counter_ns()
        times_us.append((after - before) / 1000)
        answers.append(answer)
    for request_id, answer in zip(ids, answers, strict=True):
        session.check_answer(answer, request_id)
    return times_us
