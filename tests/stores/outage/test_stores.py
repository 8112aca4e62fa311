"""Outages of a file and of a server: what is counted over them."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mcpguard.errors import StoreUnavailable
from mcpguard.limiter.plan import label_parts
from mcpguard.stores.api import Options, Store
from mcpguard.stores.redis.store import RedisStore
from mcpguard.stores.sqlite.store import SqliteStore
from tests.redis_servers import running
from tests.stores.conftest import around_next, raising
from tests.stores.outage.moody import Killed, Place

Opens = Callable[[], Store]


@pytest.fixture(params=["file", "server"])
def opens(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opens]:
    """Opens a store."""
    if request.param == "file":
        yield lambda: SqliteStore(tmp_path / "mcpguard.db")
    else:
        with running(tmp_path / "redis") as server:
            yield lambda: RedisStore(server.address, Options(timeout_ms=5000))


POLICY = (
    '[[rule]]\ntool = "*"\nconcurrent = 3\n'
    '[[rule]]\nuser = "*"\ncount = "errors"\nlimit = "4/1h"\n'
    '[[rule]]\nuser = "*"\ncount = "cost"\nlimit = "100/1h"\n'
    '[[cost]]\ntool = "search"\ncost = 7\n'
)


class Guard(Place):
    """A wrapper that a test cuts off from a real store."""

    def __init__(self, opens: Opens, policy: str = POLICY, **options: Any) -> None:
        self._opens = opens
        super().__init__(policy=policy, **options)

    def open(self) -> Store:  # type: ignore[override]
        self.reach("open")
        self.reached = self._opens()
        return self.reached

    def cut_off(self) -> None:
        self.fail("open")
        self.store.begin_after(self.reached, StoreUnavailable("it is gone"))
        self.store.tend()  # closes the store that failed

    def refusal(self) -> str | None:
        verdict = self.one()
        assert not verdict.forwards
        return verdict.reason


def used(opens: Opens) -> dict[str, int]:
    with contextlib.closing(opens()) as store:
        return {label_parts(one.label).counts: one.used for one in store.counters()}


@pytest.fixture
def guard(opens: Opens) -> Iterator[Guard]:
    one = Guard(opens)
    yield one
    one.store.close()


@pytest.fixture
def other(opens: Opens) -> Iterator[Guard]:
    one = Guard(opens, session="00000000000000bb")
    yield one
    one.store.close()


def test_after_an_outage_a_store_has_its_calls_in_flight_errors_and_cost(opens: Opens, guard: Guard, other: Guard) -> None:
    before, ended = guard.starts(), guard.starts()
    guard.stops(ended, failed=True)
    guard.cut_off()
    during = [guard.starts(), guard.starts()]
    assert guard.refusal() == "concurrent"
    guard.stops(during.pop(), failed=True)
    during.append(guard.starts())
    guard.mend()
    assert used(opens) == {"concurrent": 3, "errors": 2, "cost": 5 * 7}
    assert (guard.refusal(), other.refusal()) == ("concurrent", "concurrent")
    guard.stops(before, during[0], failed=True)
    assert (guard.refusal(), other.refusal()) == ("failing", "failing")
    guard.cut_off()
    assert guard.refusal() == "failing"
    guard.stops(during[1], failed=True)
    guard.mend()
    assert used(opens) == {"errors": 5, "cost": 5 * 7}


@pytest.mark.parametrize("ends_together", [True, False])
def test_a_wrapper_without_its_store_knows_the_errors_of_its_calls(guard: Guard, *, ends_together: bool) -> None:
    calls = [guard.starts() for _ in range(3)]
    for some in [calls] if ends_together else [[call] for call in calls]:
        guard.stops(*some, failed=True)
    guard.cut_off()
    guard.stops(guard.starts(), failed=True)  # the fourth error
    assert guard.refusal() == "failing"


def test_no_other_wrapper_gets_the_place_of_a_call_of_one_that_is_cut_off(opens: Opens, guard: Guard, other: Guard) -> None:
    calls = [guard.starts() for _ in range(3)]
    for _ in range(3):
        guard.cut_off()
        assert other.refusal() == "concurrent"
        guard.mend()
        assert other.refusal() == "concurrent"
        assert used(opens)["concurrent"] == 3
    guard.cut_off()
    guard.stops(calls[0])
    guard.mend()
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


def test_rows_that_a_store_took_just_before_a_wrapper_was_killed_are_not_written_twice(
    tmp_path: Path, opens: Opens, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = '[[rule]]\nuser = "*"\nlimit = "9/1h"\n'
    guard = Guard(opens, policy, folder=tmp_path)
    kind = type(guard.reached)
    guard.cut_off()
    guard.call(3)
    around_next(monkeypatch, kind, "append", after=raising(Killed()))
    with pytest.raises(Killed):
        guard.mend()
    guard.kill()
    after = Guard(opens, policy, folder=tmp_path, session="00000000000000bb")
    assert after.call() == ["allowed"]
    after.store.tend()
    assert list(tmp_path.glob("db-outage-*")) == []
    with contextlib.closing(opens()) as reader:
        assert len(list(reader.entries())) == 3 + 1
        assert [one.used for one in reader.counters()] == [3 + 1]
    after.store.close()
    guard.store.close()


@pytest.mark.posix
def test_a_removed_file_is_reported_and_created_again(tmp_path: Path) -> None:
    path = tmp_path / "state" / "mcpguard.db"
    guard = Guard(lambda: SqliteStore(path), policy='[[rule]]\nuser = "*"\nlimit = "3/1h"\n')
    guard.session.call("search", 3)
    guard.store.tend()
    for file in path.parent.iterdir():
        file.unlink()
    guard.store.tend()
    assert "was removed or replaced" in guard.said[-1]
    assert guard.session.decisions("search") == ["rate_limited"]
    guard.mend()
    while guard.store.needs_tending:
        guard.time.now_us += 61_000_000
        guard.store.tend()
    assert path.stat().st_mode & 0o777 == 0o600
    assert [line.split(":")[0] for line in guard.said] == ["store unavailable", "store is back"]
    guard.store.close()
