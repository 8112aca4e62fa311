"""No call waits for the disk that the database is on, or for another wrapper that waits for it.

A disk that takes its time shows in two locks: upkeep holds the store's lock, and, while it commits, the database. A test holds
both instead, as if the disk took for ever. What then needs one of them fails, since it waits for no longer than `timeout_ms`.
"""

import contextlib
import sqlite3
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from mcpguard.errors import StoreUnavailable
from mcpguard.identity.client_agents import AgentNote
from mcpguard.session.audit import Outcome
from mcpguard.stores.outage.store import OutageStore
from mcpguard.stores.sqlite import call_log, database
from mcpguard.stores.sqlite.call_log import START, CallLog, leave_note
from mcpguard.stores.sqlite.follower import Follower
from mcpguard.stores.sqlite.store import SqliteStore
from tests.build import WALL_US, Session
from tests.callers import Caller
from tests.stores.conftest import FakeClock
from tests.stores.sqlite.conftest import (
    MANY,
    Begin,
    OnFile,
    Open,
    drain,
    drain_for,
    locked,
    log_ends,
    turn_is_free,
    turns_at,
    used,
    waiting_bytes,
)

ALL_KINDS = '[[rule]]\ntool = "x"\nlimit = "100/1h"\nconcurrent = 3\n[[rule]]\ntool = "x"\nlimit = "2/1h"\ncount = "errors"\n'


@contextlib.contextmanager
def hanging_disk(path: Path) -> Iterator[None]:
    """The locks that upkeep holds while it waits for the disk."""
    with locked(path), contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN EXCLUSIVE")
        yield
        db.execute("ROLLBACK")


def overtake(writer: OnFile, *, keeping_up: SqliteStore | None = None) -> None:
    """Let a writer append more than the log holds, while upkeep goes on."""
    for call in range(200):
        writer.one("x")
        if call % 50 == 49:
            drain(writer.store.path)
        while keeping_up and keeping_up.catch_up():
            pass


def call_one_by_one(session: Session, times: int) -> None:
    for _ in range(times):
        session.one("x")


def test_calls_and_all_that_belongs_to_them_are_done_while_the_disk_hangs(path: Path, open_store: Open) -> None:
    told: list[str] = []
    opened = partial(open_store, timeout_ms=20)
    stores = [OutageStore(opened, mode="deny", notify=told.append, timeout_ms=30_000) for _ in range(2)]
    one, other = [Caller(store, ALL_KINDS, session=name * 16) for store, name in zip(stores, "ab", strict=True)]  # type: ignore[arg-type]
    for caller in one, other:  # the stores are open, and have their owners' files
        assert caller.words("x") == ["allowed"]
        caller.end()
    with hanging_disk(path):
        assert other.words("x", "x", "x") == ["allowed"] * 3
        assert one.words("x") == ["rate_limited"]  # by the cap
        stores[1].record([Outcome(row_id, "ok", 5) for row_id, _ in other.flying])
        other.end(failed=True)
        other.end()
        assert one.words("x") == ["allowed"]
        other.end(failed=True)
        assert [one.words("x"), other.words("x"), one.words("y")] == [["rate_limited"], ["rate_limited"], ["allowed"]]
        leave_note(path, "default", AgentNote("toolu_1", "a::b::c"), wall_us=WALL_US, timeout_s=0.02)
        assert stores[0].take_note("default", "toolu_1") == "a::b::c"
        for store in stores:
            while store.catch_up():
                pass
            store.keep_pace(lambda: None)
            store.tend()
    assert told == []
    for store in stores:
        store.close()


def test_a_wrapper_that_keeps_up_while_it_is_idle_needs_no_database_later(path: Path, begin: Begin, small_log: int) -> None:
    writer, sleeper = begin(MANY), begin(MANY, timeout_ms=20)
    sleeper.one("x")
    overtake(writer, keeping_up=sleeper.store)
    assert log_ends(path)[1] > small_log
    with hanging_disk(path):
        assert sleeper.one("x").remaining == 100_000 - 202


def test_a_wrapper_catches_up_in_small_parts_and_counts_what_it_reads(begin: Begin) -> None:
    writer, idle = begin(MANY), begin(MANY).store
    call_one_by_one(writer, 101)
    parts = 0
    while idle.catch_up():
        parts += 1
    assert parts > 3
    assert [log[-1] for log in idle.last_seen()[0].values()] == [101]


@pytest.mark.usefixtures("small_log")
@pytest.mark.parametrize("writes", ["a call", "an outcome"])
def test_a_wrapper_whose_records_were_overwritten_reads_the_database_in_nobodys_turn(
    path: Path, begin: Begin, monkeypatch: pytest.MonkeyPatch, writes: str
) -> None:
    writer, sleeper = begin(MANY), begin(MANY)
    row_id = sleeper.one("x").row_id or 0
    overtake(writer)
    turns = turns_at(monkeypatch, database, "load", path)
    if writes == "a call":
        assert sleeper.one("x").remaining == 100_000 - 202
    else:
        sleeper.store.record([Outcome(row_id, "ok", 1)])
    assert turns == [True]


