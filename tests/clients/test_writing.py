"""Files of clients are written as a whole or not at all."""

import errno
import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from mcpguard import whole_files
from mcpguard.clients import writing
from mcpguard.clients.writing import NotWritten, remove, replace
from tests.end_to_end.host import DEADLINE_S, ROOT
from tests.links import follows_links

IS_ROOT = sys.platform != "win32" and os.geteuid() == 0
OLD, NEW = b'{"old": 1}\n', b'{"new": 22}\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    folder = tmp_path / "client"
    folder.mkdir()
    (folder / "mcp.json").write_bytes(OLD)
    return folder / "mcp.json"


@pytest.fixture
def backups(tmp_path: Path) -> Path:
    return tmp_path / "state" / "backups"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_content_is_replaced_and_the_old_one_is_saved_for_this_account_alone(file: Path, backups: Path) -> None:
    replace(file, OLD, NEW, backups=backups)
    assert file.read_bytes() == NEW
    assert names(file.parent) == ["mcp.json"]
    (backup,) = backups.iterdir()
    assert backup.read_bytes() == OLD
    assert backup.name.endswith("client-mcp.json")
    if sys.platform != "win32":  # which has access lists instead
        assert stat.S_IMODE(backup.stat().st_mode) == 0o600
        assert stat.S_IMODE(backups.stat().st_mode) == 0o700


def test_no_backup_is_ever_overwritten(file: Path, backups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "strftime", lambda *_: "20261126T200000Z")
    for number in range(5):
        replace(file, file.read_bytes(), b"%d" % number, backups=backups)
    assert sorted(path.read_bytes() for path in backups.iterdir()) == sorted([OLD, b"0", b"1", b"2", b"3"])


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o664])
def test_the_mode_and_the_owner_are_kept_and_the_time_is_new(file: Path, backups: Path, mode: int) -> None:
    file.chmod(mode)
    os.utime(file, (1, 1))
    if IS_ROOT:
        os.chown(file, 1234, 1235)
    before = file.stat()
    replace(file, OLD, NEW, backups=backups)
    after = file.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert after.st_mtime > 1_000_000


@pytest.mark.skipif(not hasattr(os, "setxattr"), reason="this system has no extended attributes in Python")
def test_extended_attributes_are_kept(file: Path, backups: Path) -> None:
    try:
        os.setxattr(file, "user.origin", b"dotfiles")
    except OSError:
        pytest.skip("this file system has no extended attributes")
    replace(file, OLD, NEW, backups=backups)
    assert os.getxattr(file, "user.origin") == b"dotfiles"


