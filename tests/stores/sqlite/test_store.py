"""The SQLite store: its files' modes, its schema, its time, and calls while it cannot be used."""

import contextlib
import errno
import os
import re
import shutil
import sqlite3
import stat
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn

import pytest

from mcpguard import files, locks
from mcpguard.errors import ExitStatus, StoreUnavailable
from mcpguard.session.verdict import Ending
from mcpguard.stores import clock, filesystem
from mcpguard.stores.address import SqliteAddress
from mcpguard.stores.api import Options
from mcpguard.stores.clock import wall_us
from mcpguard.stores.sqlite import call_log, database, draining, opening
from mcpguard.stores.sqlite.call_log import log_path
from mcpguard.stores.sqlite.memory import pack_log, unpack_log
from mcpguard.stores.sqlite.reader import SqliteReader
from mcpguard.stores.sqlite.store import SqliteStore
from tests.build import WALL_US, Session, Time
from tests.callers import Caller
from tests.stores.conftest import around_next, as_on, broken
from tests.stores.sqlite.conftest import (
    FIVE_A_MINUTE,
    Begin,
    Open,
    Times,
    ask,
    counter_of,
    locked,
    log_ends,
    overwrite,
    rows,
    take_log_of_another,
    turn_is_free,
)

Transaction = Callable[[sqlite3.Connection], contextlib.AbstractContextManager[None]]
Harm = Callable[[Path], None]


def decisions(store: SqliteStore, times: int, session: str = "a" * 16) -> list[str]:
    return Session(store, FIVE_A_MINUTE, session=session).decisions("x", times)


# Files


@pytest.mark.posix
@pytest.mark.parametrize("umask", [0, 0o022, 0o777])
def test_files_are_0600_in_0700_whatever_the_umask(tmp_path: Path, open_store: Open, umask: int) -> None:
    path = tmp_path / "home" / "state" / "mcpguard.db"
    before = os.umask(umask)
    try:
        decisions(open_store(path), 3)
    finally:
        os.umask(before)
    names = sorted(entry.name for entry in path.parent.iterdir())
    assert names == ["mcpguard.db", "mcpguard.db-calls", "mcpguard.db-lock", "mcpguard.db-open"]
    assert {stat.S_IMODE(entry.stat().st_mode) for entry in path.parent.iterdir()} == {0o600}
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in (path.parent, path.parent.parent)} == {0o700}


@pytest.mark.posix
def test_an_existing_folder_keeps_its_mode(path: Path, open_store: Open) -> None:
    path.parent.mkdir(parents=True, mode=0o755)
    open_store()
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755


@pytest.mark.posix
@pytest.mark.parametrize("name", ["a b", "50%20", "%", "a?mode=memory", "a#b", "café", "a\nb", "-"])
def test_a_store_may_have_any_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name / f"{name}.db"
    with contextlib.closing(SqliteStore(path)) as store:
        assert decisions(store, 6) == ["allowed"] * 5 + ["rate_limited"]
    assert path.stat().st_size > 0
    with contextlib.closing(SqliteReader(path)) as reader:
        assert len(list(reader.newest())) == 6
    assert [one.name for one in tmp_path.iterdir()] == [name]


def test_a_folder_in_place_of_the_file_is_reported_and_no_file_is_created(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    with pytest.raises(StoreUnavailable, match="state is a folder") as raised:
        SqliteStore(tmp_path / "state")
    assert "mcpguard.db" in raised.value.hint
    assert raised.value.exit_status == ExitStatus.STORE_UNAVAILABLE
    assert [one.name for one in tmp_path.iterdir()] == ["state"]


def test_a_folder_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreUnavailable, match=r"cannot be used: (Not a directory|No such file or directory)") as raised:
        SqliteStore(tmp_path / "file" / "mcpguard.db")
    assert "MCPGUARD_HOME" in raised.value.hint


