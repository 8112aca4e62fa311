"""Local counting: a wrapper never counts from less than it has seen."""

import pytest

from mcpguard.errors import StoreUnavailable
from mcpguard.stores.outage.log import Bounds
from tests.build import START_US
from tests.stores.outage.moody import LIMIT_3, Place, in_outage

EACH_TOOL_5 = '[[rule]]\ntool = "*"\nlimit = "5/1h"\n'
EACH_USER_5 = '[[rule]]\nuser = "*"\nlimit = "5/1h"\n'
UNLIMITED = '[[rule]]\ntool = "other"\nlimit = "1/1h"\n'


def forget(place: Place, tool: str) -> None:
    """Let the store forget a tool's counter, for want of room."""
    place.forgotten.update(ids(place, tool))


def ids(place: Place, tool: str) -> list[int]:
    return [counter.id for request in place.session.charges(tool) for counter in request.plan.counters]


def test_the_number_of_local_counters_is_bounded_and_a_call_that_needs_one_more_is_denied() -> None:
    place = in_outage(policy='[[rule]]\ntool = "*"\nlimit = "1/1m"\n', bounds=Bounds(counters=10))
    assert [place.one(f"tool {at}").decision for at in range(12)] == ["allowed"] * 10 + ["unavailable"] * 2
    assert place.one("tool 0").decision == "rate_limited"
    place.time.pass_s(60)
    assert [place.one(f"tool {at}").decision for at in range(12, 24)] == ["allowed"] * 10 + ["unavailable"] * 2
    place.mend()
    assert place.used() == [1] * 10


def test_a_local_counter_makes_room_for_another_when_its_last_call_has_left_the_window() -> None:
    place = in_outage(policy=EACH_TOOL_5, bounds=Bounds(counters=1))
    place.call(1, "echo")
    place.time.pass_s(1800)
    place.call(2, "echo")
    place.time.pass_s(1800)
    assert place.call(1, "other") + place.call(4, "echo") == ["unavailable"] + ["allowed"] * 3 + ["rate_limited"]
    place.time.pass_s(3600)
    assert place.call(1, "other") == ["allowed"]


def test_a_used_counter_whose_log_is_unknown_is_not_counted_from_zero_in_any_outage_until_its_window_has_passed() -> None:
    place = Place(policy=EACH_TOOL_5)
    assert place.call(6, "echo") == ["allowed"] * 5 + ["rate_limited"]
    forget(place, "echo")
    for _ in range(3):
        place.break_down()
        assert place.call(5, "echo") == ["unavailable"] * 5
        assert place.call(1, "never seen") == ["unavailable"], "it may be one that was forgotten"
        place.mend()
    assert place.call(1, "echo") == ["rate_limited"]
    place.break_down()
    place.time.now_us = START_US + 3600_000_000 - 1
    assert place.call(1, "echo") == ["unavailable"]
    place.time.now_us += 1
    assert place.call(6, "echo") == ["allowed"] * 5 + ["rate_limited"]


def test_calls_admitted_in_one_outage_are_counted_in_the_next_even_if_the_store_has_not_read_them() -> None:
    place = Place(policy=EACH_TOOL_5)
    place.call(1, "echo")
    place.break_down()
    place.call(2, "echo")
    place.mend()
    place.unread.update(ids(place, "echo"))
    place.break_down()
    assert place.call(3, "echo") == ["allowed"] * 2 + ["rate_limited"]


def test_a_log_of_one_outage_is_not_used_in_the_next_if_the_store_has_charged_the_counter_since() -> None:
    place = in_outage(policy=EACH_TOOL_5)
    place.call(3, "echo")
    place.mend()
    place.call(2, "echo")
    forget(place, "echo")
    place.break_down()
    assert place.call(1, "echo") == ["unavailable"]


def test_a_counter_that_was_reset_after_an_outage_is_counted_from_zero_in_the_next() -> None:
    place = in_outage(policy=EACH_TOOL_5)
    place.call(5, "echo")
    place.mend()
    for key in place.memory.states:
        place.memory.states[key] = ()
    place.break_down()
    assert place.call(6, "echo") == ["allowed"] * 5 + ["rate_limited"]


def test_counters_that_only_other_wrappers_used_leave_room_for_those_of_this_one() -> None:
    other = Place(policy=EACH_TOOL_5)
    place = Place(policy=EACH_TOOL_5, other=other, session="00000000000000bb", bounds=Bounds(counters=2))
    for tool in ("a", "b"):
        other.call(1, tool)
    place.break_down()
    assert place.call(1, "c") + place.call(1, "d") + place.call(1, "e") == ["allowed"] * 2 + ["unavailable"]


