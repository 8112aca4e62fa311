"""What an SQLite store's counters hold follows from a snapshot and the audit rows after it, whoever asks, and whenever."""

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from secrets import token_hex

import pytest

from mcpguard.core import audit
from mcpguard.core.verdict import Verdict
from mcpguard.errors import StoreUnavailable
from mcpguard.stores import counters, migrations, sqlite, upkeep
from mcpguard.stores.base import MemoryStore, Store
from mcpguard.stores.sqlite.store import SqliteStore
from tests.core.build import WALL_US, Session, Time

FIVE_A_MINUTE = '[[rule]]\ntool = "x"\nlimit = "5/1m"\n'
PLENTY = '[[rule]]\ntool = "x"\nlimit = "1000/1h"\n'

Open = Callable[..., SqliteStore]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "mcpguard.db"


@pytest.fixture
def open_store(path: Path) -> Iterator[Open]:
    with contextlib.ExitStack() as opened:
        yield lambda **options: opened.enter_context(contextlib.closing(SqliteStore(path, **options)))


def ask(path: Path, question: str) -> object:
    with contextlib.closing(sqlite3.connect(path)) as db:
        return db.execute(question).fetchone()[0]


def folded(path: Path) -> object:
    return ask(path, "SELECT value FROM meta WHERE key = 'folded'")


def used(store: Store) -> list[int]:
    return sorted(held.used for held in store.held())


def test_a_call_by_what_is_remembered_writes_its_row_and_nothing_else(open_store: Open) -> None:
    store = open_store()
    session = Session(store, PLENTY)
    session.one("x")
    said: list[str] = []
    store._db.set_trace_callback(said.append)
    assert session.decisions("x") == ["allowed"]
    assert [statement.split()[0] for statement in said] == ["INSERT"]
    assert [entry.record["seq"] for entry in store.entries()] == [1, 2]
    assert used(store) == [2]


def test_a_denial_that_has_no_row_writes_nothing_and_is_decided_on_what_counts_now(open_store: Open) -> None:
    time, wall = Time(), Time(WALL_US)
    store, other = open_store(clock=time, wall=wall), open_store(clock=time, wall=wall)
    session = Session(store, FIVE_A_MINUTE)
    session.call("x", 5)
    assert [session.one("x").news for _ in range(3)] == [True, False, False]
    said: list[str] = []
    store._db.set_trace_callback(said.append)
    assert session.decisions("x") == ["rate_limited"]
    assert [statement.split()[0] for statement in said] == ["SELECT"]
    other.reset([store.held()[0].label])
    assert session.decisions("x") == ["allowed"]


def test_what_others_write_between_is_taken_in_without_reading_the_snapshot_again(open_store: Open) -> None:
    store, other = (Session(open_store(), PLENTY, session=f"{at:016x}") for at in range(2))
    for session in (store, other):
        session.one("x")
    said: list[str] = []
    assert isinstance(store.store, SqliteStore)
    store.store._db.set_trace_callback(said.append)
    for session in (store, other) * 3:
        assert session.decisions("x") == ["allowed"]
    assert not [statement for statement in said if "snapshot" in statement]
    assert len([statement for statement in said if "WHEN" in statement]) <= 1  # no statement that is bound to find others' rows
    assert used(store.store) == [8]


# Folding


def test_upkeep_folds_when_there_is_enough_to_fold(path: Path, open_store: Open) -> None:
    time = Time()
    store = open_store(clock=time)
    session = Session(store, PLENTY)
    store.tend()
    session.call("x", counters.FOLD_EVERY - 1)
    store.tend()
    assert folded(path) == 0
    session.one("x")
    store.tend()
    assert folded(path) == counters.FOLD_EVERY
    assert used(store) == [counters.FOLD_EVERY]


def test_without_upkeep_a_decision_folds_before_there_is_too_much(
    path: Path, open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "FOLD_AT_MOST", 10)
    session = Session(open_store(), PLENTY)
    for _ in range(100):
        session.one("x")
        assert int(str(ask(path, "SELECT max(id) FROM audit"))) - int(str(folded(path))) <= 10
    assert used(session.store) == [100]


