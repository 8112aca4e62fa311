"""A usual call gets the same verdict in one pass as from the general decision."""

from collections.abc import Sequence

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from mcpguard.limiter import sliding
from mcpguard.limiter.plan import Counter, Plan, Reported
from mcpguard.limiter.sliding import EMPTY, Limit, State, charge
from mcpguard.policy.model import Call
from mcpguard.session.decision import admit, decide_one, verdict
from mcpguard.session.verdict import DecisionRequest, Verdict
from tests.build import exceeding

NOW_US = 1_000_000_000
WINDOWS_US = (640, 6_400, 20_000)
SIZES = (2, 9, 12, 64, 65, 200)
CALL = Call("alice", "Claude Code::interactive::default", "crm", "search")


AGES_US = (0, 1, 50, 600, 639, 640, 641, 6_399, 6_400, 19_999, 20_000)


@st.composite
def logs(draw: st.DrawFn) -> State:
    """A log with entries within, at the edge of and beyond the windows. Rarely it is empty, or ends in the future."""
    ages_us = draw(st.lists(st.sampled_from(AGES_US), min_size=draw(st.sampled_from([1, 1, 1, 0])), max_size=8))
    ahead_us = draw(st.sampled_from([0, 0, 0, 0, 2]))
    n, window_us = draw(st.sampled_from(SIZES)), draw(st.sampled_from(WINDOWS_US))
    log = EMPTY
    for age_us in sorted(ages_us, reverse=True):
        log = charge(log, n, window_us, NOW_US - age_us + ahead_us)
    return log


@st.composite
def plans(draw: st.DrawFn) -> tuple[Plan, Sequence[State]]:
    """A plan, mostly with a counter for each limit, and the logs of its counters."""
    states = draw(st.lists(logs(), max_size=3))
    counters = tuple([Counter(at, f"[{at}]", draw(st.sampled_from(WINDOWS_US))) for at in range(len(states))])
    at = [*range(len(states)), *range(draw(st.integers(0, 9)) == 0 and len(states) > 0)]
    limits = [Limit(draw(st.sampled_from(SIZES)), counters[one].window_us, one, 0, draw(st.integers(0, 9)) == 0) for one in at]
    if draw(st.integers(0, 9)) == 0:
        limits.append(Limit(0, 0, -1, 1, draw(st.booleans())))
    if draw(st.integers(0, 9)) == 0:
        limits.reverse()
    reported = [Reported("tool", f"rule {at}", limit.n, "1h") for at, limit in enumerate(limits)]
    return Plan(tuple(limits), tuple(reported), counters), states


@given(plans())
def test_a_call_that_is_admitted_in_one_pass_has_the_general_verdict_and_logs(found: tuple[Plan, Sequence[State]]) -> None:
    plan, states = found
    admitted = admit(plan, dict(zip(plan.keys, states, strict=True)), NOW_US) if plan.is_plain else None
    event(f"admitted in one pass: {admitted is not None}")
    if admitted is not None:
        general = sliding.decide(plan.limits, states, NOW_US)
        assert vars(admitted[0]) == vars(verdict(plan, general))
        assert [*admitted[1].values()] == [*general.states]


def test_a_call_with_room_on_used_counters_is_admitted_in_one_pass() -> None:
    counters = (Counter(1, "[1]", 64), Counter(2, "[2]", 1_000))
    limits = (Limit(5, 64, 0), Limit(7, 1_000, 1, 1))
    plan = Plan(limits, (Reported("user", "one", 5, "64us"), Reported("tool", "two", 7, "1ms")), counters)
    admitted = admit(plan, {1: USED, 2: USED}, NOW_US)
    assert admitted is not None
    assert (admitted[0].count, admitted[0].remaining, admitted[0].reported) == (2, 3, plan.reported[0])
    assert [len(log) for log in admitted[1].values()] == [5, 5]


def test_entries_that_have_left_the_window_are_not_counted_in_one_pass() -> None:
    log = charge(charge(EMPTY, 5, 640, NOW_US - 640), 5, 640, NOW_US - 9)
    plan = Plan((Limit(5, 640, 0),), (REPORTED,), (ONE,))
    admitted = admit(plan, {1: log}, NOW_US)
    assert admitted is not None
    assert (admitted[0].count, admitted[0].remaining, admitted[1]) == (2, 3, {1: charge(USED, 5, 640, NOW_US)})


ONE = Counter(1, "[1]", 640)
REPORTED = Reported("tool", "one", 2, "640us")
USED: State = (NOW_US - 9, NOW_US - 9, 1)


@pytest.mark.parametrize(
    "log",
    [EMPTY, (NOW_US - 640, NOW_US - 640, 1), (NOW_US + 1, NOW_US + 1, 1), (NOW_US - 9, NOW_US - 9, 2)],
    ids=["unused", "expired", "in the future", "no room"],
)
def test_any_other_call_is_left_to_the_general_decision(log: State) -> None:
    assert admit(Plan((Limit(2, 640, 0),), (REPORTED,), (ONE,)), {1: log}, NOW_US) is None


@pytest.mark.parametrize(
    "limits",
    [
        (),
        (Limit(2, 640, 0), Limit(3, 640, 0)),
        (Limit(2, 640, 1), Limit(2, 640, 0)),
        (Limit(0, 0, -1),),
        (Limit(2, 640, 0, observe=True),),
    ],
    ids=["no limits", "a shared counter", "another order", "deny", "observed"],
)
def test_a_plan_with_such_limits_is_not_plain(limits: tuple[Limit, ...]) -> None:
    counters = [Counter(at, f"[{at}]", 640) for at in range(len({limit.counter for limit in limits} - {-1}))]
    assert not Plan(limits, (REPORTED,) * len(limits), tuple(counters)).is_plain


def test_an_admitted_call_has_a_place_on_each_cap_but_on_those_of_an_observed_rule_without_room() -> None:
    enforced = Limit(2, 0, 0, counts="concurrent")
    observed = Limit(1, 0, 1, rule=1, observe=True, counts="concurrent")
    other = REPORTED._replace(rule="observed")
    counters = (Counter(1, "[1]", 0), Counter(2, "[2]", 0))
    request = DecisionRequest(CALL, Plan((enforced, observed), (REPORTED, other), counters), "")
    first, decision = decide_one(request, [EMPTY, EMPTY], NOW_US, call_id=1)
    assert first.taken_caps == list(counters)
    second, _ = decide_one(request, decision.states, NOW_US, call_id=2)
    assert second.without_room == [other.members()]
    assert second.taken_caps == [counters[0]]


def test_only_a_call_over_a_limit_has_a_reason() -> None:
    assert Verdict("allowed").reason is None
    assert exceeding("denied", (REPORTED._replace(limit=None), None)).reason == "denied"


def test_a_request_with_another_plan_is_a_copy() -> None:
    request = DecisionRequest(CALL, Plan(), "context", request_id="7", detail={"x": 1})
    request.rounds = 2
    plan = Plan(counters=(Counter(1, "[1]", 640),))
    copy = request.with_plan(plan)
    assert copy.plan is plan
    assert vars(copy) | {"plan": None} == vars(request) | {"plan": None}
