"""Files and folders that only the account may use, and changes that other programs make to files and folders."""

import contextlib
import errno
import os
import stat
import sys
import time
from collections.abc import Iterable

from mcpguard.errors import ConfigError, McpguardError
from mcpguard.light_typing import TYPE_CHECKING, Final
from mcpguard.text.redaction import holds_token

if TYPE_CHECKING:
    from pathlib import Path

StrPath = str | os.PathLike[str]
"""What names a file. The modules of `run` keep it as text, because pathlib takes 0.6 MiB of memory and 3 ms to load."""

_MAX_LINKS: Final = 40
"""The number of links that Linux follows."""


def absolute(name: str, *, where: str) -> str:
    """The absolute path of a name, as text. A leading `~` stands for a home folder.

    Args:
        name: The name that the user wrote.
        where: The setting, option or variable that holds the name.

    Raises:
        ConfigError: The home folder or the working folder is not known; or the name has a NUL character; or it is a token,
            which the message leaves out.
    """
    if holds_token(name):
        hint = "write the token into a file that only you can read, and name that file"
        raise ConfigError(f"{where} holds a token where a path belongs", hint)
    if "\0" in name:
        raise ConfigError(f"{where}: {name!r} is not a path: it has a NUL character", "write a path without it")
    if os.path.isabs(name) and os.path.normpath(name) == name:  # the usual case needs no Path
        return name
    from pathlib import Path

    try:
        return str(Path(name).expanduser().absolute())
    except (RuntimeError, OSError) as error:  # an unknown account, an account without a home, or a deleted working folder
        raise ConfigError(f"{where}: the home or working folder for {name} does not exist", "write an absolute path") from error


def named_path(name: str, *, where: str) -> "Path":
    """The same as a `Path`."""
    from pathlib import Path

    return Path(absolute(name, where=where))


def is_there(path: StrPath) -> bool:
    """Whether a path names something.

    Raises:
        OSError: The system does not say, such as without permission. `os.path.exists` is false then.
    """
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def size_bytes(path: StrPath) -> int:
    """A file's size; 0 if it does not exist, or the system does not say."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def no_temporary_folder(error: OSError) -> McpguardError:
    """The error if the system has no room for temporary files."""
    hint = "set TMPDIR to a folder that you may write to, on a disk that is not full"
    return McpguardError(f"no temporary folder can be made: {error.strerror}", hint)


def read_at_once(path: StrPath, max_bytes: int = -1) -> bytes:
    """Read a file, or its first bytes. A named pipe and a device, unless it is empty, are refused: reading might never end.

    Raises:
        OSError: The file cannot be read.
    """
    fd = open_unnoted(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if stat.S_ISFIFO(mode):
            raise OSError(errno.EINVAL, "a pipe, not a file", str(path))
        if not stat.S_ISREG(mode):
            if os.read(fd, 1):
                raise OSError(errno.EINVAL, "a device, not a file", str(path))
            return b""
        with open(fd, "rb", closefd=False) as file:
            return file.read(max_bytes)
    finally:
        close(fd)


def close(fd: int) -> None:
    """Close a file from which this process needs nothing further.

    The system closes it even if it reports an error, such as of a disk. What must be on the disk is forced to it before.
    """
    with contextlib.suppress(OSError):
        os.close(fd)


def force(fd: int) -> None:
    """Force an open file to the disk.

    Raises:
        OSError: The disk did not take it.
    """
    if sys.platform == "darwin":  # `fsync` leaves it in the disk's own memory there
        import fcntl

        with contextlib.suppress(OSError):  # the file system or the disk cannot
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
            return
    os.fsync(fd)


force_data: Final = getattr(os, "fdatasync", force)
"""As `force`, but of the file's state only what reading the data takes, where the system can do that."""

if sys.platform == "win32":
    import threading

    _seeking = threading.Lock()

    def pread(fd: int, count: int, at: int) -> bytes:
        """As `os.pread`, which Windows does not have."""
        with _seeking:
            os.lseek(fd, at, os.SEEK_SET)
            return os.read(fd, count)

    def pwrite(fd: int, data: bytes, at: int) -> int:
        """As `os.pwrite`, which Windows does not have."""
        with _seeking:
            os.lseek(fd, at, os.SEEK_SET)
            return os.write(fd, data)

else:
    pread = os.pread
    pwrite = os.pwrite


def open_unnoted(path: StrPath, flags: int) -> int:
    """Open a file that calls read.

    The system need not note the times at which it is read. That takes a microsecond, and waits while the system writes an
    earlier change of the inode to a slow disk. Only the owner of the file may ask for it.

    Raises:
        OSError: The file cannot be opened.
    """
    with contextlib.suppress(PermissionError):
        return os.open(path, flags | getattr(os, "O_NOATIME", 0))
    return os.open(path, flags)