@pytest.mark.parametrize(("calls", "free"), [(20, []), (400, [True])])
def test_others_may_take_their_turns_while_a_wrapper_reads_much(
    path: Path, begin: Begin, monkeypatch: pytest.MonkeyPatch, calls: int, free: list[bool]
) -> None:
    writer, sleeper = begin(MANY), begin(MANY)
    call_one_by_one(writer, calls)
    turns = turns_at(monkeypatch, Follower, "follow", path)
    assert sleeper.one("x").remaining == 100_000 - calls - 1
    assert turns == free


def test_a_wrapper_that_always_has_much_to_read_reads_it_in_its_turn(
    path: Path, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, sleeper = begin(MANY), begin(MANY)
    follow = Follower.follow
    turns: list[bool] = []

    def noted(follower: Follower) -> None:
        turns.append(turn_is_free(path))
        follow(follower)
        if turns[-1]:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Follower, "follow", follow)
                call_one_by_one(writer, 200)

    monkeypatch.setattr(Follower, "follow", noted)
    call_one_by_one(writer, 200)
    verdict = sleeper.one("x")
    assert turns[-1] is False
    assert all(turns[:-1])
    assert verdict.remaining == 100_000 - 200 * len(turns) - 1


def test_a_wrapper_among_others_reads_the_log_before_its_turn(
    path: Path, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, reader = begin(MANY), begin(MANY)
    turns = turns_at(monkeypatch, CallLog, "some", path)
    for call in range(2):
        writer.one("x")
        turns.clear()
        assert reader.one("x").remaining == 100_000 - 2 * call - 2
        assert {*turns} == {call > 0}  # in its turn the first time: it did not know of the other


def test_a_hook_reads_the_log_before_its_turn(path: Path, begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    busy = begin(MANY)
    busy.call("x", 5)
    turns = turns_at(monkeypatch, CallLog, "some", path)
    assert leave_note(path, "default", AgentNote("toolu_1", "a::b::c"), wall_us=WALL_US, timeout_s=1)
    *reading, _ = turns  # in its turn it finds nothing more
    assert reading
    assert all(reading)


def fill(session: OnFile, times: int) -> None:
    """Make calls whose records take 60 kB each. Four fill a transaction of a drain."""
    session.keep_arguments("full")
    for _ in range(times):
        assert session.decisions("x", arguments={"text": "x" * 60_000}) == ["allowed"]


@pytest.mark.usefixtures("slow_disk")
def test_a_long_drain_is_left_to_the_next_process_after_a_transaction(path: Path, begin: Begin) -> None:
    session, other = begin(MANY), begin(MANY)
    fill(session, 20)
    drained_ends = [START.end]
    for store in (session.store, other.store, session.store):
        while store.catch_up():
            pass
        assert store.needs_tending
        store.tend()
        drained_ends.append(log_ends(path)[0])
    assert drained_ends == sorted({*drained_ends})
    assert waiting_bytes(path) > 0
    assert used(session.store) == [20]


@pytest.mark.usefixtures("slow_disk")
def test_the_drain_at_the_end_of_a_session_has_a_bound(path: Path, begin: Begin) -> None:
    session = begin(MANY)
    fill(session, 20)
    session.store.close()
    drained_end, end = log_ends(path)
    assert START.end < drained_end < end
    assert begin(MANY).one("x").remaining == 100_000 - 21


@pytest.mark.usefixtures("slow_disk")
def test_a_call_waits_for_room_in_the_log_and_not_for_the_whole_drain(
    path: Path, begin: Begin, upkeep_time: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = begin(MANY, timeout_ms=60_000)
    waits: list[float] = []

    def one_transaction(wait_s: float) -> None:
        waits.append(wait_s)
        upkeep_time.now_s += 1
        drain_for(path, 0)

    monkeypatch.setattr(upkeep_time, "sleep", one_transaction)
    while not waits:
        fill(session, 1)
    assert waiting_bytes(path) > 7 << 20


def test_only_calls_are_forced_to_the_disk_while_others_have_turns(
    path: Path, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = begin(MANY + '[[rule]]\ntool = "no"\nlimit = "deny"\n', durability="full")
    other, usual = begin(MANY, durability="full"), begin(MANY)
    other.one("x")
    monkeypatch.setattr(call_log, "force_data", lambda _: None)
    forced = turns_at(monkeypatch, call_log, "force_data", path)
    row_id = session.one("x").row_id or 0
    assert forced == [True]
    assert session.decisions("no", 3) == ["denied"] * 3  # of which the first has a row
    assert forced == [True] * 2
    assert session.decisions("no") == ["denied"]
    session.store.record([Outcome(row_id, "ok", 1)])
    session.store.append([])
    usual.one("x")
    assert forced == [True] * 2


def test_a_call_that_cannot_be_forced_to_the_disk_fails_and_stays_counted(begin: Begin) -> None:
    session, other = begin(MANY, durability="full"), begin(MANY)

    def fail(_: int) -> None:
        assert other.one("x").remaining == 99_998  # others have read it, and gone on
        raise OSError(5, "Input/output error")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(call_log, "force_data", fail)
        with pytest.raises(StoreUnavailable, match="Input/output"):
            session.one("x")
    assert session.one("x").remaining == 99_997
    assert [entry.record["seq"] for entry in session.store.entries()] == [1, 1, 2]
