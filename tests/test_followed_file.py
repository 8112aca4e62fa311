"""A change of a folder's entries is noticed, however soon it follows another one."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mcpguard.followed_file import FolderChanges

pytestmark = pytest.mark.posix


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "file"
    file.write_text("x")
    return file


@pytest.fixture
def folder(file: Path) -> Iterator[FolderChanges]:
    folder = FolderChanges(file.parent)
    yield folder
    folder.close()


def settle(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a minute pass."""
    later = path.stat().st_ctime_ns + 60_000_000_000
    monkeypatch.setattr(time, "time_ns", lambda: later)


@pytest.mark.parametrize(
    "change",
    [Path.unlink, lambda file: file.rename(file.with_name("away")), lambda file: file.with_name("new").write_text("y")],
    ids=["remove", "rename", "make"],
)
def test_a_change_in_a_folder_that_has_settled_is_noticed_once(
    folder: FolderChanges, file: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], object]
) -> None:
    settle(file.parent, monkeypatch)
    assert [folder.may_have_changed() for _ in range(3)] == [True, False, False]
    change(file)
    settle(file.parent, monkeypatch)
    assert [folder.may_have_changed() for _ in range(3)] == [True, False, False]


def test_a_file_that_replaces_another_is_noticed(folder: FolderChanges, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = file.with_name("other")
    other.write_text("y")
    settle(file.parent, monkeypatch)
    assert [folder.may_have_changed() for _ in range(2)] == [True, False]
    other.replace(file)
    assert folder.may_have_changed()


def test_writing_into_a_file_is_no_change_of_its_folder(
    folder: FolderChanges, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(file.parent, monkeypatch)
    folder.may_have_changed()
    file.write_text("y")
    assert not folder.may_have_changed()


def test_a_folder_that_has_just_changed_may_have_changed_again(
    folder: FolderChanges, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamp = file.parent.stat()
    monkeypatch.setattr(time, "time_ns", lambda: stamp.st_ctime_ns)
    assert [folder.may_have_changed() for _ in range(3)] == [True, True, True]
    os.utime(file.parent, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert folder.may_have_changed()


def test_a_folder_that_cannot_be_opened_may_always_have_changed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError

    monkeypatch.setattr(os, "open", refuse)
    folder = FolderChanges(file.parent)
    settle(file.parent, monkeypatch)
    assert [folder.may_have_changed() for _ in range(3)] == [True] * 3
    folder.close()