@follows_links
def test_a_link_stays_a_link_and_its_target_is_replaced(file: Path, backups: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    second.symlink_to(file)
    first.symlink_to("second.json")
    replace(first, OLD, NEW, backups=backups)
    assert (first.is_symlink(), second.is_symlink(), file.is_symlink()) == (True, True, False)
    assert file.read_bytes() == NEW


@pytest.mark.parametrize(
    ("swap", "what", "hint", "content"),
    [
        (lambda file, other: file.write_bytes(b"theirs"), "another program has changed it", "run this again", b"theirs"),
        (lambda file, other: relinked(file.parent / "link", other), "another program has changed it", "run this again", OLD),
        pytest.param(
            *(
                lambda file, other: other.replace(file),
                "its name leads to another file by now",
                "check who else may write",
                OLD,
            ),
            marks=pytest.mark.posix,
        ),
    ],
    ids=["content", "link", "name"],
)
@follows_links
def test_a_file_that_changes_right_before_the_rename_is_left_with_a_hint(
    file: Path,
    backups: Path,
    monkeypatch: pytest.MonkeyPatch,
    swap: Callable[[Path, Path], object],
    what: str,
    hint: str,
    content: bytes,
) -> None:
    link, other = file.parent / "link", file.with_name("other")
    link.symlink_to(file)
    other.write_bytes(OLD)
    fill = whole_files._fill

    def slow(*args: Any, **kwargs: Any) -> None:
        fill(*args, **kwargs)
        if args[1] is not None:  # not the copy
            swap(file, other)

    monkeypatch.setattr(whole_files, "_fill", slow)
    with pytest.raises(NotWritten, match=f"not changed.* {what}") as error:
        replace(link, OLD, NEW, backups=backups)
    assert error.value.hint.startswith(hint)
    assert file.read_bytes() == content
    assert set(names(file.parent)) <= {"link", "mcp.json", "other"}


def relinked(link: Path, target: Path) -> None:
    link.unlink()
    link.symlink_to(target)


def test_a_change_right_after_the_rename_is_reported(file: Path, backups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole_files, "sync_folder", lambda at: at == file.parent and file.write_bytes(b"the client's own copy"))
    with pytest.raises(NotWritten, match="right afterwards"):
        replace(file, OLD, NEW, backups=backups)
    assert file.read_bytes() == b"the client's own copy"


def test_a_file_that_cannot_be_read_right_after_the_rename_is_not_said_to_be_unchanged(
    file: Path, backups: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Path) -> NoReturn:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(
        whole_files, "sync_folder", lambda at: at == file.parent and monkeypatch.setattr(writing, "read_at_once", fail)
    )
    replace(file, OLD, NEW, backups=backups)
    assert file.read_bytes() == NEW


def test_a_missing_file_is_made_with_its_folder(file: Path, backups: Path) -> None:
    new = file.parent / "hooks" / "mcpguard.json"
    replace(new, None, NEW, backups=backups)
    assert new.read_bytes() == NEW


@pytest.mark.parametrize("old", [None, b"something else"])
def test_a_file_that_is_not_as_expected_is_neither_replaced_nor_removed(file: Path, backups: Path, old: bytes | None) -> None:
    with pytest.raises(NotWritten, match="another program has changed it"):
        replace(file, old, NEW, backups=backups)
    with pytest.raises(NotWritten):
        remove(file, b"something else", backups=backups)
    assert (file.read_bytes(), names(file.parent)) == (OLD, ["mcp.json"])
    remove(file, OLD, backups=backups)
    assert names(file.parent) == []
    assert OLD in [path.read_bytes() for path in backups.iterdir()]
    with pytest.raises(NotWritten):  # it is not made again
        replace(file, OLD, NEW, backups=backups)
    assert names(file.parent) == []


def test_a_file_that_cannot_be_removed_is_left_with_a_hint(file: Path, backups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "unlink", refuse)
    with pytest.raises(NotWritten, match="not changed: Read-only file system") as error:
        remove(file, OLD, backups=backups)
    assert error.value.hint.startswith("the file is on a read-only file system")
    assert file.read_bytes() == OLD


def test_a_read_only_file_is_left(file: Path, backups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.chmod(0o400)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write to every file
    with pytest.raises(NotWritten, match="not changed: Permission denied") as error:
        replace(file, OLD, NEW, backups=backups)
    assert error.value.hint.startswith("give your account the right")
    assert file.read_bytes() == OLD


@pytest.mark.posix
@pytest.mark.skipif(not IS_ROOT, reason="only root may make a device, or replace one")
def test_a_device_behind_a_link_is_left(tmp_path: Path, backups: Path) -> None:
    device, link = tmp_path / "null", tmp_path / "settings.json"
    try:
        os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("this container has no devices")
    link.symlink_to(device)
    with pytest.raises(NotWritten, match="not changed: not a regular file") as error:
        replace(link, b"", NEW, backups=backups)
    assert error.value.hint == "check where the link leads"
    assert device.is_char_device()


@pytest.mark.parametrize("is_copied", [False, True])
@pytest.mark.parametrize("step", ["mkdir", "write", "fsync", "replace"])
def test_a_file_is_left_if_the_disk_refuses_it_or_the_copy_of_it(
    file: Path, backups: Path, monkeypatch: pytest.MonkeyPatch, step: str, is_copied: bool
) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if is_copied:
        monkeypatch.setattr(writing, "_save", lambda *_: None)
    with monkeypatch.context() as patched:
        patched.setattr(os, step, refuse)
        if is_copied and step == "mkdir":
            file = file.parent / "new/mcp.json"
        with pytest.raises(NotWritten) as error:
            replace(file, OLD if file.exists() else None, NEW, backups=backups)
    assert ("no copy of it can be saved in" in error.value.message) != is_copied
    assert not backups.exists() or names(backups) == []
    assert error.value.message.startswith(f"{file}: not changed")
    assert error.value.hint == "free some space on the disk, then run this again" or not is_copied
    assert not file.exists() or (file.read_bytes(), names(file.parent)) == (OLD, ["mcp.json"])


@pytest.mark.posix
def test_neither_the_owner_nor_the_group_of_a_file_ever_changes(
    file: Path, backups: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(whole_files, "_owner", lambda _: (0, 4711))
    monkeypatch.setattr(os, "fchown", refuse)
    with pytest.raises(NotWritten) as error:
        replace(file, OLD, NEW, backups=backups)
    assert error.value.hint.endswith("run this command as that account; else give the file a group of yours")
    assert file.read_bytes() == OLD


def test_what_a_killed_command_left_is_removed_later(file: Path, backups: Path) -> None:
    old, young = file.parent / ".mcp.json.mcpguard-old", file.parent / ".mcp.json.mcpguard-young"
    for path in (old, young):
        path.write_bytes(b"half")
    long_ago = time.time() - whole_files.LEFT_AFTER_S - 60
    os.utime(old, (long_ago, long_ago))
    replace(file, OLD, NEW, backups=backups)
    assert names(file.parent) == [".mcp.json.mcpguard-young", "mcp.json"]


KILLED = """
import json, os, shutil, sys
from pathlib import Path
from mcpguard.clients import writing

file, backups, after = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "after"
OLD, NEW = sys.argv[4].encode(), sys.argv[5].encode()

def replace(at):
    count = 0
    write = os.write

    def killing(function):
        def replacement(*args, **kwargs):
            nonlocal count
            count += 1
            if count == at and not after:
                os._exit(9)
            if function is write:  # one byte at a time, so that it is killed within a file, too
                args = (args[0], bytes(args[1])[:1])
            here = count
            try:
                return function(*args, **kwargs)
            finally:
                if here == at:
                    os._exit(9)
        return replacement

    names = "open write close fsync fstat stat lstat mkdir chmod fchmod chown fchown utime replace rename unlink access"
    for name in [*names.split(), "readlink"]:
        setattr(os, name, killing(getattr(os, name)))
    try:
        writing.replace(file, OLD, NEW, backups=backups)
    except BaseException:
        os._exit(1)
    os._exit(0)

for at in range(1, 200):
    for folder in (file.parent, backups):  # what the last process left would make the next one do more
        shutil.rmtree(folder, ignore_errors=True)
    file.parent.mkdir()
    file.write_bytes(OLD)
    pid = os.fork() or replace(at)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    saved = [path.read_text() for path in backups.iterdir()] if backups.exists() else []
    print(json.dumps([status, file.read_text(), saved]))
    if status != 9:
        break
"""
"""Replaces a file in processes of which each ends at the next call of a function of `os`, and tells what each leaves."""


@pytest.mark.posix
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_process_killed_at_any_call_of_the_system_leaves_the_old_file_or_the_new_one(
    file: Path, backups: Path, when: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(file), str(backups), when, OLD.decode(), NEW.decode()],
        env={key: value for key, value in os.environ.items() if not key.startswith("COV_")} | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=True,
    )
    *killed, (status, last, _) = [json.loads(line) for line in done.stdout.splitlines()]
    assert (status, last) == (0, NEW.decode())
    assert len(killed) > 30
    seen = [text for _, text, _ in killed]
    assert seen == sorted(seen, key=[OLD.decode(), NEW.decode()].index)
    assert set(seen) == {OLD.decode(), NEW.decode()}
    for _, _, saved in killed:
        assert all(OLD.decode().startswith(text) for text in saved)