def test_an_observed_limit_that_cannot_be_counted_denies_nothing_and_is_not_counted_from_zero() -> None:
    place = Place(policy=EACH_USER_5 + '[[rule]]\ntool = "*"\nmode = "observe"\nlimit = "2/1h"\n')
    place.call(2, "echo")
    place.forgotten.update(key for key, counter in place.memory.counters.items() if '"tool"' in counter.label)
    place.break_down()
    assert place.call(4, "echo") == ["allowed"] * 3 + ["rate_limited"]


@pytest.mark.parametrize("how", ["", "is a free retry", "may be held"])
@pytest.mark.parametrize("policy", [LIMIT_3, UNLIMITED, '[[rule]]\ntool = "*"\nlimit = "unlimited"\n', "mode = 'observe'"])
def test_with_deny_no_call_is_forwarded_whatever_limits_it(policy: str, how: str) -> None:
    place = in_outage("deny", policy)
    (request,) = place.session.charges("search")
    if how == "is a free retry":
        request.continue_as(1)
    elif how == "may be held":
        request.waited_us, request.is_behind = 0, True
    (verdict,) = place.store.decide([request], place.session.journal)
    assert (verdict.decision, request.detail["reason"]) == ("unavailable", "store_unavailable")
    error = place.session.answer_to(verdict)["error"]
    assert (error["code"], error["data"]["reason"]) == (503, "store_unavailable")


@pytest.mark.parametrize(("hint", "told"), [("bring it back", "it is gone (bring it back)"), ("", "it is gone")])
def test_a_call_that_needs_the_store_is_told_why_it_cannot_be_used(hint: str, told: str) -> None:
    place = Place("deny")
    place.failing = {"decide": StoreUnavailable("it is gone", hint)}
    message = place.session.answer_to(place.one())["error"]["message"]
    assert f"the store of counters is unavailable: {told}. Try again in a few seconds." in message


@pytest.mark.parametrize("mode", ["local", "allow"])
@pytest.mark.parametrize("rounds", [0, 1])
def test_a_call_whose_row_has_no_room_is_not_forwarded_and_not_charged(mode: str, rounds: int) -> None:
    place = in_outage(mode, '[[rule]]\nuser = "*"\nlimit = "100/1h"\n', bounds=Bounds(rows=5))
    requests = place.session.charges("search", 7)
    for request in requests:
        if rounds:
            request.continue_as(rounds)
    decisions = [one.decision for one in place.store.decide(requests, place.session.journal)]
    assert decisions[5:] + place.call(1) == ["unavailable"] * 3
    assert "unavailable" not in decisions[:5]
    place.mend()
    assert place.used() == ([5] if (mode, rounds) == ("local", 0) else [])
    assert [record["decision"] for record in place.records()] == [*decisions[:5], "unavailable"]


def test_rows_of_denials_are_dropped_before_rows_of_forwarded_calls_and_their_number_is_reported() -> None:
    place = in_outage("allow", '[[rule]]\ntool = "closed *"\nlimit = "deny"\n', bounds=Bounds(rows=10))
    for at in range(8):
        place.call(1, f"open {at}")
        place.call(1, f"closed {2 * at}")
        place.call(1, f"closed {2 * at + 1}")
    place.mend()
    records = place.records()
    assert [record["tool"] for record in records if record["decision"] == "allowed"] == [f"open {at}" for at in range(8)]
    assert [record["tool"] for record in records if record["decision"] == "denied"] == [f"closed {at}" for at in range(10)]
    seqs = [int(str(record["seq"])) for record in records]
    assert seqs == sorted(seqs)
    assert "18 audit rows of the outage written; 6 rows of denials dropped" in place.said[-1]


def test_a_call_with_long_arguments_is_not_forwarded_if_the_log_has_no_room_for_them() -> None:
    place = Place(policy=UNLIMITED, bounds=Bounds(chars=10_000))
    place.session.keep_arguments("full")
    place.break_down()
    decisions = [place.session.call("x", arguments={"text": "a" * 1000})[0].decision for _ in range(20)]
    assert decisions == ["allowed"] * 10 + ["unavailable"] * 10
    place.mend()
    assert [record["seq"] for record in place.records()] == list(range(1, 12))
