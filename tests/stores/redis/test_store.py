"""The Redis store beyond the contract: namespaces, expiry, the bound of the audit log, warnings about the server."""

import math
import re
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytest

from mcpguard.errors import StoreUnavailable
from mcpguard.session.audit import Outcome, Row
from mcpguard.session.journal import Journal
from mcpguard.session.verdict import Verdict
from mcpguard.stores.api import Options
from mcpguard.stores.clock import wall_us
from mcpguard.stores.redis import rows, upkeep
from mcpguard.stores.redis.duplicates import NEARBY_US
from mcpguard.stores.redis.link import Command, Link
from mcpguard.stores.redis.store import RedisStore
from mcpguard.text.printing import compact
from tests.build import Session, Time
from tests.redis_servers import Server, running, wait_for

POLICY = '[[rule]]\ntool = "report"\nlimit = "5/1h"\n'
PATIENT = Options(timeout_ms=20_000)


@pytest.fixture
def opened(server: Server) -> Iterator[Callable[..., RedisStore]]:
    stores: list[RedisStore] = []

    def make(**options: object) -> RedisStore:
        stores.append(RedisStore(server.address, PATIENT._replace(**options)))  # type: ignore[arg-type]
        return stores[-1]

    yield make
    for store in stores:
        store.close()


Opened = Callable[..., RedisStore]


def keys(server: Server) -> list[str]:
    return sorted(word for word in server.command("KEYS", "*").decode().split("\r\n") if word.startswith("{"))


def test_two_namespaces_of_one_server_share_nothing(server: Server, opened: Opened) -> None:
    one, other = opened(namespace="a"), opened(namespace="b}:counters {")
    sessions = [Session(store, POLICY) for store in (one, other)]
    assert [session.decisions("report", 6)[-2:] for session in sessions] == [["allowed", "rate_limited"]] * 2
    assert one.args_key != other.args_key
    assert one.reset([held.label for held in one.held()]) == 1
    assert [held.used for held in other.held()] == [5]
    assert len(list(one.entries())) == len(list(other.entries())) == 6


def test_all_keys_of_a_namespace_are_in_one_slot(server: Server, opened: Opened) -> None:
    session = Session(opened(namespace="team a"), POLICY)
    verdict = session.one("report")
    session.store.record([Outcome(verdict.row_id or 0, "ok", 1)])
    session.store.tend()
    found = keys(server)
    assert len(found) == 7  # meta, a counter, their index, tended; rows, outcomes, and their size
    assert {key.split("}")[0] for key in found} == {"{mcpguard:team%20a"}


def test_the_key_of_a_counter_expires_with_its_window(server: Server, opened: Opened) -> None:
    session = Session(opened(), '[[rule]]\ntool = "x"\nlimit = "9/1h"\n[[rule]]\nuser = "*"\nlimit = "9/4s"\n')
    session.call("x")
    lives = sorted(int(server.command("PTTL", key)[1:]) for key in keys(server) if ":counter:" in key)
    assert len(lives) == 2
    rounded_ms = 2  # the expiry is rounded up, and the server's time in whole milliseconds down
    assert 0 < lives[0] <= 4000 + 4000 / 64 + rounded_ms
    assert 3_590_000 < lives[1] <= 3_600_000 + 3_600_000 / 64 + rounded_ms
    wait_for(lambda: len([key for key in keys(server) if ":counter:" in key]) == 1, "a counter stays")
    assert len(session.store.held()) == 1


def test_expired_counters_are_deleted_from_the_index(server: Server, opened: Opened) -> None:
    session = Session(opened(), POLICY + '[[rule]]\nuser = "*"\nlimit = "9/1h"\n')
    session.call("report")
    gone, kept = (key for key in keys(server) if ":counter:" in key)
    server.command("DEL", gone)
    session.store.tend()
    members = server.command("HKEYS", "{mcpguard:default}:counters")
    assert kept.rpartition(":")[2].encode() in members
    assert gone.rpartition(":")[2].encode() not in members


