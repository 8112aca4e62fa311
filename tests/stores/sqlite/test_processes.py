"""Many processes on one store: who takes a place, when it is free again, and what processes that end leave."""

import contextlib
import errno
import os
import random
import signal
import stat
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mcpguard import locks
from mcpguard.errors import StoreUnavailable
from mcpguard.files import open_private
from mcpguard.session.verdict import Ending
from mcpguard.stores.sqlite import call_log
from mcpguard.stores.sqlite.places import sweep
from mcpguard.stores.sqlite.reader import SqliteReader
from mcpguard.stores.sqlite.store import SqliteStore
from tests.callers import Caller
from tests.stores.conftest import ENOUGH_S, Worker, broken, heard, kill, tell
from tests.stores.sqlite.conftest import Open, Tend, rows
from tests.stores.worker import CAPPED, SEATS

Start = Callable[[str, Path], Worker]
Busy = Callable[..., Worker]


def ask(worker: Worker, what: str) -> str:
    """Tell a worker what to do. Returns what it says."""
    tell(worker, what)
    return heard(worker)


@pytest.fixture
def busy(path: Path, start: Start) -> Busy:
    """Starts a process with calls in flight."""

    def begin(calls: int = 0) -> Worker:
        worker = start("call_when_told", path)
        assert [ask(worker, "call") for _ in range(calls)] == ["allowed"] * calls
        return worker

    return begin


def owner_files(path: Path) -> list[Path]:
    return [one for one in path.parent.iterdir() if "-owner-" in one.name]


def test_a_call_that_cannot_be_forced_to_the_disk_keeps_no_place(open_store: Open) -> None:
    caller = Caller(open_store(durability="full"), CAPPED)
    assert caller.words("x") == ["allowed"]
    with broken(call_log, "force_data", errno.EIO), pytest.raises(StoreUnavailable):
        caller.decide("x", "x")
    assert caller.used == [1]
    assert caller.words("x", "x") == ["allowed", "rate_limited"]


@pytest.mark.parametrize("drained", [False, True])
@pytest.mark.parametrize("reopened", [False, True])
def test_the_places_of_a_killed_process_are_free_at_once(
    path: Path, busy: Busy, open_store: Open, tend: Tend, drained: bool, reopened: bool
) -> None:
    caller = Caller(open_store(), CAPPED)
    worker, second = busy(1), busy(1)
    assert caller.words("x") == ["rate_limited"]
    if drained:
        tend(caller.store)
        assert rows(path, "in_flight") == 2
    if reopened:
        caller.store = open_store()
    kill(worker)
    assert caller.words("x", "x") == ["allowed", "rate_limited"]
    assert ask(second, "call") == "rate_limited"
    kill(second)
    assert caller.words("x", "x") == ["allowed", "rate_limited"]


def test_the_places_of_a_killed_process_are_neither_shown_nor_peeked(path: Path, busy: Busy, open_store: Open) -> None:
    caller = Caller(open_store(), CAPPED)
    worker = busy(2)
    counters = caller.charges("x")[0].plan.counters
    with contextlib.closing(SqliteReader(path)) as reader:
        assert [one.used for one in reader.counters()] == [2]
        assert len(reader.peek(counters)[0][0]) == 2
        kill(worker)
        assert reader.counters() == caller.store.counters() == []
        assert reader.peek(counters)[0] == [()]


@pytest.mark.posix
def test_a_stopped_process_keeps_its_places(busy: Busy, open_store: Open, tend: Tend) -> None:
    store = open_store()
    worker = busy(2)
    worker.send_signal(signal.SIGSTOP)
    caller = Caller(store, CAPPED)
    tend(store, after_s=86_400)
    assert caller.words("x") == ["rate_limited"]
    assert caller.used == [2]
    worker.send_signal(signal.SIGCONT)
    assert ask(worker, "end") == "ended"
    assert caller.words("x") == ["allowed"]


def test_processes_killed_at_any_moment_exceed_no_cap_and_leave_no_place_taken(path: Path, start: Start) -> None:
    SqliteStore(path).close()
    chance = random.Random(20260102)  # noqa: S311 - it only chooses whom to kill, and when

    def said_by_three(_: int) -> list[str]:
        """What three processes print, each of which is killed before the next begins."""
        said: list[str] = []
        for _ in range(3):
            worker = start("sit", path)
            said += [heard(worker) for _ in range(chance.randint(1, 40))]
            kill(worker)
        return said

    with ThreadPoolExecutor(8) as pool:
        seated = [line for some in pool.map(said_by_three, range(8)) for line in some]
    assert {*seated} == {"seated"}
    assert len(seated) > 100
    with contextlib.closing(SqliteStore(path)) as store:
        assert store.counters() == []
        caller = Caller(store, CAPPED.replace("2", str(SEATS)))
        assert caller.words(*["x"] * (SEATS + 1)) == ["allowed"] * SEATS + ["rate_limited"]
        caller.store.settle([Ending(*call, False) for call in caller.flying])