def open_private(path: StrPath) -> int:
    """Open a file for reading and writing, or create it with mode 0600 whatever the umask.

    Raises:
        OSError: The file cannot be opened or created. See also `place_to_make`.
    """
    flags = os.O_RDWR | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    try:
        return os.open(path, flags)
    except FileNotFoundError:
        place = place_to_make(path)
    try:
        fd = os.open(place, flags | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:  # another process created it first
        return os.open(place, flags | getattr(os, "O_NOFOLLOW", 0))
    if sys.platform != "win32":
        os.fchmod(fd, 0o600)
    return fd


def place_to_make(path: StrPath) -> str:
    """The path with all links followed, at which a missing file may be created.

    Raises:
        OSError: The file is missing, and a link to it is in a folder that others may write to. One of them may have made the
            link so that mcpguard creates a file somewhere else.
    """
    place, link = os.path.realpath(path), os.fspath(path)
    for _ in range(_MAX_LINKS):
        if os.path.exists(place) or not os.path.islink(link):
            break
        folder = os.path.dirname(link)
        if _who_else_writes(os.stat(folder or os.curdir), new_files=True):
            raise OSError(errno.ELOOP, "a link to a missing file, in a folder that others may write to", str(path))
        link = os.path.join(folder, os.readlink(link))
    return place


def exposed(paths: Iterable[StrPath]) -> list[str]:
    """Which files other accounts may change, because another account owns or may write to the file or its folder.

    Args:
        paths: The files. For a missing file, its folder is checked.

    Returns:
        A line for each reason.
    """
    files: dict[str, list[str]] = {}
    for path in paths:
        real = os.path.realpath(path)
        for place in dict.fromkeys((os.path.dirname(path), os.path.dirname(real), real)):
            with contextlib.suppress(OSError):
                if who := _who_else_writes(os.stat(place)):
                    files.setdefault(f"{place} {who}", []).append(str(path))
                    break
    return [f"other accounts may change {', '.join(names)}: {reason}" for reason, names in files.items()]


def changeable(path: StrPath) -> str:
    """Why other accounts may change what a path leads to; empty if only this account and root may.

    Unlike `exposed`, it looks at every folder and link on the way: whoever may rename one of them can put another file there.

    Args:
        path: A file, or a path at which there is none. The latter is changeable if others may put a file there.
    """
    if sys.platform == "win32":
        return ""  # see `_who_else_writes`
    if not os.path.isabs(path):
        return f"{path} depends on the working folder"
    place, names, links = os.sep, os.fspath(path).split(os.sep)[::-1], 0
    who = ""
    try:
        while names:
            name = names.pop()
            here = os.path.dirname(place) if name == os.pardir else os.path.join(place, name) if name else place
            found = os.lstat(here)
            if stat.S_ISLNK(found.st_mode):
                links += 1
                if links > _MAX_LINKS:
                    return f"{path} is a loop of links"
                target = os.readlink(here)
                names += target.split(os.sep)[::-1]
                place = os.sep if target.startswith(os.sep) else place
                who = _who_else_writes(found, is_link=True)
            else:
                place, who = here, _who_else_writes(found)
            if who:
                return f"{here} {who}"
    except (FileNotFoundError, NotADirectoryError, ValueError):  # `ValueError`: no file can have this name
        with contextlib.suppress(OSError):  # the folder has just gone, too
            who = _who_else_writes(os.stat(place), new_files=True)
        return f"{place} {who}" if who else ""
    except OSError as error:
        return f"{path} cannot be examined: {error.strerror}"
    return ""


def _who_else_writes(found: os.stat_result, *, new_files: bool = False, is_link: bool = False) -> str:
    """Who else may write to a file or folder, as the end of a sentence; empty if only this account and root may.

    Args:
        found: The result of `stat`.
        new_files: Whether a sticky folder counts as writable. Others can put files into it, but change only their own.
        is_link: Whether it is the result of `lstat` for a link, whose mode says nothing.
    """
    if sys.platform == "win32":
        return ""  # Windows has access lists instead
    if found.st_uid not in (0, os.geteuid()):
        return f"belongs to user {found.st_uid}"
    if is_link or (stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX and not new_files):
        return ""
    if found.st_mode & stat.S_IWOTH:
        return "may be written to by everybody"
    if found.st_mode & stat.S_IWGRP and not _is_private(found.st_gid):
        return f"may be written to by group {found.st_gid}"
    return ""


def _is_private(group: int) -> bool:
    """Whether only this account and root are in a group. Many systems give each account a group of its own."""
    if sys.platform == "win32":
        return True
    import grp
    import pwd

    try:
        account, found = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(group)
    except KeyError:
        return False
    return (group == 0 or found.gr_name == account) and {*found.gr_mem} <= {account, "root"}


def private_folder(folder: StrPath) -> None:
    """Create a folder and its parents with mode 0700 whatever the umask. An existing folder keeps its mode."""
    if not folder or os.path.isdir(folder):  # a relative name has an empty parent
        return
    private_folder(os.path.dirname(folder))
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o700)
        if os.lstat(folder).st_mode & 0o700 != 0o700:  # the umask took a right; else its name may lead somewhere else by now
            os.chmod(folder, 0o700)


