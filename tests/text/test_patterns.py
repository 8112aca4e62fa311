import re
import string
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpguard.text.patterns import coverage, glob
from tests.build import steps


@given(st.text("ab*", max_size=7), st.text("ab", max_size=9))
def test_only_the_star_is_special_in_a_pattern(pattern: str, text: str) -> None:
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


def test_patterns_that_hang_a_backtracking_matcher_are_matched() -> None:
    text = "a" * 20_000
    assert not glob("a*" * 2_000 + "b", text)
    assert not glob("*a" * 2_000 + "b*", text)
    assert glob("*a" * 2_000 + "*", text)


def covering(lists: list[list[str]], matches: Callable[[str, str], bool]) -> list[int]:
    """Which lists cover which, by comparing all pairs."""
    return [
        sum(1 << at for at, other in enumerate(lists) if all(any(matches(one, text) for text in other) for one in patterns))
        for patterns in lists
    ]


@given(st.lists(st.lists(st.text("ab*", max_size=5), max_size=3), max_size=8))
def test_a_list_covers_the_lists_with_a_match_for_each_of_its_patterns(lists: list[list[str]]) -> None:
    assert coverage(lists, meet=False) == covering(lists, glob)


@given(st.text("ab", max_size=8), st.lists(st.text("ab*", max_size=7), max_size=30))
def test_the_fast_comparison_of_patterns_that_match_one_text_is_exact(text: str, patterns: list[str]) -> None:
    lists = [[], *([pattern] for pattern in patterns if glob(pattern, text))]
    assert coverage(lists, meet=True) == coverage(lists, meet=False) == covering(lists, glob)


def test_a_pattern_with_repeated_stars_covers_the_same_as_with_one() -> None:
    assert coverage([["a**b"], ["a*b"], ["ab"]], meet=True) == [0b111, 0b111, 0b100]


def test_comparing_patterns_takes_time_linear_in_their_number() -> None:
    letters = string.ascii_letters[:32]
    lists = [[f"*{one}*{two}*"] for one in letters for two in letters]
    assert steps(lambda: coverage(lists, meet=True)) < 6 * steps(lambda: coverage(lists[: len(lists) // 4], meet=True))
