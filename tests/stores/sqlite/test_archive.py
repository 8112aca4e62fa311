"""Many rows are read in pages, whose size is bounded whatever is in the rows."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mcpguard.session.audit import Row
from mcpguard.stores.api import Options, StoredRow, Wanted
from mcpguard.stores.clock import wall_us
from mcpguard.stores.sqlite import archive, reader
from mcpguard.stores.sqlite.archive import _rounded
from mcpguard.stores.sqlite.reader import Reader
from mcpguard.stores.sqlite.store import SqliteStore
from mcpguard.stores.tally import rounded_us
from mcpguard.text.printing import compact


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    store = SqliteStore(tmp_path / "mcpguard.db", Options(timeout_ms=20_000))
    yield store
    store.close()
    while _readers:
        _readers.pop().close()


_readers: list[Reader] = []
"""Those of the running test."""


def fill(store: SqliteStore, count: int, *, detail: str | None = None, users: int = 1) -> Reader:
    """Write rows, and move them into the database."""
    contexts = [
        compact({"session": "aa", "namespace": "default", "user": f"user-{at % users}", "tool": "t"}) for at in range(count)
    ]
    now_us = wall_us()
    store.append([Row(now_us + at, at + 1, "allowed", context, detail=detail) for at, context in enumerate(contexts)])
    while store.needs_tending:
        store.tend()
    _readers.append(Reader(store.path))
    return _readers[-1]


def ids(pages: Iterator[list[StoredRow]]) -> list[list[int]]:
    return [[one.row_id for one in page] for page in pages if page]


def test_a_page_has_a_bounded_number_of_rows(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "_PAGE_ROWS", 3)
    found = fill(store, 8)
    assert ids(found.rows()) == [[1, 2, 3], [4, 5, 6], [7, 8]]
    assert ids(found.rows(after=4)) == [[5, 6, 7], [8]]


def test_a_page_of_long_rows_ends_early(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "_PAGE_CHARS", 250)
    assert ids(fill(store, 5, detail=compact({"reason": "x" * 100})).rows()) == [[1, 2, 3], [4, 5]]


@pytest.mark.parametrize("newest_first", [False, True])
def test_records_of_long_rows_are_read_a_few_at_a_time(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch, *, newest_first: bool
) -> None:
    """Somebody who needs the newest row while a call waits does not read a gigabyte for it."""
    monkeypatch.setattr(archive, "_PAGE_CHARS", 250)
    found = fill(store, 7, detail=compact({"reason": "x" * 100}))
    asked: list[str] = []
    found._db.set_trace_callback(asked.append)
    ids = [one.row_id for one in (found.newest() if newest_first else found.entries())]
    assert ids == [*(range(7, 0, -1) if newest_first else range(1, 8))]
    assert len([one for one in asked if "ORDER BY a.id" in one]) == 3


def test_a_filter_may_select_more_contexts_than_a_query_can_name(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_NAMED", 2)
    found = fill(store, 6, users=6)
    others = Wanted(lambda members: members["user"] != "user-3")
    assert ids(found.rows(wanted=others)) == [[1, 2, 3, 5, 6]]
    assert sum(number for part in found.tally(wanted=others) for one in part.calls.values() for number in one.values()) == 5
    assert [one.row_id for one in found.entries(wanted=others)] == [1, 2, 3, 5, 6]


def test_few_texts_are_kept_in_memory(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "_TEXTS", 1)
    monkeypatch.setattr(archive, "_PAGE_ROWS", 1)
    monkeypatch.setattr(archive, "_COUNTED_ROWS", 1)
    found = fill(store, 4, users=4)
    assert ids(found.rows()) == [[1], [2], [3], [4]]
    assert sum(len(part.calls) for part in found.tally()) == 4


def test_sql_rounds_durations_as_the_other_stores_do(store: SqliteStore) -> None:
    found = fill(store, 1)
    question = f"SELECT {_rounded('us')} FROM (SELECT ? AS us)"  # noqa: S608 - words of this program
    for us in (0, 9, 999, 1000, 1009, 12_345, 999_999, 10**6, 123_456_789, 10**9, 987_654_321_012):
        (row,) = found._db.execute(question, (us,)).fetchall()
        assert row == (rounded_us(us),)
    assert found._db.execute(question, (None,)).fetchone() == (None,)
