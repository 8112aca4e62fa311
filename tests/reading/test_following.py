"""Following an export gives each row once, in order, with its outcome if that comes in time."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mcpguard.config import Settings
from mcpguard.errors import StoreUnavailable
from mcpguard.reading import following
from mcpguard.session.audit import Outcome
from mcpguard.stores.api import Options, Wanted
from mcpguard.stores.clock import wall_us
from mcpguard.stores.sqlite.reader import SqliteReader
from mcpguard.stores.sqlite.store import SqliteStore
from tests.build import Session, identity

POLICY = '[[rule]]\nuser = "*"\ntool = "limited"\nlimit = "1/1h"\n'
ANY = Wanted(None)


class Followed:
    """A store that is followed. `steps` happen one by one, whenever the follower waits; then it stops."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "mcpguard.db"
        self.settings = Settings(str(self.path), policy_named=False, database_path=str(self.path))
        self.said: list[str] = []

    def rows(self, *steps: Callable[[], object], wanted: Wanted = ANY, **more: Any) -> list[tuple[str, str | None]]:
        left = iter(steps)

        def step(_: float) -> None:
            next(left, self._stop)()

        found: list[tuple[str, str | None]] = []
        with contextlib.suppress(InterruptedError):
            for _, page in following.follow(self.settings, wanted, self.said.append, step, **more):
                found += [(one.row.decision, one.outcome) for one in page]
            raise AssertionError("it has ended")
        return found

    def _stop(self) -> None:
        raise InterruptedError

    def call(self) -> None:
        """Make a call that ends, in a store that is opened for it."""
        store = SqliteStore(self.path, Options(timeout_ms=20_000))
        session = Session(store, POLICY, who=identity("alice"))
        end(session, session.one("echo").row_id)
        store.close()

    def remove(self) -> None:
        for path in self.path.parent.glob("mcpguard.db*"):
            path.unlink()


@pytest.fixture
def followed(tmp_path: Path) -> Followed:
    return Followed(tmp_path)


@pytest.fixture
def session(followed: Followed) -> Iterator[Session]:
    store = SqliteStore(followed.path, Options(timeout_ms=20_000))
    yield Session(store, POLICY, who=identity("alice"))
    store.close()


def end(session: Session, row_id: int | None) -> None:
    session.store.record([Outcome(row_id or 0, "ok", 5)])


def test_a_row_waits_for_its_outcome_and_the_rows_after_it_wait_too(followed: Followed, session: Session) -> None:
    first, second = session.one("slow"), session.one("limited")
    session.one("limited")
    assert followed.rows(lambda: None) == []
    end(session, second.row_id)
    assert followed.rows(lambda: None) == []
    assert followed.rows(lambda: None, lambda: end(session, first.row_id), lambda: None) == [
        ("allowed", "ok"),
        ("allowed", "ok"),
        ("rate_limited", None),
    ]


@pytest.mark.posix
def test_a_row_of_a_store_that_is_removed_waits_no_longer(followed: Followed, session: Session) -> None:
    session.one("slow")
    assert followed.rows(lambda: None, followed.remove, lambda: None) == [("allowed", None)]


def test_following_can_begin_after_a_row(followed: Followed, session: Session) -> None:
    row_id = session.one("limited").row_id or 0
    session.one("limited")
    assert followed.rows(lambda: None, begin=lambda _: row_id) == [("rate_limited", None)]


def test_all_rows_of_a_store_that_comes_later_are_given(followed: Followed) -> None:
    assert followed.rows(followed.call, lambda: None, begin=lambda _: 99) == [("allowed", "ok")]


def test_rows_can_be_given_at_once_without_waiting_for_their_outcomes(followed: Followed, session: Session) -> None:
    session.one("slow")
    assert followed.rows(lambda: session.one("limited"), lambda: None, at_once=True) == [("allowed", None)] * 2


def test_a_filter_for_outcomes_takes_rows_when_they_have_ended(followed: Followed, session: Session) -> None:
    row_id = session.one("slow").row_id
    ok, failed = Wanted(None, outcomes=frozenset({"ok"})), Wanted(None, outcomes=frozenset({"tool_error"}))
    assert followed.rows(lambda: end(session, row_id), lambda: None, wanted=ok) == [("allowed", "ok")]
    assert followed.rows(lambda: None, wanted=failed) == []


def test_it_ends_when_time_and_outcomes_are_over(followed: Followed, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    session.one("slow")
    until_us = wall_us() + 3_600_000_000
    wanted = Wanted(None, until_us=until_us)
    assert followed.rows(lambda: None, wanted=wanted) == []
    clock = iter([until_us + 9_999_999, until_us + 10_000_000])
    monkeypatch.setattr(following, "wall_us", lambda: next(clock))
    pages = [one for _, one in following.follow(followed.settings, wanted, followed.said.append, lambda _: None, outcome_s=10)]
    assert [row.outcome for page in pages for row in page] == [None]
    assert next(clock, None) is None


@pytest.mark.posix
def test_it_waits_for_a_store_and_goes_on_in_one_that_replaces_it(followed: Followed) -> None:
    def replace() -> None:
        followed.remove()
        followed.call()

    assert followed.rows(followed.call, lambda: None, replace, lambda: None) == [("allowed", "ok")] * 2
    assert "no audit log yet" in followed.said[0]
    assert "was removed or replaced" in followed.said[1]


@pytest.mark.posix
def test_an_error_of_a_store_that_was_replaced_meanwhile_is_none(followed: Followed, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        if is_removed:
            followed.remove()
        monkeypatch.undo()
        raise StoreUnavailable("it cannot be read", "")

    followed.call()
    is_removed = True
    monkeypatch.setattr(SqliteReader, "rows", fail)
    assert followed.rows(followed.call, lambda: None) == [("allowed", "ok")]
    is_removed = False
    monkeypatch.setattr(SqliteReader, "rows", fail)
    with pytest.raises(StoreUnavailable, match="it cannot be read"):
        followed.rows(lambda: None)
