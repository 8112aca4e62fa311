"""Reads and makes a policy file, locks it for a change, and keeps a copy of it for an editor."""

import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from mcpguard.errors import McpguardError
from mcpguard.files import is_there, no_temporary_folder, place_to_make, private_folder, read_at_once
from mcpguard.followed_file import FollowedFile
from mcpguard.policy.model import Policy
from mcpguard.policy.parse import STARTER, parse, text_of, unreadable
from mcpguard.whole_files import LEFT_AFTER_S, remove_leftovers, reported, require_writable, write

if sys.platform != "win32":
    import fcntl

LOCK_TIMEOUT_S: Final = 10.0
"""How long to wait for other commands that edit the same file. Each takes a few milliseconds."""


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
        target = Path(place_to_make(path))
        private_folder(target.parent)
        alone = _wait_for_lock(target, undo)  # if not, another command may be writing
        remove_leftovers(target, older_than_s=0 if alone else LEFT_AFTER_S)
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


def read(path: Path) -> str | None:
    """Read a policy file; None if it does not exist.

    Raises:
        PolicyError: The file cannot be read, or is not UTF-8.
    """
    file = FollowedFile(path)
    file.look()
    if isinstance(file.content, str):
        raise unreadable(str(path), file.content)
    return None if file.content is None else text_of(file.content, source=str(path))


def begin(path: Path) -> bool:
    """Write the starter policy to a file; False if the file exists already.

    Raises:
        McpguardError: The file cannot be written.
    """
    with locked(path) as target:
        if is_there(target):
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
        is_kept: Whether the copy stays, because it could not be saved.

    Raises:
        PolicyError: The file cannot be read.
    """

    def __init__(self, path: Path, folder: Path) -> None:
        self.file = folder / path.name
        self.is_kept = False
        self._path = path
        try:
            self._before = read_at_once(path)
            self.file.write_bytes(self._before)
        except OSError as error:
            raise unreadable(str(path), error.strerror) from error

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
            McpguardError: The file cannot be written, or another process changed it since the copy was made. It is unchanged,
                and the hint names the copy, which stays.
        """
        content = self._content()
        self.is_kept = True
        try:
            with locked(self._path) as target:
                if not is_there(target) or read_at_once(target) != self._before:
                    raise McpguardError(f"{self._path}: not saved: another process has changed it while you edited")
                write(target, content)
        except McpguardError as error:
            raise McpguardError(error.message, f"look for your text in {self.file}") from error
        self.is_kept = False

    def _content(self) -> bytes:
        try:
            return self.file.read_bytes()
        except OSError as error:
            message = f"the text cannot be read after the editor: {error.strerror}"
            raise McpguardError(message, f"edit again: {self._path} is unchanged") from error


@contextlib.contextmanager
def draft_of(path: Path) -> Iterator[Draft]:
    """A copy of a policy file for an editor, removed at the end unless it must be kept.

    A missing file is made with the starter rules first.

    Raises:
        McpguardError: The file cannot be read or made.
    """
    begin(path)
    try:
        folder = Path(tempfile.mkdtemp(prefix="mcpguard-"))
    except OSError as error:
        raise no_temporary_folder(error) from error
    draft: Draft | None = None
    try:
        draft = Draft(path, folder)
        with reported(path):
            require_writable(path)
        yield draft
    finally:
        if draft is None or not draft.is_kept:
            shutil.rmtree(folder, ignore_errors=True)