def test_scripts_are_sent_again_to_a_restarted_server_and_no_call_fails(server: Server, opened: Opened) -> None:
    session = Session(opened(), POLICY)
    assert session.decisions("report") == ["allowed"]
    server.command("SCRIPT", "FLUSH")
    assert session.decisions("report") == ["allowed"]
    server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    assert session.decisions("report", 4) == ["allowed"] * 3 + ["rate_limited"]
    counter = (session.charges("report")[0].plan.counters[0], (-1, -1, 1))
    server.command("SCRIPT", "FLUSH")
    session.store.adopt([counter], token_hex())
    assert [held.used for held in session.store.held()] == [6]


def commands(server: Server, run: Callable[[], object]) -> Counter[str]:
    """How many times the server runs each command during `run`."""

    def counted() -> Counter[str]:
        stats = server.command("INFO", "commandstats").decode()
        return Counter({name: int(calls) for name, calls in re.findall(r"cmdstat_([\w|]+):calls=(\d+)", stats)})

    before = counted()
    run()
    return counted() - before - Counter(info=1)


def test_a_call_takes_one_script_of_one_read_and_a_write_for_its_row_and_each_of_its_counters(
    server: Server, opened: Opened
) -> None:
    session = Session(opened(), POLICY + '[[rule]]\nuser = "*"\nlimit = "5/1h"\n')
    session.one("report")
    found = commands(server, lambda: session.one("report"))
    assert found == {"evalsha": 1, "time": 1, "mget": 1, "xadd": 1, "setrange": 1, "set": 2}


def test_a_call_within_a_grain_of_the_last_one_replaces_only_the_head_of_each_counter(server: Server, opened: Opened) -> None:
    session = Session(opened(), '[[rule]]\ntool = "x"\nlimit = "65/365d"\n[[rule]]\nuser = "*"\nlimit = "1000/1h"\n')
    session.one("x")
    found = commands(server, lambda: session.one("x"))
    assert found == {"evalsha": 1, "time": 1, "mget": 1, "xadd": 1, "setrange": 1 + 2}
    assert [held.used for held in session.store.held()] == [2, 2]


@pytest.mark.parametrize("command", ["setrange", "set"])
def test_a_usual_call_that_the_server_cannot_write_whole_is_not_counted(tmp_path: Path, command: str) -> None:
    with running(tmp_path / "redis") as server:
        session = Session(RedisStore(server.address, PATIENT), '[[rule]]\ntool = "x"\nlimit = ["9/1h", "999/1d", "9/2h"]\n')
        session.call("x")
        server.command("ACL", "SETUSER", "default", "-" + command)
        with pytest.raises(StoreUnavailable, match=command):
            session.call("x")
        assert [held.used for held in session.store.held()] == [1, 1, 1]


def test_a_denial_that_shares_a_row_writes_nothing(server: Server, opened: Opened) -> None:
    session = Session(opened(), POLICY)
    session.call("report", 6)
    assert commands(server, lambda: session.one("report")) == {"evalsha": 1, "time": 1, "mget": 1}


def test_a_denial_whose_row_cannot_be_written_is_as_if_it_had_not_been_decided(tmp_path: Path) -> None:
    with running(tmp_path / "redis") as server:
        session = Session(RedisStore(server.address, PATIENT), POLICY + "concurrent = 9\n")
        session.call("report", 4)
        server.command("ACL", "SETUSER", "default", "-xadd")
        for times in (1, 2):  # the first of two has room: but no row, either
            with pytest.raises(StoreUnavailable, match="xadd"):
                session.call("report", times)
        server.command("ACL", "SETUSER", "default", "+xadd")
        assert session.decisions("report", 3) == ["allowed", "rate_limited", "rate_limited"]
        server.command("ACL", "SETUSER", "default", "-xadd")
        closed = Session(session.store, '[[rule]]\ntool = "*"\nlimit = "deny"\n', session="b" * 16)
        with pytest.raises(StoreUnavailable, match="xadd"):
            closed.one("x")
        server.command("ACL", "SETUSER", "default", "+xadd")
        assert (closed.journal.seq, closed.journal.is_waiting) == (0, False)
        assert [entry.record["seq"] for entry in session.store.entries()] == [1, 2, 3, 4, 5, 6]


