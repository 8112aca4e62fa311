"""A reading command shows what a wrapper would take in when it repairs a store: after a power cut, or of copied files."""

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mcpguard.stores import clock
from mcpguard.stores.address import SqliteAddress
from mcpguard.stores.api import Options
from mcpguard.stores.clock import wall_us
from mcpguard.stores.sqlite import database
from mcpguard.stores.sqlite.call_log import Position, log_path
from mcpguard.stores.sqlite.reader import SqliteReader
from mcpguard.stores.sqlite.store import SqliteStore
from mcpguard.stores.sqlite.upkeep import SqliteUpkeep
from tests.build import Session, Time
from tests.stores.sqlite.conftest import MANY, lose_newest_pages, make_log


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store with three rows. A few calls fill its log."""
    path = tmp_path / "mcpguard.db"
    make_log(path, 64)
    call(path, 3, "a")
    return path


@contextlib.contextmanager
def opened(path: Path) -> Iterator[SqliteStore]:
    with contextlib.closing(SqliteStore(path, Options(), clock=Time())) as store:
        yield store


def call(path: Path, times: int, session: str, *, stays_in_the_log: bool = False) -> None:
    with opened(path) as store, pytest.MonkeyPatch.context() as patch:
        calls = Session(store, MANY, session=session * 16)
        for _ in range(times):
            calls.one("x")
        if stays_in_the_log:
            patch.setattr(SqliteUpkeep, "drain", lambda *_: False)
            store.close()


def with_an_older_log(path: Path) -> None:
    """As after a power cut with the durability `normal`."""
    older = Path(log_path(path)).read_bytes()
    call(path, 2, "b")
    Path(log_path(path)).write_bytes(older)


def with_a_log_that_lost_its_newest_pages(path: Path) -> None:
    call(path, 2, "b")
    lose_newest_pages(path)


def with_an_older_log_that_has_records(path: Path) -> None:
    call(path, 2, "b", stays_in_the_log=True)
    with_an_older_log(path)


def with_a_database_from_a_backup(path: Path) -> None:
    older = path.read_bytes()
    call(path, 2, "b")
    call(path, 3, "c", stays_in_the_log=True)
    path.write_bytes(older)


def with_a_database_older_than_all_that_the_log_has(path: Path) -> None:
    older = path.read_bytes()
    for session in "bcdef":
        call(path, 40, session)
    call(path, 3, "0", stays_in_the_log=True)
    path.write_bytes(older)


def without_its_log(path: Path) -> None:
    Path(log_path(path)).unlink()


def without_its_database(path: Path) -> None:
    call(path, 4, "b", stays_in_the_log=True)
    path.unlink()


@pytest.mark.parametrize(
    ("harmed", "is_told", "left"),
    [
        (with_an_older_log, "ends before its database does", 5),
        (with_a_log_that_lost_its_newest_pages, "ends before its database does", 5),
        (with_an_older_log_that_has_records, "ends before its database does", 7),
        (with_a_database_from_a_backup, None, 8),
        (with_a_database_older_than_all_that_the_log_has, "is older than its call log", 6),
        (without_its_log, "was removed: calls that only it held", 3),
        (without_its_database, None, 4),
    ],
)
def test_a_store_is_read_as_a_wrapper_repairs_it_and_the_loss_is_told_once(
    path: Path, harmed: Callable[[Path], None], is_told: str | None, left: int
) -> None:
    harmed(path)
    assert SqliteAddress(str(path)).exists()
    before = {one: one.read_bytes() for one in path.parent.iterdir()}
    told: list[str] = []
    with contextlib.closing(SqliteReader(path, notify=told.append)) as reader:
        reader.clock = Time()
        rows, newest, held = list(reader.entries()), list(reader.newest()), reader.counters()
        counted = [count for some in reader.tally() for one in some.calls.values() for count in one.values()]
        outcomes = reader.outcomes_of([1, 2, 3])
    assert {one: one.read_bytes() for one in path.parent.iterdir()} == before
    with opened(path) as store:
        assert (rows, newest, held) == (list(store.entries()), list(store.newest()), store.counters())
        assert outcomes == store.outcomes_of([1, 2, 3])
        assert told == list(store.warnings)
    assert sum(counted) == len(rows) == left
    assert [is_told in one for one in told] == [True] if is_told else told == []


@pytest.mark.parametrize("harmed", [with_an_older_log, with_a_database_older_than_all_that_the_log_has, without_its_log])
def test_pruning_repairs_a_store_first(path: Path, harmed: Callable[[Path], None]) -> None:
    harmed(path)
    assert sum(SqliteAddress(str(path)).prune(Options(), wall_us() + 1)) >= 2
    with opened(path) as store:
        assert store.warnings == ()


def test_after_a_reboot_windows_that_have_passed_are_over_for_a_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "other.db"
    with contextlib.closing(SqliteStore(path, clock=lambda: wall_us() - 2 * 3_600_000_000)) as store:
        Session(store, MANY).call("x", 3)
    monkeypatch.setattr(clock, "base_id", lambda: "another boot")
    for kind in SqliteReader, SqliteStore:
        with contextlib.closing(kind(path)) as opened:
            assert opened.counters() == []


def test_a_reader_that_follows_a_store_goes_on_when_a_wrapper_has_repaired_it(path: Path) -> None:
    with_an_older_log(path)
    with contextlib.closing(SqliteReader(path)) as reader:
        reader.clock = Time()
        last = list(reader.entries())[-1].row_id
        call(path, 2, "c", stays_in_the_log=True)
        assert [entry.record["session"] for entry in reader.entries(after=last)] == ["c" * 16] * 2
        assert [one.used for one in reader.counters()] == [7]


def test_a_backup_that_sqlite_makes_of_a_store_in_use_can_be_restored_without_a_log(path: Path) -> None:
    backup = path.with_name("backup.db")
    with opened(path) as store:
        Session(store, MANY, session="b" * 16).call("x", 1)  # only the log has it
        with contextlib.closing(sqlite3.connect(path)) as source, contextlib.closing(sqlite3.connect(backup)) as copy:
            source.backup(copy)
    Path(log_path(path)).unlink()
    backup.replace(path)
    call(path, 2, "c")
    with opened(path) as store:
        assert [str(entry.record["session"])[0] for entry in store.entries()] == ["a"] * 3 + ["c"] * 2
        assert [one.used for one in store.counters()] == [5]


def test_a_reader_that_upkeep_overtakes_starts_over_and_tells_no_loss(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    position, told = database.position, list[str]()

    def overtaken(_: sqlite3.Connection) -> Position:
        monkeypatch.setattr(database, "position", position)
        return Position(5, 1, b"gone")

    with contextlib.closing(SqliteReader(path, notify=told.append)) as reader:
        monkeypatch.setattr(database, "position", overtaken)
        assert [one.row_id for one in reader.entries()] == [1, 2, 3]
    assert told == []
