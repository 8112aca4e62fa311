import pytest

from mcpguard.policy.explain import cost_sentence, sentence, sentences
from mcpguard.policy.parse import parse
from tests.policy.test_lint import keys


def said(*lines: str) -> str:
    (rule,) = parse("\n".join(["[[rule]]", *lines])).rules
    return sentence(rule)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("user='*' tool='search'", "Each user may call search 5 times a minute."),
        ("user='bob' tool='search'", "bob may call search 5 times a minute."),
        ("tool='search'", "All users together may call search 5 times a minute."),
        ("user='*'", "Each user may call tools 5 times a minute, counting all tools together."),
        ("", "All users together may call tools 5 times a minute, counting all tools together."),
        (
            "user='*' agent='*::*::*'",
            "Each user may call tools 5 times a minute through each agent, counting all tools together.",
        ),
        (
            "user='*' agent='A::subagent::B'",
            "Each user may call tools 5 times a minute through agent A::subagent::B, counting all tools together.",
        ),
        (
            "user='*' agent='*::api::*' per=['user']",
            "Each user may call tools 5 times a minute through agents *::api::*, counting all tools and these agents together.",
        ),
        (
            "agent='*::api::*'",
            "All users together may call tools 5 times a minute through each agent matching *::api::*,"
            " counting all tools together.",
        ),
        (
            "user='*@acme.com' tool='crm_*'",
            "Each user matching *@acme.com may call each tool matching crm_* of each server 5 times a minute.",
        ),
        ("tool='*'", "All users together may call each tool of each server 5 times a minute."),
        (
            "tool='crm_*' per=[]",
            "All users together may call tools matching crm_* 5 times a minute, counting these tools and all servers together.",
        ),
        (
            "tool='*' server='s*' per=[]",
            "All users together may call tools of servers matching s* 5 times a minute,"
            " counting all tools and these servers together.",
        ),
        ("tool='search' per=['user']", "Each user may call search 5 times a minute, counting all servers together."),
        ("tool='search' server='c*'", "All users together may call search of each server matching c* 5 times a minute."),
        ("user='*' server='crm'", "Each user may call tools of crm 5 times a minute, counting all tools together."),
        (
            "server='c*'",
            "All users together may call tools of each server matching c* 5 times a minute, counting all tools together.",
        ),
        (
            "server='c*' per=[]",
            "All users together may call tools of servers matching c* 5 times a minute,"
            " counting all tools and these servers together.",
        ),
        ("user='*' role='support' tool='t'", "Each user with role support may call t 5 times a minute."),
        (
            "role=['a', 'b', 'c*'] scope='s' tool='t'",
            "All users with roles a and b, a role matching c* and scope s together may call t 5 times a minute.",
        ),
    ],
)
def test_a_sentence_says_who_can_call_what_and_who_shares_a_counter(rule: str, words: str) -> None:
    assert said(*keys(rule), "limit='5/1m'") == words


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ("'1/1s'", "once a second"),
        ("'10000/1d'", "10,000 times a day"),
        ("['1/7d', '3/90m', '5/36h']", "once a week, 3 times in any 90 minutes and 5 times in any 36 hours"),
        ("'2/14d'", "2 times in any 2 weeks"),
    ],
)
def test_windows_are_written_as_in_a_sentence(limit: str, words: str) -> None:
    assert said("user='bob'", "tool='t'", f"limit={limit}") == f"bob may call t {words}."


def test_one_call_is_not_several() -> None:
    assert said("user='bob'", "limit='1/1m'") == "bob may call tools once a minute, counting all tools together."


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("tool='delete_user'", "Nobody may call delete_user."),
        ("user='*' tool='delete_user'", "Nobody may call delete_user."),
        ("user='bob' tool='delete_*'", "bob may not call tools matching delete_*."),
        ("user='*@x' server='crm'", "No user matching *@x may call any tool of crm."),
        ("role='guest' agent='*::api::*'", "No user with role guest may call any tool through agents *::api::*."),
        ("", "Nobody may call any tool."),
    ],
)
def test_a_denial_is_described_in_a_sentence(rule: str, words: str) -> None:
    assert said(*keys(rule), "limit='deny'") == words


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("user='bob' tool='t'", "bob may call t without limit, unless another rule applies."),
        ("tool='t' server='s*'", "All users may call t of servers matching s* without limit, unless another rule applies."),
        (
            "user='*@x' agent='A::b::c'",
            "Each user matching *@x may call any tool through agent A::b::c without limit, unless another rule applies.",
        ),
    ],
)
def test_an_unlimited_rule_is_described_as_an_exception(rule: str, words: str) -> None:
    assert said(*keys(rule), "limit='unlimited'") == words


