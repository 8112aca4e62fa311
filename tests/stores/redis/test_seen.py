"""The memory of counters, for outages: its bound, and which counters it forgets first."""

import struct

from mcpguard.limiter.plan import Counter
from mcpguard.limiter.sliding import EMPTY
from mcpguard.stores.redis.layout import log
from mcpguard.stores.redis.seen import Seen

NOW_US = 10_000_000
SECOND_US = 1_000_000


def value(newest_us: int) -> bytes:
    """The value of a counter that was charged once."""
    packed = struct.pack("<qqIq", newest_us, newest_us, 1, 1)
    assert log(packed) == (newest_us, newest_us, 1)
    return packed


def note(kept: Seen, number: int, newest_us: int | None, now_us: int = NOW_US, window_us: int = 5 * SECOND_US) -> None:
    counter = Counter(number, f"[{window_us}]", window_us)
    kept.note([counter], [None if newest_us is None else value(newest_us)], now_us)


def ids(kept: Seen) -> list[int]:
    return list(kept.logs())


def test_empty_counters_are_forgotten_first_and_then_no_other_is() -> None:
    kept = Seen(8)
    for number in range(4):
        note(kept, number, NOW_US - 1)
    note(kept, 4, None)
    note(kept, 5, NOW_US - 5 * SECOND_US)
    for number in range(6, 8):
        note(kept, number, NOW_US)
    assert ids(kept) == list(range(8))
    note(kept, 8, None)
    assert ids(kept) == [0, 1, 2, 3, 6, 7]


def test_the_least_recently_used_counters_are_forgotten_next() -> None:
    kept = Seen(8)
    for number, newest_us in enumerate([3, 9, 1, 4, 5, 6, 7, 8]):
        note(kept, number, NOW_US + newest_us)
    note(kept, 0, NOW_US + 3)
    note(kept, 8, NOW_US)
    assert ids(kept) == [4, 5, 6, 7, 0, 8]


def test_a_counter_that_is_forgotten_tells_until_when_it_may_hold_something() -> None:
    kept = Seen(8)
    for number in range(8):
        note(kept, number, NOW_US + number)
    assert kept.forgotten_until_us == 0
    note(kept, 8, NOW_US)
    assert kept.forgotten_until_us == NOW_US + 2 + 5 * SECOND_US  # the third one's, the last of those that are gone


def test_a_counter_with_a_long_window_is_remembered_while_it_is_not_empty() -> None:
    kept = Seen(8)
    note(kept, 0, 1, window_us=100 * SECOND_US)
    for number in range(1, 200):
        now_us = NOW_US + number * SECOND_US // 4
        note(kept, number, now_us - 5 * SECOND_US, now_us)
    assert 0 in ids(kept)


def test_a_counter_that_was_reset_is_forgotten() -> None:
    kept = Seen()
    note(kept, 1, NOW_US)
    note(kept, 2, None)
    kept.forget([1, 7])
    assert kept.logs() == {2: EMPTY}
