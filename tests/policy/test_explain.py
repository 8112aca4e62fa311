import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpguard.limiter import sliding
from mcpguard.policy.explain import Headroom, RuleMatch, cost_sentence, headrooms, rule_matches, sentences
from mcpguard.policy.model import Call
from tests.build import START_US
from tests.identity.test_agents import rules, written
from tests.policy.rules import policy

EVERYBODY = "All users together may call"
TOGETHER = ", counting all tools together"


def said(*rules: str, costs: tuple[str, ...] = ()) -> str:
    """The sentence about the first rule of a policy."""
    return sentences(policy(*rules, costs=costs))[0]


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("user='*' tool='search'", "Each user may call search once a minute"),
        ("user='bob' tool='search'", "bob may call search once a minute"),
        ("tool='search'", f"{EVERYBODY} search once a minute"),
        ("user='*'", f"Each user may call tools once a minute{TOGETHER}"),
        ("", f"{EVERYBODY} tools once a minute{TOGETHER}"),
        ("user='*' agent='*::*::*'", f"Each user may call tools once a minute through each agent{TOGETHER}"),
        ("user='*' agent='A::b::C'", f"Each user may call tools once a minute through agent A::b::C{TOGETHER}"),
        (
            "user='*' agent='*::api::*' per=['user']",
            "Each user may call tools once a minute through agents *::api::*, counting all tools and these agents together",
        ),
        ("agent='*::api::*'", f"{EVERYBODY} tools once a minute through each agent matching *::api::*{TOGETHER}"),
        ("user='*@x' tool='c_*'", "Each user matching *@x may call each tool matching c_* of each server once a minute"),
        ("tool='*'", f"{EVERYBODY} each tool of each server once a minute"),
        ("tool='c_*' per=[]", f"{EVERYBODY} tools matching c_* once a minute, counting these tools and all servers together"),
        (
            "tool='*' server='s*' per=[]",
            f"{EVERYBODY} tools of servers matching s* once a minute, counting all tools and these servers together",
        ),
        ("tool='search' per=['user']", "Each user may call search once a minute, counting all servers together"),
        ("tool='search' server='c*'", f"{EVERYBODY} search of each server matching c* once a minute"),
        ("user='*' server='crm'", f"Each user may call tools of crm once a minute{TOGETHER}"),
        ("server='c*'", f"{EVERYBODY} tools of each server matching c* once a minute{TOGETHER}"),
        ("server='*' per=[]", f"{EVERYBODY} tools once a minute, counting all tools and all servers together"),
        ("user='*' role='support' tool='t'", "Each user with role support may call t once a minute"),
        (
            "role=['a', 'b', 'c*'] scope='s' tool='t'",
            "All users with roles a and b, a role matching c* and scope s together may call t once a minute",
        ),
    ],
)
def test_a_sentence_says_who_can_call_what_and_who_shares_a_counter(rule: str, words: str) -> None:
    assert said(f"{rule} limit='1/1m'") == f"{words}."


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ("'1/1s'", "once a second"),
        ("'10000/1d'", "10,000 times a day"),
        ("['1/7d', '3/90m', '5/36h']", "once a week, 3 times in any 90 minutes and 5 times in any 36 hours"),
        ("'2/14d'", "2 times in any 2 weeks"),
        ("'1/session'", "once a session"),
        ("'200/session'", "200 times a session"),
    ],
)
def test_windows_are_written_as_in_a_sentence(limit: str, words: str) -> None:
    assert said(f"user='bob' tool='t' limit={limit}") == f"bob may call t {words}."


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("tool='delete_user' limit='deny'", "Nobody may call delete_user."),
        ("user='*' tool='delete_user' limit='deny'", "Nobody may call delete_user."),
        ("user='bob' tool='delete_*' limit='deny'", "bob may not call tools matching delete_*."),
        ("user='*@x' server='crm' limit='deny'", "No user matching *@x may call any tool of crm."),
        ("role='guest' agent='*::api::*' limit='deny'", "No user with role guest may call any tool through agents *::api::*."),
        ("limit='deny'", "Nobody may call any tool."),
        ("tool='t' limit='deny' mode='observe'", "Nobody may call t (reported only, not denied)."),
    ],
)
def test_a_denial_is_described_in_a_sentence(rule: str, words: str) -> None:
    assert said(rule) == words


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("user='bob' tool='t'", "bob may call t without limit"),
        ("tool='t' server='s*'", "All users may call t of servers matching s* without limit"),
        ("user='*@x' agent='A::b::c'", "Each user matching *@x may call any tool through agent A::b::c without limit"),
        ("tool='t' count='cost'", "All users may call t without limit at any cost"),
        ("tool='t' count='errors'", "All users may call t without limit on errors"),
        ("per=['arguments']", "All users may call any tool without limit"),
        ("role='a'", "Each user with role a may call any tool without limit"),
    ],
)
def test_an_unlimited_rule_is_described_as_an_exception_from_what_it_counts(rule: str, words: str) -> None:
    assert said(f"{rule} limit='unlimited'") == f"{words}, unless another rule applies."


CAPPED = "All users together may have at most"


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("user='*' tool='t'", "Each user may have at most 2 calls of t in flight at once."),
        ("tool='t*'", f"{CAPPED} 2 calls of each tool matching t* of each server in flight at once."),
        ("user='*' server='crm'", f"Each user may have at most 2 calls of tools of crm in flight at once{TOGETHER}."),
        ("user='bob'", f"bob may have at most 2 calls in flight at once{TOGETHER}."),
        ("agent='*::a::*' tool='t'", f"{CAPPED} 2 calls of t in flight at once through each agent matching *::a::*."),
        ("user='*' tool='t' limit='5/1m'", "Each user may call t 5 times a minute; at most 2 calls may be in flight at once."),
    ],
)
def test_a_cap_is_described_in_a_sentence_also_beside_a_limit(rule: str, words: str) -> None:
    assert said(f"{rule} concurrent=2") == words


