"""Calls in flight in an outage: local counting counts this wrapper's own, and the next store holds them."""

from pathlib import Path

import pytest

from mcpguard.session.verdict import NO_LIMITS
from mcpguard.stores.outage.log import Bounds
from tests.stores.outage.moody import Place, in_outage

CAP_2 = '[[rule]]\nuser = "*"\nconcurrent = 2\n'


def places(place: Place) -> list[int]:
    """The ids of the calls in flight in the store."""
    states, counters = place.memory.states, place.memory.counters
    return sorted(one for key, state in states.items() if not counters[key].window_us for one in state)


def test_a_call_that_has_no_place_and_has_not_failed_does_not_use_the_store() -> None:
    place = Place(policy='[[rule]]\nuser = "*"\ncount = "errors"\nlimit = "1/1h"\n')
    call = place.starts()
    place.fail("settle")
    place.stops(call)
    assert place.said == []


def test_a_call_that_was_decided_without_its_limits_has_no_place() -> None:
    place = Place(policy=CAP_2)
    (request,) = place.session.charges("search")
    request.rounds, request.plan = 1, NO_LIMITS
    place.store.decide([request], place.session.journal)
    place.break_down()
    place.call()
    place.mend()
    assert len(places(place)) == 1


def test_calls_in_flight_of_other_wrappers_are_not_counted() -> None:
    other = Place(policy=CAP_2)
    for _ in range(2):
        other.starts()
    place = Place(policy=CAP_2, other=other, session="00000000000000bb")
    assert place.refusal().reason == "concurrent"
    place.break_down()
    for _ in range(2):
        place.starts()
    assert place.refusal().reason == "concurrent"


def test_a_refused_call_with_room_within_its_wait_is_held_and_not_charged() -> None:
    place = in_outage(policy='[[rule]]\nuser = "*"\nconcurrent = 1\nwait = "5s"\n')
    first = place.starts()
    (request,) = place.session.charges("search")
    request.waited_us = 0
    (verdict,) = place.store.decide([request], place.session.journal)
    assert (verdict.decision, verdict.row_id, verdict.now_us) == ("held", None, place.time())
    assert [len(state) for state in verdict.states] == [1]
    place.stops(first)
    for is_behind, decision in ((True, "held"), (False, "allowed")):
        request.is_behind = is_behind
        assert place.store.decide([request], place.session.journal)[0].decision == decision
    place.mend()
    assert [record["decision"] for record in place.records()] == ["allowed"] * 2
    assert len(places(place)) == 1


@pytest.mark.parametrize(("mode", "second", "held"), [("local", "rate_limited", 1), ("allow", "continued", 0)])
def test_a_free_retry_in_an_outage_needs_a_place_only_with_local(mode: str, second: str, held: int) -> None:
    place = in_outage(mode, '[[rule]]\nuser = "*"\nconcurrent = 1\n')
    requests = place.session.charges("search", 2)
    for request in requests:
        request.rounds = 1
    decisions = [place.store.decide([request], place.session.journal)[0].decision for request in requests]
    assert decisions == ["continued", second]
    place.mend()
    assert len(places(place)) == held


def test_calls_in_flight_need_no_room_for_the_log_of_a_counter() -> None:
    place = in_outage(policy='[[rule]]\ntool = "*"\nconcurrent = 1\n', bounds=Bounds(counters=0))
    assert [place.one(tool).decision for tool in "abca"] == ["allowed"] * 3 + ["rate_limited"]


@pytest.mark.parametrize("mode", ["local", "deny"])
def test_when_the_store_is_back_it_has_the_calls_that_are_still_in_flight_and_no_others(mode: str) -> None:
    place = Place(mode, '[[rule]]\ntool = "*"\nconcurrent = 2\n')
    before = [place.starts("a"), place.starts("b"), place.starts("b")]
    place.break_down()
    place.call(1, "c")
    during = [place.starts("a"), place.starts("c")] if mode == "local" else []
    place.stops(before[1], *during[1:])
    place.mend()
    assert sorted(place.used()) == ([1, 1, 2] if mode == "local" else [1, 1])
    place.stops(before[0], before[2], *during[:1])
    assert len(places(place)) == (1 if mode == "local" else 0)


def test_calls_admitted_without_the_store_are_held_under_negative_ids_that_differ_between_wrappers() -> None:
    one = Place(policy='[[rule]]\nuser = "*"\nconcurrent = 9\n')
    other = Place(policy='[[rule]]\nuser = "*"\nconcurrent = 9\n', other=one, session="00000000000000bb")
    calls = []
    for place in (one, other):
        place.break_down()
        calls.append([place.starts() for _ in range(3)])
        place.mend()
    assert len(set(places(one))) == 6
    assert all(-(2**53) <= place_id < 0 for place_id in places(one))
    for place, some, left in ((one, calls[0], 3), (other, calls[1], 0)):
        place.stops(*some)
        assert len(places(one)) == left


def test_a_store_that_the_calls_in_flight_do_not_reach_is_not_used_until_they_do() -> None:
    place = Place(policy=CAP_2)
    before, ended = place.starts(), place.starts()
    place.break_down()
    place.stops(ended)
    during = place.starts()
    for failing in ("give_places", "settle"):
        place.fail(failing)
        place.probe()
        assert place.is_cut_off
    place.stops(during)
    place.mend()
    assert not place.is_cut_off
    assert len(places(place)) == 1
    place.stops(before)
    assert places(place) == []


def test_a_store_that_takes_the_calls_too_slowly_does_not_take_more_while_a_call_waits() -> None:
    place = Place(policy=CAP_2)
    place.starts()
    ended = place.starts()
    place.break_down()
    place.stops(ended)
    place.starts()
    place.failing.clear()
    place.before["give_places"] = lambda: place.time.pass_s(20)
    place.asked.clear()
    place.probe()
    assert place.is_cut_off
    assert "settle" not in dict(place.asked)
    place.mend()
    assert "settle" in dict(place.asked)
    assert len(places(place)) == 2


def test_a_call_may_end_after_the_session(tmp_path: Path) -> None:
    place = Place(policy='[[rule]]\nuser = "*"\nlimit = "100/1h"\nconcurrent = 2\n', folder=tmp_path)
    call = place.starts()
    place.store.close()
    place.stops(call, failed=True)


@pytest.mark.parametrize("noticed_by", ["decide", "settle", "tend"])
def test_a_server_that_lost_its_data_between_two_calls_holds_the_calls_in_flight_again(noticed_by: str) -> None:
    place = Place(policy='[[rule]]\ntool = "search"\nconcurrent = 2\n[[rule]]\ntool = "other"\nconcurrent = 3\n')
    calls = [place.starts(), place.starts(), place.starts("other")]
    place.lose_data()
    if noticed_by == "decide":
        calls.append(place.starts("other"))
    elif noticed_by == "settle":
        place.stops(calls.pop())
    else:
        place.store.tend()
    assert len(places(place)) == len(calls)
    assert place.refusal().reason == "concurrent"
    place.stops(*calls)
    assert places(place) == []
    assert place.said == []


def test_an_ending_of_an_earlier_store_frees_no_place_of_a_call_with_the_same_row_id() -> None:
    place = Place(policy='[[rule]]\nuser = "*"\nconcurrent = 2\n[[rule]]\ntool = "*"\ncount = "errors"\nlimit = "5/1h"\n')
    old = place.starts()
    place.stops(old)
    place.lose_data()
    new = place.starts()
    assert places(place) == [1]  # the same row id as that of the call in the earlier store
    place.stops(old, failed=True)
    assert places(place) == [1]
    place.stops(new)
    assert places(place) == []
