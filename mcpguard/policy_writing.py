"""Reads and replaces a policy file, and keeps a copy of it for an editor. A failed write leaves the file unchanged."""

import contextlib
import errno
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from mcpguard.core.policy.model import Policy
from mcpguard.core.policy.parse import STARTER, parse, text_of
from mcpguard.errors import McpguardError, PolicyError
from mcpguard.files import place_to_make, private_folder, read_at_once
from mcpguard.followed_file import FollowedFile

if sys.platform != "win32":
    import fcntl

LOCK_TIMEOUT_S: Final = 10.0
"""How long to wait for other commands that edit the same file. Each takes some milliseconds."""

LEFT_AFTER_S: Final = 3600.0
"""If the folder cannot be locked, an unfinished file of this age was left by a command that was killed."""


@contextlib.contextmanager
def locked(path: Path) -> Iterator[Path]:
    """Lock a policy file against other edits.

    The lock is on the folder, so that no lock file is left in a repository. If the file system cannot lock folders, there is
    no lock.

    Yields:
        The file; if `path` is a link, its target. The folder exists.

    Raises:
        McpguardError: The folder cannot be used, or another process keeps it locked.
    """
    with reported(path), contextlib.ExitStack() as undo:
        target = place_to_make(path)
        private_folder(target.parent)
        alone = _wait_for_lock(target, undo)
        _remove_leftovers(target, older_than_s=0 if alone else LEFT_AFTER_S)
        yield target


def _wait_for_lock(path: Path, undo: contextlib.ExitStack) -> bool:
    """Lock a file's folder until `undo` closes; False if this file system cannot lock folders."""
    if sys.platform != "win32":
        folder = os.open(path.parent, os.O_RDONLY)
        undo.callback(os.close, folder)
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        while time.monotonic() <= deadline:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.01)
            except OSError:
                return False
            else:
                return True
        raise McpguardError(f"{path}: locked by another process", "end the process that holds it")
    return False


def _new_files(path: Path) -> str:
    """The prefix of the names of unfinished files, which replace a file when they are complete."""
    return f".{path.name}.mcpguard-"


def _remove_leftovers(path: Path, *, older_than_s: float) -> None:
    """Remove unfinished files of commands that were killed."""
    for entry in path.parent.iterdir():
        with contextlib.suppress(OSError):
            if entry.name.startswith(_new_files(path)) and entry.lstat().st_mtime <= time.time() - older_than_s:
                entry.unlink()


@contextlib.contextmanager
def reported(path: Path) -> Iterator[None]:
    """Report errors of the operating system as `McpguardError`."""
    try:
        yield
    except OSError as error:
        raise McpguardError(
            f"{path}: cannot be written: {error.strerror or error}",
            "the file is unchanged; check that the file and its folder are writable and the disk is not full",
        ) from error


def read(path: Path) -> str | None:
    """Read a policy file; None if it does not exist.

    Raises:
        PolicyError: The file cannot be read, or is not UTF-8.
    """
    file = FollowedFile(path)
    file.look()
    if isinstance(file.content, str):
        raise PolicyError(f"{path}: cannot be read: {file.content}", "a policy is a file in TOML")
    return None if file.content is None else text_of(file.content, source=str(path))


def _require_writable(path: Path) -> None:
    """Refuse a read-only file. Replacing it would work, but it is read-only on purpose."""
    if path.exists() and not os.access(path, os.W_OK):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))


def write(path: Path, content: bytes) -> None:
    """Replace a file's content atomically. An existing file keeps its mode and owner; a new one has mode 0600.

    Raises:
        McpguardError: The file cannot be written; it is unchanged.
    """
    with reported(path):
        _require_writable(path)
        fd, name = tempfile.mkstemp(dir=path.parent, prefix=_new_files(path))
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(content)
                file.flush()
                if sys.platform != "win32":
                    os.fchmod(file.fileno(), 0o600)  # whatever the umask is
                with contextlib.suppress(FileNotFoundError):
                    stat = path.stat()
                    if sys.platform != "win32":
                        with contextlib.suppress(OSError):
                            os.fchown(file.fileno(), stat.st_uid, stat.st_gid)
                    Path(name).chmod(stat.st_mode & 0o7777)
                os.fsync(file.fileno())
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        with contextlib.suppress(OSError):  # some file systems cannot sync folders
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def begin(path: Path) -> bool:
    """Write the starter policy to a file; False if the file exists already.

    Raises:
        McpguardError: The file cannot be written.
    """
    with locked(path) as target:
        if target.exists():
            return False
        write(target, STARTER.encode())
        return True


class Draft:
    """A copy of a policy file for an editor. Running wrappers see the text when it is saved, and nothing of it before.

    Args:
        path: The policy file, which exists.
        folder: A private folder for the copy and for what the editor puts beside it.

    Attributes:
        file: The copy.
    """

    def __init__(self, path: Path, folder: Path) -> None:
        self.file = folder / path.name
        self._path = path
        self._before = read_at_once(path)
        self.file.write_bytes(self._before)

    @property
    def is_changed(self) -> bool:
        """Whether the copy differs from the file as it was."""
        return self._content() != self._before

    def check(self) -> Policy:
        """Parse the copy. Errors name the policy file.

        Raises:
            PolicyError: The text is not a valid policy.
        """
        return parse(text_of(self._content(), source=str(self._path)), source=str(self._path))

    def save(self) -> None:
        """Replace the policy file by the copy.

        Raises:
            McpguardError: The file cannot be written, or another process changed it since the copy was made. It is unchanged.
        """
        content = self._content()
        with locked(self._path) as target:
            if read_at_once(target) != self._before:
                kept = self._path.with_name(f"{self._path.name}.edited")
                write(kept, content)
                hint = f"your text is in {kept}"
                raise McpguardError(f"{self._path}: another process has changed it while you edited", hint)
            write(target, content)

    def _content(self) -> bytes:
        try:
            return self.file.read_bytes()
        except OSError as error:
            message = f"the text cannot be read after the editor: {error.strerror}"
            raise McpguardError(message, f"{self._path} is unchanged") from error


@contextlib.contextmanager
def draft_of(path: Path) -> Iterator[Draft]:
    """A copy of a policy file for an editor, removed at the end. A missing file is made with the starter rules first.

    Raises:
        McpguardError: The file cannot be read or made.
    """
    begin(path)
    with reported(path):
        _require_writable(path)
    with tempfile.TemporaryDirectory(prefix="mcpguard-") as folder:
        try:
            draft = Draft(path, Path(folder))
        except OSError as error:
            raise PolicyError(f"{path}: cannot be read: {error.strerror}", "a policy is a file in TOML") from error
        yield draft