@pytest.mark.parametrize("between", ["reset", "adopt", "fold", "call"])
def test_what_happens_while_upkeep_folds_is_not_undone(open_store: Open, monkeypatch: pytest.MonkeyPatch, between: str) -> None:
    monkeypatch.setattr(counters, "FOLD_EVERY", 3)
    store, other = open_store(), open_store()
    store.tend()
    session = Session(store, PLENTY)
    (counter,) = session.charges("x")[0].plan.counters
    session.call("x", 3)
    turn = upkeep.Upkeep._turn

    def do_before_the_turn(self: upkeep.Upkeep) -> contextlib.AbstractContextManager[None]:
        if between == "reset":
            other.reset([counter.label])
        elif between == "adopt":
            other.adopt([(counter, (-1, -1, 4))], token_hex())
        elif between == "fold":
            other._upkeep.tend(newest=3, now_us=0, wall_us=0)
        else:
            Session(other, PLENTY, session="b" * 16).call("x", 2)
        return turn(self)

    with monkeypatch.context() as patched:
        patched.setattr(store._upkeep, "_turn", lambda: do_before_the_turn(store._upkeep))
        store.tend()
    expected = {"reset": [], "adopt": [7], "fold": [3], "call": [5]}[between]
    assert used(store) == used(other) == used(open_store()) == expected


# Forgetting


def test_a_wrapper_that_slept_while_rows_it_had_not_seen_were_pruned_counts_them_all(path: Path, open_store: Open) -> None:
    time, wall = Time(), Time(WALL_US)
    store = open_store(max_bytes=1, clock=time, wall=wall)
    sleeper = Session(open_store(clock=time, wall=wall), FIVE_A_MINUTE)
    sleeper.one("x")
    Session(store, FIVE_A_MINUTE).call("x", 4)
    store.tend()
    assert ask(path, "SELECT count(*) FROM audit") == 1
    assert sleeper.decisions("x") == ["rate_limited"]


def test_a_wrapper_that_slept_while_rows_between_others_were_pruned_counts_them_all(path: Path, open_store: Open) -> None:
    time, wall = Time(), Time(WALL_US)
    store = open_store(keep_us=500_000, clock=time, wall=wall)
    sleeper = Session(open_store(clock=time, wall=wall), FIVE_A_MINUTE)
    sleeper.one("x")
    Session(open_store(clock=time, wall=wall), FIVE_A_MINUTE, namespace="other").one("x")
    busy = Session(store, FIVE_A_MINUTE)
    busy.call("x", 3)
    wall.pass_s(1)
    busy.one("x")
    store.tend()
    assert ask(path, "SELECT group_concat(id) FROM audit WHERE decision <> 'barrier'") == "2,6"
    assert sleeper.decisions("x") == ["rate_limited"]


def test_after_somebody_has_emptied_the_audit_by_hand_calls_are_counted_as_ever(path: Path, open_store: Open) -> None:
    one, other = (Session(open_store(), FIVE_A_MINUTE, session=f"{at:016x}") for at in range(2))
    one.call("x", 2)
    other.one("x")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("DELETE FROM audit")
    one.one("free")
    decisions = [session.one("x").decision for session in (one, other) * 4]
    assert decisions.count("allowed") <= 5
    assert used(open_store()) == used(one.store) == [5]


@pytest.mark.parametrize("first", ["call", "append"])
def test_words_that_another_has_pruned_are_written_anew(open_store: Open, first: str) -> None:
    time, wall = Time(), Time(WALL_US)
    store = open_store(keep_us=1, clock=time, wall=wall)
    one, other = Session(open_store(clock=time, wall=wall), FIVE_A_MINUTE), Session(store, FIVE_A_MINUTE, session="b" * 16)
    one.one("free")
    wall.pass_s(1)
    other.one("free")
    store.tend()
    if first == "append":
        (charge,) = one.charges("free")
        one.store.append([audit.row(charge, Verdict("allowed"), wall())])
    else:
        one.one("free")
    assert [entry.record["session"] for entry in store.entries()] == ["b" * 16, one.journal.session]


def test_a_counter_that_another_has_dropped_has_its_label_again_when_it_counts_again(open_store: Open) -> None:
    time, wall = Time(), Time(WALL_US)
    one, other = (Session(open_store(clock=time, wall=wall), FIVE_A_MINUTE, session=f"{at:016x}") for at in range(2))
    one.one("x")
    time.pass_s(120)
    other.store.tend()
    one.one("x")
    assert used(other.store) == [1]


def test_nobody_is_shown_a_barrier(path: Path, open_store: Open) -> None:
    store = open_store(clock=Time())
    session = Session(store, FIVE_A_MINUTE)
    session.call("x", 2)
    store.reset([store.held()[0].label])
    session.call("x", 2)
    store.adopt([(session.charges("x")[0].plan.counters[0], (-1, -1, 1))], token_hex())
    assert ask(path, "SELECT count(*) FROM audit WHERE decision = 'barrier'") == 2
    places = [entry.place for entry in store.entries()]
    assert places == [1, 2, 4, 5]
    assert [entry.place for entry in store.newest()] == places[::-1]
    assert [entry.place for entry in store.entries(after=2)] == [4, 5]


