"""The policy file: as it is, and as it changes under a running wrapper."""

import contextlib
import gc
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from mcpguard.core.policy import Policy
from mcpguard.core.policy_parse import STARTER, parse, text_of
from mcpguard.core.redaction import redacted
from mcpguard.errors import PolicyError
from mcpguard.followed_file import FollowedFile

AT_ONCE_BYTES: Final = 16 * 1024
"""A larger file is parsed in a thread. One of this size, about 200 rules, costs the call that finds it some milliseconds."""

SWITCH_S: Final = 0.0005
"""How long the thread that parses keeps others from running at a time; Python's own 5 ms would add up, several times a call."""


class PolicyFile:
    """The policy file, followed while it changes.

    Args:
        path: The file.
        named: Whether somebody named it. Then it must exist; else the starter policy is in force until it does.
        observe: Report only, whatever it says.
    """

    def __init__(self, path: Path, *, named: bool = False, observe: bool = False) -> None:
        self.path = path
        self.is_starter = False
        self._named = named
        self._observe = observe
        self._file = FollowedFile(path)
        self._taken_up = False
        self._has_news = False
        self._parsing: _Parsing | None = None

    def begin(self) -> Policy | PolicyError:
        """The policy to start with; an error if there is none, which closes every tool until it is mended."""
        self._file.look()
        return self._noted(self._understand(self._file.content))

    def poll(self) -> Policy | PolicyError | None:
        """What is new since the last look: a policy, or why the file's new content cannot be taken up. Usually None.

        A file over `AT_ONCE_BYTES` is parsed in a thread: it is told by the first look after that is done.
        """
        before = self._file.content
        if self._file.look() and self._file.content != before:
            self._has_news = True
        if not self._has_news:
            return None
        content = self._file.content
        large = isinstance(content, bytes) and len(content) > AT_ONCE_BYTES
        found = self._understood_meanwhile(content) if large else self._understand(content)
        if found is None:
            return None
        self._has_news = False
        return self._noted(found)

    def _understood_meanwhile(self, content: bytes | str | None) -> Policy | PolicyError | None:
        """What a content comes to; None while it is being parsed. One thread at a time does that."""
        parsing = self._parsing
        if parsing and parsing.found is None:
            return None
        self._parsing = None
        if parsing and parsing.content == content:
            return parsing.found
        self._parsing = _Parsing(content, self._understand)
        return None

    def _is_no_file_yet(self, content: bytes | str | None) -> bool:
        """Whether the starter policy is in force. Once a file was taken up, a file that is gone leaves it in force."""
        return content is None and not self._named and not self._taken_up

    def _noted(self, found: Policy | PolicyError) -> Policy | PolicyError:
        self.is_starter = self._is_no_file_yet(self._file.content)
        self._taken_up = self._taken_up or (isinstance(found, Policy) and not self.is_starter)
        return found

    def _understand(self, content: bytes | str | None) -> Policy | PolicyError:
        try:
            if self._is_no_file_yet(content):
                return parse(STARTER, source="starter policy", observe=self._observe)
            if content is None:
                return no_such_file(self.path, named=self._named)
            if isinstance(content, str):
                return PolicyError(f"{self.path}: cannot be read: {content}", "a policy is a file in TOML")
            source = str(self.path)
            return parse(text_of(content, source=source), source=source, observe=self._observe)
        except PolicyError as error:
            return PolicyError(redacted(error.message), redacted(error.hint))  # every call is answered with it


class _Parsing:
    """A content that a thread parses.

    Attributes:
        content: The content.
        found: What it comes to; None as long as that is not known.
    """

    def __init__(self, content: bytes | str | None, understand: Callable[[bytes | str | None], Policy | PolicyError]) -> None:
        self.content = content
        self.found: Policy | PolicyError | None = None
        self._understand = understand
        threading.Thread(target=self._parse, name="mcpguard-policy", daemon=True).start()

    def _parse(self) -> None:
        try:
            with _giving_way():
                found = self._understand(self.content)
        except Exception as error:  # else it would never be known that nothing comes of it
            found = PolicyError(f"internal error, please report it: {error!r}")
        self.found = found


@contextlib.contextmanager
def _giving_way() -> Iterator[None]:
    """Keep out of other threads' way: let them run often, and spare them the looks for garbage at all that is being made."""
    switch_s, collects = sys.getswitchinterval(), gc.isenabled()
    sys.setswitchinterval(SWITCH_S)
    gc.disable()  # nothing interrupts a collection
    try:
        yield
    finally:
        sys.setswitchinterval(switch_s)
        if collects:
            gc.enable()


def load(path: Path, *, named: bool) -> tuple[Policy, bool]:
    """The policy in a file, and whether it is the starter policy since there is no file.

    Raises:
        PolicyError: It holds none.
    """
    file = PolicyFile(path, named=named)
    policy = file.begin()
    if isinstance(policy, PolicyError):
        raise policy
    return policy, file.is_starter


def no_such_file(path: Path, *, named: bool) -> PolicyError:
    """What is said of a policy file that is not there; if somebody has named it, the name may be wrong."""
    what = f"{path}: no such file"
    if not named:
        return PolicyError(what, "make one: mcpguard policy init")
    import shlex  # on the way to an error only

    return PolicyError(what, f"is the name right? to make that file: mcpguard policy init --policy {shlex.quote(str(path))}")