def test_a_cap_of_one_and_no_cap_are_described() -> None:
    assert said("user='bob' concurrent=1") == f"bob may have at most 1 call in flight at once{TOGETHER}."
    words = "All users may have any number of calls of t in flight, unless another rule applies."
    assert said("tool='t' concurrent='unlimited'") == words
    assert said("tool='t' limit='5/1m' concurrent='unlimited'").endswith("; any number of calls may be in flight at once.")


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("tool='t' server='crm' limit='3/1m'", f"{EVERYBODY} t of crm until calls fail 3 times a minute."),
        ("user='*' tool='t' limit=['1/1m', '9/1h']", "Each user may call t until calls fail once a minute or 9 times an hour."),
        ("limit='3/1m'", f"{EVERYBODY} tools until calls fail 3 times a minute{TOGETHER}."),
        (
            "agent='*::a::*' tool='t' limit='1/1m'",
            f"{EVERYBODY} t until calls fail once a minute through each agent matching *::a::*.",
        ),
        ("tool='t' limit='3/session'", "Each user may call t until calls fail 3 times a session."),
    ],
)
def test_a_limit_on_errors_is_described_by_the_failures_that_close_its_tools(rule: str, words: str) -> None:
    assert said(f"{rule} count='errors'") == words


def test_a_limit_on_cost_is_described_with_the_costs_that_it_can_meet() -> None:
    begin = "Each user may spend 100 units an hour and 1 unit a second on tools matching report*"
    together = ", counting these tools and all servers together"
    rule = "user='*' tool='report*' per=['user'] limit=['100/1h', '1/1s'] count='cost'"
    assert said(rule) == f"{begin}{together}; each call costs 1."
    costs = "tool='report_a' cost=20", "tool='search' cost=21", "tool='*_b' cost=22"
    assert said(rule, costs=costs).endswith("; a call of report_a costs 20 and a call of tools matching *_b costs 22.")


def test_of_many_costs_a_sentence_names_the_first_three() -> None:
    found = said("limit='9/1h' count='cost'", costs=tuple([f"tool='t{at}' cost={at}" for at in range(1, 8)]))
    assert found.endswith("; a call of t1 costs 1, a call of t2 costs 2, a call of t3 costs 3 and 4 more costs.")


def test_a_cost_is_described_in_a_sentence() -> None:
    one, other = policy(costs=("tool='t' server='crm' cost=20", "cost=1")).costs
    assert cost_sentence(one) == "A call of t of crm takes 20 units of each limit that counts cost."
    assert cost_sentence(other) == "A call of any tool takes 1 unit of each limit that counts cost."


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (
            "per=['user','arguments']",
            "Each user may call t once a day; calls with different arguments are counted separately.",
        ),
        (
            "per=['session']",
            "Each user may call t once a day, counting all servers together; sessions are counted separately.",
        ),
        ("user='bob' wait='5s'", "bob may call t once a day; a refused call waits up to 5 seconds."),
        ("user='bob' wait='1h'", "bob may call t once a day; a refused call waits up to 1 hour."),
        ("user='bob' wait='0s'", "bob may call t once a day; a refused call never waits."),
        ("user='bob' warn='80%'", "bob may call t once a day; mcpguard warns at 80% of the limit."),
    ],
)
def test_a_sentence_says_what_is_counted_separately_how_long_calls_wait_and_when_mcpguard_warns(rule: str, words: str) -> None:
    assert said(f"{rule} tool='t' limit='1/1d'") == words


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (
            "user='bob' limit=['20/1m', '200/session'] wait='5s'",
            "bob may call t 20 times a minute; at most 200 calls a session; a refused call waits up to 5 seconds.",
        ),
        (
            "limit=['20/1m', '9/session'] count='cost' concurrent=2",
            "All users together may spend 20 units a minute on t; at most 9 units a session;"
            " at most 2 calls may be in flight at once; each call costs 1.",
        ),
        (
            "user='*' limit=['5/1m', '9/1h'] warn='100%'",
            "Each user may call t 5 times a minute and 9 times an hour; mcpguard warns at 100% of a limit.",
        ),
        (
            "per=['arguments'] concurrent=2",
            f"{CAPPED} 2 calls of t in flight at once; calls with different arguments are counted separately.",
        ),
    ],
)
def test_a_sentence_names_all_that_a_rule_limits(rule: str, words: str) -> None:
    assert said(f"tool='t' {rule}") == words


def test_a_sentence_names_the_rules_that_override_its_rule() -> None:
    search = "user='*'", "user='bob'", "user='b*'", "per=[]"
    first, second, third, last = sentences(policy(*(f"{who} tool='search' limit='5/1m'" for who in search)))
    assert first == "Each user may call search 5 times a minute, unless a narrower rule says otherwise: rules 2 and 3."
    assert third.endswith("may call search 5 times a minute, unless a narrower rule says otherwise: rule 2.")
    assert "unless" not in second + last


def test_of_many_overriding_rules_a_sentence_names_the_first_three() -> None:
    for users, words in ((4, "rules 2, 3, 4 and 5."), (7, "rules 2, 3, 4 and 4 more.")):
        assert said("user='*' limit='5/1m'", *(f"user='u{at}' limit='9/1m'" for at in range(users))).endswith(f"wise: {words}")


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
