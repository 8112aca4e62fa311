"""No call waits for the disk that the database is on, or for another wrapper that waits for it.

A disk that takes its time shows in two locks: upkeep holds the store's lock, and, while it commits, the database. A test holds
both instead, as if the disk took for ever. What then needs one of them fails, since it waits for no longer than `timeout_ms`.
"""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mcpguard.errors import StoreUnavailable
from mcpguard.identity.client_agents import AgentNote
from mcpguard.session.audit import Outcome
from mcpguard.stores.outage.store import OutageStore
from mcpguard.stores.sqlite import call_log, memory, upkeep
from mcpguard.stores.sqlite import store as store_module
from mcpguard.stores.sqlite.call_log import CallLog, log_path
from mcpguard.stores.sqlite.log_records import START, Position
from mcpguard.stores.sqlite.memory import Memory
from mcpguard.stores.sqlite.notes import leave_note
from mcpguard.stores.sqlite.store import SqliteStore
from tests.build import WALL_US, Session
from tests.callers import Caller
from tests.stores.sqlite.conftest import MANY, Open, drain, turn_is_free

ALL_KINDS = """
[[rule]]
tool = "x"
limit = "100/1h"

[[rule]]
tool = "x"
concurrent = 3

[[rule]]
tool = "x"
limit = "2/1h"
count = "errors"
"""

DENIED = '[[rule]]\ntool = "no"\nlimit = "deny"\n'


@contextlib.contextmanager
def hanging_disk(path: Path, upkeeping: SqliteStore) -> Iterator[None]:
    """The locks that upkeep holds while it waits for the disk."""
    assert upkeeping._files.lock.acquire(0)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN EXCLUSIVE")
        yield
        db.execute("ROLLBACK")
    upkeeping._files.lock.release()


def overtake(writer: Session, drains: SqliteStore, *, keeping_up: SqliteStore | None = None) -> None:
    """Let a writer append more than the log holds, while upkeep goes on."""
    for _ in range(200):
        writer.one("x")
        drain(drains)
        while keeping_up and keeping_up.catch_up():
            pass


def test_calls_and_all_that_belongs_to_them_are_done_while_the_disk_hangs(path: Path, open_store: Open) -> None:
    upkeeping = open_store()
    told: list[str] = []

    def opened() -> SqliteStore:
        return open_store(timeout_ms=20)

    stores = [OutageStore(opened, mode="deny", notify=told.append, timeout_ms=30_000) for _ in range(2)]
    one, other = [Caller(store, ALL_KINDS, session=name * 16) for store, name in zip(stores, "ab", strict=True)]  # type: ignore[arg-type]
    for caller in one, other:  # the stores are open, and have their owners' files
        assert caller.words("x") == ["allowed"]
        caller.end()
    with hanging_disk(path, upkeeping):
        assert other.words("x", "x", "x") == ["allowed"] * 3
        assert one.words("x") == ["rate_limited"]  # by the cap
        stores[1].record([Outcome(row_id, "ok", 5) for row_id, _ in other.flying])
        other.end(failed=True)
        other.end()
        assert one.words("x") == ["allowed"]
        other.end(failed=True)
        assert [one.words("x"), other.words("x"), one.words("y")] == [["rate_limited"], ["rate_limited"], ["allowed"]]
        leave_note(path, "default", AgentNote("toolu_1", "a::b::c"), wall_us=WALL_US, timeout_s=0.02)
        assert stores[0].take_notes("default", ["toolu_1", "toolu_2"]) == {"toolu_1": "a::b::c"}
        for store in stores:
            while store.catch_up():
                pass
            store.keep_pace(lambda: None)
            store.tend()
    assert told == []
    for store in stores:
        store.close()


def test_a_wrapper_that_keeps_up_while_it_is_idle_needs_no_database_later(path: Path, open_store: Open, small_log: int) -> None:
    busy, idle = open_store(), open_store(timeout_ms=20)
    writer, sleeper = Session(busy, MANY), Session(idle, MANY, session="b" * 16)
    sleeper.one("x")
    overtake(writer, busy, keeping_up=idle)
    assert busy._follower.at.end > small_log
    with hanging_disk(path, busy):
        assert sleeper.one("x").remaining == 100_000 - 202


