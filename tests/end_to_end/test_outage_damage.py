"""A store's file that is damaged, removed, replaced, of another program or of another machine."""

import contextlib
import os
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from mcpguard.stores.sqlite.call_log import log_path

from .host import PATIENT_MS, audit, script
from .outages import EagerHost, codes, is_back, is_drained, root_only, settings, told, used, wait_for

pytestmark = pytest.mark.waits


def overwrite_pages(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(1024)
        file.write(b"\xa5" * (path.stat().st_size - 1024))


def cut_in_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2048 * 1024)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def overwrite_header(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"garbage at its beginning" * 4)


DAMAGES: list[Callable[[Path], None]] = [overwrite_pages, cut_in_half, empty, overwrite_header]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("mode", ["local", "deny"])
def test_a_database_that_is_damaged_before_a_session_is_reported_left_alone_and_replaced_by_hand(
    tmp_path: Path, damage: Callable[[Path], None], mode: str
) -> None:
    settings(tmp_path, mode, timeout_ms=PATIENT_MS)
    with EagerHost(tmp_path, *script("obedient")) as host:
        assert codes(host, 2) == [200, 200]
        host.end()
    path = tmp_path / "mcpguard.db"
    damage(path)
    before = path.read_bytes()
    with EagerHost(tmp_path, *script("obedient")) as host:
        assert codes(host, 6) == ([200] * 5 + [429] if mode == "local" else [503] * 6)
        assert codes(host, 1, "drop") == [403]
        assert f"store unavailable: {path} is damaged: " in host.err
        assert re.search(r"\((if its disk works, )?move it away: a new one is made, with new counters\)", host.err)
        assert path.read_bytes() == before
        for file in tmp_path.glob("mcpguard.db*"):
            file.rename(tmp_path / f"old-{file.name}")
        is_back(host)
        assert used(tmp_path) == ([5] if mode == "local" else [])
        assert codes(host, 1) == ([429] if mode == "local" else [200])
        host.end()
        assert (told(host, "store unavailable"), told(host, "store is back")) == (1, 1)
        assert "Traceback" not in host.err
    assert (tmp_path / "old-mcpguard.db").read_bytes() == before


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_database_that_is_damaged_in_mid_session_is_reported_and_not_used_again_until_it_is_whole(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    settings(tmp_path, timeout_ms=PATIENT_MS)
    path, copy = tmp_path / "mcpguard.db", tmp_path / "copy.db"
    with EagerHost(tmp_path, *script("obedient")) as host:
        assert codes(host, 1) == [200]
    with EagerHost(tmp_path, *script("obedient")) as host:
        assert codes(host, 1) == [200]
        is_drained(path, 4)
        with contextlib.closing(sqlite3.connect(path)) as db, contextlib.closing(sqlite3.connect(copy)) as to:
            db.backup(to)
        damage(path)
        wait_for(host, "store unavailable")
        assert " is damaged: " in host.err
        assert codes(host, 5) == [200] * 3 + [429] * 2
        for file in tmp_path.glob("mcpguard.db*"):
            file.unlink()
        copy.rename(path)
        is_back(host)
        assert used(tmp_path) == [5]
        assert codes(host, 1) == [429]
        assert (told(host, "store unavailable"), told(host, "store is back")) == (1, 1)
        assert "Traceback" not in host.err
    allowed = [row for row in audit(tmp_path) if row["decision"] == "allowed"]
    assert [row["outcome"] for row in allowed[-3:]] == ["ok"] * 3  # one of before may have ended after the copy was made


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_database_that_is_damaged_in_mid_session_is_left_as_it_is_when_the_session_ends(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    settings(tmp_path, timeout_ms=PATIENT_MS)
    path = tmp_path / "mcpguard.db"
    with EagerHost(tmp_path, *script("obedient")) as host:
        assert codes(host, 1) == [200]
    with EagerHost(tmp_path, *script("obedient")) as host:
        assert codes(host, 1) == [200]
        damage(path)
        before = path.read_bytes()
        wait_for(host, "is damaged")
        host.end()
    assert path.read_bytes() == before
    with EagerHost(tmp_path, *script("obedient")) as host:  # its log is still there
        assert codes(host, 1) == [200]
        host.end()
    assert path.read_bytes() == before


def unlink(path: Path) -> None:
    path.unlink()


def unlink_all(path: Path) -> None:
    for file in path.parent.iterdir():
        file.unlink()


def remove_the_folder(path: Path) -> None:
    shutil.rmtree(path.parent)


def rename_another_over_it(path: Path) -> None:
    other = path.with_name("other.db")
    with contextlib.closing(sqlite3.connect(other)) as db:
        db.execute("CREATE TABLE other (x)")
    other.rename(path)


@pytest.mark.parametrize("remove", [unlink, unlink_all, remove_the_folder, rename_another_over_it])
def test_a_store_that_is_removed_or_replaced_is_said_and_made_anew_with_what_was_admitted_meanwhile(
    tmp_path: Path, remove: Callable[[Path], None]
) -> None:
    settings(tmp_path, timeout_ms=PATIENT_MS)
    path = tmp_path / "state" / "mcpguard.db"
    with EagerHost(tmp_path, *script("obedient"), options=["--store", f"sqlite://{path}"]) as host:
        assert codes(host, 2) == [200, 200]
        is_drained(path, 3)
        remove(path)
        wait_for(host, "was removed or replaced")
        assert codes(host, 4) == [200] * 3 + [429]
        is_back(host)
        assert codes(host, 3) == [200, 200, 429]  # three of the meantime, and none of before
        host.end()
        assert "Traceback" not in host.err


def put_back(log: Path, before: bytes) -> None:
    with log.open("r+b") as file:
        file.write(before)


def replace(log: Path, before: bytes) -> None:
    log.with_name("new").write_bytes(before)
    log.with_name("new").rename(log)


LOG_DAMAGES: dict[str, Callable[[Path, bytes], object]] = {
    "removed": lambda log, _: log.unlink(),
    "moved away": lambda log, _: log.rename(log.with_name("away")),
    "cut": lambda log, _: os.truncate(log, 5000),
    "emptied": lambda log, _: os.truncate(log, 0),
    "overwritten": lambda log, _: put_back(log, b"\xa5" * log.stat().st_size),
    "put back": put_back,
    "replaced": replace,
}


@pytest.mark.parametrize("damage", LOG_DAMAGES)
@pytest.mark.parametrize("mode", ["local", "deny"])
def test_a_call_log_that_is_touched_under_running_wrappers_is_said_and_no_call_is_counted_by_itself(
    tmp_path: Path, damage: str, mode: str
) -> None:
    settings(tmp_path, mode, timeout_ms=PATIENT_MS)
    path = tmp_path / "mcpguard.db"
    log = Path(log_path(path))
    late = {"mcpguard.stores.outage.breaker.PROBE_US": (3_000_000, 3_200_000)}  # after all that is checked before
    with (
        EagerHost(tmp_path, *script("obedient"), tuned=late) as one,
        EagerHost(tmp_path, *script("obedient"), tuned=late) as other,
    ):
        assert codes(one, 1) == [200]
        is_drained(path, 3)
        before = log.read_bytes()
        assert codes(other, 1) == codes(one, 1) == [200]
        is_drained(path, 5, outcomes=3)  # so that no wrapper appends to the log while it is touched
        LOG_DAMAGES[damage](log, before)
        found = codes(one, 1) + codes(other, 1)
        assert found == ([200, 200] if mode == "local" else [503, 503])
        for host in (one, other):
            assert told(host, "store unavailable") == 1
        if log.exists():
            log.unlink()
        is_back(one)
        is_back(other)
        left = 0 if mode == "local" else 2
        assert codes(one, 3) == [200] * left + [429] * (3 - left)
        assert codes(other, 1) == [429]
        assert "Traceback" not in one.err + other.err


@pytest.mark.parametrize("mode", ["local", "deny", "allow"])
def test_a_store_of_a_later_program_is_refused_with_a_word_and_left_alone(tmp_path: Path, mode: str) -> None:
    settings(tmp_path, mode, timeout_ms=PATIENT_MS)
    with EagerHost(tmp_path, *script("obedient")) as host:
        assert codes(host, 2) == [200, 200]
    path = tmp_path / "mcpguard.db"
    with contextlib.closing(sqlite3.connect(path)) as db:
        now = db.execute("PRAGMA user_version").fetchone()[0]
        db.execute("PRAGMA user_version = 99")
    with EagerHost(tmp_path, *script("obedient")) as host:
        assert codes(host, 6) == {"local": [200] * 5 + [429], "deny": [503] * 6, "allow": [200] * 6}[mode]
        assert f"{path} has schema 99" in host.err
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.execute(f"PRAGMA user_version = {now}")
        is_back(host)
        assert used(tmp_path) == [7 if mode == "local" else 2]


@root_only
def test_a_file_that_a_machine_with_another_clock_uses_is_refused_until_that_one_has_gone(tmp_path: Path) -> None:
    settings(tmp_path, timeout_ms=PATIENT_MS)
    elsewhere = ["unshare", "--time", "--boottime", "100000"]
    if subprocess.run([*elsewhere, "true"], check=False).returncode:
        pytest.skip("there are no time namespaces here")
    with contextlib.ExitStack() as stack:
        with EagerHost(tmp_path, *script("obedient"), under=elsewhere) as other:
            assert codes(other, 2) == [200, 200]
            host = stack.enter_context(EagerHost(tmp_path, *script("obedient")))
            assert codes(host, 6) == [200] * 5 + [429]
            assert "is in use by another machine, or by a container with a clock of its own" in host.err
            assert codes(other, 1) == [200]
        is_back(host)
        assert used(tmp_path) == [8]
        assert codes(host, 1) == [429]
