"""Counters: never above the limit, charged all or none, exact to the millisecond, shared by all handles."""

from secrets import token_hex

import pytest

from mcpguard.limiter.plan import Counter
from tests.build import Session
from tests.contract.conftest import Place

FIVE_A_MINUTE = '[[rule]]\ntool = "report"\nlimit = "5/1m"\n'
FIFTY_A_MINUTE = FIVE_A_MINUTE.replace("5", "50")
THREE_AXES = (
    '[[rule]]\ntool = "report"\nlimit = "4/1m"\n'
    '[[rule]]\nuser = "*"\nlimit = "3/1m"\n'
    '[[rule]]\nagent = "*::*::*"\nlimit = "2/1m"\n'
)


def used(place: Place) -> dict[str, int]:
    return {one.label: one.used for one in place.open().counters()}


@pytest.mark.parametrize("us_past_the_millisecond", [0, 1, 499, 999])
def test_retry_after_is_enough_and_a_millisecond_less_is_not(place: Place, us_past_the_millisecond: int) -> None:
    session = Session(place.open(), FIVE_A_MINUTE)
    session.call("report", 5)
    place.pass_us(12_345_000 + us_past_the_millisecond)
    denied = session.one("report")
    assert denied.retry_after_us == 60_000_000 - 12_345_000 - us_past_the_millisecond
    wait_ms = -(-denied.retry_after_us // 1000)
    place.pass_ms(wait_ms - 1)
    assert session.one("report").decision == "rate_limited"
    place.pass_ms(1)
    assert session.one("report").decision == "allowed"


@pytest.mark.no_cover
def test_one_transaction_may_charge_ten_thousand_counters(place: Place) -> None:
    windows = ", ".join(f'"5/{seconds}s"' for seconds in range(60, 100))
    session = Session(place.open(), f'[[rule]]\ntool = "*"\nlimit = [{windows}]\n')
    requests = [request for number in range(256) for request in session.charges(f"tool{number}")]
    verdicts = session.store.decide(requests, session.journal)
    assert {(verdict.decision, verdict.remaining) for verdict in verdicts} == {("allowed", 4)}
    assert len(place.open().counters()) == 256 * 40


def test_an_allowed_call_reports_an_enforced_limit_even_if_an_observed_one_is_tighter(place: Place) -> None:
    policy = (
        '[[rule]]\ntool = "*"\nlimit = "2/1m"\nmode = "observe"\n'
        '[[rule]]\nuser = "*"\nlimit = "9/1m"\n'
        '[[rule]]\nagent = "*::*::*"\nlimit = "8/1m"\n'
        '[[rule]]\ntool = "report"\nlimit = "1/1m"\nmode = "observe"\n'
    )
    session = Session(place.open(), policy)
    allowed = session.one("report")
    assert (allowed.decision, allowed.reported and allowed.reported.limit) == ("allowed", 8)
    assert (allowed.count, allowed.remaining) == (1, 7)
    row = next(session.store.newest()).record
    assert (row["axis"], row["limit"], row["count"], row["remaining"]) == ("agent", 8, 1, 7)
    assert session.decisions("report") == ["would_deny"]


def test_namespaces_share_nothing(place: Place) -> None:
    one = Session(place.open(), FIVE_A_MINUTE, session="a" * 16, namespace="one")
    two = Session(place.open(), FIVE_A_MINUTE, session="b" * 16, namespace="two")
    assert one.decisions("report", 6) == two.decisions("report", 6) == ["allowed"] * 5 + ["rate_limited"]
    assert {entry.record["namespace"] for entry in one.store.entries()} == {"one", "two"}


def test_a_store_tells_the_counters_that_are_not_empty_now(place: Place) -> None:
    session = Session(place.open(), '[[rule]]\ntool = "report"\nlimit = ["5/1m", "9/1h"]\n')
    session.call("report", 3)
    place.pass_ms(30_000)
    session.call("report", 1)
    assert sorted(used(place).values()) == [4, 4]
    place.pass_ms(30_000)
    assert sorted(used(place).values()) == [1, 4]
    place.pass_ms(3_600_000)
    assert used(place) == {}


def test_reset_empties_the_counters_it_names_for_every_handle(place: Place) -> None:
    session = Session(place.open(), THREE_AXES)
    session.call("report", 2)
    other = Session(place.open(), THREE_AXES, session="b" * 16)
    assert other.decisions("report") == ["rate_limited"]
    (agents,) = [label for label in used(place) if '"agent"' in label]
    assert place.open().reset([agents, "no such counter"]) == 1
    assert sorted(used(place).values()) == [2, 2]
    assert other.decisions("report") == ["allowed"]
    assert session.one("report").without_room[0]["axis"] == "user"
    assert place.open().reset(list(used(place))) == 3
    assert used(place) == {}


def test_upkeep_changes_no_decision(place: Place) -> None:
    session = Session(place.open(), '[[rule]]\ntool = "report"\nlimit = ["5/1m", "7/1h"]\n')
    session.call("report", 5)
    place.pass_ms(59_999)
    session.store.tend()
    assert session.decisions("report") == ["rate_limited"]
    place.pass_ms(120_000)
    session.store.tend()
    assert list(used(place).values()) == [5]
    assert session.decisions("report", 3) == ["allowed", "allowed", "rate_limited"]
    place.pass_ms(5000)
    session.store.tend()
    assert session.store.needs_tending is False


def test_calls_admitted_without_the_store_are_counted_once_they_are_adopted(place: Place) -> None:
    session = Session(place.open(), FIVE_A_MINUTE)
    session.call("report", 2)
    place.pass_ms(10_000)
    (label,) = used(place)
    counter = Counter(session.charges("report")[0].plan.counters[0].id, label, 60_000_000)
    place.open().adopt([(counter, (-5_000_000, -5_000_000, 2))], token_hex())
    assert session.decisions("report", 2) == ["allowed", "rate_limited"]
    place.pass_ms(50_000)
    assert session.decisions("report", 3) == ["allowed", "allowed", "rate_limited"]
    place.pass_ms(5_000)
    assert session.decisions("report", 3) == ["allowed", "allowed", "rate_limited"]


def test_calls_are_adopted_once_however_often_and_by_whomever_that_is_asked_with_one_id(place: Place) -> None:
    first, other, write_back_id = place.open(), place.open(), token_hex()
    (counter,) = Session(first, FIVE_A_MINUTE).charges("report")[0].plan.counters
    for store in (first, first, other, place.open()):
        store.adopt([(counter, (-1, -1, 2))], write_back_id)
    place.close()
    later = place.open()
    later.adopt([(counter, (-1, -1, 2))], write_back_id)
    assert used(place) == {counter.label: 2}
    assert Session(later, FIVE_A_MINUTE).decisions("report", 4) == ["allowed"] * 3 + ["rate_limited"]


def test_calls_that_have_left_the_window_let_no_adopted_call_leave_it_later(place: Place) -> None:
    """With them, there would be more than 64 calls in the log, and calls would share entries."""
    session = Session(place.open(), FIFTY_A_MINUTE)
    other = place.open()
    for _ in range(40):
        place.pass_ms(1)
        session.call("report")
    place.pass_ms(61_000)
    (counter,) = session.charges("report")[0].plan.counters
    log = (-1_000, *[value for at in range(30, 0, -1) for value in (-1_000 * at, 1)])
    other.adopt([(counter, log)], token_hex())
    session.call("report", 20)
    assert session.one("report").retry_after_us == 60_000_000 - 30_000
    place.pass_ms(59_970)
    assert session.decisions("report", 2) == ["allowed", "rate_limited"]
    session.store.tend()
    late = Session(place.open(), FIFTY_A_MINUTE, session="b" * 16)
    assert late.one("report").retry_after_us == 1_000
