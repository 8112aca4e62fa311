"""A store stays correct whatever other processes do to its files, and however large calls are."""

import contextlib
import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from secrets import token_hex

import pytest

from mcpguard.errors import StoreDamaged, StoreUnavailable
from mcpguard.files import pwrite
from mcpguard.identity.client_agents import AgentNote
from mcpguard.session.audit import Outcome
from mcpguard.session.verdict import Ending
from mcpguard.stores.sqlite import call_log, database
from mcpguard.stores.sqlite.call_log import CallLog, LogFull, Position, leave_note, log_path
from mcpguard.stores.sqlite.follower import Follower
from mcpguard.stores.sqlite.reader import SqliteReader
from mcpguard.stores.sqlite.upkeep import SqliteUpkeep
from tests.build import WALL_US, Session
from tests.missing import make_link
from tests.stores.conftest import FakeClock, around_next, raising
from tests.stores.sqlite.conftest import MANY, Begin, Open, counter_of, drain, locked, log_ends, overwrite, turn_is_free, used


def test_a_reader_waits_for_upkeep_no_longer_than_the_stores_timeout(
    open_store: Open, connections: list[sqlite3.Connection]
) -> None:
    open_store(timeout_ms=70)
    assert connections[-1].execute("PRAGMA busy_timeout").fetchone() == (70,)


