import errno
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mcpguard import files
from mcpguard.files import (
    SETTLING_NS,
    FolderChanges,
    FollowedFile,
    changeable,
    exposed,
    force,
    is_there,
    open_private,
    place_to_make,
    private_folder,
    read_at_once,
)
from tests.build import raising, refusing


@pytest.fixture
def file(tmp_path: Path) -> Path:
    folder = tmp_path / "ours"
    folder.mkdir(mode=0o700)
    file = folder / "policy.toml"
    file.touch(0o600)
    return file


def of_another_account(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() == 0:
        os.chown(path, 4242, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 4242)


def with_group(path: Path, monkeypatch: pytest.MonkeyPatch, *, members: list[str] | None, name: str | None = None) -> None:
    """Let a file's group, ours by default, have members; with None it has no name."""
    import grp
    import pwd

    account = pwd.getpwuid(os.geteuid()).pw_name
    known = {} if members is None else {4242: grp.struct_group((name or account, "x", 4242, members))}
    if os.geteuid() == 0:
        os.chown(path, -1, 4242)
    monkeypatch.setattr(grp, "getgrgid", lambda _: known[4242])


# Who else may change a file


@pytest.mark.posix
@pytest.mark.parametrize(
    ("mode", "folder_mode", "is_exposed"),
    [
        (0o644, 0o755, False),
        (0o602, 0o700, True),
        (0o1602, 0o700, True),  # the sticky bit protects what is in a folder, and does nothing for a file
        (0o600, 0o1777, False),
    ],
)
def test_a_file_that_everybody_may_write_to_is_exposed(file: Path, mode: int, folder_mode: int, *, is_exposed: bool) -> None:
    file.chmod(mode)
    file.parent.chmod(folder_mode)
    assert exposed([file]) == [f"other accounts may change {file}: {file} may be written to by everybody"] * is_exposed


@pytest.mark.posix
def test_a_folder_that_everybody_may_write_to_is_reported_once_for_all_its_files(file: Path) -> None:
    file.parent.chmod(0o777)
    other = file.with_name("config.toml")  # which does not exist: it could be made
    folder = file.parent
    assert exposed([file, other]) == [f"other accounts may change {file}, {other}: {folder} may be written to by everybody"]


@pytest.mark.posix
@pytest.mark.parametrize("place", ["file", "folder"])
def test_a_file_or_folder_of_another_account_is_exposed(file: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file.parent.chmod(0o1777)
    of_another_account(file if place == "file" else file.parent, monkeypatch)
    (line,) = exposed([file])
    assert " belongs to user " in line


@pytest.mark.posix
def test_a_file_of_root_is_exposed_only_by_its_mode(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    assert bool(exposed([file])) == (file.stat().st_uid != 0)


@pytest.mark.posix
@pytest.mark.parametrize(
    ("name", "members", "told"),
    [(None, [], False), (None, ["root"], False), (None, ["bob"], True), ("staff", [], True), (None, None, True)],
)
def test_a_file_of_a_group_is_exposed_unless_the_group_is_private(
    file: Path, name: str | None, members: list[str] | None, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.chmod(0o660)
    with_group(file, monkeypatch, members=members, name=name)
    assert bool(exposed([file])) is told


@pytest.mark.posix
def test_the_group_of_root_counts_as_private_whatever_its_name(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import grp

    if os.geteuid() != 0:
        pytest.skip("only root may give a file to any group")
    file.chmod(0o660)
    os.chown(file, -1, 0)
    monkeypatch.setattr(grp, "getgrgid", lambda group: grp.struct_group(("wheel", "x", group, ["root"])))
    assert exposed([file]) == []
    os.chown(file, -1, 4242)
    assert exposed([file]) == [f"other accounts may change {file}: {file} may be written to by group 4242"]


@pytest.mark.posix
def test_the_folder_and_the_target_of_a_link_are_checked(file: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    link = shared / "policy.toml"
    link.symlink_to(file)
    assert exposed([link]) == []
    file.parent.chmod(0o777)
    assert exposed([link]) == [f"other accounts may change {link}: {file.parent} may be written to by everybody"]
    file.parent.chmod(0o700)
    shared.chmod(0o777)
    assert exposed([link]) == [f"other accounts may change {link}: {shared} may be written to by everybody"]


@pytest.mark.posix
def test_a_file_that_cannot_be_examined_is_not_reported(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    assert exposed([tmp_path / "no" / "folder" / "file", loop]) == []


# Files that are made


@pytest.mark.posix
@pytest.mark.parametrize("umask", [0, 0o077, 0o777])
def test_a_new_file_is_private_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        os.close(open_private(tmp_path / "file"))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600


@pytest.mark.posix
@pytest.mark.parametrize("mode", [0o777, 0o1777])
def test_a_dangling_link_in_a_folder_that_others_may_write_to_is_not_followed(tmp_path: Path, mode: int) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(mode)
    link, target = shared / "file", tmp_path / "target"
    link.symlink_to(target)
    indirect = tmp_path / "link"
    indirect.symlink_to(link)
    for path in (link, indirect):
        with pytest.raises(OSError, match="a link to a missing file, in a folder that others may write to"):
            open_private(path)
    assert not target.exists()
    target.write_text("here")
    for path in (link, indirect):
        assert place_to_make(path) == str(target)
        os.close(open_private(path))


@pytest.mark.posix
def test_a_dangling_link_in_a_private_folder_is_followed(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "link").symlink_to("target")
    os.close(open_private(tmp_path / "link"))
    assert (tmp_path / "target").is_file()
    assert (tmp_path / "link").is_symlink()


@pytest.mark.posix
def test_a_link_that_leads_to_itself_is_not_followed_for_ever(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    one, other = tmp_path / "one", tmp_path / "other"
    one.symlink_to("../" + tmp_path.name + "/other")
    other.symlink_to("../" + tmp_path.name + "/one")
    place_to_make(one)
    with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
        open_private(one)


def test_a_file_that_another_process_creates_meanwhile_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    monkeypatch.setattr("mcpguard.files.place_to_make", lambda path: (file.write_text("theirs"), path)[1])
    fd = open_private(file)
    assert os.read(fd, 10) == b"theirs"
    os.close(fd)


@pytest.mark.posix
def test_a_link_created_at_the_last_moment_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, target = tmp_path / "file", tmp_path / "target"

    def planted(path: Path) -> Path:
        path.symlink_to(target)
        return path

    monkeypatch.setattr("mcpguard.files.place_to_make", planted)
    with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
        open_private(file)
    assert not target.exists()


def test_a_path_that_cannot_be_examined_is_an_error_and_not_absence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.touch()
    assert is_there(tmp_path)
    assert is_there(file)
    assert not is_there(tmp_path / "none")
    assert not is_there(file / "none")
    monkeypatch.setattr(os, "stat", raising(PermissionError(errno.EACCES, "Permission denied")))
    with pytest.raises(PermissionError):
        is_there(file)


def test_an_error_when_a_file_is_closed_after_reading_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really, closed = os.close, []

    def fail(fd: int) -> None:
        really(fd)
        closed.append(fd)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    (tmp_path / "a").write_bytes(b"text")
    monkeypatch.setattr(os, "close", fail)
    assert read_at_once(tmp_path / "a") == b"text"
    assert len(closed) == 1


def test_only_the_first_bytes_of_a_file_are_read_if_no_more_are_wanted(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"text")
    assert read_at_once(tmp_path / "a", 3) == b"tex"


def test_a_file_whose_times_only_its_owner_may_keep_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really = os.open

    def refuse(path: Path, flags: int) -> int:
        if flags & getattr(os, "O_NOATIME", 0):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        return really(path, flags)

    (tmp_path / "a").write_bytes(b"text")
    monkeypatch.setattr(os, "open", refuse)
    assert read_at_once(tmp_path / "a") == b"text"


@pytest.mark.posix
def test_a_new_folder_that_is_swapped_for_a_link_changes_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared, public = tmp_path / "shared", tmp_path / "public"
    public.mkdir(mode=0o755)
    public.chmod(0o755)
    mkdir = os.mkdir

    def swapping(path: str, mode: int) -> None:
        mkdir(path, mode)
        shared.rmdir()
        shared.symlink_to(public)

    monkeypatch.setattr(os, "mkdir", swapping)
    private_folder(shared)
    assert stat.S_IMODE(public.stat().st_mode) == 0o755


@pytest.mark.posix
def test_a_file_is_changeable_by_whoever_may_rename_a_folder_or_a_link_on_its_way(tmp_path: Path) -> None:
    shared, own = tmp_path / "shared", tmp_path / "shared/own"
    own.mkdir(parents=True)
    file = own / "file"
    file.touch()
    (tmp_path / "link").symlink_to("shared/own/../own/file")
    (tmp_path / "loop").symlink_to("loop")
    assert changeable(file) == changeable(tmp_path / "link") == ""
    shared.chmod(0o777)
    assert exposed([file]) == []
    for path in (file, tmp_path / "link", own / "none", file / "none"):
        assert changeable(path) == f"{shared} may be written to by everybody"
    shared.chmod(0o1777)
    assert changeable(file) == ""
    assert changeable(shared / "none") == f"{shared} may be written to by everybody"
    assert changeable(tmp_path / "loop") == f"{tmp_path}/loop is a loop of links"
    assert changeable(f"{shared}/\0") == f"{shared} may be written to by everybody"
    assert changeable("file") == "file depends on the working folder"


@pytest.mark.posix
@pytest.mark.parametrize(("refused", "asked"), [(False, ["F_FULLFSYNC"]), (True, ["F_FULLFSYNC", "fsync"])])
def test_macos_forces_a_file_to_the_disk_itself_if_it_can(
    monkeypatch: pytest.MonkeyPatch, refused: bool, asked: list[str]
) -> None:
    import fcntl

    seen: list[str] = []

    def full(fd: int, what: str) -> None:
        seen.append(what)
        if refused:
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", "F_FULLFSYNC", raising=False)
    monkeypatch.setattr(fcntl, "fcntl", full)
    monkeypatch.setattr(os, "fsync", lambda fd: seen.append("fsync"))
    force(7)
    assert seen == asked


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
    followed = FollowedFile(path)
    assert followed.look()
    path.write_text("2")
    assert followed.look() is is_read


@pytest.fixture
def followed(tmp_path: Path) -> Path:
    followed = tmp_path / "file"
    followed.write_text("x")
    followed.with_name("other").write_text("y")
    return followed


@pytest.fixture
def folder(followed: Path) -> Iterator[FolderChanges]:
    folder = FolderChanges(followed.parent)
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
        (lambda followed: followed.rename(followed.with_name("away")), True),
        (lambda followed: followed.with_name("other").replace(followed), True),
        (lambda followed: followed.with_name("new").write_text("y"), True),
        (lambda followed: followed.write_text("y"), False),
    ],
    ids=["remove", "rename", "replace", "make", "write"],
)
def test_a_change_of_the_files_in_a_folder_that_has_settled_is_noticed_once(
    folder: FolderChanges, followed: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], object], *, is_one: bool
) -> None:
    settle(followed.parent, monkeypatch)
    assert [folder.may_have_changed() for _ in range(3)] == [True, False, False]
    change(followed)
    settle(followed.parent, monkeypatch)
    assert [folder.may_have_changed() for _ in range(3)] == [is_one, False, False]


@pytest.mark.posix
def test_a_folder_that_has_just_changed_may_have_changed_again(
    folder: FolderChanges, followed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamp = followed.parent.stat()
    monkeypatch.setattr(time, "time_ns", lambda: stamp.st_ctime_ns + SETTLING_NS)
    assert [folder.may_have_changed() for _ in range(3)] == [True, True, True]


def test_a_folder_that_cannot_be_opened_may_always_have_changed(followed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "open", refusing(errno.EACCES))
    folder = FolderChanges(followed.parent)
    settle(followed.parent, monkeypatch)
    assert [folder.may_have_changed() for _ in range(3)] == [True] * 3
    folder.close()
