"""Rules: which match, which are overridden, and their counters, as far as the vectors do not test it."""

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpguard.limiter.plan import Label, Plan, Reported, label_parts
from mcpguard.policy.explain import overriding
from mcpguard.policy.model import Call, Policy, Rule, server_named
from mcpguard.policy.parse import STARTER, parse
from tests.build import steps
from tests.policy.rules import policy, written

ALICE = Call("alice", "Claude Code::interactive::default", "crm", "search")


def label(plan: Plan, at: int = 0) -> list[object]:
    return list(json.loads(plan.counters[at].label))


# Matching and yielding


MATCHING = {
    True: (
        *("", "user='alice'", "user='ali*'", "server='crm' tool='search'", "agent='*::interactive::*'"),
        *("role='admin'", "role=['admin', 'dev']", "role='*'", "scope='crm.*'"),
    ),
    False: ("user='bob'", "server='other' tool='search'", "role=['admin', 'ops']", "scope='mail.*'", "scope='admin'"),
}


@pytest.mark.parametrize(("matches", "rule"), [(matches, rule) for matches, rules in MATCHING.items() for rule in rules])
def test_a_rule_matches_if_every_selector_matches(rule: str, matches: bool) -> None:
    call = ALICE._replace(roles=("admin", "dev"), scopes=("crm.read",))
    assert bool(policy(f"{rule} limit='1/1s'").applying(call)) is matches


def test_a_rule_that_selects_by_more_overrides_none_although_both_have_the_same_per() -> None:
    found = policy("user='*' per=['user'] limit='1/1s'", "user='*' tool='search' per=['user'] limit='2/1s'")
    assert [at for _, at in found.applying(ALICE)] == [0, 1]


def matching(rules: Sequence[Rule], call: Call) -> list[tuple[int, int | None]]:
    """`Policy.matching` by comparing all pairs of matching rules."""
    matched = [at for at, rule in enumerate(rules) if rule.matches(call)]
    narrower = {at: next((other for other in matched if rules[at].is_overridden_by(rules[other])), None) for at in matched}
    standing = [at for at in matched if narrower[at] is None]
    firsts = {at: next(other for other in standing if rules[other].reach == rules[at].reach) for at in standing}
    return [(at, narrower[at] if at not in firsts or firsts[at] == at else firsts[at]) for at in matched]


few = st.text("ab*", min_size=1, max_size=4)
one = few.map(lambda text: (text,))
some = st.lists(few, min_size=1, max_size=2).map(tuple)
agents = st.tuples(few, few, few).map(lambda parts: ("::".join(parts),))
some_rules = st.builds(
    lambda selectors, per, counts: Rule(selectors, per, counts=counts),
    st.fixed_dictionaries({}, optional={"user": one, "agent": agents, "tool": one, "server": one, "role": some, "scope": some}),
    st.sampled_from([frozenset[str](), frozenset({"user"}), frozenset({"tool", "server"})]),
    st.sampled_from(["calls", "calls", "cost", "errors"]),
)
names = st.text("ab", min_size=1, max_size=4)
held = st.lists(names, max_size=3).map(tuple)
calls = st.builds(Call, names, st.tuples(names, names, names).map("::".join), names, names, held, held)


@given(st.lists(some_rules, max_size=25), calls)
def test_matches_and_overrides_are_those_of_comparing_all_pairs(rules: list[Rule], call: Call) -> None:
    assert Policy(tuple(rules)).matching(call) == matching(rules, call)


@given(st.lists(some_rules, max_size=12))
def test_the_rules_that_override_a_rule_are_those_of_comparing_all_pairs(rules: list[Rule]) -> None:
    expected = [[at for at, other in enumerate(rules) if rule.is_overridden_by(other)] for rule in rules]
    assert overriding(Policy(tuple(rules))) == expected


# Counters


