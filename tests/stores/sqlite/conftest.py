"""Stores in a new folder, at a time that stands still until the test moves it."""

import contextlib
import itertools
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mcpguard.session.verdict import DecisionRequest
from mcpguard.stores.api import Clock, Options
from mcpguard.stores.sqlite import call_log, upkeep
from mcpguard.stores.sqlite.memory import MOST_COUNTERS
from mcpguard.stores.sqlite.store import SqliteStore
from tests.build import WALL_US, Session, Time
from tests.stores.conftest import before_each

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
def patient_upkeep() -> Iterator[None]:
    """A busy machine interrupts no drain: what it leaves would never be due, because the store's time stands still."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(upkeep, "HOLD_S", 600)
        yield


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


@pytest.fixture
def small_log(monkeypatch: pytest.MonkeyPatch) -> int:
    """The size of a log that a few calls fill."""
    monkeypatch.setattr(call_log, "RING_BYTES", 64 * 1024)
    return call_log.RING_BYTES


def drain(store: SqliteStore) -> None:
    """Move all records of the log into the database."""
    assert store._upkeep.drain(60)


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


def turn_is_free(store: SqliteStore) -> bool:
    """Whether another process could take its turn now."""
    is_free = store._follower.turn_lock.acquire(0)
    if is_free:
        store._follower.turn_lock.release()
    return is_free


def turns_at(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, other: SqliteStore) -> list[bool]:
    """Whether another process could take its turn, before each call of a function."""
    return before_each(monkeypatch, owner, name, lambda: turn_is_free(other))
