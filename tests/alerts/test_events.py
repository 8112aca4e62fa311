"""Of many events one is told, and the rest is summed up in the next message."""

import json
from pathlib import Path
from typing import Any

import pytest

from mcpguard.alerts.events import LEAST_QUIET_S, MOST_QUIET_S, NO_WINDOW_S, OUTAGE_S, Event, admit
from tests.build import WALL_US

DENIED: dict[str, Any] = {
    "id": "00000000000000aa-7", "server": "crm", "user": "alice", "agent": "Claude Code::subagent::Explore", "tool": "search",
    "decision": "rate_limited", "axis": "user", "rule": "user=*", "limit": 100, "window": "1h", "count": 150,
    "retry_after_ms": 847_000,
}  # fmt: skip
WARNED = DENIED | {"decision": "warned", "count": 80}
GONE = {"decision": "store_lost", "reason": "store unavailable: it is gone", "store": "redis://a"}
BACK = GONE | {"decision": "store_back", "reason": "store is back"}


class Day:
    """What is told of events at some times."""

    def __init__(self, folder: Path, salt: object = ()) -> None:
        self.file = folder / "state" / "notified.json"
        self.salt = salt
        self.now_s = 0

    def told(self, record: dict[str, Any], after_s: int = 0) -> int | None:
        self.now_s += after_s
        return admit(Event(record, WALL_US + self.now_s * 1_000_000), str(self.file), self.salt)


@pytest.fixture
def day(tmp_path: Path) -> Day:
    return Day(tmp_path)


