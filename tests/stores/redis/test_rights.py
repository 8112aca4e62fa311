"""The rights that the manual shows for a Redis user: enough for mcpguard, and no access to the data of others.

The contract of stores, and all that a Redis store does beyond it, is tested with these rights, too.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from mcpguard.errors import StoreUnavailable
from mcpguard.stores.address import RedisAddress
from mcpguard.stores.api import Options
from mcpguard.stores.redis.link import Link
from mcpguard.stores.redis.store import RedisStore
from mcpguard.stores.redis.url import RedisUrl, parse
from tests.build import Session
from tests.cli.command import mcpguard
from tests.end_to_end.host import Host, policy, rule, script
from tests.redis_servers import ENOUGH_S, PASSWORD, Server, running
from tests.stores.redis.conftest import POLICY

OPTIONS = Options(namespace="crm", timeout_ms=5000)
OWN, FOREIGN = "{mcpguard:crm}:meta", "{mcpguard:billing}:meta"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("redis"), "--enable-debug-command", "yes", "--enable-module-command", "yes") as server:
        yield server


@pytest.fixture
def server(shared: Server) -> Server:
    """A server with two teams' namespaces."""
    shared.command("FLUSHALL")
    for namespace in ("crm", "billing"):
        RedisStore(shared.address, Options(namespace=namespace, timeout_ms=5000)).close()
    return shared


@pytest.fixture(autouse=True)
def user(server: Server) -> RedisUrl:
    return server.user("crm")


def url(server: Server) -> str:
    return server.url.replace("://", "://mcpguard@")


def test_rights_without_those_for_calls_in_flight_are_enough_for_a_policy_without_caps(server: Server, user: RedisUrl) -> None:
    server.command("ACL", "SETUSER", "mcpguard", "-@sortedset", "-pexpire")
    session = Session(RedisAddress(user).open(OPTIONS), POLICY + '[[rule]]\ntool = "busy"\nconcurrent = 1\n')
    assert session.decisions("report") == ["allowed"]
    with pytest.raises(StoreUnavailable, match=r"refuses: .*zcount") as caught:
        session.one("busy")
    assert caught.value.hint == "give its user the rights that docs/stores-and-fleets.md lists"
    assert session.decisions("report") == ["allowed"]


def test_the_rights_in_the_manual_are_enough_for_wrappers_and_commands(tmp_path: Path, server: Server) -> None:
    policy(tmp_path, rule("5/1h", user="*", tool="search"))
    (tmp_path / "config.toml").write_text('[store]\nnamespace = "crm"\ntimeout_ms = 5000\n')
    variables = {"MCPGUARD_STORE": url(server), "MCPGUARD_STORE_PASSWORD": PASSWORD}
    with Host(tmp_path, *script("obedient"), options=("--user", "alice", "--server", "crm"), env=variables) as host:
        assert "result" in host.call(1, "search")
        assert host.end() == 0
    for argv, word in (
        (["audit", "tail", "--json", "-n", "1"], '"outcome":"ok"'),
        (["usage"], "search"),
        (["audit", "stats"], "search"),
        (["audit", "export"], "search"),
        (["reset", "--yes"], "1 counter reset"),
        (["audit", "prune", "--before", "9999-01-01T00:00:00Z", "--yes"], "rows deleted"),
    ):
        done = mcpguard(tmp_path, *argv, **variables)
        assert (done.returncode, done.stderr) == (0, "")
        assert word in done.stdout.replace(": ", ":")
        assert not done.stdout.startswith("0 ")


def test_another_database_needs_one_more_right(server: Server) -> None:
    elsewhere = parse(url(server).replace("/0", "/3"), PASSWORD)
    with pytest.raises(StoreUnavailable, match="no permissions to run the 'select' command"):
        RedisAddress(elsewhere).open(OPTIONS)
    server.command("ACL", "SETUSER", "mcpguard", "+select")
    RedisAddress(elsewhere).open(OPTIONS).close()


REFUSED = f"""
FLUSHALL; FLUSHDB; SWAPDB 0 1; SELECT 1; KEYS *; SCAN 0; RANDOMKEY; DBSIZE; SHUTDOWN NOSAVE
CONFIG GET *; CONFIG SET maxmemory 1; ACL LIST; ACL SETUSER mcpguard allkeys; ACL WHOAMI
CLIENT KILL TYPE normal; CLIENT LIST; CLIENT PAUSE 1000; MONITOR; DEBUG SLEEP 0; SLOWLOG GET; MEMORY STATS; LATENCY RESET
SCRIPT FLUSH; SCRIPT KILL; FUNCTION FLUSH; FUNCTION LIST; FUNCTION DELETE lib; FUNCTION DUMP
SAVE; BGREWRITEAOF; REPLICAOF NO ONE; FAILOVER; MODULE LIST; CLUSTER INFO
PUBLISH all x; SUBSCRIBE all; PSUBSCRIBE *; SPUBLISH all x; PUBSUB CHANNELS
GET {FOREIGN}; DEL {FOREIGN}; HGETALL {FOREIGN}; DUMP {FOREIGN}; TYPE {FOREIGN}; EXISTS {FOREIGN}; WATCH {FOREIGN}
HSET {FOREIGN} schema 9; HMGET {FOREIGN} args_key; SET {FOREIGN} x; MGET {OWN} {FOREIGN}; HSCAN {FOREIGN} 0
XRANGE {FOREIGN} - +; XADD {FOREIGN} * a b; MEMORY USAGE {FOREIGN}; EXPIRE {FOREIGN} 0
RENAME {OWN} {FOREIGN}; COPY {OWN} {FOREIGN}; RENAME {FOREIGN} {OWN}; COPY {FOREIGN} {OWN}; COPY {OWN} {OWN}2 DB 1
MOVE {OWN} 1; SORT {OWN} STORE {FOREIGN}; MIGRATE h 1 {OWN} 0 1; RESTORE {FOREIGN} 0 x
GET x; SET {{mcpguard:crm x; SET {{mcpguard:crm2}}:x y; SET {{mcpguard:CRM}}:x y; SET x{{mcpguard:crm}}:x y
"""
"""Attacks on the server, or on another team's namespace."""


@pytest.fixture
def link(user: RedisUrl) -> Iterator[Link]:
    link = Link(user, timeout_s=ENOUGH_S, key=OWN)
    yield link
    link.close()


def answer(link: Link, *words: str) -> str:
    return str(link.ask([words])[0])


@pytest.mark.parametrize("attack", re.split(r"; |\n", REFUSED.strip()))
def test_access_to_the_data_of_others_is_refused_as_a_command_and_in_a_script(server: Server, link: Link, attack: str) -> None:
    words = attack.split()
    call = f"return redis.call({','.join(map(json.dumps, words))})"
    assert "no permissions" in answer(link, *words).lower()
    for keys in (), (OWN,), (FOREIGN,):
        assert re.search(r"(?i)ACL failure|no permissions|not allowed from", answer(link, "EVAL", call, str(len(keys)), *keys))
    assert server.command("HGET", FOREIGN, "schema") == b"$1\r\n1\r\n"
    assert server.command("DBSIZE") == b":2\r\n"


def test_a_library_of_functions_cannot_be_loaded(link: Link) -> None:
    library = "#!lua name=lib\nredis.register_function('f', function() return 1 end)"
    assert "no permissions" in answer(link, "FUNCTION", "LOAD", library)
    assert "no permissions" in answer(link, "FCALL", "f", "0")
