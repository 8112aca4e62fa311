"""A server that fails: each failure is one line, within the budget, and charges nothing unseen."""

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mcpguard.errors import ConfigError, StoreUnavailable
from mcpguard.session.verdict import Ending
from mcpguard.stores.api import Options
from mcpguard.stores.clock import boot_us
from mcpguard.stores.redis import checks, request
from mcpguard.stores.redis.store import RedisStore
from mcpguard.stores.redis.url import parse
from tests.build import Session
from tests.redis_servers import ENOUGH_S, Server, free_port, running, wait_for

POLICY = '[[rule]]\ntool = "report"\nlimit = "5/1h"\n'
BUDGET_MS = 1000
"""A budget that a test can wait for if the server hangs, and that a working server keeps on a busy machine."""
LATE_S = 20.0
"""Longer than a call that keeps its budget takes, even on a busy machine."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with running(tmp_path / "redis") as server:
        yield server


def opened(server: Server) -> RedisStore:
    return RedisStore(server.address, Options(timeout_ms=BUDGET_MS))


@contextmanager
def unavailable(words: str) -> Iterator[None]:
    """Expect that the block fails in time, with a message of one line."""
    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match=words) as caught:
        yield
    assert time.monotonic() - began < LATE_S
    assert "\n" not in caught.value.message + caught.value.hint


def used(server: Server) -> list[int]:
    with_patience = RedisStore(server.address, Options(timeout_ms=5000))
    held = [held.used for held in with_patience.held()]
    with_patience.close()
    return held


def test_an_address_without_a_server_is_reported_in_one_line(tmp_path: Path) -> None:
    port = free_port()
    with unavailable(f"redis://127.0.0.1:{port}/0 does not answer: .*refused"):
        RedisStore(parse(f"redis://127.0.0.1:{port}"))
    with unavailable("none.sock does not answer") if sys.platform != "win32" else pytest.raises(ConfigError):
        RedisStore(parse(f"unix://{tmp_path}/none.sock"))
    with unavailable("does not answer"):
        RedisStore(parse("redis://host.invalid"))
    with unavailable("does not answer"):
        RedisStore(parse(f"redis://{'a' * 70}..b"))


def test_a_name_that_the_system_has_no_thread_to_look_up_is_an_unavailable_store(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with unavailable("localhost cannot be looked up: can't start new thread"):
        RedisStore(parse("redis://localhost:1/0"))


def test_a_resolver_that_hangs_costs_no_more_than_the_budget(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RedisStore(parse(server.url), Options(timeout_ms=BUDGET_MS))
    session = Session(store, POLICY)
    server.kill()
    server.start()
    answered = threading.Event()
    monkeypatch.setattr("socket.getaddrinfo", lambda *_: answered.wait(60))
    with unavailable(f"does not answer within {BUDGET_MS} ms"):
        session.call("report")
    answered.set()
    monkeypatch.undo()
    assert session.decisions("report") == ["allowed"]


def test_a_server_that_hangs_costs_a_call_its_budget_and_charges_nothing_when_it_wakes_up(server: Server) -> None:
    session = Session(opened(server), POLICY)
    assert session.decisions("report") == ["allowed"]
    server.signal(signal.SIGSTOP)
    for _ in range(2):
        with unavailable(f"does not answer within {BUDGET_MS} ms"):
            session.call("report")
    with unavailable(f"does not answer within {BUDGET_MS} ms"):
        opened(server)
    deadline = time.monotonic() + BUDGET_MS / 1000
    wait_for(lambda: time.monotonic() > deadline, "time stands still")
    server.signal(signal.SIGCONT)
    assert used(server) == [1]
    assert session.decisions("report", 5) == ["allowed"] * 4 + ["rate_limited"]
    assert [entry.record["seq"] for entry in session.store.entries()] == [1, 2, 3, 4, 5, 6]


def test_a_failed_call_that_ends_while_the_server_hangs_is_not_counted_when_it_wakes_up(server: Server) -> None:
    """The outage store tells the server again."""
    session = Session(opened(server), '[[rule]]\ntool = "report"\nlimit = "5/1h"\ncount = "errors"\n')
    (request,) = session.charges("report")
    (verdict,) = session.store.decide([request], session.journal)
    server.signal(signal.SIGSTOP)
    with unavailable(f"does not answer within {BUDGET_MS} ms"):
        session.store.settle([Ending(verdict.row_id or 0, request.plan, failed=True)])
    deadline = time.monotonic() + BUDGET_MS / 1000
    wait_for(lambda: time.monotonic() > deadline, "time stands still")
    server.signal(signal.SIGCONT)
    assert used(server) == []


def test_a_script_that_starts_after_its_deadline_charges_nothing_and_the_call_is_tried_again_in_time(server: Server) -> None:
    """If the server's clock was set forward, its first script is refused as too late. The refusal tells the new time."""
    session = Session(opened(server), POLICY)
    session.store._ahead_us -= 3_600_000_000  # type: ignore[attr-defined]
    assert session.decisions("report") == ["allowed"]
    assert used(server) == [1]