def test_a_call_that_another_process_overtakes_is_decided_anew(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = '[[rule]]\ntool = "x"\nlimit = "3/1h"\n'
    late, early = begin(limit), begin(limit)
    late.one("x")
    for remaining, decision in (0, "allowed"), (0, "rate_limited"):
        around_next(monkeypatch, Follower, "take_turn", before=lambda: early.one("x"))
        verdict = late.one("x")
        assert (verdict.remaining, verdict.decision) == (remaining, decision)
    assert used(late.store) == [3]
    assert [entry.row_id for entry in late.store.entries()] == [1, 2, 3, 4, 5]


def test_others_wait_only_while_the_record_of_a_usual_call_is_appended(path: Path, begin: Begin) -> None:
    at_work: list[bool] = []

    def wall() -> int:  # the time of its row
        at_work.append(turn_is_free(path))
        return WALL_US

    begin(MANY, wall=wall).call("x", 2)
    assert at_work == [True]


@pytest.mark.posix
def test_two_processes_that_drain_without_a_lock_count_once(path: Path, begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    session = begin(MANY)
    path.with_name("mcpguard.db-lock").unlink()
    one, other = session.store, begin().store
    one.adopt([(counter_of(session.charges("x")), (-1, -1, 4))], token_hex())
    around_next(monkeypatch, CallLog, "records", before=one.tend)
    with pytest.raises(StoreUnavailable, match="two processes at once") as raised:
        drain(path)
    assert "-lock removed" in raised.value.hint
    assert used(one) == used(other) == [4]


def test_a_database_reached_by_a_link_has_one_log_and_one_lock(tmp_path: Path, path: Path, begin: Begin) -> None:
    one = begin(MANY)
    make_link(tmp_path / "link.db", path)
    other = begin(MANY, tmp_path / "link.db")
    one.call("x", 3)
    other.call("x", 2)
    drain(path)
    assert used(one.store) == used(other.store) == [5]
    with contextlib.closing(SqliteReader(tmp_path / "link.db")) as reader:
        assert [entry.row_id for entry in reader.entries()] == [1, 2, 3, 4, 5]
    assert sorted(one.name for one in tmp_path.iterdir()) == ["link.db", "state"]
    assert other.store.warnings == ()


@pytest.mark.parametrize(
    ("words", "hint"), [("unable to open database file", "may write to it"), ("file is not a database", "")]
)
@pytest.mark.parametrize("name", ["mcpguard.db", "x" * 300], ids=["missing", "too long to look"])
def test_an_error_at_a_path_where_nothing_can_be_seen_is_reported(tmp_path: Path, name: str, words: str, hint: str) -> None:
    error = database.unavailable(tmp_path / name, sqlite3.OperationalError(words))
    assert isinstance(error, StoreUnavailable)
    assert error.hint.endswith(hint)


def test_a_transaction_that_a_killed_process_left_does_not_stop_a_reader(
    tmp_path: Path, path: Path, begin: Begin, connections: list[sqlite3.Connection]
) -> None:
    session = begin(MANY, clock=None)
    session.call("x", 3)
    drain(path)
    session.call("x", 2)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("PRAGMA cache_size = 1")  # so that it writes into the file before it commits
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("UPDATE audit SET detail = ?", ("x" * 50_000,))
        writer.executemany("INSERT INTO agent_note VALUES ('a', ?, 'b', 1)", [(f"{at:0500}",) for at in range(50)])
        left = tmp_path / "left"
        shutil.copytree(path.parent, left)  # as a SIGKILL at this moment leaves it
        writer.execute("ROLLBACK")
    assert (left / "mcpguard.db-journal").stat().st_size > 4096
    with contextlib.closing(SqliteReader(left / path.name)) as reader:
        assert [entry.record["seq"] for entry in reader.entries()] == [1, 2, 3, 4, 5]
        assert [one.used for one in reader.counters()] == [5]
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            connections[-1].execute("DELETE FROM audit")


@pytest.mark.posix
def test_a_reader_of_a_replaced_database_leaves_the_transaction_of_its_successor_alone(path: Path, open_store: Open) -> None:
    store = open_store(clock=None)
    Session(store, MANY).call("x", 2)
    with contextlib.closing(SqliteReader(path)) as reader:
        assert [one.used for one in reader.counters()] == [2]
        for file in path.parent.glob("mcpguard.db*"):
            file.unlink()
        assert [one.used for one in reader.counters()] == [2]
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as writer:
            writer.execute("PRAGMA cache_size = 1")  # so that it writes into the file before it commits
            writer.execute("BEGIN IMMEDIATE")
            writer.execute("CREATE TABLE new (x)")
            writer.execute("INSERT INTO new VALUES (zeroblob(50000))")
            with pytest.raises(StoreUnavailable, match="was removed or replaced"):
                reader.counters()
            writer.execute("COMMIT")
            assert writer.execute("SELECT length(x) FROM new").fetchone() == (50_000,)


@pytest.mark.posix
def test_a_counter_whose_label_was_lost_with_the_database_is_counted_but_not_listed(path: Path, begin: Begin) -> None:
    session = begin()
    session.call("x", 2)
    drain(path)
    session.call("x", 2)
    path.unlink()
    after = begin()
    assert after.one("x").remaining == 2
    drain(path)
    assert after.store.counters() == begin().store.counters() == []
    assert begin().one("x").remaining == 1


def test_a_note_for_a_log_that_was_restored_to_an_earlier_state_is_refused_with_a_reason(path: Path, open_store: Open) -> None:
    open_store().close()
    with contextlib.closing(CallLog(log_path(path))) as log:
        log.set_drained(Position(1000, 7, b"gone"))
    with pytest.raises(StoreUnavailable, match="does not continue"):
        leave_note(path, "default", AgentNote("toolu_1", "a::b::c"), wall_us=1, timeout_s=1)


def fill(write: Callable[[], object]) -> None:
    """Write until the log is full."""
    with contextlib.suppress(LogFull):
        while True:
            write()


@pytest.mark.usefixtures("small_log")
def test_what_no_call_may_wait_for_has_room_in_a_log_full_of_calls(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    session = begin(MANY + '[[rule]]\ntool = "capped"\nconcurrent = 1\n', timeout_ms=0)
    store = session.store
    (verdict,), (capped,) = session.call("x"), session.call("capped")
    counter, cap = counter_of(session.charges("x")), session.charges("capped")[0].plan
    fill(lambda: session.one("x"))
    calls = session.journal.seq - 1
    monkeypatch.setattr(SqliteUpkeep, "drain", None)  # a call may wait: it is not drained here
    monkeypatch.setattr(SqliteUpkeep, "await_drained", None)
    store.record([Outcome(verdict.row_id or 0, "ok", 1)] * 20)
    store.adopt([(counter, (-1, -1, 1))], token_hex())
    store.settle([Ending(capped.row_id or 0, cap, failed=False)])
    assert used(store) == [calls + 1]
    fill(lambda: store.record([Outcome(verdict.row_id or 0, "ok", 1)] * 20))
    assert next(iter(store.entries())).record["outcome"] == "ok"


@pytest.mark.usefixtures("small_log")
@pytest.mark.parametrize("drains", ["itself", "another process"])
def test_a_reset_has_room_in_a_full_log_which_is_drained(
    path: Path, begin: Begin, upkeep_time: FakeClock, monkeypatch: pytest.MonkeyPatch, drains: str
) -> None:
    session = begin(MANY, timeout_ms=1000)
    store = session.store
    fill(lambda: session.one("x"))
    fill(lambda: store.record([Outcome(1, "ok", 1)]))
    with contextlib.ExitStack() as other:
        if drains == "another process":
            other.enter_context(locked(path))

            def other_drains(_: float) -> None:
                other.close()
                drain(path)

            monkeypatch.setattr(upkeep_time, "sleep", other_drains)
        assert store.reset([one.label for one in store.counters()]) == 1
    assert used(store) == []


@pytest.mark.posix
def test_no_row_id_is_used_twice_if_a_process_ends_while_it_recreates_a_removed_log(
    path: Path, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = begin(MANY)
    session.call("x", 3)
    drain(path)
    lost = session.call("x", 3)[-1].row_id or 0
    Path(log_path(path)).unlink()
    for module, name in (database, "set_position"), (call_log, "create"):
        around_next(monkeypatch, module, name, after=raising(OSError(5, "killed here")))
        with pytest.raises(StoreUnavailable, match="killed here"):
            begin()
    after = begin(MANY)
    assert (after.one("x").row_id or 0) > lost
    drain(path)
    assert [entry.record["seq"] for entry in after.store.entries()] == [1, 2, 3, 1]


def test_nothing_is_appended_after_a_record_that_was_undone(begin: Begin) -> None:
    one, other = begin(MANY), begin(MANY)
    assert [*one.decisions("x"), *other.decisions("x")] == ["allowed"] * 2

    def fail(fd: int, data: bytes, at: int) -> int:
        pwrite(fd, data, at)
        if not data.strip(b"\0"):
            return len(data)  # it is undone
        assert other.store.take_note("default", "none") == ""  # it reads without the turn
        raise OSError(5, "Input/output error")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(call_log, "pwrite", fail)
        with pytest.raises(StoreUnavailable, match="Input/output"):
            one.one("x")
    with pytest.raises(StoreUnavailable, match="damaged"):
        other.one("x")
    assert one.decisions("x") == ["allowed"]
    assert used(begin().store) == [3]


def test_a_record_damaged_before_it_is_drained_is_reported(path: Path, begin: Begin) -> None:
    one, other = begin(MANY), begin(MANY)
    drain(path)
    damaged_at = log_ends(path)[0]
    assert [*one.decisions("x", 2), *other.decisions("x", 2)] == ["allowed"] * 4
    overwrite(log_path(path), 4096 + damaged_at, bytes(8))
    assert one.decisions("x") == ["allowed"]  # it reads the end of the log alone
    for session in one, other:
        with pytest.raises(StoreDamaged, match="a record that is not yet in the database cannot be read"):
            session.store.tend()


@pytest.mark.posix
@pytest.mark.parametrize("how", ["renamed", "replaced", "cut"])
def test_a_call_is_not_counted_in_a_log_that_has_lost_its_name(
    path: Path, begin: Begin, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    session = begin()
    later = time.time_ns() + 60_000_000_000
    monkeypatch.setattr(time, "time_ns", lambda: later)  # the folder has settled
    assert session.decisions("x", 3) == ["allowed"] * 3
    log = Path(log_path(path))
    if how == "cut":
        os.truncate(log, 5000)
    else:
        shutil.copy(log, log.with_name("other"))
        log.rename(log.with_name("away"))
    if how == "replaced":
        log.with_name("other").rename(log)
    with pytest.raises(StoreUnavailable, match="damaged: it was cut" if how == "cut" else "was removed or replaced"):
        session.one("x")
    assert session.journal.seq == 3


@pytest.mark.posix
def test_a_folder_that_a_file_replaced_is_an_outage_and_no_internal_error(path: Path, begin: Begin) -> None:
    session = begin()
    session.call("x")
    path.parent.rename(path.parent.with_name("moved"))
    path.parent.touch()
    with pytest.raises(StoreUnavailable, match="cannot be used: Not a directory"):
        session.store.tend()


@pytest.mark.posix
def test_a_removed_log_is_recreated_although_an_idle_wrapper_has_the_old_one_open(path: Path, begin: Begin) -> None:
    idle = begin()
    idle.call("x", 3)
    drain(path)
    Path(log_path(path)).unlink()
    after = begin()
    assert "was removed" in after.store.warnings[0]
    after.call("x", 2)
    with pytest.raises(StoreUnavailable, match="removed or replaced"):
        idle.call("x")
    assert used(after.store) == [5]
