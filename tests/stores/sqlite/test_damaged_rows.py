"""A damaged row is left out and named, and every other row is read, counted and pruned."""

import contextlib
import re
import sqlite3
from pathlib import Path

import pytest

from mcpguard.errors import StoreUnavailable
from mcpguard.session.audit import Outcome
from mcpguard.stores.address import SqliteAddress
from mcpguard.stores.api import Options, Wanted
from mcpguard.stores.clock import wall_us
from mcpguard.stores.sqlite.reader import SqliteReader
from mcpguard.stores.sqlite.store import SqliteStore
from tests.build import Session, identity

LIMIT = '[[rule]]\ntool = "x"\nlimit = "2/1h"\n'
NOT_UTF8 = "CAST(x'ff' AS TEXT)"
OF_ROW = "WHERE id = 2"
OF_CONTEXT = "WHERE id = (SELECT context FROM audit WHERE id = 2)"
OF_LIMIT = "WHERE id = (SELECT reported FROM audit WHERE id = 2)"

IN_ROW = (
    "context = 7", "reported = 7", "detail = '{'", "detail = '[]'", f"detail = {NOT_UTF8}", f"request_id = {NOT_UTF8}",
    "request_id = x'00'", f"decision = {NOT_UTF8}", "decision = x'ff'", "time_us = 'soon'", f"time_us = {1 << 62}",
    "time_us = -1", "seq = 'first'", "counted = 'many'", "repeats = 'often'", "trace_id = x'00'",
    "args_hash = 'hash'", "outcome = x'00'",
    "duration_us = 'long'",
)  # fmt: skip
IN_TEXT = ("json = '{'", "json = '[]'", "json = '{}'", f"json = {NOT_UTF8}", "json = x'ff'")

pytestmark = pytest.mark.parametrize(
    "harm",
    [
        *(f"UPDATE audit SET {change} {OF_ROW}" for change in IN_ROW),  # noqa: S608 - words of this test
        *(f"UPDATE fragment SET {change} {where}" for change in IN_TEXT for where in (OF_CONTEXT, OF_LIMIT)),  # noqa: S608
    ],
)


@pytest.fixture
def path(tmp_path: Path, harm: str) -> Path:
    """Three rows with texts of their own, of which the second is damaged."""
    path = tmp_path / "mcpguard.db"
    with contextlib.closing(SqliteStore(path)) as store:
        for number, user in enumerate(("alice", "bob", "carol"), 1):
            limit = LIMIT.replace("2/", f"{number + 1}/")
            verdict = Session(store, limit, session=user[0] * 16, who=identity(user)).one("x")
            store.record([Outcome(verdict.row_id or 0, "ok", 5)])
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        assert db.execute(harm).rowcount == 1
    return path


@pytest.mark.parametrize(
    "wanted",
    [
        None,
        Wanted(lambda context: context["namespace"] == "default"),
        Wanted(None, axis=lambda axis: axis == "tool"),
        Wanted(None, since_us=wall_us() - 60_000_000, until_us=1 << 62),
    ],
    ids=["all", "context", "axis", "time"],
)
def test_all_rows_but_a_damaged_one_are_read_and_it_is_named_once(path: Path, wanted: Wanted | None, harm: str) -> None:
    told: list[str] = []
    with contextlib.closing(SqliteReader(path, notify=told.append)) as reader:
        for _ in range(2):
            assert [one.row_id for one in reader.entries(wanted=wanted)] == [1, 3]
            assert [one.row_id for one in reader.newest(wanted=wanted)] == [3, 1]
            assert [one.row_id for page in reader.rows(wanted=wanted) for one in page] == [1, 3]
            assert sum(len(part.calls) for part in reader.tally(wanted=wanted)) == 2
    is_perhaps_unwanted = wanted is not None and (wanted.since_us is not None or "SET context" in harm)
    assert told == [f"row 2 of {path} is damaged, and left out"] or (is_perhaps_unwanted and not told)


def test_who_is_told_of_no_damage_gets_an_error_that_names_the_row(path: Path, harm: str) -> None:
    with (
        contextlib.closing(SqliteStore(path)) as store,
        pytest.raises(StoreUnavailable, match=re.escape(f"row 2 of {path} is damaged")),
    ):
        list(store.entries())


def test_old_rows_are_deleted_beside_a_damaged_one(path: Path, harm: str) -> None:
    later = wall_us() + 60_000_000
    with contextlib.closing(SqliteStore(path, Options(keep_us=1), wall=lambda: later, clock=lambda: later)) as store:
        Session(store, LIMIT, session="d" * 16).one("x")
        store.tend()
    with contextlib.closing(SqliteReader(path, notify=print)) as reader:
        assert {one.row_id for one in reader.entries()} == {4}
    assert sum(SqliteAddress(str(path)).prune(Options(), later)) <= 1
