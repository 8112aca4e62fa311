"""Many processes on one store: they create it together, share it fairly, and are killed at any moment."""

import random
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from mcpguard.stores.sqlite.store import SqliteStore
from tests.stores.conftest import ENOUGH_S, Worker, heard, killed_one_by_one, tell

Start = Callable[[str, Path], Worker]


def test_eight_processes_can_create_the_store_at_once(path: Path, start: Start) -> None:
    workers = [start("make", path) for _ in range(8)]
    for worker in workers:
        tell(worker)
    keys = {heard(worker) for worker in workers}
    assert len(keys) == 1
    assert len(keys.pop()) == 64
    for worker in workers:
        tell(worker)
    assert [worker.wait(ENOUGH_S) for worker in workers] == [0] * 8


def test_of_many_processes_each_gets_its_share(path: Path, start: Start) -> None:
    SqliteStore(path).close()
    workers = [start("call_a_share", path) for _ in range(6)]
    for worker in workers:
        tell(worker)
    assert [heard(worker) for worker in workers] == ["done"] * 6
    store = SqliteStore(path)
    assert [one.used for one in store.counters()] == [600]
    store.close()


def test_processes_killed_at_any_moment_exceed_no_limit_and_every_admission_has_its_row(path: Path, start: Start) -> None:
    SqliteStore(path).close()
    chance = random.Random(20260101)  # noqa: S311 - it only chooses whom to kill, and when
    reported = list(killed_one_by_one(lambda: start("call_until_told", path), lambda: chance.randint(5, 60)))
    store = SqliteStore(path)
    records = [entry.record for entry in store.entries()]
    store.close()
    admitted = [record for record in records if record["decision"] == "allowed"]
    assert set(reported) <= {record["id"] for record in admitted}
    times = sorted(int(str(record["time_us"])) for record in admitted)
    assert len(times) >= len(reported) > 300
    first = 0
    for nth, at_us in enumerate(times):
        while times[first] <= at_us - 1_000_000:
            first += 1
        assert nth - first + 1 <= 30
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@pytest.mark.posix
def test_a_full_disk_is_reported_and_changes_neither_counters_nor_audit(path: Path, start: Start) -> None:
    worker = start("fill_the_disk", path)
    output, _ = worker.communicate(timeout=ENOUGH_S)
    assert worker.returncode == 0
    *failures, sums, seqs = output.splitlines()
    assert len(failures) == 3
    assert all(str(path) in failure and "cannot be used" in failure for failure in failures)
    admitted, held, written = map(int, sums.split())
    assert admitted == held == written > 15
    assert seqs == " ".join(map(str, range(1, written + 1)))
