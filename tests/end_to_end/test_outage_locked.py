"""A store that somebody else holds, and does not let go."""

import contextlib
import os
import re
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mcpguard.stores.locks import lock_file
from mcpguard.stores.sqlite.call_log import log_path

from .host import audit, call, script, total, until
from .outages import BUDGET_MS, SLOW_S, EagerHost, codes, is_back, settings, stopped_holder, told, used

MODES = {"local": [200, 200, 200, 429], "deny": [503] * 4, "allow": [200] * 4}
"""How four calls are answered without a store, where two of five have been counted."""

Holding = Callable[[], contextlib.AbstractContextManager[None]]


HOLDS: dict[str, Callable[[Path], contextlib.AbstractContextManager[None]]] = {
    "a stopped wrapper in its transaction": lambda path: stopped_holder("hold_transaction", path),
    "a stopped holder of the call log": lambda path: stopped_holder("hold", Path(log_path(path))),
}


@pytest.fixture(params=HOLDS)
def hold(request: pytest.FixtureRequest, tmp_path: Path) -> Holding:
    return lambda: HOLDS[request.param](tmp_path / "mcpguard.db")


@pytest.mark.parametrize("mode", MODES)
def test_a_store_that_is_locked_in_mid_session_costs_one_call_its_budget_and_is_taken_up_again(
    tmp_path: Path, hold: Holding, mode: str
) -> None:
    settings(tmp_path, mode)
    with EagerHost(tmp_path, *script("obedient")) as host:
        assert codes(host, 2) == [200, 200]
        with hold():
            assert codes(host, 1) == MODES[mode][:1]
            since = time.monotonic()
            assert codes(host, 3) == MODES[mode][1:]
            assert time.monotonic() - since < 3 * BUDGET_MS / 1000
            assert codes(host, 1, "drop") == [403]
        is_back(host)
        assert used(tmp_path) == [{"local": 5, "deny": 2, "allow": 2}[mode]]
        assert codes(host, 1) == ([429] if mode == "local" else [200])
        host.end()
        assert (told(host, "store unavailable"), told(host, "store is back")) == (1, 1)
        assert "Traceback" not in host.err
    rows = host.audit()
    assert [row["seq"] for row in rows] == list(range(2, len(rows) + 2))
    forwarded = [row for row in rows if row["decision"] in {"allowed", "allowed_unavailable"}]
    assert [row["outcome"] for row in forwarded] == ["ok"] * len(forwarded)
    assert total(rows, "unavailable") == (4 if mode == "deny" else 0)


def test_another_programs_lock_on_the_database_is_no_outage(tmp_path: Path) -> None:
    settings(tmp_path)
    path = tmp_path / "mcpguard.db"
    with EagerHost(tmp_path, *script("obedient")) as host:
        assert codes(host, 1) == [200]
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("BEGIN EXCLUSIVE")
            assert codes(host, 5) == [200] * 4 + [429]
            db.execute("ROLLBACK")
        assert host.end() == 0
        assert "store unavailable" not in host.err
    assert used(tmp_path) == [5]


def test_a_wrapper_that_starts_while_the_store_is_locked_answers_within_the_budget(tmp_path: Path, hold: Holding) -> None:
    settings(tmp_path)
    with EagerHost(tmp_path, *script("obedient")) as first:
        assert codes(first, 1) == [200]
    with contextlib.ExitStack() as stack:
        with hold():
            host = stack.enter_context(EagerHost(tmp_path, *script("obedient")))
            assert codes(host, 6) == [200] * 5 + [429]
            assert told(host, "store unavailable") == 1
        is_back(host)
        assert used(tmp_path) == [6]
        assert codes(host, 1) == [429]
        assert host.end() == 0
    rows = [row for row in audit(tmp_path) if row["decision"] == "allowed"]
    assert [row["outcome"] for row in rows] == ["ok"] * 6
    assert ["args_hash" in row for row in rows] == [True] + [False] * 5


def test_a_wrapper_that_started_while_another_program_had_locked_the_database_uses_the_stores_key_when_it_is_back(
    tmp_path: Path,
) -> None:
    settings(tmp_path)
    with EagerHost(tmp_path, *script("obedient")) as first:
        assert codes(first, 1) == [200]
        first.end()
    with contextlib.ExitStack() as stack:
        with contextlib.closing(sqlite3.connect(tmp_path / "mcpguard.db", isolation_level=None)) as db:
            db.execute("BEGIN EXCLUSIVE")
            host = stack.enter_context(EagerHost(tmp_path, *script("obedient")))
            assert codes(host, 1) == [200]
        is_back(host)
        assert codes(host, 1) == [200]
    hashes = [row.get("args_hash") for row in audit(tmp_path) if row["tool"] == "search"]
    assert hashes == [hashes[0], None, hashes[0]]
    assert hashes[0] is not None


