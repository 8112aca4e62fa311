"""A store that others have open opens while one of them holds its lock for upkeep, unless something is left to repair."""

import contextlib
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from threading import Timer
from typing import Any

import pytest

from mcpguard.errors import StoreUnavailable
from mcpguard.locks import FileLock, lock_file
from mcpguard.stores import clock
from mcpguard.stores.sqlite import database, opening
from mcpguard.stores.sqlite.call_log import CallLog, beside, log_path
from mcpguard.stores.sqlite.log_records import START
from mcpguard.stores.sqlite.store import SqliteStore
from mcpguard.stores.sqlite.upkeep import SqliteUpkeep
from tests.build import Session
from tests.stores.conftest import broken, open_descriptors
from tests.stores.sqlite.conftest import FIVE_A_MINUTE, Open, drain


@pytest.fixture
def open_store(open_store: Open, monkeypatch: pytest.MonkeyPatch) -> Open:
    monkeypatch.setattr(opening, "OPEN_TIMEOUT_S", 0.01)
    return partial(open_store, clock=None, timeout_ms=100)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[FileLock]:
    """Another process's hold of the store's lock."""
    lock = lock_file(beside(path, "-lock"))
    try:
        assert lock.acquire(0)
        yield lock
    finally:
        lock.close()


@pytest.mark.parametrize("drained", [0, 1, 2])
def test_a_store_opens_during_upkeep_with_every_call_counted(path: Path, open_store: Open, drained: int) -> None:
    one = open_store()
    session = Session(one, FIVE_A_MINUTE)
    session.call("x", drained)
    drain(one)
    session.call("x", 2 - drained)
    with locked(path), contextlib.closing(sqlite3.connect(path, isolation_level=None)) as upkeep:
        upkeep.execute("BEGIN IMMEDIATE")
        upkeep.execute("UPDATE counter SET log = zeroblob(20)")
        other = open_store()
        upkeep.execute("ROLLBACK")
    assert [one.used for one in other.counters()] == [2]
    assert Session(other, FIVE_A_MINUTE, session="b" * 16).decisions("x", 2) == ["allowed"] * 2
    assert session.decisions("x", 2) == ["allowed", "rate_limited"]
    assert abs(one._clock() - other._clock()) < 1_000_000


def test_a_store_that_was_opened_during_upkeep_counts_as_open(path: Path, open_store: Open) -> None:
    first = open_store()
    with locked(path):
        second = open_store()
    first.close()
    hold = lock_file(beside(path, "-open"))
    assert not hold.acquire(0)
    second.close()
    assert hold.acquire(0)
    hold.close()


@pytest.mark.posix
def test_a_store_that_cannot_be_drained_at_its_end_does_not_stay_open(path: Path, open_store: Open) -> None:
    store = open_store()
    Session(store, FIVE_A_MINUTE).call("x")
    with broken(SqliteUpkeep, "drain", MemoryError()):
        store.close()
    hold = lock_file(beside(path, "-open"))
    assert hold.acquire(0)
    hold.close()


def lacks_its_log(path: Path, _: pytest.MonkeyPatch) -> None:
    Path(log_path(path)).unlink()


def has_another_stores_log(path: Path, _: pytest.MonkeyPatch) -> None:
    other = path.with_name("other.db")
    SqliteStore(other).close()
    Path(log_path(other)).replace(log_path(path))


def has_a_log_that_ends_before_its_database(path: Path, _: pytest.MonkeyPatch) -> None:
    log = CallLog(log_path(path))
    log._write(log.drained().end - 4, bytes(64))
    log.close()


def has_a_log_that_does_not_know_what_its_database_has(path: Path, _: pytest.MonkeyPatch) -> None:
    with contextlib.closing(CallLog(log_path(path))) as log:
        log.set_drained(START)


def has_the_time_of_another_boot(_: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "base_id", lambda: "another boot")


def is_cut(path: Path, _: pytest.MonkeyPatch) -> None:
    with path.open("r+b") as file:
        file.truncate(8192)


