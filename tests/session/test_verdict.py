"""A usual call gets the same verdict in one pass as from the general decision."""

from collections import Counter as Tally
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import assume, event, given
from hypothesis import strategies as st

from mcpguard.limiter.plan import Counter, Plan, Reported
from mcpguard.limiter.sliding import EMPTY, Limit, State, charge
from mcpguard.policy.model import Call
from mcpguard.session.verdict import DecisionRequest, Lease, Verdict, admit, admit_some, decide_one, runs
from mcpguard.wire.frames import TOOLS_CALL, Frame

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
    limits = [Limit(draw(st.sampled_from(SIZES)), counters[one].window_us, one, 0, draw(st.booleans())) for one in at]
    if draw(st.integers(0, 9)) == 0:
        limits.append(Limit(0, 0, -1, 1, draw(st.booleans())))
    if draw(st.integers(0, 9)) == 0:
        limits.reverse()
    reported = [Reported("tool", f"rule {at}", limit.n, "1h") for at, limit in enumerate(limits)]
    return Plan(tuple(limits), tuple(reported), counters), states


@given(plans())
def test_a_call_that_is_admitted_in_one_pass_has_the_general_verdict_and_logs(found: tuple[Plan, Sequence[State]]) -> None:
    plan, states = found
    verdict, decision = decide_one(DecisionRequest(CALL, plan, ""), states, NOW_US)
    admitted = admit(plan, dict(zip([one.id for one in plan.counters], states, strict=True)), NOW_US)
    event(f"admitted in one pass: {admitted is not None}")
    if admitted is not None:
        assert vars(admitted[0]) == vars(verdict)
        assert admitted[1] == list(zip([one.id for one in plan.counters], decision.states, strict=True))
        assert decision.charged == plan.limits


def test_a_call_with_room_on_used_counters_is_admitted_in_one_pass() -> None:
    counters = (Counter(1, "[1]", 64), Counter(2, "[2]", 1_000))
    limits = (Limit(5, 64, 0), Limit(7, 1_000, 1, 1, True))
    plan = Plan(limits, (Reported("user", "one", 5, "64us"), Reported("tool", "two", 7, "1ms")), counters)
    admitted = admit(plan, {1: USED, 2: USED}, NOW_US)
    assert admitted is not None
    assert (admitted[0].count, admitted[0].remaining, admitted[0].reported) == (2, 3, plan.reported[0])
    assert Tally(len(log) for _, log in admitted[1]) == {5: 2}


def test_entries_that_have_left_the_window_are_not_counted_in_one_pass() -> None:
    log = charge(charge(EMPTY, 5, 640, NOW_US - 640), 5, 640, NOW_US - 9)
    plan = Plan((Limit(5, 640, 0),), (REPORTED,), (ONE,))
    admitted = admit(plan, {1: log}, NOW_US)
    assert admitted is not None
    assert (admitted[0].count, admitted[0].remaining, admitted[1]) == (2, 3, [(1, charge(USED, 5, 640, NOW_US))])


ONE = Counter(1, "[1]", 640)
REPORTED = Reported("tool", "one", 2, "640us")
USED: State = (NOW_US - 9, NOW_US - 9, 1)


@pytest.mark.parametrize(
    ("limits", "states"),
    [
        ((), ()),
        ((Limit(2, 640, 0), Limit(3, 640, 0)), (USED,)),
        ((Limit(2, 640, 1), Limit(2, 640, 0)), (USED, USED)),
        ((Limit(0, 0, -1),), (USED,)),
        ((Limit(2, 640, 0),), (EMPTY,)),
        ((Limit(2, 640, 0),), ((NOW_US - 640, NOW_US - 640, 1),)),
        ((Limit(2, 640, 0),), ((NOW_US + 1, NOW_US + 1, 1),)),
        ((Limit(1, 640, 0),), (USED,)),
    ],
    ids=["no limits", "a shared counter", "another order", "deny", "unused", "expired", "in the future", "no room"],
)
def test_any_other_call_is_left_to_the_general_decision(limits: tuple[Limit, ...], states: Sequence[State]) -> None:
    counters = [Counter(at, f"[{at}]", 640) for at in range(len(states))]
    assert admit(Plan(limits, (REPORTED,) * len(limits), tuple(counters)), dict(enumerate(states)), NOW_US) is None


@given(plans(), st.integers(1, 80))
def test_calls_that_are_admitted_together_have_the_verdicts_and_logs_of_one_after_another(
    found: tuple[Plan, Sequence[State]], calls: int
) -> None:
    plan, states = found
    assume(plan.limits)
    logs = {counter.id: log for counter, log in zip(plan.counters, states, strict=True)}
    together = admit_some(plan, logs, NOW_US, calls)
    one_by_one: list[Verdict] = []
    while len(one_by_one) < calls and (one := admit(plan, logs, NOW_US)):
        one_by_one.append(one[0])
        logs.update(one[1])
    event(f"admitted: {min(len(one_by_one), 2)}, all: {len(one_by_one) == calls}")
    if together is None:
        assert one_by_one == []
        return
    admitted, first, after = together
    assert admitted == len(one_by_one)
    assert vars(first) == vars(one_by_one[0])
    assert dict(after) == {key: logs[key] for key, _ in after}
    last = one_by_one[-1]
    assert first.count is not None
    assert first.remaining is not None
    assert (last.reported, last.count, last.remaining) == (
        first.reported,
        first.count + admitted - 1,
        first.remaining - admitted + 1,
    )


