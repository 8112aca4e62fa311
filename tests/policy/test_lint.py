"""Warnings of probable mistakes in valid policies."""

import re
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpguard.limiter import sliding
from mcpguard.limiter.sliding import EMPTY, Limit
from mcpguard.policy.explain import series
from mcpguard.policy.lint import Capped, Tightness, place, still_capped, superfluous, warnings
from mcpguard.policy.model import Policy, Rate
from mcpguard.policy.parse import STARTER, parse
from tests.build import steps
from tests.policy.rules import keys, policy, written


def rules(*texts: str, head: str = "", costs: Sequence[str] = ()) -> list[str]:
    return warnings(policy(*texts, head=head, costs=costs), tiers=("x", "z", "b"))


CLOSED = "tool='t' limit='deny'"
EACH_CLOSED = f"user='*' {CLOSED}"
BOTH_ROLES = "user='*' tool='t' role=['a', 'b']"
TIERS_TOLD = "which is none of interactive subagent background api;"


NARROWER = "only a rule that is narrower than rule 1 can be an exception from it"


@pytest.mark.parametrize(
    ("texts", "warning"),
    [
        (
            [CLOSED, "user='*' tool='t' limit='5/1m'"],
            "line 4: rule 2 (user=* tool=t) can never admit a call: line 1: rule 1 (tool=t) denies all of its calls;"
            f" {NARROWER}",
        ),
        (["tool='t' role='a' limit='5/1m'", CLOSED + " per=['user']"], 'write per = ["tool", "server"] in rule 2'),
        *(
            ([EACH_CLOSED, f"user='bob' tool='t' {more}"], "an exception from rule 1 is a narrower rule that limits calls")
            for more in ("concurrent=2", "limit='5/1m' count='cost'", "limit='5/1m' count='errors'")
        ),
        # the first that denies them is named, and a cap of calls in flight does not stand in for it
        ([CLOSED, "limit='deny'", "user='*' tool='t' limit='5/1m'"], f"rule 1 (tool=t) denies all of its calls; {NARROWER}"),
        (
            ["tool='t' role='a' concurrent=2", "tool='t' role='b' limit='deny'", f"{BOTH_ROLES} limit='5/1m'"],
            'rule 2 (tool=t role=b) denies all of its calls; if it is meant to be an exception, write user = "*" in rule 2',
        ),
        (["tool='mcp__crm__search_*' limit='5/1m'"], 'did you mean tool = "search_*", server = "crm"?'),
        (["agent='claude-code::subagent::*' limit='5/1m'"], 'in clientInfo; did you mean agent = "Claude Code::subagent::*"?'),
        (["agent='*::subagnt::*' limit='5/1m'"], f'is for the tier subagnt, {TIERS_TOLD} did you mean "subagent"?'),
        (["agent='*::zzz*::*' limit='5/1m'"], f"is for the tier zzz*, {TIERS_TOLD} check the spelling"),
        (
            ["tool='t' limit='5/1m' wait='6s'"],
            "line 1: rule 1 (tool=t): its wait is 6 seconds, but some clients give up earlier"
            " (the OpenAI Agents SDK for Python after 5 seconds)",
        ),
        (["tool='t' limit='unlimited' wait='5s'"], "its wait has no effect, because it never refuses a call"),
        (["tool='t' limit='5/1m' mode='observe' wait='3s'"], "its wait has no effect, because it never refuses a call"),
        (["tool='t' limit=['5/1m', '9/1s'] count='cost'"], "remove one of them"),
        (
            ["server='built-*' limit='5/1m' wait='1s' concurrent=1 count='errors'"],
            "is for built-in tools, which a hook decides: it makes no call wait, caps no calls in flight and counts no errors"
            " in Codex, which does not tell of them",
        ),
        ([EACH_CLOSED, "user='bob' tool='t' limit='5/session'"], 'write per = ["user", "tool", "server", "session"] in rule 1'),
        (["tool='Web*' limit='5/1m' wait='1s'"], "is for built-in tools, which a hook decides: it makes no call wait"),
    ],
)
def test_a_probable_mistake_is_warned_of(texts: list[str], warning: str) -> None:
    (found,) = rules(*texts)
    assert found.endswith(warning)