def test_an_observed_rule_is_described_as_reporting_only() -> None:
    assert said("tool='t'", "limit='deny'", "mode='observe'") == "Nobody may call t (reported only, not denied)."


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("user='*' tool='t'", "Each user may have at most 2 calls of t in flight at once."),
        ("tool='t*'", "All users together may have at most 2 calls of each tool matching t* of each server in flight at once."),
        (
            "user='*' server='crm'",
            "Each user may have at most 2 calls of tools of crm in flight at once, counting all tools together.",
        ),
        ("user='bob'", "bob may have at most 2 calls in flight at once, counting all tools together."),
        (
            "agent='*::api::*' tool='t'",
            "All users together may have at most 2 calls of t in flight at once through each agent matching *::api::*.",
        ),
    ],
)
def test_a_cap_is_described_in_a_sentence(rule: str, words: str) -> None:
    assert said(*keys(rule), "concurrent=2") == words


def test_a_cap_of_one_and_no_cap_are_described() -> None:
    assert said("user='bob'", "concurrent=1").startswith("bob may have at most 1 call in flight at once")
    words = "All users may have any number of calls of t in flight, unless another rule applies."
    assert said("tool='t'", "concurrent='unlimited'") == words


def test_a_rule_with_a_limit_and_a_cap_has_one_sentence_about_both() -> None:
    assert said("user='*'", "tool='t'", "limit='5/1m'", "concurrent=2") == (
        "Each user may call t 5 times a minute; at most 2 calls may be in flight at once."
    )
    assert said("tool='t'", "limit='5/1m'", "concurrent='unlimited'").endswith(
        "; any number of calls may be in flight at once."
    )


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("tool='t' server='crm' limit='3/1m'", "All users together may call t of crm until calls fail 3 times a minute."),
        (
            "user='*' tool='t' limit=['1/1m', '9/90m']",
            "Each user may call t until calls fail once a minute or 9 times in any 90",
        ),
        ("server='crm' limit='3/1m'", "may call tools of crm until calls fail 3 times a minute, counting all tools together."),
        (
            "agent='*::api::*' tool='t' limit='3/1m'",
            "may call t until calls fail 3 times a minute through each agent matching *::api::*.",
        ),
    ],
)
def test_a_limit_on_errors_is_described_by_the_failures_that_close_its_tools(rule: str, words: str) -> None:
    assert words in said(*keys(rule), "count='errors'")


def test_a_limit_on_cost_is_described_with_the_costs_that_it_can_meet() -> None:
    (rule,) = parse("[[rule]]\nuser='*'\ntool='report*'\nper=['user']\nlimit=['100/1h', '1/1s']\ncount='cost'").rules
    begin = "Each user may spend 100 units an hour and 1 unit a second on tools matching report*"
    together = ", counting these tools and all servers together"
    assert sentence(rule) == f"{begin}{together}; each call costs 1."
    texts = [f"[[cost]]\ntool='{tool}'\ncost={20 + at}" for at, tool in enumerate(("report_a", "search", "*_b"))]
    found = sentences(parse("[[rule]]\ntool='report*'\nlimit='9/1h'\ncount='cost'\n" + "\n".join(texts)))[0]
    assert found.endswith("; a call of report_a costs 20 and a call of tools matching *_b costs 22.")


def test_of_many_costs_a_sentence_names_the_first_three() -> None:
    costs = "".join(f"[[cost]]\ntool='t{at}'\ncost={at}\n" for at in range(1, 8))
    found = sentences(parse(f"[[rule]]\nlimit='9/1h'\ncount='cost'\n{costs}"))[0]
    assert found.endswith("; a call of t1 costs 1, a call of t2 costs 2, a call of t3 costs 3 and 4 more costs.")


def test_a_cost_is_described_in_a_sentence() -> None:
    one, other = parse("[[cost]]\ntool='t'\nserver='crm'\ncost=20\n[[cost]]\ncost=1").costs
    assert cost_sentence(one) == "A call of t of crm takes 20 units of each limit that counts cost."
    assert cost_sentence(other) == "A call of any tool takes 1 unit of each limit that counts cost."


