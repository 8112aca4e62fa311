"""Calls in flight on a server: their places have leases, which a wrapper renews, and loses if it is stopped for long."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mcpguard.session.verdict import Ending
from mcpguard.stores.redis.link import Link
from mcpguard.stores.redis.server import LEASE_US
from mcpguard.stores.redis.store import RedisStore
from tests.build import WALL_US, Session, Time
from tests.callers import Caller
from tests.redis_servers import Server, running, wait_for
from tests.stores.conftest import around_next
from tests.stores.redis.conftest import PATIENT, Opened, keys

ONE = '[[rule]]\ntool = "x"\nconcurrent = 1\n'
LEASE_MS = LEASE_US // 1000
Guards = Callable[..., list["Guard"]]


class Guard(Caller):
    """A wrapper whose calls take as long as the test wants."""

    store: RedisStore

    def decision(self, tool: str = "x") -> str:
        """The decision on a call."""
        (word,) = self.words(tool)
        return word

    @property
    def losses(self) -> int:
        """How many losses the user is told when the store is tended."""
        self.store.tend()
        loss = "this process was stopped, or cut off from the store, for 30 s or more"
        return sum(one.startswith(loss) for one in self.store.warnings)


@pytest.fixture
def time() -> Time:
    return Time(WALL_US)


@pytest.fixture
def guards(opened: Opened, time: Time) -> Guards:
    """Makes two wrappers with one policy."""

    def make(policy: str = ONE) -> list[Guard]:
        return [Guard(opened(clocks=(time, Time(WALL_US))), policy, session=name * 16) for name in "ab"]

    return make


def test_a_place_is_free_when_its_lease_has_ended_and_not_a_microsecond_earlier(guards: Guards, time: Time) -> None:
    dead, other = guards()
    assert dead.decision() == "allowed"
    time.now_us += LEASE_US - 1
    assert (other.decision(), other.used) == ("rate_limited", [1])
    time.now_us += 1
    assert other.used == []
    assert other.store.peek(other.charges("x")[0].plan.counters)[0] == [()]
    assert other.decision() == "allowed"


def test_a_wrapper_that_is_tended_keeps_its_place_as_long_as_the_call_takes(guards: Guards, time: Time) -> None:
    one, other = guards()
    assert not one.store.needs_tending
    one.decision()
    for _ in range(10):
        assert one.store.needs_tending
        time.pass_ms(LEASE_MS // 3)
        assert one.losses == 0
        assert other.decision() == "rate_limited"
    one.end()
    assert not one.store.needs_tending
    assert other.decision() == "allowed"


@pytest.mark.parametrize("ends_before", [False, True])
def test_each_place_that_was_given_to_another_call_is_told_once_and_not_renewed(
    guards: Guards, time: Time, *, ends_before: bool
) -> None:
    stopped, other = guards()
    for _ in range(2):
        stopped.decision()
        time.pass_ms(LEASE_MS)
        assert other.decision() == "allowed"
        if ends_before:
            stopped.end()
        assert stopped.store.needs_tending
        assert (stopped.losses, other.used, stopped.losses) == (1, [1], 0)
        assert not stopped.store.needs_tending
        if not ends_before:
            stopped.end()
        assert other.used == [1]
        other.end()


@pytest.mark.parametrize("ends", [True, False])
def test_a_place_that_nobody_took_is_not_lost_after_its_lease(guards: Guards, time: Time, *, ends: bool) -> None:
    stopped, other = guards()
    stopped.decision()
    time.pass_ms(2 * LEASE_MS)
    if ends:
        stopped.end()
    assert stopped.losses == 0
    assert other.decision() == ("allowed" if ends else "rate_limited")


def test_a_denied_call_takes_no_place_away(guards: Guards, time: Time) -> None:
    stopped, other = guards(ONE + '[[rule]]\nuser = "*"\nlimit = "1/1h"\n')
    stopped.decision()
    time.pass_ms(LEASE_MS)
    assert other.decision() == "rate_limited"
    assert (stopped.losses, stopped.used) == (0, [1, 1])


@pytest.mark.parametrize("ends_soon", [False, True])
def test_a_reset_frees_the_places_and_is_no_loss(guards: Guards, time: Time, *, ends_soon: bool) -> None:
    one, other = guards()
    one.decision()
    assert other.store.reset([one.label for one in other.store.counters()]) == 1
    assert other.decision() == "allowed"
    if ends_soon:
        one.end()
    time.pass_ms(LEASE_MS // 2)
    assert one.losses == 0
    if not ends_soon:
        one.end()
    assert other.used == [1]


def test_a_call_has_a_place_on_each_of_its_caps_and_one_of_them_can_be_lost(guards: Guards, time: Time) -> None:
    stopped, other = guards(ONE + '[[rule]]\nuser = "*"\nconcurrent = 9\n')
    stopped.decision()
    time.pass_ms(LEASE_MS)
    other.decision("y")
    for losses in (1, 0):
        assert stopped.losses == losses
        time.pass_ms(LEASE_MS // 3)
        other.store.tend()
    assert other.used == [1, 1]
    assert other.decision() == "rate_limited"
    stopped.end()
    assert other.decision() == "allowed"


def test_calls_admitted_without_the_store_have_leases_that_are_renewed(guards: Guards, time: Time) -> None:
    one, other = guards()
    (request,) = one.charges("x")
    other.decision()
    one.store.give_places({-7: request.plan.counters, -(2**63): request.plan.counters})
    time.pass_ms(LEASE_MS // 2)
    one.store.tend()
    time.pass_ms(LEASE_MS // 2)
    assert one.used == [2]
    one.store.settle([Ending(-7, request.plan, failed=False)])
    assert one.used == [1]
    assert one.store.needs_tending


def interrupt(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], object]) -> None:
    """Let something happen between the server's next reply and its arrival."""
    around_next(monkeypatch, Link, "exchange", after=happens)


