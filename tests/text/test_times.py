"""Times and waits in the units that are shown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpguard.text.times import ms_up, rfc3339, seconds_of, span, span_down, span_in_words, span_up, window
from tests.build import WALL_US


@pytest.mark.parametrize(("us", "ms"), [(0, 0), (1, 1), (999, 1), (1000, 1), (1001, 2)])
def test_milliseconds_are_rounded_up(us: int, ms: int) -> None:
    assert ms_up(us) == ms


@pytest.mark.parametrize(
    ("us", "text"),
    [
        (0, "1970-01-01T00:00:00.000000Z"),
        (1, "1970-01-01T00:00:00.000001Z"),
        (WALL_US + 123_456, "2026-01-01T00:00:00.123456Z"),
        (-1, "1969-12-31T23:59:59.999999Z"),
        (9_999_999_999_999_999, "2286-11-20T17:46:39.999999Z"),
    ],
)
def test_times_are_exact_to_the_microsecond(us: int, text: str) -> None:
    assert rfc3339(us) == text


@given(st.integers(0, 10**9))
def test_a_span_of_time_is_parsed_as_it_was_written(seconds: int) -> None:
    assert seconds_of(span(seconds * 1_000_000)) == seconds


@pytest.mark.parametrize("value", ["", "5", "m", "5 m", "-5m", "5.5m", "5M", "5y", "٥m", 5, None])
def test_what_is_no_span_of_time_is_none(value: object) -> None:
    assert seconds_of(value) is None


def test_spans_of_time_have_the_unit_in_which_people_read_them() -> None:
    us = [seconds * 1_000_000 for seconds in (1, 90, 120, 3600, 5400, 86_400, 1_209_600)]
    assert [span(one) for one in us] == ["1s", "90s", "2m", "1h", "90m", "1d", "2w"]
    assert [window(one) for one in us] == ["second", "90 seconds", "2 minutes", "hour", "90 minutes", "day", "2 weeks"]
    assert [span_in_words(one) for one in us[:3]] == ["1 second", "90 seconds", "2 minutes"]
    assert [span_up(ms, 1000) for ms in (1, 999_000, 999_001, 10**9, 10**12)] == ["1s", "999s", "17m", "278h", "1654w"]
    assert [span_down(seconds) for seconds in (-1, 59.9, 61, 7199, 200_000, 10**7)] == [
        "0 s", "59 s", "1 min", "1 h", "2 d", "115 d",
    ]  # fmt: skip