@pytest.mark.parametrize(
    "texts",
    [
        (CLOSED, "tool='u' limit='5/1m'"),
        ("tool='*' limit='deny'", "tool='t' limit='5/1m'"),  # it yields to the exception
        (CLOSED, "tool='t' scope='admin' limit='5/1m'"),
        ("tool='t*' limit='deny'", "user='*' tool='t' limit='5/1m'", "tool='t' limit='9/1m'"),  # and there to a third
        ("tool='t*' limit='deny'", "user='*' tool='*x' limit='5/1m'"),  # it covers a part
        (CLOSED + " mode='observe'", "user='*' tool='t' limit='5/1m'"),
        (CLOSED, "user='*' tool='t' limit='deny'"),
        # the first of two that differ in roles only applies
        ("tool='t' role='b' limit='9/1m'", "tool='t' role='a' limit='deny'", f"{BOTH_ROLES} limit='5/1m'"),
        ("tool='t' role='a' limit='5/1m'", CLOSED + " per=['tool', 'server']"),
        (EACH_CLOSED, "user='bob' tool='t' limit='5/1m' concurrent=2"),  # an exception by its limit
        ("tool='mcp__' limit='5/1m'", "tool='mcp_crm' limit='5/1m'"),
        ("agent='Claude Code::*::*' limit='5/1m'", "agent='*::*::*' limit='5/1m'", "agent='goos*::*::*' limit='5/1m'"),
        *((f"agent='{agent}' limit='5/1m'",) for agent in ("*", "*::sub*::*", "*::api::nightly", "*::x::*")),
        ("tool='t' concurrent=2 wait='5s'",),
        ("server='*' tool='t' concurrent=2 wait='5s'", "server='built-in' limit='5/1m'"),
        ("tool='t' limit='unlimited' wait='0s'",),
        ("user='*' limit=['100/1d', '50/session']",),  # several sessions may have more together
        *((f"tool='t' limit={limit}",) for limit in ("['20/1m', '100/1h']", "['5/1m', '299/1h']", "'5/1m'")),
        ("tool='t' limit=['5/1m', '9/1s'] count='errors'",),  # calls in flight can exceed the smaller limit
    ],
)
def test_what_can_be_meant_is_not_warned_of(texts: tuple[str, ...]) -> None:
    assert rules(*texts) == []


def test_what_a_policy_says_for_all_rules_is_taken_into_account() -> None:
    assert warnings(parse(STARTER)) == []
    assert rules(CLOSED, "user='*' tool='t' limit='5/1m'", head="mode='observe'\n") == []
    (warning,) = rules("tool='t' limit='5/1m'", head="wait = '2m'\n")
    assert warning.startswith("the wait of the policy is 2 minutes")
    assert rules("tool='t' limit='5/1m' wait='5s'", head="wait = '5s'\n") == []


def test_a_starter_rule_whose_calls_another_rule_denies_is_not_warned_of_unless_somebody_has_edited_it() -> None:
    assert rules("agent='*::api::*' limit='deny'", head=STARTER) == []
    (warning,) = rules("agent='*::api::*' limit='deny'", head=STARTER.replace("30/1m", "31/1m"))
    assert "rule 4 (user=* agent=*::api::*) can never admit a call" in warning


