"""The Redis store beyond the contract: its keys, commands, upkeep, rows in doubt, and warnings about the server."""

import re
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from itertools import count, pairwise
from pathlib import Path
from secrets import token_hex
from types import SimpleNamespace
from typing import Any

import pytest

from mcpguard.errors import StoreUnavailable
from mcpguard.session.audit import Outcome, Row
from mcpguard.session.journal import Journal
from mcpguard.session.verdict import Verdict
from mcpguard.stores.clock import wall_us
from mcpguard.stores.redis import layout, reader, upkeep
from mcpguard.stores.redis import server as redis_server
from mcpguard.stores.redis.link import Link
from mcpguard.stores.redis.store import RedisStore
from tests.build import Session
from tests.redis_servers import Server, running, wait_for
from tests.stores.conftest import around_next, before_each, raising
from tests.stores.redis.conftest import (
    AUDIT,
    LABELS,
    OUTCOMES,
    PATIENT,
    POLICY,
    REFUSED,
    Begin,
    Opened,
    call_with_outcomes,
    keys,
    length,
    refuse,
)

HOUR_US = 3600 * 1_000_000


# keys


def test_a_namespace_of_any_name_has_keys_of_its_own(begin: Begin) -> None:
    one, other = begin(namespace="a"), begin(namespace="b}:counters {")
    assert [session.decisions("report", 6)[-2:] for session in (one, other)] == [["allowed", "rate_limited"]] * 2
    assert one.store.args_key != other.store.args_key
    assert one.store.reset([one.label for one in one.store.counters()]) == 1
    assert [one.used for one in other.store.counters()] == [5]


def test_all_keys_of_a_namespace_are_in_one_slot(server: Server, begin: Begin) -> None:
    session = begin(namespace="team a")
    call_with_outcomes(session, 1)
    session.call("report")
    session.store.tend()
    found = keys(server)
    assert len(found) == 7  # meta, a counter, their index, tended; rows, outcomes, and their size
    assert {key.split("}")[0] for key in found} == {"{mcpguard:team%20a"}


def test_the_key_of_a_counter_expires_with_its_window(server: Server, begin: Begin) -> None:
    session = begin('[[rule]]\ntool = "x"\nlimit = "9/1h"\n[[rule]]\nuser = "*"\nlimit = "9/4s"\n')
    session.call("x")
    short_ms, long_ms = sorted(int(server.command("PTTL", key)[1:]) for key in keys(server, "counter"))
    rounded_ms = 2  # the expiry is rounded up, and the server's time in whole milliseconds down
    assert 0 < short_ms <= 4000 + 4000 / 64 + rounded_ms
    assert 3_590_000 < long_ms <= 3_600_000 + 3_600_000 / 64 + rounded_ms
    wait_for(lambda: len(keys(server, "counter")) == 1, "a counter stays")
    assert len(session.store.counters()) == 1


@pytest.mark.parametrize(("kind", "limit"), [("counter", 'limit = "9/1h"'), ("in_flight", "concurrent = 9")])
def test_upkeep_deletes_the_labels_of_expired_counters_alone(server: Server, begin: Begin, kind: str, limit: str) -> None:
    session = begin(f'[[rule]]\ntool = "*"\n{limit}\n')
    for tool in "xy":
        session.call(tool)
    gone, kept = keys(server, kind)
    server.command("DEL", gone)
    session.store.tend()
    labelled = server.command("HKEYS", LABELS)
    assert [key.rpartition(":")[2].encode() in labelled for key in (gone, kept)] == [False, True]


def test_a_namespace_with_a_later_schema_is_refused_with_a_reason(server: Server, opened: Opened) -> None:
    server.command("HSET", "{mcpguard:default}:meta", "schema", "2")
    with pytest.raises(StoreUnavailable, match="has schema 2, and this mcpguard knows schemas up to 1"):
        opened()


