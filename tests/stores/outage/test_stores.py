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
from tests.stores.outage.moody import Place

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


def used(opens: Opens) -> dict[str, int]:
    with contextlib.closing(opens()) as store:
        return {label_parts(one.label).counts: one.used for one in store.counters()}


@pytest.fixture
def guards(opens: Opens) -> Iterator[list[Guard]]:
    """Two wrappers of one store."""
    both = [Guard(opens, session=name * 16) for name in "ab"]
    yield both
    for one in both:
        one.store.close()


def test_after_an_outage_a_store_has_its_calls_in_flight_errors_and_cost(opens: Opens, guards: list[Guard]) -> None:
    guard, other = guards
    before, ended = guard.starts(), guard.starts()
    guard.stops(ended, failed=True)
    guard.cut_off()
    during = [guard.starts(), guard.starts()]
    assert guard.refusal().reason == "concurrent"
    guard.stops(during.pop(), failed=True)
    during.append(guard.starts())
    guard.mend()
    assert used(opens) == {"concurrent": 3, "errors": 2, "cost": 5 * 7}
    assert (guard.refusal().reason, other.refusal().reason) == ("concurrent", "concurrent")
    guard.stops(before, during[0], failed=True)
    assert (guard.refusal().reason, other.refusal().reason) == ("failing", "failing")
    guard.cut_off()
    assert guard.refusal().reason == "failing"
    guard.stops(during[1], failed=True)
    guard.mend()
    assert used(opens) == {"errors": 5, "cost": 5 * 7}


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
