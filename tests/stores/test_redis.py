"""What a store on a server does beyond the contract: whom it shares with, what it forgets, what it says of the server."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytest

from mcpguard.core.audit import Outcome, Row
from mcpguard.core.journal import Journal
from mcpguard.core.verdict import Verdict
from mcpguard.errors import StoreUnavailable
from mcpguard.stores.address import Options
from mcpguard.stores.base import wall_us
from mcpguard.stores.redis import rows, upkeep
from mcpguard.stores.redis.link import Command, Link
from mcpguard.stores.redis.store import NEARBY_US, RedisStore
from tests.core.build import Session
from tests.redis_servers import Server, running, wait_for

POLICY = '[[rule]]\ntool = "report"\nlimit = "5/1h"\n'
PATIENT = Options(timeout_ms=5000)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def server(shared: Server) -> Server:
    shared.command("FLUSHALL")
    return shared


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


def test_all_keys_of_a_namespace_lie_in_one_slot(server: Server, opened: Opened) -> None:
    session = Session(opened(namespace="team a"), POLICY)
    verdict = session.one("report")
    session.store.record([Outcome(verdict.row or 0, "ok", 1)])
    session.store.tend()
    found = keys(server)
    assert len(found) == 7
    assert {key.split("}")[0] for key in found} == {"{mcpguard:team%20a"}


def test_a_counter_lives_on_the_server_as_long_as_its_window_and_no_longer(server: Server, opened: Opened) -> None:
    session = Session(opened(), '[[rule]]\ntool = "x"\nlimit = "9/1h"\n[[rule]]\nuser = "*"\nlimit = "9/1s"\n')
    session.call("x")
    lives = sorted(int(server.command("PTTL", key)[1:]) for key in keys(server) if ":counter:" in key)
    assert len(lives) == 2
    assert 0 < lives[0] <= 1001
    assert 3_590_000 < lives[1] <= 3_600_001
    wait_for(lambda: len([key for key in keys(server) if ":counter:" in key]) == 1, "a counter stays")
    assert len(session.store.held()) == 1


def test_counters_that_have_expired_are_dropped_from_the_index(server: Server, opened: Opened) -> None:
    session = Session(opened(), POLICY + '[[rule]]\nuser = "*"\nlimit = "9/1h"\n')
    session.call("report")
    gone, kept = (key for key in keys(server) if ":counter:" in key)
    server.command("DEL", gone)
    session.store.tend()
    members = server.command("HKEYS", "{mcpguard:default}:counters")
    assert kept.rpartition(":")[2].encode() in members
    assert gone.rpartition(":")[2].encode() not in members


def test_a_restarted_server_is_told_its_scripts_again_and_no_call_notices(server: Server, opened: Opened) -> None:
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


def test_rows_that_are_too_old_go_and_their_outcomes_with_them(server: Server, opened: Opened) -> None:
    for at in range(300):
        server.command("XADD", "{mcpguard:default}:audit", f"{1000 + at}-0", "context", "{}")
    old = rows.place(b"1000-0")
    session = Session(opened(keep_us=3600 * 1_000_000), POLICY)
    verdict = session.one("report")
    session.store.record([Outcome(old, "ok", 1), Outcome(verdict.row or 0, "ok", 1)])
    assert len([key for key in keys(server) if ":outcomes:" in key]) == 2
    session.store.tend()
    assert int(server.command("XLEN", "{mcpguard:default}:audit")[1:]) < 101  # a server trims whole nodes of a stream
    server.command("XTRIM", "{mcpguard:default}:audit", "MINID", "2000-0")
    server.command("DEL", "{mcpguard:default}:tended")
    Session(opened(), POLICY).store.tend()
    assert len([key for key in keys(server) if ":outcomes:" in key]) == 1
    (entry,) = session.store.entries()
    assert entry.record["outcome"] == "ok"


def test_outcomes_do_not_stay_longer_than_their_rows_may(server: Server, opened: Opened) -> None:
    session = Session(opened(keep_us=3600 * 1_000_000), POLICY)
    session.store.record([Outcome(session.one("report").row or 0, "ok", 1)])
    (outcomes,) = [key for key in keys(server) if ":outcomes:" in key]
    assert 3_600_000 < int(server.command("PTTL", outcomes)[1:]) <= 3_600_000 + 2 * rows.BUCKET_MS


def test_an_audit_that_takes_too_much_memory_loses_its_oldest_rows(server: Server, opened: Opened) -> None:
    session = Session(opened(max_bytes=200_000), POLICY)
    for _ in range(4):
        session.call("free", 500)
    session.store.tend()
    size = int(server.command("MEMORY", "USAGE", "{mcpguard:default}:audit")[1:])
    assert 100_000 < size < 260_000
    newest = next(session.store.newest())
    assert newest.record["seq"] == 2000


def test_one_wrapper_tends_for_all(server: Server, opened: Opened) -> None:
    for _ in range(2):
        opened().tend()
    assert 0 < int(server.command("PTTL", "{mcpguard:default}:tended")[1:]) <= upkeep.EVERY_MS


def test_what_a_row_says_takes_the_place_of_a_decision_whose_reply_was_lost(server: Server, opened: Opened) -> None:
    """The server may have decided what nobody heard of; the wrapper went on by itself, and tells of it when it is back."""
    session = Session(opened(), POLICY)
    session.call("report", 2)
    session.call("report", 3)
    deaf = Journal(session.journal.session)
    deaf.seq = 2  # it has not heard of the last three
    rows_of_the_meantime = deaf.rows(session.charges("free", 4), [Verdict("allowed_unavailable") for _ in range(4)], 1)
    opened().append(rows_of_the_meantime)
    told = [(entry.record["seq"], entry.record["decision"]) for entry in session.store.entries()]
    assert told == [(1, "allowed"), (2, "allowed"), *((seq, "allowed_unavailable") for seq in range(3, 7))]
    assert [held.used for held in session.store.held()] == [5]


def test_a_wrapper_that_starts_does_not_search_the_audit_of_a_fleet(server: Server, opened: Opened) -> None:
    for minute in range(1, 1500):
        old = rows.fields(Row(minute * 60_000_000, 1, "allowed", "{}"))
        server.command("XADD", "{mcpguard:default}:audit", f"{minute * 60_000}-1", *old)
    server.command("CONFIG", "RESETSTAT")
    session = Session(opened(), POLICY)
    session.store.append(session.journal.rows(session.charges("free"), [Verdict("allowed")], wall_us()))
    assert b"cmdstat_xrevrange:calls=1," in server.command("INFO", "commandstats")


def test_rows_that_come_after_a_decision_leave_its_own_alone(server: Server, opened: Opened) -> None:
    session = Session(opened(), POLICY)
    session.call("report", 6)
    place_of_another = opened()
    session.call("report")
    place_of_another.append(session.journal.flush(wall_us(), all_of_them=True))
    assert [entry.record["seq"] for entry in session.store.entries()] == [1, 2, 3, 4, 5, 6, 7]


def test_a_namespace_that_a_later_program_wrote_is_refused_with_a_word(server: Server, opened: Opened) -> None:
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
def test_a_server_that_may_lose_counters_is_warned_of(tmp_path: Path, arguments: list[str], words: list[str]) -> None:
    with running(tmp_path / "redis", *arguments) as server:
        store = RedisStore(server.address)
        assert len(store.warnings) == len(words)
        for word, warning in zip(words, store.warnings, strict=True):
            assert word in warning
            assert str(server.folder) in warning
        store.close()


def test_where_a_server_does_not_tell_its_settings_nothing_is_said_of_them(tmp_path: Path) -> None:
    with running(tmp_path / "redis", "--rename-command", "CONFIG", "") as server:
        store = RedisStore(server.address)
        assert store.warnings == ()
        store.close()


@pytest.mark.parametrize(
    "row",
    [
        Row(1, 2, "allowed", "{}"),
        Row(1, 2, "rate_limited", '{"é":1}', "{}", '"é"', b"\n\x00\xff", "ab", 0, 0, 0, 0, '{"x":"\\n"}'),
    ],
)
def test_a_row_is_read_as_it_was_written_whatever_a_later_program_puts_beside_it(row: Row) -> None:
    name, value = rows.fields(row)
    assert rows.row([b"later", b"x\ny", name.encode(), value]) == row


def test_what_may_be_counted_already_is_counted_once_by_its_name(server: Server, opened: Opened) -> None:
    session = Session(opened(), POLICY)
    counter = session.charges("report")[0].plan.counters[0]
    for once in ("a", "a", "b", "a"):
        opened().adopt([(counter, (-1, -1, 3))], once)
    assert [held.used for held in session.store.held()] == [6]
    assert 0 < int(server.command("PTTL", "{mcpguard:default}:adopted:a:0")[1:]) <= 7 * 86400 * 1000


def test_rows_of_a_decision_whose_reply_was_lost_are_found_under_those_of_a_busy_fleet(
    server: Server, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mcpguard.stores.redis.store.LOOK_BACK", 50)
    session = Session(opened(), POLICY)
    time_us = wall_us()
    session.call("report", 3)
    begun_us = wall_us()
    wait_for(lambda: wall_us() - begun_us > 1.5 * NEARBY_US, "time stands still")
    for _ in range(4):
        Session(opened(), POLICY, session="00000000000000bb").call("free", 100)
    deaf = Journal(session.journal.session)
    opened(timeout_ms=1000).append(deaf.rows(session.charges("free", 3), [Verdict("allowed") for _ in range(3)], time_us))
    mine = [entry.record["seq"] for entry in session.store.entries() if entry.record["session"] == session.journal.session]
    assert mine == [1, 2, 3]


def test_the_search_for_rows_reads_no_more_of_long_ones_than_there_is_time_for(server: Server, opened: Opened) -> None:
    _, long = rows.fields(Row(1, 1, "allowed", "{}", detail='{"arguments":"' + "a" * 300_000 + '"}'))
    for _ in range(60):
        server.command("XADD", "{mcpguard:default}:audit", "*", "row", long)
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


def test_counters_are_looked_through_piece_by_piece_since_a_server_does_nothing_else_meanwhile(
    server: Server, opened: Opened
) -> None:
    session = Session(opened(), '[[rule]]\ntool = "*"\nlimit = "9/1h"\n')
    for at in range(1200):
        session.one(f"tool {at}")
    server.command("CONFIG", "RESETSTAT")
    assert [held.used for held in session.store.held()] == [1] * 1200
    assert b"cmdstat_hgetall" not in server.command("INFO", "commandstats")


def test_how_calls_ended_takes_its_part_of_the_memory_and_goes_with_the_rows(server: Server, opened: Opened) -> None:
    session = Session(opened(max_bytes=400_000), POLICY)
    for _ in range(8):
        session.store.record([Outcome(one.row or 0, "ok", 1) for one in session.call("free", 250)])
    session.store.tend()
    (outcomes,) = [key for key in keys(server) if ":outcomes:" in key]
    audit = "{mcpguard:default}:audit"
    left = int(server.command("XLEN", audit)[1:])
    assert int(server.command("HLEN", outcomes)[1:]) == left
    assert 500 < left < 1500
    assert sum(int(server.command("MEMORY", "USAGE", key)[1:]) for key in (audit, outcomes)) < 500_000
    assert {entry.record["outcome"] for entry in session.store.entries()} == {"ok"}


def test_a_user_who_may_not_what_a_script_does_is_told_what_he_needs(tmp_path: Path) -> None:
    with running(tmp_path / "redis") as server:
        session = Session(RedisStore(server.address, PATIENT), POLICY)
        server.command("ACL", "SETUSER", "default", "-mget")
        with pytest.raises(StoreUnavailable, match="mget") as caught:
            session.call("report")
        assert caught.value.hint == "the README lists what its user needs"


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


def test_a_month_of_ended_calls_is_measured_in_a_few_questions(
    server: Server, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, hashes = opened(), range(1200)
    first = wall_us() // 1000 // rows.BUCKET_MS - len(hashes)
    server.command("XADD", "{mcpguard:default}:audit", f"{first * rows.BUCKET_MS}-0", "row", "x")
    for at in hashes:
        server.command("SADD", "{mcpguard:default}:outcomes", str(first + at))
    asked: list[int] = []
    ask = Link.ask

    def noting(link: Link, commands: Sequence[Command], *, deadline_s: float) -> list[Any]:
        asked.append(len(commands))
        return ask(link, commands, deadline_s=deadline_s)

    monkeypatch.setattr(Link, "ask", noting)
    store.tend()
    assert sum(asked) > len(hashes)
    assert len(asked) < 20