@pytest.mark.parametrize(
    "row",
    [
        Row(1, 2, "allowed", "{}"),
        Row(1, 2, "rate_limited", '{"é":1}', "{}", '"é"', b"\n\x00\xff", "ab", 0, 0, 0, 0, '{"x":"\\n"}'),
    ],
)
def test_a_row_is_read_as_it_was_written_even_if_a_later_version_adds_fields(row: Row) -> None:
    call, rest = layout.packed(row)
    assert layout.row([b"later", b"x\ny", b"call", call, b"row", rest]) == row
    assert layout.row([b"row", call + rest]) == row


# commands


def commands(server: Server, run: Callable[[], object]) -> Counter[str]:
    """How many times the server runs each command during `run`."""

    def counted() -> Counter[str]:
        stats = server.command("INFO", "commandstats").decode()
        return Counter({name: int(calls) for name, calls in re.findall(r"cmdstat_([\w|]+):calls=(\d+)", stats)})

    before = counted()
    run()
    return counted() - before - Counter(info=1)


USUAL = Counter(evalsha=1, time=1, mget=1, xadd=1, setrange=1)
"""One script of one read, and a write for the row."""


@pytest.mark.parametrize(
    ("limits", "writes"),
    [(["5/1h"] * 2, {"set": 2}), (["65/365d", "1000/1h"], {"setrange": 2})],
    ids=["a write for each counter", "within a grain of the last call only of its head"],
)
def test_a_usual_call_takes_few_commands(server: Server, begin: Begin, limits: list[str], writes: dict[str, int]) -> None:
    session = begin('[[rule]]\ntool = "x"\nlimit = "{}"\n[[rule]]\nuser = "*"\nlimit = "{}"\n'.format(*limits))
    session.one("x")
    assert commands(server, lambda: session.one("x")) == USUAL + Counter(writes)
    assert [one.used for one in session.store.counters()] == [2, 2]


def test_a_denial_that_shares_a_row_writes_nothing(server: Server, begin: Begin) -> None:
    session = begin()
    session.call("report", 6)
    assert commands(server, lambda: session.one("report")) == {"evalsha": 1, "time": 1, "mget": 1}


def test_counters_are_read_in_pieces_so_that_the_server_can_serve_calls_in_between(server: Server, begin: Begin) -> None:
    session = begin('[[rule]]\ntool = "*"\nlimit = "9/1h"\n')
    for at in range(1200):
        session.one(f"tool {at}")
    found = commands(server, lambda: [one.used for one in session.store.counters()] == [1] * 1200 or pytest.fail("not all"))
    assert found["hgetall"] == 0 < found["hscan"]


def test_scripts_are_sent_again_to_a_restarted_server_and_no_call_fails(server: Server, begin: Begin) -> None:
    session = begin()
    assert session.decisions("report") == ["allowed"]
    server.command("SCRIPT", "FLUSH")
    assert session.decisions("report") == ["allowed"]
    server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    assert session.decisions("report", 4) == ["allowed"] * 3 + ["rate_limited"]
    server.command("SCRIPT", "FLUSH")
    session.store.adopt([(session.charges("report")[0].plan.counters[0], (-1, -1, 1))], token_hex())
    assert [one.used for one in session.store.counters()] == [6]


# what is not written whole


def rights(server: Server, *changes: str) -> None:
    """Change the rights of the manual's user."""
    server.command("ACL", "SETUSER", "mcpguard", *changes)


@pytest.mark.parametrize("command", ["setrange", "set"])
def test_a_usual_call_that_the_server_cannot_write_whole_is_not_counted(server: Server, begin: Begin, command: str) -> None:
    session = begin('[[rule]]\ntool = "x"\nlimit = ["9/1h", "999/1d", "9/2h"]\n')
    session.call("x")
    rights(server, "-" + command)
    with pytest.raises(StoreUnavailable, match=command):
        session.call("x")
    assert [one.used for one in session.store.counters()] == [1, 1, 1]


