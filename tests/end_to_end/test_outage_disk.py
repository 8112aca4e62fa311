"""A disk that is full, and places where nothing may be written."""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mcpguard.stores.sqlite.store import SqliteStore

from .host import PATIENT_MS, call, environment, program, script
from .outages import EagerHost, codes, is_back, mounted, root_only, settings, told, used, wait_for

MODES = ["local", "deny", "allow"]
SIZE = resource.RLIMIT_FSIZE
SMALL = ("-t", "tmpfs", "-o", "size=10m", "none")


def called_until(host: EagerHost, done: Callable[[], bool]) -> int:
    """Make calls that nothing limits, with long names, until something has happened; how many there were."""
    calls = 0
    while not done():
        assert calls < 20_000
        host.send(call(calls, f"free {calls} " + "x" * 200))
        assert "id" in host.answer(calls)
        calls += 1
    return calls


def fill(place: Path) -> None:
    with contextlib.suppress(OSError), (place / "fill").open("wb", buffering=0) as file:
        while file.write(b"f" * 4096):
            pass


@pytest.mark.skipif(sys.platform != "linux", reason="prlimit is Linux's")
@pytest.mark.parametrize("mode", MODES)
def test_a_file_that_may_grow_no_more_is_an_outage_that_ends_when_it_may(tmp_path: Path, mode: str) -> None:
    settings(tmp_path, mode, timeout_ms=PATIENT_MS)
    with EagerHost(tmp_path, *script("obedient")) as host:
        assert codes(host, 2) == [200, 200]
        before = resource.prlimit(host.process.pid, SIZE)
        resource.prlimit(host.process.pid, SIZE, (16_000, before[1]))
        called_until(host, lambda: told(host, "store unavailable") > 0)
        assert codes(host, 4) == {"local": [200] * 3 + [429], "deny": [503] * 4, "allow": [200] * 4}[mode]
        assert codes(host, 1, "drop") == [403]
        assert "check that its disk is not full" in host.err
        resource.prlimit(host.process.pid, SIZE, before)
        is_back(host)
        assert used(tmp_path) == [{"local": 5, "deny": 2, "allow": 2}[mode]]
        host.end()
        assert "Traceback" not in host.err
    rows = host.audit()
    assert [row["seq"] for row in rows] == list(range(2, len(rows) + 2))
    assert {row.get("outcome") for row in rows if row["decision"] == "allowed"} == {"ok"}


@root_only
def test_a_full_disk_in_mid_session_loses_no_count_and_recovers_when_there_is_room(tmp_path: Path) -> None:
    settings(tmp_path)  # each call waits for all of the budget
    place = tmp_path / "disk"
    options = ["--store", f"sqlite://{place}/mcpguard.db"]
    small = {"mcpguard.stores.sqlite.call_log.RING_BYTES": 1 << 20}  # calls go on until it is full
    with mounted(place, *SMALL), EagerHost(tmp_path, *script("obedient"), options=options, tuned=small) as host:
        assert codes(host, 2) == [200, 200]
        fill(place)
        called_until(host, lambda: told(host, "store unavailable") > 0)
        assert codes(host, 4) == [200] * 3 + [429]
        (place / "fill").unlink()
        is_back(host)
        assert codes(host, 1) == [429]
        host.end()
        assert "Traceback" not in host.err


@root_only
@pytest.mark.parametrize("mode", MODES)
def test_a_disk_that_is_full_before_a_session_is_told_and_used_when_there_is_room(tmp_path: Path, mode: str) -> None:
    settings(tmp_path, mode, timeout_ms=PATIENT_MS)
    place = tmp_path / "disk"
    with mounted(place, *SMALL):
        fill(place)
        with EagerHost(tmp_path, *script("obedient"), options=["--store", f"sqlite://{place}/mcpguard.db"]) as host:
            assert codes(host, 6) == {"local": [200] * 5 + [429], "deny": [503] * 6, "allow": [200] * 6}[mode]
            assert f"store unavailable: {place}/mcpguard.db" in host.err
            (place / "fill").unlink()
            is_back(host)
            assert codes(host, 1) == ([429] if mode == "local" else [200])
            assert "Traceback" not in host.err
            host.end()


