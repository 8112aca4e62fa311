"""A store returns rows in bulk, and counts them, exactly as it returns their records one by one."""

from collections import Counter

import pytest

from mcpguard.errors import Unauthenticated
from mcpguard.session.audit import Outcome, record
from mcpguard.stores.api import Readable, Wanted
from mcpguard.stores.tally import HOUR_US, rounded_us
from tests.build import WALL_US, Session, call_line, identity
from tests.contract.conftest import Place

POLICY = '[[rule]]\nuser = "*"\ntool = "report"\nlimit = "2/1m"\n\n[[rule]]\ntool = "closed"\nlimit = "deny"\n'
ANY = Wanted(lambda _: True)


@pytest.fixture(params=[False, True], ids=["fresh", "tended"])
def reader(request: pytest.FixtureRequest, place: Place) -> Readable:
    """Two users call two tools in three hours; the outcomes of the last hour are not known when the rows are archived."""
    place.time.now_us = WALL_US
    for at, user in enumerate(["alice", "bob", "alice"]):
        session = Session(place.open(), POLICY, session=f"{at:016x}", who=identity(user))
        for number in range(4):
            for verdict in session.call("report" if number < 3 else "closed"):
                if verdict.row_id and verdict.forwards and number != 1:
                    session.store.record([Outcome(verdict.row_id, "ok" if at else "tool_error", 1234 * 10**number)])
        place.pass_ms(3_600_000)
    if request.param:
        place.tend()
    return place.read()


FILTERS = [
    None,
    ANY,
    Wanted(lambda record: record["user"] == "bob"),
    ANY._replace(decisions=frozenset({"rate_limited", "denied"})),
    ANY._replace(outcomes=frozenset({"ok"})),
    ANY._replace(axis="tool".__eq__),
    ANY._replace(since_us=WALL_US + HOUR_US, until_us=WALL_US + 2 * HOUR_US),
]


@pytest.mark.parametrize("wanted", FILTERS, ids=["none", "any", "bob", "denied", "ok", "tool", "hour"])
def test_rows_in_bulk_and_counted_rows_are_those_of_the_records(reader: Readable, wanted: Wanted | None) -> None:
    expected = list(reader.entries(wanted=wanted))
    found = [one for page in reader.rows(wanted=wanted) for one in page]
    records = [record(one.row, outcome=one.outcome, duration_us=one.duration_us) for one in found]
    assert [one.row_id for one in found] == [one.row_id for one in expected]
    assert records == [one.record for one in expected]
    calls: Counter[tuple[object, ...]] = Counter()
    for part in reader.tally(wanted=wanted):
        for group, durations in part.calls.items():
            for duration_us, number in durations.items():
                calls[group.axis, group.decision, group.outcome, group.hour, duration_us] += number
    assert calls == Counter(
        (
            one.get("axis"),
            one["decision"],
            one.get("outcome"),
            int(str(one["time_us"])) // HOUR_US,
            rounded_us(round(float(str(one["duration_ms"])) * 1000)) if "duration_ms" in one else None,
        )
        for one in records
    )


def test_reading_goes_on_after_a_row(reader: Readable) -> None:
    *_, last = reader.tally()
    ids = [one.row_id for one in reader.entries()]
    assert last.last_id == ids[-1]
    for at in range(len(ids)):
        assert [one.row_id for page in reader.rows(after=ids[at]) for one in page] == ids[at + 1 :]
        assert sum(
            number for part in reader.tally(after=ids[at]) for one in part.calls.values() for number in one.values()
        ) == (len(ids) - at - 1)
    assert [calls for _, calls in reader.tally(after=ids[-1]) if calls] == []


def test_a_denial_that_no_limit_made_is_counted_on_its_axis(place: Place) -> None:
    session = Session(place.open(), POLICY, who=identity("alice"))
    session.machine.change_identity(Unauthenticated("the token expired", "get a new one"))
    session.refuse(call_line("report", 1))
    (group,) = [group for part in place.read().tally() for group in part.calls if group.decision != "policy"]
    assert (group.axis, group.decision) == ("user", "unauthenticated")
