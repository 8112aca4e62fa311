"""Bad days for a store, made with the real thing."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mcpguard.stores.api import Options, Store
from mcpguard.stores.redis.store import RedisStore
from mcpguard.stores.sqlite.call_log import log_path
from mcpguard.stores.sqlite.store import SqliteStore
from tests.redis_servers import Server

from .host import DEADLINE_S, PATIENT_MS, ROOT, Host, Message, call, policy, rule, script, sqlite_url, until

BUDGET_MS = 1500
"""Short enough to be waited for where the store hangs; long enough for one that works, on a busy machine."""
SLOW_S = 15.0
"""Far more than a call may wait for a store, and far less than anything here waits for something that hangs."""

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="prlimit is Linux's")
root_only = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="mounts, namespaces and other users want Linux and its root"
)


class EagerHost(Host):
    """A client whose wrapper looks after a second, and not after up to five, whether a store that failed is back."""

    def __init__(self, home: Path, *command: str, tuned: Mapping[str, object] | None = None, **more: Any) -> None:
        soon = {"mcpguard.stores.outage.breaker.PROBE_US": (1_000_000, 1_200_000)}
        super().__init__(home, *(command or script("obedient")), tuned=soon | dict(tuned or {}), **more)


def settings(home: Path, mode: str = "local", limit: str = "5/1h", **store: str | int) -> None:
    """A policy with one limit and one closed tool, and what becomes of calls without a store."""
    policy(home, rule(limit, tool="search") + rule("deny", tool="drop"))
    store = {"on_unavailable": mode, "timeout_ms": BUDGET_MS, **store}
    lines = [f"{key} = {value!r}" for key, value in store.items()]
    (home / "config.toml").write_text("[store]\n" + "\n".join(lines) + "\n")


def codes(host: Host, times: int, tool: str = "search") -> list[int]:
    """How calls are answered, one after another: 200, or the error's code. Each is answered, and within bounds."""
    found = []
    for _ in range(times):
        number = f"{time.monotonic_ns()}"
        since = time.monotonic()
        host.send(call(number, tool))
        found.append(host.answer(number).get("error", {}).get("code", 200))
        assert time.monotonic() - since < SLOW_S
    return found


def told(host: Host, what: str) -> int:
    return host.err.count(what)


def wait_for(host: Host, what: str, times: int = 1) -> None:
    """Wait until a line has been said so often. A call makes a wrapper look at its store."""

    def said() -> bool:
        codes(host, 1, "drop")
        return told(host, what) >= times

    until(said, f"{what!r} {times} times: {host.err}", most_pause_s=0.05)


def is_back(host: Host) -> None:
    """Wait for the end of every outage: on a busy machine there may have been one before that of the test."""
    wait_for(host, "store is back", max(1, told(host, "store unavailable")))


class Place:
    """A store that a test has for itself: in SQLite, or on a server if there is one."""

    def __init__(self, folder: Path, server: Server | None = None) -> None:
        self.server = server
        self.path = folder / "mcpguard.db"
        self.url = server.url if server else sqlite_url(self.path)

    @property
    def log(self) -> Path:
        return Path(log_path(self.path))

    @contextlib.contextmanager
    def opened(self) -> Iterator[Store]:
        options = Options(timeout_ms=10_000)
        with contextlib.closing(
            RedisStore(self.server.address, options) if self.server else SqliteStore(self.path, options)
        ) as store:
            yield store

    @property
    def used(self) -> list[int]:
        """What the counters hold, for everybody."""
        with self.opened() as store:
            return [one.used for one in store.counters()]

    @property
    def rows(self) -> list[Message]:
        """The audit rows of calls."""
        with self.opened() as store:
            return [entry.record for entry in store.entries() if entry.record["decision"] != "policy"]


def _signal(process: subprocess.Popen[str], name: str) -> None:
    if sys.platform != "win32":  # there it only holds the lock
        process.send_signal(getattr(signal, name))


@contextlib.contextmanager
def stopped_holder(what: str, path: Path) -> Iterator[None]:
    """A process that has taken the store's lock, and is stopped: `hold` a file's lock, `hold_transaction` a store's turn."""
    command = [sys.executable, "-m", "tests.stores.worker", what, str(path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT) as holder:
        try:
            assert holder.stdin
            assert holder.stdout
            assert holder.stdout.readline().strip() in {"True", "begun"}
            _signal(holder, "SIGSTOP")
            yield
            _signal(holder, "SIGCONT")
            holder.stdin.write("\n")
            holder.stdin.flush()
            assert holder.wait(DEADLINE_S) == 0
        finally:
            holder.kill()


@contextlib.contextmanager
def mounted(place: Path | str, *options: str) -> Iterator[None]:
    """Something mounted on a folder."""
    subprocess.run(["mount", *options, str(place)], check=True)  # noqa: S607
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)  # noqa: S607