def remount(place: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,bind,{how}", str(place)], check=True)  # noqa: S607


@root_only
def test_a_file_system_that_is_read_only_is_told_and_used_when_it_may_be_written(tmp_path: Path) -> None:
    settings(tmp_path, timeout_ms=PATIENT_MS)
    place = tmp_path / "disk"
    place.mkdir()
    with mounted(place, "--bind", str(place)):
        options = ["--store", f"sqlite://{place}/mcpguard.db"]
        with EagerHost(tmp_path, *script("obedient"), options=options) as host:
            assert codes(host, 2) == [200, 200]
            host.end()
        remount(place, "ro")
        with EagerHost(tmp_path, *script("obedient"), options=options) as host:
            assert codes(host, 6) == [200] * 5 + [429]
            assert "store unavailable" in host.err
            assert "ead-only" in host.err
            remount(place, "rw")
            is_back(host)
            assert codes(host, 1) == [429]
            assert "Traceback" not in host.err
            host.end()


@root_only
@pytest.mark.parametrize("how", ["ended", "killed"])
def test_the_audit_on_a_file_system_that_is_read_only_is_read_all_the_same(tmp_path: Path, how: str) -> None:
    settings(tmp_path, timeout_ms=PATIENT_MS)
    place = tmp_path / "disk"
    place.mkdir()
    with mounted(place, "--bind", str(place)):
        store = f"sqlite://{place}/mcpguard.db"
        with EagerHost(tmp_path, *script("obedient"), options=["--store", store]) as host:
            assert codes(host, 2) == [200, 200]
            if how == "killed":
                host.kill(signal.SIGKILL)
            else:
                host.end()
        remount(place, "ro")
        command = program("audit", "tail", "--json", "--store", store)
        done = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, check=True)
        remount(place, "rw")
    assert [json.loads(line)["decision"] for line in done.stdout.splitlines()] == ["policy", "allowed", "allowed"]
    assert done.stderr == ""


@root_only
@pytest.mark.parametrize("what", ["mcpguard.db", "."])
def test_a_database_that_nobody_may_change_is_told_and_calls_are_counted_all_the_same(tmp_path: Path, what: str) -> None:
    settings(tmp_path, timeout_ms=PATIENT_MS)
    path = tmp_path / "state" / "mcpguard.db"
    options = ["--store", f"sqlite://{path}"]
    with EagerHost(tmp_path, *script("obedient"), options=options) as host:
        assert codes(host, 2) == [200, 200]
        host.end()
    SqliteStore(
        path
    ).close()  # a slow disk may have cut off the wrapper's own drain: only a database that may be written is mended
    fixed = str(path.parent / what)
    if subprocess.run(["chattr", "+i", fixed], check=False).returncode:  # noqa: S607
        pytest.skip("this file system does not know files that nobody may change")
    try:
        with EagerHost(tmp_path, *script("obedient"), options=options) as host:
            assert codes(host, 6) == [200] * 3 + [429] * 3
            wait_for(host, "calls continue as long as mcpguard.db-calls has room")
            subprocess.run(["chattr", "-i", fixed], check=True)  # noqa: S607
            assert codes(host, 1) == [429]
            host.end()
            assert "store unavailable" not in host.err
            assert "Traceback" not in host.err
        with contextlib.closing(SqliteStore(path)) as store:
            assert [entry.record["decision"] for entry in store.entries()].count("allowed") == 5
    finally:
        subprocess.run(["chattr", "-i", fixed], check=True)  # noqa: S607


@root_only
@pytest.mark.parametrize("mode", MODES)
def test_a_store_of_another_account_is_told_and_does_what_is_configured(tmp_path: Path, mode: str) -> None:
    settings(tmp_path, mode, timeout_ms=PATIENT_MS)
    path = tmp_path / "state" / "mcpguard.db"
    options = ["--store", f"sqlite://{path}"]
    with EagerHost(tmp_path, *script("obedient"), options=options) as host:
        assert codes(host, 2) == [200, 200]
        host.end()
    for file in (*path.parent.iterdir(), path.parent):
        os.chown(file, 65534, 65534)
    bound = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]  # then permissions bind root, too
    with EagerHost(tmp_path, *script("obedient"), options=options, under=bound) as host:
        assert codes(host, 6) == {"local": [200] * 5 + [429], "deny": [503] * 6, "allow": [200] * 6}[mode]
        assert "store unavailable" in host.err
        assert "ermission denied" in host.err
        for file in (*path.parent.iterdir(), path.parent):
            os.chown(file, 0, 0)
        is_back(host)
        assert codes(host, 1) == ([429] if mode == "local" else [200])
        assert "Traceback" not in host.err
