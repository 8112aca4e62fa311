"""Audit rows: one for every decision, in order, without gaps, and few for many equal denials."""

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


def test_the_audit_id_of_a_verdict_is_the_id_of_its_row(place: Place) -> None:
    session = Session(place.open(), POLICY)
    verdicts = session.call("report", 5)
    assert [verdict.audit_id for verdict in verdicts] == [one["id"] for one in records(place)]


def test_each_session_numbers_its_rows_without_gaps(place: Place) -> None:
    sessions = [Session(place.open(), POLICY, session=f"{at:016x}") for at in range(3)]
    for session in [*sessions, *reversed(sessions)] * 3:
        session.call("report", 2)
        session.call("closed", 2)
    place.pass_ms(1000)
    for session in sessions:
        session.store.append(session.journal.flush(place.wall()))
    for session in sessions:
        seqs = [one["seq"] for one in records(place) if one["session"] == session.journal.session]
        assert seqs == list(range(1, len(seqs) + 1))
        assert session.journal.seq == len(seqs) > 2


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


def test_an_outcome_is_joined_to_its_row_and_the_first_one_stays(place: Place) -> None:
    session = Session(place.open(), POLICY)
    first, second = session.call("report", 2)
    assert first.row_id is not None
    assert second.row_id is not None
    session.store.record([Outcome(second.row_id, "tool_error", 1500), Outcome(first.row_id, "ok", 250)])
    session.store.record([Outcome(second.row_id, "ok", 9)])
    told = [(one["outcome"], one["duration_ms"]) for one in records(place)]
    assert told == [("ok", 0.25), ("tool_error", 1.5)]


def test_outcomes_can_be_read_by_row(place: Place) -> None:
    session = Session(place.open(), POLICY)
    ids = [verdict.row_id for verdict in session.call("report", 3) if verdict.row_id is not None]
    session.store.record([Outcome(ids[2], "ok", 3000), Outcome(ids[0], "tool_error", 1000)])
    for _ in range(2):
        for reader in (session.store, place.read()):
            assert reader.outcomes_of(ids) == [Outcome(ids[0], "tool_error", 1000), Outcome(ids[2], "ok", 3000)]
            assert reader.outcomes_of(ids[1:2]) == reader.outcomes_of([]) == []
        place.pass_ms(60_000)
        while session.store.needs_tending:
            session.store.tend()


def test_equal_denials_become_one_row_a_second_with_their_number(place: Place) -> None:
    session = Session(place.open(), POLICY)
    session.call("report", 5)
    denials = 0
    for _ in range(40):
        place.pass_ms(100)
        denials += session.decisions("report", 7).count("rate_limited")
        session.store.append(session.journal.flush(place.wall()))
    session.store.append(session.journal.flush(place.wall(), all_of_them=True))
    rows = [one for one in records(place) if one["decision"] == "rate_limited"]
    assert denials == 280
    assert sum(int(str(one.get("repeats", 1))) for one in rows) == denials
    assert "repeats" not in rows[0]
    assert 4 <= len(rows) <= 6
    assert not session.journal.flush(place.wall(), all_of_them=True)


OBSERVED = """
[[rule]]
tool = "report"
limit = ["2/1m", "9/1h"]
mode = "observe"
[[rule]]
tool = "report"
per = []
limit = "6/1m"
"""


def test_in_observe_mode_the_count_tells_the_size_of_a_loop_as_if_it_had_been_denied(place: Place) -> None:
    session = Session(place.open(), OBSERVED)
    session.call("report", 3)
    session.call("report")
    session.call("report", 4)
    assert [(one["decision"], one["count"]) for one in records(place)] == [
        *[("allowed", 1), ("allowed", 2)],
        *[("would_deny", 3), ("would_deny", 4), ("would_deny", 5), ("would_deny", 6)],
        ("rate_limited", 7),
    ]
    place.pass_ms(60_000)
    assert [(one.decision, one.count) for one in session.call("report", 3)] == [
        *[("allowed", 1), ("allowed", 2)],
        ("would_deny", 3),
    ]


