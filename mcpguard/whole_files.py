"""Writes files as a whole: a file has its old bytes or its new bytes, whenever the process is killed.

The new bytes go into an unfinished file beside the file, which takes its place when it is complete.
"""

import contextlib
import errno
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Final

from mcpguard.errors import McpguardError
from mcpguard.files import force, is_there

_NO_LINK: Final = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
"""Flags to open a file that is not a link. A pipe, in whose place a file was, must not make the command wait."""

SWAPPED_HINT: Final = "check who else may write to its folder, then run this again"
IN_USE_HINT: Final = "close it there, or check that you may write to it, then run this again"
_USUAL_HINT: Final = "check that the file and its folder are writable and the disk is not full"

LEFT_AFTER_S: Final = 3600.0
"""An unfinished file of this age was left by a command that was killed. Writing takes milliseconds."""

IN_USE_S: Final = 2.0
"""How long to wait for programs that have a file open which is to be replaced. Editors and virus scanners take less."""

_IN_USE: Final = (5, 32)
"""ERROR_ACCESS_DENIED, as which Windows also reports an open file, and ERROR_SHARING_VIOLATION."""


def write(path: Path, data: bytes) -> None:
    """Replace a file's content, or make the file with mode 0600. A file that exists keeps its mode and, if it may, its owner.

    Raises:
        McpguardError: The file cannot be written; it is unchanged.
    """
    with reported(path):
        require_writable(path)
        replace(path, data, must_keep_owner=False)


@contextlib.contextmanager
def reported(path: Path) -> Iterator[None]:
    """Report errors of the operating system as `McpguardError`."""
    try:
        yield
    except OSError as error:
        check = {errno.ESTALE: SWAPPED_HINT, errno.ETXTBSY: IN_USE_HINT}.get(error.errno or 0, _USUAL_HINT)
        what = f"{path}: cannot be written: {error.strerror or error}"
        raise McpguardError(what, f"{check}; the file is unchanged") from error


def require_writable(path: Path) -> None:
    """Refuse a read-only file and a device. Replacing them would work, but it is read-only on purpose, or programs need it.

    Raises:
        OSError: The path leads to something other than a file, or the file is read-only.
    """
    if not is_there(path):
        return
    if not path.is_file():
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    if not os.access(path, os.W_OK):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))


def replace(path: Path, data: bytes, *, must_keep_owner: bool = True, check: Callable[[], None] = lambda: None) -> None:
    """Replace a file's content, or make the file with mode 0600. A file that exists keeps its mode, owner and attributes.

    Args:
        path: The file, which is not a link. Its folder exists.
        data: The new content.
        must_keep_owner: Whether to fail if the new file cannot have the owner of the old one.
        check: Called right before the new file takes the place of the old one. If it raises, the file is left as it is.

    Raises:
        OSError: The file cannot be written; it is unchanged. `ESTALE` if its name leads to another file by now.
    """
    original = _original(path)
    try:
        fd, name = tempfile.mkstemp(dir=path.parent, prefix=_prefix(path))
        try:
            _fill(fd, original, data, must_keep_owner=must_keep_owner)
            check()
            if original is not None and not os.path.samestat(os.fstat(original), os.lstat(path)):
                raise OSError(errno.ESTALE, "its name leads to another file by now", str(path))
            _take_place(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)  # noqa: PTH108
            raise
    finally:
        if original is not None:
            os.close(original)
    sync_folder(path.parent)


def _take_place(name: str, path: Path) -> None:
    """Rename a file to another one's name. Windows refuses that while a program has the other one open: that is waited for.

    Raises:
        OSError: It is refused; `ETXTBSY` if a program has had the file open for `IN_USE_S`.
    """
    end_s = time.monotonic() + IN_USE_S
    while True:
        try:
            os.replace(name, path)  # noqa: PTH105 - the tests stop the process at each function of `os`
        except PermissionError as error:
            if getattr(error, "winerror", None) not in _IN_USE:
                raise
            if time.monotonic() > end_s:
                raise OSError(errno.ETXTBSY, "another program has it open") from error
            time.sleep(0.01)
        else:
            return


