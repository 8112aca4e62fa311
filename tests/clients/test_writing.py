"""Files of clients are written as a whole or not at all. `tests/test_whole_files.py` has what holds for all files."""

import errno
import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mcpguard import whole_files
from mcpguard.clients import plan
from mcpguard.clients.discovery import FileFault
from mcpguard.clients.plan import Change
from mcpguard.files import force
from tests.build import of_another_group, refusing
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


def write(file: Path, backups: Path, old: bytes | None = OLD, new: bytes | None = NEW) -> None:
    plan.write(Change(file, old, new), backups)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_content_is_replaced_and_the_old_one_is_saved_for_this_account_alone(file: Path, backups: Path) -> None:
    write(file, backups)
    assert (file.read_bytes(), names(file.parent)) == (NEW, ["mcp.json"])
    (backup,) = backups.iterdir()
    assert backup.read_bytes() == OLD
    assert backup.name.endswith("client-mcp.json")
    if sys.platform != "win32":  # which has access lists instead
        assert [stat.S_IMODE(path.stat().st_mode) for path in (backup, backups)] == [0o600, 0o700]


def test_no_backup_is_ever_overwritten(file: Path, backups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "strftime", lambda *_: "20261126T200000Z")
    for number in range(5):
        write(file, backups, file.read_bytes(), b"%d" % number)
    assert sorted(path.read_bytes() for path in backups.iterdir()) == sorted([OLD, b"0", b"1", b"2", b"3"])


@pytest.mark.parametrize("mode", [0o600, 0o664])
def test_the_mode_and_the_owner_are_kept_and_the_time_is_new(file: Path, backups: Path, mode: int) -> None:
    file.chmod(mode)
    os.utime(file, (1, 1))
    if IS_ROOT:
        os.chown(file, 1234, 1235)
    before = file.stat()
    write(file, backups)
    after = file.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert after.st_mtime > 1_000_000


@pytest.mark.skipif(not hasattr(os, "setxattr"), reason="this system has no extended attributes in Python")
def test_extended_attributes_are_kept(file: Path, backups: Path) -> None:
    try:
        os.setxattr(file, "user.origin", b"dotfiles")
    except OSError:
        pytest.skip("this file system has no extended attributes")
    write(file, backups)
    assert os.getxattr(file, "user.origin") == b"dotfiles"


