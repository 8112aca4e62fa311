"""Calls in flight on a server: their places have leases, which a wrapper renews, and loses if it is stopped for long."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mcpguard.session.verdict import Ending
from mcpguard.stores.outage.store import OutageStore
from mcpguard.stores.redis.server import LEASE_US
from mcpguard.stores.redis.store import RedisStore
from tests.build import WALL_US, Session, Time, Wrapper
from tests.callers import Caller
from tests.redis_servers import Server, running, wait_for
from tests.stores.redis.conftest import PATIENT, keys

ONE = '[[rule]]\ntool = "x"\nconcurrent = 1\n'
LEASE_MS = LEASE_US // 1000
Guards = Callable[..., list["Guard"]]


class Guard(Caller):
    """A wrapper whose calls take as long as the test wants."""

    store: RedisStore

    def __init__(self, server: Server, time: Time, policy: str, name: str) -> None:
        super().__init__(RedisStore(server.address, PATIENT, clock=time, wall=Time(WALL_US)), policy, session=name * 16)

    def decision(self, tool: str = "x") -> str:
        """The decision on a call."""
        (word,) = self.words(tool)
        return word

    @property
    def losses(self) -> int:
        """How many losses the user is told when the store is tended."""
        self.store.tend()
        told = self.store.warnings[len(self.store._server.warnings) :]
        assert all(one.startswith("this process was stopped, or cut off from the store, for 30 s or more") for one in told)
        return len(told)


@pytest.fixture
def time() -> Time:
    return Time(WALL_US)


@pytest.fixture
def guards(server: Server, time: Time) -> Iterator[Guards]:
    """Makes two wrappers with one policy."""
    made: list[Guard] = []

    def make(policy: str = ONE) -> list[Guard]:
        made.extend(Guard(server, time, policy, name) for name in "ab")
        return made[-2:]

    yield make
    for guard in made:
        guard.store.close()


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


def test_leases_are_renewed_only_when_a_third_has_passed(guards: Guards, time: Time, server: Server) -> None:
    one, _ = guards()
    one.decision()
    key = keys(server, "in_flight")[0]
    (member,) = [word for word in server.command("ZRANGE", key, "0", "-1").split(b"\r\n") if b"-" in word]

    def until_us() -> int:
        return int(float(server.command("ZSCORE", key, member).split(b"\r\n")[1])) - WALL_US

    time.now_us += LEASE_US // 3 - 1
    one.store.tend()
    assert until_us() == LEASE_US
    time.now_us += LEASE_US // 30
    one.store.tend()
    assert until_us() == time() - WALL_US + LEASE_US


def test_each_place_that_was_given_to_another_call_is_told_once_and_not_renewed(guards: Guards, time: Time) -> None:
    stopped, other = guards()
    for _ in range(2):
        stopped.decision()
        time.pass_ms(LEASE_MS)
        assert other.decision() == "allowed"
        assert (stopped.losses, other.used, stopped.losses) == (1, [1], 0)
        assert not stopped.store.needs_tending
        stopped.end()
        assert other.used == [1]
        other.end()


def test_a_loss_is_told_even_if_the_call_ends_before_its_lease_would_be_renewed(guards: Guards, time: Time) -> None:
    stopped, other = guards()
    stopped.decision()
    time.pass_ms(LEASE_MS)
    assert other.decision() == "allowed"
    stopped.end()
    assert stopped.store.needs_tending
    assert stopped.losses == 1
    assert not stopped.store.needs_tending


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


def test_a_reset_frees_the_places_and_is_no_loss(guards: Guards, time: Time) -> None:
    one, other = guards()
    one.decision()
    assert other.store.reset([one.label for one in other.store.counters()]) == 1
    assert other.decision() == "allowed"
    time.pass_ms(LEASE_MS // 2)
    assert one.losses == 0
    one.end()
    assert other.used == [1]


def test_a_call_that_ends_soon_after_a_reset_has_lost_nothing(guards: Guards) -> None:
    one, _ = guards()
    one.decision()
    assert one.store.reset([one.label for one in one.store.counters()]) == 1
    one.end()
    assert one.losses == 0


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


def test_an_observed_cap_without_room_gives_no_place(guards: Guards) -> None:
    one, other = guards(ONE + 'mode = "observe"\n')
    assert (one.decision(), other.decision()) == ("allowed", "would_deny")
    assert other.used == [1]
    assert not other.store.needs_tending


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


def interrupt(guard: Guard, monkeypatch: pytest.MonkeyPatch, happens: Callable[[], object]) -> None:
    """Let something happen between the server's next reply to the wrapper and its arrival."""
    exchange = guard.store._server._link.exchange

    def late(*packed: Any, **more: Any) -> list[Any]:
        reply = exchange(*packed, **more)
        monkeypatch.undo()
        happens()
        return reply

    monkeypatch.setattr(guard.store._server._link, "exchange", late)


