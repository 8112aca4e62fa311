"""The SQLite store's file: its modes, its schema, its time, and what becomes of calls when it cannot be used."""

import contextlib
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mcpguard.errors import ExitStatus, StoreUnavailable
from mcpguard.stores import clock, counters, migrations, sqlite_file, upkeep
from mcpguard.stores.counters import pack, unpack
from mcpguard.stores.files import refuse_network
from mcpguard.stores.integrity import log_bytes
from mcpguard.stores.sqlite.store import SqliteStore
from tests.core.build import TESTS, WALL_US, Session, Time, identity

FIVE_A_MINUTE = '[[rule]]\ntool = "x"\nlimit = "5/1m"\n'

Open = Callable[..., SqliteStore]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "state" / "mcpguard.db"


@pytest.fixture
def open_store(path: Path) -> Iterator[Open]:
    opened: list[SqliteStore] = []

    class ClosedOnce(SqliteStore):
        def close(self) -> None:
            if self in opened:
                opened.remove(self)
                super().close()

    def make(**options: object) -> SqliteStore:
        opened.append(ClosedOnce(path, **options))  # type: ignore[arg-type]
        return opened[-1]

    yield make
    while opened:
        opened[-1].close()


def decisions(store: SqliteStore, times: int, session: str = "a" * 16) -> list[str]:
    return Session(store, FIVE_A_MINUTE, session=session).decisions("x", times)


def ask(path: Path, question: str) -> list[tuple[object, ...]]:
    with contextlib.closing(sqlite3.connect(path)) as db:
        return db.execute(question).fetchall()


# Files


@pytest.mark.parametrize("umask", [0, 0o022, 0o777])
def test_files_are_0600_in_0700_whatever_the_umask(path: Path, open_store: Open, umask: int) -> None:
    before = os.umask(umask)
    try:
        decisions(open_store(), 3)
    finally:
        os.umask(before)
    names = sorted(entry.name for entry in path.parent.iterdir())
    assert names == ["mcpguard.db", "mcpguard.db-clock", "mcpguard.db-queue", "mcpguard.db-shm", "mcpguard.db-wal"]
    assert {stat.S_IMODE(entry.stat().st_mode) for entry in path.parent.iterdir()} == {0o600}
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in (path.parent, path.parent.parent)} == {0o700}


def test_a_folder_that_is_there_keeps_its_mode(path: Path, open_store: Open) -> None:
    path.parent.mkdir(parents=True, mode=0o755)
    open_store()
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755


def test_reopening_changes_nothing(open_store: Open) -> None:
    time, wall = Time(), Time(WALL_US)
    first = open_store(clock=time, wall=wall)
    decisions(first, 4)
    before = (first.held(), list(first.entries()), first.args_key)
    first.close()
    second = open_store(clock=time, wall=wall)
    assert (second.held(), list(second.entries()), second.args_key) == before
    assert decisions(second, 2, "b" * 16) == ["allowed", "rate_limited"]


def test_each_file_has_a_key_of_its_own(tmp_path: Path) -> None:
    stores = [SqliteStore(tmp_path / name) for name in ("one.db", "two.db")]
    assert stores[0].args_key != stores[1].args_key
    for store in stores:
        store.close()


def test_a_folder_in_place_of_the_file_is_said_and_nothing_is_put_beside_it(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    with pytest.raises(StoreUnavailable, match="state is a folder") as raised:
        SqliteStore(tmp_path / "state")
    assert "mcpguard.db" in raised.value.hint
    assert raised.value.exit_status == ExitStatus.STORE_UNAVAILABLE
    assert [one.name for one in tmp_path.iterdir()] == ["state"]


def test_a_folder_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreUnavailable, match="cannot be used: Not a directory") as raised:
        SqliteStore(tmp_path / "file" / "mcpguard.db")
    assert "MCPGUARD_HOME" in raised.value.hint


@pytest.mark.parametrize("content", [b"this is not a database" * 100, b"SQLite format 3\0" + b"\xff" * 4000])
def test_a_damaged_file_is_reported_and_not_made_anew(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="is damaged") as raised:
            SqliteStore(path)
        assert raised.value.message.startswith(str(path))
        assert "move it away" in raised.value.hint
    assert path.read_bytes() == content


