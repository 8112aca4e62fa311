"""Calls in flight, errors and cost over outages of a file and of a server."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mcpguard.errors import StoreUnavailable
from mcpguard.limiter.plan import label_parts
from mcpguard.stores.api import Options, Store
from mcpguard.stores.outage.breaker import PROBE_US
from mcpguard.stores.outage.store import OutageStore
from mcpguard.stores.redis.store import RedisStore
from mcpguard.stores.sqlite.store import SqliteStore
from tests.build import Time, Wrapper
from tests.redis_servers import running
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

Opens = Callable[[], Store]


@pytest.fixture(params=["file", "server"])
def opens(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opens]:
    if request.param == "file":
        yield lambda: SqliteStore(tmp_path / "mcpguard.db")
    else:
        with running(tmp_path / "redis") as server:
            yield lambda: RedisStore(server.address, Options(timeout_ms=5000))


class Guard(Caller):
    """A wrapper that a test cuts off from its store."""

    def __init__(self, opens: Opens, session: str = "00000000000000aa", policy: str = POLICY) -> None:
        self.is_away = False
        self.time = Time()
        self._opens = opens
        self.store = OutageStore(self._open, mode="local", notify=lambda _: None, timeout_ms=30_000, clock=self.time)
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
        return {label_parts(held.label).counts: held.used for held in store.held()}


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
