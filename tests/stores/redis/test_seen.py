"""The memory of counters, for outages: its bound, and which counters it forgets first."""

import struct

import pytest

from mcpguard.limiter.plan import Counter
from mcpguard.limiter.sliding import EMPTY, State
from mcpguard.stores.api import Options
from mcpguard.stores.redis import seen
from mcpguard.stores.redis.seen import Seen
from mcpguard.stores.redis.states import log
from mcpguard.stores.redis.store import RedisStore
from tests.build import Session
from tests.redis_servers import Server

NOW_US = 10_000_000
SECOND_US = 1_000_000


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A low bound: eight counters, of which six are left after cleaning up."""
    monkeypatch.setattr(seen, "MOST", 8)
    monkeypatch.setattr(seen, "LEFT", 6)


def value(newest_us: int) -> bytes:
    """The value of a counter that was charged once."""
    packed = struct.pack("<qqIq", newest_us, newest_us, 1, 1)
    assert log(packed) == (newest_us, newest_us, 1)
    return packed


def counter(number: int, window_us: int = 5 * SECOND_US) -> Counter:
    return Counter(number, f"[{window_us}]", window_us)


def note(kept: Seen, number: int, newest_us: int | None, now_us: int = NOW_US, window_us: int = 5 * SECOND_US) -> None:
    kept.note([counter(number, window_us)], [now_us, None if newest_us is None else value(newest_us)])


def ids(kept: Seen) -> list[int]:
    return list(kept.logs())


def test_empty_counters_are_forgotten_first_and_then_no_other_is() -> None:
    kept = Seen()
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
    kept = Seen()
    for number, newest_us in enumerate([3, 9, 1, 4, 5, 6, 7, 8]):
        note(kept, number, NOW_US + newest_us)
    note(kept, 0, NOW_US + 3)
    note(kept, 8, NOW_US)
    assert ids(kept) == [4, 5, 6, 7, 0, 8]


def test_a_counter_that_is_forgotten_tells_until_when_it_may_hold_something() -> None:
    kept = Seen()
    for number in range(8):
        note(kept, number, NOW_US + number)
    assert kept.forgotten_until_us == 0
    note(kept, 8, NOW_US)
    assert kept.forgotten_until_us == NOW_US + 2 + 5 * SECOND_US  # the third one's, the last of those that are gone


def test_a_counter_with_a_long_window_is_remembered_while_it_is_not_empty() -> None:
    kept = Seen()
    note(kept, 0, 1, window_us=100 * SECOND_US)
    for number in range(1, 200):
        now_us = NOW_US + number * SECOND_US // 4
        note(kept, number, now_us - 5 * SECOND_US, now_us)
    assert 0 in ids(kept)


def test_counters_in_constant_use_are_never_forgotten() -> None:
    kept = Seen()
    for number in range(100):
        note(kept, 1000, NOW_US - 1)
        note(kept, number, NOW_US)
    assert 1000 in ids(kept)


def usual(now_us: int, *values: bytes) -> bytes:
    """The reply to a usual call after which counters have these values: see `usual.lua`."""
    told = struct.pack("<qqqIq", now_us, 0, 0, 1, 1)
    return told + b"".join(one[:28] for one in values) + bytes(12).join(one[28:] for one in values)


def test_the_last_reply_to_a_usual_call_is_the_one_that_counts() -> None:
    kept = Seen()
    one, other = (counter(0), counter(1)), (counter(1), counter(2))
    closed = struct.pack("<qI", NOW_US - SECOND_US, 3)
    longer = struct.pack("<qqIq", NOW_US, NOW_US, 1, 4) + closed
    for newest_us in range(3):
        kept.note(one, usual(NOW_US, value(NOW_US + newest_us), longer))
    kept.note(other, usual(NOW_US, value(NOW_US + 7), value(NOW_US + 8)))
    assert kept.logs() == {0: log(value(NOW_US + 2)), 1: log(value(NOW_US + 7)), 2: log(value(NOW_US + 8))}
    kept.note(one, usual(NOW_US, value(NOW_US), longer))
    kept.forget([0])
    assert kept.logs() == {2: log(value(NOW_US + 8)), 1: (NOW_US, NOW_US - SECOND_US, 3, NOW_US, 1)}
    kept.note(one, usual(NOW_US, longer, longer))
    note(kept, 1, None)
    assert kept.logs()[1] == EMPTY
    for number in range(10, 17):
        kept.note((counter(number),), usual(NOW_US, value(NOW_US)))
    assert len(kept.logs()) <= seen.MOST


def test_a_counter_that_was_reset_is_forgotten() -> None:
    kept = Seen()
    note(kept, 1, NOW_US)
    note(kept, 2, None)
    kept.forget([1, 7])
    assert kept.logs() == {2: EMPTY}


def test_a_store_returns_the_logs_of_the_counters_that_it_used_last(server: Server) -> None:
    store = RedisStore(server.address, Options(timeout_ms=5000))
    session = Session(store, '[[rule]]\ntool = "*"\nlimit = "1/1h"\n')
    newest: dict[int, State] = {}
    for at in range(9):
        assert session.decisions(f"tool {at}") == ["allowed"]
        (counter,) = session.charges(f"tool {at}")[0].plan.counters
        newest[counter.id] = store.peek([counter])[0][0]
    known = store.last_seen()[0]
    assert len(known) == 6
    assert known == {key: newest[key] for key in list(newest)[3:]}
    store.close()
