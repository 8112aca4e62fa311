"""One limiter in one experiment: its processes, its store, and the calls that reached the server behind it."""

import json
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

from tests.benchmarks.session import BenchmarkError, Session
from tests.real_parts.parts import Parts
from tests.redis_servers import running

from .table import ALONE, SERVER_ENVIRONMENT, Peer, Setting, Start, bare, environment, server

DEADLINE_S = 600
"""A process that runs longer is killed, which shows as its output's end."""


_CALL = (
    b'{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":"echo","arguments":{"query":"invoices","limit":%d,'
    b'"newest_first":true}}}\n'
)


class Reached(NamedTuple):
    """When a call was sent and when it reached the server, on the monotonic clock. It was admitted in between."""

    sent_s: float
    at_s: float


class Answer(NamedTuple):
    at_s: float  # when it came, on the monotonic clock
    denied: bool
    line: bytes


class Client(Session):
    """A client of one process of a limiter."""

    _rest = b""

    def send(self, calls: int) -> None:
        """Send calls without waiting for their answers. Each tells the server when it was sent."""
        for request_id in self.ids(calls):
            self.write(_CALL % (request_id, time.monotonic_ns()))

    def answers(self, calls: int) -> list[Answer]:
        """Wait for the answers to some calls."""
        found: list[Answer] = []
        while len(found) < calls:
            *lines, self._rest = (self._rest + self.read()).split(b"\n")
            found += [_answer(line) for line in lines if b'"method"' not in line]
        return found

    def call(self) -> Answer:
        self.send(1)
        return self.answers(1)[0]

    def burst(self, calls: int) -> None:
        """Make calls as fast as they are answered, so that none waits in the server after it was admitted."""
        for _ in range(calls):
            self.call()


def _answer(line: bytes) -> Answer:
    message = json.loads(line)
    return Answer(time.monotonic(), "error" in message or bool(message["result"].get("isError")), line)


class Trial:
    """One limiter in one experiment: how each of its processes is started, and where its server records its calls."""

    def __init__(self, name: str, start: Start, folder: Path, log: Path, says: tuple[str, float] | None) -> None:
        self.name, self._start, self._folder, self._log, self._says = name, start, folder, log, says

    def client(self) -> Client:
        cwd = self._folder / f"process {len(list(self._folder.iterdir()))}"
        cwd.mkdir()
        env = environment() | dict(self._start.env)
        return Client(self.name, self._start.argv, cwd=cwd, env=env, deadline_s=DEADLINE_S)

    def reached(self) -> list[Reached]:
        lines = self._log.read_text(encoding="ascii").splitlines() if self._log.exists() else []
        return [Reached(*(int(number) / 1e9 for number in line.split())) for line in lines]

    def said_s(self, denial: Answer) -> float | None:
        """The retry time that a denial names."""
        found = re.search(self._says[0], denial.line.decode()) if self._says else None
        return float(found[1]) / self._says[1] if found and self._says else None


@contextmanager
def trial(peer: Peer | None, parts: Parts, folder: Path, calls: int) -> Iterator[Trial]:
    """A limiter of so many calls a minute with a store of its own, or the server without a limiter, in a new folder."""
    folder.mkdir(parents=True)
    log = folder / "log"
    command = server(parts.python(SERVER_ENVIRONMENT), str(log))
    with running(folder / "redis", "--appendonly", "yes") if peer and peer.uses_redis else nullcontext() as redis:
        python = parts.python(peer.name) if peer and peer.needs else command[0]
        setting = Setting(python, command, str(log), folder, calls, redis.url if redis else "")
        if peer:
            yield Trial(peer.name, peer.start(setting), folder, log, peer.says)
        else:
            yield Trial(ALONE, bare(setting), folder, log, None)


def most_within(span_s: float, calls: Sequence[Reached]) -> int:
    """The most calls that were surely admitted within a span of this length: the first was sent, and the last had arrived."""
    return max(
        (sum(first.sent_s <= call.sent_s and call.at_s < first.sent_s + span_s for call in calls) for first in calls), default=0
    )


def begin_minute() -> float:
    """Wait for a minute of the wall clock to begin; the moment on the monotonic clock."""
    begins = time.monotonic() + 60 - time.time() % 60
    sleep_until(begins + 0.3)
    return begins


def avoid_edge(needs_s: float) -> None:
    """Wait for the next minute of the wall clock if this one ends within a time: limiters may begin a window with it."""
    if time.time() % 60 > 60 - needs_s:
        begin_minute()


def sleep_until(moment_s: float) -> None:
    """Sleep until a moment on the monotonic clock. If it is over, the machine is too busy for what comes next."""
    left_s = moment_s - time.monotonic()
    if left_s < 0:
        raise BenchmarkError(f"the machine was too busy: {-left_s:.1f} s too late")
    time.sleep(left_s)
