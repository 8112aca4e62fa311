"""What holds whenever the store of a wrapper fails and comes back."""

from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    rule,
    run_state_machine_as_test,
)

from mcpguard.limiter.plan import label_parts
from mcpguard.session.verdict import Ending
from mcpguard.stores.memory import MemoryStore
from mcpguard.stores.outage.log import Bounds
from tests.stores.outage.conftest import Locks
from tests.stores.outage.moody import OPERATIONS, Place

CALLS, UNITS, ERRORS, IN_FLIGHT, WINDOW_US = 6, 20, 2, 3, 60_000_000
COSTS = {"cheap": 1, "dear": 6}
POLICY = (
    f'[[rule]]\nuser = "*"\nlimit = "{CALLS}/1m"\nconcurrent = {IN_FLIGHT}\n'
    f'[[rule]]\nuser = "*"\ncount = "cost"\nlimit = "{UNITS}/1m"\n'
    f'[[rule]]\nuser = "*"\ncount = "errors"\nlimit = "{ERRORS}/1m"\n'
    f'[[cost]]\ntool = "dear"\ncost = {COSTS["dear"]}\n'
)


class Outages(RuleBasedStateMachine):
    """One wrapper with `local`, whose store fails at any operation, and a model of what the wrapper has done."""

    calls = Bundle("calls")
    bounds = Bounds()

    def __init__(self) -> None:
        super().__init__()
        self.place = Place(policy=POLICY, bounds=self.bounds)
        self.admitted: list[tuple[int, int]] = []  # time and cost
        self.failed: list[int] = []
        self.in_flight: set[int] = set()
        self.has_lost_data = False

    @property
    def costs(self) -> list[int]:
        """Of the calls that were admitted in the last window."""
        return [cost for at, cost in self.admitted if at > self.place.time() - WINDOW_US]

    @property
    def errors(self) -> int:
        """How many calls failed in the last window."""
        return sum(at > self.place.time() - WINDOW_US for at in self.failed)

    @rule(target=calls, tool=st.sampled_from([*COSTS]), told=st.booleans())
    def call(self, tool: str, told: bool) -> Ending | None:
        (request,) = self.place.session.charges(tool)
        errors = self.errors
        if not told:
            self.place.forgotten.update(self.place.memory.states)
        (verdict,) = self.place.store.decide([request], self.place.session.journal)
        if not verdict.forwards:
            return None
        assert self.has_lost_data or errors < ERRORS
        assert verdict.row_id is not None
        self.admitted.append((self.place.time(), COSTS[tool]))
        self.in_flight.add(verdict.row_id)
        return Ending(verdict.row_id, request.plan, failed=False)

    @rule(call=consumes(calls), failed=st.booleans())
    def end(self, call: Ending | None, failed: bool) -> None:
        assume(call is not None)
        assert call is not None
        self.in_flight.discard(call.row_id)
        if failed:
            self.failed.append(self.place.time())
        self.place.store.settle([call._replace(failed=failed)])

    @rule(operations=st.sets(st.sampled_from(OPERATIONS), min_size=1), opens=st.booleans())
    def fail(self, operations: set[str], opens: bool) -> None:
        self.place.fail(*operations, *([] if opens else ["open"]))

    @rule()
    def try_again(self) -> None:
        self.place.probe()

    @rule(seconds=st.integers(1, 40))
    def wait(self, seconds: int) -> None:
        self.place.time.pass_s(seconds)

    @rule()
    def lose_data(self) -> None:
        self.has_lost_data = True
        self.place.lose_data()
        if not self.place.is_cut_off:
            self.place.store.tend()  # it is noticed

    @rule()
    def mend(self) -> None:
        self.place.failing = {}
        self.place.forgotten.clear()
        self.place.probe()
        assert not self.place.is_cut_off
        totals = {"concurrent": 0, "calls": 0, "cost": 0, "errors": 0}
        for held in MemoryStore(self.place.memory, clock=self.place.time).counters():
            totals[label_parts(held.label).counts] = held.used
        assert totals["concurrent"] == len(self.in_flight)
        if not self.has_lost_data:
            assert totals["calls"] == len(self.costs)
            assert totals["cost"] == sum(self.costs)
            assert totals["errors"] == self.errors

    @invariant()
    def never_over(self) -> None:
        assert len(self.in_flight) <= IN_FLIGHT
        if not self.has_lost_data:
            assert len(self.costs) <= CALLS
            assert sum(self.costs) <= UNITS


@pytest.mark.parametrize(("bounds", "examples"), [(Bounds(), 60), (Bounds(batch=1), 30)], ids=["at once", "in many batches"])
def test_a_wrapper_is_never_over_its_limits_and_the_store_has_what_it_did_once_it_is_back(
    monkeypatch: pytest.MonkeyPatch, bounds: Bounds, examples: int
) -> None:
    monkeypatch.setattr(Outages, "bounds", bounds)
    run_state_machine_as_test(Outages, settings=settings(max_examples=examples, stateful_step_count=40))


def test_only_one_thread_at_a_time_can_use_the_store(monkeypatch: pytest.MonkeyPatch, locks: Locks) -> None:
    place = Place(policy='[[rule]]\nuser = "*"\nconcurrent = 2\n')
    used: list[tuple[str, int]] = []

    def watched(name: str, use: Callable[..., object], *args: object) -> object:
        used.append((name, locks.held))
        return use(*args)

    names = ["decide", "settle", "record", "append", "take_note", "catch_up", "close"]
    for name in names:
        monkeypatch.setattr(place.opened[0], name, partial(watched, name, getattr(place.opened[0], name)))
    place.stops(place.starts())
    place.store.record([])
    place.store.append([])
    place.store.take_note("default", "x")
    place.store.catch_up()
    place.store.close()
    assert used == [(name, 1) for name in names]
