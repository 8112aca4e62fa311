"""Calls during and after an outage of an SQLite store."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from mcpguard.locks import lock_file
from mcpguard.session.verdict import Verdict
from mcpguard.stores.api import Options
from mcpguard.stores.outage.breaker import PROBE_US
from mcpguard.stores.outage.store import OutageStore
from mcpguard.stores.sqlite.store import SqliteStore
from tests.build import Time, Wrapper

LIMIT_3 = '[[rule]]\nuser = "*"\nlimit = "3/1h"\n'


def used(path: Path, time: Time) -> list[int]:
    with contextlib.closing(SqliteStore(path, clock=time)) as store:
        return [held.used for held in store.held()]


class Broken:
    """A wrapper with an SQLite store, whose lock a test can hold so that the store cannot be used."""

    def __init__(self, path: Path, mode: str, policy: str = LIMIT_3) -> None:
        self.path = path
        self.time = Time()
        self.opened = 0
        self.said: list[str] = []
        self.store = OutageStore(self.open, mode=mode, notify=self.said.append, timeout_ms=30_000, clock=self.time)
        assert self.store.args_key  # it has been opened
        self.session = Wrapper(self.store, policy)
        self.lock = lock_file(path.with_name(path.name + "-calls"))

    def open(self) -> SqliteStore:
        self.opened += 1
        return SqliteStore(self.path, Options(timeout_ms=20), clock=self.time)

    def call(self, times: int = 1) -> list[str]:
        return [verdict.decision for verdict in self.decide(times)]

    def decide(self, times: int = 1) -> list[Verdict]:
        return [self.session.one("search") for _ in range(times)]

    def probe(self) -> None:
        self.time.now_us += PROBE_US[1]
        self.store.tend()

    def records(self) -> list[dict[str, object]]:
        with contextlib.closing(SqliteStore(self.path, clock=self.time)) as store:
            return [entry.record for entry in store.entries()]

    def used(self) -> list[int]:
        return used(self.path, self.time)

    def close(self) -> None:
        self.lock.release()
        self.lock.close()
        self.store.close()


@pytest.fixture
def broken(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Broken]:
    one = Broken(tmp_path / "state" / "mcpguard.db", *getattr(request, "param", ("local",)))
    yield one
    one.close()


def test_local_counting_starts_from_the_counters_that_were_last_seen(broken: Broken) -> None:
    assert broken.call(2) == ["allowed", "allowed"]
    assert broken.lock.acquire(1)
    assert broken.call(2) == ["allowed", "rate_limited"]


def test_calls_admitted_by_local_counting_are_counted_in_the_store_afterwards(broken: Broken) -> None:
    broken.call()
    assert broken.lock.acquire(1)
    assert broken.call(2) == ["allowed", "allowed"]
    broken.lock.release()
    broken.probe()
    broken.probe()  # outcomes of the outage are joined
    assert not broken.store.needs_tending
    assert broken.used() == [3]
    assert broken.call() == ["rate_limited"]


def test_each_change_of_state_is_reported_in_one_line(broken: Broken) -> None:
    assert broken.lock.acquire(1)
    broken.call(10)
    broken.probe()
    broken.call(10)
    broken.lock.release()
    broken.probe()
    assert [line.split(":")[0] for line in broken.said] == ["store unavailable", "store is back"]


def test_a_store_that_cannot_be_opened_at_the_start_is_used_as_soon_as_it_can(tmp_path: Path) -> None:
    place = tmp_path / "state"
    place.write_text("in the way")
    time = Time()
    store = OutageStore(
        lambda: SqliteStore(place / "mcpguard.db", clock=time),
        mode="local",
        notify=lambda _: None,
        timeout_ms=30_000,
        clock=time,
    )
    session = Wrapper(store, LIMIT_3)
    assert [session.one("search").decision for _ in range(4)] == ["allowed"] * 3 + ["rate_limited"]
    place.unlink()
    time.now_us += PROBE_US[1]
    store.tend()
    assert used(place / "mcpguard.db", time) == [3]
    store.close()


def test_a_damaged_database_is_reported_and_not_recreated(broken: Broken) -> None:
    broken.call()
    broken.store.close()
    for file in broken.path.parent.glob("mcpguard.db*"):
        file.write_bytes(b"not a database at all" * 100)
    broken.store = OutageStore(broken.open, mode="local", notify=broken.said.append, timeout_ms=30_000, clock=broken.time)
    broken.probe()
    assert "damaged" in broken.said[-1]
    assert broken.store.needs_tending
    assert broken.path.read_bytes().startswith(b"not a database")


CLOSED = '[[rule]]\ntool = "drop"\nlimit = "deny"\n' + LIMIT_3


@pytest.mark.parametrize("broken", [("local", LIMIT_3.replace("[[rule]]", '[[rule]]\nmode = "observe"'))], indirect=True)
def test_an_observed_rule_without_room_is_not_charged_afterwards(broken: Broken) -> None:
    assert broken.lock.acquire(1)
    assert broken.call(5) == ["allowed"] * 3 + ["would_deny"] * 2
    broken.lock.release()
    broken.probe()
    assert broken.used() == [3]


@pytest.mark.posix
def test_a_removed_store_is_reported_and_created_again(broken: Broken) -> None:
    broken.call(3)
    broken.store.tend()
    for file in broken.path.parent.iterdir():
        file.unlink()
    broken.store.tend()
    assert "was removed or replaced" in broken.said[-1]
    assert broken.call() == ["rate_limited"]
    broken.probe()
    broken.probe()
    assert not broken.store.needs_tending
    assert broken.path.stat().st_mode & 0o777 == 0o600
