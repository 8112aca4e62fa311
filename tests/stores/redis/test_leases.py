"""Calls in flight on a server: their places have leases, which a wrapper renews, and loses if it is stopped for long."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mcpguard.errors import StoreUnavailable
from mcpguard.limiter.plan import Counter
from mcpguard.session.verdict import Ending, Verdict
from mcpguard.stores.api import Options
from mcpguard.stores.outage.store import OutageStore
from mcpguard.stores.redis.scripts import LEASE_US
from mcpguard.stores.redis.store import RedisStore
from tests.build import WALL_US, Session, Time, Wrapper
from tests.redis_servers import Server, running, wait_for
from tests.stores.conftest import Worker

PATIENT = Options(timeout_ms=20_000)
TWO = '[[rule]]\ntool = "x"\nconcurrent = 2\n'
ONE = '[[rule]]\ntool = "x"\nconcurrent = 1\n'
LEASE_MS = LEASE_US // 1000


class Guard(Session):
    """A wrapper whose calls take as long as the test wants."""

    store: RedisStore

    def __init__(self, server: Server, time: Time, policy: str, name: str) -> None:
        store = RedisStore(server.address, PATIENT, clock=time, wall=Time(WALL_US))
        super().__init__(store, policy, session=name * 16)
        self.endings: list[Ending] = []

    def begin(self, tool: str = "x") -> Verdict:
        """Make a call."""
        (request,) = self.charges(tool)
        (verdict,) = self.store.decide([request], self.journal)
        if verdict.forwards:
            self.endings.append(Ending(verdict.row_id or 0, request.plan, failed=False))
        return verdict

    def decision(self) -> str:
        return self.begin().decision

    def end(self) -> None:
        """End the oldest call."""
        self.store.settle([self.endings.pop(0)])

    @property
    def used(self) -> list[int]:
        """How many calls are in flight."""
        return [held.used for held in self.store.held()]

    def told(self) -> tuple[str, ...]:
        """What the user is told after the store was tended."""
        self.store.tend()
        return self.store.warnings[len(self.store._server_warnings) :]


@pytest.fixture
def time() -> Time:
    return Time(WALL_US)


@pytest.fixture
def guards(server: Server, time: Time) -> Iterator[Callable[..., tuple[Guard, Guard]]]:
    """Makes two wrappers with one policy."""
    made: list[Guard] = []

    def make(policy: str = ONE) -> tuple[Guard, Guard]:
        made.extend(Guard(server, time, policy, name) for name in ("a", "b"))
        return made[-2], made[-1]

    yield make
    for guard in made:
        guard.store.close()


Guards = Callable[..., tuple[Guard, Guard]]


def test_all_wrappers_together_have_no_more_calls_in_flight_than_the_cap(guards: Guards) -> None:
    one, other = guards(TWO)
    verdicts = [one.begin(), other.begin(), other.begin()]
    assert [verdict.decision for verdict in verdicts] == ["allowed", "allowed", "rate_limited"]
    assert [verdict.in_flight for verdict in verdicts] == [1, 2, 2]
    assert (verdicts[2].reason, verdicts[2].retry_after_us) == ("concurrent", None)
    assert one.used == other.used == [2]
    one.end()
    assert other.decision() == "allowed"


def test_the_end_of_a_call_frees_its_place_once(guards: Guards) -> None:
    one, other = guards(TWO)
    first, _ = one.begin(), other.begin()
    ending = one.endings[0]
    for _ in range(2):
        one.store.settle([ending])
    assert one.used == [1]
    assert first.row_id == ending.row_id
    assert [one.decision(), one.decision()] == ["allowed", "rate_limited"]


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
    verdict = one.begin()
    assert verdict.lease is not None
    for _ in range(10):
        assert one.store.needs_tending
        time.pass_ms(LEASE_MS // 3)
        assert time() < verdict.lease.until_us
        assert one.told() == ()
        assert other.decision() == "rate_limited"
    one.end()
    assert not one.store.needs_tending
    assert other.decision() == "allowed"


def test_leases_are_renewed_only_when_a_third_has_passed(guards: Guards, time: Time, server: Server) -> None:
    one, _ = guards()
    one.begin()
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


def test_a_place_that_was_given_to_another_call_is_not_renewed_and_the_user_is_told_once(guards: Guards, time: Time) -> None:
    stopped, other = guards()
    lease = stopped.begin().lease
    assert lease is not None
    time.pass_ms(LEASE_MS)
    assert other.decision() == "allowed"
    (told,) = stopped.told()
    assert told.startswith("this process was stopped, or cut off from the store, for 30 s or more")
    assert time() > lease.until_us
    assert other.used == [1]
    assert stopped.told() == ()
    assert not stopped.store.needs_tending
    stopped.end()
    assert other.used == [1]


def test_each_loss_is_told(guards: Guards, time: Time) -> None:
    stopped, other = guards()
    for _ in range(2):
        assert stopped.decision() == "allowed"
        time.pass_ms(LEASE_MS)
        assert other.decision() == "allowed"
        assert len(stopped.told()) == 1
        stopped.end()
        other.end()


def test_a_loss_is_told_even_if_the_call_ends_before_its_lease_would_be_renewed(guards: Guards, time: Time) -> None:
    stopped, other = guards()
    stopped.begin()
    time.pass_ms(LEASE_MS)
    assert other.decision() == "allowed"
    stopped.end()
    assert stopped.store.needs_tending
    assert len(stopped.told()) == 1
    assert not stopped.store.needs_tending


def test_a_call_that_ends_after_its_lease_has_lost_nothing_if_nobody_took_its_place(guards: Guards, time: Time) -> None:
    stopped, other = guards()
    stopped.begin()
    time.pass_ms(2 * LEASE_MS)
    stopped.end()
    assert stopped.told() == ()
    assert other.decision() == "allowed"


def test_a_place_that_nobody_took_is_renewed_after_its_lease(guards: Guards, time: Time) -> None:
    stopped, other = guards()
    stopped.begin()
    time.pass_ms(2 * LEASE_MS)
    assert stopped.told() == ()
    assert other.decision() == "rate_limited"


def test_a_denied_call_takes_no_place_away(guards: Guards, time: Time) -> None:
    stopped, other = guards('[[rule]]\ntool = "x"\nconcurrent = 1\n[[rule]]\nuser = "*"\nlimit = "1/1h"\n')
    stopped.begin()
    time.pass_ms(LEASE_MS)
    assert other.begin().reason == "rate_limited"
    assert stopped.told() == ()
    assert stopped.used[-1] == 1


def test_a_reset_frees_the_places_and_is_no_loss(guards: Guards, time: Time) -> None:
    one, other = guards()
    one.begin()
    assert other.store.reset([held.label for held in other.store.held()]) == 1
    assert other.decision() == "allowed"
    time.pass_ms(LEASE_MS // 2)
    assert one.told() == ()
    one.end()
    assert other.used == [1]


def test_a_call_has_a_place_on_each_of_its_caps_and_one_of_them_can_be_lost(guards: Guards, time: Time) -> None:
    policy = ONE + '[[rule]]\nuser = "*"\nconcurrent = 9\n'
    stopped, other = guards(policy)
    verdict = stopped.begin()
    assert (verdict.in_flight, stopped.used) == (1, [1, 1])
    time.pass_ms(LEASE_MS)
    assert other.begin("y").in_flight == 1
    assert verdict.lease is not None
    for tells in (True, False):
        assert bool(stopped.told()) == tells
        assert time() > verdict.lease.until_us
        time.pass_ms(LEASE_MS // 3)
        other.store.tend()
    assert sorted(other.used) == [1, 1]
    assert other.decision() == "rate_limited"
    stopped.end()
    assert other.decision() == "allowed"


def test_an_observed_cap_without_room_gets_no_place(guards: Guards, time: Time) -> None:
    one, other = guards('[[rule]]\ntool = "x"\nconcurrent = 1\nmode = "observe"\n')
    assert (one.decision(), other.decision()) == ("allowed", "would_deny")
    assert other.used == [1]
    assert not other.store.needs_tending


class Interrupted:
    """A connection on which something happens between the server's reply and its arrival."""

    def __init__(self, guard: Guard, monkeypatch: pytest.MonkeyPatch, happens: Callable[[], object]) -> None:
        exchange = guard.store._link.exchange

        def late(packed: bytes, *, deadline_s: float) -> Any:
            reply = exchange(packed, deadline_s=deadline_s)
            monkeypatch.undo()
            happens()
            return reply

        monkeypatch.setattr(guard.store._link, "exchange", late)


