"""Locks on files, between processes."""

import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mcpguard import locks as module
from mcpguard.files import open_private
from mcpguard.locks import FileLock, LifeSign, delete_if_dead, lock_file, shows_life
from tests.stores.conftest import ENOUGH_S, FakeClock, broken, open_descriptors


@pytest.fixture
def locks(tmp_path: Path) -> Iterator[list[FileLock]]:
    """Three objects for one lock."""
    made = [lock_file(tmp_path / "queue") for _ in range(3)]
    yield made
    for lock in made:
        lock.close()


def test_only_one_holds_the_lock_at_a_time(locks: list[FileLock]) -> None:
    first, second, third = locks
    assert first.acquire(0)
    assert not second.acquire(0.01)
    assert not third.acquire(0)
    first.release()
    assert second.acquire(ENOUGH_S)
    second.release()


@pytest.mark.parametrize(("late", "paused_s"), [(1, 0.2), (2, 0.1), (100, 0.05)])
def test_a_process_that_hardly_runs_still_tries_often(
    locks: list[FileLock], monkeypatch: pytest.MonkeyPatch, late: float, paused_s: float
) -> None:
    first, second, _ = locks
    clock = FakeClock(late)
    assert first.acquire(0)
    monkeypatch.setattr(module, "time", clock)
    assert not second.acquire(0.2)
    assert paused_s <= sum(clock.slept) < paused_s + 2 * module.LAST_PAUSE_S
    assert len(clock.slept) > 30
    assert max(clock.slept) == module.LAST_PAUSE_S


class Tries:
    """A lock that comes free at a later try, and a clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, free_at: int) -> None:
        self.count = 0
        self.clock = FakeClock()
        self._free_at = free_at
        monkeypatch.setattr(module, "_lock", self._lock)
        monkeypatch.setattr(module, "time", self.clock)

    def _lock(self, fd: int, how: int) -> None:
        self.count += 1
        if self.count < self._free_at:
            raise BlockingIOError


@pytest.mark.parametrize(("timeout_s", "free_at", "tries"), [(1, 1 + module.QUICK_TRIES, 1 + module.QUICK_TRIES), (0, 2, 1)])
def test_a_lock_that_comes_free_soon_is_taken_without_a_pause_and_tried_once_without_a_timeout(
    monkeypatch: pytest.MonkeyPatch, timeout_s: int, free_at: int, tries: int
) -> None:
    lock = Tries(monkeypatch, free_at)
    assert FileLock(-1).acquire(timeout_s) is (tries == free_at)
    assert lock.count == tries
    assert lock.clock.slept == []


def test_a_release_that_the_system_refuses_is_no_error_and_the_next_one_releases(locks: list[FileLock]) -> None:
    first, second, _ = locks
    assert first.acquire(0)
    with broken(module, "_lock", errno.ENOLCK):
        first.release()
    assert not second.acquire(0)
    assert first.acquire(0)
    first.release()
    assert second.acquire(0)


def test_a_locked_file_can_be_read_and_written_by_others(tmp_path: Path) -> None:
    path = tmp_path / "calls"
    path.write_bytes(b"record")
    held = lock_file(path)
    assert held.acquire(0)
    assert path.read_bytes() == b"record"
    with path.open("ab") as other:
        other.write(b" and more")
    assert path.read_bytes() == b"record and more"
    held.close()


def test_a_file_that_this_process_may_only_read_has_the_same_locks(tmp_path: Path) -> None:
    path = tmp_path / "sign"
    path.touch(mode=0o400)
    fds = [os.open(path, os.O_RDONLY) for _ in range(2)]
    assert [FileLock(fd).share() for fd in fds] == [True, True]
    assert not module.try_lock(fds[0])
    os.close(fds[1])
    assert module.try_lock(fds[0])
    assert shows_life(path)
    os.close(fds[0])
    assert not shows_life(path)


def test_a_lock_that_is_shared_is_held_alone_by_nobody_until_the_others_have_closed_it(locks: list[FileLock]) -> None:
    one, two, _ = locks
    assert one.acquire(0)
    assert one.share()
    assert not two.acquire(0)
    assert two.share()
    assert not one.acquire(0)
    assert one.share()
    one.close()
    assert two.acquire(0)


def test_a_sign_of_life_is_shown_until_it_ends_and_its_file_is_deleted(tmp_path: Path) -> None:
    path = tmp_path / "sign"
    before = open_descriptors()
    assert not shows_life(path)
    sign = LifeSign(path)
    for _ in range(2):
        delete_if_dead(path)
        assert shows_life(path)
        assert sign.is_there()
    sign.end()
    assert not shows_life(path)
    assert not path.exists()
    path.touch()
    assert not shows_life(path)
    for _ in range(2):
        delete_if_dead(path)
    assert (path.exists(), open_descriptors()) == (False, before)


def test_several_can_ask_at_once_whether_a_process_runs_that_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "sign"
    path.touch()
    with path.open() as asking:
        assert FileLock(asking.fileno()).share()
        assert not shows_life(path)
    delete_if_dead(path)
    assert not path.exists()


def test_a_sign_of_life_is_not_given_with_a_file_that_others_delete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sign"

    def make_and_lose(file: Path) -> int:
        fd = open_private(file)
        delete_if_dead(file)
        return fd

    def make_while_it_is_examined(file: Path) -> int:
        fd = open_private(file)
        examined.append(open_private(file))
        assert FileLock(examined[0]).share()
        return fd

    examined: list[int] = []
    for make in (make_and_lose, make_while_it_is_examined)[sys.platform == "win32" :]:  # there nobody deletes an open file
        monkeypatch.setattr(module, "open_private", make)
        with pytest.raises(BlockingIOError):
            LifeSign(path)
    os.close(examined[0])


@pytest.mark.posix
def test_a_process_whose_file_may_not_be_read_is_taken_to_run(tmp_path: Path) -> None:
    with broken(os, "open", errno.EACCES):
        assert shows_life(tmp_path / "sign")


@pytest.mark.posix
def test_a_pipe_in_place_of_a_life_sign_is_looked_at_without_waiting_and_deleted(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "sign")
    assert not shows_life(tmp_path / "sign")
    delete_if_dead(tmp_path / "sign")
    assert list(tmp_path.iterdir()) == []
