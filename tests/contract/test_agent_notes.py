"""Notes of which agent makes a call, and reading counters with `peek`."""

import pytest

from mcpguard.core import limiter
from mcpguard.core.client_agents import NOTE_KEPT_US
from mcpguard.core.limiter import EMPTY
from mcpguard.core.policy.plan import Counter
from tests.contract.conftest import Place
from tests.core.build import Session

EXPLORE = "Claude Code::subagent::Explore"
PLAN = "Claude Code::subagent::Plan"
KEPT_MS = NOTE_KEPT_US // 1000


def test_a_note_can_be_read_by_every_handle_and_any_number_of_times(place: Place) -> None:
    one, other = place.open(), place.open()
    place.note(place.namespace, "t1", EXPLORE)
    for _ in range(2):
        assert one.noted_agents(place.namespace, ["t1"]) == other.noted_agents(place.namespace, ["t1"]) == {"t1": EXPLORE}


def test_calls_without_a_note_are_absent(place: Place) -> None:
    store = place.open()
    assert store.noted_agents(place.namespace, []) == {}
    assert store.noted_agents(place.namespace, ["t1", "t2"]) == {}
    place.note(place.namespace, "t2", EXPLORE)
    assert store.noted_agents(place.namespace, ["t1", "t2", "t2"]) == {"t2": EXPLORE}


def test_a_second_note_of_a_call_replaces_the_first(place: Place) -> None:
    store = place.open()
    place.note(place.namespace, "t1", EXPLORE)
    place.note(place.namespace, "t1", PLAN)
    assert store.noted_agents(place.namespace, ["t1"]) == {"t1": PLAN}


def test_notes_are_not_visible_in_another_namespace(place: Place) -> None:
    store = place.open()
    place.note(place.namespace + "-one", "t1", EXPLORE)
    assert store.noted_agents(place.namespace + "-two", ["t1"]) == {}
    place.note(place.namespace + "-two", "t1", PLAN)
    assert store.noted_agents(place.namespace + "-one", ["t1"]) == {"t1": EXPLORE}


def test_a_note_expires(place: Place) -> None:
    store = place.open()
    place.note(place.namespace, "t1", EXPLORE)
    place.pass_ms(KEPT_MS)
    assert store.noted_agents(place.namespace, ["t1"]) == {"t1": EXPLORE}
    place.pass_ms(1)
    assert store.noted_agents(place.namespace, ["t1"]) == {}


def test_many_notes_are_read_at_once(place: Place) -> None:
    store = place.open()
    for at in range(300):
        place.note(place.namespace, f"t{at}", f"a::b::{at}")
    found = store.noted_agents(place.namespace, [f"t{at}" for at in range(2000)])
    assert found == {f"t{at}": f"a::b::{at}" for at in range(300)}


@pytest.mark.parametrize("name", ["'; DROP TABLE agent_note; --", "客户👩", "\x1b[2J", "x" * 256])
def test_an_agent_of_any_name_is_read_as_it_was_noted(place: Place, name: str) -> None:
    store = place.open()
    place.note("a'b", "t'1", f"a::b::{name}")
    assert store.noted_agents("a'b", ["t'1"]) == {"t'1": f"a::b::{name}"}


def test_a_note_changes_no_counter_and_writes_no_audit_row(place: Place) -> None:
    session = Session(place.open(), '[[rule]]\ntool = "x"\nlimit = "2/1m"\n')
    assert session.decisions("x") == ["allowed"]
    place.note(place.namespace, "t1", EXPLORE)
    assert session.decisions("x", 2) == ["allowed", "rate_limited"]
    assert len(list(session.store.entries())) == 3


def test_peek_reads_counters_without_changing_them(place: Place) -> None:
    session = Session(place.open(), '[[rule]]\ntool = "*"\nlimit = ["2/1m", "9/1h"]\n')
    (request,) = session.charges("x")
    counters = request.plan.counters
    other = place.read()
    assert other.peek(counters)[0] == [EMPTY, EMPTY]
    session.call("x", 2)
    for _ in range(2):
        states, now_us = other.peek([*counters, Counter(7, "unknown", 1)])
        assert [limiter.used(state) for state in states] == [2, 2, 0]
        assert limiter.retry_after(states[0], 2, 60_000_000, now_us) == 60_000_000
    place.pass_ms(60_000)
    states, now_us = other.peek(counters)
    assert [
        limiter.used(limiter.live(state, counter.window_us, now_us)) for state, counter in zip(states, counters, strict=True)
    ] == [
        0,
        2,
    ]