def test_outcomes_are_joined_in_two_commands_and_the_first_outcome_of_a_row_stays(server: Server, opened: Opened) -> None:
    session = Session(opened(), POLICY)
    first, second = [session.one("free").row_id or 0 for _ in range(2)]
    session.store.record([Outcome(first, "ok", 1)])
    outcomes = [Outcome(first, "cancelled", 2), Outcome(second, "rpc_error", 3), Outcome(second, "ok", 4)]
    found = commands(server, lambda: session.store.record(outcomes))
    assert (found["hmget"], found["hset"], found["hsetnx"]) == (1, 1, 0)
    assert [entry.record["outcome"] for entry in session.store.entries()] == ["ok", "rpc_error"]


HOUR_US = 3600 * 1_000_000


def session_in_the_past(server: Server, hours: int) -> Session:
    """A session whose clocks are this many hours behind the server's."""
    past = Time(wall_us() - hours * HOUR_US)
    return Session(RedisStore(server.address, PATIENT, clock=past, wall=past), POLICY, session="00000000000000bb")


def call_with_outcomes(session: Session, times: int) -> None:
    session.store.record([Outcome(one.row_id or 0, "ok", 1) for one in session.call("free", times)])


MAX_BYTES = 4_000_000
"""A small bound of the audit log, beside which the rest of the memory that a server uses is still small."""


def taken(server: Server) -> int:
    """The memory that the server's data takes. It includes some memory that depends on the server's history.

    The server's own figure, `used_memory_dataset`, subtracts the memory of clients as it was some time ago.
    """
    server.command("SCRIPT", "FLUSH", "SYNC")
    clients = sum(map(int, re.findall(rb" tot-mem=(\d+)", server.command("CLIENT", "LIST"))))
    memory = dict(re.findall(rb"(\w+):(\d+)\r", server.command("INFO", "memory")))
    used, overhead, former_clients = (
        int(memory[name]) for name in (b"used_memory", b"used_memory_overhead", b"mem_clients_normal")
    )
    return used - (overhead - former_clients) - clients


def share_of_max(server: Server, most: int) -> float:
    """Which share of `MAX_BYTES` the audit log used when `taken` returned this. Deletes all rows."""
    server.command("FLUSHALL", "SYNC")
    return (most - taken(server)) / MAX_BYTES


def test_old_rows_are_deleted_together_with_their_outcomes(server: Server, opened: Opened) -> None:
    old = session_in_the_past(server, 2)
    call_with_outcomes(old, 500)
    old.call("report", 6)
    session = Session(opened(keep_us=HOUR_US), POLICY)
    call_with_outcomes(session, 1)
    session.store.tend()
    (entry,) = session.store.entries()
    assert (entry.record["session"], entry.record["outcome"]) == (session.journal.session, "ok")
    assert server.command("HLEN", "{mcpguard:default}:outcomes") == b":1\r\n"
    old.store.close()