def test_a_call_is_not_forwarded_if_its_place_was_given_away_before_its_verdict_arrived(
    guards: Guards, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped, other = guards()

    def sleep() -> None:
        time.pass_ms(LEASE_MS)
        assert other.decision() == "allowed"

    Interrupted(stopped, monkeypatch, sleep)
    assert stopped.decision() == "rate_limited", "it was decided anew"
    assert stopped.told() == ()
    assert not stopped.store.needs_tending
    assert other.used == [1]


def test_a_call_whose_verdict_arrives_late_is_forwarded_if_nobody_took_its_place(
    guards: Guards, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped, other = guards()
    Interrupted(stopped, monkeypatch, lambda: time.pass_ms(LEASE_MS))
    verdict = stopped.begin()
    assert verdict.decision == "allowed"
    assert verdict.lease is not None
    assert verdict.lease.until_us > time()
    time.now_us += LEASE_US - 1
    assert other.decision() == "rate_limited"


def test_a_call_that_is_decided_anew_has_one_row(guards: Guards, time: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped, other = guards()

    def sleep() -> None:
        time.pass_ms(LEASE_MS)
        other.begin()

    Interrupted(stopped, monkeypatch, sleep)
    assert stopped.decision() == "rate_limited"
    mine = [entry.record for entry in stopped.store.entries() if entry.record["session"] == stopped.journal.session]
    assert [(record["seq"], record["decision"]) for record in mine] == [(1, "rate_limited")]


def test_only_a_call_with_a_place_has_a_lease(guards: Guards, time: Time) -> None:
    one, _ = guards()
    verdicts = [one.begin("free"), one.begin(), one.begin()]
    assert [verdict.lease is None for verdict in verdicts] == [True, False, True]
    lease = verdicts[1].lease
    assert lease is not None
    assert time() < lease.until_us < time() + LEASE_US


def test_calls_admitted_without_the_store_get_places_whether_there_is_room_or_not(guards: Guards, time: Time) -> None:
    one, other = guards()
    (request,) = one.charges("x")
    counters: tuple[Counter, ...] = request.plan.counters
    other.begin()
    one.store.give_places({-7: counters, -(2**63): counters})
    assert one.used == [3]
    assert {-7, -(2**63)} < set(one.store.peek(counters)[0][0])
    time.pass_ms(LEASE_MS // 2)
    one.store.tend()
    time.pass_ms(LEASE_MS // 2)
    assert one.used == [2]
    one.store.settle([Ending(-7, request.plan, failed=False)])
    assert one.used == [1]
    assert one.store.needs_tending


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

    Interrupted(one, monkeypatch, sleep)
    assert one.decision() == "allowed"


def test_a_renewal_that_fails_is_tried_again_soon(server: Server, time: Time, tmp_path: Path) -> None:
    with running(tmp_path / "redis", "--appendonly", "yes", "--appendfsync", "always") as own:
        one = Guard(own, time, ONE, "a")
        one.begin()
        own.kill()
        time.pass_ms(LEASE_MS // 3)
        assert one.told() == ()
        own.start()
        wait_for(lambda: own.command("PING").startswith(b"+PONG"), "it does not load its data")
        assert one.told() == ()  # not at once
        time.pass_ms(LEASE_MS // 30)
        assert one.told() == ()
        time.pass_ms(LEASE_MS - 1)
        assert one.used == [1]
        one.store.close()


def keys(server: Server, kind: str) -> list[str]:
    return [word for word in server.command("KEYS", "*").decode().split("\r\n") if f":{kind}:" in word]


def test_the_set_of_a_counter_expires_after_its_leases(server: Server) -> None:
    session = Session(RedisStore(server.address, PATIENT), ONE)
    session.call("x")
    (key,) = keys(server, "in_flight")
    assert LEASE_MS < int(server.command("PTTL", key)[1:]) <= 3_600_000


def test_upkeep_drops_the_label_of_a_counter_without_calls_in_flight_and_no_other(server: Server) -> None:
    session = Session(RedisStore(server.address, PATIENT), ONE + '[[rule]]\ntool = "y"\nconcurrent = 1\n')
    session.call("x")
    (gone,) = keys(server, "in_flight")
    server.command("DEL", gone)
    session.call("y")
    session.store.tend()
    assert [held.used for held in session.store.held()] == [1]
    assert server.command("HLEN", "{mcpguard:default}:counters") == b":1\r\n"


def test_the_first_call_after_the_place_was_freed_names_the_counter_again(guards: Guards, server: Server) -> None:
    one, other = guards()
    one.begin()
    one.end()
    server.command("DEL", "{mcpguard:default}:counters")
    other.begin()
    assert other.used == [1]


def test_a_server_without_memory_refuses_a_call_with_a_cap_and_gives_it_no_place(tmp_path: Path) -> None:
    with running(tmp_path / "redis") as own:
        session = Session(RedisStore(own.address, PATIENT), TWO)
        session.call("x")
        own.command("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(StoreUnavailable, match=r"refuses: .*maxmemory"):
            session.call("x")
        own.command("CONFIG", "SET", "maxmemory", "0")
        assert [held.used for held in session.store.held()] == [1]


FAILING = '[[rule]]\ntool = "x"\nlimit = "2/1h"\ncount = "errors"\n'


def test_errors_are_counted_once_even_if_the_servers_clock_is_ahead(server: Server) -> None:
    session = Session(RedisStore(server.address, PATIENT), FAILING)
    (request,) = session.charges("x")
    (verdict,) = session.store.decide([request], session.journal)
    session.store._ahead_us -= 3_600_000_000  # type: ignore[attr-defined]
    session.store.settle([Ending(verdict.row_id or 0, request.plan, failed=True)])
    assert [held.used for held in session.store.held()] == [1]


def test_an_error_that_the_server_would_count_too_late_is_not_counted_and_told_to_the_caller(server: Server) -> None:
    session = Session(RedisStore(server.address, PATIENT), FAILING)
    (request,) = session.charges("x")
    (verdict,) = session.store.decide([request], session.journal)
    session.store._timeout_us = -3_600_000_000  # type: ignore[attr-defined]
    with pytest.raises(StoreUnavailable, match="starts scripts too late"):
        session.store.settle([Ending(verdict.row_id or 0, request.plan, failed=True)])
    assert session.store.held() == []


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
        assert verdict.lease is not None
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
        for store in (wrapper, other.store):
            store.close()


Start = Callable[[], Worker]


@pytest.fixture
def start(server: Server, start_module: Callable[..., Worker]) -> Start:
    """Starts wrappers as processes, with leases of a second."""
    return lambda: start_module("tests.stores.redis.worker", f"unix://{server.folder / 's'}", "1000")


def ask(worker: Worker, word: str) -> str:
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write(word + "\n")
    return worker.stdout.readline().strip()


def renewals(server: Server) -> Callable[[], bool]:
    """Returns a function that tells whether a lease was renewed twice since this was called."""
    (key,) = keys(server, "in_flight")
    seen: set[bytes] = set()

    def twice() -> bool:
        seen.add(server.command("ZRANGE", key, "0", "-1", "WITHSCORES"))
        return len(seen) > 2

    return twice


def test_the_place_of_a_process_that_was_killed_is_free_after_its_lease_and_not_while_it_lives(
    server: Server, start: Start
) -> None:
    one, other = start(), start()
    assert ask(one, "call") == "allowed"
    wait_for(renewals(server), "the lease is not renewed")
    assert ask(other, "call") == "rate_limited"
    one.kill()
    wait_for(lambda: ask(other, "call") == "allowed", "the place is never free")
    assert ask(other, "told") == ""


def test_a_process_that_was_stopped_for_longer_than_its_lease_says_so_and_takes_nothing_back(
    server: Server, start: Start
) -> None:
    stopped, other = start(), start()
    assert ask(stopped, "call") == "allowed"
    stopped.send_signal(signal.SIGSTOP)
    wait_for(lambda: ask(other, "call") == "allowed", "the place is never free")
    stopped.send_signal(signal.SIGCONT)
    wait_for(lambda: "this process was stopped" in ask(stopped, "told"), "it says nothing")
    assert ask(stopped, "told").count("this process was stopped") == 1
    assert ask(stopped, "call") == "rate_limited"
    assert ask(stopped, "end") == "ended"
    assert ask(stopped, "call") == "rate_limited"
    assert ask(other, "end") == "ended"
    assert ask(stopped, "call") == "allowed"
