import errno
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mcpguard import files
from mcpguard.files import SETTLING_NS, FolderChanges, FollowedFile
from tests.build import refusing


@pytest.mark.parametrize(("age_ns", "is_read"), [(SETTLING_NS, True), (SETTLING_NS + 1, False)])
def test_a_file_that_has_just_changed_is_read_again_because_two_changes_can_have_the_same_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, age_ns: int, *, is_read: bool
) -> None:
    path = tmp_path / "policy.toml"
    path.write_text("1")
    found = os.stat(path)  # noqa: PTH116 - what the file's `look` asks for
    if sys.platform == "win32":
        monkeypatch.setattr(files, "_changed_ns", lambda _: found.st_mtime_ns)
    monkeypatch.setattr(time, "time_ns", lambda: max(found.st_mtime_ns, found.st_ctime_ns) + age_ns)
    monkeypatch.setattr(os, "stat", lambda *_, **__: found)
    file = FollowedFile(path)
    assert file.look()
    path.write_text("2")
    assert file.look() is is_read


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "file"
    file.write_text("x")
    file.with_name("other").write_text("y")
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


@pytest.mark.posix
@pytest.mark.parametrize(
    ("change", "is_one"),
    [
        (Path.unlink, True),
        (lambda file: file.rename(file.with_name("away")), True),
        (lambda file: file.with_name("other").replace(file), True),
        (lambda file: file.with_name("new").write_text("y"), True),
        (lambda file: file.write_text("y"), False),
    ],
    ids=["remove", "rename", "replace", "make", "write"],
)
def test_a_change_of_the_files_in_a_folder_that_has_settled_is_noticed_once(
    folder: FolderChanges, file: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], object], *, is_one: bool
) -> None:
    settle(file.parent, monkeypatch)
    assert [folder.may_have_changed() for _ in range(3)] == [True, False, False]
    change(file)
    settle(file.parent, monkeypatch)
    assert [folder.may_have_changed() for _ in range(3)] == [is_one, False, False]


@pytest.mark.posix
def test_a_folder_that_has_just_changed_may_have_changed_again(
    folder: FolderChanges, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamp = file.parent.stat()
    monkeypatch.setattr(time, "time_ns", lambda: stamp.st_ctime_ns + SETTLING_NS)
    assert [folder.may_have_changed() for _ in range(3)] == [True, True, True]


def test_a_folder_that_cannot_be_opened_may_always_have_changed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "open", refusing(errno.EACCES))
    folder = FolderChanges(file.parent)
    settle(file.parent, monkeypatch)
    assert [folder.may_have_changed() for _ in range(3)] == [True] * 3
    folder.close()