@pytest.mark.parametrize(
    ("deny", "exception", "remedy"),
    [
        ("tool='t'", "user='bob' tool='t'", "user='*'"),
        ("server='s'", "agent='A::b::c' tool='t' server='s'", "agent='*' tool='*'"),
        ("tool='t'", "user='bob' tool='t' per=['user']", "user='*' per=['user']"),
        ("server='s'", "user='bob' server='s' per=[]", "user='*' per=[]"),
        ("server='s' per=['server']", "tool='t' server='s'", "tool='*' per=['tool', 'server']"),
        ("tool='t'", "user='bob' tool='t' per=['session']", "user='*' per=['session']"),
    ],
)
def test_the_warning_says_how_to_make_the_rule_an_exception(deny: str, exception: str, remedy: str) -> None:
    exception += " limit='5/1m'"
    (warning,) = rules(f"{deny} limit='deny'", exception)
    steps = series([key.replace("=", " = ").replace("'", '"') for key in keys(remedy)])
    assert warning.endswith(f"if it is meant to be an exception, write {steps} in rule 1")
    kept = " ".join(key for key in keys(deny) if not ("per=" in key and "per=" in remedy))
    assert rules(f"{kept} {remedy} limit='deny'", exception) == []


@pytest.mark.parametrize(
    ("find", "texts"),
    [
        *((find, [f"{one} limit='1/1s'"]) for find in (warnings, still_capped) for one in ("tool='t{}'", "user='u{}'")),
        (warnings, ["user='u{}' tool='t' limit='deny'", "user='u{}' server='s' tool='t' limit='1/1s'"]),
        (warnings, ["user='u{}-*' tool='t*' limit='deny'", "user='u{}-*' server='s' tool='t*' limit='1/1s'"]),
    ],
)
@pytest.mark.no_cover
def test_warnings_take_time_linear_in_the_number_of_rules(find: Callable[[Policy], object], texts: list[str]) -> None:
    def of(rules: int) -> int:
        bodies = [text.replace("{}", str(at)) for at in range(rules) for text in texts]
        found = policy("tool='*' limit='deny'", *bodies, head=STARTER)
        return steps(lambda: find(found))

    assert of(400) <= 5 * of(100)


@pytest.mark.parametrize(
    ("text", "tier", "warned"),
    [
        ("", "batch", False),
        (STARTER, None, False),
        (STARTER, "batch", True),
        (STARTER, "Interactive", True),
        (STARTER, "subagent", False),
        (STARTER, "*", True),
        (written("agent='*::ba*::x' limit='deny'"), "batch", False),
        (written("agent='*::api::*' limit='1/1m'", "tool='x' limit='1/1m'"), "batch", False),
    ],
)
def test_a_configured_tier_that_no_rule_can_match_is_warned_of(text: str, tier: str | None, warned: bool) -> None:
    found = parse(text or "mode = 'enforce'").tier_warning(tier)
    assert found == (
        f"no rule matches agents of the tier {tier}, so nothing limits their calls; check the spelling" if warned else None
    )


# Limits that never deny


@pytest.mark.parametrize(
    ("limit", "told"),
    [
        ("['5/1m', '1000/1h']", "the limit 1000/1h can never deny a call, because 5/1m admits at most 300 in any hour"),
        ("['10/1m', '5/1h']", "the limit 10/1m can never deny a call, because 5/1h admits at most 5 in any minute"),
        ("['5/40s', '10/1m']", "the limit 10/1m can never deny a call, because 5/40s admits at most 10 in any minute"),
    ],
)
def test_a_limit_that_another_limit_of_its_rule_makes_superfluous_is_warned_of(limit: str, told: str) -> None:
    assert rules(f"tool='t' limit={limit}") == [f"line 1: rule 1 (tool=t): {told}; remove one of them"]


rates = st.lists(
    st.builds(Rate, st.integers(1, 140), st.integers(1, 40).map(lambda s: s * 1_000_000), st.just("")), min_size=2, max_size=3
)