def test_upkeep_deletes_what_processes_that_ended_have_left(path: Path, busy: Busy, open_store: Open, tend: Tend) -> None:
    store = open_store()
    with_place, without = busy(1), busy(1)
    assert ask(without, "end") == "ended"
    caller = Caller(store, CAPPED)
    assert caller.words("x") == ["allowed"]
    assert len(owner_files(path)) == 3
    kill(with_place, without)
    tend(store)
    assert len(owner_files(path)) == 1
    assert rows(path, "in_flight") == 1
    assert caller.used == [1]
    assert caller.words("x", "x") == ["allowed", "rate_limited"]


def test_a_call_in_flight_keeps_its_place_while_its_store_is_closed_and_opened_again(path: Path, busy: Busy) -> None:
    other = busy()
    caller = Caller(SqliteStore(path), CAPPED)
    caller.decide("x", "x")
    caller.store.close()
    assert ask(other, "call") == "rate_limited"
    caller.store = SqliteStore(path)
    assert caller.words("x") == ["rate_limited"]
    caller.end()
    assert ask(other, "call") == "allowed"
    caller.end()
    caller.store.close()
    assert len(owner_files(path)) == 1
    kill(other)
    with contextlib.closing(SqliteStore(path)) as store:
        assert store.counters() == []


def test_only_a_process_that_caps_calls_has_a_file_and_deletes_it_when_it_closes_the_store(path: Path) -> None:
    first, second = (Caller(SqliteStore(path), CAPPED, session=f"{at:016x}") for at in range(2))
    other = Caller(second.store, '[[rule]]\ntool = "y"\nlimit = "1/1m"\n', session="c" * 16)
    assert other.words("y") == ["allowed"]
    assert owner_files(path) == []
    first.decide("x")
    second.decide("x")
    (file,) = owner_files(path)
    assert sys.platform == "win32" or stat.S_IMODE(file.stat().st_mode) == 0o600
    second.end()
    first.end()
    first.store.close()
    assert owner_files(path) == [file]
    second.store.catch_up()
    second.store.close()
    assert owner_files(path) == []


def test_a_reset_frees_places_in_the_database_too(path: Path, open_store: Open, tend: Tend) -> None:
    store = open_store()
    caller = Caller(store, CAPPED)
    caller.decide("x", "x")
    tend(store)
    store.reset([one.label for one in store.counters()])
    tend(store)
    assert rows(path, "in_flight") == 0
    assert caller.words("x") == ["allowed"]


def test_a_store_that_is_closed_twice_frees_no_places_of_another_one_of_its_process(path: Path, open_store: Open) -> None:
    twice = open_store()
    twice.close()
    twice.close()
    holder, other = open_store(), open_store()
    assert Caller(holder, CAPPED).words("x") == ["allowed"]
    other.close()
    assert len(owner_files(path)) == 1


@pytest.mark.posix
@pytest.mark.parametrize(
    ("notice", "taken"),
    [
        (lambda caller: caller.decide("x"), 2),
        (lambda caller: caller.store.tend(), 1),
        (lambda caller: caller.store.catch_up(), 1),
    ],
    ids=["at its next call", "in its upkeep", "while it is idle"],
)
def test_a_process_whose_file_was_deleted_makes_it_again_keeps_its_places_and_tells(
    path: Path, busy: Busy, open_store: Open, notice: Callable[[Caller], object], taken: int
) -> None:
    other = busy()
    caller = Caller(open_store(), CAPPED)
    caller.decide("x")
    (file,) = owner_files(path)
    file.unlink()
    notice(caller)
    assert owner_files(path)[0] == file
    assert [ask(other, "call") for _ in range(2)] == ["allowed"] * (2 - taken) + ["rate_limited"] * taken
    assert caller.used == [2]
    for _ in range(2):
        caller.store.tend()
    (told,) = caller.store.warnings
    assert told.startswith(f"{file} was removed: ")


def test_an_owner_whose_file_is_swept_takes_another_name(path: Path, open_store: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    caller = Caller(open_store(), CAPPED)
    swept: list[Path] = []

    def make_and_lose(file: Path) -> int:
        fd = open_private(file)
        if not swept:
            swept.append(file)
            sweep(path)
        return fd

    monkeypatch.setattr(locks, "open_private", make_and_lose)
    assert caller.words("x", "x", "x") == ["allowed", "allowed", "rate_limited"]
    (file,) = owner_files(path)
    assert swept != [file]
    assert [one.used for one in open_store().counters()] == [2]


def test_without_an_owners_file_a_capped_call_is_not_admitted_and_others_are(open_store: Open) -> None:
    caller = Caller(open_store(), CAPPED + '[[rule]]\ntool = "y"\nlimit = "2/1h"\n')
    with broken(locks, "open_private", errno.ENOSPC):
        with pytest.raises(StoreUnavailable, match=os.strerror(errno.ENOSPC)):
            caller.decide("x")
        assert caller.words("y") == ["allowed"]
    assert caller.words("x") == ["allowed"]
    assert [entry.record["seq"] for entry in caller.store.entries()] == [1, 2]


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