@pytest.mark.parametrize(
    ("owner", "name", "what"),
    [(clock, "base_id", "{path}"), (call_log, "pread", "{path}-calls"), (os, "stat", "{path}")],
    ids=["the boot", "the log", "the files"],
)
def test_what_the_system_does_not_let_a_reader_see_makes_the_store_unavailable(
    path: Path, open_store: Open, owner: object, name: str, what: str
) -> None:
    decisions(open_store(), 1)
    with contextlib.closing(SqliteReader(path)) as found:
        assert found.args_key
        asked: list[Callable[[], object]] = [found.counters]
        if owner is not clock:
            asked += [lambda: list(found.rows()), lambda: list(found.newest())]
        told = re.escape(f"{what.format(path=path)} cannot be used: {os.strerror(errno.EIO)}")
        for ask_for in asked:
            with broken(owner, name, errno.EIO), pytest.raises(StoreUnavailable, match=told):
                ask_for()


def is_overwritten(path: Path) -> None:
    overwrite(path, database.PAGE_BYTES, b"\xff" * (path.stat().st_size - database.PAGE_BYTES))


def is_another_programs(path: Path) -> None:
    path.unlink()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE other (x)")


def is_none(path: Path) -> None:
    path.write_bytes(b"this is not a database" * 100)


def begins_as_one(path: Path) -> None:
    path.write_bytes(b"SQLite format 3\0" + b"\xff" * 4000)


ELSEWHERE = "correct the path, or move the file away"


@pytest.mark.parametrize(
    ("harm", "has_log", "what", "hint"),
    [
        (lambda path: path.write_bytes(b""), True, "is damaged: it is empty", "move it away"),
        (is_overwritten, True, "or its disk cannot be read|is damaged: Failed", "(if its disk works, )?move it away"),
        (is_none, True, "is damaged: file is not", "move it away"),
        (is_none, False, "is not a store of mcpguard: file is not", ELSEWHERE),
        (begins_as_one, True, "is damaged: file is not", "move it away"),
        (begins_as_one, False, "is not a store of mcpguard: file is not", ELSEWHERE),
        (is_another_programs, False, "is not a store of mcpguard: another program made this", ELSEWHERE),
        (is_another_programs, True, "is not a store of mcpguard: another program made this", ELSEWHERE),
    ],
)
def test_what_is_wrong_with_a_database_and_what_to_do_is_told_and_it_stays_as_it_is(
    path: Path, open_store: Open, harm: Harm, has_log: bool, what: str, hint: str
) -> None:
    open_store().close()
    if not has_log:
        Path(log_path(path)).unlink()
    harm(path)
    before = contents(path)

    def read() -> None:
        with contextlib.closing(SqliteReader(path)) as reader:
            reader.counters()

    for use in (read, open_store, open_store):
        with pytest.raises(StoreUnavailable, match=f"^{re.escape(str(path))} .*({what})") as raised:
            use()
        assert re.match(hint, raised.value.hint)
    assert contents(path) == before


