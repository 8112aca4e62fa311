"""Outages of a file and of a server: what is counted over them, and what an SQLite store refuses."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mcpguard.errors import StoreUnavailable
from mcpguard.limiter.plan import label_parts
from mcpguard.stores.api import Store
from mcpguard.stores.outage.breaker import PROBE_US
from mcpguard.stores.outage.log import OutageFolder
from mcpguard.stores.outage.store import OutageStore
from mcpguard.stores.sqlite.store import SqliteStore
from tests.build import Time, Wrapper
from tests.stores.outage.conftest import Opens
from tests.stores.outage.moody import Caller

POLICY = """
[[rule]]
tool = "*"
concurrent = 3

[[rule]]
user = "*"
count = "errors"
limit = "4/1h"

[[rule]]
user = "*"
count = "cost"
limit = "100/1h"

[[cost]]
tool = "search"
cost = 7
"""


class Guard(Caller):
    """A wrapper that a test cuts off from its store."""

    def __init__(
        self, opens: Opens, session: str = "00000000000000aa", policy: str = POLICY, folder: OutageFolder | None = None
    ) -> None:
        self.is_away = False
        self.time = Time()
        self._opens = opens
        self.store = OutageStore(
            self._open, mode="local", notify=lambda _: None, folder=folder, timeout_ms=30_000, clock=self.time
        )
        assert self.store.args_key  # it has been opened
        self.session = Wrapper(self.store, policy, session=session)

    def _open(self) -> Store:
        if self.is_away:
            raise StoreUnavailable("it is away")
        return self._opens()

    def cut_off(self) -> None:
        self.is_away = True
        with self.store._lock:
            self.store._fail(StoreUnavailable("it is away"))
        self.store.tend()  # closes the store that failed

    def comes_back(self) -> None:
        self.is_away = False
        self.time.now_us += PROBE_US[1]
        self.store.tend()
        assert self.store._store is not None

    def refusal(self) -> str | None:
        verdict = self.session.one("search")
        assert not verdict.forwards
        return verdict.reason


def used(opens: Opens) -> dict[str, int]:
    with contextlib.closing(opens()) as store:
        return {label_parts(one.label).counts: one.used for one in store.counters()}


@pytest.fixture
def guards(opens: Opens) -> Iterator[tuple[Guard, Guard]]:
    one, other = Guard(opens), Guard(opens, "00000000000000bb")
    yield one, other
    one.store.close()
    other.store.close()


def test_after_an_outage_a_store_has_the_calls_in_flight_the_errors_and_the_cost_of_it(
    opens: Opens, guards: tuple[Guard, Guard]
) -> None:
    guard, other = guards
    before, ended = guard.starts(), guard.starts()
    guard.stops(ended, failed=True)
    guard.cut_off()
    during = [guard.starts(), guard.starts()]
    assert guard.refusal() == "concurrent"
    guard.stops(during.pop(), failed=True)
    during.append(guard.starts())
    guard.comes_back()
    assert used(opens) == {"concurrent": 3, "errors": 2, "cost": 5 * 7}
    assert (guard.refusal(), other.refusal()) == ("concurrent", "concurrent")
    guard.stops(before, during[0], failed=True)
    assert (guard.refusal(), other.refusal()) == ("failing", "failing")
    guard.cut_off()
    assert guard.refusal() == "failing"
    guard.stops(during[1], failed=True)
    guard.comes_back()
    assert used(opens) == {"errors": 5, "cost": 5 * 7}


@pytest.mark.parametrize("ends_together", [True, False])
def test_a_wrapper_that_loses_its_store_knows_the_errors_of_its_own_calls(
    guards: tuple[Guard, Guard], *, ends_together: bool
) -> None:
    guard, _ = guards
    calls = [guard.starts() for _ in range(3)]
    for some in [calls] if ends_together else [[call] for call in calls]:
        guard.stops(*some, failed=True)
    guard.cut_off()
    guard.stops(guard.starts(), failed=True)  # the fourth error
    assert guard.refusal() == "failing"


def test_no_other_wrapper_gets_the_place_of_a_call_whose_wrapper_is_cut_off_for_a_while(
    opens: Opens, guards: tuple[Guard, Guard]
) -> None:
    guard, other = guards
    calls = [guard.starts() for _ in range(3)]
    for _ in range(3):
        guard.cut_off()
        assert other.refusal() == "concurrent"
        guard.comes_back()
        assert other.refusal() == "concurrent"
        assert used(opens)["concurrent"] == 3
    guard.cut_off()
    guard.stops(calls[0])
    guard.comes_back()
    other.starts()
    guard.stops(*calls[1:])
    assert used(opens)["concurrent"] == 1


def test_a_counter_that_only_refused_calls_have_used_is_counted_from_zero(opens: Opens) -> None:
    policy = '[[rule]]\nuser = "*"\nlimit = "1/1m"\n[[rule]]\ntool = "*"\nlimit = "2/1h"\n'
    guard = Guard(opens, policy=policy)
    assert guard.session.decisions("other") + guard.session.decisions("search") == ["allowed", "rate_limited"]
    guard.cut_off()
    for expected in ("allowed", "allowed", "rate_limited"):
        guard.time.now_us += 61_000_000
        assert guard.session.decisions("search") == [expected]
    guard.store.close()


class Killed(BaseException):
    """The process is killed here."""


def test_rows_that_a_store_took_just_before_a_wrapper_was_killed_are_not_written_twice(tmp_path: Path, opens: Opens) -> None:
    policy, folder = '[[rule]]\nuser = "*"\nlimit = "9/1h"\n', OutageFolder(tmp_path, "db-outage-")
    guard = Guard(opens, policy=policy, folder=folder)
    kind = type(guard.store._store)
    guard.cut_off()
    guard.session.call("x", 3)
    append = kind.append  # type: ignore[union-attr]

    def append_and_die(self: Any, rows: Any) -> None:
        append(self, rows)
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "append", append_and_die)
        with pytest.raises(Killed):
            guard.comes_back()
    assert guard.store._own_logs.reading is not None
    guard.store._own_logs.reading.close()  # as the system does when the process is killed
    after = Guard(opens, "00000000000000bb", policy, folder)
    assert after.session.decisions("x") == ["allowed"]
    after.store.tend()
    assert list(tmp_path.glob("db-outage-*")) == []
    with contextlib.closing(opens()) as reader:
        assert len(list(reader.entries())) == 3 + 1
        assert [one.used for one in reader.counters()] == [3 + 1]
    after.store.close()
    guard.store.close()


# a file that cannot be used


class OnFile(Guard):
    """A wrapper with a store in a file, and what it says."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.said: list[str] = []
        self.time = Time()
        self.begin()

    def begin(self) -> None:
        self.store = OutageStore(
            lambda: SqliteStore(self.path, clock=self.time),
            mode="local",
            notify=self.said.append,
            timeout_ms=30_000,
            clock=self.time,
        )
        self.session = Wrapper(self.store, '[[rule]]\nuser = "*"\nlimit = "3/1h"\n')

    def probe(self) -> None:
        self.time.now_us += PROBE_US[1]
        self.store.tend()


