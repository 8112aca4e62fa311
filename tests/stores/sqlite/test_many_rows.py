"""Many rows are read in pages and pruned in portions, whose size is bounded, beside calls and upkeep."""

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mcpguard import locks
from mcpguard.errors import StoreUnavailable
from mcpguard.session.audit import Row
from mcpguard.stores.address import SqliteAddress
from mcpguard.stores.api import DISORDER_US, Options, StoredRow, Wanted
from mcpguard.stores.sqlite.reader import SqliteReader
from mcpguard.stores.sqlite.store import SqliteStore
from mcpguard.text.printing import compact
from tests.build import WALL_US, Time
from tests.stores.conftest import FakeClock
from tests.stores.sqlite.conftest import MANY, Begin, OnFile, Open, Times, drain, locked

Fill = Callable[..., SqliteReader]


@pytest.fixture
def fill(open_store: Open) -> Iterator[Fill]:
    """Writes rows, moves them into the database, and reads them."""
    with contextlib.ExitStack() as opened:

        def do(count: int, *, detail: str | None = None, users: int = 1) -> SqliteReader:
            store = open_store()
            contexts = [compact({"session": "aa", "namespace": "default", "user": f"user-{at % users}"}) for at in range(count)]
            store.append([Row(WALL_US + at, at + 1, "allowed", one, detail=detail) for at, one in enumerate(contexts)])
            drain(store.path)
            return opened.enter_context(contextlib.closing(SqliteReader(store.path)))

        yield do


def ids(pages: Iterator[list[StoredRow]]) -> list[list[int]]:
    return [[one.row_id for one in page] for page in pages if page]


def test_a_page_has_a_bounded_number_of_rows(fill: Fill) -> None:
    found = fill(1200)
    assert list(map(len, ids(found.rows()))) == [500, 500, 200]
    assert ids(found.rows(after=600)) == [[*range(601, 1101)], [*range(1101, 1201)]]
    assert [part.last_id for part in found.tally()] == [500, 1000, 1200, 1200]


@pytest.mark.parametrize("newest_first", [False, True])
def test_a_page_of_long_rows_ends_early(fill: Fill, connections: list[sqlite3.Connection], *, newest_first: bool) -> None:
    """Somebody who needs the newest row while a call waits does not read a gigabyte for it."""
    found = fill(7, detail=compact({"reason": "x" * 1_000_000}))
    asked: list[str] = []
    connections[-1].set_trace_callback(asked.append)
    ids = [one.row_id for one in (found.newest() if newest_first else found.entries())]
    assert ids == [*(range(7, 0, -1) if newest_first else range(1, 8))]
    assert len([one for one in asked if "ORDER BY a.id" in one]) == 2


def test_a_filter_may_select_more_contexts_than_a_query_can_name(fill: Fill) -> None:
    found = fill(10_002, users=10_002)
    others = Wanted(lambda members: members["user"] != "user-3")
    assert [one.row_id for one in found.entries(wanted=others)] == [1, 2, 3, *range(5, 10_003)]


HOUR_US = 3_600_000_000


@pytest.fixture
def day(path: Path, begin: Begin, times: Times) -> Path:
    """A store with a row each hour of a day."""
    call(begin(MANY), *times, *[0] * 24)
    return path


def call(session: OnFile, time: Time, wall: Time, *back_us: int) -> None:
    """Make a call each hour, or some microseconds before that, and close the store."""
    for us in back_us:
        wall.now_us -= us
        session.call("x")
        wall.now_us += us + HOUR_US
        time.now_us += HOUR_US
    session.store.close()


def prune(path: Path, hours: int, namespace: str = "default") -> list[int]:
    return list(SqliteAddress(str(path)).prune(Options(namespace=namespace), WALL_US + hours * HOUR_US))


def hours(path: Path) -> list[int]:
    with contextlib.closing(SqliteAddress(str(path)).read(Options(), print)) as reader:
        return [(int(str(one.record["time_us"])) - WALL_US) // HOUR_US for one in reader.entries()]


def test_the_rows_of_before_a_time_are_deleted(day: Path) -> None:
    assert prune(day, 0) == []
    assert prune(day, 10, "other") == []
    assert sum(prune(day, 10)) == 10
    assert hours(day) == list(range(10, 24))


def test_rows_go_in_portions_and_the_newest_row_stays(fill: Fill, path: Path) -> None:
    reader = fill(4500)
    assert prune(path, 1000) == [2000, 2000, 499]
    assert [one.row_id for one in reader.entries()] == [4500]


def test_rows_that_are_only_in_the_call_log_are_deleted_too(day: Path, begin: Begin) -> None:
    begin(MANY, wall=Time(WALL_US - 1)).call("x", 3)
    assert sum(prune(day, -100)) == 0
    assert sum(prune(day, 24)) == 26


def test_a_row_out_of_order_is_found_within_an_hour(day: Path, begin: Begin, times: Times) -> None:
    assert HOUR_US == DISORDER_US
    times[1].now_us = WALL_US + 24 * HOUR_US
    call(begin(MANY), *times, 0, HOUR_US + HOUR_US // 2, 0)
    assert sum(prune(day, 24)) == 24 + 1


def test_a_damaged_row_is_deleted_with_the_row_before_it(day: Path) -> None:
    with contextlib.closing(sqlite3.connect(day)) as db, db:
        db.execute("UPDATE audit SET time_us = 'x' WHERE id = 7")
    assert sum(prune(day, 5)) == 5
    assert sum(prune(day, 6)) == 2


def test_it_waits_for_upkeep_of_another_process_for_a_bounded_time(day: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SqliteStore(day).close()  # then it needs no repair
    monkeypatch.setattr(locks, "time", FakeClock())
    with locked(day), pytest.raises(StoreUnavailable, match="is locked by another process"):
        prune(day, 10)
    assert sum(prune(day, 10)) == 10


def test_it_takes_no_lock_that_calls_need(day: Path) -> None:
    with locked(day, "-calls"):
        assert sum(prune(day, 10)) == 10
