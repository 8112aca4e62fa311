"""Notes of which agent makes a call, and reading counters with `peek`."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from mcpguard.identity.client_agents import NOTE_KEPT_US
from mcpguard.limiter import sliding
from mcpguard.limiter.plan import Counter
from mcpguard.limiter.sliding import EMPTY
from tests.build import Session
from tests.contract.conftest import Place

EXPLORE = "Claude Code::subagent::Explore"
PLAN = "Claude Code::subagent::Plan"
KEPT_MS = NOTE_KEPT_US // 1000


def test_a_note_is_taken_once_by_one_of_all_handles(place: Place) -> None:
    one, other = place.open(), place.open()
    place.note(place.namespace, "s t1", EXPLORE)
    place.note(place.namespace, "s t2", PLAN)
    assert other.take_note(place.namespace, "s t1") == EXPLORE
    for store in (one, other, place.open()):
        assert store.take_note(place.namespace, "s t1") == ""
    assert one.take_note(place.namespace, "s t2") == PLAN
    place.note(place.namespace, "s t1", PLAN)
    assert one.take_note(place.namespace, "s t1") == PLAN


def test_a_note_that_was_taken_stays_taken_after_upkeep(place: Place) -> None:
    store = place.open()
    place.note(place.namespace, "s t1", EXPLORE)
    store.tend()
    assert store.take_note(place.namespace, "s t1") == EXPLORE
    store.tend()
    store.close()
    assert place.open().take_note(place.namespace, "s t1") == ""


def test_of_handles_that_take_notes_at_once_each_gets_others(place: Place) -> None:
    stores = [place.open(), place.open()]
    keys = [f"s t{at}" for at in range(40)]
    for key in keys:
        place.note(place.namespace, key, EXPLORE)

    def taken(at: int) -> list[str]:
        return [key for key in keys[:: 1 - 2 * at] if stores[at].take_note(place.namespace, key)]

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(taken, range(2))
    assert sorted(one + other) == sorted(keys)


def test_a_note_without_an_agent_removes_the_one_that_is_there(place: Place) -> None:
    store = place.open()
    place.note(place.namespace, "s t1", EXPLORE)
    place.note(place.namespace, "s t1", "")
    place.note(place.namespace, "s t2", "")
    assert [store.take_note(place.namespace, key) for key in ("s t1", "s t2")] == ["", ""]


def test_notes_are_not_visible_in_another_namespace(place: Place) -> None:
    store = place.open()
    place.note(place.namespace + "-one", "t1", EXPLORE)
    assert store.take_note(place.namespace + "-two", "t1") == ""
    place.note(place.namespace + "-two", "t1", PLAN)
    assert store.take_note(place.namespace + "-one", "t1") == EXPLORE


def test_a_note_expires(place: Place) -> None:
    store = place.open()
    place.note(place.namespace, "t1", EXPLORE)
    place.note(place.namespace, "t2", EXPLORE)
    place.pass_ms(KEPT_MS)
    assert store.take_note(place.namespace, "t1") == EXPLORE
    place.pass_ms(1)
    assert store.take_note(place.namespace, "t2") == ""


def test_each_of_many_notes_is_found(place: Place) -> None:
    store = place.open()
    for at in range(300):
        place.note(place.namespace, f"t{at}", f"a::b::{at}")
    assert [store.take_note(place.namespace, f"t{at}") for at in range(301)] == [*(f"a::b::{at}" for at in range(300)), ""]


@pytest.mark.parametrize("name", ["'; DROP TABLE agent_note; --", "客户👩", "\x1b[2J", "x" * 256])
def test_an_agent_of_any_name_is_read_as_it_was_noted(place: Place, name: str) -> None:
    store = place.open()
    place.note("a'b", "t'1", f"a::b::{name}")
    assert store.take_note("a'b", "t'1") == f"a::b::{name}"


def test_peek_reads_counters_without_changing_them(place: Place) -> None:
    session = Session(place.open(), '[[rule]]\ntool = "*"\nlimit = ["2/1m", "9/1h"]\n')
    (request,) = session.charges("x")
    counters = request.plan.counters
    other = place.read()
    assert other.peek(counters)[0] == [EMPTY, EMPTY]
    session.call("x", 2)
    for _ in range(2):
        states, now_us = other.peek([*counters, Counter(7, "unknown", 1)])
        assert [sliding.used(state) for state in states] == [2, 2, 0]
        assert sliding.retry_after(states[0], 2, 60_000_000, now_us) == 60_000_000
    place.pass_ms(60_000)
    states, now_us = other.peek(counters)
    live = [sliding.live(state, counter.window_us, now_us) for state, counter in zip(states, counters, strict=True)]
    assert [sliding.used(state) for state in live] == [0, 2]