@pytest.mark.parametrize("pause_s", [1, 600, 3600, 3660], ids=["steady", "now and then", "obedient", "obedient and slow"])
def test_a_loop_through_the_night_has_one_message_and_the_next_one_has_its_sum(day: Day, pause_s: int) -> None:
    times = min(500, 8 * 3600 // pause_s)
    assert [day.told(DENIED, pause_s) for _ in range(times)] == [0] + [None] * (times - 1)
    assert day.told(DENIED, 2 * 3600) == times - 1
    assert day.told(DENIED, 1) is None


def test_a_row_that_stands_for_several_denials_counts_as_all_of_them(day: Day) -> None:
    assert day.told(DENIED) == 0
    assert day.told(DENIED | {"repeats": 40}) is None
    assert day.told(DENIED | {"repeats": 3}, 7200) == 42


@pytest.mark.parametrize(
    ("window", "quiet_s"), [("1s", LEAST_QUIET_S), ("1h", 7200), ("3650d", MOST_QUIET_S), (None, NO_WINDOW_S)]
)
def test_an_event_is_told_again_after_two_windows_without_one_within_bounds(day: Day, window: str | None, quiet_s: int) -> None:
    record = {**DENIED, "window": window}
    assert [day.told(record), day.told(record, quiet_s - 1), day.told(record, quiet_s - 1)] == [0, None, None]
    assert day.told(record, quiet_s) == 2


def test_a_denial_is_told_after_a_warning_and_no_warning_after_a_denial(day: Day) -> None:
    told = [day.told(record, 1) for record in (WARNED, WARNED, DENIED, WARNED, DENIED)]
    assert told == [0, None, 1, None, None]
    assert day.told(WARNED, 7200) == 2


@pytest.mark.parametrize(
    ("axis", "changed", "is_told"),
    [
        ("user", {"user": "bob"}, True),
        ("user", {"agent": "Cursor::interactive::default"}, False),
        ("agent", {"agent": "Cursor::interactive::default"}, True),
        ("agent", {"user": "bob"}, True),
        ("tool", {"user": "bob", "agent": "Cursor::interactive::default"}, False),
        ("user", {"tool": "other", "server": "files", "count": 9, "id": "x"}, False),
        ("user", {"rule": "user=* tool=*"}, True),
        ("tool", {"tool": "other"}, False),
        ("user", {"limit": 20, "window": "1m"}, True),
        ("user", {"counts": "cost"}, True),
    ],
)
def test_events_of_a_rule_limit_and_caller_share_a_message(day: Day, axis: str, changed: dict[str, Any], is_told: bool) -> None:
    first = DENIED | {"axis": axis}
    day.told(first)
    assert (day.told(first | changed) is not None) == is_told


@pytest.mark.parametrize(
    ("rule", "is_told"), [("tool=*", True), ("tool=* per=tool", True), ("tool=* per=none", False), ("per=user,arguments", True)]
)
def test_events_of_a_rule_that_counts_each_tool_share_a_message_for_each_tool(day: Day, rule: str, is_told: bool) -> None:
    first = DENIED | {"rule": rule}
    day.told(first)
    assert day.told(first) is None
    assert (day.told(first | {"tool": "other"}) is not None) == (day.told(first | {"server": "other"}) is not None) == is_told


def test_an_outage_is_told_once_and_its_end_too_whoever_notices(day: Day) -> None:
    assert [day.told(one, 60) for one in (GONE, GONE, BACK, BACK)] == [0, None, 0, None]
    assert [day.told(one, 60) for one in (GONE, BACK)] == [0, 0]
    assert [day.told(GONE, 60), day.told(GONE | {"store": "redis://b"}), day.told(GONE, OUTAGE_S)] == [0, 0, 0]
    assert day.told(BACK | {"store": "redis://c"}) is None, "nobody was told of that outage"


NOBODY = {"decision": "unauthenticated", "axis": "user", "reason": "expired", "tool": "search"}
CLOSED = NOBODY | {"decision": "unavailable", "reason": "policy_invalid", "axis": "tool"}


def test_denials_without_a_verified_user_share_a_message(day: Day) -> None:
    assert [day.told(NOBODY), day.told(NOBODY | {"tool": "x"})] == [0, None]
    assert [day.told(CLOSED), day.told(CLOSED | {"tool": "x"}), day.told(NOBODY)] == [0, None, None]


@pytest.mark.parametrize(
    ("kind", "records"),
    [
        ("denied", [NOBODY, DENIED, DENIED | {"decision": "denied"}, CLOSED, CLOSED | {"reason": "too_many_counters"}]),
        ("warn", [WARNED]),
        ("unavailable", [GONE, BACK]),
        ("", [CLOSED | {"reason": why} for why in ("store_unavailable", "")]),
        ("", [DENIED | {"reason": "cancelled while it waited"}]),
        ("", [{"decision": one} for one in ("allowed", "invalid", "policy", "would_deny", "continued", "")]),
    ],
)
def test_rows_are_events_of_a_kind_or_none(kind: str, records: list[dict[str, Any]]) -> None:
    assert {Event(record, 0).kind for record in records} == {kind}


def test_accounts_of_other_ways_have_messages_of_their_own(tmp_path: Path) -> None:
    one, other = Day(tmp_path, [["a"]]), Day(tmp_path, [["b"]])
    assert [one.told(DENIED), other.told(DENIED), one.told(DENIED)] == [0, 0, None]


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]", b'{"a": 1}', b"\xff", b'{"a": ["x", 1, 2]}', b'{"a": [1e999, 1, 2]}', b"[" * 60_000]
)
def test_a_damaged_file_counts_as_empty(day: Day, damage: bytes) -> None:
    day.told(DENIED)
    day.file.write_bytes(damage)
    assert [day.told(DENIED), day.told(DENIED)] == [0, None]


def test_after_the_clock_was_set_back_an_event_is_told(day: Day) -> None:
    day.told(DENIED)
    assert day.told(DENIED, -MOST_QUIET_S) == 0


def test_the_file_stays_small_and_forgets_what_is_quiet_first(day: Day) -> None:
    for number in range(300):
        assert day.told(DENIED | {"user": f"user{number}"}, 1) == 0
    assert len(json.loads(day.file.read_text())) == 256
    assert [day.told(DENIED | {"user": "user299"}), day.told(DENIED | {"user": "user0"})] == [None, 0]


def test_a_message_tells_the_event_in_words_and_members_and_nothing_private() -> None:
    private = {"arguments": {"a": 1}, "args_hash": "ab", "email": "a@b", "roles": ["r"], "act": [], "time_us": 0, "seq": 0}
    names = 'axis=user server=crm user=alice agent="Claude Code::subagent::Explore" tool="a\\x1bb"'
    text = f"rate_limited {names} limit=100/1h count=150 retry_after=847s (and 2,990 more)"
    told = {"tool": "a\x1bb", "event": "denied", "text": text, "time": "2026-01-01T00:00:00.000000Z", "more": 2990}
    assert Event(DENIED | private | {"tool": "a\x1bb"}, WALL_US).message(2990) == DENIED | told
    assert Event(GONE, WALL_US).message(0)["text"] == "store unavailable: it is gone"
