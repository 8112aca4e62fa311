"""The audit log never takes more of a server's memory than its bound, and refusals never evict what was forwarded."""

import math
import re
import struct
from collections import Counter
from pathlib import Path

import pytest

from mcpguard.errors import StoreUnavailable
from mcpguard.session.audit import Row
from mcpguard.stores.redis.store import RedisStore
from mcpguard.text.printing import compact
from tests.build import Session
from tests.redis_servers import Server, running
from tests.stores.redis.conftest import (
    AUDIT,
    OUTCOMES,
    PATIENT,
    POLICY,
    REFUSED,
    SIZE,
    Begin,
    Opened,
    ask,
    call_with_outcomes,
    length,
    refuse,
)

LIMITED = '[[rule]]\ntool = "x"\nlimit = "9999/1h"\n'

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


def test_the_audit_log_never_exceeds_its_bound_and_the_oldest_rows_are_evicted(server: Server, begin: Begin) -> None:
    session = begin(max_bytes=MAX_BYTES)
    most = 0
    for _ in range(80):
        call_with_outcomes(session, 250)
        most = max(most, taken(server))
    seqs = [entry.record["seq"] for entry in session.store.entries()]
    assert seqs == list(range(20_001 - len(seqs), 20_001))
    assert server.command("HLEN", OUTCOMES) == b":%d\r\n" % len(seqs)
    assert 0.6 < share_of_max(server, most) < 1.1


def test_calls_one_by_one_keep_the_audit_log_within_its_bound(server: Server, begin: Begin) -> None:
    session = begin(LIMITED, max_bytes=100_000)
    for _ in range(300):
        session.one("x")
    entries, size = ask(server, "XRANGE", AUDIT, "-", "+"), ask(server, "GET", SIZE)
    estimated = sum(math.ceil(1.2 * sum(map(len, fields[1::2]))) + 190 for _, fields in entries)
    assert struct.unpack("<4q", size)[2:] == (estimated, 0)
    assert 99_000 < estimated <= 100_000


@pytest.mark.parametrize("length", [100, 1700, 3700, 8000, 65_000])
def test_the_estimated_memory_of_a_row_is_right_for_rows_of_any_length(server: Server, opened: Opened, length: int) -> None:
    """The lengths are the shortest one, and those for which the server's allocator and stream nodes waste most."""
    store = opened(max_bytes=MAX_BYTES)
    rows = [Row(1, at, "allowed", "{}", detail=compact({"arguments": "a" * length})) for at in range(50)]
    most = 0
    for _ in range(2 * MAX_BYTES // (50 * (length + 150))):
        store.append(rows)
        most = max(most, taken(server))
    assert 0.4 < share_of_max(server, most) < 1.1


def test_a_flood_of_refusals_stays_within_the_bound_and_evicts_no_row_of_a_forwarded_call(server: Server, begin: Begin) -> None:
    wrappers = [begin(max_bytes=MAX_BYTES, session=f"{at:016x}") for at in range(3)]
    for _ in range(8):
        call_with_outcomes(wrappers[0], 500)
    most = 0
    for at in range(50):
        for wrapper in wrappers:
            refuse(wrapper, f"{wrapper.journal.session} {at}")
            most = max(most, taken(server))
    rows = [entry.record for entry in wrappers[0].store.entries()]
    decisions = Counter(row["decision"] for row in rows)
    assert decisions["allowed"] == 4000
    assert 1000 < decisions["invalid"] < 15_000
    assert rows[-1]["seq"] == wrappers[-1].journal.seq
    assert {row["outcome"] for row in rows if row["decision"] == "allowed"} == {"ok"}
    assert 0.6 < share_of_max(server, most) < 1.1


def test_refusals_keep_their_share_of_the_memory_when_forwarded_calls_need_room(server: Server, begin: Begin) -> None:
    session = begin(max_bytes=1_000_000)
    for at in range(20):
        refuse(session, str(at))
    for _ in range(20):
        call_with_outcomes(session, 500)
    sizes = [int(server.command("MEMORY", "USAGE", key)[1:]) for key in (AUDIT, REFUSED)]
    assert 0.15 < sizes[1] / sum(sizes) < 0.35
    assert sum(sizes) > 600_000


def test_emptying_one_stream_by_hand_deletes_no_row_of_the_other(server: Server, begin: Begin) -> None:
    session = begin(max_bytes=100_000)
    session.call("free", 300)
    server.command("DEL", AUDIT)
    session.call("free", 60)
    session.call("free", 1)
    assert length(server) == len(list(session.store.entries())) == 61


def test_a_lower_bound_of_the_audit_log_makes_room_on_a_server_whose_memory_is_full(tmp_path: Path) -> None:
    with running(tmp_path / "redis") as server:
        session = Session(RedisStore(server.address, PATIENT), POLICY)
        session.call("free", 200)
        server.command("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(StoreUnavailable, match="maxmemory"):
            session.call("free")
        store = RedisStore(server.address, PATIENT._replace(max_bytes=20_000))
        assert Session(store, POLICY, session="b" * 16).decisions("report") == ["allowed"]
        store.tend()
        rows = list(store.entries())
        assert 0 < len(rows) < 50
        assert rows[-1].record["tool"] == "report"