@given(rates, st.lists(st.integers(0, 30_000_000), max_size=300))
def test_a_superfluous_limit_denies_no_call_that_the_others_admit(all_rates: list[Rate], gaps: list[int]) -> None:
    idle = [all_rates.index(rate) for rate, _ in superfluous(all_rates)]
    limits = [Limit(rate.n, rate.window_us, at) for at, rate in enumerate(all_rates)]
    states = tuple(EMPTY for _ in limits)
    now_us = 0
    for gap in gaps:
        now_us += gap % 1_000_000
        decision = sliding.decide(limits, states, now_us)
        states = decision.states
        if not decision.admitted:
            assert {exceeded.limit for exceeded in decision.exceeded} - {*idle}


REPORT = "tool='report' cost=20"


def cost_warnings(*texts: str, costs: Sequence[str] = (REPORT,), head: str = "") -> list[str]:
    return [one for one in rules(*texts, head=head, costs=costs) if "cost" in one]


def test_a_cost_that_no_rule_counts_is_warned_of() -> None:
    (warning,) = cost_warnings("tool='report' limit='5/1m'")
    assert warning.startswith("line 4: the cost of tool=report has no effect, because no rule that counts cost applies")
    for rule in ("tool='search' limit='50/1h'", "limit='unlimited'"):
        assert len(cost_warnings(f"{rule} count='cost'")) == 1
    for rule in ("tool='report'", "tool='re*'", "user='bob'", "server='crm'"):
        assert cost_warnings(f"{rule} limit='50/1h' count='cost'") == []


def test_a_cost_above_a_whole_limit_is_warned_of() -> None:
    rule = "user='*' limit=['50/1h', '19/1m'] count='cost'"
    (warning,) = cost_warnings(rule)
    assert warning == (
        "line 5: the cost of tool=report: line 1: rule 1 (user=*) never admits such a call, because it costs 20 and the whole"
        " limit is 19/1m; raise the limit or lower the cost"
    )
    assert cost_warnings(rule.replace("19/1m", "20/1m")) == []
    assert cost_warnings(rule, head='mode = "observe"\n') == []
    assert cost_warnings(f"{rule} mode='observe'") == []


def test_a_cost_above_a_limit_is_not_warned_of_where_a_narrower_cost_or_rule_applies() -> None:
    wide, narrow = "tool='*' cost=20", "tool='report' cost=5"
    rule = "tool='report' limit='10/1h' count='cost'"
    assert len(cost_warnings(rule, costs=(wide,))) == 1
    assert cost_warnings(rule, costs=(wide, narrow)) == []
    of_all, exception = "user='*' tool='*' limit='10/1h' count='cost'", "user='{}' tool='report' limit='90/1h' count='cost'"
    assert cost_warnings(of_all, exception.format("*")) == []
    assert len(cost_warnings(of_all, exception.format("bob"))) == 1


def test_the_place_of_a_warning_is_in_its_label() -> None:
    text = "# x\n[[rule]]\ntool = 'mcp__crm__x'\nlimit = '1/1h'\n[[cost]]\ncost = 5\n"
    assert [place(one) for one in warnings(parse(text))] == [(5, 0), (2, 1)]
    inline = parse("rule = [{tool = 'a', limit = '1/1h'}, {tool = 'mcp__crm__x', limit = '1/1h'}]")
    assert [place(one) for one in warnings(inline)] == [(0, 2)]
    assert place("the wait of the policy is too long") == place("no rule matches agents of the tier x") == (0, 0)


