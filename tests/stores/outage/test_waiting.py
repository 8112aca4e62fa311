"""A store that does not answer delays one call by its budget, and no later one."""

import errno
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace

import pytest

from mcpguard.errors import StoreUnavailable
from mcpguard.session.audit import Outcome, Row
from mcpguard.stores.memory import MemoryStore, SharedMemory
from mcpguard.stores.outage import breaker
from mcpguard.stores.outage.breaker import PROBE_US, STEP_S, CircuitBreaker, Connector
from mcpguard.stores.outage.store import OutageStore
from tests.build import Time, Wrapper
from tests.stores.conftest import broken
from tests.stores.outage.conftest import Locks
from tests.stores.outage.moody import LIMIT_3, Place, in_outage

ENOUGH_S = 30


class Door:
    """A wrapper whose store opens when the test says so."""

    def __init__(self, *, timeout_ms: int = 10) -> None:
        self.memory = SharedMemory()
        self.go_on = threading.Event()
        self.failure: Exception | None = None
        self.closed = threading.Event()
        self.said: list[str] = []
        self.time = Time()
        self.store = OutageStore(
            self.open, mode="local", notify=self.said.append, timeout_ms=timeout_ms, clock=self.time, wall=self.time
        )

    def open(self) -> MemoryStore:
        assert self.go_on.wait(ENOUGH_S)
        if self.failure:
            raise self.failure
        store = MemoryStore(self.memory, clock=self.time)
        store.close = self.closed.set  # type: ignore[method-assign]
        return store

    def used(self) -> list[int]:
        return [held.used for held in MemoryStore(self.memory, clock=self.time).counters()]

    def decisions(self) -> list[object]:
        return [entry.record["decision"] for entry in MemoryStore(self.memory).entries()]

    def tend_until(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + ENOUGH_S
        while not done():
            assert time.monotonic() < deadline
            self.store.tend()


@pytest.fixture
def door() -> Iterator[Door]:
    one = Door()
    yield one
    one.go_on.set()
    one.store.close()


def test_calls_do_without_a_store_that_does_not_open_in_time_until_it_opens(door: Door) -> None:
    session = Wrapper(door.store, LIMIT_3)
    assert session.decisions("x", 4) == ["allowed"] * 3 + ["rate_limited"]
    assert "store unavailable: it does not open in time" in door.said[0]
    door.store.tend()
    assert door.store.needs_tending
    door.go_on.set()
    door.tend_until(lambda: not door.store.needs_tending)
    assert door.used() == [3]
    assert len(door.said) == 2
    assert session.decisions("x") == ["rate_limited"]


def test_only_a_call_waits_for_a_store_to_open_and_other_rows_are_written_when_it_opens(door: Door) -> None:
    session = Wrapper(door.store, LIMIT_3)
    session.start()
    door.store.append(session.journal.flush(0))
    door.store.tend()
    assert door.said == []
    door.go_on.set()
    door.tend_until(lambda: not door.store.needs_tending)
    assert door.said == []
    assert session.decisions("x") == ["allowed"]
    assert door.decisions() == ["policy", "allowed"]


def test_a_session_without_a_call_still_writes_its_policy_row() -> None:
    door = Door(timeout_ms=30_000)
    Wrapper(door.store, LIMIT_3).start()
    door.go_on.set()
    door.store.close()
    assert door.decisions() == ["policy"]


def test_the_reason_why_a_store_did_not_open_is_reported_when_it_is_known(door: Door) -> None:
    door.failure = StoreUnavailable("it is a teapot")
    Wrapper(door.store, LIMIT_3).call("x")
    door.go_on.set()
    door.tend_until(lambda: len(door.said) > 1)
    assert "it is a teapot" in door.said[1]
    door.time.now_us += PROBE_US[1]
    door.store.tend()
    assert len(door.said) == 2


@pytest.mark.parametrize("before", range(6))
def test_a_wrapper_that_started_without_its_store_admits_equal_calls_up_to_the_limit(door: Door, before: int) -> None:
    policy = '[[rule]]\nuser = "*"\nper = ["arguments"]\nlimit = "5/1h"\n[[rule]]\nuser = "*"\nlimit = "100/1h"\n'
    session = Wrapper(door.store, policy, args_key=lambda: door.store.args_key)

    def admitted(times: int) -> int:
        return sum(session.call("x", arguments={"a": 1})[0].forwards for _ in range(times))

    assert admitted(before) == before
    door.go_on.set()
    door.time.now_us += PROBE_US[1]
    door.tend_until(lambda: not door.store.needs_tending)
    assert admitted(8) == 5 - before
    assert session.call("x", arguments={"a": 2})[0].forwards
    other = Wrapper(door.store, policy, args_key=lambda: door.store.args_key, session="00000000000000bb")
    assert sum(other.call("x", arguments={"a": 1})[0].forwards for _ in range(8)) == before, "those of the outage are apart"
    door.time.now_us += 3600_000_000
    assert admitted(8) == 5


def events(monkeypatch: pytest.MonkeyPatch, kind: type[threading.Event] = threading.Event) -> list[threading.Event]:
    """The events that tell the ends of attempts to open a store."""
    made: list[threading.Event] = []

    def make() -> threading.Event:
        made.append(kind())
        return made[-1]

    monkeypatch.setattr(breaker, "threading", SimpleNamespace(Thread=threading.Thread, Lock=threading.Lock, Event=make))
    return made


@pytest.mark.parametrize("is_open", [False, True])
def test_a_store_that_opens_around_the_end_of_the_session_is_closed(monkeypatch: pytest.MonkeyPatch, *, is_open: bool) -> None:
    opened = events(monkeypatch)
    door = Door()
    if is_open:
        door.go_on.set()
        assert opened[0].wait(ENOUGH_S)
    door.store.close()
    door.go_on.set()
    assert door.closed.wait(ENOUGH_S)


@pytest.mark.parametrize(("step", "in_time"), [(50, True), (51, False)])
def test_a_wait_for_the_store_has_as_many_steps_as_fit_into_its_timeout_however_long_a_busy_machine_takes_for_each(
    monkeypatch: pytest.MonkeyPatch, step: int, *, in_time: bool
) -> None:
    door = Door(timeout_ms=0)
    steps_s: list[float | None] = []

    class Slow(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            steps_s.append(timeout)
            if len(steps_s) < step:
                return False
            door.go_on.set()
            return super().wait(ENOUGH_S)

    events(monkeypatch, Slow)
    connector = Connector(door.open)
    assert connector.wait(50 * STEP_S) is in_time
    assert steps_s == [STEP_S] * 50
    assert connector.wait(STEP_S)
    connector.abandon()
    door.store.close()


def test_the_end_of_a_session_waits_in_one_step_on_a_busy_machine_too(monkeypatch: pytest.MonkeyPatch) -> None:
    waits_s: list[float | None] = []

    class Never(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits_s.append(timeout)
            return False

    events(monkeypatch, Never)
    door = Door()
    assert Wrapper(door.store, LIMIT_3).decisions("x") == ["allowed"]
    waits_s.clear()
    door.store.close()
    assert waits_s == [0.01]  # the time limit of a call, which is shorter than `LAST_TRY_S`
    door.go_on.set()
    assert door.closed.wait(ENOUGH_S)


def test_in_an_outage_there_are_no_notes_and_only_the_first_request_reaches_the_store() -> None:
    place = Place()
    place.fail("take_note")
    for _ in range(3):
        assert place.store.take_note("default", "t1") == ""
    assert [name for name, _ in place.asked] == ["take_note"]
    assert len(place.said) == 1
    assert place.call(4) == ["allowed"] * 3 + ["rate_limited"]


def test_a_failed_store_is_closed_by_upkeep_and_not_by_a_call() -> None:
    place = in_outage()
    place.call(3)
    assert place.opened[0].closed_by is None
    place.store.tend()
    assert place.opened[0].closed_by is not None


def test_a_store_that_fails_as_it_is_opened_is_closed_by_upkeep_and_not_by_the_call() -> None:
    door = Door(timeout_ms=30_000)
    session = Wrapper(door.store, LIMIT_3)
    session.start()  # it is written when the store opens
    with broken(MemoryStore, "append", StoreUnavailable("it is full")):
        door.go_on.set()
        assert session.decisions("x") == ["allowed"]
    assert "it is full" in door.said[0]
    assert not door.closed.is_set()
    door.store.tend()
    assert door.closed.is_set()
    door.store.close()


@pytest.mark.parametrize("failing", ["decide", "append", "record", "settle", "tend"])
def test_an_undocumented_exception_of_a_store_is_an_outage_and_not_a_crash(failing: str) -> None:
    place = Place(policy=LIMIT_3 + "concurrent = 9\n")
    call = place.starts()
    place.failing[failing] = ZeroDivisionError("a bug")
    place.call(2)
    place.store.append(place.session.journal.flush(0, all_of_them=True))
    place.store.record([Outcome(call.row_id, "ok", 1000)])
    place.stops(call)
    place.store.tend()
    assert "internal error: ZeroDivisionError('a bug')" in place.said[0]
    place.mend()
    place.store.tend()
    assert place.used() == [3, 2]
    assert place.outcomes().count("ok") == 1


@pytest.mark.parametrize("failing", ["open", "adopt", "append"])
def test_an_undocumented_exception_during_a_probe_keeps_the_breaker_open(failing: str) -> None:
    place = in_outage()
    place.call(2)
    place.failing = {failing: ZeroDivisionError("a bug")}
    place.probe()
    assert place.store.needs_tending
    place.mend()
    assert place.used() == [2]


def test_a_probe_while_the_first_call_writes_the_buffer_neither_closes_its_store_nor_opens_a_second_one(locks: Locks) -> None:
    writing, go_on = threading.Event(), threading.Event()

    class Slow(Door):
        opened = 0

        def open(self) -> MemoryStore:
            store = super().open()
            self.opened += 1
            append = store.append

            def slow(rows: Sequence[Row]) -> list[int]:
                writing.set()
                assert go_on.wait(ENOUGH_S)
                return append(rows)

            store.append = slow  # type: ignore[method-assign]
            return store

    door = Slow(timeout_ms=1000 * ENOUGH_S)
    session = Wrapper(door.store, LIMIT_3)
    session.start()  # the store is not open yet, so the buffer keeps the row
    door.go_on.set()
    call = threading.Thread(target=session.decisions, args=("x",))
    call.start()
    assert writing.wait(ENOUGH_S)
    probe = threading.Thread(target=door.store.tend)
    probe.start()
    assert locks.is_waited_for.wait(ENOUGH_S)
    go_on.set()
    for thread in (call, probe):
        thread.join(ENOUGH_S)
    assert (door.opened, door.closed.is_set(), door.used(), door.said) == (1, False, [1], [])
    door.store.close()


def test_upkeep_that_outlives_the_store_is_no_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    door = Door(timeout_ms=1000 * ENOUGH_S)
    tending, go_on = threading.Event(), threading.Event()

    def tend(_: MemoryStore) -> None:
        tending.set()
        assert go_on.wait(ENOUGH_S)
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(MemoryStore, "tend", tend)
    door.go_on.set()
    assert Wrapper(door.store, LIMIT_3).decisions("x") == ["allowed"]
    bookkeeper = threading.Thread(target=door.store.tend)
    bookkeeper.start()
    assert tending.wait(ENOUGH_S)
    door.store.close()
    go_on.set()
    bookkeeper.join(ENOUGH_S)
    door.store.tend()
    door.store.record([Outcome(1, "ok", 5)])
    assert door.said == []


@pytest.mark.parametrize("drawn", [0, 1_000_000, PROBE_US[1] - PROBE_US[0] - 1])
def test_a_probe_is_due_when_its_random_time_has_come_and_not_before(drawn: int) -> None:
    clock = Time()
    circuit = CircuitBreaker(clock, lambda bound: min(drawn, bound - 1))
    circuit.trip(StoreUnavailable("gone"))
    clock.now_us += PROBE_US[0] + drawn - 1
    assert not circuit.is_probe_due
    clock.now_us += 1
    assert circuit.is_probe_due
    assert PROBE_US[0] + drawn < PROBE_US[1]


def test_only_the_first_failure_of_each_outage_is_told() -> None:
    circuit, gone, full = CircuitBreaker(Time(), lambda bound: bound // 4), StoreUnavailable("gone"), StoreUnavailable("full")
    for _ in range(3):
        circuit.close()
        assert circuit.trip(gone)
        circuit.begin_probe()
        assert circuit.state == "half-open"
        assert not circuit.trip(full)
        assert (circuit.state, circuit.failure, circuit.is_probe_due) == ("open", full, False)
        circuit.begin_probe()