@pytest.mark.parametrize("turn_to_come_before", [1, 2, 3])
def test_a_call_between_the_turns_of_upkeep_is_counted_and_has_its_label(
    open_store: Open, monkeypatch: pytest.MonkeyPatch, turn_to_come_before: int
) -> None:
    time, wall = Time(), Time(WALL_US)
    store = open_store(max_bytes=1, clock=time, wall=wall)
    one, other = (Session(open_store(clock=time, wall=wall), FIVE_A_MINUTE, session=f"{at:016x}") for at in range(2))
    one.call("x", 2)
    time.pass_s(61)
    turns: list[int] = []
    turn = upkeep.Upkeep._turn

    def call_before(self: upkeep.Upkeep) -> contextlib.AbstractContextManager[None]:
        turns.append(1)
        if len(turns) == turn_to_come_before:
            one.call("x", 3)
            other.call("free")
        return turn(self)

    monkeypatch.setattr(upkeep.Upkeep, "_turn", call_before)
    store._upkeep.tend(newest=2, now_us=time(), wall_us=wall())
    assert len(turns) >= 3
    assert used(store) == [3]
    assert used(open_store(clock=time)) == [3]
    assert other.decisions("x", 3) == ["allowed", "allowed", "rate_limited"]


# A bad day


def test_what_was_new_in_a_transaction_that_failed_is_written_by_the_next(path: Path, open_store: Open) -> None:
    store = open_store(clock=Time())
    session = Session(store, FIVE_A_MINUTE)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("ALTER TABLE audit RENAME COLUMN charged TO away")
        with pytest.raises(StoreUnavailable):
            session.one("free")
        db.execute("ALTER TABLE audit RENAME COLUMN away TO charged")
    session.one("free")
    session.one("x")
    assert [entry.record["tool"] for entry in store.entries()] == ["free", "x"]
    assert used(store) == [1]


def test_a_single_statement_that_fails_consumes_nothing_and_leaves_no_gap(open_store: Open) -> None:
    store = open_store(clock=Time())
    session = Session(store, PLENTY)
    session.one("x")
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages}")
    admitted = 1
    with contextlib.suppress(StoreUnavailable):
        while True:
            session.one("x")
            admitted += 1
    with pytest.raises(StoreUnavailable, match="full"):
        session.one("x")
    assert used(store) == [admitted]
    store._db.execute("PRAGMA max_page_count = 100000")
    assert session.one("x").count == admitted + 1
    assert [entry.record["seq"] for entry in store.entries()] == list(range(1, admitted + 2))


def test_a_lock_that_another_holds_costs_a_single_statement_its_budget_and_consumes_nothing(
    path: Path, open_store: Open
) -> None:
    store = open_store(timeout_ms=20)
    session = Session(store, FIVE_A_MINUTE)
    session.one("x")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="database is locked"):
            session.one("x")
    assert [session.one("x").decision for _ in range(5)] == ["allowed"] * 4 + ["rate_limited"]


def test_what_was_seen_last_is_known_after_a_failure_and_holds_nothing_that_never_was(path: Path, open_store: Open) -> None:
    store = open_store(clock=Time())
    session = Session(store, FIVE_A_MINUTE)
    session.call("x", 2)
    seen = store.last_seen()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("ALTER TABLE audit RENAME COLUMN seq TO away")
        for times in (1, 2):
            with pytest.raises(StoreUnavailable):
                session.call("x", times)
            assert store.last_seen() == seen


# A file of an earlier version


def test_a_file_of_the_first_schema_is_taken_up_with_its_counts_and_an_old_program_cannot_go_on_counting_in_it(
    path: Path, open_store: Open
) -> None:
    time = Time()
    session = Session(MemoryStore(), FIVE_A_MINUTE)
    (counter,) = session.charges("x")[0].plan.counters
    path.parent.mkdir(parents=True)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as old:
        old.execute("PRAGMA journal_mode = WAL")
        migrations.migrate(old, path="x", stop_before=1)
        log = counters.pack((time() - 5, time() - 5, 3))
        old.execute("INSERT INTO counter VALUES (?, ?, ?)", counter)
        old.execute("INSERT INTO state VALUES (?, ?, ?)", (counter.id, time() - 5, log))
        old.execute('INSERT INTO fragment VALUES (1, \'{"session":"s"}\')')
        old.execute("INSERT INTO audit (time_us, seq, decision, context) VALUES (1, 1, 'allowed', 1)")
        store = open_store(clock=time)
        assert used(store) == [3]
        session.store = store
        assert session.decisions("x", 3) == ["allowed", "allowed", "rate_limited"]
        assert [entry.place for entry in store.entries()] == [1, 2, 3, 4]
        with pytest.raises(sqlite3.OperationalError, match="no such table: state"):
            old.execute("INSERT OR REPLACE INTO state VALUES (?, ?, ?)", (counter.id, time(), log))