@pytest.fixture
def on_file(tmp_path: Path) -> Iterator[OnFile]:
    guard = OnFile(tmp_path / "state" / "mcpguard.db")
    yield guard
    guard.store.close()


def test_a_file_that_cannot_be_opened_at_the_start_is_used_as_soon_as_it_can(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("in the way")
    guard = OnFile(tmp_path / "state" / "mcpguard.db")
    assert guard.session.decisions("search", 4) == ["allowed"] * 3 + ["rate_limited"]
    (tmp_path / "state").unlink()
    guard.probe()
    with contextlib.closing(SqliteStore(guard.path, clock=guard.time)) as store:
        assert [one.used for one in store.counters()] == [3]
    guard.store.close()


def test_a_damaged_database_is_reported_and_not_recreated(on_file: OnFile) -> None:
    on_file.session.call("search")
    on_file.store.close()
    for file in on_file.path.parent.glob("mcpguard.db*"):
        file.write_bytes(b"not a database at all" * 100)
    on_file.begin()
    on_file.probe()
    assert "damaged" in on_file.said[-1]
    assert on_file.store.needs_tending
    assert on_file.path.read_bytes().startswith(b"not a database")


@pytest.mark.posix
def test_a_removed_file_is_reported_and_created_again(on_file: OnFile) -> None:
    on_file.session.call("search", 3)
    on_file.store.tend()
    for file in on_file.path.parent.iterdir():
        file.unlink()
    on_file.store.tend()
    assert "was removed or replaced" in on_file.said[-1]
    assert on_file.session.decisions("search") == ["rate_limited"]
    on_file.probe()
    on_file.probe()
    assert not on_file.store.needs_tending
    assert on_file.path.stat().st_mode & 0o777 == 0o600
    assert [line.split(":")[0] for line in on_file.said] == ["store unavailable", "store is back"]
