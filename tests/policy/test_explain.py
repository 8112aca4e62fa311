import pytest

from mcpguard.policy.explain import cost_sentence, sentences
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