def test_a_wrapper_catches_up_in_small_parts_and_counts_what_it_reads(open_store: Open) -> None:
    busy, idle = open_store(), open_store()
    Session(busy, MANY).call("x", 1)
    for _ in range(100):
        Session(busy, MANY).one("x")
    parts = 0
    while idle.catch_up():
        parts += 1
    assert parts > 3
    assert [log[-1] for log in idle.last_seen()[0].values()] == [101]


@pytest.mark.usefixtures("small_log")
@pytest.mark.parametrize("writes", ["a call", "an outcome"])
def test_a_wrapper_whose_records_were_overwritten_reads_the_database_before_its_turn(
    open_store: Open, monkeypatch: pytest.MonkeyPatch, writes: str
) -> None:
    busy, idle = open_store(), open_store()
    writer, sleeper = Session(busy, MANY), Session(idle, MANY, session="b" * 16)
    row_id = sleeper.one("x").row_id or 0
    overtake(writer, busy)
    load = idle._follower._load
    turns: list[bool] = []

    def noted() -> Any:
        turns.append(turn_is_free(busy))
        return load()

    monkeypatch.setattr(idle._follower, "_load", noted)
    if writes == "a call":
        assert sleeper.one("x").remaining == 100_000 - 202
    else:
        idle.record([Outcome(row_id, "ok", 1)])
    assert turns == [True]


