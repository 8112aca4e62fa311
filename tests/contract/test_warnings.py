"""`warn`: of the calls of a counter that are at or past a share of a limit, one in a window is marked."""

import pytest

from mcpguard.limiter.plan import label_parts
from mcpguard.session.verdict import Verdict
from tests.callers import Caller
from tests.contract.conftest import Place

TEN = '[[rule]]\ntool = "report"\nlimit = "10/1m"\nwarn = "80%"\n'


def warned(verdicts: list[Verdict]) -> list[object]:
    """Of each verdict, the counts with which it warns; None for none."""
    return [[count for _, count in one.warned] or None for one in verdicts]


def test_the_first_admitted_call_at_the_share_is_marked_in_its_row_and_no_other_in_the_window(place: Place) -> None:
    caller = Caller(place.open(), TEN)
    assert warned(caller.decide(*["report"] * 12)) == [None] * 7 + [[8]] + [None] * 4
    rows = [entry.record.get("warned") for entry in caller.store.entries()]
    limit = {"axis": "tool", "rule": "tool=report", "limit": 10, "window": "1m", "count": 8}
    assert rows == [None] * 7 + [[limit]] + [None] * 3
    place.pass_ms(60_000)
    assert warned(caller.decide(*["report"] * 10)) == [None] * 7 + [[8]] + [None] * 2


def test_a_counter_that_stays_past_the_share_is_marked_again_exactly_one_window_later(place: Place) -> None:
    caller = Caller(place.open(), TEN.replace("10/1m", "30/1m").replace("80%", "50%"))
    assert warned(caller.decide(*["report"] * 15)) == [None] * 14 + [[15]]
    place.pass_ms(30_000)
    assert warned(caller.decide(*["report"] * 14)) == [None] * 14
    place.pass_us(29_999_999)
    assert warned(caller.decide("report")) == [None]
    place.pass_us(1)
    assert warned(caller.decide("report", "report")) == [[16], None]


def test_of_several_wrappers_of_a_store_one_marks_a_call(place: Place) -> None:
    callers = [Caller(place.open(), TEN, session=f"{at:016x}") for at in range(3)]
    found = [one for at in range(30) for one in callers[at % 3].decide("report")]
    assert [one.warned[0][1] for one in found if one.warned] == [8]


def test_of_errors_the_next_admitted_call_is_marked(place: Place) -> None:
    caller = Caller(place.open(), TEN.replace("10/1m", "3/1m").replace("80%", "50%") + 'count = "errors"\n')
    caller.decide("report", "report", "report")
    caller.end(failed=True)
    assert warned(caller.decide("report")) == [None]
    caller.end(failed=True)
    assert warned(caller.decide("report", "report")) == [[2], None]


def test_a_call_that_an_enforced_rule_denies_is_not_marked_and_the_next_one_is(place: Place) -> None:
    caller = Caller(place.open(), '[[rule]]\nuser = "*"\nlimit = "5/10s"\n' + TEN.replace("80%", "60%"))
    assert warned(caller.decide(*["report"] * 7)) == [None] * 7
    place.pass_ms(10_000)
    assert warned(caller.decide("report")) == [[6]]


def test_each_limit_of_a_rule_has_its_own_share_and_its_own_mark(place: Place) -> None:
    caller = Caller(place.open(), TEN.replace('"10/1m"', '["4/1s", "10/1m"]').replace("80%", "50%"))
    assert warned(caller.decide("report", "report", "report", "report")) == [None, [2], None, None]
    place.pass_ms(1000)
    assert warned(caller.decide("report", "report")) == [[5], [2]]


def test_two_limits_on_one_counter_share_a_mark(place: Place) -> None:
    admins = '[[rule]]\ntool = "report"\nuser = "*"\nper = ["tool"]\nlimit = "{}/1m"\nwarn = "50%"\n'
    rules = admins.format(8) + admins.format(4).replace('user = "*"\n', 'user = "*"\nrole = "*"\n')
    caller = Caller(place.open(), rules)
    assert warned(caller.decide(*["report"] * 8)) == [None, None, None, [4], None, None, None, None]
    assert len([one for one in caller.store.counters() if label_parts(one.label).is_mark]) == 1


def test_calls_with_different_arguments_are_marked_separately(place: Place) -> None:
    caller = Caller(place.open(), '[[rule]]\nper = ["user", "arguments"]\nlimit = "2/1m"\nwarn = "100%"\n')
    found = [one for text in ("a", "b", "a", "b") for one in caller.call("report", arguments={"text": text})]
    assert warned(found) == [None, None, [2], [2]]


def test_a_held_call_is_marked_when_it_is_admitted(place: Place) -> None:
    caller = Caller(place.open(), TEN.replace("10/1m", "1/1s") + 'wait = "5s"\n')
    assert warned(caller.decide("report")) == [[1]]
    (held,) = caller.decide("report", waited_us=0)
    assert (held.decision, held.warned) == ("held", ())
    place.pass_ms(1000)
    assert warned(caller.decide("report", is_behind=True, waited_us=1_000_000)) == [None]
    assert warned(caller.decide("report", waited_us=1_000_000)) == [[1]]


def test_a_free_retry_is_not_marked(place: Place) -> None:
    caller = Caller(place.open(), TEN.replace("80%", "10%") + "concurrent = 5\n")
    assert warned(caller.decide("report", rounds=1)) == [None]
    assert warned(caller.decide("report")) == [[1]]


COST = 'count = "cost"\n[[cost]]\ntool = "report"\ncost = 5\n'


@pytest.mark.parametrize(
    ("policy", "marked"),
    [
        (TEN.replace("80%", "1%"), {1: [1]}),
        (TEN.replace("80%", "100%"), {10: [10]}),
        (TEN + 'mode = "observe"\n', {8: [8]}),
        (TEN + COST, {2: [10]}),
        (TEN.replace("10/1m", "14/1m") + COST, {}),
    ],
    ids=["the least", "the whole", "observed", "a cost jumps over it", "a cost has no room"],
)
def test_the_first_call_at_a_share_that_is_counted_is_marked(place: Place, policy: str, marked: dict[int, list[int]]) -> None:
    found = warned(Caller(place.open(), policy).decide(*["report"] * 12))
    assert {at: counts for at, counts in enumerate(found, 1) if counts} == marked