@follows_links
def test_a_link_stays_a_link_and_its_target_is_replaced(file: Path, backups: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    second.symlink_to(file)
    first.symlink_to("second.json")
    write(first, backups)
    assert (first.is_symlink(), second.is_symlink(), file.is_symlink()) == (True, True, False)
    assert file.read_bytes() == NEW


def relinked(link: Path, target: Path) -> None:
    link.unlink()
    link.symlink_to(target)


CHANGED = ("another program has changed it", "run this again")
SWAPS: dict[str, tuple[Callable[[Path, Path], object], tuple[str, str], bytes]] = {
    "content": (lambda file, _: file.write_bytes(b"theirs"), CHANGED, b"theirs"),
    "link": (lambda file, other: relinked(file.parent / "link", other), CHANGED, OLD),
    "name": (
        lambda file, other: other.replace(file),
        ("its name leads to another file by now", "check who else may"),
        OLD,
    ),
}


@pytest.mark.parametrize("swap", ["content", "link", pytest.param("name", marks=pytest.mark.posix)])
@follows_links
def test_a_file_changed_before_the_rename_stays(file: Path, backups: Path, monkeypatch: pytest.MonkeyPatch, swap: str) -> None:
    change, (what, hint), content = SWAPS[swap]
    link, other = file.parent / "link", file.with_name("other")
    link.symlink_to(file)
    other.write_bytes(OLD)

    def slow(fd: int) -> None:
        force(fd)
        if os.fstat(fd).st_size == len(NEW):  # not the copy
            change(file, other)

    monkeypatch.setattr(whole_files, "force", slow)
    with pytest.raises(FileFault, match=f"not changed.* {what}") as error:
        write(link, backups)
    assert error.value.hint.startswith(hint)
    assert file.read_bytes() == content
    assert set(names(file.parent)) <= {"link", "mcp.json", "other"}


def test_a_change_right_after_the_rename_is_reported(file: Path, backups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole_files, "sync_folder", lambda at: at == file.parent and file.write_bytes(b"the client's own copy"))
    with pytest.raises(FileFault, match="right afterwards"):
        write(file, backups)
    assert file.read_bytes() == b"the client's own copy"


def test_a_file_unreadable_by_then_is_not_called_unchanged(file: Path, backups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damage(folder: Path) -> None:
        if folder == file.parent:
            monkeypatch.setattr(plan, "read_at_once", refusing(errno.EIO))

    monkeypatch.setattr(whole_files, "sync_folder", damage)
    write(file, backups)
    assert file.read_bytes() == NEW


def test_a_file_that_is_not_as_expected_is_neither_replaced_nor_removed_nor_made_again(file: Path, backups: Path) -> None:
    for old, new in ((None, NEW), (b"something else", NEW), (b"something else", None)):
        with pytest.raises(FileFault, match="another program has changed it"):
            write(file, backups, old, new)
        assert (file.read_bytes(), names(file.parent)) == (OLD, ["mcp.json"])
    other = file.with_name("other")
    other.touch()
    write(file, backups, new=None)
    assert names(file.parent) == ["other"]
    assert OLD in [path.read_bytes() for path in backups.iterdir()]
    with pytest.raises(FileFault):
        write(file, backups)
    assert names(file.parent) == ["other"]


@pytest.mark.parametrize(
    ("patches", "new", "said", "hint"),
    [
        ({"unlink": refusing(errno.EROFS)}, None, "Read-only file system", "the file is on a read-only file system"),
        ({"access": lambda *_: False}, NEW, "Permission denied", "give your account the right"),  # root may write to all
        pytest.param(
            {"fchown": refusing(errno.EPERM)},
            NEW,
            "Operation not permitted",
            "if it belongs to another account, run this command as that account; else give the file a group of yours",
            marks=pytest.mark.posix,
        ),
    ],
    ids=["removed", "read-only", "owner"],
)
def test_a_file_that_may_not_be_changed_is_left_with_a_hint(
    monkeypatch: pytest.MonkeyPatch, file: Path, backups: Path, patches: dict[str, Any], new: bytes | None, said: str, hint: str
) -> None:
    for name, function in (patches | {"fstat": of_another_group(file)}).items():
        monkeypatch.setattr(os, name, function)
    with pytest.raises(FileFault, match=f"not changed: {said}") as error:
        write(file, backups, new=new)
    assert error.value.hint.startswith(hint)
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
    with pytest.raises(FileFault, match="not changed: not a regular file") as error:
        write(link, backups, b"")
    assert error.value.hint == "check where the link leads"
    assert device.is_char_device()


@pytest.mark.parametrize("is_copied", [False, True])
@pytest.mark.parametrize("step", ["mkdir", "write", "fsync", "replace"])
def test_a_file_is_left_if_the_disk_refuses_it_or_its_copy(
    file: Path, backups: Path, monkeypatch: pytest.MonkeyPatch, step: str, is_copied: bool
) -> None:
    if is_copied:
        file = file.parent / "new/mcp.json" if step == "mkdir" else file  # a new file has no copy
    old, function = OLD if file.exists() else None, getattr(os, step)

    def copies() -> list[bytes]:
        return [path.read_bytes() for path in backups.iterdir() if path.name[0] != "."] if backups.exists() else []

    def refuse_later(*args: Any, **more: Any) -> Any:
        return function(*args, **more) if is_copied and old and not copies() else refusing(errno.ENOSPC)()

    with monkeypatch.context() as patched:
        patched.setattr(os, step, refuse_later)
        with pytest.raises(FileFault) as error:
            write(file, backups, old)
    assert ("no copy of it can be saved in" in error.value.message) != is_copied
    assert copies() == [OLD] * (is_copied and old is not None)
    assert error.value.message.startswith(f"{file}: not changed")
    assert error.value.hint == "free some space on the disk, then run this again" or not is_copied
    assert not file.exists() or (file.read_bytes(), names(file.parent)) == (OLD, ["mcp.json"])


def test_what_a_killed_command_left_is_removed_later(file: Path, backups: Path) -> None:
    old, young = file.parent / ".mcp.json.mcpguard-old", file.parent / ".mcp.json.mcpguard-young"
    for path in (old, young):
        path.write_bytes(b"half")
    long_ago = time.time() - whole_files.LEFT_AFTER_S - 60
    os.utime(old, (long_ago, long_ago))
    write(file, backups)
    assert names(file.parent) == [".mcp.json.mcpguard-young", "mcp.json"]


KILLED = """
import json, os, shutil, sys
from pathlib import Path
from mcpguard.clients.plan import Change, write

file, backups, after = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "after"
OLD, NEW = sys.argv[4].encode(), sys.argv[5].encode()

def replace(at):
    count = 0
    write_some = os.write

    def killing(function):
        def replacement(*args, **kwargs):
            nonlocal count
            count += 1
            if count == at and not after:
                os._exit(9)
            if function is write_some:  # one byte at a time, so that it is killed within a file, too
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
        write(Change(file, OLD, NEW), backups)
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
def test_a_process_killed_at_any_system_call_leaves_the_old_or_the_new_file(file: Path, backups: Path, when: str) -> None:
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
