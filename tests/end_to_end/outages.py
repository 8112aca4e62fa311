"""Bad days for a store, made with the real thing, and what a wrapper answers meanwhile."""

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from mcpguard.stores.api import Options
from mcpguard.stores.sqlite.store import SqliteStore

from .host import DEADLINE_S, ROOT, Host, call, policy, rule, until

BUDGET_MS = 1500
"""Short enough to be waited for where the store hangs; long enough for one that works, on a busy machine."""
SLOW_S = 15.0
"""Far more than a call may wait for a store, and far less than anything here waits for something that hangs."""

root_only = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="mounts, namespaces and other users want Linux and its root"
)


class EagerHost(Host):
    """A client whose wrapper looks after a second, and not after up to five, whether a store that failed is back."""

    def __init__(self, home: Path, *command: str, tuned: Mapping[str, object] | None = None, **more: Any) -> None:
        soon = {"mcpguard.stores.outage.breaker.PROBE_US": (1_000_000, 1_200_000)}
        super().__init__(home, *command, tuned=soon | dict(tuned or {}), **more)


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


def used(home: Path) -> list[int]:
    """What the counters hold, for everybody."""
    store = SqliteStore(home / "mcpguard.db", Options(timeout_ms=10_000))
    try:
        return [held.used for held in store.held()]
    finally:
        store.close()


def is_drained(path: Path, rows: int, *, outcomes: int = 0) -> None:
    """Wait until a database has so many audit rows and outcomes."""

    def has() -> bool:
        with contextlib.closing(sqlite3.connect(path)) as db:
            found = db.execute("SELECT count(*), count(outcome) FROM audit").fetchone()
            return bool(found[0] >= rows and found[1] >= outcomes)

    until(has, f"{rows} rows and {outcomes} outcomes in {path}")


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
            holder.send_signal(signal.SIGSTOP)
            yield
            holder.send_signal(signal.SIGCONT)
            holder.stdin.write("\n")
            holder.stdin.flush()
            assert holder.wait(DEADLINE_S) == 0
        finally:
            holder.kill()


@contextlib.contextmanager
def mounted(place: Path, *options: str) -> Iterator[None]:
    """Something mounted on a folder."""
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", *options, str(place)], check=True)  # noqa: S607
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)  # noqa: S607
