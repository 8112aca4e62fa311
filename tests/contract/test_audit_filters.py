"""A store returns exactly the audit rows that a filter wants: in both orders, one by one, in bulk, and counted."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import pytest

from mcpguard.errors import Unauthenticated
from mcpguard.session.audit import Outcome, record
from mcpguard.stores.api import DISORDER_US, AuditEntry, StoredRow, Tally, Wanted
from mcpguard.stores.rows import HOUR_US, rounded_us
from tests.build import WALL_US, Session, call_line, identity
from tests.contract.conftest import Place

POLICY = '[[rule]]\nuser = "*"\ntool = "report"\nlimit = "2/1m"\n[[rule]]\ntool = "closed"\nlimit = "deny"\n'
HOUR_MS = 3_600_000


def of_user(user: str) -> Wanted:
    return Wanted(lambda record: record["user"] == user)


ANY = Wanted(lambda _: True)


@pytest.fixture
def day(place: Place) -> Place:
    """A row each hour: two calls of `report` by Alice, a call of a closed tool by her, and two calls of `report` by Bob."""
    place.time.now_us = WALL_US  # a server's clock tells the time of the day
    alice = Session(place.open(), POLICY, session="a" * 16, who=identity("alice"))
    bob = Session(place.open(), POLICY, session="b" * 16, who=identity("bob"))
    for number, (session, tool) in enumerate([(alice, "report")] * 2 + [(alice, "closed")] + [(bob, "report")] * 2):
        for verdict in session.call(tool):
            if verdict.row_id and verdict.forwards and number != 1:
                session.store.record([Outcome(verdict.row_id, "ok" if number else "tool_error", 1234 * 10**number)])
        place.pass_ms(HOUR_MS)
    return place


def counted(tallies: Iterable[Tally]) -> Counter[tuple[object, ...]]:
    calls: Counter[tuple[object, ...]] = Counter()
    for part in tallies:
        for one, durations in part.calls.items():
            for duration_us, number in durations.items():
                calls[one.axis, one.decision, one.outcome, one.hour, duration_us] += number
    return calls


def as_counted(one: Mapping[str, object]) -> tuple[object, ...]:
    """What a row counts as."""
    duration_us = rounded_us(round(float(str(one["duration_ms"])) * 1000)) if "duration_ms" in one else None
    return one.get("axis"), one["decision"], one.get("outcome"), int(str(one["time_us"])) // HOUR_US, duration_us


def in_bulk(pages: Iterable[Sequence[StoredRow]]) -> list[AuditEntry]:
    found = [one for page in pages for one in page]
    return [AuditEntry(one.row_id, record(one.row, outcome=one.outcome, duration_us=one.duration_us)) for one in found]


@pytest.mark.parametrize(
    ("wanted", "hours"),
    [
        (None, [0, 1, 2, 3, 4]),
        (ANY, [0, 1, 2, 3, 4]),
        (of_user("bob"), [3, 4]),
        (of_user("nobody"), []),
        (ANY._replace(decisions=frozenset({"allowed"})), [0, 1, 3, 4]),
        (ANY._replace(decisions=frozenset({"denied", "rate_limited"})), [2]),
        (ANY._replace(decisions=frozenset({"denied", "allowed"})), [0, 1, 2, 3, 4]),
        (ANY._replace(axis="tool".__eq__), [2]),
        (ANY._replace(axis="user".__eq__), [0, 1, 3, 4]),
        (ANY._replace(outcomes=frozenset({"tool_error"})), [0]),
        (ANY._replace(outcomes=frozenset({"ok", "tool_error"})), [0, 3, 4]),
        (ANY._replace(since_us=WALL_US + 2 * DISORDER_US), [2, 3, 4]),
        (ANY._replace(since_us=WALL_US + 2 * DISORDER_US + 1), [3, 4]),
        (ANY._replace(until_us=WALL_US + 2 * DISORDER_US), [0, 1]),
        (ANY._replace(until_us=WALL_US + 2 * DISORDER_US + 1), [0, 1, 2]),
        (ANY._replace(since_us=WALL_US + DISORDER_US, until_us=WALL_US + 4 * DISORDER_US), [1, 2, 3]),
        (ANY._replace(since_us=WALL_US - 1), [0, 1, 2, 3, 4]),
        (ANY._replace(since_us=WALL_US + 99 * DISORDER_US), []),
        (ANY._replace(since_us=WALL_US + DISORDER_US, decisions=frozenset({"denied"}), axis="user".__eq__), []),
    ],
)
@pytest.mark.parametrize("is_drained", [False, True], ids=["fresh", "tended"])
def test_a_filter_finds_its_rows_in_both_orders_in_bulk_and_counted(
    day: Place, wanted: Wanted, hours: list[int], *, is_drained: bool
) -> None:
    if is_drained:
        day.tend()
    reader = day.read()
    found = list(reader.entries(wanted=wanted))
    assert [(int(str(one.record["time_us"])) - WALL_US) // DISORDER_US for one in found] == hours
    assert list(reader.newest(wanted=wanted)) == found[::-1]
    assert in_bulk(reader.rows(wanted=wanted)) == found
    assert counted(reader.tally(wanted=wanted)) == Counter(as_counted(one.record) for one in found)
    store = day.open()
    assert [*store.entries(wanted=wanted), *store.newest(wanted=wanted)] == found + found[::-1]


def test_a_filter_by_time_finds_rows_that_other_wrappers_wrote_out_of_order(day: Place) -> None:
    """A wall clock was set back by less than an hour, and rows of an outage came late."""
    late = Session(day.open(), POLICY, session="c" * 16, who=identity("carol"))
    for back_ms in (30 * 60_000, 4 * HOUR_MS, 0):
        day.wall.pass_ms(-back_ms)
        late.call("report")
        day.wall.pass_ms(back_ms)
    day.tend()
    store = day.open()
    since = Wanted(lambda _: True, since_us=WALL_US + 5 * DISORDER_US - DISORDER_US // 2)
    for found in (list(store.entries(wanted=since)), list(store.newest(wanted=since))[::-1]):
        assert [(one.record["user"], one.record["time_us"]) for one in found] == [
            ("carol", WALL_US + 5 * DISORDER_US - DISORDER_US // 2),
            ("carol", WALL_US + 5 * DISORDER_US),
        ]


@pytest.mark.parametrize("kept", ["hash", "full"])
@pytest.mark.parametrize("is_drained", [False, True], ids=["fresh", "tended"])
def test_no_filter_by_axis_selects_a_row_that_no_limit_decided(day: Place, kept: str, *, is_drained: bool) -> None:
    session = Session(day.open(), POLICY, session="c" * 16, who=identity("carol"))
    session.keep_arguments(kept)
    session.call("free", arguments={"q": 1})
    if is_drained:
        day.tend()
    of_any_axis = ANY._replace(axis=lambda _: True)
    for reader in (day.open(), day.read()):
        found = [one.record["tool"] for one in reader.entries(wanted=of_any_axis)]
        assert found == ["report", "report", "closed", "report", "report"]
    groups = [group for tally in day.read().tally(wanted=of_any_axis) for group in tally.calls]
    assert {group.axis for group in groups} == {"user", "tool"}


@pytest.mark.parametrize("is_drained", [False, True], ids=["fresh", "tended"])
def test_reading_goes_on_after_a_row_and_with_a_filter_by_time(day: Place, *, is_drained: bool) -> None:
    if is_drained:
        day.tend()
    reader = day.read()
    found = list(reader.entries())
    *_, last = reader.tally()
    assert last.last_id == found[-1].row_id
    since = Wanted(lambda _: True, since_us=WALL_US + DISORDER_US)
    assert list(reader.entries(after=0, wanted=since)) == found[1:]
    for at, one in enumerate(found, 1):
        assert in_bulk(reader.rows(after=one.row_id)) == found[at:]
        assert counted(reader.tally(after=one.row_id)).total() == len(found) - at
        assert list(reader.entries(after=one.row_id, wanted=since)) == found[at:]


def test_a_denial_that_no_limit_made_is_counted_on_its_axis(place: Place) -> None:
    session = Session(place.open(), POLICY, who=identity("alice"))
    session.machine.change_identity(Unauthenticated("the token expired", "get a new one"))
    session.refuse(call_line("report", 1))
    (group,) = [group for part in place.read().tally() for group in part.calls if group.decision != "policy"]
    assert (group.axis, group.decision) == ("user", "unauthenticated")
