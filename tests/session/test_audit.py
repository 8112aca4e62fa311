"""The audit's record, its forms, and when equal denials share a row."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpguard.errors import Unauthenticated
from mcpguard.limiter.plan import Counter, Plan, Reported
from mcpguard.limiter.sliding import Exceeded, Limit
from mcpguard.policy.model import Call
from mcpguard.session import audit
from mcpguard.session.audit import MEMBERS, Outcome, Row, is_whole, line, record, row, summary, summed
from mcpguard.session.journal import Journal
from mcpguard.session.verdict import DecisionRequest, Verdict
from mcpguard.stores.memory import MemoryStore
from mcpguard.text.digest import cut
from mcpguard.wire.arguments import args_hash
from tests.build import WALL_US, Session, Talk, Time, call_line, exceeding

HOURLY = Reported("user", "user=alice tool=search", 100, "1h")
CONTEXT = '{"session":"00000000000000aa","namespace":"default","server":"crm","user":"alice","tool":"search"}'


def test_a_record_has_its_members_in_order_without_those_that_do_not_apply() -> None:
    names = "namespace server user user_source via client_session agent agent_source email roles tool act".split()
    full = Row(
        WALL_US,
        7,
        "rate_limited",
        json.dumps({"session": "00000000000000aa"} | dict.fromkeys(names, "x")),
        reported=json.dumps(HOURLY._replace(counts="cost").members()),
        request_id="4",
        args_hash=b"\x01\x02",
        trace_id="ab" * 16,
        counted=150,
        remaining=0,
        retry_after_ms=847,
        repeats=3,
        detail='{"reason":"why","arguments":{},"policy":"d","cost":2,"in_flight":1,"waited_ms":5,"warned":[]}',
    )
    told = record(full, outcome="ok", duration_us=1500)
    assert list(told) == list(MEMBERS)
    assert told["id"] == "00000000000000aa-7"
    assert told["time"] == "2026-01-01T00:00:00.000000Z"
    assert (told["args_hash"], told["request_id"], told["duration_ms"]) == ("0102", 4, 1.5)
    assert told["exceeded"] == [HOURLY._replace(counts="cost").members() | {"retry_after_ms": 847}]
    assert list(record(Row(WALL_US, 1, "policy", '{"session":"x"}'))) == ["id", "time", "time_us", "session", "seq", "decision"]


@pytest.mark.parametrize(
    ("text", "value"),
    [("7", 7), ('"a"', "a"), ('"\\u00e9"', "é"), ("9" * 5000, "9" * 5000), ('"cut…#12', '"cut…#12'), (None, None)],
)
def test_a_request_id_is_shown_as_the_client_sent_it(text: str | None, value: object) -> None:
    assert record(Row(WALL_US, 1, "allowed", CONTEXT, request_id=text)).get("request_id") == value


def test_a_call_without_a_trace_id_gets_one() -> None:
    told = [record(Row(WALL_US, seq, "allowed", CONTEXT))["trace_id"] for seq in (1, 255)]
    assert told == ["00000000000000aa0000000000000001", "00000000000000aa00000000000000ff"]
    assert "trace_id" not in record(Row(WALL_US, 1, "policy", '{"session":"x"}'))


def test_each_exceeded_limit_is_listed_with_its_wait() -> None:
    verdict = exceeding("denied", (HOURLY, 1500), (Reported("tool", "tool=x", None, None), None), at=1)
    request = DecisionRequest(Call("alice", "a::b::c", "crm", "search"), Plan(), CONTEXT, detail={"x": 1})
    written = row(request, verdict, WALL_US)
    assert record(written)["exceeded"] == [HOURLY.members() | {"retry_after_ms": 2}, {"axis": "tool", "rule": "tool=x"}]
    assert request.detail == {"x": 1}


def test_a_denial_by_one_limit_lists_that_limit_as_exceeded() -> None:
    told = record(Row(WALL_US, 1, "denied", CONTEXT, reported='{"axis":"tool","rule":"tool=x"}'))
    assert told["exceeded"] == [{"axis": "tool", "rule": "tool=x"}]
    assert "exceeded" not in record(Row(WALL_US, 1, "allowed", CONTEXT, reported=json.dumps(HOURLY.members())))


# Lines


def entry(**members: object) -> dict[str, object]:
    return members


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        (
            entry(limit=100, window="1h", rule="user=*", count=150, retry_after_ms=846_213)
            | entry(axis="user", user="a@b.c", agent="Claude Code::interactive::default", server="crm", tool="search"),
            'rate_limited axis=user user=a@b.c agent="Claude Code::interactive::default" tool=search'
            " limit=100/1h count=150 retry_after=847s",
        ),
        (entry(axis="tool", tool='a"\\=', rule="a b", repeats=3), 'denied axis=tool tool="a\\"\\\\=" rule="a b" repeats=3'),
        (entry(user="", reason="not JSON", outcome="ok"), 'invalid user="" reason="not JSON" outcome=ok'),
        (entry(tool="\x1b[2J\n"), 'allowed tool="\\x1b[2J\\n"'),
        (entry(limit=2, counts="concurrent", in_flight=1, waited_ms=9), "allowed limit=2-in-flight in_flight=1 waited_ms=9"),
        (entry(limit=9, window="1h", counts="cost", cost=20), "rate_limited limit=9-units/1h cost=20"),
        (entry(reason="too_costly"), "rate_limited reason=too_costly"),
        (entry(warned=[{"limit": 9, "window": "1h"}, {"limit": 5, "window": "1d"}]), "allowed warned=9/1h,5/1d"),
    ],
)
def test_a_record_is_written_on_one_line_as_key_value(entry: dict[str, object], text: str) -> None:
    assert line(entry | {"decision": text.split()[0]}) == text


def test_the_line_of_a_record_names_the_server_if_it_is_asked_for() -> None:
    record = entry(decision="allowed", axis="user", server="the crm", user="alice")
    assert line(record) == "allowed axis=user user=alice"
    assert line(record, with_server=True) == 'allowed axis=user server="the crm" user=alice'


def test_an_outcome_that_comes_later_makes_the_record_of_a_row_that_was_read_with_it() -> None:
    one = Row(WALL_US, 1, "allowed", CONTEXT)
    assert audit.with_outcome(record(one), Outcome(7, "ok", 41_250)) == record(one, outcome="ok", duration_us=41_250)


@given(st.dictionaries(st.sampled_from(["axis", "user", "agent", "tool", "rule", "reason", "outcome"]), st.text(max_size=6)))
def test_a_record_is_one_printable_line_whatever_the_names(entry: dict[str, object]) -> None:
    assert line(entry | {"decision": "allowed"}).isprintable()


def test_a_summary_lists_decisions_and_the_axes_of_denials_by_frequency_and_invalid_frames_not_as_calls() -> None:
    denied = {("rate_limited", "tool"): 2, ("rate_limited", "user"): 3, ("denied", "tool"): 1}
    tally = {("allowed", ""): 9, **denied, ("policy", ""): 4, ("invalid", ""): 1}
    assert summary(tally) == "15 calls: 9 allowed, 5 rate_limited (user 3, tool 2), 1 denied (tool 1); 1 invalid frame"
    assert summary({("policy", ""): 4}) == summary({}) == "no calls"
    assert summary({("invalid", ""): 2}) == "no calls; 2 invalid frames"


def test_a_session_counts_decisions_by_axis_each_once() -> None:
    talk = Talk('[[rule]]\ntool = "x"\nlimit = "2/1m"\n')
    talk.client(*[call_line("x", at) for at in range(3)], b"not json")
    talk.identify(Unauthenticated("no token", "get one"))
    talk.client_calls("x", 4)
    assert talk.machine.tally == {
        ("allowed", ""): 2, ("rate_limited", "tool"): 1, ("invalid", ""): 1, ("unauthenticated", "user"): 1,
    }  # fmt: skip


# Storms


def denial(journal: Journal, at_us: int, counter: int = 0, context: str = CONTEXT) -> tuple[list[Row], Verdict]:
    request = DecisionRequest(Call("alice", "a::b::c", "crm", "search"), Plan(), context, request_id=str(counter))
    verdict = exceeding("denied", (HOURLY, None))
    return journal.rows([request], [verdict], at_us), verdict


def test_equal_denials_have_a_row_at_once_then_one_a_second_and_are_then_forgotten() -> None:
    journal = Journal("00000000000000aa")
    rows, first = denial(journal, WALL_US)
    assert ([one.seq for one in rows], first.has_own_row, first.audit_id) == ([1], True, "00000000000000aa-1")
    for at in range(1, 4):
        rows, verdict = denial(journal, WALL_US + at * 100_000, counter=at)
        assert (rows, verdict.has_own_row, verdict.audit_id) == ([], False, "00000000000000aa-1.1")
    assert journal.flush(WALL_US + 999_999) == []
    (told,) = journal.flush(WALL_US + 1_000_000)
    assert (told.repeats, told.seq, told.request_id, told.time_us) == (3, 2, "3", WALL_US + 300_000)
    rows, verdict = denial(journal, WALL_US + 1_500_000)
    assert (rows, verdict.audit_id) == ([], "00000000000000aa-1.2")
    assert [one.repeats for one in journal.flush(WALL_US + 2_000_000)] == [1]
    assert journal.is_waiting
    assert journal.flush(WALL_US + 3_000_000) == []
    assert not journal.is_waiting


def test_a_late_denial_has_a_row_of_its_own_although_nothing_was_flushed() -> None:
    journal = Journal("s")
    denial(journal, WALL_US)
    rows, verdict = denial(journal, WALL_US + 1_000_000)
    assert (len(rows), verdict.has_own_row) == (1, True)
    denial(journal, WALL_US + 1_500_000)
    rows, verdict = denial(journal, WALL_US + 9_000_000)
    assert (rows, verdict.has_own_row) == ([], False)
    assert [one.repeats for one in journal.flush(WALL_US + 9_000_000)] == [2]


def test_the_counts_of_denials_take_bounded_memory() -> None:
    journal = Journal("s")
    for at in range(9000):
        plan = Plan((Limit(1, 1, 0),), (HOURLY,), (Counter(at, "", 1),))
        verdict = Verdict("rate_limited", plan, 0, count=1, retry_after_us=1, exceeded=(Exceeded(0, 1),))
        journal.rows([DecisionRequest(Call("a", "b", "c", "d"), plan, CONTEXT)], [verdict], WALL_US)
        assert verdict.count == 2
    assert len(journal.denials) <= 4097


def test_an_admission_resets_the_count_of_denials() -> None:
    talk = Talk('[[rule]]\ntool = "x"\nlimit = "1/1m"\n')
    assert [verdict.count for verdict in talk.call("x", 3)] == [1, 2, 3]
    talk.time.pass_s(60)
    assert [verdict.count for verdict in talk.call("x", 2)] == [1, 2]


def test_a_denial_by_a_closed_tool_has_no_count() -> None:
    talk = Talk('[[rule]]\ntool = "x"\nlimit = "deny"\n')
    assert talk.one("x").count is None
    assert "count" not in talk.records[0]


def test_the_row_of_a_refused_call_cuts_long_arguments() -> None:
    policy = 'mode = "enforce"\n[[rule]]\ntool = "closed"\nlimit = "deny"\n'
    talk = Talk(policy, arguments="full")
    for arguments in ({"a": "x" * 1000}, {"a": "x" * 10_000}):
        talk.one("closed")
        for tool in ("closed", "open"):
            talk.call(tool, arguments=arguments)
        talk.store.append(talk.journal.flush(WALL_US, all_of_them=True))
    denied = [one["arguments"] for one in talk.records if "repeats" in one]
    assert denied == [{"a": "x" * 1000}, cut('{"a":"' + "x" * 10_000 + '"}')]
    assert [one["arguments"] for one in talk.records if one["tool"] == "open"] == [{"a": "x" * 1000}, {"a": "x" * 10_000}]


def several(common: Row) -> Row:
    return audit.for_several(common, 2, "s-1.1", 7, is_sum=True)


def test_a_row_for_several_denials_has_only_what_they_have_in_common() -> None:
    first = Row(
        WALL_US, 1, "unauthenticated", '{"session":"s","user":"alice","tool":"a"}', '{"axis":"user","rule":"r"}', "1", b"h",
        "ab" * 16, 3, 0, 9, 5, '{"axis":"user","reason":"expired","arguments":{}}',
    )  # fmt: skip
    other = first._replace(time_us=WALL_US + 1, seq=2, context='{"session":"s","user":"alice","tool":"b"}')
    sum_row = several(summed(first, other._replace(reported='{"axis":"user","rule":"q"}', detail='{"axis":"user"}')))
    detail = '{"axis":"user","reason":"more of this kind, not kept one by one","id":"s-1.1"}'
    context = '{"session":"s","user":"alice"}'
    assert sum_row == Row(WALL_US + 1, 2, "unauthenticated", context, '{"axis":"user"}', repeats=7, detail=detail)
    bare = Row(WALL_US, 1, "invalid", '{"session":"s"}')
    assert summed(bare, bare)._replace(detail=None) == bare


@pytest.mark.parametrize(
    "other", ['{"axis":"user","limit":5,"rule":"r","window":"1h"}', '{"axis":"user","limit":6,"rule":"r","window":"1m"}']
)
def test_a_row_for_denials_by_different_limits_names_none_of_them_in_part(other: str) -> None:
    one = Row(WALL_US, 1, "rate_limited", '{"session":"s"}', '{"axis":"user","limit":5,"rule":"r","window":"1m"}')
    sum_row = several(summed(one, one._replace(reported=other)))
    assert sum_row.reported == '{"axis":"user"}'
    assert several(summed(sum_row, one)).reported == '{"axis":"user"}'
    assert record(sum_row).keys().isdisjoint({"rule", "limit", "window", "exceeded"})
    assert line(record(sum_row)) == 'rate_limited axis=user repeats=7 reason="more of this kind, not kept one by one"'


def test_the_setting_arguments_selects_what_rows_keep_of_arguments() -> None:
    key, values = b"", [{"secret": 7}, {"secret": 7}, {"secret": 8}, {"secret": 7}]
    hashed, none, full = (Talk(arguments=kept, args_key=lambda: key) for kept in ("hash", "none", "full"))
    for arguments in values:
        for talk in (hashed, none, full):
            talk.call("x", arguments=arguments)
        key = b"k"
    hashes = [None, *(args_hash(one, b"k").hex() for one in values[1:])]
    assert [one.get("args_hash") for one in hashed.records] == hashes, "without a key there is no hash"
    assert [one["arguments"] for one in full.records] == values
    assert not any("arguments" in one for one in hashed.records)
    assert not any({"args_hash", "arguments"} & one.keys() for one in none.records)


def test_a_journal_tells_the_denials_on_a_counter_since_the_last_admission() -> None:
    session = Session(MemoryStore(clock=Time(), wall=Time(WALL_US)), '[[rule]]\ntool = "*"\nlimit = ["2/1m", "9/1h"]\n')
    session.call("closed", 2)
    minute, _ = session.charges("closed")[0].plan.counters
    assert not session.journal.denials
    session.call("closed", 3)
    assert session.journal.denials == {minute.id: 3}


def test_the_session_of_a_row_is_read_from_its_context() -> None:
    assert audit.session_of(Row(0, 1, "allowed", CONTEXT)) == json.loads(CONTEXT)["session"]


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    "damage", [{"context": "x"}, {"context": DEEP}, {"context": "[1]"}, {"reported": "{}"}, {"detail": "x"}, {"detail": DEEP}]
)
def test_a_row_whose_texts_are_damaged_is_not_whole(damage: dict[str, str]) -> None:
    row = Row(WALL_US, 1, "allowed", '{"namespace":"x"}', detail="{}")
    assert is_whole(row, None, None)
    assert not is_whole(Row(**{**row._asdict(), **damage}), None, None)