def capping(*texts: str, head: str = "") -> list[int]:
    """The numbers of the rules that cap the calls of the last one more tightly."""
    found = policy(*texts, head=head)
    return [at + 1 for at in Tightness(found).capping(len(found.rules) - 1)]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("user='*' agent='*::background::x' limit='10000/1h'", []),  # it overrides
        ("user='*' agent='*::subagent::Explore' limit='500/1h'", []),
        ("user='*' agent='*::*::Explore' limit='500/1h'", [1, 2, 3, 4]),  # neither is narrower
        ("user='*' agent='*::background::*' per=['user'] limit='10000/1h'", [3]),
        ("agent='*::background::*' limit='10000/1h'", [3]),
        ("user='alice' tool='search' limit='100/1h'", [2, 3, 4]),  # 100/1m has room for all of them
        ("user='alice' tool='search' limit='101/1h'", [1, 2, 3, 4]),
        ("user='alice' tool='search' limit='10/1h'", []),
        ("user='alice' tool='search' limit=['20/1m', '10000/1d']", []),
        ("tool='report' limit='5/1m'", []),
        ("tool='report' limit='5/1s'", [1, 2, 3, 4]),
        ("user='alice' limit='unlimited'", [1, 2, 3, 4]),
        ("user='alice' limit='deny'", []),
        ("user='*' limit='30/1m' count='cost'", []),
        ("user='*' limit='31/1m' count='cost'", [3, 4]),
        ("user='*' limit='31/1m' count='cost'\n[[cost]]\ntool='a'\ncost=2", []),
        ("user='*' limit='31/1m' count='errors'", [3, 4]),
        ("user='*' concurrent=9", []),
    ],
)
def test_the_starter_rules_that_cap_the_calls_of_a_rule_more_tightly_are_found(text: str, numbers: list[int]) -> None:
    assert capping(text, head=STARTER) == numbers


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("user='*' agent='*' limit='deny'", [1, 2, 3, 4]),
        ("user='*' agent='Cursor::*::*' limit='500/1m'", []),  # neither is narrower
        ("user='*' limit='deny'", []),
        ("user='*' agent='*::api::*' tool='a' limit='deny'", []),
    ],
)
def test_the_starter_rules_that_apply_in_place_of_a_rule_are_noted(text: str, numbers: list[int]) -> None:
    notes = still_capped(policy(text, head=STARTER)).notes
    assert [place(one)[1] for one in notes if "applies in place of rule 5" in one] == numbers


@pytest.mark.parametrize(
    ("texts", "numbers"),
    [
        (("user='*' limit='10/1h'", "user='*' tool='a' limit='20/1h'"), [1]),
        (("limit='10/1h' per=[]", "user='*' limit='20/1h'"), [1]),
        (("user='*' limit='10/1h' count='cost'", "user='*' tool='a' limit='20/1h'"), [1]),  # a call costs at least 1
        (("user='bob' limit='10/1h'", "tool='a' limit='20/1h'"), [1]),
        # Rules for a part of the tools
        (("tool='a' limit='10/1h'", "user='*' limit='20/1h'"), []),
        (("server='a' limit='10/1h'", "user='*' limit='20/1h'"), []),
        # Exceptions, other users, what is only reported, and what counts something else
        (("user='bob' limit='10/1h'", "user='*' limit='20/1h'"), []),
        (("user='bob' limit='10/1h'", "user='alice' tool='a' limit='20/1h'"), []),
        (("user='*' limit='10/1h' mode='observe'", "user='*' tool='a' limit='20/1h'"), []),
        (("user='*' limit='10/1h' count='errors'", "user='*' tool='a' limit='20/1h'"), []),
        (("user='*' per=['user', 'arguments'] limit='1/1h'", "user='*' tool='a' limit='20/1h'"), []),
        (("user='*' limit='1/session'", "user='*' tool='a' limit='20/1h'"), []),
        (("user='*' limit='1/session'", "user='*' tool='a' limit='20/session'"), [1]),
        (("user='*' limit='10/1h'", "user='*' limit='20/session'"), [1]),
        # An exception from the limits of each user, but not from those of each session
        (("user='*' limit='9/session'", "user='bob' limit='unlimited'"), [1]),
        (("user='*' limit=['9/1h', '9/session']", "user='bob' limit='unlimited'"), [1]),
        (("user='*' limit=['9/1h', '9/session']", "user='bob' limit='99/1h'"), []),
        (("user='*' limit='9/session'", "user='bob' limit='unlimited' per=['user', 'session']"), []),
        # A third rule overrides it for all of these calls, or for some
        (("user='*' limit='10/1h'", "user='bob' limit='50/1h'", "user='bob' tool='a' limit='20/1h'"), []),
        (("user='*' limit='10/1h'", "user='bob' limit='50/1h'", "user='*' tool='a' limit='20/1h'"), [1]),
    ],
)
def test_a_rule_is_only_found_if_it_denies_some_callers_earlier(texts: tuple[str, ...], numbers: list[int]) -> None:
    assert capping(*texts) == numbers


