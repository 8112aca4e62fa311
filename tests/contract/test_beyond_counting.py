"""Errors, calls in flight, and calls that are held: what the vectors do not tell, for every kind of store."""

from mcpguard.limiter.sliding import EMPTY, MAX_ENTRIES, used
from mcpguard.session.verdict import Ending
from tests.callers import Caller
from tests.contract.conftest import Place

TWO_IN_FLIGHT = '[[rule]]\ntool = "*"\nuser = "*"\nper = []\nconcurrent = 2\n'
TWO_ERRORS = '[[rule]]\ntool = "report"\nlimit = "2/1m"\ncount = "errors"\n'


def test_errors_beyond_the_limit_take_bounded_memory_and_the_retry_time_stays_exact(place: Place) -> None:
    callers = [Caller(place.open(), TWO_ERRORS, session=f"{at:016x}") for at in range(2)]
    for caller in callers:
        caller.decide(*["report"] * 75)
    for at in range(150):
        callers[at % 2].end(failed=True)
        place.pass_us(10_000)
    (held,) = place.read().counters()
    assert (held.used, len(held.log)) == (150, 1 + 2 * MAX_ENTRIES)
    for caller in callers:
        (denied,) = caller.decide("report")
        assert denied.retry_after_us == 60_000_000 - 2 * 10_000, "when the last error but one leaves the window"


def test_a_call_is_freed_once_however_often_it_is_settled(place: Place) -> None:
    caller = Caller(place.open(), TWO_IN_FLIGHT)
    caller.decide("report", "report")
    call = caller.end()
    caller.decide("report")
    for _ in range(2):
        caller.store.settle([Ending(*call, False)] * 2)
    assert caller.words("report") == ["rate_limited"]
    caller.store.settle([Ending(10**9, call[1], False)])  # a call that has no row
    assert caller.words("report") == ["rate_limited"]


def test_an_ending_that_changes_nothing_does_not_use_the_store(place: Place) -> None:
    caller = Caller(place.open(), TWO_ERRORS)
    caller.decide("report")
    place.close()
    caller.end()


def test_counters_and_peek_tell_the_calls_in_flight(place: Place) -> None:
    caller = Caller(place.open(), TWO_IN_FLIGHT)
    caller.decide("report", "report")
    (row_id, plan), (other_id, _) = caller.flying
    reader = place.read()
    assert [(held.label, held.used, held.log) for held in reader.counters()] == [(plan.counters[0].label, 2, ())]
    states, _ = reader.peek(plan.counters)
    assert sorted(states[0]) == sorted([row_id, other_id])
    caller.end()
    assert reader.peek(plan.counters)[0] == [(other_id,)]
    caller.end()
    assert reader.counters() == []


def test_the_logs_last_seen_are_those_of_the_last_decision_and_error_without_the_calls_in_flight(place: Place) -> None:
    caller = Caller(place.open(), TWO_IN_FLIGHT + TWO_ERRORS + '[[rule]]\ntool = "report"\nlimit = "3/1m"\n')
    caller.decide("report")
    logs = {counter.id: counter for counter in caller.plans[0].counters if counter.window_us}
    for errors in range(2):
        seen, now_us = caller.store.last_seen()
        assert (now_us, caller.store.forgotten_until_us) == (place.time(), 0)
        states = dict(zip(logs, place.read().peek([*logs.values()])[0], strict=True))
        assert dict.fromkeys(logs, EMPTY) | seen == states
        assert sorted(map(used, states.values())) == [errors, 1]
        if not errors:
            place.pass_ms(1000)
            caller.end(failed=True)


def test_a_held_call_has_no_row_and_charges_nothing_and_is_told_the_states(place: Place) -> None:
    policy = '[[rule]]\ntool = "report"\nlimit = "2/1s"\nwait = "5s"\nconcurrent = 2\n'
    caller = Caller(place.open(), policy)
    caller.decide("report", "report")
    rows = len(list(caller.store.entries()))
    place.pass_ms(400)
    (held,) = caller.decide("report", waited_us=0)
    assert (held.decision, held.row_id, held.now_us) == ("held", None, place.time())
    windows = [counter.window_us for counter in caller.flying[0][1].counters]
    states = dict(zip(windows, held.states, strict=True))
    assert sorted(states[0]) == [row_id for row_id, _ in caller.flying]
    assert states[1_000_000][1::2] == (place.time() - 400_000,) * 2
    place.pass_ms(600)
    assert caller.words("report", waited_us=600_000) == ["held"]  # the cap has no room
    caller.end()
    assert caller.words("report", waited_us=600_000, is_behind=True) == ["held"]
    assert (len(list(caller.store.entries())), caller.used) == (rows, [1])
    assert caller.words("report", waited_us=600_000) == ["allowed"]
    assert caller.words("report", waited_us=5_000_000) == ["rate_limited"]
