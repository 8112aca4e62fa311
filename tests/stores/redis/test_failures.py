"""A server that fails: each failure is one line, within the budget, and charges nothing unseen."""

import itertools
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path

import pytest

from mcpguard.errors import StoreUnavailable
from mcpguard.stores.api import Options
from mcpguard.stores.clock import boot_us
from mcpguard.stores.redis import server as redis_server
from mcpguard.stores.redis.store import RedisStore
from mcpguard.stores.redis.url import parse
from tests.build import Session, Time
from tests.callers import Caller
from tests.redis_servers import Server, free_port, running, wait_for
from tests.stores.conftest import broken
from tests.stores.redis.conftest import POLICY

ERRORS = POLICY + 'count = "errors"\n'
BUDGET_MS = 1000
"""A budget that a test can wait for if the server hangs, and that a working server keeps on a busy machine."""
LATE_S = 20.0
"""Longer than a call that keeps its budget takes, even on a busy machine."""
HOUR_US = 3_600_000_000


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with running(tmp_path / "redis") as server:
        yield server


def opened(server: Server) -> RedisStore:
    return RedisStore(server.address, Options(timeout_ms=BUDGET_MS))


@pytest.fixture
def caller(server: Server) -> Iterator[Caller]:
    """A wrapper with five calls an hour."""
    caller = Caller(opened(server), POLICY)
    yield caller
    caller.store.close()


@pytest.fixture
def failing(server: Server) -> Caller:
    """A wrapper whose calls count if they fail."""
    return Caller(opened(server), ERRORS)


@contextmanager
def unavailable(words: str) -> Iterator[None]:
    """Expect that the block fails in time, with a message of one line."""
    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match=words) as caught:
        yield
    assert time.monotonic() - began < LATE_S
    assert "\n" not in caught.value.message + caught.value.hint


def used(server: Server) -> list[int]:
    with closing(RedisStore(server.address, Options(timeout_ms=5000))) as patient:
        return [one.used for one in patient.counters()]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (f"redis://127.0.0.1:{free_port()}", "redis://127.0.0.1:[0-9]+/0 does not answer: .*refused"),
        pytest.param("unix:///nowhere/none.sock", "none.sock does not answer", marks=pytest.mark.posix),
        ("redis://host.invalid", "does not answer"),
        (f"redis://{'a' * 70}..b", "does not answer"),
    ],
    ids=["a closed port", "no socket", "an unknown name", "a malformed name"],
)
def test_an_address_without_a_server_is_reported_in_one_line(url: str, words: str) -> None:
    with unavailable(words):
        RedisStore(parse(url))


def test_a_name_that_the_system_has_no_thread_to_look_up_is_an_unavailable_store() -> None:
    with (
        broken(threading.Thread, "start", RuntimeError("can't start new thread")),
        unavailable("localhost cannot be looked up: can't start new thread"),
    ):
        RedisStore(parse("redis://localhost:1/0"))


