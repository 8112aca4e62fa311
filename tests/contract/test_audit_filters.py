"""A store returns exactly the audit rows that a filter wants, in both orders."""

import pytest

from mcpguard.session.audit import Outcome
from mcpguard.stores.api import DISORDER_US, Wanted
from tests.build import WALL_US, Session, identity
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
                session.store.record([Outcome(verdict.row_id, "ok" if number else "tool_error", 1000)])
        place.pass_ms(HOUR_MS)
    return place


@pytest.mark.parametrize(
    ("wanted", "hours"),
    [
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
def test_a_filter_finds_its_rows_in_both_orders(day: Place, wanted: Wanted, hours: list[int], *, is_drained: bool) -> None:
    if is_drained:
        day.tend()
    for reader in (day.open(), day.read()):
        found = list(reader.entries(wanted=wanted))
        assert [(int(str(one.record["time_us"])) - WALL_US) // DISORDER_US for one in found] == hours
        assert list(reader.newest(wanted=wanted)) == found[::-1]


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


def test_after_and_a_filter_by_time_bound_the_rows_together(day: Place) -> None:
    store = day.open()
    ids = [one.row_id for one in store.entries()]
    wanted = Wanted(lambda _: True, since_us=WALL_US + DISORDER_US)
    assert [one.row_id for one in store.entries(after=ids[2], wanted=wanted)] == ids[3:]
    assert [one.row_id for one in store.entries(after=0, wanted=wanted)] == ids[1:]