def test_the_count_includes_a_call_that_is_charged_on_the_counter_of_a_full_observed_limit(place: Place) -> None:
    enforced = '[[rule]]\nuser = "alice*"\nlimit = "4/1m"\n'
    observed = '[[rule]]\nuser = "*acme.com"\nlimit = "2/1m"\nmode = "observe"\n'
    Session(place.open(), enforced + observed).call("report", 5)
    assert [(one["decision"], one["count"]) for one in records(place)] == [
        *[("allowed", 1), ("allowed", 2)],
        *[("would_deny", 3), ("would_deny", 4)],
        ("rate_limited", 5),
    ]


def test_count_includes_the_denials_since_the_last_admission(place: Place) -> None:
    session = Session(place.open(), POLICY)
    assert [verdict.count for verdict in session.call("report", 8)] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [verdict.remaining for verdict in session.call("report", 1)] == [0]
    place.pass_ms(60_000)
    assert [verdict.count for verdict in session.call("report", 7)] == [1, 2, 3, 4, 5, 6, 7]


def test_count_includes_a_denial_once_if_two_limits_share_a_counter(place: Place) -> None:
    meeting = '[[rule]]\nuser = "a*"\nlimit = "2/1m"\n[[rule]]\nuser = "*m"\nlimit = "2/1m"\n'
    session = Session(place.open(), meeting)
    verdicts = session.call("report", 5)
    assert [len(verdict.exceeded) for verdict in verdicts] == [0, 0, 2, 2, 2]
    assert [verdict.count for verdict in verdicts] == [1, 2, 3, 4, 5]


def test_rows_of_what_no_limit_decides_charge_nothing(place: Place) -> None:
    session = Session(place.open(), POLICY)
    session.start()
    assert [one.decision for one in session.refuse(b'{"jsonrpc":"2.0","id":4,"method":7}')] == ["invalid"]
    retry = session.charges("report")[0]
    retry.continue_as(1)
    (verdict,) = session.store.decide([retry], session.journal)
    assert (verdict.decision, verdict.forwards, verdict.count) == ("continued", True, None)
    assert place.open().counters() == []
    policy_row, invalid_row, retry_row = records(place)
    assert retry_row["decision"] == "continued"
    assert (policy_row["decision"], policy_row["reason"]) == ("policy", "in force at the start")
    assert len(str(policy_row["policy"])) == 32
    assert (invalid_row["reason"], invalid_row["request_id"]) == ("a method that is not a string", 4)


def test_the_audit_log_is_read_after_a_row_and_from_its_end(place: Place) -> None:
    session = Session(place.open(), POLICY)
    session.call("free", 1203)
    reader = place.open()
    entries = list(reader.entries())
    assert [entry.record["seq"] for entry in entries] == list(range(1, 1204))
    assert [entry.row_id for entry in entries] == sorted({entry.row_id for entry in entries})
    assert list(reader.newest()) == entries[::-1]
    assert list(reader.entries(after=entries[700].row_id)) == entries[701:]
    assert list(reader.entries(after=entries[-1].row_id)) == []
    session.call("free")
    assert [entry.record["seq"] for entry in reader.entries(after=entries[-1].row_id)] == [1204]


def test_all_handles_of_a_store_have_one_args_key_and_another_store_has_another(place: Place) -> None:
    keys = {place.open().args_key for _ in range(3)}
    assert len(keys) == 1
    assert len(keys.pop()) == 32


def test_any_name_is_read_as_it_was_written(place: Place) -> None:
    session = Session(place.open(), POLICY)
    names = ["", "-- drop", "\x1b[2J", "é" * 100, "\U0001f600", 'a"b\\c', "%s {0}"]
    lines = [call_line(name, name) for name in names]
    session.store.decide(session.requests(*lines), session.journal)
    assert [(one["tool"], one["request_id"]) for one in records(place)] == [(name, name) for name in names]
