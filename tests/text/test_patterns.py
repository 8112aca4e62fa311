import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mcpguard.text.patterns import glob, may_meet


@given(st.text("aAb?[].\n*", max_size=7), st.text("aAb?[].\n", max_size=9))
@example("*", "")
@example("", "")
@example("", "a")
@example("a*a", "a")
@example("ab*ba", "aba")
@example("*ab*ab*", "abb")
def test_a_pattern_matches_a_whole_text_without_overlaps_and_only_its_star_is_special(pattern: str, text: str) -> None:
    model = ".*".join(map(re.escape, pattern.split("*")))
    assert glob(pattern, text) == bool(re.fullmatch(model, text, re.DOTALL))


def test_patterns_that_hang_a_backtracking_matcher_are_matched() -> None:
    text = "a" * 20_000
    assert not glob("a*" * 2_000 + "b", text)
    assert not glob("*a" * 2_000 + "b*", text)
    assert glob("*a" * 2_000 + "*", text)


@given(st.text("ab*", max_size=5), st.text("ab*", max_size=5), st.text("ab", max_size=6))
def test_patterns_that_match_one_text_may_meet(one: str, two: str, text: str) -> None:
    assert may_meet(one, two) or not (glob(one, text) and glob(two, text))


@pytest.mark.parametrize(
    ("one", "two", "meet"),
    [("a*", "ab", True), ("ab", "b*", False), ("a*", "*b", True), ("a*", "b*", False), ("*a", "*b", False), ("*", "", True)],
)
def test_patterns_with_different_names_or_ends_do_not_meet(one: str, two: str, meet: bool) -> None:
    assert may_meet(one, two) == may_meet(two, one) == meet
