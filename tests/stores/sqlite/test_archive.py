"""Many rows are read in pages, whose size is bounded whatever is in the rows."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mcpguard.session.audit import Row
from mcpguard.stores.api import Options, StoredRow, Wanted
from mcpguard.stores.clock import wall_us
from mcpguard.stores.sqlite.reader import Reader
from mcpguard.stores.sqlite.store import SqliteStore
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


def test_a_page_has_a_bounded_number_of_rows(store: SqliteStore) -> None:
    found = fill(store, 1200)
    assert list(map(len, ids(found.rows()))) == [500, 500, 200]
    assert ids(found.rows(after=600)) == [[*range(601, 1101)], [*range(1101, 1201)]]
    assert [part.last_id for part in found.tally()] == [500, 1000, 1200, 1200]


@pytest.mark.parametrize("newest_first", [False, True])
def test_a_page_of_long_rows_ends_early(store: SqliteStore, *, newest_first: bool) -> None:
    """Somebody who needs the newest row while a call waits does not read a gigabyte for it."""
    found = fill(store, 7, detail=compact({"reason": "x" * 1_000_000}))
    asked: list[str] = []
    found._db.set_trace_callback(asked.append)
    ids = [one.row_id for one in (found.newest() if newest_first else found.entries())]
    assert ids == [*(range(7, 0, -1) if newest_first else range(1, 8))]
    assert len([one for one in asked if "ORDER BY a.id" in one]) == 2


def test_a_filter_may_select_more_contexts_than_a_query_can_name(store: SqliteStore) -> None:
    found = fill(store, 10_002, users=10_002)
    others = Wanted(lambda members: members["user"] != "user-3")
    assert [one.row_id for one in found.entries(wanted=others)] == [1, 2, 3, *range(5, 10_003)]
