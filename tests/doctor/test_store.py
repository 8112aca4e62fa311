import contextlib
import itertools
import re
import shutil
import sqlite3
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from mcpguard.doctor import store
from tests import redis_servers
from tests.cli.command import BOUND, calls, permissions_bind, process, sqlite
from tests.doctor.checks import doctor, of, only
from tests.end_to_end.outages import stopped_holder


@pytest.fixture
def db(tmp_path: Path) -> Path:
    """A store in which a wrapper has recorded a call."""
    calls(tmp_path, "search", 1)
    return tmp_path / "mcpguard.db"


def test_an_open_store_tells_its_size_and_oldest_rows_age(tmp_path: Path, db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "time", SimpleNamespace(time=lambda: time.time() + 3 * 86_400))
    assert re.fullmatch(rf"{re.escape(str(db))}: [\d.]+ MB, oldest row 3 d old", only(doctor(tmp_path), "store").detail)


def test_a_damaged_store_fails(tmp_path: Path, db: Path) -> None:
    with contextlib.closing(sqlite3.connect(db)) as opened, opened:
        opened.execute("UPDATE fragment SET json = '{'")
    assert only(doctor(tmp_path, status=1), "store").detail == f"row 1 of {db} is damaged"
    db.write_bytes(b"x" * 9000)
    assert only(doctor(tmp_path, status=1), "store").detail.startswith(f"{db} ")


def test_a_store_that_has_lost_calls_is_noted(tmp_path: Path, db: Path) -> None:
    log = Path(f"{db}-calls")
    log.unlink()
    _, lost = of(doctor(tmp_path), "store")
    assert lost.is_advice
    assert lost.detail.startswith(f"{log} was removed: ")


def test_a_call_log_whose_lock_does_not_come_free_fails_while_another_process_waits_for_it(tmp_path: Path, db: Path) -> None:
    log, lock = Path(f"{db}-calls"), Path(f"{db}-lock")  # a wrapper that opens the store again holds the lock meanwhile
    with stopped_holder("hold", log), stopped_holder("hold", lock):
        found = only(doctor(tmp_path, status=1), "store")
    assert found.detail == f"{log} did not come free in time"
    assert found.hint == "look for a stopped process that holds its lock"
    assert only(doctor(tmp_path), "store").ok


@permissions_bind
@pytest.mark.parametrize(
    ("closed", "is_made", "told"),
    [("mcpguard.db", True, "/mcpguard.db"), ("", False, "/mcpguard.db"), ("", True, " cannot be written to")],
)
def test_a_store_that_cannot_be_written_to_or_made_fails(tmp_path: Path, closed: str, is_made: bool, told: str) -> None:
    if is_made:
        calls(tmp_path, "search", 1)
    (tmp_path / closed).chmod(0o400 if closed else 0o500)
    done = process(tmp_path, "doctor", under=BOUND)
    tmp_path.chmod(0o700)
    shown = " ".join(done.stdout.split())
    assert (done.returncode, "ok store" in shown) == (1, False)
    assert f"FAIL store: {tmp_path}{told}" in shown


@permissions_bind
def test_a_copy_beside_the_store_is_not_the_stores(tmp_path: Path, db: Path) -> None:
    copy = Path(f"{db}.bak")
    copy.write_bytes(bytes(90_000_000))
    copy.chmod(0o400)
    shown = " ".join(process(tmp_path, "doctor", under=BOUND).stdout.split())
    assert "FAIL store" not in shown
    assert f"ok store: {db}: 8." in shown


def test_a_store_that_is_not_made_yet_is_good_though_its_folders_are_missing(tmp_path: Path) -> None:
    checks = doctor(tmp_path, "--store", f"{sqlite(tmp_path)}/state/deep/mcpguard.db")
    assert only(checks, "store").detail == f"{tmp_path / 'state/deep/mcpguard.db'}: not made yet; the first server makes it"
    assert only(checks, "space").detail.endswith(f" free in {tmp_path}")
    assert list(tmp_path.iterdir()) == []


def test_a_store_in_place_of_a_folder_fails(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = only(doctor(tmp_path, "--store", f"{sqlite(tmp_path)}/file/mcpguard.db", status=1), "store")
    assert found.detail == f"{tmp_path / 'file/mcpguard.db'} cannot be made: {tmp_path / 'file'} is not a folder"


@pytest.mark.posix
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc")
def test_a_folder_in_which_even_root_can_make_nothing_fails(tmp_path: Path) -> None:
    found = only(doctor(tmp_path, "--store", "sqlite:///proc/acme/mcpguard.db", status=1), "store")
    assert found.detail.startswith("/proc/acme/mcpguard.db cannot be made: /proc cannot be written to: ")


@pytest.mark.usefixtures("db")
def test_little_free_space_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for free, ok, is_advice in ((1 << 20, False, False), (100 << 20, True, True), (1 << 40, True, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        found = only(doctor(tmp_path, status=int(not ok)), "space")
        assert (found.ok, found.is_advice) == (ok, is_advice)


def test_a_redis_server_tells_its_rows_and_memory(tmp_path: Path) -> None:
    with redis_servers.running(tmp_path / "server") as server:
        options = ("--store", server.url)
        checks = doctor(tmp_path, *options)
        found, warning = of(checks, "store")
        assert f"{server.url}, namespace default: answers in " in found.detail
        assert found.detail.endswith(" ms, no rows yet")
        assert (found.is_advice, warning.is_advice) == (False, True)
        assert "keeps nothing on disk" in warning.detail
        assert only(checks, "space").detail.endswith(" of memory used, without a bound")
        calls(tmp_path, "search", 1, *options)
        assert of(doctor(tmp_path, *options), "store")[0].detail.endswith(" s old")
        server.command("CONFIG", "SET", "maxmemory", "4gb")
        assert only(doctor(tmp_path, *options), "space").detail.endswith(" of memory used of 4.3 GB")
        server.command("CONFIG", "SET", "maxmemory", "3mb")
        assert not only(doctor(tmp_path, *options, status=1), "space").ok


def test_a_redis_server_that_is_slower_than_a_call_waits_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with redis_servers.running(tmp_path / "server") as server:
        times_s = itertools.count(time.monotonic(), 0.5)
        monkeypatch.setattr(store, "time", SimpleNamespace(time=time.time, monotonic=lambda: next(times_s)))
        found = of(doctor(tmp_path, "--store", server.url), "store")[0]
    assert found.is_advice
    assert ": answers in 500 ms, " in found.detail


def test_a_redis_server_that_refuses_the_password_fails_without_showing_it(tmp_path: Path) -> None:
    with redis_servers.running(tmp_path / "server", "--requirepass", "right-s3cret") as server:
        url = f"redis://:wrong-s3cret@127.0.0.1:{server.port}/0"
        checks = doctor(tmp_path, status=1, MCPGUARD_STORE=url)
        assert only(checks, "store").detail.startswith(f"{server.url} refuses: ")
        assert "s3cret" not in str(checks)