def test_an_exception_from_cost_or_errors_says_what_it_does_not_count() -> None:
    begin = "All users may call t without limit"
    assert said("tool='t'", "limit='unlimited'", "count='cost'") == f"{begin} at any cost, unless another rule applies."
    assert said("tool='t'", "limit='unlimited'", "count='errors'") == f"{begin} on errors, unless another rule applies."


def test_a_sentence_says_that_arguments_are_counted_apart() -> None:
    assert said("user='*'", "tool='t'", "per=['user', 'arguments']", "limit='5/10m'") == (
        "Each user may call t 5 times in any 10 minutes; calls with different arguments are counted separately."
    )
    assert said("per=['arguments']", "concurrent=2").endswith(
        "in flight at once; calls with different arguments are counted separately."
    )
    assert "arguments" not in said("per=['arguments']", "limit='unlimited'")


def test_a_sentence_says_what_each_session_may_do() -> None:
    assert (
        said("user='*'", "limit='200/session'") == "Each user may call tools 200 times a session, counting all tools together."
    )
    assert said("tool='t'", "limit='1/session'") == "Each user may call t once a session."
    assert said("user='bob'", "tool='t'", "limit=['20/1m', '200/session']", "wait='5s'") == (
        "bob may call t 20 times a minute; at most 200 calls a session; a refused call waits up to 5 seconds."
    )
    assert said("tool='t'", "limit=['20/1m', '9/session']", "count='cost'", "concurrent=2") == (
        "All users together may spend 20 units a minute on t; at most 9 units a session;"
        " at most 2 calls may be in flight at once; each call costs 1."
    )
    assert said("tool='t'", "per=['session']", "limit='5/1m'") == (
        "Each user may call t 5 times a minute, counting all servers together; sessions are counted separately."
    )
    assert said("tool='t'", "limit='3/session'", "count='errors'") == "Each user may call t until calls fail 3 times a session."


def test_a_sentence_says_how_long_a_refused_call_waits() -> None:
    assert said("user='bob'", "tool='t'", "limit='5/1m'", "wait='5s'") == (
        "bob may call t 5 times a minute; a refused call waits up to 5 seconds."
    )
    assert said("tool='t'", "limit='5/1m'", "wait='1h'").endswith("; a refused call waits up to 1 hour.")
    assert said("tool='t'", "limit='5/1m'", "wait='0s'").endswith("; a refused call never waits.")


def test_a_sentence_says_at_which_share_mcpguard_warns() -> None:
    assert said("user='bob'", "limit='5/1m'", "warn='80%'") == (
        "bob may call tools 5 times a minute, counting all tools together; mcpguard warns at 80% of the limit."
    )
    assert said("tool='t'", "limit=['5/1m', '9/1h']", "warn='100%'").endswith("; mcpguard warns at 100% of a limit.")


def policy(*texts: str) -> list[str]:
    """The sentences of a policy whose rules are each on one line."""
    return sentences(parse("".join("\n".join(["[[rule]]", *keys(text), ""]) for text in texts)))


def test_a_sentence_names_the_rules_that_override_its_rule() -> None:
    first, *rest = policy(
        "user='*' tool='search' limit='5/1m'",
        "user='bob' tool='search' limit='9/1m'",
        "user='b*' tool='search' limit='deny'",
        "tool='search' limit='7/1m'",
    )
    assert first == "Each user may call search 5 times a minute, unless a narrower rule says otherwise: rules 2 and 3."
    assert rest[0] == "bob may call search 9 times a minute."
    assert rest[1] == "No user matching b* may call search, unless a narrower rule says otherwise: rule 2."
    assert rest[2] == "All users together may call search 7 times a minute."


def test_of_many_overriding_rules_a_sentence_names_the_first_three() -> None:
    first = policy("user='*' limit='5/1m'", *(f"user='u{at}' limit='9/1m'" for at in range(4)))[0]
    assert first.endswith("otherwise: rules 2, 3, 4 and 5.")
    first = policy("user='*' limit='5/1m'", *(f"user='u{at}' limit='9/1m'" for at in range(7)))[0]
    assert first.endswith("otherwise: rules 2, 3, 4 and 4 more.")