SETTLING_NS: Final = 50_000_000
"""What changed less than this ago may change again unnoticed: two changes can have the same time stamp."""

if sys.platform == "win32":
    import _winapi
    import ctypes

    _kernel32 = ctypes.WinDLL("kernel32")
    _READ_ATTRIBUTES: Final = 0x80
    _FOLDERS_TOO: Final = 0x02000000  # FILE_FLAG_BACKUP_SEMANTICS
    _TO_1970: Final = 116_444_736_000_000_000
    """The time from 1601, when Windows' times begin, in its unit of 100 ns."""

    def _changed_ns(path: str) -> int:
        """When a file was last changed, also if its time of writing was set back. `os.stat` has no such time on Windows."""
        basic = (ctypes.c_int64 * 5)()  # FILE_BASIC_INFO, whose fourth time this is
        handle = _winapi.CreateFile(path, _READ_ATTRIBUTES, 7, 0, _winapi.OPEN_EXISTING, _FOLDERS_TOO, 0)
        try:
            _kernel32.GetFileInformationByHandleEx(ctypes.c_void_p(handle), 0, basic, ctypes.sizeof(basic))
        finally:
            _winapi.CloseHandle(handle)
        return (basic[3] - _TO_1970) * 100


class FollowedFile:
    """A file's content as of the last look. A look at an unchanged file costs one `stat`.

    Args:
        path: The file.
        max_bytes: At most one byte more than this is read; None for all bytes.

    Attributes:
        content: The content; a text with the reason if the file cannot be read; None if it does not exist.
        mode: The permission bits.
    """

    def __init__(self, path: StrPath, *, max_bytes: int | None = None) -> None:
        self._path = os.fspath(path)
        self.content: bytes | str | None = None
        self.mode = 0
        self._max_bytes = max_bytes
        self._stamp: tuple[int, ...] | None = None
        self._settled = False

    def look(self) -> bool:
        """Read the file if it may have changed. Returns whether `content` has changed."""
        before = self.content
        try:
            found = os.stat(self._path)
            changed_ns = found.st_ctime_ns
            if sys.platform == "win32":
                changed_ns = _changed_ns(self._path)
        except (FileNotFoundError, NotADirectoryError):
            self._stamp, self.content = None, None
            return before is not None
        except (OSError, ValueError) as error:  # a folder cannot be entered, or the name is invalid
            self._stamp = None
            self.content = (error.strerror if isinstance(error, OSError) else None) or str(error)
            return self.content != before
        stamp = (found.st_ino, found.st_nlink, found.st_size, found.st_mtime_ns, changed_ns)
        if stamp == self._stamp and self._settled:
            return False
        self._stamp = stamp
        self._settled = time.time_ns() - max(found.st_mtime_ns, changed_ns) > SETTLING_NS
        self.mode = found.st_mode & 0o777
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
            self.content = "not a regular file"  # reading a pipe could block for ever
            return self.content != before
        try:
            self.content = read_at_once(self._path, -1 if self._max_bytes is None else self._max_bytes + 1)
        except OSError as error:
            self.content = error.strerror or str(error)
            self._stamp = None  # read it again: the reason may pass and leave no trace in the file's times
        return self.content != before


class FolderChanges:
    """Tells whether a file in a folder may have been made, removed, renamed or replaced, by the times of the folder.

    The file's own times tell that, too. But on Linux from 6.13 on, a look at them makes the next write to the file take 2 µs
    longer, because the system then notes a finer time for it.

    Args:
        folder: The folder. What replaces the folder itself is not noticed.
    """

    def __init__(self, folder: StrPath) -> None:
        self._fd = -1
        if sys.platform != "win32":  # which opens no folders
            with contextlib.suppress(OSError):  # files in a folder that may not be read can be used nevertheless
                self._fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._stamp: tuple[int, int] | None = None

    def may_have_changed(self) -> bool:
        """Whether there may have been a change since the last call that returned True; true if the folder cannot be opened."""
        if self._fd < 0:
            return True
        found = os.fstat(self._fd)
        stamp = (found.st_mtime_ns, found.st_ctime_ns)
        if stamp == self._stamp:
            return False
        self._stamp = stamp if time.time_ns() - max(stamp) > SETTLING_NS else None  # see `SETTLING_NS`
        return True

    def close(self) -> None:
        """Close the folder."""
        if self._fd >= 0:
            close(self._fd)
            self._fd = -1
