"""Rules that still cap the calls of another rule more tightly."""

import re

import pytest

from mcpguard.policy.lint import Capped, Tightness, still_capped
from mcpguard.policy.parse import STARTER
from tests.policy.rules import policy


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
        ("user='*' concurrent=9", []),
    ],
)
def test_the_starter_rules_that_cap_the_calls_of_a_rule_more_tightly_are_found(text: str, numbers: list[int]) -> None:
    assert capping(text, head=STARTER) == numbers


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