def test_a_resolver_that_hangs_costs_no_more_than_the_budget(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(RedisStore(parse(server.url), Options(timeout_ms=BUDGET_MS)), POLICY)
    server.kill()
    server.start()
    answered = threading.Event()
    monkeypatch.setattr("socket.getaddrinfo", lambda *_: answered.wait(60))
    with unavailable(f"does not answer within {BUDGET_MS} ms"):
        session.call("report")
    answered.set()
    monkeypatch.undo()
    assert session.decisions("report") == ["allowed"]


def test_a_failure_of_a_read_is_reported_in_one_line(server: Server, caller: Caller) -> None:
    server.kill()
    for read in (caller.store.entries, caller.store.newest, caller.store.counters, lambda: [caller.store.reset(["x"])]):
        with unavailable("does not answer"):
            list(read())


def test_a_server_that_hangs_costs_a_call_its_budget_and_charges_nothing_later(server: Server, caller: Caller) -> None:
    assert caller.words("report") == ["allowed"]
    server.signal(signal.SIGSTOP)
    for do in (lambda: caller.words("report"), lambda: caller.words("report"), lambda: opened(server)):
        with unavailable(f"does not answer within {BUDGET_MS} ms"):
            do()
    deadline = time.monotonic() + BUDGET_MS / 1000
    wait_for(lambda: time.monotonic() > deadline, "time stands still")
    server.signal(signal.SIGCONT)
    assert used(server) == [1]
    assert [*map(caller.words, ["report"] * 5)] == [["allowed"]] * 4 + [["rate_limited"]]
    assert [entry.record["seq"] for entry in caller.store.entries()] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("policy", [POLICY, ERRORS])
def test_what_a_server_refuses_as_late_since_its_clock_is_ahead_is_tried_again(
    server: Server, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    """The refusal tells the server's time."""
    caller = Caller(opened(server), policy)
    behind = Time(0)
    monkeypatch.setattr(redis_server, "boot_us", lambda: boot_us() - behind())
    for do in (lambda: caller.words("report"), lambda: caller.end(failed=True)):
        behind.now_us += HOUR_US
        do()
    assert used(server) == [1]


def test_an_error_that_the_server_would_count_too_late_is_not_counted_and_told(
    server: Server, failing: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing.words("report")
    stopped_us = itertools.cycle([HOUR_US, 0])  # after the look at the clock that the deadline is made by
    monkeypatch.setattr(redis_server, "boot_us", lambda: boot_us() - next(stopped_us))
    with unavailable("starts scripts too late"):
        failing.end(failed=True)
    monkeypatch.undo()
    assert used(server) == []


def test_calls_and_their_ends_that_a_busy_machine_sends_too_late_are_no_outage_and_count_once(
    server: Server, failing: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing.words("free")  # the server's time is known
    seen: list[float] = []

    def stopped_after_the_first_look(clock: Callable[[], float], minute: float) -> Callable[[], float]:
        def look() -> float:
            seen.append(minute)
            return clock() - (0 if seen.count(minute) > 1 else minute)

        return look

    monkeypatch.setattr(redis_server, "monotonic", stopped_after_the_first_look(time.monotonic, 60))
    monkeypatch.setattr(redis_server, "boot_us", stopped_after_the_first_look(boot_us, 60_000_000))
    for do in (lambda: failing.words("report"), lambda: failing.end(1, failed=True)):
        seen.clear()
        do()
        assert seen.count(60) > 1
    assert used(server) == [1]
    assert [entry.record["seq"] for entry in failing.store.entries()] == [1, 2]


def test_what_was_last_seen_ages_even_while_the_machine_sleeps(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that wakes up without its network counts on its own from there."""
    caller.words("report")
    slept_us = 8 * HOUR_US
    monkeypatch.setattr(redis_server, "boot_us", lambda: boot_us() + slept_us)
    logs, now_us = caller.store.last_seen()
    (log,) = logs.values()
    assert slept_us <= now_us - log[-2] < 2 * slept_us


@pytest.mark.parametrize("policy", [POLICY, POLICY.replace("limit = ", "concurrent = 2  # ")])
def test_a_server_without_memory_refuses_and_counts_nothing(server: Server, policy: str) -> None:
    session = Session(opened(server), policy)
    session.call("report")
    server.command("CONFIG", "SET", "maxmemory", "1")
    with unavailable("refuses: .*maxmemory"):
        session.call("report")
    server.command("CONFIG", "SET", "maxmemory", "0")
    assert used(server) == [1]
    assert session.decisions("report") == ["allowed"]


def test_a_replica_refuses_and_the_hint_says_why(server: Server, caller: Caller) -> None:
    caller.words("report")
    server.command("REPLICAOF", "127.0.0.1", str(free_port()))
    with unavailable("refuses: .*read only replica"):
        caller.words("report")
    with pytest.raises(StoreUnavailable) as caught:
        opened(server)
    assert caught.value.hint == "name the primary: this is a replica"
    server.command("REPLICAOF", "NO", "ONE")
    assert used(server) == [1]


def test_a_server_that_cannot_write_to_its_disk_refuses(server: Server, caller: Caller) -> None:
    (server.folder / "dump.rdb").mkdir()
    server.command("CONFIG", "SET", "save", "1 1")
    server.command("SET", "x", "1")
    server.command("BGSAVE")
    wait_for(lambda: b"rdb_last_bgsave_status:err" in server.command("INFO", "persistence"), "it saves")
    with unavailable("refuses: MISCONF"):
        caller.words("report")


def test_a_server_that_is_loading_its_data_is_unavailable(tmp_path: Path) -> None:
    with running(tmp_path / "redis", "--rdbcompression", "no") as server:
        for at in range(100):
            server.command("SET", f"k{at}", "v" * 1500)
        server.command("SAVE")
        server.kill()
        server.start("--key-load-delay", "20000", "--loading-process-events-interval-bytes", "1024")
        with unavailable("LOADING|loading"):
            opened(server)


def test_a_server_that_restarts_is_connected_again_if_its_password_is_the_same(server: Server, caller: Caller) -> None:
    caller.words("report")
    server.kill()
    with unavailable("does not answer"):
        caller.words("report")
    server.start()
    assert [*map(caller.words, ["report"] * 6)][-2:] == [["allowed"], ["rate_limited"]]  # it kept nothing on disk
    server.kill()
    server.start("--requirepass", "s3cret")
    with unavailable("[Aa]uthentication required"):
        caller.words("report")


@pytest.mark.parametrize(
    ("info", "is_old"),
    [
        (b"redis_version:6.2.14\r\n", "is Redis 6.2.14, which is too old"),
        (b"redis_version:7.2.4\r\nvalkey_version:7.2.5\r\n", "is Valkey 7.2.5, which is too old"),
        *((info, "") for info in (b"redis_version:7.0.0", b"redis_version:7.2.4\r\nvalkey_version:8.0.1", b"", b"\xff")),
    ],
)
def test_only_an_old_server_is_refused(info: bytes, is_old: str) -> None:
    with pytest.raises(StoreUnavailable, match=is_old) if is_old else nullcontext():
        assert redis_server.check("redis://host", info, None) == ()
