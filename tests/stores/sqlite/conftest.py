"""Stores in a new folder, at a time that stands still until the test moves it."""

import contextlib
import itertools
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from secrets import token_bytes
from typing import Any

import pytest

from mcpguard.files import StrPath
from mcpguard.locks import lock_file
from mcpguard.session.verdict import DecisionRequest
from mcpguard.stores.api import Clock, Options
from mcpguard.stores.sqlite import call_log, database, draining, upkeep
from mcpguard.stores.sqlite.call_log import CallLog, beside, log_path
from mcpguard.stores.sqlite.follower import MOST_COUNTERS
from mcpguard.stores.sqlite.opening import open_files
from mcpguard.stores.sqlite.store import SqliteStore
from mcpguard.stores.sqlite.upkeep import SqliteUpkeep
from tests.build import WALL_US, Session, Time
from tests.stores.conftest import FakeClock, before_each

Open = Callable[..., SqliteStore]
Tend = Callable[..., None]
Times = tuple[Time, Time]


class OnFile(Session):
    """A wrapper's session on a store of its own."""

    store: SqliteStore

    def call_and_end(self, times: int) -> None:
        """Make calls, and close the store."""
        self.call("x", times)
        self.store.close()


Begin = Callable[..., OnFile]
FIVE_A_MINUTE = '[[rule]]\ntool = "x"\nlimit = "5/1m"\n'
MANY = '[[rule]]\ntool = "x"\nlimit = "100000/1h"\n'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "mcpguard.db"


@pytest.fixture
def times() -> Times:
    """The store's time and wall-clock time."""
    return Time(), Time(WALL_US)


@pytest.fixture(autouse=True)
def upkeep_time() -> Iterator[FakeClock]:
    """The clock by which upkeep waits, and sees how long it takes: no time, so a busy machine interrupts no drain."""
    clock = FakeClock()
    clock.now_s = 1e9  # long after the last call
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(upkeep, "time", clock)
        yield clock


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch, upkeep_time: FakeClock) -> None:
    """A disk on which each transaction of a drain takes longer than a process may hold the lock."""

    def pass_time() -> None:
        upkeep_time.now_s += 2 * upkeep.HOLD_S

    before_each(monkeypatch, draining.Drain, "write", pass_time)


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[sqlite3.Connection]:
    """The connections to databases that are made."""
    made: list[sqlite3.Connection] = []
    connect = database.connect

    def noted(*args: Any, **options: Any) -> sqlite3.Connection:
        made.append(connect(*args, **options))
        return made[-1]

    monkeypatch.setattr(database, "connect", noted)
    return made


@pytest.fixture
def open_store(path: Path, times: Times) -> Iterator[Open]:
    """Opens stores that are closed at the end of the test. Without a clock, a store uses that of the machine."""
    with contextlib.ExitStack() as opened:

        def open_one(
            at: Path | None = None,
            *,
            clock: Clock | None = times[0],
            wall: Clock = times[1],
            most: int = MOST_COUNTERS,
            **options: Any,
        ) -> SqliteStore:
            store = SqliteStore(at or path, Options(**options), clock=clock, wall=wall, most_counters=most)
            return opened.enter_context(contextlib.closing(store))

        yield open_one


@pytest.fixture
def begin(open_store: Open) -> Begin:
    """Begins a wrapper's session on a store of its own. Each session has another name."""
    names = map("{:016x}".format, itertools.count(1))

    def start(policy: str = FIVE_A_MINUTE, at: Path | None = None, **options: Any) -> OnFile:
        return OnFile(open_store(at, **options), policy, session=next(names))

    return start


@pytest.fixture
def tend(times: Times) -> Tend:
    """Lets time pass until upkeep is due, and repeats it until there is nothing more to do."""

    def do(*stores: SqliteStore, after_s: int = 61) -> None:
        for time in times:
            time.pass_s(after_s)
        for store in stores:
            store.tend()
            while store.needs_tending:
                for time in times:
                    time.pass_s(1)  # after a drain that took long, upkeep rests
                store.tend()

    return do


def make_log(path: Path, kib: int) -> int:
    """Make a small call log, with which the store then begins. Returns the bytes that it holds."""
    path.parent.mkdir(exist_ok=True)
    call_log.create(log_path(path), token_bytes(32), ring_bytes=kib * 1024)
    return kib * 1024


@pytest.fixture
def small_log(path: Path) -> int:
    """The size of a log that a few calls fill."""
    return make_log(path, 64)


def drain_for(path: StrPath, timeout_s: float) -> bool:
    """Move records of the log into the database, as another process. Returns whether it has all in time."""
    with contextlib.closing(open_files(os.fspath(path), timeout_s=60, own_clock=Time(), wall=Time())) as files:
        return SqliteUpkeep(files, Options(), decided_s=lambda: 0.0).drain(timeout_s)


def drain(path: StrPath) -> None:
    """Move all records of the log into the database, as another process."""
    assert drain_for(path, 60)


def log_ends(path: StrPath) -> tuple[int, int]:
    """The positions up to which the database has the log, and at which the log ends."""
    with contextlib.closing(CallLog(log_path(path), writable=False)) as log:
        at = log.drained()
        return at.end, log.end(at).end


def waiting_bytes(path: StrPath) -> int:
    """How much of the log the database does not have."""
    drained, end = log_ends(path)
    return end - drained


def overwrite(path: StrPath, at: int, data: bytes) -> None:
    with Path(path).open("r+b") as file:
        file.seek(at)
        file.write(data)


def lose_newest_pages(path: StrPath) -> None:
    """Harm the log as a power cut does."""
    overwrite(log_path(path), 4096 + log_ends(path)[0] - 4, bytes(64))


def take_log_of_another(path: Path) -> None:
    """Put the log of another store in the place of a store's own."""
    other = path.with_name("other.db")
    SqliteStore(other).close()
    Path(log_path(other)).replace(log_path(path))


@contextlib.contextmanager
def locked(path: StrPath, suffix: str = "-lock") -> Iterator[None]:
    """Another process's hold of one of the store's locks."""
    with contextlib.closing(lock_file(beside(path, suffix))) as lock:
        assert lock.acquire(0)
        yield


def used(store: SqliteStore) -> list[int]:
    """What the counters hold that are not empty."""
    return sorted(one.used for one in store.counters())


def ask(path: Path, question: str) -> Any:
    """The first value that the database answers."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        return db.execute(question).fetchone()[0]


def rows(path: Path, table: str = "audit") -> int:
    """How many rows a table has."""
    return int(ask(path, f"SELECT count(*) FROM {table}"))  # noqa: S608 - names of the tests


def counter_of(requests: list[DecisionRequest]) -> Any:
    """The only counter of a call."""
    (counter,) = requests[0].plan.counters
    return counter


def turn_is_free(path: StrPath) -> bool:
    """Whether another process could take its turn now."""
    with contextlib.closing(lock_file(log_path(path))) as turn:
        return turn.acquire(0)


def turns_at(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, path: Path) -> list[bool]:
    """Whether another process could take its turn, before each call of a function."""
    return before_each(monkeypatch, owner, name, lambda: turn_is_free(path))
