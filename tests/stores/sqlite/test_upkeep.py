"""Upkeep drains the log into the database and prunes old and surplus rows. No call waits for it."""

import itertools
import sqlite3
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from secrets import token_hex

import pytest

from mcpguard.session.audit import Outcome
from mcpguard.stores import clock
from mcpguard.stores.sqlite import database, draining, upkeep
from mcpguard.stores.sqlite.call_log import beside
from tests.build import Session
from tests.stores.conftest import FakeClock, around_next, before_each, broken
from tests.stores.sqlite.conftest import (
    FIVE_A_MINUTE,
    MANY,
    Begin,
    OnFile,
    Open,
    Tend,
    Times,
    ask,
    counter_of,
    locked,
    make_log,
    rows,
    used,
    waiting_bytes,
)

ALONE = {"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"}
"""The `_meta` of calls that have lines of their own in the log, and fill it."""


# Draining


def test_the_log_is_drained_after_two_seconds_or_when_it_is_large(path: Path, begin: Begin, times: Times) -> None:
    session = begin()
    store = session.store
    store.tend()
    session.call("x", 2)
    store.tend()
    assert (rows(path), store.needs_tending) == (0, True)
    times[0].now_us += upkeep.DRAIN_EVERY_US
    store.tend()
    assert (rows(path), store.needs_tending) == (2, False)
    while waiting_bytes(path) < upkeep.DRAIN_BYTES:
        session.call("free", 100, _meta=ALONE)
    store.tend()
    assert (rows(path), store.needs_tending) == (session.calls, False)
    assert used(store) == [2]


def test_a_drain_takes_little_memory(path: Path, begin: Begin, tend: Tend) -> None:
    session = begin()
    session.call("free", 400, _meta=ALONE)
    tend(session.store)  # what is loaded or made once
    session.call("free", 400, _meta=ALONE)
    tracemalloc.start()
    try:
        tend(session.store)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert rows(path) == 800
    assert peak < 400 * 1024  # mostly the records of one transaction


def test_the_journal_of_a_drain_stays_within_its_share_though_each_outcome_changes_a_page(
    path: Path, begin: Begin, tend: Tend, monkeypatch: pytest.MonkeyPatch
) -> None:
    share_bytes = 2 << 20
    session = begin(max_bytes=16 * share_bytes)
    ids: list[int] = []
    for _ in range(20):
        requests = session.charges("free", 100)
        for request in requests:
            request.detail = {"arguments": "x" * 3000}
        ids += [verdict.row_id or 0 for verdict in session.store.decide(requests, session.journal)]
        tend(session.store)
    for at in range(0, len(ids), 50):
        session.store.record([Outcome(row_id, "ok", 1) for row_id in ids[at : at + 50]])
    journal = Path(beside(path, "-journal"))
    sizes = before_each(monkeypatch, database, "set_position", lambda: journal.stat().st_size)
    tend(session.store)
    assert ask(path, "SELECT count(*) FROM audit WHERE outcome = 'ok'") == len(ids) == 2000
    assert share_bytes / 4 < max(sizes) < share_bytes


def test_of_many_wrappers_one_drains_the_log_every_two_seconds(path: Path, begin: Begin, times: Times) -> None:
    session = begin()
    one, other = session.store, begin().store
    for store in one, other:
        store.tend()
    session.call("x", 2)
    other.catch_up()
    times[0].now_us += upkeep.DRAIN_EVERY_US
    one.tend()
    session.call("free", 1, _meta=ALONE)
    other.catch_up()
    other.tend()
    assert (rows(path), other.needs_tending) == (2, True)
    times[0].now_us += upkeep.DRAIN_EVERY_US
    other.tend()
    assert rows(path) == 3