@pytest.mark.parametrize("calls", [20, 400])
def test_others_may_take_their_turns_while_a_wrapper_reads_much(
    open_store: Open, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    busy, idle = open_store(), open_store()
    writer, sleeper = Session(busy, MANY), Session(idle, MANY, session="b" * 16)
    for _ in range(calls):
        writer.one("x")
    follow = idle._follower.follow
    turns: list[bool] = []

    def noted() -> None:
        turns.append(turn_is_free(busy))
        follow()

    monkeypatch.setattr(idle._follower, "follow", noted)
    assert sleeper.one("x").remaining == 100_000 - calls - 1
    assert turns == ([] if calls == 20 else [True])


def test_a_wrapper_that_always_has_much_to_read_reads_it_in_its_turn(open_store: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "CHUNKS_IN_TURN", 1)
    busy, idle = open_store(), open_store()
    writer, sleeper = Session(busy, MANY), Session(idle, MANY, session="b" * 16)
    follow = idle._follower.follow
    turns: list[bool] = []

    def write(calls: int) -> None:
        for _ in range(calls):
            writer.one("x")

    def noted() -> None:
        turns.append(turn_is_free(busy))
        follow()
        if turns[-1]:
            write(60)

    monkeypatch.setattr(idle._follower, "follow", noted)
    write(60)
    verdict = sleeper.one("x")
    assert turns[-1] is False
    assert all(turns[:-1])
    assert verdict.remaining == 100_000 - 60 * len(turns) - 1


def test_a_wrapper_among_others_reads_the_log_before_its_turn(open_store: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    busy, other = open_store(), open_store()
    writer, reader_ = Session(busy, MANY), Session(other, MANY, session="b" * 16)
    turns: list[bool] = []
    read_some = Memory.read_some

    def noted(self: Memory, log: CallLog, at: Position) -> Position:
        turns.append(turn_is_free(busy))
        return read_some(self, log, at)

    monkeypatch.setattr(Memory, "read_some", noted)
    for call in range(2):
        writer.one("x")
        turns.clear()
        assert reader_.one("x").remaining == 100_000 - 2 * call - 2
        assert {*turns} == {call > 0}  # in its turn the first time: it did not know of the other


def test_a_hook_reads_the_log_before_its_turn(path: Path, open_store: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    busy = open_store()
    Session(busy, MANY).call("x", 5)
    turns: list[bool] = []
    read = CallLog.records

    def noted(self: CallLog, at: Position) -> Iterator[tuple[str, Position]]:
        for record in read(self, at):
            turns.append(turn_is_free(busy))
            yield record

    monkeypatch.setattr(CallLog, "records", noted)
    assert leave_note(path, "default", AgentNote("toolu_1", "a::b::c"), wall_us=WALL_US, timeout_s=1)
    assert turns
    assert all(turns)


def test_a_long_drain_is_left_to_the_next_process_after_a_transaction(
    open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "HOLD_S", 0)
    monkeypatch.setattr(upkeep, "_DRAINED_AT_ONCE_BYTES", 1000)
    monkeypatch.setattr(upkeep, "DRAIN_BYTES", 1)
    busy, other = open_store(), open_store()
    for _ in range(20):
        Session(busy, MANY).one("x")
    drained_ends = []
    for store in (busy, other, busy):
        assert store.catch_up() is False
        assert store.needs_tending
        store.tend()
        drained_ends.append(store._log.drained().end)
    assert START.end < drained_ends[0] < drained_ends[1] < drained_ends[2] < busy._follower.at.end
    assert sum(one.used for one in busy.counters()) == 20


def test_the_drain_at_the_end_of_a_session_has_a_bound(path: Path, open_store: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "HOLD_S", 0)
    monkeypatch.setattr(store_module, "DRAIN_AT_CLOSE_S", 0)
    monkeypatch.setattr(upkeep, "_DRAINED_AT_ONCE_BYTES", 1000)
    busy = open_store()
    for _ in range(20):
        Session(busy, MANY).one("x")
    busy.close()
    with contextlib.closing(CallLog(log_path(path))) as log:
        assert 0 < log.drained().end < busy._follower.at.end
    assert Session(open_store(), MANY, session="b" * 16).one("x").remaining == 100_000 - 21


@pytest.mark.usefixtures("small_log")
def test_a_call_without_room_in_the_log_waits_for_room_and_not_for_the_whole_drain(
    open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "ROOM_BYTES", 0)
    monkeypatch.setattr(upkeep, "_DRAINED_AT_ONCE_BYTES", 1000)
    monkeypatch.setattr(upkeep, "HOLD_S", 0)
    store = open_store(timeout_ms=60_000)
    session = Session(store, MANY)
    waits: list[int] = []

    def one_transaction(end: int, _: float) -> None:
        waits.append(end)
        while store._log.drained().end < end:
            store._upkeep.drain(0)

    monkeypatch.setattr(store._upkeep, "await_drained", one_transaction)
    while not waits:
        assert session.one("x").decision == "allowed"
    assert store._follower.at.end - store._log.drained().end > 50 * 1024
    assert store._log.drained().end >= waits[0]


def test_a_call_is_forced_to_the_disk_while_others_have_their_turns_and_nothing_else_is(
    open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, other = open_store(durability="full"), open_store(durability="full")
    session, others = Session(store, MANY + DENIED), Session(other, MANY, session="b" * 16)
    others.one("x")
    usual = Session(open_store(), MANY, session="c" * 16)
    forced: list[bool] = []

    def force(_: int) -> None:
        forced.append(turn_is_free(other))

    monkeypatch.setattr(call_log, "_sync", force)
    row_id = session.one("x").row_id or 0
    assert forced == [True]
    assert session.decisions("no", 3) == ["denied"] * 3  # of which the first has a row
    assert forced == [True] * 2
    assert session.decisions("no") == ["denied"]
    store.record([Outcome(row_id, "ok", 1)])
    store.append([])
    usual.one("x")
    assert forced == [True] * 2


def test_a_call_that_cannot_be_forced_to_the_disk_is_not_forwarded_and_stays_counted(
    open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, other = open_store(durability="full"), open_store()
    session, others = Session(store, MANY), Session(other, MANY, session="b" * 16)

    def fail(_: int) -> None:
        assert others.one("x").remaining == 99_998  # others have read it, and gone on
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(call_log, "_sync", fail)
        with pytest.raises(StoreUnavailable, match="Input/output"):
            session.one("x")
    assert session.one("x").remaining == 99_997
    assert [entry.record["seq"] for entry in store.entries()] == [1, 1, 2]