@pytest.mark.parametrize("wrappers", [3])
def test_without_a_store_each_wrapper_admits_at_most_its_own_share_and_all_of_it_is_counted_afterwards(
    tmp_path: Path, wrappers: int
) -> None:
    settings(tmp_path, limit="6/1h")
    with contextlib.ExitStack() as stack:
        hosts = [stack.enter_context(EagerHost(tmp_path, *script("obedient"))) for _ in range(wrappers)]
        for host in hosts:
            assert codes(host, 1) == [200]
        admitted = 0
        with stopped_holder("hold", tmp_path / "mcpguard.db-calls"):
            for already, host in enumerate(hosts, 1):
                found = codes(host, 7)
                share = found.count(200)
                assert found == [200] * share + [429] * (7 - share)
                assert 3 <= share <= 6 - already  # it has seen the calls of those before it, and perhaps those after it
                admitted += share
        for host in hosts:
            is_back(host)
        assert used(tmp_path) == [3 + admitted]
        assert [codes(host, 1) for host in hosts] == [[429]] * wrappers


def stop_between_turns(host: EagerHost, log: Path) -> None:
    """Stop a wrapper while it does not hold the lock on the call log: its bookkeeper may have it at any moment."""
    with contextlib.closing(lock_file(log)) as lock:
        while True:
            host.process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, host.process.pid, os.WSTOPPED | os.WNOWAIT)
            if lock.acquire(0):
                lock.release()
                return
            host.process.send_signal(signal.SIGCONT)


def test_a_stopped_wrapper_that_wakes_up_has_lost_nothing_and_doubled_nothing(tmp_path: Path) -> None:
    settings(tmp_path, timeout_ms=10_000)
    with (
        EagerHost(tmp_path, *script("obedient", tmp_path / "calls")) as sleeper,
        EagerHost(tmp_path, *script("obedient")) as other,
    ):
        assert codes(other, 1) == codes(sleeper, 1) == [200]
        stop_between_turns(sleeper, tmp_path / "mcpguard.db-calls")
        sleeper.send(call("late", "search"))
        assert codes(other, 2) == [200, 200]
        sleeper.process.send_signal(signal.SIGCONT)
        assert "result" in sleeper.answer("late")
        assert codes(other, 1) == codes(sleeper, 1) == [429]
    assert used(tmp_path) == [5]


def test_a_wrapper_that_ends_while_the_store_is_locked_ends_as_soon_as_ever(tmp_path: Path) -> None:
    settings(tmp_path)
    with EagerHost(tmp_path, *script("obedient")) as first:
        assert codes(first, 1) == [200]
    with stopped_holder("hold", tmp_path / "mcpguard.db-calls"), EagerHost(tmp_path, *script("obedient")) as host:
        assert codes(host, 1) == [200]
        since = time.monotonic()
        assert host.end() == 0
        assert time.monotonic() - since < SLOW_S
        assert "Traceback" not in host.err


def test_a_wrapper_that_ends_just_after_the_lock_came_free_hands_over_what_it_counted(tmp_path: Path) -> None:
    settings(tmp_path)
    patient = {"mcpguard.stores.outage.store.LAST_TRY_S": 30.0, "mcpguard.relay.guard.CLOSE_S": 30.5}
    with EagerHost(tmp_path, *script("obedient"), tuned=patient) as host:
        assert codes(host, 1) == [200]
        with stopped_holder("hold", tmp_path / "mcpguard.db-calls"):
            assert codes(host, 2) == [200, 200]
        host.end()
    assert used(tmp_path) == [3]
    assert [row["outcome"] for row in audit(tmp_path)] == ["ok"] * 3


def pauses(pid: int) -> int:
    """How often a process's threads have paused. One that waits for a lock pauses hundreds of times a second."""
    found = [one.read_text() for one in Path(f"/proc/{pid}/task").glob("*/status")]
    return sum(int(count) for text in found for count in re.findall(r"^voluntary_ctxt_switches:\t(\d+)$", text, re.MULTILINE))


@pytest.mark.skipif(sys.platform != "linux", reason="only there the system tells how often a process pauses")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_wrapper_whose_call_waits_for_the_store_long_before_the_calls_budget_is_over(
    tmp_path: Path, number: int
) -> None:
    settings(tmp_path, timeout_ms=60_000)
    with EagerHost(tmp_path, *script("obedient")) as host:
        assert codes(host, 1) == [200]
        with stopped_holder("hold", tmp_path / "mcpguard.db-calls"):
            host.send(call(1, "search"))
            before = pauses(host.process.pid)
            until(lambda: pauses(host.process.pid) > before + 100, "the call waits for the lock")
            host.kill(number)
            assert host.wait() == -number
            assert "Traceback" not in host.err