@pytest.mark.parametrize(("took_s", "rest_us"), [(0.5, 9 * 500_000), (60, upkeep.LONGEST_REST_US)])
def test_after_a_drain_that_took_long_the_disk_has_a_rest(
    path: Path, begin: Begin, times: Times, upkeep_time: FakeClock, monkeypatch: pytest.MonkeyPatch, took_s: float, rest_us: int
) -> None:
    session = begin()
    session.store.tend()
    around_next(monkeypatch, draining.Drain, "write", after=lambda: upkeep_time.sleep(took_s))
    for after_us, drained in (upkeep.DRAIN_EVERY_US, 1), (rest_us - 1, 1), (1, 3):
        session.call("x")
        times[0].now_us += after_us
        session.store.tend()
        assert rows(path) == drained


def test_a_thread_leaves_upkeep_to_another_one_of_its_process(
    path: Path, begin: Begin, tend: Tend, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = begin()
    session.call("x")

    def other_thread() -> None:
        session.store.tend()
        assert rows(path) == 0

    around_next(monkeypatch, draining.Drain, "write", before=other_thread)
    tend(session.store)
    assert rows(path) == 1


@pytest.mark.parametrize(
    ("between", "left"),
    [
        (lambda other: other.store.reset([counter_of(other.charges("x")).label]), []),
        (lambda other: other.store.adopt([(counter_of(other.charges("x")), (-1, -1, 4))], token_hex()), [7]),
        (lambda other: other.call("x", 2), [5]),
    ],
    ids=["reset", "adopt", "call"],
)
def test_records_appended_while_the_log_is_drained_are_kept(
    begin: Begin, tend: Tend, monkeypatch: pytest.MonkeyPatch, between: Callable[[OnFile], object], left: list[int]
) -> None:
    session, other = begin(MANY), begin(MANY)
    session.call("x", 3)
    around_next(monkeypatch, draining.Drain, "write", after=lambda: between(other))
    tend(session.store, after_s=3)
    assert used(session.store) == used(other.store) == used(begin().store) == left


@pytest.fixture
def mid_log(path: Path) -> int:
    """The size of a log that a storm fills."""
    return make_log(path, 1024)


@pytest.mark.usefixtures("mid_log")
def test_a_storm_leaves_room_in_the_log_for_the_calls_of_others(begin: Begin, upkeep_time: FakeClock) -> None:
    stormy, other = begin(), begin()
    while not upkeep_time.slept:
        stormy.call("free", 10, _meta=ALONE)
        stormy.store.keep_pace(lambda: None)
    times = stormy.calls * 3 // 4
    assert other.decisions("free", times, _meta=ALONE) == ["allowed"] * times


@pytest.mark.parametrize(("timeout_ms", "longest_s"), [(100, 0.1), (60_000, 0.25)])
def test_the_fuller_the_log_the_longer_a_process_waits_and_the_sooner_it_waits_again_but_never_for_long(
    path: Path, begin: Begin, upkeep_time: FakeClock, mid_log: int, timeout_ms: int, longest_s: float
) -> None:
    session = begin(timeout_ms=timeout_ms)
    waits: list[tuple[float, float]] = []
    hurried: list[int] = []
    while not waits or waits[-1][0] < 0.95:
        session.call("free", 5, _meta=ALONE)
        session.store.keep_pace(lambda: hurried.append(len(waits)))
        if len(upkeep_time.slept) > len(waits):
            waits.append((waiting_bytes(path) / mid_log, upkeep_time.slept[-1]))
    assert hurried == list(range(len(waits)))  # before each wait
    assert waits == sorted(waits)
    assert all(0.5 < share < 1 and wait_s == pytest.approx(longest_s * (2 * share - 1) ** 0.5) for share, wait_s in waits)
    steps = [after - before for before, after in itertools.pairwise(share for share, _ in waits)]
    assert sum(steps[:10]) > 1.5 * sum(steps[-10:])


def test_a_process_whose_upkeep_fails_does_not_wait_for_it(
    path: Path, begin: Begin, upkeep_time: FakeClock, mid_log: int
) -> None:
    session = begin()
    session.call("free", _meta=ALONE)
    with broken(draining.Drain, "write", sqlite3.OperationalError("disk I/O error")):
        session.store.tend()
    assert "calls continue" in session.store.warnings[0]
    while waiting_bytes(path) < 0.95 * mid_log:
        session.call("free", 20, _meta=ALONE)
        session.store.keep_pace(lambda: None)
    assert upkeep_time.slept == []


class Ticking(FakeClock):
    """A clock by which each step of a work takes longer than a work may last without a pause."""

    def perf_counter(self) -> float:
        self.now_s += 2 * clock.WORK_S
        return self.now_s


@pytest.mark.parametrize(
    ("work", "waiting_kib", "gives_way"), [("tend", 200, True), ("close", 200, False), ("tend", 2100, False)]
)
def test_upkeep_gives_way_to_calls_of_its_process_unless_they_wait_for_it_or_soon_will(
    path: Path,
    begin: Begin,
    tend: Tend,
    times: Times,
    upkeep_time: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
    work: str,
    waiting_kib: int,
    gives_way: bool,
) -> None:
    session = begin()
    session.keep_arguments("full")
    tend(session.store)
    while waiting_bytes(path) < waiting_kib * 1024:
        session.call("free", 5, arguments={"text": "x" * 20_000})
    ticking = Ticking()
    monkeypatch.setattr(clock, "time", ticking)
    upkeep_time.now_s = 1  # before the last call, as if a call was decided just now
    times[0].pass_s(3)
    getattr(session.store, work)()
    assert {*ticking.slept} == ({clock.PAUSE_S, clock.LOOK_EVERY_S} if gives_way else set())
    assert waiting_bytes(path) == 0


def test_a_reader_waits_for_no_lock_and_writes_nothing(path: Path, begin: Begin, tend: Tend) -> None:
    session = begin()
    store = session.store
    session.call("x", 2)
    tend(store)
    session.call("x", 2)
    with locked(path), locked(path, "-calls"):
        before = [(one.name, one.read_bytes()) for one in sorted(path.parent.iterdir())]
        assert [entry.record["seq"] for entry in store.entries()] == [1, 2, 3, 4]
        assert [entry.record["seq"] for entry in store.entries(after=3)] == [4]
        assert [entry.row_id for entry in store.newest()] == [4, 3, 2, 1]
        assert [(one.name, one.read_bytes()) for one in sorted(path.parent.iterdir())] == before


# Pruning


def test_expired_rows_are_pruned_with_their_shared_texts(path: Path, begin: Begin, tend: Tend) -> None:
    old = begin(keep_us=100_000_000)
    store, young = old.store, Session(old.store, FIVE_A_MINUTE, session="b" * 16)
    old.call("free", 5000)
    tend(store)
    young.call("free", 7)
    tend(store, after_s=39)
    assert rows(path) == 5007
    tend(store)
    young.call("free")
    tend(store)
    assert [entry.record["session"] for entry in store.entries()] == ["b" * 16]
    assert rows(path, "fragment") == 1
    assert old.decisions("free") == ["allowed"]
    assert [entry.record["session"] for entry in store.entries()] == ["b" * 16, old.journal.session]


def test_rows_of_another_namespace_are_kept_by_its_own_bounds(open_store: Open, tend: Tend) -> None:
    brief, long = open_store(namespace="brief", keep_us=100_000_000), open_store(namespace="long", keep_us=1_000_000_000)
    for _ in range(3):
        for name, store in (("brief", brief), ("long", long)):
            Session(store, FIVE_A_MINUTE, namespace=name).call("free", 400)
    tend(brief, after_s=200)
    Session(brief, FIVE_A_MINUTE, namespace="brief").call("free")
    tend(brief, long)
    assert Counter(entry.record["namespace"] for entry in brief.entries()) == {"brief": 1, "long": 1200}


@pytest.mark.parametrize(
    "make_calls",
    [
        lambda session, _: session.call("free", 200, _meta=ALONE),
        lambda session, _: session.call("counted", 200),
        lambda session, number: [session.call(f"{number}-{at}-{'n' * 200}") for at in range(60)],
        lambda session, _: session.call("free", arguments={"text": "x" * 60_000}),
    ],
    ids=["short", "together", "long names", "long arguments"],
)
def test_a_store_never_exceeds_its_size_by_more_than_a_tenth(
    path: Path, begin: Begin, times: Times, make_calls: Callable[[OnFile, int], object]
) -> None:
    make_log(path, 512)
    most = 2_000_000
    session = begin(FIVE_A_MINUTE.replace("1m", "1w") + '[[rule]]\ntool = "counted"\nlimit = "1000000/1w"\n', max_bytes=most)
    session.keep_arguments("full")
    session.call("x", 3)
    largest = 0
    for number in range(150):
        make_calls(session, number)
        times[0].now_us += upkeep.LONGEST_REST_US
        session.store.tend()
        largest = max(largest, sum(one.stat().st_size for one in path.parent.iterdir()))
    assert most * 0.6 < largest < most * 1.1
    kept = [entry.record["seq"] for entry in session.store.entries()]
    assert kept == list(range(session.journal.seq - len(kept) + 1, session.journal.seq + 1))
    assert session.decisions("x", 3) == ["allowed", "allowed", "rate_limited"]


def test_freed_pages_are_returned_to_the_file_system_a_few_at_a_time(path: Path, begin: Begin, times: Times) -> None:
    session = begin(keep_us=100_000_000)
    for _ in range(200):
        session.call("free", 200, _meta=ALONE)
        session.store.tend()
    sizes = [path.stat().st_size]
    for time in times:
        time.pass_s(200)
    session.call("free")
    while len(sizes) == 1 or session.store.needs_tending:
        session.store.tend()
        sizes.append(path.stat().st_size)
    assert sizes[0] > 2_500_000
    assert sizes[-1] < 1_500_000
    assert max(one - other for one, other in itertools.pairwise(sizes)) <= 513 * 4096


def test_rows_of_one_namespace_evict_none_of_another(open_store: Open, tend: Tend) -> None:
    mine, theirs = open_store(namespace="one", max_bytes=100_000), open_store(namespace="two", max_bytes=100_000)
    one = Session(mine, '[[rule]]\ntool = "*"\nlimit = "5/1w"\n', namespace="one")
    two = Session(theirs, FIVE_A_MINUTE, namespace="two", session="b" * 16)
    two.call("x", 3)
    for name in range(20):
        mine.decide([request for at in range(100) for request in one.charges(f"tool-{name}-{at}")], one.journal)
    two.call("x", 2)
    tend(theirs, mine)
    kept = Counter(entry.record["namespace"] for entry in mine.entries())
    assert kept["two"] == 5
    assert 50 < kept["one"] < 1000


def test_the_newest_row_is_kept_so_that_no_row_id_is_used_twice(begin: Begin, tend: Tend) -> None:
    session = begin(max_bytes=1)
    session.call("x", 2)
    tend(session.store)
    assert [entry.row_id for entry in session.store.entries()] == [2]
    assert session.decisions("free") == ["allowed"]
    assert [entry.row_id for entry in session.store.entries()] == [2, 3]


def test_expired_counters_are_deleted_and_labelled_again_by_a_charge(path: Path, begin: Begin, tend: Tend) -> None:
    session, other = begin('[[rule]]\ntool = "x"\nlimit = ["5/1m", "9/1h"]\n'), begin().store
    session.call("x")
    tend(session.store)
    assert rows(path, "counter") == 2
    session.call("free")
    tend(session.store, after_s=120)
    assert rows(path, "counter") == 1
    session.call("x")
    assert used(session.store) == used(other) == [1, 2]
    tend(session.store)
    assert used(begin().store) == [2]


def test_old_write_back_ids_are_deleted(path: Path, begin: Begin, tend: Tend) -> None:
    session = begin()
    counter = counter_of(session.charges("x"))
    for _ in range(2):
        session.store.adopt([(counter, (-1, -1, 4))], "a name")
        tend(session.store)
        assert rows(path, "adopted") == 1
    session.call("x")
    tend(session.store, after_s=31 * 86_400)
    assert rows(path, "adopted") == 0
