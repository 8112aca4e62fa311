"""The counters that a store remembers for outages: how many, and which it forgets first."""

import struct

from mcpguard.limiter.plan import Counter
from mcpguard.limiter.sliding import EMPTY
from mcpguard.stores.redis.store import Seen

NOW_US = 10_000_000
SECOND_US = 1_000_000


MOST = 8
"""So few counters are kept here. Six are left after cleaning up."""


def note(kept: Seen, number: int, newest_us: int | None, now_us: int = NOW_US, window_us: int = 5 * SECOND_US) -> None:
    """Note a counter that was charged once, or never."""
    value = None if newest_us is None else struct.pack("<qqIq", newest_us, newest_us, 1, 1)
    kept.note([Counter(number, "", window_us)], [value], now_us)


def test_empty_counters_are_forgotten_first_and_then_no_other_is() -> None:
    kept = Seen(MOST)
    for number, newest_us in enumerate([*[NOW_US - 1] * 4, None, NOW_US - 5 * SECOND_US, NOW_US, NOW_US]):
        note(kept, number, newest_us)
    assert [*kept.logs()] == list(range(8))
    note(kept, 8, None)
    assert [*kept.logs()] == [0, 1, 2, 3, 6, 7]


def test_the_least_recently_used_counters_are_forgotten_next_and_it_is_told_until_when_they_may_hold_something() -> None:
    kept = Seen(MOST)
    for number, newest_us in enumerate([3, 9, 1, 4, 5, 6, 7, 8]):
        note(kept, number, NOW_US + newest_us)
    note(kept, 0, NOW_US + 3)
    assert kept.forgotten_until_us == 0
    note(kept, 8, NOW_US)
    assert [*kept.logs()] == [4, 5, 6, 7, 0, 8]
    assert kept.forgotten_until_us == NOW_US + 9 + 5 * SECOND_US


def test_a_counter_with_a_long_window_is_remembered_while_it_is_not_empty() -> None:
    kept = Seen(MOST)
    note(kept, 0, 1, window_us=100 * SECOND_US)
    for number in range(1, 200):
        now_us = NOW_US + number * SECOND_US // 4
        note(kept, number, now_us - 5 * SECOND_US, now_us)
    assert 0 in kept.logs()


def test_a_counter_that_was_reset_is_forgotten() -> None:
    kept = Seen(MOST)
    note(kept, 1, NOW_US)
    note(kept, 2, None)
    kept.forget([1, 7])
    assert kept.logs() == {2: EMPTY}