def test_calls_are_decided_between_two_pieces_of_upkeep(
    server: Server, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = session_in_the_past(server, 2)
    for _ in range(4):
        call_with_outcomes(old, 500)
    old.store.close()
    session = Session(opened(keep_us=HOUR_US), POLICY)
    lengths: list[int] = []
    ask = Link.ask

    def noting(link: Link, commands: Sequence[Command], *, deadline_s: float) -> list[Any]:
        lengths.append(int(server.command("XLEN", "{mcpguard:default}:audit")[1:]))
        return ask(link, commands, deadline_s=deadline_s)

    monkeypatch.setattr(Link, "ask", noting)
    session.store.tend()
    monkeypatch.undo()
    assert lengths[-1] == 0
    assert max(before - after for before, after in pairwise(lengths)) <= 200


def opened_with_old_rows(server: Server, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> RedisStore:
    """A store with more old rows than its upkeep deletes before it pauses."""
    monkeypatch.setattr(upkeep, "PORTION_S", 0.0)
    old = session_in_the_past(server, 2)
    call_with_outcomes(old, 500)
    old.store.close()
    return opened(keep_us=HOUR_US)


def test_long_upkeep_is_done_in_portions_because_the_same_thread_renews_leases(
    server: Server, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened_with_old_rows(server, opened, monkeypatch)
    left: list[int] = []
    while not left or store.needs_tending:
        store.tend()
        left.append(int(server.command("XLEN", "{mcpguard:default}:audit")[1:]))
    assert left[:3] == [300, 100, 0]


def test_a_store_that_is_closed_leaves_no_connection_of_its_upkeep(
    server: Server, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened_with_old_rows(server, opened, monkeypatch)
    store.tend()
    assert store.needs_tending
    store.close()
    assert not store.needs_tending
    wait_for(lambda: server.command("CLIENT", "LIST").count(b"id=") == 1, "a connection is left")


def test_the_outcome_of_a_deleted_row_is_not_kept(server: Server, opened: Opened) -> None:
    session = Session(opened(max_bytes=100_000), POLICY)
    gone = session.one("free")
    session.call("free", 300)
    kept = session.one("free")
    session.store.record([Outcome(one.row_id or 0, "ok", 1) for one in (gone, kept)])
    assert server.command("HKEYS", "{mcpguard:default}:outcomes").count(b"$") == 1
    assert next(session.store.newest()).record["outcome"] == "ok"


def test_emptying_one_stream_by_hand_deletes_no_row_of_the_other(server: Server, opened: Opened) -> None:
    session = Session(opened(max_bytes=100_000), POLICY)
    session.call("free", 300)
    server.command("DEL", "{mcpguard:default}:audit")
    session.call("free", 60)
    session.call("free", 1)
    assert len(list(session.store.entries())) == 61


def test_the_audit_log_never_exceeds_its_bound_and_the_oldest_rows_are_evicted(server: Server, opened: Opened) -> None:
    session = Session(opened(max_bytes=MAX_BYTES), POLICY)
    most = 0
    for _ in range(80):
        call_with_outcomes(session, 250)
        most = max(most, taken(server))
    seqs = [entry.record["seq"] for entry in session.store.entries()]
    assert seqs == list(range(20_001 - len(seqs), 20_001))
    assert server.command("HLEN", "{mcpguard:default}:outcomes") == b":%d\r\n" % len(seqs)
    assert 0.6 < share_of_max(server, most) < 1.1


def test_calls_one_by_one_keep_the_audit_log_within_its_bound(server: Server, opened: Opened) -> None:
    store = opened(max_bytes=100_000)
    session = Session(store, '[[rule]]\ntool = "x"\nlimit = "9999/1h"\n')
    for _ in range(300):
        session.one("x")
    entries, size = store._ask(("XRANGE", "{mcpguard:default}:audit", "-", "+"), ("GET", "{mcpguard:default}:size"))
    estimated = sum(math.ceil(1.2 * sum(map(len, fields[1::2]))) + 190 for _, fields in entries)
    assert struct.unpack("<4q", size)[2:] == (estimated, 0)
    assert 99_000 < estimated <= 100_000


@pytest.mark.parametrize("length", [100, 1700, 3700, 8000, 65_000])
def test_the_estimated_memory_of_a_row_matches_the_servers_for_rows_of_any_length(
    server: Server, opened: Opened, length: int
) -> None:
    """The lengths are the shortest one, and those for which the server's allocator and stream nodes waste most."""
    store = opened(max_bytes=MAX_BYTES)
    rows_there = [Row(1, at, "allowed", "{}", detail=compact({"arguments": "a" * length})) for at in range(50)]
    most = 0
    for _ in range(2 * MAX_BYTES // (50 * (length + 150))):
        store.append(rows_there)
        most = max(most, taken(server))
    assert 0.4 < share_of_max(server, most) < 1.1


def refuse_as_new(session: Session, name: str) -> None:
    """Refuse requests as new wrappers do, which have had no denials."""
    for part in range(4):
        session.journal = session.machine.journal = Journal(session.journal.session)
        assert all(verdict.has_own_row for verdict in refuse(session, f"{name} {part}", 25))


def refuse(session: Session, name: str, times: int = 100) -> list[Verdict]:
    """Refuse requests, each for another server with a long name, so that no two share a row."""
    session.requests(*[b'{"jsonrpc":"2.0","id":%d,"method":7}' % at for at in range(times)])
    refused = session.machine.unwritten.copy()
    for at, (one, _) in enumerate(refused):
        one.context = one.context.replace('"crm"', f'"{name} {at:<200}"')
    session.write_rows()
    return [verdict for _, verdict in refused]


def test_a_flood_of_refusals_stays_within_the_bound_and_evicts_no_row_of_a_forwarded_call(
    server: Server, opened: Opened
) -> None:
    wrappers = [Session(opened(max_bytes=MAX_BYTES), POLICY, session=f"{at:016x}") for at in range(3)]
    for _ in range(8):
        call_with_outcomes(wrappers[0], 500)
    most = 0
    for at in range(50):
        for wrapper in wrappers:
            refuse_as_new(wrapper, f"{wrapper.journal.session} {at}")
            most = max(most, taken(server))
    rows_there = [entry.record for entry in opened().entries()]
    decisions = Counter(row["decision"] for row in rows_there)
    assert decisions["allowed"] == 4000
    assert 1000 < decisions["invalid"] < 15_000
    assert rows_there[-1]["seq"] == wrappers[-1].journal.seq
    assert {row["outcome"] for row in rows_there if row["decision"] == "allowed"} == {"ok"}
    assert 0.6 < share_of_max(server, most) < 1.1


def test_refusals_keep_their_share_of_the_memory_when_forwarded_calls_need_room(server: Server, opened: Opened) -> None:
    session = Session(opened(max_bytes=1_000_000), POLICY)
    for at in range(20):
        refuse_as_new(session, str(at))
    for _ in range(20):
        call_with_outcomes(session, 500)
    sizes = [int(server.command("MEMORY", "USAGE", "{mcpguard:default}:" + name)[1:]) for name in ("audit", "refused")]
    assert 0.15 < sizes[1] / sum(sizes) < 0.35
    assert sum(sizes) > 600_000


def test_a_flood_in_one_namespace_changes_no_counter_of_another(tmp_path: Path) -> None:
    with running(tmp_path / "redis", "--maxmemory", "12mb", "--maxmemory-policy", "noeviction") as server:
        flooded = Session(RedisStore(server.address, PATIENT._replace(namespace="a", max_bytes=MAX_BYTES)), POLICY)
        other = Session(RedisStore(server.address, PATIENT._replace(namespace="b", max_bytes=MAX_BYTES)), POLICY)
        assert other.decisions("report", 2) == ["allowed"] * 2
        for at in range(250):
            refuse_as_new(flooded, str(at))
        assert other.decisions("report", 4) == ["allowed"] * 3 + ["rate_limited"]
        for session in (flooded, other):
            session.store.close()


def test_calls_and_upkeep_shrink_the_audit_log_to_a_lower_bound(server: Server, opened: Opened) -> None:
    for _ in range(4):
        Session(opened(), POLICY).call("free", 500)
    held = int(server.command("XLEN", "{mcpguard:default}:audit")[1:])
    session = Session(opened(max_bytes=100_000), POLICY)
    session.call("free", 100)
    left = int(server.command("XLEN", "{mcpguard:default}:audit")[1:])
    assert held - left == 100
    session.store.tend()
    assert int(server.command("XLEN", "{mcpguard:default}:audit")[1:]) < 200


def test_a_lower_bound_of_the_audit_log_makes_room_on_a_server_whose_memory_is_full(tmp_path: Path) -> None:
    with running(tmp_path / "redis") as server:
        before = RedisStore(server.address, PATIENT)
        session = Session(before, POLICY)
        session.call("free", 200)
        server.command("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(StoreUnavailable, match="maxmemory"):
            session.call("free")
        store = RedisStore(server.address, PATIENT._replace(max_bytes=20_000))
        other = Session(store, POLICY, session="b" * 16)
        assert other.decisions("report") == ["allowed"]
        store.tend()
        rows_left = list(store.entries())
        assert 0 < len(rows_left) < 50
        assert rows_left[-1].record["tool"] == "report"
        before.close()
        store.close()


def test_rows_stay_in_order_when_the_servers_clock_steps_back(server: Server, opened: Opened) -> None:
    """The clock was set back, or a replica whose clock is behind took over."""
    ahead = session_in_the_past(server, -1)
    ahead.call("report", 6)
    session = Session(opened(), POLICY)
    session.call("report", 2)
    told = [(entry.record["session"], entry.record["seq"]) for entry in session.store.entries()]
    assert told == [("00000000000000bb", at) for at in range(1, 7)] + [(session.journal.session, 1)]
    assert [entry.record["seq"] for entry in session.store.newest()] == [1, 6, 5, 4, 3, 2, 1]
    ahead.store.close()


def test_rows_of_both_streams_are_read_in_the_order_in_which_they_were_written(server: Server, opened: Opened) -> None:
    session = Session(opened(), POLICY)
    for at in range(12):
        refuse(session, str(at))
        session.call("free", 50 if at % 2 else 500)
    entries = list(session.store.entries())
    assert [entry.record["seq"] for entry in entries] == list(range(1, session.journal.seq + 1))
    assert list(session.store.newest()) == entries[::-1]
    assert list(session.store.entries(after=entries[777].row_id)) == entries[778:]


def test_one_wrapper_does_upkeep_for_all(server: Server, opened: Opened) -> None:
    for _ in range(2):
        opened().tend()
    assert 0 < int(server.command("PTTL", "{mcpguard:default}:tended")[1:]) <= upkeep.EVERY_MS


def test_appended_rows_replace_the_rows_of_a_decision_whose_reply_was_lost(server: Server, opened: Opened) -> None:
    """The server has decided calls whose reply was lost. The wrapper decided them by itself and writes its rows later."""
    session = Session(opened(), POLICY)
    session.call("report", 2)
    session.call("report", 3)
    deaf = Journal(session.journal.session)
    deaf.seq = 2  # the replies to the last three were lost
    rows_of_the_outage = deaf.rows(session.charges("free", 4), [Verdict("allowed_unavailable") for _ in range(4)], 1)
    opened().append(rows_of_the_outage)
    told = [(entry.record["seq"], entry.record["decision"]) for entry in session.store.entries()]
    assert told == [(1, "allowed"), (2, "allowed"), *((seq, "allowed_unavailable") for seq in range(3, 7))]
    assert [held.used for held in session.store.held()] == [5]


def test_rows_of_a_wrapper_that_ended_replace_the_rows_of_its_decision_whose_reply_was_lost(
    server: Server, opened: Opened
) -> None:
    """A wrapper ended during the outage. Another one, which uses the store already, takes in its rows."""
    ended = Session(opened(), POLICY)
    ended.call("report", 2)
    deaf = Journal(ended.journal.session)
    deaf.seq = 1  # the reply to the last one was lost
    rows_of_the_outage = deaf.rows(ended.charges("free", 2), [Verdict("allowed") for _ in range(2)], wall_us())
    other = Session(opened(), POLICY, session="00000000000000bb")
    other.call("report")
    other.store.append(rows_of_the_outage)
    told = [(entry.record["session"], entry.record["seq"]) for entry in other.store.entries()]
    mine, its = other.journal.session, ended.journal.session
    assert sorted(told) == sorted([(its, 1), (its, 2), (its, 3), (mine, 1)])


def test_a_wrapper_that_starts_does_not_search_all_rows_of_a_fleet(server: Server, opened: Opened) -> None:
    for minute in range(1, 1500):
        call, row = rows.packed(Row(minute * 60_000_000, 1, "allowed", "{}"))
        server.command("XADD", "{mcpguard:default}:audit", f"{minute * 60_000}-1", "call", call, "row", row)
    server.command("CONFIG", "RESETSTAT")
    session = Session(opened(), POLICY)
    session.store.append(session.journal.rows(session.charges("free"), [Verdict("allowed")], wall_us()))
    assert b"cmdstat_xrevrange:calls=2," in server.command("INFO", "commandstats")


def test_appended_rows_replace_no_row_with_an_earlier_number(server: Server, opened: Opened) -> None:
    session = Session(opened(), POLICY)
    session.call("report", 6)
    place_of_another = opened()
    session.call("report")
    place_of_another.append(session.journal.flush(wall_us(), all_of_them=True))
    assert [entry.record["seq"] for entry in session.store.entries()] == [1, 2, 3, 4, 5, 6, 7]


def test_a_namespace_with_a_later_schema_is_refused_with_a_reason(server: Server, opened: Opened) -> None:
    server.command("HSET", "{mcpguard:default}:meta", "schema", "2")
    with pytest.raises(StoreUnavailable, match="has schema 2, and this mcpguard knows schemas up to 1"):
        opened()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--appendonly", "yes"], []),
        (["--appendonly", "yes", "--maxmemory", "100mb"], []),
        (["--appendonly", "yes", "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"], ["allkeys-lru"]),
        (["--maxmemory-policy", "allkeys-lru"], ["keeps nothing on disk"]),
        (["--save", "60 1000"], []),
        ([], ["keeps nothing on disk"]),
        (["--maxmemory", "100mb", "--maxmemory-policy", "volatile-ttl"], ["volatile-ttl", "keeps nothing on disk"]),
    ],
)
def test_a_setting_that_can_lose_counters_is_warned_about(tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    with running(tmp_path / "redis", *arguments) as server:
        store = RedisStore(server.address, PATIENT)
        assert len(store.warnings) == len(words)
        for word, warning in zip(words, store.warnings, strict=True):
            assert word in warning
            assert str(server.folder) in warning
        store.close()


def test_a_server_that_does_not_report_its_settings_causes_no_warning(tmp_path: Path) -> None:
    with running(tmp_path / "redis", "--rename-command", "CONFIG", "") as server:
        store = RedisStore(server.address, PATIENT)
        assert store.warnings == ()
        store.close()


@pytest.mark.parametrize(
    "row",
    [
        Row(1, 2, "allowed", "{}"),
        Row(1, 2, "rate_limited", '{"é":1}', "{}", '"é"', b"\n\x00\xff", "ab", 0, 0, 0, 0, '{"x":"\\n"}'),
    ],
)
def test_a_row_is_read_as_it_was_written_even_if_a_later_version_adds_fields(row: Row) -> None:
    call, rest = rows.packed(row)
    assert rows.row([b"later", b"x\ny", b"call", call, b"row", rest]) == row
    assert rows.row([b"row", call + rest]) == row


def test_admissions_that_are_sent_twice_under_one_id_are_counted_once(server: Server, opened: Opened) -> None:
    session = Session(opened(), POLICY)
    counter = session.charges("report")[0].plan.counters[0]
    for write_back_id in ("a", "a", "b", "a"):
        opened().adopt([(counter, (-1, -1, 3))], write_back_id)
    assert [held.used for held in session.store.held()] == [6]
    assert 0 < int(server.command("PTTL", "{mcpguard:default}:adopted:a:0")[1:]) <= 7 * 86400 * 1000


@pytest.mark.parametrize("log", [(-9, -9, 5_000_000_000), (-9, *[number for _ in range(66) for number in (-9, 70_000_000)])])
def test_costs_of_outages_that_are_larger_than_an_entry_can_hold_admit_no_call(
    server: Server, opened: Opened, log: tuple[int, ...]
) -> None:
    session = Session(opened(), '[[rule]]\ntool = "x"\nlimit = "1000000000/1h"\ncount = "cost"\n')
    (counter,) = session.charges("x")[0].plan.counters
    for adopted in (log, (-1, -1, 1)):
        session.store.adopt([(counter, adopted)], token_hex())
        assert session.decisions("x") == ["rate_limited"]
    assert [held.used for held in session.store.held()] == [(1 << 32)]


def test_rows_of_a_decision_whose_reply_was_lost_are_found_among_those_of_a_busy_fleet(
    server: Server, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mcpguard.stores.redis.duplicates.SEARCHED_ROWS", 50)
    session = Session(opened(), POLICY)
    time_us = wall_us()
    session.call("report", 3)
    begun_us = wall_us()
    wait_for(lambda: wall_us() - begun_us > 1.5 * NEARBY_US, "time stands still")
    for _ in range(4):
        Session(opened(), POLICY, session="00000000000000bb").call("free", 100)
    deaf = Journal(session.journal.session)
    opened().append(deaf.rows(session.charges("free", 3), [Verdict("allowed") for _ in range(3)], time_us))
    mine = [entry.record["seq"] for entry in session.store.entries() if entry.record["session"] == session.journal.session]
    assert mine == [1, 2, 3]


def test_the_search_for_rows_reads_fewer_rows_at_a_time_if_they_are_long(server: Server, opened: Opened) -> None:
    call, row = rows.packed(Row(1, 1, "allowed", "{}", detail='{"arguments":"' + "a" * 300_000 + '"}'))
    for _ in range(60):
        server.command("XADD", "{mcpguard:default}:audit", "*", "call", call, "row", row)
    store = opened()
    session = Session(store, POLICY)
    asked: list[int] = []
    ask = store._ask

    def noting(*commands: Command, deadline_s: float | None = None) -> list[Any]:
        asked.extend(int(command[-1]) for command in commands if command[0] == "XREVRANGE")
        return ask(*commands, deadline_s=deadline_s)

    store._ask = noting  # type: ignore[method-assign]
    store.append(session.journal.rows(session.charges("free"), [Verdict("allowed")], wall_us()))
    assert asked
    assert max(asked) <= 8


@pytest.mark.parametrize("newest_first", [False, True])
def test_each_reply_to_a_reader_has_few_rows_if_they_are_long(server: Server, opened: Opened, *, newest_first: bool) -> None:
    call, row = rows.packed(Row(1, 1, "allowed", '{"namespace":"default"}', detail='{"arguments":"' + "a" * 300_000 + '"}'))
    short = rows.packed(Row(1, 1, "denied", '{"namespace":"default"}'))
    for _ in range(40):
        server.command("XADD", "{mcpguard:default}:audit", "*", "call", call, "row", row)
        server.command("XADD", "{mcpguard:default}:refused", "*", "call", short[0], "row", short[1])
    store = opened()
    lengths: list[int] = []
    ask = store._reader._ask

    def noting(*commands: Command) -> list[Any]:
        replies = ask(*commands)
        if commands[0] == ("MULTI",):
            lengths.append(sum(map(len, replies[-1])))
        return replies

    store._reader._ask = noting
    assert len(list(store.newest() if newest_first else store.entries())) == 80
    assert max(lengths) <= 16


def test_the_newest_row_is_read_without_those_before_it(server: Server, opened: Opened) -> None:
    """A wrapper reads it before it uses a store again, within the time of a call."""
    store = opened()
    Session(store, POLICY).call("free", 100)
    asked: list[Command] = []
    ask = store._reader._ask

    def noting(*commands: Command) -> list[Any]:
        asked.extend(commands)
        return ask(*commands)

    store._reader._ask = noting
    newest = next(store.newest())
    assert newest.record["seq"] == 100
    assert {command[-1] for command in asked if command[0] == "XREVRANGE"} == {1}


def test_counters_are_read_in_pieces_so_that_the_server_can_serve_calls_in_between(server: Server, opened: Opened) -> None:
    session = Session(opened(), '[[rule]]\ntool = "*"\nlimit = "9/1h"\n')
    for at in range(1200):
        session.one(f"tool {at}")
    server.command("CONFIG", "RESETSTAT")
    assert [held.used for held in session.store.held()] == [1] * 1200
    assert b"cmdstat_hgetall" not in server.command("INFO", "commandstats")


def test_a_user_without_a_right_that_a_script_needs_is_told_which_one(tmp_path: Path) -> None:
    with running(tmp_path / "redis") as server:
        session = Session(RedisStore(server.address, PATIENT), POLICY)
        server.command("ACL", "SETUSER", "default", "-mget")
        with pytest.raises(StoreUnavailable, match="mget") as caught:
            session.call("report")
        assert caught.value.hint == "give its user the rights that docs/stores-and-fleets.md lists"


@pytest.mark.parametrize("command", ["xadd", "set", "hset"])
def test_a_decision_that_the_server_cannot_write_whole_counts_nothing(tmp_path: Path, command: str) -> None:
    with running(tmp_path / "redis") as server:
        session = Session(RedisStore(server.address, PATIENT), POLICY)
        server.command("ACL", "SETUSER", "default", "-" + command)
        with pytest.raises(StoreUnavailable, match=command):
            session.call("report")
        server.command("ACL", "SETUSER", "default", "+@all")
        assert session.store.held() == []
        session.store.append(session.journal.rows(session.charges("report"), [Verdict("unavailable")], wall_us()))
        assert [entry.record["decision"] for entry in session.store.entries()] == ["unavailable"]
