"""Cost and errors in an outage: counted as in a store, and written back."""

from pathlib import Path

import pytest

from mcpguard.limiter.plan import label_parts
from mcpguard.stores.memory import SharedMemory
from tests.build import START_US
from tests.stores.outage.moody import Place, in_outage

COST_10 = '[[rule]]\nuser = "*"\ncount = "cost"\nlimit = "10/1h"\n' + "".join(
    f'[[cost]]\ntool = "{tool}"\ncost = {cost}\n' for tool, cost in (("report", 4), ("everything", 11))
)
ERRORS_2 = '[[rule]]\ntool = "*"\ncount = "errors"\nlimit = "2/1h"\n'


def refusal(place: Place, tool: str = "search") -> tuple[str | None, int | None]:
    """Why a call is not admitted, and when it may come back."""
    verdict = place.refusal(tool)
    return verdict.reason, verdict.retry_after_us


def fails(place: Place, times: int = 1, tool: str = "search") -> None:
    """Calls that are admitted, one after the other, and fail."""
    for _ in range(times):
        place.stops(place.starts(tool), failed=True)


def used(place: Place) -> dict[str, int]:
    """What the store's counters hold, by what they count."""
    held = [(label_parts(counter.label).counts, counter.id) for counter in place.memory.counters.values()]
    return {counts: sum(place.memory.states.get(key, ())[2::2]) for counts, key in held}


def test_a_call_of_an_outage_takes_its_cost_from_limit_and_counter_until_it_leaves_the_window() -> None:
    place = in_outage(policy=COST_10)
    verdict = place.one("report")
    assert (verdict.decision, verdict.cost, verdict.count, verdict.remaining) == ("allowed", 4, 4, 6)
    place.time.pass_s(600)
    assert place.call(1, "report") == ["allowed"]
    assert refusal(place, "report") == ("rate_limited", 3000_000_000)
    assert refusal(place, "everything") == ("too_costly", None)
    assert place.call(3) == ["allowed", "allowed", "rate_limited"]
    place.mend()
    held = []
    for at_us in (3600_000_000 - 1, 3600_000_000, 4200_000_000 - 1, 4200_000_000):
        place.time.now_us = START_US + at_us
        held.append(place.used())
    assert held == [[10], [6], [6], []]


@pytest.mark.parametrize("mode", ["local", "deny"])
def test_errors_in_an_outage_are_counted_in_the_store_afterwards(mode: str) -> None:
    place = Place(mode, ERRORS_2)
    fails(place)
    call, other = place.starts(), place.starts()
    place.break_down()
    place.call(1, "unused")
    place.stops(other)
    place.stops(call, failed=True)
    assert place.one().decision == ("rate_limited" if mode == "local" else "unavailable")
    failed_us = place.time()
    place.mend()
    assert used(place)["errors"] == 2
    assert refusal(place) == ("failing", failed_us + 3600_000_000 - place.time())


@pytest.mark.parametrize("mode", ["local", "deny", "allow"])
def test_a_call_that_fails_as_the_store_fails_is_counted_once(mode: str) -> None:
    place = Place(mode, ERRORS_2)
    first, second = place.starts(), place.starts()
    place.fail("settle", "open")
    place.stops(first, second, failed=True)
    assert place.memory.states == {}
    if mode == "local":
        assert refusal(place)[0] == "failing"
    place.mend()
    assert used(place)["errors"] == 2
    place.break_down()
    place.call()
    place.mend()
    assert used(place)["errors"] == 2


def test_with_allow_calls_that_were_forwarded_without_the_store_are_not_counted_whenever_they_fail() -> None:
    place = Place("allow", ERRORS_2)
    before = place.starts()
    place.break_down()
    first, second = place.starts(), place.starts()
    place.stops(first, before, failed=True)
    place.mend()
    place.stops(second, failed=True)
    assert used(place) == {"errors": 1}


def test_a_call_that_an_earlier_store_admitted_is_counted_in_the_next_one_if_it_fails() -> None:
    place = Place(policy=ERRORS_2)
    call = place.starts()
    place.memory = SharedMemory()
    place.break_down()
    place.call()
    place.mend()
    place.stops(call, failed=True)
    assert used(place) == {"errors": 1}


def test_an_error_in_a_counter_whose_log_is_unknown_makes_it_known_no_sooner_than_it_leaves_the_window() -> None:
    place = Place(policy=ERRORS_2)
    call, other = place.starts(), place.starts()
    place.stops(other, failed=True)
    place.forgotten.update(place.memory.states)
    place.break_down()
    place.time.pass_s(1800)
    assert place.call() == ["unavailable"]
    place.stops(call, failed=True)
    place.time.now_us += 3600_000_000 - 1
    assert place.call() == ["unavailable"]
    place.mend()
    place.time.now_us = START_US + 1800_000_000
    assert used(place)["errors"] == 1


BOTH = COST_10 + ERRORS_2


def test_costs_and_errors_are_on_disk_before_the_client_gets_the_answer(tmp_path: Path) -> None:
    place = in_outage(policy=BOTH, folder=tmp_path)
    place.call(1)
    place.stops(place.starts("report"), failed=True)
    place.kill()
    after = Place(policy=BOTH, folder=tmp_path, other=place, session="00000000000000bb")
    after.store.tend()
    assert used(after) == {"cost": 5, "errors": 1}
