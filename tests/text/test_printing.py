"""Forms of text for people and for logs."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpguard.text.printing import printable, quoted


@given(st.text(max_size=30))
def test_printable_text_has_nothing_that_could_control_a_terminal(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert shown == text or not text.isprintable()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 😀", "plain é 😀"),
        ("\x1b[31m", "\\x1b[31m"),
        ("a\nb\r\t", "a\\nb\\r\\t"),
        ("\x9b", "\\x9b"),
        ("\u2028\u202e\u200b", "\\u2028\\u202e\\u200b"),
        ("\ud800", "\\ud800"),
        ("\U000e0001", "\\U000e0001"),
    ],
)
def test_control_characters_become_escapes(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.lists(st.text(st.sampled_from(' "=\\\x1bx1bn\nü客')), min_size=2, max_size=2, unique=True))
def test_different_values_have_different_quoted_forms_without_ambiguous_ends(values: list[str]) -> None:
    one, other = map(quoted, values)
    assert one != other
    assert one.isprintable()
    assert re.fullmatch(r'[^ "=\\]+|"(?:[^"\\]|\\.)*"', one)
