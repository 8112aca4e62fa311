"""A Redis that is dead, hung, slow, full, a replica, locked up, forgetful or empty, and wrappers that go on answering."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mcpguard.stores.api import Options
from mcpguard.stores.redis.store import RedisStore
from tests.redis_servers import Server, running

from .host import PATIENT_MS, Message, call, script, total, until
from .outages import BUDGET_MS, EagerHost, codes, is_back, settings, told, wait_for

MODES = {"local": [200, 200, 200, 429], "deny": [503] * 4, "allow": [200] * 4}
"""How four calls are answered without a store, where two of five have been counted."""

DURABLE = ("--appendonly", "yes", "--appendfsync", "always")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with running(tmp_path / "redis", "--enable-debug-command", "yes", *DURABLE) as one:
        yield one


def wrapper(home: Path, server: Server, mode: str = "local", url: str = "", timeout_ms: int = PATIENT_MS) -> EagerHost:
    settings(home, mode, timeout_ms=timeout_ms)
    return EagerHost(home, *script("obedient", home / "calls"), env={"MCPGUARD_STORE": url or server.url})


@contextlib.contextmanager
def patient(server: Server) -> Iterator[RedisStore]:
    store = RedisStore(server.address, Options(timeout_ms=10_000))
    yield store
    store.close()


def used(server: Server) -> list[int]:
    with patient(server) as store:
        return [held.used for held in store.held()]


def audit(server: Server) -> list[Message]:
    with patient(server) as store:
        return [entry.record for entry in store.entries() if entry.record["decision"] != "policy"]


def is_whole(host: EagerHost, server: Server) -> None:
    """The audit of one session has no gap, and every call that was forwarded has its outcome, once."""
    assert host.end() == 0
    assert "Traceback" not in host.err
    assert "internal error" not in host.err
    rows = audit(server)
    assert [row["seq"] for row in rows] == list(range(2, len(rows) + 2))
    forwarded = [row for row in rows if row["decision"] in {"allowed", "allowed_unavailable"}]
    assert {row.get("outcome") for row in forwarded} <= {"ok"}
    assert len(forwarded) == len((host.home / "calls").read_text().splitlines())


@pytest.mark.parametrize("mode", MODES)
def test_a_server_that_is_dead_at_the_start_is_used_when_it_lives(tmp_path: Path, mode: str) -> None:
    folder = tmp_path / "redis"
    folder.mkdir()
    server = Server(folder)
    with wrapper(tmp_path, server, mode) as host:
        assert codes(host, 6) == {"local": [200] * 5 + [429], "deny": [503] * 6, "allow": [200] * 6}[mode]
        assert codes(host, 1, "drop") == [403]
        assert f"store unavailable: {server.url} does not answer" in host.err
        server.start()
        try:
            is_back(host)
            assert used(server) == ([5] if mode == "local" else [])
            assert codes(host, 1) == ([429] if mode == "local" else [200])
            is_whole(host, server)
        finally:
            server.kill()


@pytest.mark.parametrize("mode", MODES)
def test_a_server_that_is_killed_and_started_again_with_its_data_has_every_count(
    tmp_path: Path, server: Server, mode: str
) -> None:
    with wrapper(tmp_path, server, mode) as host:
        assert codes(host, 2) == [200, 200]
        server.kill()
        assert codes(host, 4) == MODES[mode]
        assert codes(host, 1, "drop") == [403]
        server.start()
        is_back(host)
        assert used(server) == [{"local": 5, "deny": 2, "allow": 2}[mode]]
        assert codes(host, 1) == ([429] if mode == "local" else [200])
        assert (told(host, "store unavailable"), told(host, "store is back")) == (1, 1)
        is_whole(host, server)


def test_a_server_that_is_started_again_without_its_data_gets_what_was_admitted_meanwhile(tmp_path: Path) -> None:
    with running(tmp_path / "redis") as server, wrapper(tmp_path, server) as host:
        assert codes(host, 2) == [200, 200]
        host.send(call("open", "hang"))
        host.notification("notifications/hanging")
        server.kill()
        assert codes(host, 4) == [200] * 3 + [429]
        server.start()
        is_back(host)
        assert used(server) == [3]
        assert codes(host, 3) == [200, 200, 429]
        assert host.end() == 0
        rows = audit(server)
        assert {row.get("outcome") for row in rows if row["decision"] == "allowed"} == {"ok"}  # and none of what hung before
        assert "Traceback" not in host.err


def test_a_server_that_dies_in_mid_call_leaves_the_call_to_the_wrapper(tmp_path: Path, server: Server) -> None:
    with wrapper(tmp_path, server) as host:
        assert codes(host, 2) == [200, 200]
        server.signal(signal.SIGSTOP)
        host.send(call("under way", "search"))
        server.kill()
        assert "result" in host.answer("under way")
        assert codes(host, 3) == [200, 200, 429]
        server.start()
        is_back(host)
        assert used(server) == [5]
        is_whole(host, server)


@pytest.mark.parametrize("mode", MODES)
def test_a_hung_server_costs_one_call_its_budget_and_its_delayed_script_charges_nothing(
    tmp_path: Path, server: Server, mode: str
) -> None:
    with wrapper(tmp_path, server, mode, timeout_ms=BUDGET_MS) as host:
        assert codes(host, 2) == [200, 200]
        server.signal(signal.SIGSTOP)
        assert codes(host, 1) == MODES[mode][:1]
        since = time.monotonic()
        assert codes(host, 3) == MODES[mode][1:]
        assert time.monotonic() - since < 3 * BUDGET_MS / 1000
        server.signal(signal.SIGCONT)
        is_back(host)
        assert used(server) == [{"local": 5, "deny": 2, "allow": 2}[mode]]
        is_whole(host, server)


def test_a_wrapper_that_starts_while_the_server_hangs_answers_within_the_budget(tmp_path: Path, server: Server) -> None:
    server.signal(signal.SIGSTOP)
    with wrapper(tmp_path, server, timeout_ms=BUDGET_MS) as host:
        assert codes(host, 6) == [200] * 5 + [429]
        server.signal(signal.SIGCONT)
        is_back(host)
        assert used(server) == [5]
        is_whole(host, server)


def test_a_server_that_sleeps_for_seconds_is_done_without_for_that_time(tmp_path: Path, server: Server) -> None:
    with wrapper(tmp_path, server, timeout_ms=BUDGET_MS) as host:
        assert codes(host, 2) == [200, 200]
        sleeping = threading.Thread(target=server.command, args=("DEBUG", "SLEEP", "6"))
        sleeping.start()
        until(lambda: server.is_asleep, "the server sleeps")  # else a call may be counted of which nobody hears
        assert codes(host, 20)[:4] == [200, 200, 200, 429]
        wait_for(host, "store unavailable")
        sleeping.join()
        is_back(host)
        assert used(server) == [5]
        is_whole(host, server)


REFUSALS = {
    "out of memory": (["CONFIG SET maxmemory 1"], ["CONFIG SET maxmemory 0"], "its memory is full"),
    "a replica": (["REPLICAOF 127.0.0.1 1"], ["REPLICAOF NO ONE"], "this is a replica"),
    "another password": (
        ["ACL SETUSER app resetpass >another", "CLIENT KILL USER app"],
        ["ACL SETUSER app resetpass >sesame"],
        "check the user and the password",
    ),
    "no such user": (["ACL DELUSER app"], ["ACL SETUSER app on >sesame ~* &* +@all"], "check the user and the password"),
}


@pytest.mark.parametrize("refusal", REFUSALS)
@pytest.mark.parametrize("mode", ["local", "deny"])
def test_a_server_that_refuses_is_an_outage_with_its_reason_until_it_does_not(
    tmp_path: Path, server: Server, refusal: str, mode: str
) -> None:
    begin, end, hint = REFUSALS[refusal]
    server.command("ACL", "SETUSER", "app", "on", ">sesame", "~*", "&*", "+@all")
    url = server.url.replace("redis://", "redis://app:sesame@")
    with wrapper(tmp_path, server, mode, url) as host:
        assert codes(host, 2) == [200, 200]
        for command in begin:
            server.command(*command.split())
        if "USER" in begin[-1]:
            until(lambda: b"user=app" not in server.command("CLIENT", "LIST"), "the server closes the user's connections")
        assert codes(host, 4) == MODES[mode]
        assert codes(host, 1, "drop") == [403]
        assert hint in host.err
        for command in end:
            server.command(*command.split())
        is_back(host)
        assert used(server) == [5 if mode == "local" else 2]
        assert (told(host, "store unavailable"), told(host, "store is back")) == (1, 1)
        assert "sesame" not in host.err
        is_whole(host, server)


def test_a_server_that_forgets_its_scripts_is_told_them_again_and_nothing_else_happens(tmp_path: Path, server: Server) -> None:
    with wrapper(tmp_path, server) as host:
        assert codes(host, 2) == [200, 200]
        server.command("SCRIPT", "FLUSH")
        assert codes(host, 4) == [200] * 3 + [429]
        assert told(host, "store unavailable") == 0
        is_whole(host, server)


def test_a_server_that_closes_all_connections_costs_nothing(tmp_path: Path, server: Server) -> None:
    with wrapper(tmp_path, server) as host:
        for _ in range(3):
            assert codes(host, 1) == [200]
            server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        assert codes(host, 3) == [200, 200, 429]
        assert told(host, "store unavailable") == 0
        is_whole(host, server)


def test_a_server_that_is_emptied_under_way_goes_on_from_nothing(tmp_path: Path, server: Server) -> None:
    with wrapper(tmp_path, server) as host:
        assert codes(host, 2) == [200, 200]
        server.command("FLUSHALL")
        assert codes(host, 6) == [200] * 5 + [429]
        assert host.end() == 0
        assert "Traceback" not in host.err


def test_many_wrappers_admit_without_the_server_what_each_may_and_all_of_it_is_counted(tmp_path: Path, server: Server) -> None:
    with contextlib.ExitStack() as stack:
        hosts = [stack.enter_context(wrapper(tmp_path / f"machine {at}", server, timeout_ms=BUDGET_MS)) for at in range(3)]
        for host in hosts:
            assert codes(host, 1) == [200]
        server.signal(signal.SIGSTOP)
        for already, host in enumerate(hosts, 1):
            assert codes(host, 6) == [200] * (5 - already) + [429] * (1 + already)
        server.signal(signal.SIGCONT)
        for host in hosts:
            is_back(host)
        assert used(server) == [3 + 4 + 3 + 2]
        assert [codes(host, 1) for host in hosts] == [[429]] * 3
    assert total(audit(server), "allowed") == 12
