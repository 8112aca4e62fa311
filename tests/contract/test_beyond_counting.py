"""Limits on cost and errors, caps on calls in flight, and calls that are held: the same for every kind of store."""

from mcpguard.limiter.sliding import MAX_ENTRIES
from mcpguard.session.verdict import Ending
from tests.callers import Caller
from tests.contract.conftest import Place

TWO_IN_FLIGHT = '[[rule]]\ntool = "*"\nuser = "*"\nper = []\nconcurrent = 2\n'
TEN_UNITS = '[[rule]]\ntool = "report"\nlimit = "10/1m"\ncount = "cost"\n[[cost]]\ntool = "report"\ncost = 4\n'
TWO_ERRORS = '[[rule]]\ntool = "report"\nlimit = "2/1m"\ncount = "errors"\n'


# Cost


def test_a_limit_on_cost_counts_units_exactly(place: Place) -> None:
    caller = Caller(place.open(), TEN_UNITS)
    assert caller.words("report", "report") == ["allowed", "allowed"]
    place.pass_ms(10_000)
    (denied,) = caller.decide("report")
    assert (denied.decision, denied.count, denied.cost, denied.retry_after_us) == ("rate_limited", 9, 4, 50_000_000)
    assert caller.used == [8]
    place.pass_ms(49_999)
    assert caller.words("report") == ["rate_limited"]
    place.pass_ms(1)
    other = Caller(place.open(), TEN_UNITS, session="b" * 16)
    assert other.words("report", "report", "report") == ["allowed", "allowed", "rate_limited"]


def test_units_within_a_grain_are_summed_up_in_every_handle(place: Place) -> None:
    policy = TEN_UNITS.replace("10/1m", "1000/1m")
    callers = [Caller(place.open(), policy, session=f"{at:016x}") for at in range(2)]
    for at in range(250):
        assert callers[at % 2].words("report") == ["allowed"]
        place.pass_us(40_000)
    assert callers[0].used == [1000]
    assert [caller.words("report") for caller in callers] == [["rate_limited"]] * 2


# Errors


def test_only_calls_that_fail_are_counted_as_errors_and_the_retry_time_is_exact(place: Place) -> None:
    caller = Caller(place.open(), TWO_ERRORS)
    assert caller.words("report", "report", "report", "report") == ["allowed"] * 4
    caller.end()
    assert caller.used == []
    caller.end(failed=True)
    place.pass_ms(20_000)
    caller.end(failed=True)
    (denied,) = caller.decide("report")
    assert (denied.reason, denied.count, denied.retry_after_us) == ("failing", 3, 40_000_000)
    caller.end(failed=True)  # it was in flight when the limit was reached
    assert caller.used == [3]
    place.pass_ms(40_000)
    assert caller.words("report") == ["rate_limited"]
    other = Caller(place.open(), TWO_ERRORS, session="b" * 16)
    place.pass_ms(20_000)
    assert other.words("report") == ["allowed"]


def test_a_failed_call_counts_on_each_of_its_limits_on_errors(place: Place) -> None:
    policy = TWO_ERRORS + '[[rule]]\nuser = "*"\nlimit = ["3/1h", "9/1d"]\ncount = "errors"\n'
    caller = Caller(place.open(), policy)
    assert caller.words("report", "search") == ["allowed"] * 2
    caller.end(failed=True)
    assert caller.used == [1, 1, 1]
    caller.end(failed=True)
    assert caller.used == [1, 2, 2]


def test_errors_that_are_settled_together_are_all_counted(place: Place) -> None:
    caller = Caller(place.open(), TWO_ERRORS)
    caller.decide("report", "report")
    caller.store.settle([Ending(*call, True) for call in caller.flying])
    assert caller.used == [2]
    reader = place.read()
    assert [one.used for one in reader.counters()] == [2]


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


# Calls in flight


def test_a_cap_holds_over_all_handles_and_an_ending_frees_a_place_for_each(place: Place) -> None:
    callers = [Caller(place.open(), TWO_IN_FLIGHT, session=f"{at:016x}") for at in range(3)]
    assert [caller.words("report") for caller in callers] == [["allowed"], ["allowed"], ["rate_limited"]]
    (denied,) = callers[0].decide("other")
    assert (denied.reason, denied.in_flight, denied.retry_after_us) == ("concurrent", 2, None)
    place.pass_ms(86_400_000)
    assert callers[2].words("report") == ["rate_limited"]
    callers[1].end(failed=True)
    assert callers[2].words("report", "report") == ["allowed", "rate_limited"]