def test_a_counter_is_identified_by_its_per_values_the_other_selectors_and_the_window() -> None:
    plan = policy("user='*' tool='sea*' role='dev' limit=['5/1m', '9/1h']").plan(ALICE._replace(roles=("dev",)), "team")
    expected = ["team", {"server": "crm", "tool": "search", "user": "alice"}, {"role": ["dev"]}]
    assert [label(plan, 0), label(plan, 1)] == [[*expected, 60_000_000], [*expected, 3_600_000_000]]
    assert all(0 < counter.id < 1 << 63 for counter in plan.counters)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("user='*' limit='5/1m'", "user='alice' limit='9/1m'", True),
        ("user='*' limit='5/1m'", "user='*' limit='9/60s'", True),
        ("user='*' limit='5/1m'", "user='*' limit='5/2m'", False),
        ("user='*' limit='5/1m'", "tool='*' limit='5/1m'", False),
        ("tool='search' limit='5/1m'", "tool='search' server='crm' limit='5/1m'", True),
        ("user='*' per=[] limit='5/1m'", "user='a*' per=[] limit='5/1m'", False),
        ("user='*' role=['a', 'b'] limit='5/1m'", "user='*' role=['b', 'a'] limit='5/1m'", True),
        ("user='*' role='a' limit='5/1m'", "user='*' limit='5/1m'", False),
    ],
)
def test_rules_that_count_the_same_share_a_counter(one: str, other: str, same: bool) -> None:
    call = ALICE._replace(roles=("a", "b"))
    first, second = (policy(rule).plan(call).counters[0] for rule in (one, other))
    assert (first.id == second.id) is same is (first.label == second.label)


def test_two_rules_with_one_counter_have_two_limits_on_it() -> None:
    plan = policy("user='a*' limit='1/1s'", "user='*e' limit='2/1s'").plan(ALICE)
    assert ([limit.counter for limit in plan.limits], len(plan.counters)) == ([0, 0], 1)


def test_names_cannot_forge_another_counter() -> None:
    rule = policy("user='*' tool='*' limit='1/1s'")
    names = ["a", 'a","tool":"b', "a\\", "", "*", "é", "\ud800"]
    counters = {rule.plan(Call(user, "x::y::z", "s", tool)).counters[0].id for user in names for tool in names}
    assert len(counters) == len(names) ** 2


AXES = {
    "agent": ("user='*' tool='x' agent='*'", "user='*' agent='*' per=[]", "agent='*' per=['session']"),
    "user": (
        *("user='*' tool='x'", "user='*' agent='*' per=['user']", "user='*' per=[]", "user='*' per=['server']"),
        "user='*' agent='*' per=['user', 'session']",
    ),
    "tool": ("tool='x'", "server='x'", "", "user='*' tool='*' agent='*' per=[]", "per=['session']"),
}


@pytest.mark.parametrize(("axis", "rule"), [(axis, rule) for axis in AXES for rule in AXES[axis]])
def test_the_axis_of_a_limit_follows_from_per_and_the_selectors(rule: str, axis: str) -> None:
    assert policy(f"{rule} limit='1/1s'").rules[0].axis == policy(f"{rule} limit='1/session'").rules[0].axis == axis


@pytest.mark.parametrize(
    ("rule", "text", "limit_text"),
    [
        ("tool='x' user='*' limit=['5/1m', '9/1h']", "user=* tool=x", "5/1m 9/1h"),
        ("scope=['a', 'b'] role='c' limit='deny'", "role=c scope=a,b", "deny"),
        ("per=[] limit='unlimited'", "per=none", "unlimited"),
        ("tool='x' per=['tool', 'user'] limit='1/1s'", "tool=x per=user,tool", "1/1s"),
        ("limit='1/1s'", "every call", "1/1s"),
    ],
)
def test_the_text_of_a_rule_is_its_selectors_and_per(rule: str, text: str, limit_text: str) -> None:
    parsed = policy(rule).rules[0]
    assert (parsed.text, parsed.limit_text) == (text, limit_text)


def test_unlimited_counts_nothing_and_deny_has_no_counter() -> None:
    assert not policy("limit='unlimited'").plan(ALICE).limits
    plan = policy("limit='deny'").plan(ALICE)
    assert (plan.limits[0].n, plan.counters) == (0, ())
    assert plan.reported[0].members() == {"axis": "tool", "rule": "every call"}


def test_observe_mode_is_set_by_the_rule_or_the_policy() -> None:
    rules = "limit='1/1s' mode='observe'", "tool='*' limit='1/1s'"
    assert [limit.observe for limit in policy(*rules).plan(ALICE).limits] == [True, False]
    assert [limit.observe for limit in policy(*rules, head="mode='observe'\n").plan(ALICE).limits] == [True, True]
    assert [limit.observe for limit in parse(written(*rules), observe=True).plan(ALICE).limits] == [True, True]


# Caps, cost, errors, arguments and waits


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("limit='deny'", "deny"),
        ("limit='unlimited'", "unlimited"),
        ("limit='unlimited' concurrent=2", "unlimited 2-in-flight"),
        ("limit='5/1m' concurrent='unlimited'", "5/1m unlimited-in-flight"),
        ("concurrent='unlimited'", "unlimited-in-flight"),
        ("limit=['5/1m', '9/1h'] count='errors'", "5-errors/1m 9-errors/1h"),
    ],
)
def test_the_limits_of_a_rule_are_written_as_in_reports(rule: str, text: str) -> None:
    assert policy(rule).rules[0].limits_text == text


