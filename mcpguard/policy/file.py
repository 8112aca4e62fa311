"""Loads the policy file, and follows its changes in a running wrapper."""

import contextlib
import json
import os
import sys

from mcpguard.errors import PolicyError
from mcpguard.files import FollowedFile, StrPath, open_private, private_folder, read_at_once
from mcpguard.light_typing import Any, Final
from mcpguard.policy.model import Policy
from mcpguard.policy.parse import STARTER, parse, tables_of, text_of, unreadable
from mcpguard.text.digest import blake2b
from mcpguard.text.redaction import redacted

AT_ONCE_BYTES: Final = 16 * 1024
"""A larger file is parsed in a thread. One of this size, about 200 rules, delays the call that finds it by milliseconds."""

MOST_KEPT_BYTES: Final = 1024 * 1024
"""At most this much is read of what is kept of a policy."""


class _Parsing:
    """A content that a thread parses.

    Attributes:
        content: The content.
        found: The policy or the error; None until the thread has finished.
    """

    def __init__(self, content: bytes | str | None) -> None:
        self.content = content
        self.found: Policy | PolicyError | None = None


class PolicyFile:
    """The policy file and its changes.

    Args:
        path: The file.
        named: Whether an option or a variable names the file. Then it must exist. Else the starter policy is in force until it
            exists.
        observe: Use observe mode, whatever `mode` the file has.
        tables_beside: A file beside which the policy is kept as JSON, for processes that make one decision: `tomllib` takes
            4 ms to load. Empty for nowhere.
    """

    def __init__(self, path: StrPath, *, named: bool = False, observe: bool = False, tables_beside: str = "") -> None:
        self._path = os.fspath(path)
        self._tables_folder = os.path.dirname(tables_beside)
        self._named = named
        self._observe = observe
        self._file = FollowedFile(path)
        self._was_loaded = False
        self._has_changed = False
        self._parsing: _Parsing | None = None

    def begin(self) -> Policy | PolicyError:
        """The policy at the start, or why there is none: the file is missing or broken. Then every call is denied."""
        self._file.look()
        return self._noted(self._parsed(self._file.content))

    def poll(self) -> Policy | PolicyError | None:
        """The new policy, or the error in the file's new content; None if the file has not changed, which is usual.

        A file over `AT_ONCE_BYTES` is parsed in a thread. The first `poll` after that returns the result.
        """
        self._has_changed |= self._file.look()
        if not self._has_changed:
            return None
        content = self._file.content
        large = isinstance(content, bytes) and len(content) > AT_ONCE_BYTES
        found = self._parsed_in_thread(content) if large else self._parsed(content)
        if found is None:
            return None
        self._has_changed = False
        return self._noted(found)

    def _parsed_in_thread(self, content: bytes | str | None) -> Policy | PolicyError | None:
        """The result of parsing a content in a thread; None until it is there. Only one thread parses at a time."""
        parsing = self._parsing
        if parsing and parsing.found is None:
            return None
        self._parsing = None
        if parsing and parsing.content == content:
            return parsing.found
        import threading  # takes a millisecond to load, and a hook follows no changes

        with contextlib.suppress(RuntimeError):  # the system has no thread now: the next `poll` tries again
            parsing = _Parsing(content)
            threading.Thread(target=self._parse, args=(parsing,), name="mcpguard-policy", daemon=True).start()
            self._parsing = parsing
        return None

    def _parse(self, parsing: _Parsing) -> None:
        try:
            parsing.found = self._parsed(parsing.content)
        except Exception as error:  # else `found` would stay None for ever
            parsing.found = PolicyError(f"internal error, please report it: {error!r}")

    def _is_not_made_yet(self, content: bytes | str | None) -> bool:
        """Whether the starter policy is in force. If the file is removed later, its last policy stays in force.

        A link whose target is missing is no such case: the policy is kept elsewhere, such as on a disk that is not mounted.
        """
        return content is None and not (self._named or self._was_loaded or os.path.islink(self._path))

    def _noted(self, found: Policy | PolicyError) -> Policy | PolicyError:
        self._was_loaded |= isinstance(found, Policy) and not found.is_starter
        return found

    def _parsed(self, content: bytes | str | None) -> Policy | PolicyError:
        try:
            if self._is_not_made_yet(content):
                return parse(
                    STARTER, source="starter policy", observe=self._observe, is_starter=True, tables_of=self._tables_of
                )
            if content is None:
                return no_such_file(self._path, named=self._named)
            if isinstance(content, str):
                return unreadable(self._path, content)
            text = text_of(content, source=self._path)
            return parse(text, source=self._path, observe=self._observe, tables_of=self._tables_of)
        except PolicyError as error:
            message, hint = redacted(error.message), redacted(error.hint)  # the answer to every call contains the message
            return PolicyError(message, hint, source=error.source, problems=error.problems)

    def _tables_of(self, text: str) -> dict[str, Any]:
        """The tables of a text: those that were kept, if they are of the same text. Raises as `tables_of` does."""
        # What is kept must not be a way to change a policy that this account may not write
        if not self._tables_folder or (os.path.exists(self._path) and not os.access(self._path, os.W_OK)):
            return tables_of(text)
        name = blake2b(self._path.encode(errors="surrogatepass"), digest_size=8).hexdigest()
        file = os.path.join(self._tables_folder, f"policy-{name}.json")
        with contextlib.suppress(OSError, ValueError, RecursionError):
            seal, _, kept = read_at_once(file, MOST_KEPT_BYTES).partition(b"\n")
            if seal == _seal(text, kept):
                return dict(json.loads(kept))
        tables = tables_of(text)
        # The disk is full; or it has a date, or another value that no policy may have and JSON cannot
        with contextlib.suppress(OSError, TypeError, ValueError, RecursionError):
            kept = json.dumps(tables).encode()
            private_folder(self._tables_folder)
            with open(open_private(file), "wb") as made:  # others read and write it at any time: its seal tells
                made.write(_seal(text, kept) + b"\n" + kept)
                made.truncate()
        return tables


def _seal(text: str, kept: bytes) -> bytes:
    """The first line of a file with the tables of a text, as JSON. No other text or tables, or a part of them, have it."""
    return blake2b(f"{sys.version}\0{text}\0".encode(errors="surrogatepass") + kept, digest_size=16).hexdigest().encode()


def load(path: StrPath, *, named: bool) -> Policy:
    """Load the policy from a file; the starter policy if there is no file.

    Raises:
        PolicyError: The file is broken, or missing although `named`.
    """
    policy = PolicyFile(path, named=named).begin()
    if isinstance(policy, PolicyError):
        raise policy
    return policy


def no_such_file(path: StrPath, *, named: bool) -> PolicyError:
    """The error for a policy file that does not exist. If an option or a variable names it, the name may be wrong."""
    if os.path.islink(path):
        what = f"{path} is a link to {os.readlink(path)}, which does not exist"
        return PolicyError(what, "restore that file, or make it: mcpguard policy init")
    what = f"{path}: no such file"
    if not named:
        return PolicyError(what, "make one: mcpguard policy init")
    import shlex  # only for error messages

    return PolicyError(what, f"correct the name, or make that file: mcpguard policy init --policy {shlex.quote(str(path))}")
