"""Many rows are read in pages, whose size is bounded whatever is in the rows."""

import contextlib
from collections.abc import Callable, Iterator

import pytest

from mcpguard.session.audit import Row
from mcpguard.stores.api import StoredRow, Wanted
from mcpguard.stores.sqlite.reader import SqliteReader
from mcpguard.text.printing import compact
from tests.build import WALL_US
from tests.stores.sqlite.conftest import Open, drain

Fill = Callable[..., SqliteReader]


@pytest.fixture
def fill(open_store: Open) -> Iterator[Fill]:
    """Writes rows, moves them into the database, and reads them."""
    with contextlib.ExitStack() as opened:

        def do(count: int, *, detail: str | None = None, users: int = 1) -> SqliteReader:
            store, shared = open_store(), {"session": "aa", "namespace": "default", "tool": "t"}
            contexts = [compact(shared | {"user": f"user-{at % users}"}) for at in range(count)]
            store.append([Row(WALL_US + at, at + 1, "allowed", one, detail=detail) for at, one in enumerate(contexts)])
            drain(store)
            return opened.enter_context(contextlib.closing(SqliteReader(store.path)))

        yield do


def ids(pages: Iterator[list[StoredRow]]) -> list[list[int]]:
    return [[one.row_id for one in page] for page in pages if page]


def test_a_page_has_a_bounded_number_of_rows(fill: Fill) -> None:
    found = fill(1200)
    assert list(map(len, ids(found.rows()))) == [500, 500, 200]
    assert ids(found.rows(after=600)) == [[*range(601, 1101)], [*range(1101, 1201)]]
    assert [part.last_id for part in found.tally()] == [500, 1000, 1200, 1200]


@pytest.mark.parametrize("newest_first", [False, True])
def test_a_page_of_long_rows_ends_early(fill: Fill, *, newest_first: bool) -> None:
    """Somebody who needs the newest row while a call waits does not read a gigabyte for it."""
    found = fill(7, detail=compact({"reason": "x" * 1_000_000}))
    asked: list[str] = []
    found._db.set_trace_callback(asked.append)
    ids = [one.row_id for one in (found.newest() if newest_first else found.entries())]
    assert ids == [*(range(7, 0, -1) if newest_first else range(1, 8))]
    assert len([one for one in asked if "ORDER BY a.id" in one]) == 2


def test_a_filter_may_select_more_contexts_than_a_query_can_name(fill: Fill) -> None:
    found = fill(10_002, users=10_002)
    others = Wanted(lambda members: members["user"] != "user-3")
    assert [one.row_id for one in found.entries(wanted=others)] == [1, 2, 3, *range(5, 10_003)]
