"""Files are replaced as a whole. `clients/test_writing.py` has the tests of a process that is killed."""

import contextlib
import ctypes
import errno
import os
import stat
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mcpguard import whole_files
from mcpguard.errors import McpguardError
from tests.build import of_another_group, raising


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file in a folder of its own."""
    file = tmp_path / "shared" / "policy.toml"
    file.parent.mkdir()
    file.write_bytes(b"old")
    return file


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


refuse = raising(PermissionError(errno.EPERM, os.strerror(errno.EPERM)))


@pytest.mark.posix
def test_a_new_file_is_for_this_account_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o377)
    try:
        whole_files.write(tmp_path / "policy.toml", b"new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "policy.toml").stat().st_mode) == 0o600
    assert names(tmp_path) == ["policy.toml"]


@pytest.mark.posix
@pytest.mark.parametrize("must_keep_owner", [False, True])
def test_a_file_whose_owner_cannot_be_kept_is_replaced_unless_its_owner_matters(
    file: Path, monkeypatch: pytest.MonkeyPatch, *, must_keep_owner: bool
) -> None:
    file.chmod(0o640)
    monkeypatch.setattr(os, "fstat", of_another_group(file))
    monkeypatch.setattr(os, "fchown", refuse)
    with pytest.raises(PermissionError) if must_keep_owner else contextlib.nullcontext():
        whole_files.replace(file, b"new", must_keep_owner=must_keep_owner)
    assert file.read_bytes() == (b"old" if must_keep_owner else b"new")
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert names(file.parent) == ["policy.toml"]


def test_a_file_that_cannot_be_written_is_left_and_named(tmp_path: Path) -> None:
    with pytest.raises(McpguardError, match=r"none.policy\.toml: cannot be written: No such file or directory$"):
        whole_files.write(tmp_path / "none" / "policy.toml", b"new")


def test_a_new_file_gets_its_name_when_it_is_complete_and_takes_nobody_elses(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    with whole_files.new_file(path) as file:
        file.write("é\n")
        assert not path.exists()
    assert path.read_bytes() == "é\n".encode()
    with pytest.raises(FileExistsError), whole_files.new_file(path) as file:
        file.write("other")
    with pytest.raises(ZeroDivisionError), whole_files.new_file(tmp_path / "more.csv"):
        raise ZeroDivisionError
    assert path.read_text("utf-8") == "é\n"
    assert names(tmp_path) == ["rows.csv"]


def test_a_new_file_gets_its_name_on_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", refuse)
    with whole_files.new_file(tmp_path / "rows.csv") as file:
        file.write("new")
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("rows.csv", "new")]


def test_an_unfinished_file_that_cannot_be_removed_hinders_nothing(tmp_path: Path) -> None:
    stuck, left = tmp_path / ".policy.toml.mcpguard-a", tmp_path / ".policy.toml.mcpguard-b"
    stuck.mkdir()
    left.write_bytes(b"half")
    whole_files.remove_leftovers(tmp_path / "policy.toml", older_than_s=0)
    assert names(tmp_path) == [stuck.name]
    whole_files.remove_leftovers(tmp_path / "none" / "policy.toml")


def test_an_old_unfinished_file_is_removed_by_the_next_new_file(tmp_path: Path) -> None:
    left = tmp_path / ".rows.csv.mcpguard-a"
    left.write_bytes(b"half")
    os.utime(left, (0, 0))
    with whole_files.new_file(tmp_path / "rows.csv"):
        pass
    assert names(tmp_path) == ["rows.csv"]


@pytest.mark.posix
@pytest.mark.parametrize(("module", "at"), [(os, "write"), (os, "fchmod"), (whole_files, "force")])
def test_who_swaps_a_name_in_a_shared_folder_neither_changes_another_file_nor_gets_its_mode(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: object, at: str
) -> None:
    victim = tmp_path / "id_rsa"
    file.chmod(0o666)
    victim.write_bytes(b"key")
    victim.chmod(0o600)
    function = getattr(module, at)

    def swapping(*args: Any, **options: Any) -> Any:
        monkeypatch.setattr(module, at, function)
        file.unlink()
        file.symlink_to(victim)
        return function(*args, **options)

    monkeypatch.setattr(module, at, swapping)
    with pytest.raises(McpguardError, match="cannot be written: its name leads to another file by now") as error:
        whole_files.write(file, b"new")
    assert error.value.hint.startswith("check who else may write to its folder, then run this again")
    assert (victim.read_bytes(), stat.S_IMODE(victim.stat().st_mode)) == (b"key", 0o600)
    assert names(file.parent) == ["policy.toml"]


@pytest.mark.posix
def test_a_link_is_not_followed_because_the_caller_has_followed_all(file: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(file)
    with pytest.raises(McpguardError, match="cannot be written: Too many levels of symbolic links"):
        whole_files.write(tmp_path / "link", b"new")
    assert file.read_bytes() == b"old"


class Reader:
    """A program that has a file open. Time passes only while somebody sleeps, and the program closes the file after some of it.

    Elsewhere than on Windows, `os.replace` is made to refuse as it does there.
    """

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch, *, reads_s: float) -> None:
        self.slept_s = 0.0
        self._reads_s = reads_s
        self._file = path.open("rb")
        self._replace = os.replace
        monkeypatch.setattr(time, "monotonic", lambda: self.slept_s)
        monkeypatch.setattr(time, "sleep", self._sleep)
        if sys.platform != "win32":
            monkeypatch.setattr(os, "replace", self._replace_if_closed)

    def _sleep(self, s: float) -> None:
        self.slept_s += s
        if self.slept_s >= self._reads_s:
            self.close()

    def _replace_if_closed(self, *names: Any) -> None:
        if not self._file.closed:
            refusal = PermissionError(errno.EACCES, "Access is denied")
            refusal.winerror = 5  # type: ignore[attr-defined]
            raise refusal
        self._replace(*names)

    def close(self) -> None:
        self._file.close()


def test_a_file_that_another_program_has_open_is_replaced_once_closed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Reader(file, monkeypatch, reads_s=1)
    whole_files.write(file, b"new")
    assert 1 <= reader.slept_s < 1.1
    assert file.read_bytes() == b"new"


def test_a_file_that_another_program_keeps_open_is_left_with_a_hint(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = Reader(file, monkeypatch, reads_s=60)
    with pytest.raises(McpguardError, match=r"policy\.toml: cannot be written: another program has it open$") as error:
        whole_files.write(file, b"new")
    assert error.value.hint == f"{whole_files.IN_USE_HINT}; the file is unchanged"
    assert whole_files.IN_USE_S <= reader.slept_s < whole_files.IN_USE_S + 0.1
    reader.close()
    assert (names(file.parent), file.read_bytes()) == (["policy.toml"], b"old")


@pytest.mark.posix
@pytest.mark.parametrize("refused", [False, True])
def test_a_replaced_file_keeps_its_attributes_and_access_list_on_macos_and_is_written_if_they_are_refused(
    file: Path, monkeypatch: pytest.MonkeyPatch, *, refused: bool
) -> None:
    asked: list[tuple[bytes, int, int | None, int]] = []

    class Libc:
        def __init__(self, name: str | None) -> None:
            assert name is None

        def fcopyfile(self, original: int, new: int, state: None, flags: int) -> int:
            asked.append((os.pread(original, 9, 0), len(os.pread(new, 9, 0)), state, flags))
            return -1 if refused else 0

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", Libc)
    monkeypatch.setattr(whole_files, "force", os.fsync)
    whole_files.write(file, b"newer")
    assert asked == [(b"old", 5, None, 0b101)]
    assert file.read_bytes() == b"newer"