def test_damage_that_comes_later_is_reported_by_the_decision(path: Path, open_store: Open) -> None:
    store = open_store()
    decisions(store, 3)
    store.close()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(1024)
        file.write(b"\xff" * (size - 1024))
    damaged = path.read_bytes()
    with pytest.raises(StoreUnavailable, match=r"is damaged|cannot be used"):
        decisions(open_store(), 1)
    assert path.read_bytes() == damaged


def test_a_damaged_file_is_left_as_it_is_when_a_command_ends_that_has_found_it_so(path: Path) -> None:
    """A command ends as Python programs do, which close what is still open."""
    begin = f"import os; from tests.stores.test_sqlite import *; store = SqliteStore(Path({str(path)!r}))\n"
    write = "decisions(store, 1); store._db.execute('PRAGMA wal_checkpoint'); decisions(store, 1); os._exit(0)"
    subprocess.run([sys.executable, "-c", begin + write], check=True, cwd=TESTS.parent)
    assert log_bytes(path) > 0
    shutil.copy(path, path.with_name("copy"))
    (page,) = ask(path.with_name("copy"), "SELECT rootpage FROM sqlite_schema WHERE name = 'snapshot'")[0]
    with path.open("r+b") as file:
        file.seek((int(str(page)) - 1) * upkeep.PAGE_BYTES)
        file.write(b"\xff" * upkeep.PAGE_BYTES)
    damaged = path.read_bytes()
    read = "with pytest.raises(StoreUnavailable, match='is damaged'): store.held()\nstore.close()"
    subprocess.run([sys.executable, "-c", begin + read], check=True, cwd=TESTS.parent)
    assert path.read_bytes() == damaged


# Schema


def test_a_schema_of_a_later_program_is_refused_with_a_word_and_untouched(path: Path, open_store: Open) -> None:
    open_store().close()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {migrations.VERSION + 1}")
    before = path.read_bytes()
    with pytest.raises(StoreUnavailable) as raised:
        open_store()
    assert f"has schema {migrations.VERSION + 1}" in raised.value.message
    assert f"up to {migrations.VERSION}" in raised.value.message
    assert raised.value.hint
    assert path.read_bytes() == before


@pytest.mark.parametrize("version", range(migrations.VERSION + 1))
def test_every_older_schema_is_brought_up(path: Path, open_store: Open, version: int) -> None:
    path.parent.mkdir(parents=True)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        migrations.migrate(db, path="x", stop_before=version)
        assert db.execute("PRAGMA user_version").fetchone() == (version,)
    store = open_store()
    assert ask(path, "PRAGMA user_version") == [(migrations.VERSION,)]
    assert decisions(store, 6) == ["allowed"] * 5 + ["rate_limited"]


def test_a_step_that_fails_leaves_the_schema_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = "CREATE TABLE extra (x); CREATE TABLE extra (x)"
    monkeypatch.setattr(migrations, "STEPS", (*migrations.STEPS, broken))
    monkeypatch.setattr(migrations, "VERSION", migrations.VERSION + 1)
    with contextlib.closing(sqlite3.connect(tmp_path / "x.db", isolation_level=None)) as db:
        with pytest.raises(sqlite3.OperationalError):
            migrations.migrate(db, path="x")
        assert db.execute("PRAGMA user_version").fetchone() == (migrations.VERSION - 1,)
        assert db.execute("SELECT * FROM sqlite_schema WHERE name = 'extra'").fetchall() == []
        assert not db.in_transaction


def test_a_log_is_stored_in_the_documented_form() -> None:
    state = (1_767_225_600_000_000, 1, 2, 1_767_225_600_000_001, 4_000_000_000)
    assert pack(state) == b"".join(
        [
            (1_767_225_600_000_000).to_bytes(8, "little"),
            (1).to_bytes(8, "little") + (2).to_bytes(4, "little"),
            (1_767_225_600_000_001).to_bytes(8, "little") + (4_000_000_000).to_bytes(4, "little"),
        ]
    )
    assert unpack(pack(state)) == state


