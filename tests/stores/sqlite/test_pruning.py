"""Pruning on demand deletes rows in small portions, beside calls and upkeep."""

import contextlib
import sqlite3
from pathlib import Path

import pytest

from mcpguard.errors import StoreUnavailable
from mcpguard.locks import lock_file
from mcpguard.stores.address import SqliteAddress
from mcpguard.stores.api import DISORDER_US, Options
from mcpguard.stores.sqlite import draining, upkeep
from mcpguard.stores.sqlite.call_log import CallLog, beside, log_path
from tests.build import WALL_US, Time
from tests.stores.sqlite.conftest import MANY, Begin, OnFile, Times

HOUR_US = 3_600_000_000


@pytest.fixture
def path(path: Path, begin: Begin, times: Times) -> Path:
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


def test_the_rows_of_before_a_time_are_deleted(path: Path) -> None:
    assert prune(path, 0) == []
    assert prune(path, 10, "other") == []
    assert sum(prune(path, 10)) == 10
    assert hours(path) == list(range(10, 24))


def test_rows_go_in_portions_and_the_newest_row_stays(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draining, "AT_ONCE", 10)
    assert prune(path, 1000) == [10, 10, 3]
    assert hours(path) == [23]


def test_rows_that_are_only_in_the_call_log_are_deleted_too(path: Path, begin: Begin) -> None:
    begin(MANY, wall=Time(WALL_US - 1)).call("x", 3)
    assert sum(prune(path, -100)) == 0
    assert sum(prune(path, 24)) == 26


def test_a_row_out_of_order_is_found_within_an_hour(path: Path, begin: Begin, times: Times) -> None:
    assert HOUR_US == DISORDER_US
    times[1].now_us = WALL_US + 24 * HOUR_US
    call(begin(MANY), *times, 0, HOUR_US + HOUR_US // 2, 0)
    assert sum(prune(path, 24)) == 24 + 1


def test_a_damaged_row_is_deleted_with_the_row_before_it(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE audit SET time_us = 'x' WHERE id = 7")
    assert sum(prune(path, 5)) == 5
    assert sum(prune(path, 6)) == 2


def test_it_waits_for_upkeep_of_another_process_for_a_bounded_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "LOCK_S", 0.01)
    with contextlib.closing(lock_file(beside(path, "-lock"))) as lock:
        assert lock.acquire(1)
        with pytest.raises(StoreUnavailable, match="is locked by another process"):
            prune(path, 10)
    assert sum(prune(path, 10)) == 10


def test_it_takes_no_lock_that_calls_need(path: Path) -> None:
    with contextlib.closing(CallLog(log_path(path))) as log, contextlib.closing(log.turn()) as turn:
        assert turn.acquire(1)
        assert sum(prune(path, 10)) == 10
