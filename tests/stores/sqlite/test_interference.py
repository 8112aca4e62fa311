"""A store stays correct whatever other processes do to its files, and however large calls are."""

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from secrets import token_hex
from types import SimpleNamespace
from typing import Any

import pytest

from mcpguard.errors import StoreDamaged, StoreUnavailable
from mcpguard.identity.client_agents import AgentNote
from mcpguard.session.audit import Outcome
from mcpguard.session.verdict import Ending
from mcpguard.stores.sqlite import call_log, database, log_lines, upkeep
from mcpguard.stores.sqlite.call_log import CallLog, LogFull, log_path
from mcpguard.stores.sqlite.log_records import Position
from mcpguard.stores.sqlite.notes import leave_note
from mcpguard.stores.sqlite.reader import SqliteReader
from tests.build import Session
from tests.missing import make_link
from tests.stores.conftest import raising
from tests.stores.sqlite.conftest import MANY, Open, counter_of, drain, turn_is_free, used

# A database that others have locked


@pytest.mark.parametrize("trouble", ["locked", "full"])
def test_a_storm_is_decided_while_the_database_cannot_be_written_and_the_log_has_room(
    path: Path, open_store: Open, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    monkeypatch.setattr(upkeep, "PACE_BYTES", 1000)
    busy = open_store(timeout_ms=1)
    session = Session(busy, MANY)
    session.one("x")

    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as theirs:
        if trouble == "locked":
            theirs.execute("BEGIN EXCLUSIVE")
        else:
            monkeypatch.setattr(upkeep.SqliteUpkeep, "_write", raising(sqlite3.OperationalError("database or disk is full")))
        for _ in range(20):
            assert session.decisions("x", 10) == ["allowed"] * 10
            busy.keep_pace(lambda: None)
    monkeypatch.undo()
    assert used(open_store()) == [201]


def test_a_reader_waits_for_upkeep_no_longer_than_the_stores_timeout(open_store: Open) -> None:
    reader = open_store(timeout_ms=70)._reader
    assert reader._db.execute("PRAGMA busy_timeout").fetchone() == (70,)


def test_a_call_that_another_process_overtakes_after_it_was_decided_is_decided_anew(
    open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = open_store(), open_store()
    limit = '[[rule]]\ntool = "x"\nlimit = "3/1h"\n'
    late, early = Session(one, limit), Session(other, limit, session="b" * 16)
    late.one("x")
    take_turn = one._follower.take_turn

    def overtaken() -> None:
        early.one("x")
        take_turn()

    monkeypatch.setattr(one._follower, "take_turn", overtaken)
    assert late.one("x").remaining == 0
    assert late.one("x").decision == "rate_limited"
    assert used(one) == [3]
    assert [entry.row_id for entry in one.entries()] == [1, 2, 3, 4, 5]


def test_others_wait_only_while_the_record_of_a_usual_call_is_appended(
    open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, other = open_store(), open_store()
    calls = Session(store, MANY)
    calls.one("x")
    at_work: list[bool] = []
    line = log_lines.row_line

    def noted(*args: Any) -> str:
        at_work.append(turn_is_free(other))
        return line(*args)

    monkeypatch.setattr(log_lines, "row_line", noted)
    calls.one("x")
    assert at_work == [True]


# Two processes that do the same


@pytest.mark.posix
def test_if_the_lock_file_was_removed_two_processes_that_drain_the_log_count_nothing_twice(
    path: Path, open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = open_store()
    path.with_name("mcpguard.db-lock").unlink()
    other = open_store()
    counter = counter_of(Session(one, MANY).charges("x"))
    one.adopt([(counter, (-1, -1, 4))], token_hex())
    records = CallLog.records

    def overtaken(self: CallLog, at: Position) -> Iterator[tuple[str, Position]]:
        monkeypatch.undo()
        found = list(records(self, at))
        drain(other)
        return iter(found)

    monkeypatch.setattr(CallLog, "records", overtaken)
    with pytest.raises(StoreUnavailable, match="two processes at once") as raised:
        drain(one)
    assert "-lock removed" in raised.value.hint
    assert used(one) == used(other) == [4]


def test_a_database_reached_by_a_link_has_one_log_and_one_lock(tmp_path: Path, path: Path, open_store: Open) -> None:
    one = open_store()
    make_link(tmp_path / "link.db", path)
    other = open_store(tmp_path / "link.db")
    Session(one, MANY).call("x", 3)
    Session(other, MANY, session="b" * 16).call("x", 2)
    drain(other)
    assert used(one) == used(other) == [5]
    with contextlib.closing(SqliteReader(tmp_path / "link.db")) as reader:
        assert [entry.row_id for entry in reader.entries()] == [1, 2, 3, 4, 5]
    assert sorted(one.name for one in tmp_path.iterdir()) == ["link.db", "state"]
    assert other.warnings == ()


@pytest.mark.parametrize("words", ["unable to open database file", "file is not a database"])
def test_an_error_at_a_path_that_cannot_be_looked_at_is_reported(tmp_path: Path, words: str) -> None:
    path = tmp_path / ("x" * 300)  # so long that the system refuses to look, as it does in a folder without permission
    assert isinstance(database.unavailable(path, sqlite3.OperationalError(words)), StoreUnavailable)


# Processes that end


def test_a_transaction_that_a_killed_process_left_unfinished_does_not_stop_a_reader(
    tmp_path: Path, path: Path, open_store: Open
) -> None:
    store = open_store(clock=None)
    session = Session(store, MANY)
    session.call("x", 3)
    drain(store)
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
            reader._db.execute("DELETE FROM audit")


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
def test_a_counter_whose_label_was_lost_with_the_database_is_counted_but_not_listed(path: Path, open_store: Open) -> None:
    store = open_store()
    policy = '[[rule]]\ntool = "x"\nlimit = "5/1h"\n'
    session = Session(store, policy)
    session.call("x", 2)
    drain(store)
    session.call("x", 2)
    path.unlink()
    after = open_store()
    assert Session(after, policy, session="b" * 16).one("x").remaining == 2
    drain(after)
    assert after.counters() == open_store().counters() == []
    assert Session(open_store(), policy, session="c" * 16).one("x").remaining == 1


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
def test_what_no_call_may_wait_for_has_room_in_a_log_that_is_full_for_calls(
    open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(timeout_ms=0)
    session = Session(store, MANY + '[[rule]]\ntool = "capped"\nconcurrent = 1\n')
    (verdict,), (capped,) = session.call("x"), session.call("capped")
    counter, cap = counter_of(session.charges("x")), session.charges("capped")[0].plan
    fill(lambda: session.one("x"))
    calls = session.journal.seq - 1
    monkeypatch.setattr(store._upkeep, "drain", None)  # a call may wait: it is not drained here
    monkeypatch.setattr(store._upkeep, "await_drained", None)
    store.record([Outcome(verdict.row_id or 0, "ok", 1)] * 20)
    store.adopt([(counter, (-1, -1, 1))], token_hex())
    store.settle([Ending(capped.row_id or 0, cap, failed=False)])
    assert used(store) == [calls + 1]
    fill(lambda: store.record([Outcome(verdict.row_id or 0, "ok", 1)] * 20))
    assert next(iter(store.entries())).record["outcome"] == "ok"


@pytest.mark.usefixtures("small_log")
def test_a_reset_has_room_in_a_full_log_because_the_log_is_drained(open_store: Open) -> None:
    store = open_store(timeout_ms=0)
    session = Session(store, MANY)
    fill(lambda: session.one("x"))
    fill(lambda: store.record([Outcome(1, "ok", 1)]))
    assert store.reset([one.label for one in store.counters()]) == 1
    assert used(store) == []


@pytest.mark.usefixtures("small_log")
def test_a_reset_waits_while_another_process_drains_a_full_log(open_store: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    store, other = open_store(timeout_ms=20_000), open_store()
    session = Session(store, MANY)
    fill(lambda: session.one("x"))
    fill(lambda: store.record([Outcome(1, "ok", 1)]))
    lock = other._files.lock
    assert lock.acquire(0)

    def other_drains(_: float) -> None:
        lock.release()
        drain(other)

    monkeypatch.setattr(upkeep, "time", SimpleNamespace(monotonic=lambda: 0.0, sleep=other_drains))
    assert store.reset([one.label for one in store.counters()]) == 1
    assert used(store) == []


def ends_after(work: Callable[..., None]) -> Callable[..., None]:
    """A function that does its work and then raises, as if its process ended there."""

    def end(*args: Any) -> None:
        work(*args)
        raise OSError(5, "killed here")

    return end


@pytest.mark.posix
def test_no_row_id_is_used_twice_if_a_process_ends_while_it_recreates_a_removed_log(
    path: Path, open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store()
    session = Session(store, MANY)
    session.call("x", 3)
    drain(store)
    lost = session.call("x", 3)[-1].row_id or 0
    Path(log_path(path)).unlink()
    for module, name in (database, "set_position"), (call_log, "create"):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, ends_after(getattr(module, name)))
            with pytest.raises(StoreUnavailable, match="killed here"):
                open_store()
    after = open_store()
    assert (Session(after, MANY, session="b" * 16).one("x").row_id or 0) > lost
    drain(after)
    assert [entry.record["seq"] for entry in after.entries()] == [1, 2, 3, 1]


def test_nothing_is_appended_after_a_record_that_was_undone(open_store: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, failing = open_store(), open_store()
    one, other = Session(failing, MANY), Session(reader, MANY, session="b" * 16)
    assert [*one.decisions("x"), *other.decisions("x")] == ["allowed"] * 2
    write = call_log._pwrite

    def fail(fd: int, data: bytes, at: int) -> int:
        write(fd, data, at)
        if not data.strip(b"\0"):
            return len(data)  # it is undone
        reader._follower.follow()  # without the turn, as for an agent's note
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(call_log, "_pwrite", fail)
        with pytest.raises(StoreUnavailable, match="Input/output"):
            one.one("x")
    with pytest.raises(StoreUnavailable, match="damaged"):
        other.one("x")
    assert one.decisions("x") == ["allowed"]
    assert used(open_store()) == [3]


def test_a_record_that_was_damaged_before_it_was_drained_is_reported_when_the_log_is_drained(
    path: Path, open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "DRAIN_BYTES", 1)
    stores = open_store(), open_store()
    one, other = (Session(store, MANY, session=letter * 16) for store, letter in zip(stores, "ab", strict=True))
    drain(stores[0])
    damaged_at = stores[0]._log.drained().end
    assert [*one.decisions("x", 2), *other.decisions("x", 2)] == ["allowed"] * 4
    with Path(log_path(path)).open("r+b") as log:
        log.seek(4096 + damaged_at)
        log.write(bytes(8))
    assert one.decisions("x") == ["allowed"]  # it reads the end of the log alone
    for store in stores:
        with pytest.raises(StoreDamaged, match="a record that is not yet in the database cannot be read"):
            store.tend()


@pytest.mark.posix
@pytest.mark.parametrize("how", ["removed", "renamed", "replaced", "cut"])
def test_a_call_is_not_counted_in_a_log_that_has_lost_its_name(path: Path, open_store: Open, how: str) -> None:
    session = Session(open_store(), MANY)
    assert session.decisions("x", 3) == ["allowed"] * 3
    log = Path(log_path(path))
    if how == "removed":
        log.unlink()
    elif how == "renamed":
        log.rename(log.with_name("away"))
    elif how == "replaced":
        shutil.copy(log, log.with_name("other"))
        log.with_name("other").rename(log)
    else:
        os.truncate(log, 0)
    with pytest.raises(StoreUnavailable, match=r"removed or replaced|it was cut"):
        session.one("x")
    assert session.journal.seq == 3


@pytest.mark.posix
def test_a_folder_that_a_file_replaced_is_an_outage_and_no_internal_error(path: Path, open_store: Open) -> None:
    store = open_store()
    Session(store, MANY).call("x")
    path.parent.rename(path.parent.with_name("moved"))
    path.parent.touch()
    with pytest.raises(StoreUnavailable, match="cannot be used: Not a directory"):
        store.tend()


@pytest.mark.posix
def test_a_removed_log_is_recreated_although_an_idle_wrapper_has_the_old_one_open(path: Path, open_store: Open) -> None:
    idle = open_store()
    session = Session(idle, MANY)
    session.call("x", 3)
    drain(idle)
    Path(log_path(path)).unlink()
    after = open_store()
    assert "was removed" in after.warnings[0]
    Session(after, MANY, session="b" * 16).call("x", 2)
    with pytest.raises(StoreUnavailable, match="removed or replaced"):
        session.call("x")
    assert used(after) == [5]


def test_the_hint_for_a_file_that_cannot_be_opened_names_the_rights_on_it(tmp_path: Path) -> None:
    error = database.unavailable(tmp_path / "mcpguard.db", sqlite3.OperationalError("unable to open database file"))
    assert error.hint == "check that its disk is not full, and that this account may write to it"
