"""Audit rows: one for every decision, in order, without gaps, and few for many equal denials."""

from collections.abc import Callable

from mcpguard.session.audit import Outcome
from mcpguard.session.verdict import Verdict
from tests.build import Session, call_line
from tests.contract.conftest import Place

POLICY = '[[rule]]\ntool = "report"\nlimit = "5/1m"\n[[rule]]\nuser = "*"\ntool = "closed"\nlimit = "deny"\n'


def records(place: Place) -> list[dict[str, object]]:
    return [entry.record for entry in place.open().entries()]


def test_every_decision_has_its_row_in_order_with_who_what_and_how(place: Place) -> None:
    session = Session(place.open(), POLICY)
    for tool in ("report", "free", "closed"):
        session.call(tool)
        place.pass_ms(1500)
    told = [(one["tool"], one["decision"], one["seq"], one["time_us"]) for one in records(place)]
    start = place.wall() - 4_500_000
    assert told == [
        ("report", "allowed", 1, start),
        ("free", "allowed", 2, start + 1_500_000),
        ("closed", "denied", 3, start + 3_000_000),
    ]
    first = records(place)[0]
    assert first["user"] == "alice@acme.com"
    assert first["agent"] == "Claude Code::interactive::default"
    assert (first["axis"], first["limit"], first["window"], first["rule"]) == ("tool", 5, "1m", "tool=report")
    assert (first["count"], first["remaining"], first["request_id"]) == (1, 4, 1)


def test_appended_rows_get_row_ids_for_their_outcomes(place: Place) -> None:
    session = Session(place.open(), POLICY)
    session.call("report")
    requests = session.charges("report", 3)
    rows = session.journal.rows(requests, [Verdict("allowed") for _ in requests], place.wall())
    row_ids = session.store.append(rows)
    session.call("report")
    session.store.record([Outcome(row_ids[2], "ok", 3000), Outcome(row_ids[0], "tool_error", 1000)])
    told = [(one["seq"], one.get("outcome"), one.get("duration_ms")) for one in records(place)]
    assert told == [(1, None, None), (2, "tool_error", 1), (3, None, None), (4, "ok", 3), (5, None, None)]
    assert session.store.append([]) == []


def test_an_outcome_is_joined_to_its_row_before_and_after_upkeep_and_the_first_one_stays(place: Place) -> None:
    session = Session(place.open(), POLICY)
    first, second, third = [verdict.row_id or 0 for verdict in session.call("report", 3)]

    def outcomes() -> list[Outcome]:
        found = [(one.get("outcome"), one.get("duration_ms")) for one in records(place)]
        assert [entry.record.get("outcome") for entry in place.open().newest()] == [outcome for outcome, _ in found[::-1]]
        told = [place.read().outcomes_of([first, second, third]), session.store.outcomes_of([third, first, second])]
        assert told[0] == told[1]
        assert [(one.outcome, one.duration_us / 1000) for one in told[0]] == [one for one in found if one[0]]
        return told[0]

    session.store.record([Outcome(second, "ok", 250)])
    for late in ["rpc_error"], ["ok", "cancelled"]:
        expected = outcomes()
        assert expected[-1] == Outcome(second, "ok", 250)
        place.pass_ms(60_000)
        place.tend()
        assert outcomes() == expected
        session.store.record([Outcome(row_id, what, 1500) for what in late for row_id in (first, second)])
        assert outcomes() == [Outcome(first, "rpc_error", 1500), Outcome(second, "ok", 250)]
    assert place.read().outcomes_of([third]) == place.read().outcomes_of([]) == []


OBSERVED = '[[rule]]\ntool = "report"\nlimit = ["2/1m", "9/1h"]\nmode = "observe"\n'


def test_in_observe_mode_the_count_tells_the_size_of_a_loop_as_if_it_had_been_denied(place: Place) -> None:
    session = Session(place.open(), OBSERVED + '[[rule]]\ntool = "report"\nper = []\nlimit = "6/1m"\n')
    for times in (3, 1, 4):
        session.call("report", times)
    observed = ["allowed"] * 2 + ["would_deny"] * 4
    assert [(one["count"], one["decision"]) for one in records(place)] == [*enumerate([*observed, "rate_limited"], 1)]
    place.pass_ms(60_000)
    assert [(one.count, one.decision) for one in session.call("report", 3)] == [*enumerate(observed[:3], 1)]


def test_the_count_includes_a_call_that_is_charged_on_the_counter_of_a_full_observed_limit(place: Place) -> None:
    enforced = '[[rule]]\nuser = "alice*"\nlimit = "4/1m"\n'
    observed = '[[rule]]\nuser = "*acme.com"\nlimit = "2/1m"\nmode = "observe"\n'
    Session(place.open(), enforced + observed).call("report", 5)
    decisions = ["allowed"] * 2 + ["would_deny"] * 2 + ["rate_limited"]
    assert [(one["count"], one["decision"]) for one in records(place)] == [*enumerate(decisions, 1)]


def test_all_handles_of_a_store_have_one_args_key_and_another_store_has_another(new_place: Callable[[], Place]) -> None:
    place, other = new_place(), new_place()
    keys = {place.open().args_key for _ in range(3)}
    assert len(keys | {other.open().args_key}) == 1 + len(keys) == 2
    assert {len(key) for key in keys} == {32}


def test_any_name_is_read_as_it_was_written(place: Place) -> None:
    session = Session(place.open(), POLICY)
    names = ["", "-- drop", "\x1b[2J", "é" * 100, "\U0001f600", 'a"b\\c', "%s {0}"]
    lines = [call_line(name, name) for name in names]
    session.store.decide(session.requests(*lines), session.journal)
    assert [(one["tool"], one["request_id"]) for one in records(place)] == [(name, name) for name in names]


def test_equal_denials_share_a_row_with_their_number(place: Place) -> None:
    session = Session(place.open(), POLICY)
    session.call("report", 12)
    session.store.append(session.journal.flush(place.wall(), all_of_them=True))
    assert [(one["decision"], one.get("repeats")) for one in records(place)[5:]] == [
        ("rate_limited", None),
        ("rate_limited", 6),
    ]
