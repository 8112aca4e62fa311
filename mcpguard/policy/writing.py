"""Reads and makes a policy file, locks it for a change, and keeps a copy of it for an editor."""

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from mcpguard.errors import McpguardError
from mcpguard.files import FollowedFile, is_there, no_temporary_folder, place_to_make, private_folder, read_at_once
from mcpguard.identity.account import state_folder
from mcpguard.locks import FileLock, lock_file
from mcpguard.policy.model import Policy
from mcpguard.policy.parse import SCHEMA_FILE, SCHEMA_LINE, STARTER, parse, text_of, unreadable
from mcpguard.policy.schema import TITLE, policy_schema, schema_text
from mcpguard.whole_files import LEFT_AFTER_S, remove_leftovers, reported, require_writable, write

LOCK_TIMEOUT_S: Final = 10.0
"""How long to wait for other commands that edit the same file. Each takes a few milliseconds."""


@contextlib.contextmanager
def locked(path: Path) -> Iterator[Path]:
    """Lock a policy file against other edits.

    The lock is the folder's, so that no lock file is left in a repository. If the file system cannot lock folders, there is no
    lock.

    Yields:
        The file; if `path` is a link, its target. The folder exists.

    Raises:
        McpguardError: The folder cannot be used, or another process keeps it locked.
    """
    with reported(path), contextlib.ExitStack() as undo:
        target = Path(place_to_make(path))
        private_folder(target.parent)
        lock = folder_lock(target.parent)
        undo.callback(lock.close)
        left_after_s = 0.0
        try:
            if not lock.acquire(LOCK_TIMEOUT_S):
                raise McpguardError(f"{target}: locked by another process", "end the process that holds it")
        except OSError:  # this file system cannot lock folders: another command may be writing
            left_after_s = LEFT_AFTER_S
        remove_leftovers(target, older_than_s=left_after_s)
        yield target


def folder_lock(folder: Path) -> FileLock:
    """The lock on a folder. Windows cannot lock one: there it is on a file in the state folder, named by the folder's number.

    Raises:
        OSError: The folder cannot be used, or the state folder cannot be made.
    """
    if sys.platform != "win32":
        return FileLock(os.open(folder, os.O_RDONLY))
    found, state = folder.stat(), state_folder(os.environ)
    private_folder(state)
    return lock_file(state / f"policy-{found.st_dev:x}-{found.st_ino:x}.lock")


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


def write_policy(target: Path, content: bytes) -> None:
    """Write a policy file, and the schema beside it that its first line names.

    Args:
        target: The file, which is not a link.
        content: Its new content.

    Raises:
        McpguardError: The file cannot be written; it is unchanged. If only the schema cannot be written, nothing is raised.
    """
    write(target, content)
    write_schema(target, content)


def write_schema(policy: Path, content: bytes) -> None:
    """Write the schema beside a policy, if the policy's first line names it.

    A file of that name that mcpguard has not written stays as it is. If the schema cannot be written, only editors miss it.
    """
    if content.partition(b"\n")[0].rstrip() != SCHEMA_LINE.strip().encode():
        return
    beside, new = policy.parent / SCHEMA_FILE, schema_text(policy_schema()).encode()
    with contextlib.suppress(OSError, McpguardError):
        old = read_at_once(beside) if is_there(beside) else None
        if old is None or (old != new and TITLE.encode() in old):
            remove_leftovers(beside)
            write(beside, new)


def begin(path: Path) -> bool:
    """Write the starter policy to a file; False if the file exists already.

    Raises:
        McpguardError: The file cannot be written.
    """
    with locked(path) as target:
        if is_there(target):
            return False
        write_policy(target, STARTER.encode())
        return True


class Draft:
    """A copy of a policy file for an editor. Running wrappers see the text when it is saved, and nothing of it before.

    Args:
        path: The policy file, which exists.
        folder: A private folder for the copy and for what the editor puts beside it.
        removal: Removes the folder.

    Attributes:
        file: The copy.

    Raises:
        PolicyError: The file cannot be read.
    """

    def __init__(self, path: Path, folder: Path, removal: contextlib.ExitStack) -> None:
        self.file = folder / path.name
        self._path = path
        self._removal = removal
        try:
            self._before = read_at_once(path)
            self.file.write_bytes(self._before)
            write_schema(self.file, self._before)
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
        removal = self._removal.pop_all()  # a text that is not saved stays
        try:
            with locked(self._path) as target:
                if not is_there(target) or read_at_once(target) != self._before:
                    raise McpguardError(f"{self._path}: not saved: another process has changed it while you edited")
                write_policy(target, content)
        except McpguardError as error:
            raise McpguardError(error.message, f"look for your text in {self.file}") from error
        self._removal.push(removal)

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
    with contextlib.ExitStack() as removal:
        removal.callback(shutil.rmtree, folder, ignore_errors=True)
        draft = Draft(path, folder, removal)
        with reported(path):
            require_writable(path)
        yield draft