@pytest.mark.parametrize("command", ["mget", "xadd", "set", "hset"])
def test_a_decision_that_the_server_cannot_make_whole_counts_nothing_and_the_missing_right_is_told(
    server: Server, begin: Begin, command: str
) -> None:
    session = begin()
    rights(server, "-" + command)
    with pytest.raises(StoreUnavailable, match=command) as caught:
        session.call("report")
    assert caught.value.hint == "give its user the rights that docs/stores-and-fleets.md lists"
    rights(server, "+" + command)
    assert session.store.counters() == []
    session.store.append(session.journal.rows(session.charges("report"), [Verdict("unavailable")], wall_us()))
    assert [entry.record["decision"] for entry in session.store.entries()] == ["unavailable"]


def test_a_denial_whose_row_cannot_be_written_is_as_if_it_had_not_been_decided(server: Server, begin: Begin) -> None:
    session = begin(POLICY + "concurrent = 9\n")
    session.call("report", 4)
    closed = Session(session.store, '[[rule]]\ntool = "*"\nlimit = "deny"\n', session="b" * 16)
    rights(server, "-xadd")
    for denied, times in (session, 1), (session, 2), (closed, 1):  # the first of two has room: but no row, either
        with pytest.raises(StoreUnavailable, match="xadd"):
            denied.call("report", times)
    rights(server, "+xadd")
    assert (closed.journal.seq, closed.journal.is_waiting) == (0, False)
    assert session.decisions("report", 3) == ["allowed", "rate_limited", "rate_limited"]
    assert [entry.record["seq"] for entry in session.store.entries()] == [1, 2, 3, 4, 5, 6]


# upkeep


@pytest.fixture
def old_rows(begin: Begin) -> None:
    """Rows that are two hours old."""
    session = begin(hours_ago=2)
    for _ in range(2):
        call_with_outcomes(session, 250)


