"""Limits that are suggested from the calls that were seen."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpguard.limiter import sliding
from mcpguard.limiter.sliding import EMPTY, State
from mcpguard.policy.model import Call, Policy
from mcpguard.policy.parse import STARTER, parse, parse_rule
from mcpguard.policy.suggest import LEAST_CALLS, Findings, Suggestion, Survey, rounded_up
from tests.policy.rules import written

SECOND_US, MINUTE_US, HOUR_US, DAY_US = 1_000_000, 60_000_000, 3_600_000_000, 86_400_000_000
START_US = 1_767_225_600_000_000


def row(time_us: int, *, user: str = "alice", tool: str = "search", **more: Any) -> dict[str, object]:
    agent = "Cursor::interactive::default"
    return {"time_us": time_us, "user": user, "agent": agent, "tool": tool, "server": "crm", "decision": "allowed", **more}


def calls(times: int, every_us: int, *, begin_us: int = 0, **more: Any) -> list[dict[str, object]]:
    return [row(START_US + begin_us + at * every_us, **more) for at in range(times)]


def findings(policy: str, rows: Sequence[dict[str, object]]) -> Findings:
    survey = Survey(parse(policy))
    survey.add(rows)
    return survey.findings()


def suggestions(policy: str, rows: Sequence[dict[str, object]]) -> list[Suggestion]:
    return list(findings(policy, rows).suggestions)


def limits(suggestion: Suggestion) -> list[str]:
    return [f"{one.n}/{one.window}" for one in suggestion.limits]


NO_RULES = "mode = 'observe'"


def of_search(limit: str, rows: Sequence[dict[str, object]], *others: str, more: str = "") -> Suggestion:
    """The suggestion for a rule for each user and the tool search."""
    return suggestions(written(f"user='*' tool='search' limit={limit} {more}", *others), rows)[0]


def test_a_suggested_limit_is_twice_the_busiest_window_rounded_up_and_says_whose_it_was() -> None:
    rows = calls(41, MINUTE_US, user="alice") + calls(30, 2 * MINUTE_US, user="bob", begin_us=DAY_US)
    search = of_search("'1000/1h'", rows)
    (limit,) = search.limits
    assert (search.kind, search.at, search.calls, limit.was) == ("change", 0, 71, 1000)
    assert (limit.n, limit.window, limit.reason) == (100, "1h", "busiest hour of 41 calls by alice; x2, rounded up")
    assert (limit.peak.calls, limit.peak.who, limit.peak.begin_us) == (41, "alice", START_US)


def test_a_suggested_limit_is_at_least_five() -> None:
    rows = calls(30, HOUR_US)
    search = of_search("'100/1h'", rows)
    assert (limits(search), search.limits[0].reason) == (["5/1h"], "busiest hour of 1 call by alice; x2, and at least 5")
    assert of_search("'5/1h'", rows).kind == "keep"


@pytest.mark.parametrize(("limit", "kind"), [("29/1h", "change"), ("30/1h", "keep"), ("80/1h", "keep"), ("81/1h", "change")])
def test_a_limit_between_one_and_a_half_and_four_times_the_busiest_window_stays(limit: str, kind: str) -> None:
    rows = calls(20, MINUTE_US) + calls(1, 1, begin_us=DAY_US)
    assert of_search(f"'{limit}'", rows).kind == kind


LOOP = calls(300, SECOND_US, begin_us=DAY_US, user="bob")
WORK = calls(8 * 7, HOUR_US)
"""A call an hour."""


def test_a_limit_that_comes_from_a_single_burst_says_so() -> None:
    for found in (suggestions(NO_RULES, LOOP + WORK)[0], of_search("['1000/1m', '5000/1h']", LOOP + WORK)):
        minute, hour = found.limits
        assert (minute.n, hour.n) == (120, 600)
        assert minute.burst == "a single burst, at other times no minute has more than 1 call"
        assert minute.reason == f"busiest minute of 60 calls by bob; x2, rounded up; {minute.burst}"
        assert hour.burst == "a single burst, at other times no hour has more than 1 call"


@pytest.mark.parametrize(
    "more",
    [
        calls(300, SECOND_US, begin_us=DAY_US + 3 * HOUR_US, user="bob"),  # twice
        calls(16, SECOND_US, begin_us=3 * DAY_US),  # a quarter of it
    ],
)
def test_a_busy_minute_that_comes_again_is_no_single_burst(more: list[dict[str, object]]) -> None:
    minute = suggestions(NO_RULES, LOOP + WORK + more)[0].limits[0]
    assert (minute.peak.calls, minute.burst) == (60, "")


def test_few_calls_and_a_short_history_are_no_single_burst() -> None:
    assert not any(limit.burst for one in suggestions(NO_RULES, LOOP) for limit in one.limits)
    few = calls(19, SECOND_US, begin_us=DAY_US, user="bob") + WORK
    assert not any(limit.burst for one in suggestions(NO_RULES, few) for limit in one.limits)


def test_a_limit_that_stays_is_not_said_to_come_from_a_burst() -> None:
    search = of_search("'120/1m'", LOOP + WORK)
    assert (search.kind, search.limits[0].burst) == ("keep", "")


def test_a_limit_is_not_lowered_if_the_history_is_shorter_than_two_windows() -> None:
    rows = calls(40, HOUR_US)
    search = of_search("['500/1d', '500/1h']", rows)
    assert limits(search) == ["500/1d", "5/1h"]
    assert search.limits[0].reason == "busiest day of 24 calls by alice; stays, the history is shorter than two windows"
    assert limits(of_search("'30/1d'", rows)) == ["50/1d"]  # but raised


def test_with_few_calls_a_rule_stays() -> None:
    search = of_search("'1/1m'", calls(LEAST_CALLS - 1, SECOND_US))
    assert (search.kind, limits(search), search.limits[0].reason) == ("few", ["1/1m"], f"only {LEAST_CALLS - 1} calls seen")


def test_calls_that_did_not_reach_the_server_count_only_as_denied() -> None:
    rule: dict[str, Any] = {"rule": "user=* tool=search"}
    rows = [
        *calls(10, SECOND_US, decision="would_deny"),
        *calls(5, SECOND_US, decision="allowed_unavailable", begin_us=MINUTE_US // 2),
        *calls(5, SECOND_US),
        *calls(3, SECOND_US, decision="rate_limited", **rule),
        *calls(1, SECOND_US, decision="rate_limited", repeats=500, **rule),
    ]
    search = of_search("'7/1m'", rows)
    assert (search.calls, search.denied, search.limits[0].peak.calls) == (20, 503, 20)


def test_an_overridden_rule_does_not_count_the_calls_of_its_exception() -> None:
    text = written("user='*' tool='search' limit='5/1h'", "user='alice' tool='search' limit='5/1h'")
    rows = calls(60, SECOND_US) + calls(25, SECOND_US, user="bob")
    everybody, alice = suggestions(text, rows)[:2]
    assert [everybody.limits[0].peak.calls, alice.limits[0].peak.calls] == [25, 60]


ALL_OF_A_TIER: dict[str, object] = {"user": "*", "agent": "*::interactive::*", "per": ["user"]}
EACH_OF_SEARCH: dict[str, object] = {"user": "*", "tool": "search"}


@pytest.mark.parametrize(
    ("rule", "tables"),
    [
        ("tool='search' limit='deny'", [ALL_OF_A_TIER]),
        ("tool='sea*' limit='unlimited'", [ALL_OF_A_TIER]),
        ("user='bob' tool='search' limit='unlimited'", [ALL_OF_A_TIER, EACH_OF_SEARCH]),  # it does not stand for all
        ("tool='search' scope='a' limit='1/1h'", [ALL_OF_A_TIER, EACH_OF_SEARCH]),  # the audit has no scopes
    ],
)
def test_a_denied_or_an_unlimited_tool_gets_no_rule_and_others_do(rule: str, tables: list[dict[str, object]]) -> None:
    assert [one.table for one in suggestions(written(rule), calls(50, SECOND_US))] == tables


def test_a_rule_on_roles_counts_calls_with_the_role() -> None:
    rule = "role=['a', 'b'] per=[] limit='1/1h'"
    first = suggestions(written(rule), calls(30, SECOND_US, roles=["a", "b"]) + calls(30, SECOND_US, roles=["a"]))[0]
    assert (first.table, limits(first)) == ({"role": ["a", "b"], "per": []}, ["60/1h"])
    assert first.limits[0].reason.startswith("busiest hour of 30 calls; ")


def test_new_rules_are_for_each_tier_and_for_each_tool_that_no_rule_limits() -> None:
    rows = calls(40, SECOND_US) + calls(90, 40 * SECOND_US, tool="report") + calls(5, SECOND_US, tool="rare")
    found = suggestions(NO_RULES, rows)
    assert [(one.kind, one.table) for one in found] == [
        ("add", ALL_OF_A_TIER),
        ("add", {"user": "*", "tool": "report"}),
        ("add", EACH_OF_SEARCH),
    ]
    assert [limits(one) for one in found] == [["100/1m", "300/1h"], ["5/1m", "200/1h"], ["80/1h"]]


def test_a_tier_with_few_calls_gets_no_limit() -> None:
    (tier,) = suggestions(NO_RULES, calls(3, SECOND_US))
    assert (tier.kind, tier.limits, tier.calls) == ("few", (), 3)


def test_the_starter_rules_are_adjusted_and_not_repeated() -> None:
    found = suggestions(STARTER, calls(40, SECOND_US))
    assert [(one.kind, one.at) for one in found] == [("keep", 0), ("few", 1), ("few", 2), ("few", 3), ("add", -1)]


@pytest.mark.parametrize("tool", ["a*", "x" * 300, "a\nb", ""])
def test_a_tool_that_a_rule_cannot_name_gets_none(tool: str) -> None:
    assert [one.table.get("tool") for one in suggestions(NO_RULES, calls(40, SECOND_US, tool=tool))] == [None]


def test_an_agent_without_three_parts_has_no_tier() -> None:
    assert [one.table for one in suggestions(NO_RULES, calls(40, SECOND_US, agent="odd"))] == [EACH_OF_SEARCH]


def test_only_the_most_called_tools_get_new_rules() -> None:
    rows = [one for at in range(25) for one in calls(20 + at, SECOND_US, tool=f"tool{at}")]
    found = findings(NO_RULES, rows)
    tools = [one.table["tool"] for one in found.suggestions if "tool" in one.table]
    assert tools == [f"tool{at}" for at in range(24, 4, -1)]
    assert found.tools_left_out == 5


def test_names_that_a_client_makes_up_get_no_rules() -> None:
    rows = [row(START_US + at * MINUTE_US, tool=f"tool{at}", user=f"user{at}") for at in range(6000)]
    found = findings(STARTER, rows[::-1])
    assert (found.suggestions[0].limits[0].peak.calls, found.tools_left_out) == (1, 0)


@pytest.mark.parametrize(
    ("rows", "enough"),
    [(calls(100, 15 * MINUTE_US), True), (calls(99, 15 * MINUTE_US), False), (calls(100, MINUTE_US), False), ([], False)],
)
def test_a_day_and_a_hundred_calls_are_enough_history(rows: list[dict[str, object]], enough: bool) -> None:
    assert findings(NO_RULES, rows).is_enough is enough


@given(
    st.lists(st.tuples(st.integers(0, 7200), st.sampled_from(["al", "bob"]), st.sampled_from("ab")), min_size=40, max_size=150),
    st.sampled_from(
        [NO_RULES, STARTER, written("user='*' tool='b' limit=['9/1m', '30/1h']"), written("tool='a' limit='400/7m'")]
    ),
)
def test_no_suggested_limit_would_have_denied_a_call_that_was_seen(seen: list[tuple[int, str, str]], text: str) -> None:
    rows = [row(START_US + at * SECOND_US, user=user, tool=tool) for at, user, tool in sorted(seen)]
    for suggestion in suggestions(text, rows):
        if suggestion.kind == "few":
            continue
        rule = parse_rule({**suggestion.table, "limit": limits(suggestion)}, where="test")
        policy = Policy((rule,))
        pairs = {(user, tool) for _, user, tool in seen}
        plans = {pair: policy.plan(Call(pair[0], "Cursor::interactive::default", "crm", pair[1])) for pair in pairs}
        states: dict[int, State] = {}
        for at, user, tool in sorted(seen):
            plan = plans[user, tool]
            held = [states.get(counter.id, EMPTY) for counter in plan.counters]
            decision = sliding.decide(plan.limits, held, START_US + at * SECOND_US)
            assert decision.admitted
            states.update(zip([counter.id for counter in plan.counters], decision.states, strict=True))


def busiest(times: Sequence[int], window_us: int) -> int:
    """The most calls in any window, by comparing all pairs."""
    return max((sum(begin <= time < begin + window_us for time in times) for begin in times), default=0)


@given(st.lists(st.integers(0, 200), min_size=20, max_size=120), st.integers(1, 90))
def test_the_busiest_window_is_that_of_comparing_all_windows(seconds: list[int], window_s: int) -> None:
    rows = [row(START_US + second * SECOND_US) for second in seconds]
    assert of_search(f"'1/{window_s}s'", rows).limits[0].peak.calls == busiest(seconds, window_s)


@given(st.integers(0, 10**9))
def test_a_rounded_limit_is_not_below_and_at_most_a_third_above(n: int) -> None:
    assert max(1, n) <= rounded_up(n) <= max(1, n * 4 / 3)


MANY = calls(41, MINUTE_US)


@pytest.mark.parametrize(
    ("rule", "tables"),
    [
        ("concurrent=2", [EACH_OF_SEARCH]),
        ("limit='900/1h' count='errors'", [EACH_OF_SEARCH]),
        ("limit='900/1h' per=['user', 'arguments']", [EACH_OF_SEARCH]),
        ("limit='900/session'", [EACH_OF_SEARCH]),
        ("limit='900/1h' count='cost'", []),
        ("limit=['900/1h', '9/session']", []),
    ],
)
def test_what_does_not_limit_calls_stands_in_for_no_new_rule(rule: str, tables: list[dict[str, object]]) -> None:
    found = suggestions(written(f"tool='search' {rule}"), MANY)
    assert [one.table for one in found if "tool" in one.table] == tables
    assert [one.at for one in found if "tool" in one.table] == [-1] * len(tables)


@pytest.mark.parametrize(
    ("override", "kind", "calls", "found"),
    [
        ("tool='other' limit='5/1m'", "change", 41, ["5/1m"]),
        ("user='alice' tool='search' concurrent=9", "change", 41, ["5/1m"]),
        ("user='alice' tool='search' limit='unlimited'", "few", 0, ["1000/1m"]),
    ],
)
def test_a_limit_beside_a_cap_is_changed_by_its_calls(override: str, kind: str, calls: int, found: list[str]) -> None:
    search = of_search("'1000/1m'", MANY, override, more="concurrent=2")
    assert (search.at, search.kind, search.calls, limits(search)) == (0, kind, calls, found)


def test_only_denials_by_limits_on_calls_count_as_denials_of_a_rule() -> None:
    denial = {"decision": "rate_limited", "rule": "user=* tool=search"}
    rows = [*MANY, row(START_US, **denial), row(START_US, **denial, counts="concurrent", repeats=7)]
    assert of_search("'1000/1h'", rows, more="concurrent=2").denied == 1