def test_what_was_last_seen_is_as_old_as_it_is_even_if_the_machine_has_slept_since(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that wakes up without its network counts on its own from there."""
    session = Session(opened(server), POLICY)
    session.call("report")
    slept_us = 8 * 3_600_000_000
    monkeypatch.setattr("mcpguard.stores.redis.store.boot_us", lambda: boot_us() + slept_us)
    logs, now_us = session.store.last_seen()
    (log,) = logs.values()
    assert slept_us <= now_us - log[-2] < 2 * slept_us


def test_calls_and_their_ends_that_a_busy_machine_sends_too_late_are_no_outage_and_count_once(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(opened(server), '[[rule]]\ntool = "report"\nlimit = "5/1h"\ncount = "errors"\n')
    session.call("free")  # the server's time is known
    seen_s: list[float] = []
    seen_us: list[int] = []

    def stopped_after_the_first_look() -> float:
        seen_s.append(time.monotonic() - (0 if seen_s else 60))
        return seen_s[-1]

    def stopped_after_the_first_look_at_the_other_clock() -> int:
        seen_us.append(boot_us() - (0 if seen_us else 60_000_000))
        return seen_us[-1]

    monkeypatch.setattr("mcpguard.stores.redis.store.monotonic", stopped_after_the_first_look)
    monkeypatch.setattr("mcpguard.stores.redis.store.boot_us", stopped_after_the_first_look_at_the_other_clock)
    (request,) = session.charges("report")
    (verdict,) = session.store.decide([request], session.journal)
    assert verdict.decision == "allowed"
    assert len(seen_s) > 1
    seen_s.clear()
    seen_us.clear()
    session.store.settle([Ending(verdict.row_id or 0, request.plan, failed=True)])
    assert len(seen_s) > 1
    assert used(server) == [1]
    assert [entry.record["seq"] for entry in session.store.entries()] == [1, 2]


def test_a_script_that_starts_after_its_deadline_writes_nothing_and_evicts_no_row(server: Server) -> None:
    store = RedisStore(server.address, Options(timeout_ms=5000, max_bytes=100_000))
    session = Session(store, POLICY)
    session.call("free", 300)
    before = (list(store.entries()), store.held())
    requests = session.charges("report")
    past_us = store._now_us() - 10_000_000
    commands = request.Commands(store._shas["charge"], store._prefix, max_bytes=1)
    counters = request.counters_of(requests)
    too_late = commands.command(requests, counters, session.journal, time_us=0, deadline_us=past_us)
    assert len(store._link.exchange(too_late, deadline_s=time.monotonic() + ENOUGH_S)) == 1
    assert (list(store.entries()), store.held()) == before
    store.close()


def test_a_server_that_restarts_between_two_calls_is_reconnected(server: Server) -> None:
    session = Session(opened(server), POLICY)
    session.call("report")
    server.kill()
    with unavailable("does not answer"):
        session.call("report")
    server.start()
    assert session.decisions("report", 6)[-2:] == ["allowed", "rate_limited"]  # the server kept nothing on disk


def test_a_server_without_memory_refuses_and_charges_nothing(server: Server) -> None:
    session = Session(opened(server), POLICY)
    session.call("report")
    server.command("CONFIG", "SET", "maxmemory", "1")
    with unavailable("refuses: .*maxmemory"):
        session.call("report")
    server.command("CONFIG", "SET", "maxmemory", "0")
    assert used(server) == [1]
    assert session.decisions("report", 5) == ["allowed"] * 4 + ["rate_limited"]


def test_a_replica_refuses_and_the_hint_says_why(tmp_path: Path, server: Server) -> None:
    session = Session(opened(server), POLICY)
    session.call("report")
    server.command("REPLICAOF", "127.0.0.1", str(free_port()))
    with unavailable("refuses: .*read only replica"):
        session.call("report")
    with pytest.raises(StoreUnavailable) as caught:
        opened(server)
    assert caught.value.hint == "name the primary: this is a replica"
    server.command("REPLICAOF", "NO", "ONE")
    assert used(server) == [1]


def test_a_server_that_cannot_write_to_its_disk_refuses(server: Server) -> None:
    session = Session(opened(server), POLICY)
    (server.folder / "dump.rdb").mkdir()
    server.command("CONFIG", "SET", "save", "1 1")
    server.command("SET", "x", "1")
    server.command("BGSAVE")
    wait_for(lambda: b"rdb_last_bgsave_status:err" in server.command("INFO", "persistence"), "it saves")
    with unavailable("refuses: MISCONF"):
        session.call("report")


def test_a_server_that_is_loading_its_data_is_unavailable(tmp_path: Path) -> None:
    with running(tmp_path / "redis", "--rdbcompression", "no") as server:
        for at in range(100):
            server.command("SET", f"k{at}", "v" * 1500)
        server.command("SAVE")
        server.kill()
        server.start("--key-load-delay", "20000", "--loading-process-events-interval-bytes", "1024")
        with unavailable("LOADING|loading"):
            opened(server)


def test_the_next_connection_with_a_changed_password_is_refused(server: Server) -> None:
    session = Session(opened(server), POLICY)
    session.call("report")
    server.kill()
    server.start("--requirepass", "s3cret")
    with unavailable("[Aa]uthentication required"):
        session.call("report")


def test_a_failure_of_a_read_is_reported_in_one_line(server: Server) -> None:
    store = opened(server)
    Session(store, POLICY).call("report")
    server.kill()
    for ask in (
        lambda: list(store.entries()),
        lambda: list(store.newest()),
        store.held,
        lambda: store.reset(["x"]),
    ):
        with unavailable("does not answer"):
            ask()


def test_upkeep_that_fails_is_tried_again_later(server: Server) -> None:
    store = opened(server)
    server.kill()
    store.tend()
    server.start()
    assert Session(store, POLICY).decisions("report") == ["allowed"]


@pytest.mark.parametrize(
    ("info", "word"),
    [
        (b"redis_version:6.2.14\r\n", "is Redis 6.2.14, which is too old"),
        (b"redis_version:7.2.4\r\nvalkey_version:7.2.5\r\n", "is Valkey 7.2.5, which is too old"),
    ],
)
def test_an_old_server_is_refused(info: bytes, word: str) -> None:
    with pytest.raises(StoreUnavailable, match=word):
        checks.check("redis://host", [info, b"", b"", None])


@pytest.mark.parametrize("info", [b"redis_version:7.0.0", b"redis_version:7.2.4\r\nvalkey_version:8.0.1", b"", b"\xff"])
def test_a_server_that_is_new_enough_or_does_not_report_its_version_is_accepted(info: bytes) -> None:
    assert checks.check("redis://host", [info, b"", b"", None]) == ()