@pytest.mark.usefixtures("old_rows")
def test_calls_are_decided_between_pieces_of_upkeep(server: Server, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = before_each(monkeypatch, Link, "exchange", lambda: length(server))
    opened(keep_us=HOUR_US).tend()
    assert (lengths[-1], server.command("HLEN", OUTCOMES)) == (0, b":0\r\n")
    assert max(before - after for before, after in pairwise(lengths)) <= 200


def in_portions(store: RedisStore, left: Callable[[], int]) -> list[int]:
    """What is left after each portion of upkeep, on a server on which each step takes longer than a portion may."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(upkeep, "time", SimpleNamespace(monotonic=count(step=2 * upkeep.PORTION_S).__next__))
        store.tend()
        found = [left()]
        while store.needs_tending:
            store.tend()
            found.append(left())
    return found


@pytest.mark.usefixtures("old_rows")
def test_long_upkeep_is_done_in_portions_because_the_same_thread_renews_leases(server: Server, opened: Opened) -> None:
    assert in_portions(opened(keep_us=HOUR_US), lambda: length(server))[:3] == [300, 100, 0]


def test_labels_are_examined_in_portions_too(server: Server, opened: Opened) -> None:
    server.command("HSET", LABELS, *[f"{at}" for at in range(6000)])
    left = in_portions(opened(), lambda: int(server.command("HLEN", LABELS)[1:]))
    assert left[0] > 2000  # of 3000
    assert left[-1] == 0


def test_one_wrapper_does_upkeep_for_all(server: Server, opened: Opened) -> None:
    for _ in range(2):
        opened().tend()
    assert 0 < int(server.command("PTTL", "{mcpguard:default}:tended")[1:]) <= upkeep.EVERY_MS


def test_the_outcome_of_a_deleted_row_is_not_kept(server: Server, begin: Begin) -> None:
    session = begin(max_bytes=100_000)
    gone = session.one("free")
    session.call("free", 300)
    kept = session.one("free")
    session.store.record([Outcome(one.row_id or 0, "ok", 1) for one in (gone, kept)])
    assert server.command("HKEYS", OUTCOMES).count(b"$") == 1
    assert next(session.store.newest()).record["outcome"] == "ok"


# rows in order, and in doubt


def test_rows_stay_in_order_when_the_servers_clock_steps_back(begin: Begin) -> None:
    """The clock was set back, or a replica whose clock is behind took over."""
    ahead, session = begin(hours_ago=-1, session="b" * 16), begin()
    ahead.call("report", 6)
    session.call("report", 2)
    told = [(entry.record["session"], entry.record["seq"]) for entry in session.store.entries()]
    assert told == [("b" * 16, at) for at in range(1, 7)] + [(session.journal.session, 1)]
    assert [entry.record["seq"] for entry in session.store.newest()] == [1, 6, 5, 4, 3, 2, 1]


def test_rows_of_both_streams_are_read_in_the_order_in_which_they_were_written(begin: Begin) -> None:
    session = begin()
    for at in range(12):
        refuse(session, str(at))
        session.call("free", 50 if at % 2 else 500)
    entries = list(session.store.entries())
    assert [entry.record["seq"] for entry in entries] == list(range(1, session.journal.seq + 1))
    assert list(session.store.newest()) == entries[::-1]
    assert list(session.store.entries(after=entries[777].row_id)) == entries[778:]


def rows_after(session: Session, seq: int, *decisions: str, time_us: int | None = None) -> list[Row]:
    """The rows of an outage that began when the reply to what has written the rows after this number was lost."""
    deaf = Journal(session.journal.session)
    deaf.state = (seq, {}, {})
    verdicts = [Verdict(one) for one in decisions]  # type: ignore[arg-type]
    return deaf.rows(session.charges("free", len(verdicts)), verdicts, wall_us() if time_us is None else time_us)


def told(store: RedisStore, session: Session) -> list[tuple[object, object]]:
    """Numbers and decisions of a session's rows."""
    records = [entry.record for entry in store.entries()]
    return [(one["seq"], one["decision"]) for one in records if one["session"] == session.journal.session]


@pytest.mark.parametrize("by", ["the same store", "the next one", "one in use"])
def test_appended_rows_replace_the_rows_of_a_decision_whose_reply_was_lost_and_no_others(
    begin: Begin, opened: Opened, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """The server has decided calls whose reply was lost. The wrapper decided them by itself and writes its rows later."""
    session, other = begin(), begin(session="b" * 16)
    session.call("report", 2)
    other.call("free")
    around_next(monkeypatch, Link, "exchange", after=raising(StoreUnavailable("no reply")))
    with pytest.raises(StoreUnavailable):
        session.call("report", 3)
    store = {"the same store": session.store, "the next one": opened(), "one in use": other.store}[by]
    store.append(rows_after(session, session.journal.seq, *["allowed_unavailable"] * 4, time_us=1))
    assert told(store, session) == [(1, "allowed"), (2, "allowed"), *((seq, "allowed_unavailable") for seq in range(3, 7))]
    assert told(store, other) == [(1, "allowed")]
    assert [one.used for one in store.counters()] == [5]


def test_rows_of_a_decision_whose_reply_was_lost_are_found_among_those_of_a_busy_fleet(
    server: Server, begin: Begin, opened: Opened
) -> None:
    session, time_us = begin(), wall_us()
    session.call("report", 3)
    begun_us = wall_us()
    wait_for(lambda: wall_us() - begun_us > 1.5 * reader.NEARBY_US, "time stands still")
    add = "for _ = 1, ARGV[3] do redis.call('XADD', KEYS[1], '*', 'call', ARGV[1], 'row', ARGV[2]) end"
    row = layout.packed(Row(1, 1, "allowed", '{"namespace":"default","session":"bb"}'))
    server.command("EVAL", add, "1", AUDIT, *row, str(reader.SEARCHED_ROWS + 1000))
    store = opened()
    store.append(rows_after(session, 0, *["allowed"] * 3, time_us=time_us))
    assert told(store, session) == [(seq, "allowed") for seq in (1, 2, 3)]


def test_a_wrapper_that_starts_does_not_search_all_rows_of_a_fleet(server: Server, begin: Begin) -> None:
    for minute in range(1, 1500):
        call, row = layout.packed(Row(minute * 60_000_000, 1, "allowed", "{}"))
        server.command("XADD", AUDIT, f"{minute * 60_000}-1", "call", call, "row", row)
    session = begin()
    found = commands(server, lambda: session.store.append(rows_after(session, 0, "allowed")))
    assert found["xrevrange"] == 2


@pytest.mark.parametrize("log", [(-9, -9, 5_000_000_000), (-9, *[number for _ in range(66) for number in (-9, 70_000_000)])])
def test_costs_of_outages_beyond_what_an_entry_holds_admit_no_call(server: Server, begin: Begin, log: tuple[int, ...]) -> None:
    session = begin('[[rule]]\ntool = "x"\nlimit = "1000000000/1h"\ncount = "cost"\n')
    (counter,) = session.charges("x")[0].plan.counters
    for write_back_id, adopted in ("a", log), ("b", (-1, -1, 1)):
        session.store.adopt([(counter, adopted)], write_back_id)
        assert session.decisions("x") == ["rate_limited"]
    assert [one.used for one in session.store.counters()] == [(1 << 32)]
    assert 0 < int(server.command("PTTL", "{mcpguard:default}:adopted:a:0")[1:]) <= 7 * 86400 * 1000


# replies of a bounded length


@pytest.fixture
def replies(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each later reply to a search has."""
    counts: list[int] = []
    ask = redis_server.RedisServer.ask_together

    def noting(*args: Any) -> list[Any]:
        pages = ask(*args)
        counts.append(sum(map(len, pages)))
        return pages

    monkeypatch.setattr(redis_server.RedisServer, "ask_together", noting)
    return counts


@pytest.fixture
def long_rows(server: Server) -> None:
    """Many rows of 300 kB, and short ones in the other stream."""
    long = layout.packed(Row(1, 1, "allowed", '{"namespace":"default"}', detail='{"arguments":"' + "a" * 300_000 + '"}'))
    short = layout.packed(Row(1, 1, "denied", '{"namespace":"default"}'))
    for _ in range(40):
        for key, (call, row) in ((AUDIT, long), (REFUSED, short)):
            server.command("XADD", key, "*", "call", call, "row", row)


@pytest.mark.usefixtures("long_rows")
@pytest.mark.parametrize(
    "search",
    [
        lambda session: len(list(session.store.entries())) == 80,
        lambda session: len(list(session.store.newest())) == 80,
        lambda session: session.store.append(rows_after(session, 0, "allowed")),
    ],
    ids=["entries", "newest", "rows in doubt"],
)
def test_replies_have_few_rows_if_they_are_long(begin: Begin, replies: list[int], search: Callable[[Session], object]) -> None:
    assert search(begin())
    assert replies
    assert max(replies) <= 16


def test_the_newest_row_is_read_without_those_before_it(begin: Begin, replies: list[int]) -> None:
    """A wrapper reads it before it uses a store again, within the time of a call."""
    session = begin()
    session.call("free", 100)
    assert next(session.store.newest()).record["seq"] == 100
    assert replies == [1]


APPENDS = ["--appendonly", "yes"]
EVICTS = ["--maxmemory", "100mb", "--maxmemory-policy"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (APPENDS, []),
        ([*APPENDS, *EVICTS[:2]], []),
        ([*APPENDS, *EVICTS, "allkeys-lru"], ["allkeys-lru"]),
        (["--maxmemory-policy", "allkeys-lru"], ["keeps nothing on disk"]),
        (["--save", "60 1000"], []),
        ([*EVICTS, "volatile-ttl"], ["volatile-ttl", "keeps nothing on disk"]),
        (["--rename-command", "CONFIG", ""], []),
    ],
)
def test_a_setting_that_can_lose_counters_is_warned_about_if_the_server_reports_it(
    tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    with running(tmp_path / "redis", *arguments) as server, closing(RedisStore(server.address, PATIENT)) as store:
        assert len(store.warnings) == len(words)
        for word, warning in zip(words, store.warnings, strict=True):
            assert word in warning
            assert str(server.folder) in warning