def test_an_admitted_calls_row_tells_how_many_are_in_flight(place: Place) -> None:
    caller = Caller(place.open(), TWO_IN_FLIGHT)
    caller.decide("report", "report")
    assert [entry.record["in_flight"] for entry in caller.store.entries()] == [1, 2]


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


def test_a_denied_call_takes_no_place_and_a_capped_call_charges_nothing(place: Place) -> None:
    caller = Caller(place.open(), TWO_IN_FLIGHT + '[[rule]]\ntool = "report"\nlimit = "3/1m"\n')
    caller.decide("report", "report")
    assert caller.words("report") == ["rate_limited"]
    assert caller.used == [2, 2]
    caller.end()
    assert caller.words("report") == ["allowed"]
    caller.end()
    assert caller.words("report") == ["rate_limited"]
    assert caller.used == [1, 3]


def test_held_and_peek_tell_the_calls_in_flight(place: Place) -> None:
    caller = Caller(place.open(), TWO_IN_FLIGHT)
    caller.decide("report", "report")
    (row_id, plan), (other_id, _) = caller.flying
    reader = place.read()
    assert [(one.label, one.used, one.log) for one in reader.counters()] == [(plan.counters[0].label, 2, ())]
    states, _ = reader.peek(plan.counters)
    assert sorted(states[0]) == sorted([row_id, other_id])
    caller.end()
    assert reader.peek(plan.counters)[0] == [(other_id,)]
    caller.end()
    assert reader.counters() == []


def test_calls_in_flight_are_not_among_the_logs_last_seen(place: Place) -> None:
    caller = Caller(place.open(), TWO_IN_FLIGHT + '[[rule]]\ntool = "report"\nlimit = "3/1m"\n')
    caller.decide("report")
    seen, _ = caller.store.last_seen()
    windows = {counter.id: counter.window_us for counter in caller.flying[0][1].counters}
    assert {windows[key] for key in seen} == {60_000_000}


def test_errors_are_in_the_logs_last_seen_as_soon_as_they_are_counted(place: Place) -> None:
    caller = Caller(place.open(), TWO_ERRORS)
    caller.decide("report")
    place.pass_ms(1000)
    _, plan = caller.end(failed=True)
    seen, _ = caller.store.last_seen()
    states, _ = place.read().peek(plan.counters)
    assert [seen[counter.id] for counter in plan.counters] == states
    assert states[0][-1] == 1


def test_reset_frees_all_places_of_a_cap_and_later_endings_are_harmless(place: Place) -> None:
    caller, other = Caller(place.open(), TWO_IN_FLIGHT), Caller(place.open(), TWO_IN_FLIGHT, session="b" * 16)
    caller.decide("report", "report")
    assert place.open().reset([one.label for one in other.store.counters()]) == 1
    assert caller.used == []
    assert other.words("report", "report", "report") == ["allowed", "allowed", "rate_limited"]
    caller.end()
    caller.end()
    assert caller.words("report") == ["rate_limited"]


def test_calls_that_were_admitted_without_the_store_are_held_beyond_the_cap_and_freed_by_their_ids(place: Place) -> None:
    caller = Caller(place.open(), TWO_IN_FLIGHT)
    caller.decide("report")
    _, plan = caller.flying[0]
    other = place.open()
    other.give_places({-7: plan.counters, -8: plan.counters})
    assert caller.used == [3]
    for call_id, word in ((-7, "rate_limited"), (-8, "allowed")):
        other.settle([Ending(call_id, plan, False)])
        assert caller.words("report") == [word]


def test_a_free_retry_takes_a_place_and_charges_nothing_else(place: Place) -> None:
    caller = Caller(place.open(), TWO_IN_FLIGHT + '[[rule]]\ntool = "report"\nlimit = "1/1m"\n')
    caller.decide("report")
    assert caller.words("report", rounds=1) == ["continued"]
    assert caller.words("report", rounds=2) == ["rate_limited"]
    assert caller.used == [1, 2]


# Held calls


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


def test_a_call_that_may_not_be_held_is_denied_without_room_and_held_if_room_comes_that_is_for_others(place: Place) -> None:
    caller = Caller(place.open(), '[[rule]]\ntool = "report"\nlimit = "1/1s"\nwait = "5s"\n')
    caller.decide("report")
    assert caller.words("report", is_behind=True) == ["rate_limited"]
    place.pass_ms(1000)
    assert caller.words("report", is_behind=True) == ["held"]
    assert caller.words("report") == ["allowed"]