@pytest.mark.parametrize(
    "store_that",
    [
        lacks_its_log,
        has_another_stores_log,
        has_a_log_that_ends_before_its_database,
        has_a_log_that_does_not_know_what_its_database_has,
        has_the_time_of_another_boot,
        is_cut,
    ],
)
def test_with_something_left_to_repair_opening_waits_for_the_lock_and_does_not_count_as_open(
    path: Path, open_store: Open, monkeypatch: pytest.MonkeyPatch, store_that: Callable[[Path, pytest.MonkeyPatch], None]
) -> None:
    store = open_store()
    Session(store, FIVE_A_MINUTE).call("x", 3)
    store.close()
    store_that(path, monkeypatch)
    with locked(path), pytest.raises(StoreUnavailable, match="is locked by another process"):
        open_store()
    if store_that is has_a_log_that_does_not_know_what_its_database_has:
        again = open_store()
        assert again._log.drained().end == again._follower.at.end


def test_a_store_that_another_process_is_still_repairing_is_not_joined(path: Path, open_store: Open) -> None:
    open_store().close()
    hold = lock_file(beside(path, "-open"))
    assert hold.acquire(0)  # as whoever repairs it asks; it holds it until the store is open
    with locked(path), pytest.raises(StoreUnavailable, match="is locked by another process"):
        open_store()
    hold.close()


def test_a_store_is_created_though_another_process_that_opens_it_is_interrupted_while_it_reads(
    path: Path, open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = database.begin

    def while_another_reads(*args: Any) -> None:
        reader = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM meta").fetchone()
        ends = Timer(0.2, reader.close)
        ends.start()
        begin(*args)
        ends.join()

    monkeypatch.setattr(database, "begin", while_another_reads)
    assert Session(open_store(timeout_ms=20_000), FIVE_A_MINUTE).decisions("x") == ["allowed"]


# files that stay open would add up: during an outage a store is opened every few seconds


@pytest.mark.parametrize(("owner", "step"), [(CallLog, "turn"), (opening, "_begin_time"), (FileLock, "share")])
def test_a_store_that_cannot_be_opened_leaves_no_file_open(
    path: Path, open_store: Open, monkeypatch: pytest.MonkeyPatch, owner: object, step: str
) -> None:
    open_store().close()
    before = open_descriptors()
    monkeypatch.setattr(clock, "base_id", lambda: "another boot")
    with broken(owner, step, StoreUnavailable("not now")), pytest.raises(StoreUnavailable):
        open_store()
    assert open_descriptors() == before


def test_a_closed_store_leaves_no_file_open(open_store: Open) -> None:
    open_store().close()
    before = open_descriptors()
    store = open_store()
    Session(store, FIVE_A_MINUTE).call("x", 1)
    store.close()
    assert open_descriptors() == before


LOCKER = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA cache_size = 1")
db.execute("BEGIN EXCLUSIVE")
if sys.argv[2] == "writes":
    db.execute("UPDATE counter SET log = zeroblob(100000)")
print("locked", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def another_program(path: Path, does: str) -> Iterator[None]:
    """A program that holds an exclusive lock on the database: of this process the kernel would release it too early."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", LOCKER, str(path), does], stdin=pipe, stdout=pipe) as locker:
        assert locker.stdout is not None
        assert locker.stdout.readline().rstrip() == b"locked"
        yield
        locker.kill()


def test_a_wrapper_that_starts_while_another_program_has_locked_the_database_knows_every_count(
    path: Path, open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store()
    Session(store, FIVE_A_MINUTE).call("x", 2)
    drain(store)
    Session(store, FIVE_A_MINUTE, session="b" * 16).call("x", 1)
    with monkeypatch.context() as patch:
        patch.setattr(SqliteUpkeep, "drain", lambda *_: False)
        store.close()
    with another_program(path, "reads"):
        late = open_store()
        assert Session(late, FIVE_A_MINUTE, session="c" * 16).decisions("x", 3) == ["allowed", "allowed", "rate_limited"]
    late.close()
    assert [one.used for one in open_store().counters()] == [5]


def test_a_database_that_another_program_is_changing_is_not_read(path: Path, open_store: Open) -> None:
    store = open_store()
    Session(store, FIVE_A_MINUTE).call("x", 2)
    store.close()
    with another_program(path, "writes"), pytest.raises(StoreUnavailable, match="locked"):
        open_store()
    assert [one.used for one in open_store().counters()] == [2]
