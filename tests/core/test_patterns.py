import re
import string
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpguard.core.patterns import coverage, glob
from tests.core.build import steps


@given(st.text("ab*", max_size=7), st.text("ab", max_size=9))
def test_a_star_stands_for_any_text_and_nothing_else_is_special(pattern: str, text: str) -> None:
    model = ".*".join(map(re.escape, pattern.split("*")))
    assert glob(pattern, text) == bool(re.fullmatch(model, text))


@pytest.mark.parametrize(
    ("pattern", "text", "matches"),
    [
        ("*", "", True),
        ("", "", True),
        ("", "a", False),
        ("a*a", "a", False),
        ("a*a", "aa", True),
        ("ab*ba", "aba", False),
        ("*ab*ab*", "abb", False),
        ("a?c", "abc", False),
        ("[ab]", "a", False),
        ("a.c", "abc", False),
        ("a*\nb", "a\n\nb", True),
        ("É*", "É", True),
        ("É*", "é", False),
        ("**", "x", True),
    ],
)
def test_patterns(pattern: str, text: str, matches: bool) -> None:
    assert glob(pattern, text) is matches


def test_patterns_that_make_backtracking_matchers_hang_are_matched() -> None:
    text = "a" * 20_000
    assert not glob("a*" * 2_000 + "b", text)
    assert not glob("*a" * 2_000 + "b*", text)
    assert glob("*a" * 2_000 + "*", text)


def covering(lists: list[list[str]], matches: Callable[[str, str], bool]) -> list[int]:
    """Which lists cover which, by what it means."""
    return [
        sum(1 << at for at, other in enumerate(lists) if all(any(matches(one, text) for text in other) for one in patterns))
        for patterns in lists
    ]


@given(st.lists(st.lists(st.text("ab*", max_size=5), max_size=3), max_size=8))
def test_a_list_covers_those_that_have_a_pattern_for_each_of_its_own(lists: list[list[str]]) -> None:
    assert coverage(lists, meet=False) == covering(lists, glob)


@given(st.text("ab", max_size=8), st.lists(st.text("ab*", max_size=7), max_size=30))
def test_of_patterns_that_match_one_text_the_same_cover_the_same(text: str, patterns: list[str]) -> None:
    lists = [[], *([pattern] for pattern in patterns if glob(pattern, text))]
    assert coverage(lists, meet=True) == coverage(lists, meet=False) == covering(lists, glob)


def test_the_work_for_a_thousand_patterns_grows_with_their_number_not_with_its_square() -> None:
    letters = string.ascii_letters[:32]
    lists = [[f"*{one}*{two}*"] for one in letters for two in letters]
    assert steps(lambda: coverage(lists, meet=True)) < 6 * steps(lambda: coverage(lists[: len(lists) // 4], meet=True))
