"""Times and waits in the units that are shown."""

import pytest

from mcpguard.text.times import ms_up, rfc3339
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