def test_calls_without_limits_are_admitted_together() -> None:
    admitted = admit_some(Plan(), {}, NOW_US, 7)
    verdict, decision = decide_one(DecisionRequest(CALL, Plan(), ""), (), NOW_US)
    assert admitted is not None
    assert (admitted[0], vars(admitted[1]), admitted[2], decision.charged) == (7, vars(verdict), [], ())


PLAN = Plan((Limit(2, 640, 0),), (REPORTED,), (ONE,))
CONTEXT = "{}"


def alike(request_id: str | None = "1", *, plan: Plan = PLAN, context: str = CONTEXT, **others: Any) -> DecisionRequest:
    request = DecisionRequest(CALL, plan, context, Frame(b"", TOOLS_CALL, request_id, {}), request_id, args_hash=b"h")
    for name, value in others.items():
        setattr(request, name, value)
    return request


def test_calls_that_differ_in_id_and_arguments_alone_are_one_run() -> None:
    requests = [alike("1"), alike('"two"', args_hash=b"other"), alike("3")]
    assert list(runs(requests)) == [requests]
    assert list(runs(requests[:1])) == [requests[:1]]


OTHERS = {
    "another plan": alike(plan=Plan(PLAN.limits, PLAN.reported, PLAN.counters)),
    "another caller": alike(context=CONTEXT + " "),
    "decided": alike(decided="unavailable"),
    "no call": alike(frame=None),
    "held": alike(waited_us=0),
    "traced": alike(trace_id="ab" * 16),
    "a free retry": alike(rounds=1),
    "its own detail": alike(detail={"arguments": {}}),
    "a long id": alike("1" * 65),
    "no id": alike(request_id=None),
    "no hash": alike(args_hash=None),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_a_request_with_something_of_its_own_is_a_run_of_its_own(other: DecisionRequest) -> None:
    first, last = alike(), alike()
    assert list(runs([first, other, last])) == [[first], [other], [last]]
    assert list(runs([first, last, other])) == [[first, last], [other]]
    if other.plan is PLAN and other.context is CONTEXT and other.args_hash is not None:
        assert list(runs([other, other])) == [[other], [other]]


def test_calls_with_a_cap_on_calls_in_flight_are_decided_one_by_one() -> None:
    capped = Plan((Limit(2, 0, 0, counts="concurrent"),), (REPORTED,), (Counter(1, "[1]", 0),))
    requests = [alike(plan=capped), alike(plan=capped)]
    assert list(runs(requests)) == [requests[:1], requests[1:]]


def test_an_admitted_call_has_a_place_on_each_cap_but_on_those_of_an_observed_rule_without_room() -> None:
    enforced = Limit(2, 0, 0, counts="concurrent")
    observed = Limit(1, 0, 1, rule=1, observe=True, counts="concurrent")
    other = REPORTED._replace(rule="observed")
    counters = (Counter(1, "[1]", 0), Counter(2, "[2]", 0))
    request = alike(plan=Plan((enforced, observed), (REPORTED, other), counters))
    verdict, decision = decide_one(request, [EMPTY, EMPTY], NOW_US, call_id=1)
    assert verdict.taken_caps(request.plan) == list(counters)
    verdict, _ = decide_one(request, decision.states, NOW_US, call_id=2)
    assert verdict.without_room(request.plan) == [(observed, other)]
    assert verdict.taken_caps(request.plan) == [counters[0]]


def test_only_a_call_over_a_limit_has_a_reason() -> None:
    assert Verdict("allowed", REPORTED).reason is None
    assert Verdict("denied", REPORTED._replace(limit=None), exceeded=((REPORTED, None),)).reason == "denied"


def test_a_lease_lasts_until_the_time_that_the_store_gives_it() -> None:
    lease = Lease(NOW_US)
    assert lease.until_us == NOW_US
    lease.until_us += 1
    assert lease.until_us == NOW_US + 1


def test_a_plan_equals_a_plan_with_the_same_limits_and_nothing_else() -> None:
    plan = Plan((Limit(2, 640, 0),), (REPORTED,), (ONE,))
    assert plan == Plan((Limit(2, 640, 0),), (REPORTED,), (ONE,))
    assert hash(plan) == hash(Plan((Limit(2, 640, 0),), (REPORTED,), (ONE,)))
    assert plan != Plan()
    assert plan != (Limit(2, 640, 0),)


def test_a_request_with_another_plan_is_a_copy() -> None:
    request = DecisionRequest(CALL, Plan(), "context", request_id="7", detail={"x": 1})
    request.rounds = 2
    plan = Plan(counters=(Counter(1, "[1]", 640),))
    copy = request.with_plan(plan)
    assert (request.plan, copy.plan) == (Plan(), plan)
    assert vars(copy) | {"plan": None} == vars(request) | {"plan": None}
