"""On a server, too, a damaged row is left out and named, and every other row is read and counted."""

import contextlib
import re
import struct
from collections.abc import Iterator

import pytest

from mcpguard.errors import StoreUnavailable
from mcpguard.session.verdict import Verdict
from mcpguard.stores.address import RedisAddress
from mcpguard.stores.api import Readable
from mcpguard.stores.clock import wall_us
from mcpguard.stores.redis import layout
from mcpguard.stores.redis.store import RedisStore
from tests.build import Session
from tests.redis_servers import Server
from tests.stores.redis.conftest import AUDIT, OUTCOMES, PATIENT, ask

CALL = b'1767225600000000\n1\n\n\n{"namespace":"default","session":"aa"}\n'
NUMBERS = struct.pack("<5q", 1, -1, -1, -1, -1)
ROW = b"allowed\n\n\n" + NUMBERS


@pytest.fixture(
    params=[
        [b"other", b"x"],
        [b"call", CALL, b"row", b""],
        [b"call", b"", b"row", ROW],
        [b"call", CALL, b"row", ROW[:-1]],
        [b"call", b"soon" + CALL[16:], b"row", ROW],
        [b"call", CALL.replace(b"{", b"["), b"row", ROW],
        [b"call", CALL, b"row", b"allowed\n{\n\n" + NUMBERS],
        [b"call", CALL, b"row", b"allowed\n\n[]\n" + NUMBERS],
        [b"call", CALL.replace(b"default", b"\xff"), b"row", ROW],
        [b"call", CALL.replace(b"\n\n\n{", b"\nno digits\n\n{"), b"row", ROW],
        None,
    ]
)
def store(request: pytest.FixtureRequest, server: Server) -> Iterator[RedisStore]:
    """Three rows, of which the second, or its outcome, is damaged."""
    with contextlib.closing(RedisStore(server.address, PATIENT)) as store:
        session = Session(store, "mode = 'enforce'")
        session.one("x")
        second = session.one("x")
        session.one("x")
        stream_id = layout.stream_id(second.row_id or 0)
        if request.param is None:
            ask(server, "HSET", OUTCOMES, stream_id, "ok soon")
        else:
            _, _, (third_id, third) = ask(server, "XRANGE", AUDIT, "-", "+")
            ask(server, "XDEL", AUDIT, stream_id, third_id)
            ask(server, "XADD", AUDIT, "*", *request.param)
            ask(server, "XADD", AUDIT, "*", *third)
        yield store


def seqs(reader: Readable) -> list[object]:
    return [entry.record["seq"] for entry in reader.entries()]


def test_a_damaged_row_is_named_once_and_all_others_are_read(store: RedisStore, server: Server) -> None:
    told: list[str] = []
    with contextlib.closing(RedisAddress(server.address).read(PATIENT, told.append)) as reader:
        assert seqs(reader) == [1, 3]
        assert [entry.record["seq"] for entry in reader.newest()] == [3, 1]
        assert [one.row.seq for page in reader.rows() for one in page] == [1, 3]
        assert sum(calls for page in reader.tally() for group in page.calls.values() for calls in group.values()) == 2
    (line,) = told
    assert re.fullmatch(r"row .*redis.* is damaged, and left out", line)


def test_without_anybody_to_tell_a_damaged_row_is_an_error(store: RedisStore) -> None:
    with pytest.raises(StoreUnavailable, match="is damaged"):
        seqs(store)


def test_a_damaged_row_does_not_keep_others_from_being_written_back(store: RedisStore, server: Server) -> None:
    session = Session(store, "mode = 'enforce'")
    session.journal.state = (3, {}, {})
    with contextlib.closing(RedisStore(server.address, PATIENT)) as other:  # looks for rows to be replaced
        assert len(other.append(session.journal.rows(session.charges("x"), [Verdict("allowed")], wall_us()))) == 1