def _original(path: Path) -> int | None:
    """Open the file that is replaced; None if there is none, and on Windows, which replaces no open file."""
    try:
        return None if sys.platform == "win32" else os.open(path, os.O_RDONLY | _NO_LINK)
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[IO[str]]:
    """A file to write, with mode 0600, which gets its name when it is complete. If the body raises, no file is left.

    Raises:
        FileExistsError: The file exists by now; it is unchanged.
        OSError: The file cannot be written.
    """
    remove_leftovers(path)
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=_prefix(path))
    try:
        with os.fdopen(fd, "w", encoding="utf-8", newline="") as file:
            yield file
        try:
            os.link(name, path)  # unlike a rename it fails if the file exists by now
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            os.rename(name, path)  # noqa: PTH104
    finally:
        with contextlib.suppress(OSError):  # what went wrong first is reported; a later file's writer removes it
            os.unlink(name)  # noqa: PTH108


def remove_leftovers(path: Path, *, older_than_s: float = LEFT_AFTER_S) -> None:
    """Remove unfinished files that commands left which were killed while they wrote a file."""
    with contextlib.suppress(OSError):
        for entry in path.parent.iterdir():
            with contextlib.suppress(OSError):
                if entry.name.startswith(_prefix(path)) and entry.lstat().st_mtime <= time.time() - older_than_s:
                    entry.unlink()


def _prefix(path: Path) -> str:
    """The beginning of the names of unfinished files."""
    return f".{path.name}.mcpguard-"


def _fill(fd: int, original: int | None, data: bytes, *, must_keep_owner: bool) -> None:
    """Write the file that will replace another one, onto the disk, with the other's mode, owner and attributes.

    Nothing is done by name: others may swap names in the folder.

    Args:
        fd: The new file. It is closed.
        original: The file that will be replaced; None if there is none.
        data: The content.
        must_keep_owner: See `replace`.

    Raises:
        OSError: The disk is full, or the file cannot have the owner of the original.
    """
    try:
        write_all(fd, data)
        if sys.platform != "win32":
            if original is None:
                os.fchmod(fd, 0o600)  # whatever the umask is
            else:
                _make_alike(fd, original, must_keep_owner=must_keep_owner)
        force(fd)
    finally:
        os.close(fd)


if sys.platform != "win32":
    _ACL_AND_ATTRIBUTES: Final = 1 << 0 | 1 << 2
    """COPYFILE_ACL and COPYFILE_XATTR of copyfile.h. COPYFILE_STAT would copy times and flags, too."""

    def _make_alike(fd: int, original: int, *, must_keep_owner: bool) -> None:
        """Give a file the mode, the owner and the attributes of another one."""
        found = os.fstat(original)
        if sys.platform == "darwin":
            import ctypes

            # Such as Finder's tags; what is refused is lost
            ctypes.CDLL(None).fcopyfile(original, fd, None, _ACL_AND_ATTRIBUTES)
        elif sys.platform == "linux":
            with contextlib.suppress(OSError):  # the file system has no attributes
                for attribute in os.listxattr(original):
                    with contextlib.suppress(OSError):  # only root may set some of them
                        os.setxattr(fd, attribute, os.getxattr(original, attribute))
        made = os.fstat(fd)
        if (found.st_uid, found.st_gid) != (made.st_uid, made.st_gid):
            with contextlib.nullcontext() if must_keep_owner else contextlib.suppress(OSError):
                os.fchown(fd, found.st_uid, found.st_gid)
        os.fchmod(fd, found.st_mode & 0o7777)  # last, because a change of owner clears some bits


def write_all(fd: int, data: bytes) -> None:
    """Write all bytes to an open file."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def sync_folder(folder: Path) -> None:
    """Force the names in a folder to the disk."""
    with contextlib.suppress(OSError):  # some file systems cannot sync folders
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
