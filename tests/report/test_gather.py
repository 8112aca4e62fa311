import json

from mcpguard.limiter.plan import Reported
from mcpguard.reading.statistics import Figures
from mcpguard.report.gather import GAP_US, MAX_SLOTS, NAMES, SLOTS_US, WORST, PeriodFindings, gather, rounded_us, slot_us
from mcpguard.report.gather import LEAST_BURST as LEAST
from mcpguard.session.audit import Row
from mcpguard.stores.api import StoredRow
from tests.report.week import HOUR_US, SINCE_US, UNTIL_US, week

LIMIT = {"axis": "user", "rule": "user=*", "limit": 5, "window": "1m"}


def stored(
    at_us: int, decision: str, user: str = "alice", tool: str = "echo", outcome: str | None = None, **members: object
) -> StoredRow:
    names = {"user": user, "agent": "a::b::c", "server": "crm", "tool": tool, "namespace": "default", "session": "s"}
    limit = json.dumps(LIMIT) if decision in {"allowed", "rate_limited", "would_deny"} else None
    row = Row(SINCE_US + at_us, 1, decision, json.dumps(names), limit, **members)  # type: ignore[arg-type]
    return StoredRow(1, row, outcome, 1000 if outcome else None)


def of(*rows: StoredRow) -> PeriodFindings:
    return gather([rows], SINCE_US, UNTIL_US)


def test_a_row_that_sums_up_denials_counts_as_many_calls() -> None:
    found = of(stored(0, "allowed"), stored(1, "rate_limited", repeats=7), stored(2, "would_deny"))
    assert (found.all.calls, found.all.denied, found.all.would_deny, found.all.allowed) == (9, 7, 1, 1)
    assert found.limits[Reported("user", "user=*", 5, "1m")].denied == 7


def test_a_row_that_sums_up_denials_of_several_limits_counts_for_none_of_them() -> None:
    one = stored(0, "rate_limited", repeats=7)
    found = of(one._replace(row=one.row._replace(reported='{"axis":"user"}')))
    assert (found.all.denied, found.slots[0].denied, found.limits) == (7, {"user": 7}, {})


def test_calls_are_counted_in_the_hour_in_which_they_were_made() -> None:
    found = of(stored(0, "allowed"), stored(HOUR_US, "allowed"), stored(HOUR_US + 1, "rate_limited"))
    assert [slot.figures.calls for slot in found.slots[:3]] == [1, 2, 0]
    assert len(found.slots) == 168


def test_a_denial_that_no_limit_made_has_no_axis_unless_it_names_one() -> None:
    detail = json.dumps({"axis": "user", "reason": "expired"})
    found = of(stored(0, "invalid"), stored(0, "unauthenticated", detail=detail))
    assert found.slots[0].denied == {"none": 1, "user": 1}


def test_an_error_is_a_share_of_the_calls_that_have_ended() -> None:
    outcomes = ("ok", "ok", "tool_error", "rpc_error", None)
    assert of(*(stored(0, "allowed", outcome=outcome) for outcome in outcomes)).all.error_share == 0.5
    assert of(stored(0, "rate_limited")).all.error_share is None


def test_a_percentile_is_off_by_five_percent_at_most() -> None:
    figures = Figures()
    for duration_us in range(1, 100_001):
        figures.add("allowed", 1, "ok", rounded_us(duration_us))
    for share, found in zip((50, 95, 99), figures.percentiles_ms(), strict=True):
        assert found is not None
        assert abs(found / share - 1) < 0.05


def test_memory_does_not_grow_with_the_number_of_names_and_the_most_called_stay() -> None:
    names = 5 * NAMES
    rows = [stored(at, "rate_limited", user=f"user {at}", tool=f"tool {at}") for at in range(names)]
    found = of(*([stored(0, "allowed", user="often", tool="usual")] * 3), *rows)
    assert len(found.users.figures) <= 2 * NAMES
    assert len(found.tools.figures) <= 2 * NAMES
    assert found.users.top(1)[0][0] == ("often",)


def test_denials_within_a_minute_of_each_other_are_one_burst() -> None:
    early = [stored(at * GAP_US, "rate_limited") for at in range(LEAST)]
    late = [stored(LEAST * GAP_US + 1 + at, "rate_limited", repeats=2) for at in range(LEAST)]
    other = [stored(at, "rate_limited", user="bob") for at in range(LEAST - 1)]
    worst = of(*sorted([*early, *late, *other], key=lambda one: one.row.time_us)).bursts.worst()
    found = [(burst.calls, burst.last_us - burst.first_us, burst.kind[1]) for burst in worst]
    assert found == [(2 * LEAST, LEAST - 1, "alice"), (LEAST, (LEAST - 1) * GAP_US, "alice")]


def test_the_largest_bursts_are_kept_however_many_there_are() -> None:
    rows = [stored(at, "rate_limited", user=f"user {at}", repeats=LEAST + at % 97) for at in range(10_000)]
    found = of(*rows).bursts.worst()
    assert len(found) == WORST
    assert {burst.calls for burst in found} == {LEAST + 96}


def test_a_period_has_at_most_170_slots() -> None:
    for hours in (1, 24, 24 * 7, 24 * 30, 24 * 366, 24 * 4000):
        period_us = hours * HOUR_US
        assert len(PeriodFindings(SINCE_US, SINCE_US + period_us, SINCE_US).slots) <= 170
    begin_us = SINCE_US + 1
    for slot in SLOTS_US:
        for number in (MAX_SLOTS - 1, MAX_SLOTS, MAX_SLOTS + 1):
            assert len(PeriodFindings(begin_us, begin_us + number * slot, begin_us).slots) <= MAX_SLOTS
    assert slot_us(7 * 24 * HOUR_US) == HOUR_US


def test_charts_begin_with_the_first_call_of_the_period() -> None:
    before = stored(0, "policy")
    calls = [stored(165 * HOUR_US + at, "allowed") for at in (7, 5, 60_000_000)]
    found = gather([[before], [], calls], SINCE_US, UNTIL_US)
    assert (found.since_us, found.until_us) == (SINCE_US, UNTIL_US)
    assert found.first_us == SINCE_US + 165 * HOUR_US
    assert found.slot_us == slot_us(3 * HOUR_US)
    assert [slot.figures.calls for slot in found.slots[:2]] == [3, 0]
    assert found.first_us + len(found.slots) * found.slot_us == UNTIL_US


def test_charts_of_a_call_at_the_very_end_have_one_point() -> None:
    assert [slot.figures.calls for slot in of(stored(UNTIL_US - SINCE_US - 1, "allowed")).slots] == [1]


def test_the_figures_of_a_week_agree_with_each_other() -> None:
    found = gather([list(week())], SINCE_US, UNTIL_US)
    assert sum(slot.figures.calls for slot in found.slots) == found.all.calls == found.decisions.total()
    assert sum(slot.denied.total() for slot in found.slots) == found.all.denied
    assert sum(one.calls for one in found.users.figures.values()) == found.all.calls