# Time


class Machine:
    """A machine whose clocks the test winds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.boot = Time(100_000_000)
        self.base = "boot 1"
        self.wall = Time(WALL_US)
        monkeypatch.setattr(clock, "boot_us", lambda: self.boot())
        monkeypatch.setattr(clock, "base_id", lambda: self.base)

    def reboots(self) -> None:
        self.base += "1"
        self.boot.now_us = 5_000_000


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def test_steps_of_the_wall_clock_do_not_matter(machine: Machine, open_store: Open) -> None:
    year_us = 365 * 86_400_000_000
    assert decisions(open_store(wall=machine.wall), 3) == ["allowed"] * 3
    machine.wall.now_us -= year_us
    assert decisions(open_store(wall=machine.wall), 2) == ["allowed"] * 2
    machine.wall.now_us += 2 * year_us
    machine.boot.now_us += 59_999_999
    assert decisions(open_store(wall=machine.wall), 1) == ["rate_limited"]
    machine.boot.now_us += 1
    assert decisions(open_store(wall=machine.wall), 6) == ["allowed"] * 5 + ["rate_limited"]


def test_a_second_time_base_is_refused_while_somebody_holds_the_first(machine: Machine, open_store: Open) -> None:
    first = open_store(wall=machine.wall)
    decisions(first, 3)
    machine.reboots()
    with pytest.raises(StoreUnavailable, match="in use by another machine") as raised:
        open_store(wall=machine.wall)
    assert "Redis" in raised.value.hint
    machine.base = "boot 1"
    machine.boot.now_us = 100_000_000
    assert decisions(first, 3, "b" * 16) == ["allowed", "allowed", "rate_limited"]


def test_a_second_time_base_takes_over_when_nobody_holds_the_first(machine: Machine, open_store: Open) -> None:
    first, second = open_store(wall=machine.wall), open_store(wall=machine.wall)
    decisions(first, 5)
    first.close()
    machine.reboots()
    with pytest.raises(StoreUnavailable):
        open_store(wall=machine.wall)
    second.close()
    machine.wall.pass_s(30)
    after = open_store(wall=machine.wall)
    assert decisions(after, 1, "b" * 16) == ["rate_limited"]
    machine.boot.pass_s(30)
    assert decisions(after, 6, "c" * 16) == ["allowed"] * 5 + ["rate_limited"]
    assert decisions(open_store(wall=machine.wall), 1, "d" * 16) == ["rate_limited"]


def test_time_does_not_run_backwards_over_a_restart_with_a_clock_that_was_set_back(machine: Machine, open_store: Open) -> None:
    first = open_store(wall=machine.wall)
    machine.boot.pass_s(3600)
    decisions(first, 5)
    first.close()
    machine.reboots()
    machine.wall.pass_s(-86_400)
    after = open_store(wall=machine.wall)
    denied = Session(after, FIVE_A_MINUTE, session="b" * 16).one("x")
    assert (denied.decision, denied.retry_after_us) == ("rate_limited", 60_000_000)
    machine.boot.now_us += 60_000_000
    assert decisions(after, 6, "c" * 16) == ["allowed"] * 5 + ["rate_limited"]


def test_the_machines_own_clock_runs_forward_and_has_a_base() -> None:
    first = clock.boot_us()
    assert clock.boot_us() >= first > 0
    assert clock.base_id() == clock.base_id() != ""


# Where


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "9p"])
@pytest.mark.parametrize("point", ["/", "/srv/share", "/srv/a\\040share", "/srv/dépôt"])
def test_a_network_file_system_is_refused(tmp_path: Path, kind: str, point: str) -> None:
    table = f"21 1 8:1 / / rw - ext4 /dev/sda rw\n36 21 0:1 / {point} rw,noatime shared:1 - {kind} host:/x rw\n"
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text(table)
    folder = Path(point.replace("\\040", " ")) / "state"
    with pytest.raises(StoreUnavailable, match="network file system") as raised:
        refuse_network(folder, mountinfo)
    assert f"({kind})" in raised.value.message
    assert "Redis" in raised.value.hint


@pytest.mark.parametrize("folder", ["/srv/shared", "/srv/share/local/state", "/home/alice"])
def test_a_local_file_system_beside_or_inside_a_network_one_is_not(tmp_path: Path, folder: str) -> None:
    table = (
        "21 1 8:1 / / rw - ext4 /dev/sda rw\n"
        "36 21 0:1 / /srv/share rw - nfs4 host:/x rw\n"
        "37 36 8:2 / /srv/share/local rw - ext4 /dev/sdb rw\n"
    )
    mountinfo = tmp_path / "mountinfo"
    mountinfo.write_text(table)
    refuse_network(Path(folder), mountinfo)


def test_where_no_table_of_mounts_is_nothing_is_refused(tmp_path: Path) -> None:
    refuse_network(Path("/srv"), tmp_path / "missing")


def test_opening_on_a_network_file_system_makes_no_database(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "36 21 0:1 / / rw - nfs4 host:/x rw\n")
    with pytest.raises(StoreUnavailable):
        SqliteStore(path)
    assert list(path.parent.iterdir()) == []


# Upkeep


def rows(path: Path, table: str) -> int:
    ((count,),) = ask(path, f"SELECT count(*) FROM {table}")  # noqa: S608 - names of this test
    assert isinstance(count, int)
    return count


def test_rows_older_than_they_are_kept_are_pruned_with_their_outcomes_and_words(path: Path, open_store: Open) -> None:
    time, wall = Time(), Time(WALL_US)
    store = open_store(keep_us=10_000_000, clock=time, wall=wall)
    old = Session(store, FIVE_A_MINUTE, session="a" * 16)
    verdicts = old.call("free", 1100)
    store.record([(verdict.row, "ok", 1) for verdict in verdicts])  # type: ignore[misc]
    wall.pass_s(5)
    young = Session(store, FIVE_A_MINUTE, session="b" * 16)
    young.call("free", 7)
    wall.now_us += 5_000_000
    store.tend()
    assert rows(path, "audit") == 1107
    wall.now_us += 1
    time.now_us += upkeep.PRUNE_EVERY_US + 1
    store.tend()
    assert [entry.record["session"] for entry in store.entries()] == ["b" * 16] * 7
    assert (rows(path, "outcome"), rows(path, "fragment")) == (0, 1)
    assert young.decisions("free") == ["allowed"]
    assert old.decisions("free") == ["allowed"]
    assert [entry.record["tool"] for entry in store.entries()] == ["free"] * 9


def test_rows_of_another_namespace_are_kept_as_long_as_that_one_keeps_them(path: Path, open_store: Open) -> None:
    time, wall = Time(), Time(WALL_US)
    brief = open_store(namespace="brief", keep_us=10_000_000, clock=time, wall=wall)
    long = open_store(namespace="long", keep_us=100_000_000, clock=time, wall=wall)
    for _ in range(3):
        for name, store in (("brief", brief), ("long", long)):
            Session(store, FIVE_A_MINUTE, namespace=name).call("free", 400)

    def left() -> Counter[object]:
        return Counter(entry.record["namespace"] for entry in brief.entries())

    for passed_s, kept in ((11, {"long": 1200}), (50, {"long": 1200}), (50, {})):
        wall.pass_s(passed_s)
        for store in (brief, long):
            time.now_us += upkeep.PRUNE_EVERY_US + 1
            store.tend()
        assert left() == kept
    Session(brief, FIVE_A_MINUTE, namespace="brief").call("free", 3)
    wall.pass_s(11)
    time.now_us += upkeep.PRUNE_EVERY_US + 1
    brief.tend()
    assert left() == {"brief": 1}  # the newest of all stays


def test_words_that_come_into_use_again_while_rows_are_pruned_stay(
    path: Path, open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    wall = Time(WALL_US)
    store = open_store(keep_us=1_000_000, clock=Time(), wall=wall)
    session = Session(store, FIVE_A_MINUTE)
    session.call("free", 3)
    wall.pass_s(2)
    Session(store, FIVE_A_MINUTE, session="b" * 16).call("free")
    turns: list[int] = []
    turn = upkeep.Upkeep._turn

    def call_before_the_third_turn(self: upkeep.Upkeep) -> contextlib.AbstractContextManager[None]:
        turns.append(rows(path, "audit"))
        if len(turns) == 3:
            session.call("free")
        return turn(self)

    monkeypatch.setattr(upkeep.Upkeep, "_turn", call_before_the_third_turn)
    store.tend()
    assert turns[:3] == [4, 4, 1]
    assert [entry.record["session"] for entry in store.entries()] == ["b" * 16, session.journal.session]


def test_above_its_size_the_oldest_rows_go_and_the_counters_stay(path: Path, open_store: Open) -> None:
    time = Time()
    store = open_store(max_bytes=200_000, clock=time, wall=Time(WALL_US))
    session = Session(store, FIVE_A_MINUTE)
    session.call("x", 3)
    session.call("free", 5000)
    newest = next(iter(store.newest())).record
    store.tend()
    assert 0 < rows(path, "audit") < 5000
    assert next(iter(store.newest())).record == newest
    ((pages, free),) = ask(path, "SELECT page_count, freelist_count FROM pragma_page_count, pragma_freelist_count")
    assert isinstance(pages, int)
    assert isinstance(free, int)
    assert (pages - free) * 1024 <= 200_000
    assert session.decisions("x", 3) == ["allowed", "allowed", "rate_limited"]


def test_what_counters_take_costs_no_audit_row(open_store: Open) -> None:
    store = open_store(max_bytes=2_000_000, clock=Time(), wall=Time(WALL_US))
    session = Session(store, '[[rule]]\ntool = "*"\nlimit = ["5/1w", "6/2w", "7/3w", "8/4w"]\n')
    for name in range(0, 3000, 100):
        store.decide([charge for at in range(100) for charge in session.charges(f"tool-{name + at:0100}")], session.journal)
    session.call("tool-0")
    store.tend()
    kept = len(list(store.entries()))
    assert 500 < kept < 3000
    store.tend()
    assert len(list(store.entries())) == kept


def test_what_one_namespace_writes_costs_another_no_audit_row(open_store: Open) -> None:
    time, wall = Time(), Time(WALL_US)
    mine = open_store(namespace="one", max_bytes=100_000, clock=time, wall=wall)
    theirs = open_store(namespace="two", max_bytes=100_000, clock=time, wall=wall)
    one = Session(mine, '[[rule]]\ntool = "*"\nlimit = "5/1w"\n', namespace="one")
    two = Session(theirs, FIVE_A_MINUTE, namespace="two", session="b" * 16)
    two.call("x", 3)
    for name in range(20):
        mine.decide([charge for at in range(100) for charge in one.charges(f"tool-{name}-{at}")], one.journal)
    two.call("x", 2)
    theirs.tend()
    mine.tend()
    kept = [str(entry.record["namespace"]) for entry in mine.entries()]
    assert kept.count("two") == 5
    assert 100 < kept.count("one") < 1000


def test_a_file_that_others_have_filled_is_no_matter_to_a_namespace_without_a_row(open_store: Open) -> None:
    theirs = open_store(namespace="two", clock=Time(), wall=Time(WALL_US))
    Session(theirs, FIVE_A_MINUTE, namespace="two").call("free", 3000)
    mine = open_store(namespace="one", max_bytes=100_000, clock=Time(), wall=Time(WALL_US))
    mine.tend()
    assert len(list(theirs.entries())) == 3000


def test_texts_that_a_client_has_chosen_for_their_hashes_free_no_counter(open_store: Open) -> None:
    policy = '[[rule]]\nuser="*"\ntool="search"\nlimit="5/1h"\n[[rule]]\nagent="*::*::*"\nlimit="1000/1m"\n'
    decided = []
    for number, (agent, tool) in enumerate([("k00f171e14af5eb70", "ping"), *[("k4ec372a41ceca31d", "search")] * 3]):
        store = open_store(clock=Time(), wall=Time(WALL_US))  # one that remembers nothing
        who = identity("eve", f"{agent}::interactive::default", "crm")
        decided += Session(store, policy, session=f"{number:016}", who=who).decisions(tool, 3)
        store.close()
    assert decided.count("allowed") == 3 + 5


def test_of_a_file_that_is_too_large_for_one_long_row_no_more_goes_than_must(open_store: Open) -> None:
    store = open_store(max_bytes=2_000_000, clock=Time(), wall=Time(WALL_US))
    session = Session(store, FIVE_A_MINUTE, arguments="full")
    for _ in range(21):
        session.call("free", arguments={"text": "x" * 100_000})
    store.tend()
    assert 17 <= len(list(store.entries())) < 21


def test_of_a_file_that_namespaces_share_each_prunes_its_own_rows_only(open_store: Open) -> None:
    time, wall = Time(), Time(WALL_US)
    mine = open_store(namespace="one", keep_us=10_000_000, clock=time, wall=wall)
    theirs = open_store(namespace="two", clock=time, wall=wall)
    one = Session(mine, FIVE_A_MINUTE, namespace="one")
    two = Session(theirs, FIVE_A_MINUTE, namespace="two", who=identity('"namespace":"one"'), session="b" * 16)
    for _ in range(3):
        one.call("x")
        two.call("x")
    mine.record([(row, "ok", 1) for row in range(1, 7)])  # type: ignore[misc]
    wall.pass_s(20)
    mine.tend()
    assert [(entry.record["namespace"], entry.record["outcome"]) for entry in theirs.entries()] == [("two", "ok")] * 3
    assert two.decisions("x", 3) == ["allowed", "allowed", "rate_limited"]
    assert one.decisions("x", 3) == ["allowed", "allowed", "rate_limited"]


def test_what_is_pruned_from_between_the_rows_of_another_namespace_was_counted_by_all(
    open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep.Upkeep, "_prune_fragments", lambda *_: None)  # nor does it need more upkeep
    time, wall = Time(), Time(WALL_US)
    mine = open_store(namespace="one", keep_us=1_000_000, clock=time, wall=wall)
    theirs = open_store(namespace="two", clock=time, wall=wall)
    one = Session(mine, FIVE_A_MINUTE, namespace="one")
    late = Session(open_store(namespace="one", clock=time, wall=wall), FIVE_A_MINUTE, namespace="one", session="c" * 16)
    two = Session(theirs, FIVE_A_MINUTE, namespace="two", session="b" * 16)
    late.call("x")
    two.call("x")
    one.call("x", 2)
    two.call("x")
    wall.pass_s(2)
    mine.tend()
    assert {entry.record["namespace"] for entry in mine.entries()} == {"two"}
    assert late.decisions("x", 3) == ["allowed", "allowed", "rate_limited"]


def test_a_namespace_that_takes_little_of_a_file_that_is_too_large_keeps_its_rows(open_store: Open) -> None:
    little = open_store(namespace="little", max_bytes=200_000, clock=Time(), wall=Time(WALL_US))
    much = open_store(namespace="much", max_bytes=250_000, clock=Time(), wall=Time(WALL_US))
    for turn in range(50):
        Session(little, FIVE_A_MINUTE, namespace="little", session=f"{turn:016x}").call("free", 5)
        Session(much, FIVE_A_MINUTE, namespace="much", session=f"{turn:016x}").call("free", 100)

    def kept() -> Counter[object]:
        return Counter(entry.record["namespace"] for entry in much.entries())

    little.tend()
    assert kept() == {"little": 250, "much": 5000}
    much.tend()
    assert kept()["little"] == 250
    assert 1000 < kept()["much"] < 5000


def test_how_a_call_ended_whose_row_is_gone_is_not_kept(path: Path, open_store: Open) -> None:
    store = open_store(max_bytes=1, clock=Time())
    verdicts = Session(store, FIVE_A_MINUTE).call("free", 3)
    store.tend()
    store.record([(verdict.row, "ok", 1) for verdict in verdicts])  # type: ignore[misc]
    assert rows(path, "outcome") == rows(path, "audit") == 1


def test_the_newest_row_stays_so_that_no_place_is_used_twice(path: Path, open_store: Open) -> None:
    store = open_store(max_bytes=1, clock=Time())
    decisions(store, 2)
    store.tend()
    assert [entry.place for entry in store.entries()] == [2]
    assert decisions(store, 4, "b" * 16) == ["allowed"] * 3 + ["rate_limited"]


def test_rows_are_pruned_once_a_minute(path: Path, open_store: Open) -> None:
    time, wall = Time(), Time(WALL_US)
    store = open_store(keep_us=1, clock=time, wall=wall)
    store.tend()
    decisions(store, 2)
    wall.pass_s(1)
    time.now_us += upkeep.PRUNE_EVERY_US
    store.tend()
    assert len(list(store.entries())) == 2
    time.now_us += 1
    store.tend()
    assert len(list(store.entries())) == 1  # the newest of all stays


def test_counters_whose_windows_have_passed_are_dropped(path: Path, open_store: Open) -> None:
    time = Time()
    store = open_store(clock=time)
    session = Session(store, '[[rule]]\ntool = "x"\nlimit = ["5/1m", "9/1h"]\n')
    session.call("x")
    store.tend()
    assert rows(path, "snapshot") == 2
    time.pass_s(61)
    store.tend()
    assert (rows(path, "snapshot"), rows(path, "counter")) == (1, 1)
    session.call("x")
    assert sorted(held.used for held in store.held()) == [1, 2]


def wal_bytes(path: Path) -> int:
    return path.with_name(path.name + "-wal").stat().st_size


def test_upkeep_keeps_the_log_small_while_calls_go_on(path: Path, open_store: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "CHECKPOINT_BYTES", 50_000)
    store = open_store()
    session = Session(store, FIVE_A_MINUTE)
    store.tend()
    largest = 0
    for _ in range(150):
        session.call("free", 20)
        largest = max(largest, wal_bytes(path))
        store.tend()
    assert largest < 150_000
    assert rows(path, "audit") == 3000


def test_without_upkeep_the_log_grows(path: Path, open_store: Open) -> None:
    session = Session(open_store(), FIVE_A_MINUTE)
    for _ in range(150):
        session.call("free", 20)
    assert wal_bytes(path) > 500_000


def test_a_log_that_has_grown_large_is_cut(path: Path, open_store: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "CHECKPOINT_BYTES", 1000)
    monkeypatch.setattr(upkeep, "TRUNCATE_BYTES", 10_000)
    store = open_store()
    decisions(store, 5)
    store.tend()
    assert wal_bytes(path) == 0
    assert decisions(store, 1, "b" * 16) == ["rate_limited"]


def test_a_log_that_somebody_reads_and_that_has_grown_large_keeps_nobody_waiting(
    path: Path, open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "CHECKPOINT_BYTES", 1000)
    monkeypatch.setattr(upkeep, "TRUNCATE_BYTES", 10_000)
    store = open_store()
    decisions(store, 5)
    began: list[float] = []
    held_s: list[float] = []
    turn = upkeep.Upkeep._turn

    @contextlib.contextmanager
    def timed(self: upkeep.Upkeep) -> Iterator[None]:
        with turn(self):
            began.append(time.monotonic())
            yield
            held_s.append(time.monotonic() - began[-1])

    monkeypatch.setattr(upkeep.Upkeep, "_turn", timed)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM audit").fetchone()
        decisions(store, 5, "b" * 16)
        store.tend()
        assert wal_bytes(path) > 10_000
    assert max(held_s) < upkeep.TURN_TIMEOUT_S / 2
    store.tend()
    assert wal_bytes(path) == 0


def test_the_turns_of_upkeep_do_not_wait_for_the_disk(open_store: Open) -> None:
    with open_store(durability="full")._upkeep._connected() as db:
        assert db.execute("PRAGMA synchronous").fetchone() == (1,)


def test_unused_words_go_in_turns_that_are_short(path: Path, open_store: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "_BATCH", 10)
    wall = Time(WALL_US)
    store = open_store(keep_us=1_000_000, clock=Time(), wall=wall)
    for number in range(100):
        Session(store, FIVE_A_MINUTE, session=f"{number:016x}").call("free")
    wall.pass_s(2)
    last = Session(store, FIVE_A_MINUTE)
    last.call("free")
    gone: list[int] = []
    turn = upkeep.Upkeep._turn

    @contextlib.contextmanager
    def counted(self: upkeep.Upkeep) -> Iterator[None]:
        before = rows(path, "fragment")
        with turn(self):
            yield
        gone.append(before - rows(path, "fragment"))

    monkeypatch.setattr(upkeep.Upkeep, "_turn", counted)
    store.tend()
    assert rows(path, "fragment") == 1
    assert max(gone) == 10
    assert last.decisions("free") == ["allowed"]
    assert [entry.record["session"] for entry in store.entries()] == [last.journal.session] * 2


def test_upkeep_that_is_under_way_is_not_begun_again(open_store: Open) -> None:
    store = open_store(keep_us=0)
    decisions(store, 1)
    assert store._upkeep._tending.acquire(blocking=False)
    store.tend()
    assert len(list(store.entries())) == 1
    store._upkeep._tending.release()


def test_upkeep_that_gets_no_turn_says_so(path: Path, open_store: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "TURN_TIMEOUT_S", 0.01)
    store, other = open_store(keep_us=0), open_store()
    decisions(store, 2)
    with other.turn(), pytest.raises(StoreUnavailable, match="did not come free in time"):
        store.tend()
    assert rows(path, "audit") == 2


# A bad day


def test_a_decision_that_fails_consumes_nothing_and_leaves_no_gap(path: Path, open_store: Open) -> None:
    time = Time()
    store = open_store(clock=time)
    session = Session(store, FIVE_A_MINUTE)
    session.call("x", 2)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("ALTER TABLE audit RENAME TO away")
        with pytest.raises(StoreUnavailable, match="no such table"):
            session.call("x", 2)
        db.execute("ALTER TABLE away RENAME TO audit")
    assert session.decisions("x", 4) == ["allowed"] * 3 + ["rate_limited"]
    assert [entry.record["seq"] for entry in store.entries()] == [1, 2, 3, 4, 5, 6]


def test_a_lock_that_another_holds_costs_a_decision_its_budget_and_consumes_nothing(path: Path, open_store: Open) -> None:
    store = open_store(timeout_ms=20)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="database is locked"):
            decisions(store, 1)
        db.execute("ROLLBACK")
    assert decisions(store, 6, "b" * 16) == ["allowed"] * 5 + ["rate_limited"]


def test_opening_waits_for_others_and_then_says_who_is_in_the_way(open_store: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_file, "OPEN_TIMEOUT_S", 0.01)
    first = open_store()
    with first.turn(), pytest.raises(StoreUnavailable, match="is locked by another process"):
        open_store()
    open_store()


def test_opening_waits_for_whoever_closes_the_file_as_the_last(path: Path, open_store: Open) -> None:
    open_store().close()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as last:
        last.execute("PRAGMA locking_mode = EXCLUSIVE")
        last.execute("BEGIN IMMEDIATE")
        threading.Timer(0.2, last.close).start()
        assert decisions(open_store(), 1) == ["allowed"]


def test_after_closing_nothing_is_locked(path: Path, open_store: Open) -> None:
    open_store().close()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = DELETE")
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["mcpguard.db", "mcpguard.db-clock", "mcpguard.db-queue"]


@pytest.mark.parametrize(("durability", "level"), [("normal", 1), ("full", 2)])
def test_durability_is_that_of_the_database(open_store: Open, durability: str, level: int) -> None:
    assert open_store(durability=durability)._db.execute("PRAGMA synchronous").fetchone() == (level,)


def test_memory_for_counters_is_bounded_and_forgets_no_count(open_store: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "REMEMBERED", 10)
    session = Session(open_store(), '[[rule]]\ntool = "*"\nlimit = "1/1m"\n')
    tools = [f"tool{at}" for at in range(50)]
    assert [session.decisions(tool) for tool in tools] == [["allowed"]] * 50
    assert len(session.store.last_seen()[0]) <= 30
    assert [session.decisions(tool) for tool in tools] == [["rate_limited"]] * 50