def test_the_limits_of_a_plan_are_reported_as_those_of_their_rules() -> None:
    rules = "limit=['5/1m', '9/1h'] concurrent=2", "user='alice' limit='7/1h' count='errors'", "tool='search' limit='deny'"
    found = policy(*rules)
    assert found.plan(ALICE).reported == tuple(one for rule in found.rules for one in rule.reported)
    for one in found.plan(ALICE).reported:
        assert Reported.of({**one.members(), "other": 7}) == one


def test_parts_are_overridden_by_the_same_parts_only() -> None:
    both = "user='*' limit='5/1m' concurrent=2"
    found = policy(both, "user='alice' limit='9/1m'", "user='a*' concurrent=3", "user='al*' limit='7/1m' count='errors'")
    assert [(one.limits_text, at) for one, at in found.applying(ALICE)] == [("9/1m", 1), ("3-in-flight", 2), ("7-errors/1m", 3)]
    assert overriding(found) == [[1, 2], [], [], []]


def test_an_unlimited_cap_is_an_exception_from_a_cap() -> None:
    found = policy("user='*' concurrent=2", "user='alice' concurrent='unlimited'")
    assert not found.plan(ALICE).limits
    assert found.plan(ALICE._replace(user="bob")).caps


def test_the_label_of_a_counter_tells_what_it_counts() -> None:
    rules = ("concurrent=2", "limit='5/1m' count='errors'", "limit='5/1m' count='cost'", "limit='5/1m'")
    plan = policy(*(f"user='*' {rule}" for rule in rules)).plan(ALICE, "team")
    assert [label_parts(counter.label) for counter in plan.counters] == [
        Label("team", {"user": "alice"}, {}, "concurrent", 0),
        *(Label("team", {"user": "alice"}, {}, counts, 60_000_000) for counts in ("errors", "cost", "calls")),
    ]
    assert len({counter.id for counter in plan.counters}) == 4


def test_calls_with_different_arguments_have_counters_of_their_own() -> None:
    plan = policy("user='*' per=['user', 'arguments'] limit='5/1m'", "user='*' limit='9/1m'").plan(ALICE)
    assert (plan.is_split, [counter.is_split for counter in plan.counters]) == (True, [True, False])
    one, other = plan.of_arguments("00"), plan.of_arguments("01")
    assert (one.is_split, one.counters[1]) == (False, plan.counters[1])
    values = {"user": "alice", "tool": "search", "server": "crm", "arguments": "00"}
    assert label_parts(one.counters[0].label).values == values
    assert one.counters[0].id != other.counters[0].id != plan.counters[0].id


def test_a_call_costs_what_the_narrowest_cost_says() -> None:
    def cost(*tables: str) -> int:
        return policy(costs=tables).cost(ALICE)

    assert cost("tool='other' cost=9") == 1
    assert cost("cost=2", "tool='s*' cost=3", "tool='search' cost=4") == 4
    assert cost("tool='search' cost=4", "tool='search' server='crm' cost=3") == 3
    assert cost("tool='s*' cost=4", "tool='*h' cost=5") == 5
    assert cost("tool='search' cost=4", "server='crm' cost=5") == 5


def test_only_limits_on_cost_take_what_a_call_costs() -> None:
    plan = policy("limit='50/1h' count='cost' concurrent=2", "user='*' limit='5/1h'", costs=["cost=20"]).plan(ALICE)
    assert [(limit.counts, limit.cost) for limit in plan.limits] == [("cost", 20), ("concurrent", 1), ("calls", 1)]
    assert plan.cost == 20
    assert policy("limit='5/1h'", costs=["cost=20"]).plan(ALICE).cost is None


def test_a_rule_has_the_wait_of_the_policy_unless_it_has_its_own() -> None:
    rules = ("limit='5/1m'", "user='*' limit='5/1m' wait='2m'", "tool='*' limit='5/1m' wait='0s'")
    assert [limit.wait_us for limit in policy(*rules).plan(ALICE).limits] == [0, 120_000_000, 0]
    assert [limit.wait_us for limit in policy(*rules, head="wait = '5s'\n").plan(ALICE).limits] == [5_000_000, 120_000_000, 0]