def test_a_call_whose_place_was_given_away_before_its_verdict_arrived_is_decided_anew_and_has_one_row(
    guards: Guards, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped, other = guards()

    def sleep() -> None:
        time.pass_ms(LEASE_MS)
        assert other.decision() == "allowed"

    interrupt(monkeypatch, sleep)
    assert stopped.decision() == "rate_limited"
    told = [(one.record["session"], one.record["seq"], one.record["decision"]) for one in stopped.store.entries()]
    assert told == [("b" * 16, 1, "allowed"), ("a" * 16, 1, "rate_limited")]
    assert stopped.losses == 0
    assert not stopped.store.needs_tending
    assert other.used == [1]


def test_a_late_verdict_counts_if_nobody_took_its_place(guards: Guards, time: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped, other = guards()
    interrupt(monkeypatch, lambda: time.pass_ms(LEASE_MS))
    assert stopped.decision() == "allowed"
    time.now_us += LEASE_US - 1
    assert other.decision() == "rate_limited"


def test_a_renewal_that_fails_is_tried_again_soon(time: Time, tmp_path: Path) -> None:
    with running(tmp_path / "redis", "--appendonly", "yes", "--appendfsync", "always") as server:
        one = Guard(RedisStore(server.address, PATIENT, clock=time, wall=Time(WALL_US)), ONE)
        one.decision()
        server.kill()
        time.pass_ms(LEASE_MS // 3)
        assert one.losses == 0
        server.start()
        wait_for(lambda: server.command("PING").startswith(b"+PONG"), "it does not load its data")
        assert one.losses == 0  # not at once
        time.pass_ms(LEASE_MS // 30)
        assert one.losses == 0
        time.pass_ms(LEASE_MS - 1)
        assert one.used == [1]


def test_the_set_of_a_counter_expires_after_its_leases(server: Server) -> None:
    Session(RedisStore(server.address, PATIENT), ONE).call("x")
    (key,) = keys(server, "in_flight")
    assert LEASE_MS < int(server.command("PTTL", key)[1:]) <= 3_600_000


def test_the_first_call_after_the_place_was_freed_names_the_counter_again(guards: Guards, server: Server) -> None:
    one, other = guards()
    one.decision()
    one.end()
    server.command("DEL", "{mcpguard:default}:counters")
    other.decision()
    assert other.used == [1]


def test_by_the_machines_own_clock_too_a_place_is_kept_while_its_wrapper_runs_and_lost_if_it_is_stopped(server: Server) -> None:
    stopped, other = (Caller(RedisStore(server.address, PATIENT, lease_us=3_000_000), ONE, session=name * 16) for name in "ab")
    assert stopped.words("x") == ["allowed"]
    (key,) = keys(server, "in_flight")
    leases: set[bytes] = set()

    def is_renewed_twice() -> bool:
        stopped.store.tend()
        leases.add(server.command("ZRANGE", key, "0", "-1", "WITHSCORES"))
        return len(leases) > 2

    wait_for(is_renewed_twice, "the lease is not renewed")
    assert stopped.store.warnings == other.store.warnings
    assert other.words("x") == ["rate_limited"]
    wait_for(lambda: other.words("x") == ["allowed"], "the place is never free")
    stopped.store.tend()
    assert "this process was stopped" in stopped.store.warnings[-1]
    assert stopped.words("x") == ["rate_limited"]
