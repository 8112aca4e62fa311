"""A store that others have open opens while one of them holds its lock for upkeep, unless something is left to repair."""

import contextlib
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from threading import Timer
from typing import Any

import pytest

from mcpguard import locks
from mcpguard.errors import StoreUnavailable
from mcpguard.locks import FileLock, lock_file
from mcpguard.stores import clock
from mcpguard.stores.sqlite import database, opening
from mcpguard.stores.sqlite.call_log import START, CallLog, beside, log_path
from mcpguard.stores.sqlite.upkeep import SqliteUpkeep
from tests.stores.conftest import FakeClock, broken, open_descriptors
from tests.stores.sqlite.conftest import Begin, Open, drain, locked, lose_newest_pages, take_log_of_another, used, waiting_bytes


@pytest.fixture
def open_store(open_store: Open, monkeypatch: pytest.MonkeyPatch) -> Open:
    """Opens stores on the machine's clock. Nobody really waits for a lock."""
    waiting = FakeClock()
    for module in locks, opening:
        monkeypatch.setattr(module, "time", waiting)
    return partial(open_store, clock=None, timeout_ms=100)


def is_open(path: Path) -> bool:
    """Whether a process has the store open."""
    with contextlib.closing(lock_file(beside(path, "-open"))) as hold:
        return not hold.acquire(0)


@pytest.mark.parametrize("drained", [0, 1, 2])
def test_a_store_opens_during_upkeep_with_every_call_counted(path: Path, begin: Begin, drained: int) -> None:
    one = begin()
    one.call("x", drained)
    drain(path)
    one.call("x", 2 - drained)
    with locked(path), contextlib.closing(sqlite3.connect(path, isolation_level=None)) as upkeep:
        upkeep.execute("BEGIN IMMEDIATE")
        upkeep.execute("UPDATE counter SET log = zeroblob(20)")
        other = begin()
        upkeep.execute("ROLLBACK")
    assert used(other.store) == [2]
    assert other.decisions("x", 2) == ["allowed"] * 2
    assert one.decisions("x", 2) == ["allowed", "rate_limited"]
    assert abs(one.store.last_seen()[1] - other.store.last_seen()[1]) < 1_000_000


def test_a_store_that_was_opened_during_upkeep_counts_as_open(path: Path, open_store: Open) -> None:
    first = open_store()
    with locked(path):
        second = open_store()
    first.close()
    assert is_open(path)
    second.close()
    assert not is_open(path)


@pytest.mark.posix
def test_a_store_that_cannot_be_drained_at_its_end_does_not_stay_open(path: Path, begin: Begin) -> None:
    session = begin()
    session.call("x")
    with broken(SqliteUpkeep, "drain", MemoryError()):
        session.store.close()
    assert not is_open(path)


def changed_log(change: Callable[[CallLog], object]) -> Callable[[Path], None]:
    def harm(path: Path) -> None:
        with contextlib.closing(CallLog(log_path(path))) as log:
            change(log)

    return harm


HARMS: dict[str, Callable[[Path], None]] = {
    "lacks its log": lambda path: Path(log_path(path)).unlink(),
    "has another store's log": take_log_of_another,
    "has a log that ends before its database": lose_newest_pages,
    "has a log that does not know what its database has": changed_log(lambda log: log.set_drained(START)),
    "has the time of another boot": changed_log(lambda log: log.write_header({**log.header, "time_base": "another boot"})),
    "is cut": lambda path: os.truncate(path, 8192),
}


@pytest.mark.parametrize("store_that", HARMS)
def test_with_something_left_to_repair_opening_waits_for_the_lock_and_does_not_count_as_open(
    path: Path, begin: Begin, store_that: str
) -> None:
    begin().call_and_end(3)
    HARMS[store_that](path)
    with locked(path), pytest.raises(StoreUnavailable, match="is locked by another process"):
        begin()
    assert not is_open(path)


def test_a_log_that_does_not_know_what_its_database_has_learns_it(path: Path, begin: Begin) -> None:
    begin().call_and_end(3)
    changed_log(lambda log: log.set_drained(START))(path)
    begin()
    assert waiting_bytes(path) == 0


def test_a_store_that_another_process_is_still_repairing_is_not_joined(path: Path, open_store: Open) -> None:
    open_store().close()
    with locked(path, "-open"), locked(path), pytest.raises(StoreUnavailable, match="is locked by another process"):
        open_store()  # whoever repairs a store holds `-open` until the store is open


def test_a_store_is_created_beside_a_process_that_reads_it(path: Path, begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    begin_database = database.begin

    def while_another_reads(*args: Any) -> None:
        reader = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM meta").fetchone()
        ends = Timer(0.2, reader.close)  # it is interrupted while it reads
        ends.start()
        begin_database(*args)
        ends.join()

    monkeypatch.setattr(database, "begin", while_another_reads)
    assert begin(timeout_ms=20_000).decisions("x") == ["allowed"]


# files that stay open would add up: during an outage a store is opened every few seconds


@pytest.mark.parametrize(("owner", "step"), [(CallLog, "turn"), (clock, "boot_us"), (FileLock, "share")])
def test_a_store_that_cannot_be_opened_leaves_no_file_open(
    path: Path, open_store: Open, monkeypatch: pytest.MonkeyPatch, owner: object, step: str
) -> None:
    open_store().close()
    before = open_descriptors()
    monkeypatch.setattr(clock, "base_id", lambda: "another boot")
    with broken(owner, step, StoreUnavailable("not now")), pytest.raises(StoreUnavailable):
        open_store()
    assert open_descriptors() == before


def test_a_closed_store_leaves_no_file_open(begin: Begin) -> None:
    begin().store.close()
    before = open_descriptors()
    session = begin()
    session.call("x")
    session.store.close()
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
    path: Path, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = begin()
    session.call("x", 2)
    drain(path)
    session.call("x", 1)
    with monkeypatch.context() as patch:
        patch.setattr(SqliteUpkeep, "drain", lambda *_: False)
        session.store.close()
    with another_program(path, "reads"):
        late = begin()
        assert late.decisions("x", 3) == ["allowed", "allowed", "rate_limited"]
    late.store.close()
    assert used(begin().store) == [5]


def test_a_database_that_another_program_is_changing_is_not_read(path: Path, begin: Begin) -> None:
    begin().call_and_end(2)
    with another_program(path, "writes"), pytest.raises(StoreUnavailable, match="locked"):
        begin()
    assert used(begin().store) == [2]