def test_rules_that_name_other_users_or_tools_cost_a_call_nothing() -> None:
    def of(rules: int) -> int:
        found = policy(*(f"user='u{at}' tool='t{at}' limit='1/1s'" for at in range(rules)))
        return steps(lambda: found.plan(Call("u7", "a::b::c", "crm", "t7")))

    assert of(1000) == of(10)


def test_starter_rules_do_not_apply_to_built_in_tools_and_edited_ones_do() -> None:
    found = policy("user='*' limit='9/1h'", head=STARTER.replace("100/1m", "99/1m"))
    calls = [ALICE._replace(agent=f"X::{tier}::y") for tier in ("interactive", "api")]
    assert [[at for _, at in found.applying(call)] for call in calls] == [[0, 4], [3, 4]]
    assert [[at for _, at in found.applying(call._replace(server="built-in"))] for call in calls] == [[0, 4], [4]]


def test_without_waiting_a_policy_has_only_the_limits_that_count_what_is_given() -> None:
    rules = "tool='t' limit='9/1h' concurrent=1 wait='9s'", "tool='*' limit='2/1h' count='errors'"
    plan = policy(*rules, head="wait = '5s'\n").without_waiting({"calls", "cost"}).plan(ALICE._replace(tool="t"))
    assert ([limit.n for limit in plan.limits], plan.waits) == ([9], False)
    (rule,) = policy("limit=['9/1h', '2/session'] mode='observe'").without_waiting({"calls"}).rules
    assert len(rule.parts) == 2  # an observed rule counts a call on all of its limits, or on none
    edited = parse(STARTER + "concurrent = 2\n").without_waiting({"calls"})
    assert [rule.is_starter for rule in edited.rules] == [True, True, True, False]


def test_no_server_has_the_name_of_the_clients_own_tools() -> None:
    assert [server_named(name) for name in ("crm", "built-in")] == ["crm", "built-in (server)"]


# Sessions


@pytest.mark.parametrize(
    ("rule", "parts"),
    [
        ("user='*' limit='9/session'", [("9/session", True)]),
        ("user='*' limit=['5/1m', '9/session', '7/1h']", [("5/1m 7/1h", False), ("9/session", True)]),
        ("user='*' limit='9/session' concurrent=2", [("9/session", True), ("2-in-flight", False)]),
        ("user='*' per=['session'] limit=['5/1m', '9/session']", [("5/1m 9/session", True)]),
        ("user='*' per=['session'] concurrent=2", [("2-in-flight", True)]),
        ("user='*' limit=['5/30d', '9/session']", [("5/30d", False), ("9/session", True)]),
    ],
)
def test_limits_per_session_are_a_part_of_their_rule(rule: str, parts: list[tuple[str, bool]]) -> None:
    (found,) = policy(rule).rules
    assert [(part.limits_text, "session" in part.per) for part in found.parts] == parts
    assert [part.parts for part in found.parts] == [(part,) for part in found.parts]
    assert len({part.key for part in found.parts}) == len(parts)


def test_a_counter_of_a_session_names_it_after_the_axes_and_a_long_name_is_cut() -> None:
    rule = policy("user='*' per=['arguments', 'session', 'user'] limit='5/1m'")
    (counter,) = rule.plan(ALICE._replace(session="s1")).counters
    assert list(label_parts(counter.label).values) == ["user", "tool", "server", "session", "arguments"]
    assert counter.label.count('"session":"s1"') == 1
    assert len(rule.plan(ALICE._replace(session="x" * 999)).counters[0].label) < 500


def test_a_user_named_like_the_mark_of_arguments_or_sessions_is_not_taken_for_it() -> None:
    plan = policy("user='*' limit='5/1m'").plan(ALICE._replace(user='"arguments":""'))
    assert not plan.is_split
    assert vars(plan.of_arguments("00")) == vars(plan)
    forged = ALICE._replace(user='a","session":"b')
    assert not policy("user='*' limit='5/1m'").plan(forged).counts_by(0, "session")
    assert policy("user='*' limit='5/session'").plan(forged).counts_by(0, "session")


def test_a_rule_and_what_drops_it_name_the_session_only_where_the_file_or_a_limit_does() -> None:
    (first,) = policy("user='*' limit='9/session'").rules
    (second,) = policy("user='*' per=['user', 'session'] limit='5/1m'").rules
    assert (first.text, second.text) == ("user=*", "user=* per=user,session")
    assert first.setting == ["--user", "*", "9/session"]
    assert first.parts[0].options == second.options == ["--user", "*", "--per", "user,session"]