def warned(*texts: str, head: str = "") -> list[str]:
    return still_capped(policy(*texts, head=head)).warnings


def test_a_rule_that_cannot_be_exhausted_is_warned_of_with_the_command_that_drops_the_other() -> None:
    (warning,) = warned("user='*' agent='*::background::*' per=['user'] limit='10000/1h'", head=STARTER)
    assert warning == (
        "line 15: rule 3 (user=* agent=*::background::*) still caps calls of rule 5 more tightly, at 30/1m;"
        " to drop it: mcpguard policy unset --user '*' --agent '*::background::*'"
    )
    both = "user='*' per=['user'] limit='10/1h' concurrent=2", "user='*' tool='a' limit='20/1h'"
    assert warned(*both)[0].endswith("mcpguard policy unset --user '*' --per user --count calls")
    session = "user='*' limit='9/session'", "user='*' tool='a' limit='20/session'", "user='*' limit='90/1h'"
    assert warned(*session)[0].endswith("mcpguard policy unset --user '*' --per user,session")
    errors = "user='*' limit='10/1h'", "user='*' limit='3/1h' count='errors'", "user='*' tool='a' limit='20/1h'"
    assert warned(*errors)[0].endswith("mcpguard policy unset --user '*' --count calls")


@pytest.mark.parametrize(
    "texts",
    [
        # Limits for each user and for all together, for a burst and for an hour, for a tool and for all tools
        ("user='*' tool='a' limit='10/1h'", "tool='a' limit='100/1h'"),
        ("user='*' limit='60/1m'", "user='*' tool='a' limit='500/1h'"),
        ("user='*' limit='100/1h'", "user='*' tool='a' limit='20/1m'"),
        ("user='bob' limit='10/1h'", "tool='a' limit='20/1h'"),
        # For some callers there is an exception
        ("user='*' limit='10/1h'", "user='bob' limit='50/1h'", "user='*' tool='a' limit='20/1h'"),
    ],
)
def test_limits_that_belong_together_are_not_warned_of(texts: tuple[str, ...]) -> None:
    assert still_capped(policy(*texts)) == Capped([], [])


def test_an_untouched_starter_rule_is_warned_of_if_it_is_slower_and_noted_if_it_only_caps_bursts() -> None:
    assert [text[:15] for text in warned("tool='a' limit='10/1s'", head=STARTER)] == [
        "line 5: rule 1 ", "line 10: rule 2", "line 15: rule 3", "line 20: rule 4",
    ]  # fmt: skip
    assert still_capped(policy("tool='a' limit='10/1s'", head=STARTER)).notes == []
    texts = "user='alice' tool='a' limit='100/1h'", "user='bob' tool='a' limit='50/1h'"
    assert warned(*texts, head=STARTER) == []
    assert [re.sub(r".*(rule . ).*(calls.*);.*", r"\1\2", one) for one in still_capped(policy(*texts, head=STARTER)).notes] == [
        "rule 2 calls of rule 5 more tightly, at 60/1m",
        "rule 3 calls of rules 5 and 6 more tightly, at 30/1m",
        "rule 4 calls of rules 5 and 6 more tightly, at 30/1m",
    ]


def test_a_tighter_rule_of_the_user_makes_no_starter_rule_a_mistake() -> None:
    assert warned("user='*' per=['user'] limit='5/1h'", head=STARTER) == []
    assert still_capped(policy("user='*' per=['user'] limit='5/1h'", head=STARTER)).notes == []
