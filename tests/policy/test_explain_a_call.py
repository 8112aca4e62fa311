"""Why each rule of a policy is what it is to a call, and what is left of the limits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpguard.limiter import sliding
from mcpguard.policy.explain import Headroom, RuleMatch, headrooms, rule_matches
from mcpguard.policy.model import Call
from tests.build import START_US
from tests.identity.test_agents import rules, written
from tests.policy.rules import policy

ALICE = Call("alice", "Claude Code::subagent::Explore", "crm", "search", ("support", "admin"), ("read",))
S = 1_000_000


def explained(*texts: str, call: Call = ALICE) -> list[RuleMatch]:
    return rule_matches(policy(*texts), call)


def told(one: RuleMatch) -> tuple[object, ...]:
    return one.status, one.reason, one.winner, one.narrower_in


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ("tool='sum'", "the tool is not sum"),
        ("tool='sum*'", "the tool does not match sum*"),
        ("user='bob'", "the user is not bob"),
        ("agent='*::api::*'", "the agent does not match *::api::*"),
        ("server='erp'", "the server is not erp"),
        ("role='boss'", "the role boss is missing"),
        ("role=['admin', 'boss']", "the role boss is missing"),
        ("role='b*'", "no role matches b*"),
        ("scope=['write', 'x*']", "the scope write is missing and no scope matches x*"),
        ("user='bob' tool='sum' role='boss'", "the user is not bob, the tool is not sum and the role boss is missing"),
    ],
)
def test_a_rule_that_does_not_match_names_every_selector_that_does_not_match(rule: str, reason: str) -> None:
    (one,) = explained(f"{rule} limit='1/1m'")
    assert told(one) == ("no match", reason, None, ())


def test_an_unknown_part_of_a_call_is_reported_as_unknown() -> None:
    (one,) = explained("server='erp' limit='1/1m'", call=ALICE._replace(server=""))
    assert one.reason == "the server is not known"


@pytest.mark.parametrize(
    ("wide", "narrow", "selectors"),
    [
        ("user='*'", "user='alice'", ("user",)),
        ("user='*' tool='*'", "user='a*' tool='search'", ("user", "tool")),
        ("tool='search'", "tool='search' server='crm'", ("server",)),
        ("tool='search'", "tool='search' role='admin' scope='read'", ("role", "scope")),
        ("tool='search' role='admin'", "tool='search' role=['admin', 'support']", ("role",)),
        ("agent='*::*::*'", "agent='Claude Code::subagent::Explore'", ("agent",)),
    ],
)
def test_an_overridden_rule_names_the_winner_and_why_it_is_narrower(wide: str, narrow: str, selectors: tuple[str, ...]) -> None:
    limit = " limit='1/1m'"
    for at, pair in ((1, (wide, narrow)), (0, (narrow, wide))):
        overridden, applies = explained(*(text + limit for text in pair))[:: 1 if at else -1]
        words = " and ".join(selectors)
        assert told(overridden) == ("overridden", f"rule {at + 1} is narrower in {words}", at, selectors)
        assert told(applies) == ("applies", "", None, ())


def test_rules_that_differ_only_in_role_or_scope_are_overridden_by_the_first() -> None:
    first, second, third = explained(
        "tool='search' role='admin' limit='1/1m'",
        "tool='search' role='support' limit='2/1m'",
        "tool='search' scope='read' limit='3/1m'",
    )
    assert told(first) == ("applies", "", None, ())
    assert told(second) == ("overridden", "rule 1 comes first in the file, and differs in role only", 0, ())
    assert told(third) == ("overridden", "rule 1 comes first in the file, and differs in role and scope only", 0, ())


@given(st.lists(rules, max_size=6))
def test_every_rule_has_one_match_and_those_that_apply_are_the_plan(tables: list[dict[str, object]]) -> None:
    found = written(tables)
    matches = rule_matches(found, ALICE)
    assert [one.at for one in matches] == list(range(len(found.rules)))
    assert [one.at for one in matches if one.status == "applies"] == [at for _, at in found.applying(ALICE)]
    for one in matches:
        assert bool(one.reason) == (one.status != "applies")
        assert (one.winner is not None) == (one.status == "overridden")
    plan = found.plan(ALICE)
    assert [room.reported for room in headrooms(plan, [sliding.EMPTY] * len(plan.counters), START_US)] == list(plan.reported)


def test_each_limit_has_its_quota_left_its_counter_and_the_wait() -> None:
    plan = policy("tool='*' limit=['2/1m', '9/1h']", "user='*' limit='deny'").plan(ALICE)
    state = sliding.charge(sliding.EMPTY, 2, 60 * S, START_US)
    state = sliding.charge(state, 2, 60 * S, START_US + 10 * S)
    minute, hour, deny = headrooms(plan, [state, state], START_US + 20 * S)
    assert minute == Headroom(plan.reported[0], 0, plan.counters[0], 2, 0, 40 * S)
    assert hour == Headroom(plan.reported[1], 0, plan.counters[1], 2, 7, 0)
    assert deny == Headroom(plan.reported[2], 1, None, 0, 0, None)
    later, *_ = headrooms(plan, [state, state], START_US + 60 * S)
    assert (later.used, later.remaining, later.retry_after_us) == (1, 1, 0)


def test_a_limit_lowered_below_the_sum_in_its_counter_has_no_quota_left() -> None:
    plan = policy("tool='*' limit='1/1m'").plan(ALICE)
    state = sliding.charge(sliding.charge(sliding.EMPTY, 5, 60 * S, START_US), 5, 60 * S, START_US)
    (room,) = headrooms(plan, [state], START_US)
    assert (room.used, room.remaining) == (2, 0)


def test_a_rule_whose_parts_fare_differently_has_a_match_for_each() -> None:
    both, limit, cap = "limit='5/1m' concurrent=2", "limit='9/1m'", "concurrent=3"
    found = explained(f"user='*' {both}", f"user='alice' {limit}")
    assert [(one.at, one.status, one.winner, one.rule.limits_text) for one in found] == [
        (0, "overridden", 1, "5/1m"),
        (0, "applies", None, "2-in-flight"),
        (1, "applies", None, "9/1m"),
    ]
    found = explained(f"user='*' {both}", f"user='alice' {limit}", f"user='a*' {cap}")
    assert [(one.at, one.status, one.winner, one.rule.limits_text) for one in found[:2]] == [
        (0, "overridden", 1, "5/1m"),
        (0, "overridden", 2, "2-in-flight"),
    ]
    assert found[1].reason == "rule 3 is narrower in user"


def test_a_rule_whose_parts_fare_alike_has_one_match() -> None:
    both = "limit='5/1m' concurrent=2"
    found = explained(f"user='*' {both}", f"user='alice' {both}", f"user='bob' {both}")
    assert [(one.at, one.status, one.rule.limits_text) for one in found] == [
        (0, "overridden", "5/1m 2-in-flight"),
        (1, "applies", "5/1m 2-in-flight"),
        (2, "no match", "5/1m 2-in-flight"),
    ]


def room_of(rule: str, state: sliding.State) -> tuple[int, int, int | None]:
    (room,) = headrooms(policy(rule).plan(ALICE), [state], START_US)
    return room.used, room.remaining, room.retry_after_us


@pytest.mark.parametrize(
    ("in_flight", "room"), [((), (0, 2, 0)), ((7,), (1, 1, 0)), ((7, 8), (2, 0, None)), ((7, 8, 9), (3, 0, None))]
)
def test_the_headroom_of_a_cap_has_no_wait(in_flight: sliding.State, room: tuple[int, int, int | None]) -> None:
    assert room_of("tool='*' concurrent=2", in_flight) == room


def test_the_headroom_of_a_limit_on_errors_is_the_errors_that_are_left() -> None:
    rule = "tool='*' limit='2/1m' count='errors'"
    assert room_of(rule, (START_US, START_US, 1)) == (1, 1, 0)
    assert room_of(rule, (START_US, START_US - 10 * S, 1, START_US, 1)) == (2, 0, 50 * S)


@pytest.mark.parametrize(("cost", "wait_us"), [(3, 0), (4, 50 * S), (10, 60 * S), (11, None)])
def test_the_headroom_of_a_limit_on_cost_waits_for_room_for_what_the_call_costs(cost: int, wait_us: int | None) -> None:
    plan = policy("tool='*' limit='10/1m' count='cost'", costs=[f"cost={cost}"]).plan(ALICE)
    (room,) = headrooms(plan, [(START_US, START_US - 10 * S, 6, START_US, 1)], START_US)
    assert (room.used, room.remaining, room.retry_after_us) == (7, 3, wait_us)
    assert (room.cost, room.is_too_costly) == (cost, cost == 11)


def test_a_headroom_is_known_if_its_counter_does_not_depend_on_the_arguments() -> None:
    plan = policy("tool='*' per=['arguments'] limit='1/1m'", "tool='s*' limit='deny'").plan(ALICE)
    assert [room.is_known for room in headrooms(plan, [()], START_US)] == [False, True]
    assert [room.is_known for room in headrooms(plan.of_arguments("00"), [()], START_US)] == [True, True]


def test_a_call_needs_room_by_each_hash_that_its_arguments_were_counted_by() -> None:
    plan = policy("user='*' per=['user', 'arguments'] limit='5/10m'").plan(ALICE)
    both = plan.of_arguments("aa", "bb")
    assert [both.counters[limit.counter].label for limit in both.limits] == [
        plan.of_arguments(one).counters[0].label for one in ("aa", "bb")
    ]


def test_a_starter_rule_does_not_apply_to_a_built_in_tool() -> None:
    (one,) = explained("user='*' agent='*::subagent::*' limit='60/1m'", call=ALICE._replace(server="built-in"))
    assert told(one)[:2] == ("no match", "starter rules do not apply to built-in tools")