class Trouble(NamedTuple):
    """Something that happens to the store of a wrapper, or before one starts, and ends with the block."""

    happens: Callable[[Place, EagerHost | None], contextlib.AbstractContextManager[None]]
    told: str = ""  # what the wrapper says of it
    timeout_ms: int = PATIENT_MS
    is_mounted: bool = False  # whether the store has a small disk of its own
    mark: pytest.MarkDecorator | None = None  # where it can be made


@contextlib.contextmanager
def _is_locked(place: Place, _: EagerHost | None) -> Iterator[None]:
    with place.opened():
        pass  # the store exists
    with stopped_holder("hold", place.log):
        yield


def _called_until(host: EagerHost, what: str) -> None:
    """Make calls that nothing limits, with long names, until something is told."""
    for number in range(20_000):
        if told(host, what):
            return
        host.send(call(number, f"free {number} " + "x" * 200))
        assert "id" in host.answer(number)
    raise AssertionError(host.err)


@contextlib.contextmanager
def _may_not_grow(_: Place, host: EagerHost | None) -> Iterator[None]:
    import resource

    assert host
    before = resource.prlimit(host.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(host.process.pid, resource.RLIMIT_FSIZE, (16_000, before[1]))
    _called_until(host, "store unavailable")
    yield
    resource.prlimit(host.process.pid, resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def _has_a_full_disk(place: Place, _: EagerHost | None) -> Iterator[None]:
    fill = place.path.with_name("fill")
    with contextlib.suppress(OSError), fill.open("wb", buffering=0) as file:
        while file.write(b"f" * 4096):
            pass
    yield
    fill.unlink()


@contextlib.contextmanager
def _is_damaged(place: Place, _: EagerHost | None) -> Iterator[None]:
    """The file stays as it is, until somebody moves it away."""
    with place.opened():
        pass
    size = place.path.stat().st_size
    with place.path.open("r+b") as file:
        file.seek(1024)
        file.write(b"\xa5" * (size - 1024))
    damaged = place.path.read_bytes()
    yield
    assert place.path.read_bytes() == damaged
    for one in place.path.parent.glob("mcpguard.db*"):
        with contextlib.suppress(PermissionError):  # on Windows the wrapper's log of the outage, which it has open
            one.unlink()


@contextlib.contextmanager
def _is_read_only(place: Place, _: EagerHost | None) -> Iterator[None]:
    folder = str(place.path.parent)
    with mounted(folder, "--bind", folder):
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)  # noqa: S607
        yield
        subprocess.run(["mount", "-o", "remount,bind,rw", folder], check=True)  # noqa: S607


@contextlib.contextmanager
def _is_killed(place: Place, _: EagerHost | None) -> Iterator[None]:
    assert place.server
    place.server.kill()
    yield
    place.server.start()


@contextlib.contextmanager
def _hangs(place: Place, _: EagerHost | None) -> Iterator[None]:
    assert place.server
    place.server.signal(signal.SIGSTOP)
    yield
    place.server.signal(signal.SIGCONT)


LOCKED = Trouble(_is_locked, timeout_ms=BUDGET_MS)
KILLED = Trouble(_is_killed, "does not answer")
HUNG = Trouble(_hangs, timeout_ms=BUDGET_MS)

LATER: Mapping[str, Trouble] = {
    "it is locked by a stopped process": LOCKED,
    "its file may not grow": Trouble(_may_not_grow, "check that its disk is not full", mark=linux_only),
    "its server is killed": KILLED,
    "its server hangs": HUNG,
}
"""What can happen to a store while a wrapper uses it."""

AT_THE_START: Mapping[str, Trouble] = {
    "it is locked by a stopped process": LOCKED,
    "its disk is full": Trouble(_has_a_full_disk, "mcpguard.db", is_mounted=True, mark=root_only),
    "its file system is read-only": Trouble(_is_read_only, "ead-only", mark=root_only),
    "it is damaged": Trouble(_is_damaged, " is damaged: "),
    "its server is dead": KILLED,
    "its server hangs": HUNG,
}
"""What can be wrong with a store when a wrapper starts. Each kind of store has tests of all that it can refuse."""