def test_a_reader_that_comes_while_a_store_is_created_reads_it(
    path: Path, open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.parent.mkdir(mode=0o700)
    path.touch(0o600)  # as the process that creates the store does first
    around_next(
        monkeypatch,
        database,
        "require_schema",
        after=lambda: around_next(monkeypatch, database, "require_schema", before=lambda: open_store().close()),
    )
    with contextlib.closing(SqliteReader(path)) as reader:
        assert [*reader.counters(), *reader.entries()] == []


def test_a_copy_whose_pages_are_of_different_times_is_damaged_and_not_short_of_disk_space(path: Path, begin: Begin) -> None:
    begin().call_and_end(3)
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        database.set_position(db, call_log.START)  # as before the rows were written
    with pytest.raises(StoreUnavailable) as raised:
        list(SqliteAddress(str(path)).prune(Options(), wall_us()))
    assert "is damaged: its parts do not belong together (UNIQUE constraint failed" in raised.value.message
    assert raised.value.hint.startswith("move it away")


def test_later_damage_is_reported_by_upkeep_and_by_opening_the_store(path: Path, begin: Begin, times: Times) -> None:
    session = begin()
    session.call("x", 3)
    times[0].pass_s(3)
    session.store.tend()
    overwrite(path, 1024, b"\xff" * (path.stat().st_size - 1024))
    damaged = path.read_bytes()
    session.call("x", 2)
    times[0].pass_s(3)
    for attempt in (session.store.tend, begin):
        with pytest.raises(StoreUnavailable, match=f"^{re.escape(str(path))} is damaged"):
            attempt()
    session.store.close()
    assert path.read_bytes() == damaged


def test_a_database_that_a_query_has_found_damaged_is_not_opened_again_until_it_is_whole(path: Path, open_store: Open) -> None:
    store = open_store()
    decisions(store, 2)
    store.close()
    whole = path.read_bytes()
    page = ask(path, "SELECT rootpage FROM sqlite_master WHERE name = 'audit'")
    overwrite(path, (page - 1) * database.PAGE_BYTES, b"\xff" * database.PAGE_BYTES)
    store = open_store()  # which reads no row
    for ask_again in (lambda: list(store.entries()), open_store):
        with pytest.raises(StoreUnavailable, match="is damaged"):
            ask_again()
    store.close()
    path.write_bytes(whole)
    assert len(list(open_store().entries())) == 2


# Schema


def contents(path: Path) -> dict[str, bytes]:
    """What a store's files hold."""
    return {one.name: one.read_bytes() for one in path.parent.iterdir() if one.stat().st_size}


def with_schema(version: int, path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {version}")


def with_log_format(log_format: int, path: Path) -> None:
    with contextlib.closing(call_log.CallLog(log_path(path))) as log:
        log.write_header({**log.header, "format": log_format})


def with_a_log_alone(path: Path) -> None:
    with_log_format(9, path)
    path.unlink()


@pytest.mark.parametrize(
    ("harm", "what"),
    [
        (partial(with_schema, database.VERSION + 1), f"has schema {database.VERSION + 1}, .* knows schemas up to"),
        (partial(with_schema, 1), "was written by an unreleased preview"),
        (partial(with_schema, database.VERSION - 1), "was written by an unreleased preview"),
        (partial(with_log_format, 1), "has format 1, .* knows format .*use the mcpguard that wrote it"),
        (partial(with_log_format, call_log.FORMAT + 1), f"has format {call_log.FORMAT + 1}, "),
        (with_a_log_alone, "has format 9, "),
        (take_log_of_another, "belongs to another database"),
    ],
    ids=["later schema", "first preview", "last preview", "old log", "later log", "log alone", "another's log"],
)
def test_files_of_another_version_or_store_are_refused_with_a_reason_and_unchanged(
    tmp_path: Path, path: Path, open_store: Open, harm: Harm, what: str
) -> None:
    decisions(open_store(), 3)  # it stays open, so that the log has records
    copy = tmp_path / "copy" / path.name
    shutil.copytree(path.parent, copy.parent)
    harm(copy)
    before = contents(copy)
    with pytest.raises(StoreUnavailable) as raised:
        open_store(copy)
    assert re.search(what, f"{raised.value.message}; {raised.value.hint}")
    assert raised.value.hint
    assert contents(copy) == before


def test_a_migration_that_fails_leaves_the_schema_unchanged(tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "x.db", isolation_level=None)) as db:
        db.set_authorizer(lambda _, name, *__: sqlite3.SQLITE_DENY if name == "audit_of_namespace" else sqlite3.SQLITE_OK)
        with pytest.raises(sqlite3.DatabaseError, match="not authorized"):
            database.migrate(db, tmp_path / "x.db")
        db.set_authorizer(None)
        assert db.execute("PRAGMA user_version").fetchone() == (0,)
        assert db.execute("SELECT name FROM sqlite_schema").fetchall() == []
        assert not db.in_transaction


@pytest.mark.parametrize("transaction", [database.reading, database.writing])
def test_an_error_that_has_ended_a_transaction_is_reported_itself(tmp_path: Path, transaction: Transaction) -> None:
    def fail(db: sqlite3.Connection) -> NoReturn:
        with transaction(db):
            db.execute("ROLLBACK")  # as SQLite does after some errors
            raise sqlite3.OperationalError("disk I/O error")

    with (
        contextlib.closing(sqlite3.connect(tmp_path / "x.db", isolation_level=None)) as db,
        pytest.raises(sqlite3.OperationalError, match="disk I/O error"),
    ):
        fail(db)


def test_without_a_free_descriptor_the_hint_is_the_limits_of_the_system(open_store: Open) -> None:
    with broken(opening, "lock_file", errno.EMFILE), pytest.raises(StoreUnavailable, match="Too many open files") as caught:
        open_store()
    assert "ulimit -a" in caught.value.hint


def test_a_log_is_stored_in_the_documented_form_and_a_cost_above_four_bytes_as_the_largest_that_they_hold() -> None:
    state = (1_767_225_600_000_000, 1, 2, 1_767_225_600_000_001, 1 << 40)
    numbers = [(1_767_225_600_000_000, 8), (1, 8), (2, 4), (1_767_225_600_000_001, 8), ((1 << 32) - 1, 4)]
    assert pack_log(state) == b"".join(value.to_bytes(size, "little") for value, size in numbers)
    assert unpack_log(pack_log(state)) == (*state[:4], (1 << 32) - 1)


# Time


class Machine:
    """A machine whose clocks the test sets, and which opens stores."""

    def __init__(self, open_store: Open, monkeypatch: pytest.MonkeyPatch) -> None:
        self.boot = Time(100_000_000)
        self.base = "boot 1"
        self.wall = Time(WALL_US)
        monkeypatch.setattr(clock, "boot_us", lambda offset_us=0: self.boot() + offset_us)
        monkeypatch.setattr(clock, "base_id", lambda: self.base)
        self.open = partial(open_store, clock=None, wall=self.wall)

    def reboots(self) -> None:
        self.base += "1"
        self.boot.now_us = 5_000_000


@pytest.fixture
def machine(open_store: Open, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(open_store, monkeypatch)


def test_steps_of_the_wall_clock_do_not_matter(machine: Machine) -> None:
    year_us = 365 * 86_400_000_000
    assert decisions(machine.open(), 3) == ["allowed"] * 3
    machine.wall.now_us -= year_us
    assert decisions(machine.open(), 2) == ["allowed"] * 2
    machine.wall.now_us += 2 * year_us
    machine.boot.now_us += 59_999_999
    assert decisions(machine.open(), 1) == ["rate_limited"]
    machine.boot.now_us += 1
    assert decisions(machine.open(), 6) == ["allowed"] * 5 + ["rate_limited"]


def test_a_second_time_base_is_refused_until_no_process_uses_the_first(machine: Machine) -> None:
    first, second = machine.open(), machine.open()
    decisions(first, 3)
    machine.reboots()
    with pytest.raises(StoreUnavailable, match="in use by another machine") as raised:
        machine.open()
    assert "Redis" in raised.value.hint
    machine.boot.now_us = 100_000_000
    assert decisions(first, 3, "b" * 16) == ["allowed", "allowed", "rate_limited"]
    first.close()
    machine.reboots()
    with pytest.raises(StoreUnavailable):
        machine.open()
    second.close()
    machine.wall.pass_s(30)
    after = machine.open()
    assert decisions(after, 1, "c" * 16) == ["rate_limited"]
    machine.boot.pass_s(30)
    assert decisions(after, 6, "d" * 16) == ["allowed"] * 5 + ["rate_limited"]
    assert decisions(machine.open(), 1, "e" * 16) == ["rate_limited"]


def test_time_does_not_run_back_over_a_reboot_if_only_the_call_log_has_the_newest_charge(path: Path, machine: Machine) -> None:
    first = machine.open()
    session = Session(first, FIVE_A_MINUTE + FIVE_A_MINUTE.replace("x", "y"))
    session.call("y")
    machine.boot.pass_s(3600)
    session.call("x", 5)
    with broken(draining.Drain, "write", sqlite3.OperationalError("database or disk is full")):
        first.close()
    assert rows(path, "counter") == 0
    machine.reboots()
    machine.wall.pass_s(-86_400)
    after = machine.open()
    assert decisions(after, 1, "b" * 16) == ["rate_limited"]
    machine.boot.pass_s(60)
    assert decisions(after, 6, "c" * 16) == ["allowed"] * 5 + ["rate_limited"]


@pytest.mark.parametrize("ahead_s", [-86_400, -3600, 0, 3600, 86_400 * 365])
def test_after_a_reboot_a_wrong_clock_admits_a_limit_once_more_and_delays_it_by_a_window(
    machine: Machine, ahead_s: int
) -> None:
    first = machine.open()
    machine.boot.pass_s(3600)
    decisions(first, 5)
    first.close()
    for again in range(3):  # a clock that stays wrong is wrong once
        machine.reboots()
        machine.wall.pass_s(ahead_s if not again else 1)
        after = machine.open()
        admitted = decisions(after, 10, f"{again:016x}").count("allowed")
        assert admitted <= (5 if not again else 0)
        wait_us = Session(after, FIVE_A_MINUTE, session=f"c{again:015x}").one("x").retry_after_us
        assert wait_us is not None
        assert wait_us <= 60_000_000
        after.close()


def test_a_network_file_system_gets_no_database(path: Path, open_store: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    look = {"win32": "network_drive", "darwin": "network_volume"}.get(sys.platform, "network_mount")
    monkeypatch.setattr(filesystem, look, lambda _: "nfs4")
    with pytest.raises(StoreUnavailable, match=r"network file system \(nfs4\)") as raised:
        open_store()
    assert "Redis" in raised.value.hint
    assert list(path.parent.iterdir()) == []


# Failures


@pytest.mark.posix
def test_macos_forces_calls_and_transactions_through_the_disks_own_memory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SqliteStore(path).close()
    with contextlib.closing(database.connect(path)) as db:
        assert db.execute("PRAGMA fullfsync").fetchone() == (1,)
    monkeypatch.delattr(os, "fdatasync", raising=False)  # macOS has none
    on_macos = as_on("darwin", files, monkeypatch)
    assert on_macos.force_data is on_macos.force


Trouble = Callable[[Path], contextlib.AbstractContextManager[None]]


@pytest.mark.parametrize(
    "policy", [FIVE_A_MINUTE, FIVE_A_MINUTE + 'count = "cost"\n', '[[rule]]\ntool = "x"\nconcurrent = 5\n']
)
@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        pytest.param(lambda _: broken(call_log, "pwrite", errno.EIO), "Input/output error", id="a write"),
        pytest.param(lambda _: broken(call_log.CallLog, "ends_at", errno.EIO), "Input/output error", id="a read in its turn"),
        pytest.param(lambda _: broken(locks, "_lock", errno.ENOLCK), os.strerror(errno.ENOLCK), id="a turn"),
        pytest.param(lambda path: locked(path, "-calls"), "did not come free in time", id="a turn in time"),
    ],
)
def test_a_decision_whose_part_fails_charges_nothing_leaves_no_gap_and_hinders_nobody(
    path: Path, open_store: Open, policy: str, trouble: Trouble, words: str
) -> None:
    store = open_store(timeout_ms=20)
    caller = Caller(store, policy)
    caller.words("x", "x")
    seen = store.last_seen()
    with trouble(path):
        for tools in ("x", "xx"):
            with pytest.raises(StoreUnavailable, match=words):
                caller.words(*tools)
            with contextlib.suppress(StoreUnavailable):
                store.settle([Ending(*caller.flying[0], False)] if "concurrent" in policy else [])
            assert store.last_seen() == seen
    assert turn_is_free(path)
    assert caller.words(*"xxxx") == ["allowed"] * 3 + ["rate_limited"]
    assert [entry.record["seq"] for entry in store.entries()] == [1, 2, 3, 4, 5, 6]


def test_any_read_that_fails_as_a_store_opens_makes_it_unavailable(open_store: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(fd: int, count: int, at: int) -> bytes:
        reads.append(at)
        if len(reads) == failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return files.pread(fd, count, at)

    reads: list[int] = []
    failing = 0
    open_store().close()
    monkeypatch.setattr(call_log, "pread", read)
    open_store().close()
    for failing in range(1, len(reads) + 1):  # noqa: B007 - `read` uses it
        reads.clear()
        with contextlib.suppress(StoreUnavailable):
            open_store().close()


def test_a_denial_without_a_row_of_its_own_writes_nothing_and_is_decided_by_the_current_counters(
    path: Path, begin: Begin
) -> None:
    session, other = begin(), begin()
    session.call("x", 5)
    assert [session.one("x").has_own_row for _ in range(3)] == [True, False, False]
    ends = log_ends(path)
    assert session.decisions("x") == ["rate_limited"]
    assert log_ends(path) == ends
    other.store.reset([session.store.counters()[0].label])
    assert session.decisions("x") == ["allowed"]


EACH_ONCE = '[[rule]]\ntool = "*"\nlimit = "2/1m"\n'


def test_beyond_the_most_counters_new_ones_are_refused_with_a_word_and_known_ones_go_on(begin: Begin, times: Times) -> None:
    session = begin(EACH_ONCE + '[[rule]]\nuser = "*"\ntool = "closed"\nlimit = "deny"\n', most=3)
    assert [session.decisions(tool) for tool in "abc"] == [["allowed"]] * 3
    request = session.charges("d")
    (refused,) = session.store.decide(request, session.journal)
    assert (refused.decision, request[0].detail["reason"]) == ("unavailable", "too_many_counters")
    assert request[0].why.startswith("3 counters are in use, the most that a store keeps")
    assert [session.decisions(tool, 2) for tool in "abc"] == [["allowed", "rate_limited"]] * 3
    assert session.decisions("closed") == ["denied"]
    assert [entry.record["decision"] for entry in session.store.newest()].count("unavailable") == 1
    session.store.tend()
    assert "3 counters are in use" in session.store.warnings[0]
    times[0].pass_s(60)
    assert session.decisions("d", 3) == ["allowed", "allowed", "rate_limited"]


def test_nothing_is_uncounted_when_another_process_or_an_outage_has_more_counters_than_the_most(begin: Begin) -> None:
    one, other = begin(EACH_ONCE, most=2), begin(EACH_ONCE)
    assert [other.decisions(tool) for tool in "abcdef"] == [["allowed"]] * 6
    assert [one.decisions(tool, 2) for tool in "abcdef"] == [["allowed", "rate_limited"]] * 6
    assert one.decisions("g") == ["unavailable"]
    one.store.adopt([(counter_of(one.charges("g")), (-1, -1, 1))], "a" * 64)
    assert one.decisions("g", 2) == ["allowed", "rate_limited"]
    one.store.close()
    late = begin(EACH_ONCE, most=2)
    assert [late.decisions(tool) for tool in "abcdefg"] == [["rate_limited"]] * 7
    assert late.decisions("h") == ["unavailable"]


def test_only_a_call_that_needs_a_counter_without_room_is_refused(begin: Begin) -> None:
    errors, warns = Caller(begin(most=1).store, EACH_ONCE + 'count = "errors"\n'), begin(EACH_ONCE + 'warn = "100%"\n', most=2)
    assert errors.words("a") == ["allowed"]
    errors.end(failed=True)
    assert [errors.words(tool) for tool in "ba"] == [["unavailable"], ["allowed"]]
    assert [len(one.warned) for one in warns.call("a", 3)] == [0, 1, 0]


def test_expired_counters_make_room_without_a_look_at_all_of_them_in_one_call(begin: Begin, times: Times) -> None:
    session = begin(EACH_ONCE, most=1000)
    for at in range(2500):
        assert session.decisions(f"t{at}") == ["allowed"]
        times[0].pass_ms(120)
    assert len(session.store.last_seen()[0]) <= 1000


def test_a_text_has_another_number_in_each_store_so_that_nobody_can_choose_two_with_one(
    tmp_path: Path, open_store: Open
) -> None:
    paths = [tmp_path / name for name in ("one.db", "other.db")]
    for path in paths:
        store = open_store(path)
        decisions(store, 1)
        store.close()
    texts = {ask(path, "SELECT json FROM fragment ORDER BY json") for path in paths}
    numbers = {ask(path, "SELECT id FROM fragment ORDER BY json") for path in paths}
    assert (len(texts), len(numbers)) == (1, 2)


def test_a_very_long_detail_is_cut_and_a_batch_of_long_calls_is_decided(begin: Begin) -> None:
    session = begin()
    session.keep_arguments("full")
    assert session.decisions("x", 6, arguments={"text": "ä" * 300_000}) == ["allowed"] * 5 + ["rate_limited"]
    entries = list(session.store.entries())
    assert [entry.record["seq"] for entry in entries] == [1, 2, 3, 4, 5, 6]
    assert "not kept" in str(entries[0].record["arguments"])


def test_closing_moves_all_records_into_the_database_and_reopening_changes_nothing(path: Path, open_store: Open) -> None:
    store = open_store()
    decisions(store, 6)
    before = (store.counters(), list(store.entries()), store.args_key)
    store.close()
    assert rows(path) == 6
    again = open_store()
    assert (again.counters(), list(again.entries()), again.args_key) == before
    again.close()
    Path(log_path(path)).unlink()
    assert decisions(open_store(), 1, "b" * 16) == ["rate_limited"]