def test_a_call_whose_place_was_given_away_before_its_verdict_arrived_is_decided_anew_and_has_one_row(
    guards: Guards, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped, other = guards()

    def sleep() -> None:
        time.pass_ms(LEASE_MS)
        assert other.decision() == "allowed"

    interrupt(stopped, monkeypatch, sleep)
    assert stopped.decision() == "rate_limited"
    records = [entry.record for entry in stopped.store.entries()]
    mine = [(one["seq"], one["decision"]) for one in records if one["session"] == stopped.journal.session]
    assert mine == [(1, "rate_limited")]
    assert stopped.losses == 0
    assert not stopped.store.needs_tending
    assert other.used == [1]


def test_a_call_whose_verdict_arrives_late_is_forwarded_if_nobody_took_its_place(
    guards: Guards, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped, other = guards()
    interrupt(stopped, monkeypatch, lambda: time.pass_ms(LEASE_MS))
    assert stopped.decision() == "allowed"
    time.now_us += LEASE_US - 1
    assert other.decision() == "rate_limited"


def test_scripts_for_calls_in_flight_are_sent_again_to_a_server_that_has_forgotten_them(
    guards: Guards, time: Time, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = guards()
    (request,) = one.charges("x")
    server.command("SCRIPT", "FLUSH")
    one.store.give_places({-1: request.plan.counters})
    server.command("SCRIPT", "FLUSH")
    one.store.settle([Ending(-1, request.plan, failed=False)])

    def sleep() -> None:
        time.pass_ms(LEASE_MS)
        server.command("SCRIPT", "FLUSH")

    interrupt(one, monkeypatch, sleep)
    assert one.decision() == "allowed"


def test_a_renewal_that_fails_is_tried_again_soon(time: Time, tmp_path: Path) -> None:
    with running(tmp_path / "redis", "--appendonly", "yes", "--appendfsync", "always") as server:
        one = Guard(server, time, ONE, "a")
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


def test_calls_of_a_plan_that_counts_no_errors_and_has_no_cap_cost_no_command_when_they_end(guards: Guards) -> None:
    one, _ = guards()
    (request,) = one.charges("free")
    one.store.close()
    one.store.settle([Ending(1 << 64, request.plan, failed=True)])


@pytest.mark.parametrize("keeps_data", [True, False])
def test_a_call_that_outlives_a_restart_of_the_server_has_its_place_again(tmp_path: Path, *, keeps_data: bool) -> None:
    with running(tmp_path / "redis", "--appendonly", "yes" if keeps_data else "no", "--appendfsync", "always") as own:
        time, said = Time(), list[str]()
        wrapper = OutageStore(
            lambda: RedisStore(own.address, PATIENT), mode="local", notify=said.append, timeout_ms=30_000, clock=time
        )
        session = Wrapper(wrapper, ONE)
        (request,) = session.charges("x")
        (verdict,) = wrapper.decide([request], session.journal)
        own.kill()
        assert session.decisions("x") == ["rate_limited"]
        own.start()

        def is_back() -> bool:
            time.pass_s(10)
            wrapper.tend()
            return said[-1].startswith("store is back")

        wait_for(is_back, "the store is not used again")
        other = Session(RedisStore(own.address, PATIENT), ONE, session="b" * 16)
        assert other.decisions("x") == ["rate_limited"]
        wrapper.settle([Ending(verdict.row_id or 0, request.plan, failed=False)])
        assert other.decisions("x") == ["allowed"]
        wrapper.close()


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
